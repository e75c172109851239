//! The zoo's index: the committed file reads, and every way to get an entry wrong has one clear error.
use bb_core::cli::Coded;
use bb_zoo::index::{Listed, Poison};
use bb_zoo::{Index, IndexError};
use proptest::prelude::*;

const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// The lines of a good entry; a test replaces one of them.
fn fields() -> Vec<(&'static str, String)> {
    vec![
        ("id", "\"badnets-cifar10-w16\"".into()),
        ("arch", "\"preactresnet18\"".into()),
        ("width", "16".into()),
        ("dataset", "\"cifar10\"".into()),
        ("attack", "\"badnets\"".into()),
        ("source", "\"trained here\"".into()),
        ("bytes", "2809344".into()),
        ("sha256", format!("\"{HASH}\"")),
        ("licence", "\"MIT OR Apache-2.0\"".into()),
        ("expected", "{ acc = 0.8123, asr = 0.95 }".into()),
        ("mirrors", "[\"https://example.org/a.safetensors\"]".into()),
    ]
}

fn index(fields: &[(&str, String)]) -> String {
    let lines: Vec<_> = fields.iter().map(|(k, v)| format!("{k} = {v}")).collect();
    format!("schema = 1\n\n[[entry]]\n{}\n", lines.join("\n"))
}

fn with(name: &str, value: &str) -> String {
    let mut fields = fields();
    for (key, old) in &mut fields {
        if *key == name {
            value.clone_into(old);
        }
    }
    index(&fields)
}

fn message(text: &str) -> String {
    match Index::parse("index.toml", text) {
        Ok(_) => "fine".into(),
        Err(e) => match e.hint() {
            Some(hint) => format!("{e} ({hint})"),
            None => e.to_string(),
        },
    }
}

#[test]
fn the_committed_index_reads() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../model_zoo/index.toml");
    Index::load(&path).expect("model_zoo/index.toml is valid");
}

#[test]
fn a_good_entry_is_listed_and_found() {
    let index = Index::parse("index.toml", &index(&fields())).expect("a good index");
    assert_eq!(index.list().len(), 1);
    let entry = index.find("badnets-cifar10-w16").expect("it is there");
    assert_eq!(
        (entry.width, entry.file.bytes, entry.file.sha256.as_str()),
        (16, 2_809_344, HASH)
    );
    assert_eq!((entry.expected.acc, entry.expected.asr), (0.8123, 0.95));
    let error = index
        .find("badnet-cifar10-w16")
        .expect_err("a slip of the finger");
    assert_eq!(
        error.to_string(),
        "no model `badnet-cifar10-w16` in the zoo's index"
    );
    assert_eq!(
        error.hint().as_deref(),
        Some("did you mean `badnets-cifar10-w16`?")
    );
    assert!(matches!(index.find("zzz"), Err(IndexError::Unknown { .. })));
}

#[test]
fn each_mistake_names_line_field_and_remedy() {
    const NAME: &str = "1 to 64 of `a-z`, `0-9`, `.`, `_`, `-`, beginning with a letter or digit";
    const SIZE: &str = "a size from 1 to 4294967296 bytes";
    let short = &HASH[..63];
    let upper = HASH.to_uppercase();
    let cases = [
        ("id", "\"../../etc/passwd\"", format!("line 4: `entry[0].id` is `../../etc/passwd`, expected {NAME}")),
        ("id", "\".hidden\"", format!("line 4: `entry[0].id` is `.hidden`, expected {NAME}")),
        ("id", "\"\"", format!("line 4: `entry[0].id` is ``, expected {NAME}")),
        ("id", "7", "line 4: `entry[0].id` is an integer, expected a string".into()),
        ("width", "0", "line 6: `entry[0].width` is `0`, expected an integer from 1 to 4096".into()),
        ("width", "64.0", "line 6: `entry[0].width` is a float, expected an integer".into()),
        ("bytes", "-1", format!("line 10: `entry[0].bytes` is `-1`, expected {SIZE}")),
        ("bytes", "0", format!("line 10: `entry[0].bytes` is `0`, expected {SIZE}")),
        ("bytes", "9223372036854775807", format!("line 10: `entry[0].bytes` is `9223372036854775807`, expected {SIZE}")),
        ("bytes", "9223372036854775808", "line 10: `entry[0].bytes` is `9223372036854775808`, expected an integer of 64 bits".into()),
        ("sha256", &format!("\"{short}\""), format!("line 11: `entry[0].sha256` is `{short}`, expected 64 lower-case hex digits")),
        ("sha256", &format!("\"{upper}\""), format!("line 11: `entry[0].sha256` is `{upper}`, expected 64 lower-case hex digits")),
        ("licence", "\" \"", "line 12: `entry[0].licence` is ` `, expected one line of 1 to 1000 characters".into()),
        ("source", "\"a\\nb\"", "line 9: `entry[0].source` is `a\\nb`, expected one line of 1 to 1000 characters".into()),
        ("expected", "{ acc = 91.32, asr = 0.9 }", "line 13: `entry[0].expected.acc` is `91.32`, expected a fraction from 0 to 1".into()),
        ("expected", "{ acc = 0.9, asr = -0.1 }", "line 13: `entry[0].expected.asr` is `-0.1`, expected a fraction from 0 to 1".into()),
        ("expected", "{ acc = nan, asr = 0.1 }", "line 13: `entry[0].expected.acc` is `nan`, expected a finite number".into()),
        ("expected", "{ acc = 0.9 }", "line 13: `entry[0].expected.asr` is missing, expected a number".into()),
        ("expected", "{ acc = 0.9, asr = 0.1, asrr = 0 }", "line 13: unknown key `entry[0].expected.asrr` (did you mean `entry[0].expected.asr`?)".into()),
        ("mirrors", "\"https://a\"", "line 14: `entry[0].mirrors` is a string, expected an array of strings".into()),
        ("mirrors", "[\"file:///etc/passwd\"]", "line 14: `entry[0].mirrors[0]` is `file:///etc/passwd`, expected an `https://` address".into()),
        ("mirrors", "[\"https://\"]", "line 14: `entry[0].mirrors[0]` is `https://`, expected an `https://` address".into()),
        ("mirrors", "[\"https://a/b c\"]", "line 14: `entry[0].mirrors[0]` is `https://a/b c`, expected an `https://` address".into()),
    ];
    for (name, value, expect) in cases {
        let (line, what) = expect.split_once(": ").expect("`line N: what`");
        let (what, hint) = what
            .split_once(" (")
            .map_or((what, String::new()), |(w, h)| (w, format!(" ({h}")));
        assert_eq!(
            message(&with(name, value)),
            format!("{what}\n  in index.toml, {line}{hint}"),
            "{name} = {value}"
        );
    }
    // The dataset's own error lists what exists, so only its beginning is fixed here.
    let dataset = message(&with("dataset", "\"cifar11\""));
    assert!(
        dataset.starts_with("`entry[0].dataset` is `cifar11`, expected a known dataset"),
        "{dataset}"
    );
}

#[test]
fn a_poison_set_is_a_recipe_or_a_file() {
    let parse = |more: &[(&'static str, &str)]| {
        let mut fields = fields();
        fields.extend(more.iter().map(|&(key, value)| (key, value.to_owned())));
        Index::parse("index.toml", &index(&fields)).map(|index| index.list()[0].clone())
    };
    let entry = parse(&[]).expect("both may be left out");
    assert_eq!((entry.file.path, entry.poison), (None, None));
    let entry = parse(&[
        ("path", "\"a.safetensors\""),
        ("poison", "{ seed = 7, set = [\"trigger.margin=4\"] }"),
    ])
    .expect("a recipe");
    assert_eq!(entry.file.path.as_deref(), Some("a.safetensors"));
    let expected = Poison::Recipe {
        seed: 7,
        set: vec!["trigger.margin=4".to_owned()],
    };
    assert_eq!(entry.poison, Some(expected));
    let file = format!("{{ bytes = 5, sha256 = \"{HASH}\", mirrors = [], path = \"p\" }}");
    let entry = parse(&[("poison", &file)]).expect("a file");
    assert!(matches!(
        entry.poison,
        Some(Poison::File(Listed { bytes: 5, .. }))
    ));
    for (key, value, expected) in [
        (
            "path",
            "\"../a\"",
            "`entry[0].path` is `../a`, expected 1 to 64 of",
        ),
        ("poison", "{}", "`entry[0].poison.bytes` is missing"),
        ("poison", "{ seed = 0 }", "`entry[0].poison.set` is missing"),
        (
            "poison",
            "{ seed = -1, set = [] }",
            "`entry[0].poison.seed` is `-1`, expected an integer of 32 bits",
        ),
        (
            "poison",
            "{ seed = 0, set = [], bytes = 1 }",
            "unknown key `entry[0].poison.bytes`",
        ),
    ] {
        let error = parse(&[(key, value)]).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn every_field_is_required() {
    for (i, (name, _)) in fields().iter().enumerate() {
        let mut fields = fields();
        fields.remove(i);
        let found = message(&index(&fields));
        assert!(
            found.starts_with(&format!("`entry[0].{name}` is missing")),
            "{found}"
        );
    }
}

#[test]
fn the_file_as_a_whole() {
    let twice = format!(
        "{}{}",
        index(&fields()),
        index(&fields()).replace("schema = 1\n", "")
    );
    let cases: [(&str, &str); 8] = [
        (
            "",
            "`schema` is missing, expected an integer\n  in index.toml, line 1",
        ),
        ("schema = 1", "fine"),
        (
            "schema = 2",
            "`schema` is `2`, expected `1`, the schema this version reads\n  in index.toml, line 1",
        ),
        (
            "schema = 1\nentrys = []",
            "unknown key `entrys`\n  in index.toml, line 2 (did you mean `entry`?)",
        ),
        (
            "schema = 1\nentry = {}",
            "`entry` is a table, expected an array of tables\n  in index.toml, line 2",
        ),
        (
            "schema = 1\nentry = [1]",
            "`entry[0]` is an integer, expected a table\n  in index.toml, line 2",
        ),
        (
            "schema = 1\n[[entry]]\nsha25 = 'x'",
            "unknown key `entry[0].sha25`\n  in index.toml, line 3 (did you mean `entry[0].sha256`?)",
        ),
        (
            &twice,
            "the id `badnets-cifar10-w16` is already used in line 4\n  in index.toml, line 17",
        ),
    ];
    for (text, expect) in cases {
        assert_eq!(message(text), expect, "{text}");
    }
}

#[test]
fn deep_nesting_and_truncation_are_errors_and_nothing_else() {
    let deep = format!(
        "schema = 1\nentry = {}{}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(Index::parse("index.toml", &deep).is_err());
    let whole = index(&fields());
    for end in (0..whole.len()).step_by(7) {
        if let Ok(index) = Index::parse("index.toml", &whole[..end]) {
            assert!(index.list().is_empty(), "cut at {end}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_panics(text in "(schema = 1\n|\\[\\[entry\\]\\]\n|id = |\"|'|[a-z{}=,\\[\\]\\-0-9.\n]|\\PC){0,40}") {
        let _ = Index::parse("index.toml", &text);
    }

    #[test]
    fn replaced_bytes_never_panic(at in 0_usize..400, byte in 0_u8..128) {
        let mut bytes = index(&fields()).into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = Index::parse("index.toml", &String::from_utf8(bytes).expect("ASCII"));
    }
}
