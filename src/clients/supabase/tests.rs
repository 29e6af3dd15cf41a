//! What a client is made from.

use super::*;

#[test]
fn a_legacy_key_goes_into_both_headers_and_a_new_one_into_apikey_alone() {
    let legacy = key_headers(&SecretString::from("aaa.bbb.ccc")).expect("a key");
    assert_eq!(legacy[API_KEY], "aaa.bbb.ccc");
    assert_eq!(legacy[AUTHORIZATION], "Bearer aaa.bbb.ccc");
    let new = key_headers(&SecretString::from("sb_secret_x")).expect("a key");
    assert_eq!(new[API_KEY], "sb_secret_x");
    assert!(!new.contains_key(AUTHORIZATION));
    assert!(new[API_KEY].is_sensitive());
}

#[test]
fn an_unusable_key_or_address_is_named_without_its_value() {
    let error = key_headers(&SecretString::from("a\nb")).expect_err("no header");
    assert!(error.to_string().contains("SUPABASE_SERVICE_ROLE_KEY"), "{error}");
    let breakers = Arc::new(Breakers::new(
        3,
        crate::outage::Backoff { base: Duration::ZERO, max: Duration::ZERO },
    ));
    let config = SupabaseConfig::new("postgres://u:hidden@h", SecretString::from("k"));
    let error = Supabase::new(&config, breakers).expect_err("not http");
    assert!(error.to_string().contains("SUPABASE_URL"), "{error}");
    assert!(!error.to_string().contains("hidden"), "{error}");
}
