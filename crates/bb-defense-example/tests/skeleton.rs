//! `scripts/new-defense.sh` refuses what is no name and what is there, and leaves nothing half made.
//!
//! That the skeleton compiles, passes its tests and runs is checked by `.ci/run`, which can build it.

use std::path::Path;
use std::process::{Command, Output};

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A repository with as much in it as the script looks at.
fn repository() -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a folder");
    for folder in [
        "scripts",
        "crates/bb-defense/src/tsbd",
        "crates/bb-defense-taken",
    ] {
        fs_err::create_dir_all(place.path().join(folder)).expect("a folder");
    }
    let script = "scripts/new-defense.sh";
    fs_err::copy(root().join(script), place.path().join(script)).expect("copied");
    place
}

fn script(place: &Path, words: &[&str]) -> Output {
    Command::new("bash")
        .arg(place.join("scripts/new-defense.sh"))
        .args(words)
        .output()
        .expect("bash")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string())
        .collect::<Result<_, _>>()
        .expect("plain names");
    names.sort();
    names
}

#[test]
fn bad_names_and_existing_folders_are_one_clear_error() {
    let place = repository();
    let long = "a".repeat(41);
    let no_name = "is no name of a defense";
    for (words, expected) in [
        (&[][..], "expected one NAME"),
        (&["a", "b"], "expected one NAME"),
        (&[""], no_name),
        (&["Weight"], no_name),
        (&["weightNorm"], no_name),
        (&["2fast"], no_name),
        (&["weight_norm"], no_name),
        (&["weight norm"], no_name),
        (&["../weight"], no_name),
        (&["-weight"], no_name),
        (&["weight-"], no_name),
        (&["weight--norm"], no_name),
        (&["größe"], no_name),
        (&["a/b"], no_name),
        (&[long.as_str()], "at most 40 characters"),
        (&["tsbd"], "`tsbd` is a defense of crates/bb-defense"),
        (&["taken"], "`crates/bb-defense-taken` exists already"),
    ] {
        let output = script(place.path(), words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(
            said.starts_with("error: ") && said.contains(expected),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(
        names(&place.path().join("crates")),
        ["bb-defense", "bb-defense-taken"]
    );
    assert_eq!(names(place.path()), ["crates", "scripts"]);
}

#[test]
fn a_skeleton_has_its_names_in_place() {
    let place = repository();
    let output = script(place.path(), &["weight-norm2"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("cargo test -p bb-defense-weight-norm2\n"),
        "{said}"
    );
    assert_eq!(
        names(place.path()),
        ["crates", "scripts"],
        "nothing else is left"
    );

    let folder = place.path().join("crates/bb-defense-weight-norm2");
    assert_eq!(names(&folder), ["Cargo.toml", "grid.toml", "src", "tests"]);
    let mut read = String::new();
    for file in [
        "Cargo.toml",
        "grid.toml",
        "src/config.rs",
        "src/lib.rs",
        "src/main.rs",
        "tests/small_grid.rs",
    ] {
        let text = fs_err::read_to_string(folder.join(file)).expect("readable");
        assert!(!text.contains('@'), "{file} has a name to fill in");
        read.push_str(&text);
    }
    for expected in [
        "name = \"bb-defense-weight-norm2\"",
        "bb_defense_weight_norm2::WeightNorm2Defense",
        "id: \"weight-norm2\"",
        "title: \"WeightNorm2\"",
        "pub struct WeightNorm2Config",
        "method = \"weight-norm2\"",
    ] {
        assert!(read.contains(expected), "no `{expected}`");
    }
    // A second time it is there.
    let again = script(place.path(), &["weight-norm2"]);
    assert_eq!(again.status.code(), Some(2));
}
