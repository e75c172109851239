//! The rules of the repository that a program can check.

use std::collections::BTreeSet;
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

/// Tables of a manifest that name dependencies, with those of single targets.
fn dependency_tables(manifest: &toml_edit::DocumentMut) -> Vec<(String, Vec<String>)> {
    let names = |table: &dyn toml_edit::TableLike| -> Vec<String> {
        table.iter().map(|(name, _)| name.to_owned()).collect()
    };
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let mut found = Vec::new();
    let mut collect = |tables: &dyn toml_edit::TableLike| {
        for kind in kinds {
            if let Some(table) = tables.get(kind).and_then(|item| item.as_table_like()) {
                found.push((kind.to_owned(), names(table)));
            }
        }
    };
    collect(manifest.as_table());
    let targets = manifest.get("target").and_then(|item| item.as_table_like());
    for (_, target) in targets.into_iter().flat_map(|targets| targets.iter()) {
        collect(target.as_table_like().expect("a table of a target"));
    }
    found
}

/// The workspace crates that a crate depends on; `tests` says whether those of its tests count.
fn edges(name: &str, tests: bool) -> Vec<String> {
    let path = root().join("crates").join(name).join("Cargo.toml");
    let text = fs_err::read_to_string(path).expect("a manifest");
    let manifest: toml_edit::DocumentMut = text.parse().expect("TOML");
    dependency_tables(&manifest)
        .into_iter()
        .filter(|(kind, _)| tests || kind != "dev-dependencies")
        .flat_map(|(_, names)| names)
        .filter(|name| name.starts_with("bb-"))
        .collect()
}

/// The crates of the workspace, by name.
fn crates() -> Vec<String> {
    let mut names: Vec<String> = fs_err::read_dir(root().join("crates"))
        .expect("the folder of the crates")
        .map(|entry| entry.expect("a directory entry"))
        .filter(|entry| entry.path().join("Cargo.toml").is_file())
        .map(|entry| entry.file_name().into_string().expect("a plain name"))
        .collect();
    names.sort();
    names
}

/// What a crate that brings a defense of its own is called, whatever follows.
const OUTSIDE: &str = "bb-defense-";

#[test]
fn crates_import_only_what_the_architecture_allows() {
    let inner: [(&str, &[&str]); 6] = [
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
    let outer: &[&str] = &["bb-core", "bb-defense", "bb-eval", "bb-nn"];
    let names = crates();
    assert!(
        names.len() > inner.len(),
        "the example is missing: {names:?}"
    );
    for name in &names {
        let known = inner.iter().find(|(own, _)| own == name);
        let allowed = match known {
            Some((_, allowed)) => allowed,
            None if name.starts_with(OUTSIDE) => outer,
            None => panic!("{name} has no place in the architecture"),
        };
        for edge in edges(name, false) {
            assert!(
                allowed.contains(&edge.as_str()),
                "{name} must not depend on {edge}"
            );
        }
    }
}

#[test]
fn nothing_depends_on_a_crate_that_brings_a_defense() {
    let names = crates();
    assert!(names.iter().any(|name| name.starts_with(OUTSIDE)));
    for name in &names {
        for edge in edges(name, true) {
            assert!(
                !edge.starts_with(OUTSIDE),
                "{name} depends on {edge}, not even tests may"
            );
        }
    }
    // The list that the other manifests take their paths from has none of them either.
    let text = fs_err::read_to_string(root().join("Cargo.toml")).expect("a manifest");
    let manifest: toml_edit::DocumentMut = text.parse().expect("TOML");
    let shared = manifest["workspace"]["dependencies"]
        .as_table()
        .expect("a table");
    assert!(shared.contains_key("bb-defense"));
    assert!(!shared.iter().any(|(name, _)| name.starts_with(OUTSIDE)));
}

#[test]
fn only_the_engine_has_unsafe_code() {
    for (path, text) in sources("rs", "crates") {
        let shown = path.display().to_string().replace('\\', "/");
        let may = shown.contains("/bb-nn/") || shown.ends_with("tests/tidy.rs");
        assert!(may || !text.contains("unsafe {"), "{shown} has unsafe code");
    }
}

/// Words by which the code of a method would reach what no defense may see, or files that nobody looks for there.
const FORBIDDEN: [&str; 9] = [
    "PoisonSet",
    "POISON_TEST",
    "bb_core::cell",
    "data::open",
    "dataset.test",
    "harness::",
    "into_host",
    "fs_err",
    "grant(",
];

/// What methods of bb-defense share, beside the harness that runs them.
const SHARED: [&str; 7] = [
    "channels.rs",
    "finetuning.rs",
    "nwc.rs",
    "parts.rs",
    "robust.rs",
    "settings.rs",
    "unlearning.rs",
];

/// The code of a source file without comments and tests.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next();
    let lines = code.unwrap_or_default().lines();
    lines
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |code, line| code + line + "\n")
}

#[test]
fn no_method_reaches_for_poisoned_images_the_test_set_or_the_harness() {
    let (mut methods, mut shared) = (0, 0);
    let mut harness = String::new();
    for (path, text) in sources("rs", "crates") {
        let shown = path.display().to_string().replace('\\', "/");
        let Some((_, place)) = shown.split_once("/crates/bb-defense") else {
            continue;
        };
        // A folder of bb-defense is a method, what methods share counts as one, and so does a crate beside it but for its
        // `main`.
        let inner = place.strip_prefix("/src/");
        let method = match inner {
            Some(inner) => inner.contains('/') || SHARED.contains(&inner),
            None => {
                place.starts_with('-') && place.contains("/src/") && !place.ends_with("/main.rs")
            }
        };
        if !method {
            if ["harness.rs", "context.rs", "lib.rs"].contains(&inner.unwrap_or_default()) {
                harness += &code(&text);
            }
            continue;
        }
        shared += usize::from(inner.is_some_and(|inner| SHARED.contains(&inner)));
        methods += usize::from(place.ends_with("/mod.rs") || place.ends_with("/lib.rs"));
        for word in FORBIDDEN {
            assert!(!code(&text).contains(word), "{shown} has `{word}`");
        }
    }
    assert!(methods > 6, "only {methods} methods were read");
    assert_eq!(shared, SHARED.len(), "a file of `SHARED` is gone");
    // A word that nothing is called by any more would forbid nothing.
    for word in FORBIDDEN {
        assert!(harness.contains(word), "nothing is called `{word}`");
    }
}

/// What opens a file, whatever lies at its path.
const OPENS: [&str; 4] = [
    "File::open(",
    "OpenOptions::new()",
    "fs_err::read(",
    "fs_err::read_to_string(",
];

/// Who may open files by themselves, and why.
const OPENERS: [(&str, &str); 5] = [
    ("bb-attack/src/golden.rs", "a part of the tests"),
    ("bb-core/src/artifact/atomic.rs", "makes new files"),
    ("bb-core/src/events/facts.rs", "reads what the system says"),
    ("bb-core/src/files.rs", "is what the others use"),
    ("bb-zoo/src/fetch.rs", "brings a folder to the disk"),
];

#[test]
fn files_are_opened_by_what_knows_pipes_links_and_limits() {
    let mut openers = BTreeSet::new();
    for (path, text) in sources("rs", "crates") {
        let shown = path.display().to_string().replace('\\', "/");
        let Some((_, place)) = shown.rsplit_once("/crates/") else {
            continue;
        };
        // Options are mostly handed to `files::open_with`, which opens with them.
        let code = code(&text);
        let opens = OPENS.iter().any(|word| code.contains(word));
        if !place.contains("/src/") || !opens {
            continue;
        }
        let by_files = code.contains("files::open_with(")
            && !OPENS
                .iter()
                .any(|word| *word != "OpenOptions::new()" && code.contains(word));
        let known = OPENERS.iter().find(|(known, _)| *known == place);
        assert!(
            by_files || known.is_some(),
            "{place} opens files by itself, not with `bb_core::files`"
        );
        openers.extend(known.map(|(known, _)| *known));
    }
    for (opener, _) in OPENERS {
        assert!(openers.contains(opener), "{opener} opens no file any more");
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

/// What a test may need that not every machine has; `.ci/run` asks for all of these.
const REASONS: [&str; 3] = ["needs BB_SHARED", "needs python3 with PyYAML", "slow"];

#[test]
fn no_test_is_switched_off_without_one_of_the_known_reasons() {
    let (ignored, panics) = (["#[", "ignore"].concat(), ["#[", "should_panic"].concat());
    for (path, text) in sources("rs", "crates") {
        let shown = path.display();
        assert!(!text.contains(&panics), "{shown}");
        for after in text.split(&ignored).skip(1) {
            let known = REASONS.map(|reason| format!(" = \"{reason}\"]"));
            let is_known = known.iter().any(|reason| after.starts_with(reason));
            assert!(is_known, "{shown}");
        }
    }
}

/// A limit that no test holds is a promise.
#[test]
fn every_limit_of_the_security_page_names_a_test_that_is_there() {
    let text = fs_err::read_to_string(root().join("SECURITY.md")).expect("a page");
    let (_, limits) = text.split_once("## Limits").expect("a chapter");
    let (limits, _) = limits.split_once("\n## ").expect("another chapter");
    let rows = limits.lines().filter(|line| line.starts_with("| "));
    let mut held = 0;
    for row in rows.skip(1) {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next();
        let mut file = String::new();
        // What stands between backquotes: files, and after each the tests in it.
        for word in tests.expect("cells").split('`').skip(1).step_by(2) {
            if word.contains('/') {
                let path = ["crates", "."].map(|folder| root().join(folder).join(word));
                let found = path
                    .iter()
                    .find_map(|path| fs_err::read_to_string(path).ok());
                file = found.unwrap_or_else(|| panic!("{word} is not there: {row}"));
                held += 1;
            } else {
                let test = format!("fn {word}(");
                assert!(file.contains(&test), "no test `{word}`: {row}");
            }
        }
        let is_title = row.starts_with("| **");
        assert!(is_title || !file.is_empty(), "nothing holds: {row}");
    }
    assert!(held > 30, "{held} limits");
}
