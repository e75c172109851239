//! `docs/contributing/add-a-defense.md` shows the code of this crate and no other.

use std::path::Path;

/// The blocks of code in a language that a page shows.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let head = format!("```{language}\n");
    let starts = page.match_indices(&head).map(|(at, head)| at + head.len());
    starts
        .map(|at| page[at..].split("```").next().expect("text up to the end"))
        .collect()
}

#[test]
fn the_guide_shows_this_crates_code() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &Path| fs_err::read_to_string(path).expect("readable");
    let page = read(&own.join("../../docs/contributing/add-a-defense.md"));
    let source: String = ["src/lib.rs", "src/config.rs", "src/main.rs"]
        .iter()
        .map(|file| read(&own.join(file)))
        .collect();
    let shown = blocks(&page, "rust");
    assert!(shown.len() >= 10, "only {} blocks", shown.len());
    for block in shown {
        assert!(block.lines().count() >= 3, "too little to find:\n{block}");
        assert!(source.contains(block), "not in the crate:\n{block}");
    }
    let commands = blocks(&page, "sh").concat();
    for command in [
        "scripts/new-defense.sh norm-prune",
        "cargo test -p bb-defense-example",
        "cargo run -p bb-defense-example -- run crates/bb-defense-example/grid.toml",
    ] {
        assert!(commands.contains(command), "the guide lacks `{command}`");
    }
}
