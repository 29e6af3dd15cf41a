//! What is shipped beside the program: what the image's build needs is there, and the files that
//! start it fit each other and the README.

mod compose;
mod connectors;
mod docs;
mod kessel;
mod messages;
mod render;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use test_support::unique;

#[test]
fn the_manifest_is_good_where_the_images_build_has_nothing_else_of_the_repository() {
    let build = std::env::temp_dir().join(unique("crm-image"));
    for directory in ["src", "tests/support/src"] {
        fs::create_dir_all(build.join(directory)).expect("a directory");
    }
    for file in ["Cargo.toml", "Cargo.lock", "tests/support/Cargo.toml"] {
        fs::copy(root().join(file), build.join(file)).expect("a copy");
    }
    // As in the Dockerfile.
    fs::write(build.join("src/main.rs"), "fn main() {}").expect("written");
    for library in ["src/lib.rs", "tests/support/src/lib.rs"] {
        fs::write(build.join(library), "").expect("written");
    }
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .current_dir(&build)
        .output()
        .expect("cargo runs");
    fs::remove_dir_all(&build).expect("removed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Programs that tests start: part of a bare Debian, or installed by `tests/services/up`.
const PROGRAMS: [&str; 5] = ["bash", "cat", "openssl", "psql", "sh"];

#[test]
fn tests_start_no_program_that_a_bare_debian_lacks_and_nothing_installs() {
    let mut sources = Vec::new();
    for directory in ["tests", "benches"] {
        sources_below(&root().join(directory), &mut sources);
    }
    let mut found = BTreeSet::new();
    for source in sources {
        let text = fs::read_to_string(&source).expect("text");
        // Split in two, so that this line does not match itself.
        let starts = text.split(concat!("Command::new", "(\"")).skip(1);
        found.extend(starts.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
    }
    assert_eq!(found, PROGRAMS.map(str::to_owned).into());
}

fn sources_below(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources_below(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the repository.
fn file(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
