//! The CRM's database on a real PostgreSQL, made by the files of `config/postgres` as a user applies them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::sync::OnceCell;
use tokio_postgres::{Client, Config, NoTls};

use test_support::{services, unique};

/// What the daemon and the connector need to log in.
pub(super) struct Database {
    pub(super) name: String,
    /// Password of role `authenticator`, which PostgREST logs in as.
    pub(super) authenticator_password: String,
    /// Password of role `debezium`.
    pub(super) debezium_password: String,
}

/// The database, created once for all tests of this process, since its roles belong to the server.
pub(super) async fn database() -> &'static Database {
    static DATABASE: OnceCell<Database> = OnceCell::const_new();
    DATABASE.get_or_init(make).await
}

/// Another one, with the first one's roles.
pub(super) async fn another() -> Database {
    let first = database().await;
    let (authenticator_password, debezium_password) =
        (first.authenticator_password.clone(), first.debezium_password.clone());
    filled(Database { authenticator_password, debezium_password, name: new_name() }, false).await
}

async fn make() -> Database {
    let (authenticator_password, debezium_password) = (unique("p"), unique("p"));
    filled(Database { authenticator_password, debezium_password, name: new_name() }, true).await
}

fn new_name() -> String {
    unique("crm").replace('-', "_")
}

/// Creates it, and its roles if it is the server's first.
async fn filled(database: Database, with_roles: bool) -> Database {
    let server = connect(&superuser()).await;
    server
        .batch_execute(&format!("CREATE DATABASE {}", database.name))
        .await
        .expect("a database of our own");
    for file in sql_files() {
        let sql = std::fs::read_to_string(&file).expect("a file");
        let makes_role =
            |line: &&str| line.starts_with("CREATE ROLE") || line.starts_with("GRANT service_role");
        let lines: Vec<_> = sql.lines().filter(|line| with_roles || !makes_role(line)).collect();
        apply(&database, &file, &lines.join("\n"));
    }
    database
}

/// The files in their names' order, as the image of PostgreSQL runs them.
fn sql_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/postgres");
    let entries = std::fs::read_dir(folder).expect("config/postgres");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files
}

/// Uses psql, since the roles' file is written for it.
fn apply(database: &Database, file: &Path, sql: &str) {
    let mut url = url::Url::parse(services::postgres()).expect("a URL");
    url.set_path(&database.name);
    let mut psql = Command::new("psql")
        .args([
            "--no-psqlrc",
            "--quiet",
            "--set",
            "ON_ERROR_STOP=1",
            "--output=/dev/null",
            "--file=-",
        ])
        .arg(url.as_str())
        .env("AUTHENTICATOR_PASSWORD", &database.authenticator_password)
        .env("DEBEZIUM_PASSWORD", &database.debezium_password)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql is there: install postgresql-client");
    let mut input = psql.stdin.take().expect("its input");
    input.write_all(sql.as_bytes()).expect("psql reads");
    drop(input);
    let output = psql.wait_with_output().expect("psql ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", file.display());
}

fn superuser() -> Config {
    services::postgres().parse().expect("a PostgreSQL URL")
}

async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("PostgreSQL answers");
    tokio::spawn(connection);
    client
}

impl Database {
    /// A superuser's connection, for what the other parts of the CRM do.
    pub(super) async fn crm(&self) -> Client {
        connect(superuser().dbname(&self.name)).await
    }

    /// How PostgREST connects.
    pub(super) fn as_authenticator(&self) -> Config {
        let mut config = superuser();
        config.dbname(&self.name).user("authenticator").password(&self.authenticator_password);
        config
    }
}
