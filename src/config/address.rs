//! Base addresses of web services. People often paste them with a path too many.

use secrecy::SecretString;
use url::Url;

/// The services that lie behind a project's address.
const SERVICES: [&str; 6] =
    ["/rest/v1", "/auth/v1", "/storage/v1", "/realtime/v1", "/functions/v1", "/graphql/v1"];

/// Address of a web service, returned without its trailing slash.
pub(super) fn http(text: &str) -> Result<String, String> {
    let wrong = "is not a web address (https://host or https://host/path)";
    let url = Url::parse(text).map_err(|_| wrong.to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not carry a user or password".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must end with the path, without ? or #".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Address of a Supabase project, to which `/rest/v1/` and more is appended. The dashboard shows it
/// with `/rest/v1`, which is taken off.
pub(super) fn supabase(text: &str) -> Result<String, String> {
    let url = http(text)?;
    let project = url.strip_suffix("/rest/v1").unwrap_or(&url).trim_end_matches('/');
    let parsed = Url::parse(project).map_err(|error| error.to_string())?;
    let (host, path) = (parsed.host_str().unwrap_or_default(), parsed.path());
    let hosted = [".supabase.co", ".supabase.in", ".supabase.red"];
    let is_hosted = hosted.iter().any(|domain| host.ends_with(domain));
    if let Some(service) = SERVICES.iter().find(|service| path.contains(*service)) {
        return Err(format!("must end before {service}: what follows the project is added"));
    }
    if matches!(host, "supabase.com" | "app.supabase.com" | "www.supabase.com") {
        return Err("is the dashboard's, not the project's (https://<project>.supabase.co)".into());
    }
    if is_hosted && path != "/" {
        return Err("must be the project's address alone, without a path".to_owned());
    }
    Ok(project.to_owned())
}

/// Base address of Inngest, to which `/e/` and the key are appended.
pub(super) fn inngest(text: &str) -> Result<String, String> {
    let url = http(text)?;
    if url.contains("/e/") || url.ends_with("/e") {
        return Err("must end before /e: it and the key of INNGEST_EVENT_KEY are added".to_owned());
    }
    Ok(url)
}

/// Address of a PostgreSQL. It is not repeated in messages: it may hold a password.
pub(super) fn postgres(text: &str) -> Result<SecretString, String> {
    let wrong = "is not the address of a PostgreSQL (postgres://user:password@host:5432/database)";
    let url = Url::parse(text).map_err(|_| wrong.to_owned())?;
    if !matches!(url.scheme(), "postgres" | "postgresql") || url.host_str().is_none() {
        return Err(wrong.to_owned());
    }
    match text.parse::<tokio_postgres::Config>() {
        Ok(_) => Ok(text.into()),
        Err(_) => Err(format!("{wrong} with parameters that are known, such as sslmode=require")),
    }
}

/// Address of an OpenSearch or Elasticsearch, which may hold user and password.
pub(super) fn search(text: &str) -> Result<SecretString, String> {
    let wrong = "is not the address of a search server (https://user:password@host:9200)";
    let url = Url::parse(text).map_err(|_| wrong.to_owned())?;
    let plain = url.query().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !plain {
        return Err(wrong.to_owned());
    }
    Ok(text.trim_end_matches('/').into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_its_address_however_the_dashboard_shows_it() {
        for (text, project) in [
            ("https://abc.supabase.co", "https://abc.supabase.co"),
            ("https://abc.supabase.co/", "https://abc.supabase.co"),
            ("https://abc.supabase.co/rest/v1", "https://abc.supabase.co"),
            ("https://abc.supabase.co/rest/v1/", "https://abc.supabase.co"),
            ("https://abc.supabase.co//rest/v1//", "https://abc.supabase.co"),
            ("http://localhost:54321/rest/v1", "http://localhost:54321"),
            ("https://api.example.com/crm", "https://api.example.com/crm"),
            ("https://api.example.com/crm/rest/v1/", "https://api.example.com/crm"),
        ] {
            assert_eq!(supabase(text).as_deref(), Ok(project), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_a_project_is_refused_with_what_is_wrong() {
        for (text, said) in [
            ("https://abc.supabase.co/rest/v1/rpc", "/rest/v1"),
            ("https://abc.supabase.co/rest/v1/merchant_master", "/rest/v1"),
            ("https://abc.supabase.co/auth/v1", "/auth/v1"),
            ("https://abc.supabase.co/realtime/v1/api", "/realtime/v1"),
            ("https://abc.supabase.co/crm", "without a path"),
            ("https://supabase.com/dashboard/project/abc", "the dashboard's"),
            ("abc.supabase.co", "not a web address"),
        ] {
            let error = supabase(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
