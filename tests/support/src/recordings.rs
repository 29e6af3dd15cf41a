//! What several tests need: the fixtures, and values that must be there.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crm_event_processors::cdc::{DecodeError, Field};
use crm_event_processors::recording::{self, Recorded};
use flate2::read::GzDecoder;

/// Where a file of `tests/fixtures` lies.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
}

/// The text of a gzipped fixture.
pub fn unpacked(name: &str) -> String {
    let mut text = String::new();
    GzDecoder::new(File::open(fixture(name)).expect("the fixture is there"))
        .read_to_string(&mut text)
        .expect("the fixture is gzip of text");
    text
}

/// The records of a fixture.
pub fn recorded(name: &str) -> impl Iterator<Item = Recorded> + use<> {
    recording::read(File::open(fixture(name)).expect("the fixture is there"))
        .map(|record| record.expect("a record"))
}

/// The value of a column that must hold one.
pub fn known<T>(field: Result<Field<T>, DecodeError>, place: &str) -> T {
    match field {
        Ok(Field::Value(value)) => value,
        Ok(_) => panic!("{place} holds no value"),
        Err(error) => panic!("{place}: {error}"),
    }
}
