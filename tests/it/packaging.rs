//! What the image's build needs is there.

use std::fs;
use std::process::Command;

use crate::support::unique;

#[test]
fn the_manifest_is_good_where_the_images_build_has_nothing_else_of_the_repository() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let build = std::env::temp_dir().join(unique("crm-image"));
    fs::create_dir_all(build.join("src")).expect("a directory");
    for file in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(root.join(file), build.join(file)).expect("a copy");
    }
    // As in the Dockerfile.
    fs::write(build.join("src/main.rs"), "fn main() {}").expect("written");
    fs::write(build.join("src/lib.rs"), "").expect("written");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(&build)
        .output()
        .expect("cargo runs");
    fs::remove_dir_all(&build).expect("removed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
