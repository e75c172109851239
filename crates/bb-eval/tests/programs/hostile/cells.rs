//! Cells of strangers, whose manifest fits itself and says what it likes.

use std::path::Path;

use bb_core::artifact::sha256_hex;
use bb_core::cell::canonical_json;
use serde_json::{Value, json};

use super::{Base, Case, HARMLESS, copy, put};

/// Sets what lies at a path of keys.
fn set(manifest: &mut Value, path: &str, value: Value) {
    let mut at = manifest;
    for key in path.split('.') {
        at = &mut at[key];
    }
    *at = value;
}

/// Gives a manifest the identity that follows from it.
fn identified(manifest: &mut Value) {
    let from = [
        "schema", "kind", "method", "dataset", "arch", "settings", "inputs", "seed",
    ];
    let spec: serde_json::Map<String, Value> = (from.into_iter())
        .map(|key| (key.to_owned(), manifest[key].clone()))
        .collect();
    let mut id = sha256_hex(canonical_json(&Value::Object(spec)));
    id.truncate(16);
    manifest["id"] = json!(id);
}

fn numbers() -> Vec<Value> {
    vec![
        json!(-1),
        json!(0),
        json!(1_000_000),
        json!(1_000_000_000_000u64),
        json!(1u64 << 63),
        json!(u64::MAX),
        json!(1e300),
        json!(0.5),
        json!("512"),
    ]
}

/// Manifests as text, made of a good one.
fn manifests(good: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut add = |name: String, change: &dyn Fn(&mut Value)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        identified(&mut manifest);
        all.push((name, manifest.to_string()));
    };
    for path in [
        "settings.data.train_limit",
        "settings.data.test_limit",
        "settings.model.width",
        "settings.model.classes",
        "settings.train.batch_size",
        "settings.target",
        "seed",
        "schema",
    ] {
        for number in numbers() {
            add(format!("{path} = {number}"), &|manifest| {
                set(manifest, path, number.clone());
            });
        }
    }
    for width in [512, 257, 1 << 20] {
        add(format!("{width} wide, twice"), &|manifest| {
            set(manifest, "settings.model.width", json!(width));
            set(manifest, "arch", json!(format!("preactresnet18-w{width}")));
        });
    }
    for path in ["results", "settings", "inputs", "files"] {
        for (name, value) in [
            ("null", json!(null)),
            ("a list", json!([1, 2])),
            ("4,000,000 zeros", json!(vec![0; 4_000_000])),
            ("200,000 lists", json!(vec![json!([]); 200_000])),
        ] {
            if path == "results" && name != "4,000,000 zeros" && name != "200,000 lists" {
                continue;
            }
            add(format!("{path}: {name}"), &|manifest| {
                set(manifest, path, value.clone());
            });
        }
    }
    for name in [
        "../../away",
        "/etc/passwd",
        "a/../../b",
        "",
        ".",
        "a//b",
        "a\0b",
        "\u{1b}[31m",
        "lock",
        "manifest.json",
        "ckpt/x",
    ] {
        add(format!("a file `{}`", name.escape_debug()), &|manifest| {
            manifest["files"][name] = json!({ "bytes": 1, "sha256": sha256_hex(b"x") });
        });
    }
    for bytes in [json!(0), json!(u64::MAX), json!(-1), json!(1u64 << 33)] {
        add(format!("a network of {bytes} bytes"), &|manifest| {
            manifest["files"]["model.safetensors"]["bytes"] = bytes.clone();
        });
    }
    add("no files".to_owned(), &|manifest| {
        manifest["files"] = json!({});
    });
    add("200,000 files".to_owned(), &|manifest| {
        for i in 0..200_000 {
            manifest["files"][format!("f{i}")] = json!({ "bytes": 0, "sha256": sha256_hex(b"") });
        }
    });
    for (key, names) in [
        (
            "method",
            ["../../x", "", "a/b", "\u{1b}[2J", "no-such-method"],
        ),
        (
            "dataset",
            ["../../x", "", "a/b", "\u{1b}[2J", "no-such-data"],
        ),
        (
            "arch",
            [
                "../../x",
                "",
                "a/b",
                "\u{1b}[2J",
                "preactresnet18-w99999999999999999999",
            ],
        ),
        ("kind", ["../../x", "", "defense", "\u{1b}[2J", "clean"]),
    ] {
        for name in names {
            add(format!("{key} `{}`", name.escape_debug()), &|manifest| {
                manifest[key] = json!(name);
            });
        }
    }
    let long = "m".repeat(1 << 20);
    for key in ["method", "dataset", "arch"] {
        add(format!("{key} of 1 MiB"), &|manifest| {
            manifest[key] = json!(long);
        });
    }
    for (name, acc) in [
        ("more hits than images", json!({ "hits": 21, "total": 20 })),
        ("of no images", json!({ "hits": 0, "total": 0 })),
        (
            "of 2^64 - 1 images",
            json!({ "hits": u64::MAX, "total": u64::MAX }),
        ),
        ("negative", json!({ "hits": -1, "total": 20 })),
        ("another number", json!({ "hits": 20, "total": 20 })),
    ] {
        add(format!("an accuracy {name}"), &|manifest| {
            manifest["results"]["acc"] = acc.clone();
        });
    }
    let text = good.to_string();
    let head = |more: &str| format!("{{{more},{}", &text[1..]);
    for twice in [
        "\"seed\":1",
        "\"schema\":1",
        "\"files\":{}",
        "\"results\":{}",
        "\"id\":\"x\"",
    ] {
        all.push((format!("{twice} twice"), head(twice)));
    }
    for depth in [100, 200, 100_000, 10_000_000] {
        let deep = format!("\"more\":{}{}", "[".repeat(depth), "]".repeat(depth));
        all.push((format!("lists {depth} deep"), head(&deep)));
    }
    all.push((
        "70 MB of spaces".to_owned(),
        format!("{text}{}", " ".repeat(70 << 20)),
    ));
    all.push((
        "a digit 60,000,000 times".to_owned(),
        head(&format!("\"more\":{}", "1".repeat(60_000_000))),
    ));
    all.push((
        "a text of 60 MB".to_owned(),
        head(&format!("\"more\":\"{}\"", "a".repeat(60_000_000))),
    ));
    all.push((
        "20,000,000 zeros".to_owned(),
        head(&format!("\"more\":[0{}]", ",0".repeat(20_000_000))),
    ));
    all.push(("two manifests".to_owned(), format!("{text}{text}")));
    all.push(("no JSON".to_owned(), "\u{feff}{".to_owned()));
    all
}

/// What lies beside a manifest and is in no list.
fn records(base: &Base) -> Vec<Case> {
    let mut texts: Vec<(String, String)> = Vec::new();
    for seconds in [
        "-1",
        "1e300",
        "1e999",
        "18446744073709551615",
        "\"\\u001b[31m\"",
        "null",
    ] {
        texts.push((
            format!("{seconds} seconds"),
            format!("{{\"seconds\": {seconds}, \"data\": {{\"seconds\": {seconds}}}}}"),
        ));
    }
    for depth in [200, 100_000, 10_000_000] {
        texts.push((
            format!("lists {depth} deep"),
            format!("{{\"seconds\": {}", "[".repeat(depth)),
        ));
    }
    texts.push((
        "10,000,000 zeros".to_owned(),
        format!("{{\"x\": [0{}], \"seconds\": 1}}", ",0".repeat(10_000_000)),
    ));
    texts.push((
        "70 MB of spaces".to_owned(),
        format!("{}{{}}", " ".repeat(70_000_000)),
    ));
    texts.push((
        "a text of 70 MB".to_owned(),
        format!("\"{}\"", "a".repeat(70_000_000)),
    ));
    texts.push(("a million lines".to_owned(), "{}\n".repeat(1_000_000)));
    texts.push(("20 million empty lines".to_owned(), "\n".repeat(20_000_000)));
    texts.push((
        "colours".to_owned(),
        "{\"error\": \"\\u001b[31m\", \"code\": 300, \"kind\": \"\\u0007\"}".to_owned(),
    ));
    let mut cases = Vec::new();
    for (name, text) in texts {
        let text = std::sync::Arc::new(text);
        for (file, command) in [
            ("env.json", "eval table tree"),
            ("log.jsonl", "eval table tree"),
            ("failed.json", "eval plan g.toml --out tree"),
            ("failed.json", "eval run g.toml --out tree --threads 1 -q"),
        ] {
            let (base, text) = (base.clone(), text.clone());
            let case = Case::new(
                "records beside manifests",
                format!("{name}: {file}"),
                command,
                move |folder: &Path| {
                    copy(&base.inputs.join("base"), &folder.join("tree"));
                    let own = base
                        .cell
                        .strip_prefix(base.inputs.join("base"))
                        .expect("a cell of the inputs");
                    let cell = folder.join("tree").join(own);
                    put(&cell.join(file), &*text);
                    put(&folder.join("g.toml"), BASE_GRID);
                    if file == "failed.json" {
                        fs_err::remove_file(cell.join("manifest.json")).expect("a cell");
                    }
                },
            );
            // A run ends with 1 where a cell has failed.
            let ends = if command.contains("run") {
                &[0, 1, 2, 3]
            } else {
                HARMLESS
            };
            cases.push(Case {
                ends,
                ..case.inside("tree")
            });
        }
    }
    cases
}

/// The grid whose only cell is the good one.
const BASE_GRID: &str = "[grid]\nname = \"g\"\ndataset = \"synthetic\"\nwidth = 1\nseeds = [0]\ntrain_limit = 64\ntest_limit = 20\n\n[[attack]]\nmethod = \"badnets\"\nset = { train = { epochs = 1, batch_size = 32 } }\n";

pub(super) fn cases(base: &Base) -> Vec<Case> {
    let text = fs_err::read_to_string(base.cell.join("manifest.json")).expect("a cell");
    let good: Value = serde_json::from_str(&text).expect("a manifest");
    let mut cases = records(base);
    for (name, manifest) in manifests(&good) {
        let manifest = std::sync::Arc::new(manifest);
        for command in [
            "eval metrics cell --threads 1",
            "defense clp --model cell --threads 1 -q --out out",
            "eval table tree",
            "eval zoo export cell --format state-dict --out out/e",
        ] {
            let (base, manifest) = (base.clone(), manifest.clone());
            let case = Case::new(
                "manifests of cells",
                format!("{name}: {command}"),
                command,
                move |folder: &Path| {
                    let place = if command.contains("tree") {
                        "tree/attack/badnets/x/y"
                    } else {
                        "cell"
                    };
                    copy(&base.cell, &folder.join(place));
                    put(&folder.join(place).join("manifest.json"), &*manifest);
                },
            );
            // Numbers that a program does not use may be what they like, as long as nothing comes of them; a table leaves
            // out what is no cell.
            cases.push(if command.contains("metrics") && !name.contains('=') {
                case
            } else {
                case.harmless()
            });
        }
    }
    cases
}
