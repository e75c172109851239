//! The rules of the repository that a program can check.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs_err::read_dir(folder)
        .expect("a folder of the repository")
        .map(|e| e.expect("a directory entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
}

fn sources(ending: &str, below: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&root().join(below), ending, &mut found);
    assert!(!found.is_empty(), "no .{ending} file below {below}");
    found
        .into_iter()
        .map(|p| {
            let text = fs_err::read_to_string(&p).expect("a text file");
            (p, text)
        })
        .collect()
}

/// The workspace crates that a crate depends on outside its tests.
fn edges(name: &str) -> Vec<String> {
    let path = root().join("crates").join(name).join("Cargo.toml");
    let text = fs_err::read_to_string(path).expect("a manifest");
    let manifest: toml_edit::DocumentMut = text.parse().expect("TOML");
    let table = manifest["dependencies"].as_table().expect("dependencies");
    table
        .iter()
        .map(|(k, _)| k.to_owned())
        .filter(|k| k.starts_with("bb-"))
        .collect()
}

#[test]
fn crates_import_only_what_the_architecture_allows() {
    let allowed: [(&str, &[&str]); 6] = [
        ("bb-core", &[]),
        ("bb-nn", &["bb-core"]),
        ("bb-zoo", &["bb-core"]),
        ("bb-attack", &["bb-core", "bb-nn"]),
        ("bb-defense", &["bb-core", "bb-nn"]),
        (
            "bb-eval",
            &["bb-attack", "bb-core", "bb-defense", "bb-nn", "bb-zoo"],
        ),
    ];
    for (name, allowed) in allowed {
        for edge in edges(name) {
            assert!(
                allowed.contains(&edge.as_str()),
                "{name} must not depend on {edge}"
            );
        }
    }
}

#[test]
fn only_the_engine_has_unsafe_code_and_the_cache_one_mapping() {
    for (path, text) in sources("rs", "crates") {
        let shown = path.display().to_string().replace('\\', "/");
        if shown.contains("/bb-nn/") || shown.ends_with("tests/tidy.rs") {
            continue;
        }
        let blocks = text.matches("unsafe {").count();
        let limit = usize::from(shown.ends_with("bb-core/src/data/cache.rs"));
        assert!(
            blocks <= limit,
            "{shown} has {blocks} unsafe blocks, {limit} allowed"
        );
    }
}

#[test]
fn configs_say_what_they_are_and_how_to_run_them() {
    for (path, text) in sources("toml", "configs") {
        let head: Vec<&str> = text.lines().take_while(|l| l.starts_with('#')).collect();
        assert!(head.len() >= 2, "{} has no head comment", path.display());
        assert!(
            head.iter().any(|l| l.contains("bb-attack ")
                || l.contains("bb-defense ")
                || l.contains("bb-eval ")),
            "{} does not say its command",
            path.display()
        );
    }
}

#[test]
fn no_test_is_switched_off() {
    let (ignored, panics) = (["#[", "ignore"].concat(), ["#[", "should_panic"].concat());
    for (path, text) in sources("rs", "crates") {
        assert!(
            !text.contains(&ignored) && !text.contains(&panics),
            "{}",
            path.display()
        );
    }
}
