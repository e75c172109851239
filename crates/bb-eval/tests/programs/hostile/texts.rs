//! Grids, settings, rules, the index, and the command line itself.

use std::path::Path;

use super::{Base, Case, put};

const GRID: &str = "[grid]\nname = \"g\"\ndataset = \"synthetic\"\nwidth = 1\nseeds = [0]\ntrain_limit = 64\ntest_limit = 20\n\n[[attack]]\nmethod = \"badnets\"\nset = { train = { epochs = 1, batch_size = 32 } }\n\n[[defense]]\nmethod = \"clp\"\n";

/// TOML that is not what it is taken for, whatever it is to say.
fn broken(good: &str) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for depth in [100, 10_000, 400_000] {
        all.push((
            format!("lists {depth} deep"),
            format!("x = {}{}", "[".repeat(depth), "]".repeat(depth)).into(),
        ));
        all.push((
            format!("tables {depth} deep"),
            format!("x = {}{}", "{a=".repeat(depth), "}".repeat(depth)).into(),
        ));
        all.push((
            format!("keys {depth} deep"),
            format!("{}a = 1", "a.".repeat(depth)).into(),
        ));
    }
    all.push((
        "300,000 zeros".to_owned(),
        format!("x = [{}]", "0,".repeat(300_000)).into(),
    ));
    all.push((
        "100,000 keys".to_owned(),
        (0..100_000)
            .map(|i| format!("k{i}=0\n"))
            .collect::<Vec<_>>()
            .concat()
            .into(),
    ));
    all.push((
        "100,000 tables".to_owned(),
        "[[x]]\n".repeat(100_000).into(),
    ));
    all.push((
        "a comment of 900 kB".to_owned(),
        format!("{good}\n#{}\nx = 1", "a".repeat(900_000)).into(),
    ));
    all.push((
        "2 MB".to_owned(),
        format!("{good}\n#{}", "a".repeat(2_000_000)).into(),
    ));
    all.push((
        "a key of 500 kB".to_owned(),
        format!("{} = 1", "k".repeat(500_000)).into(),
    ));
    all.push(("no UTF-8".to_owned(), b"x = \"\xff\xfe\"".to_vec()));
    all.push((
        "a key of control characters".to_owned(),
        b"\"\\u001b[31mred\" = 1".to_vec(),
    ));
    all.push((
        "an unclosed text".to_owned(),
        format!("x = \"\"\"{}", "a\n".repeat(300_000)).into(),
    ));
    all
}

/// A grid with one line in place of another.
fn grid(from: &str, to: &str) -> String {
    assert!(GRID.contains(from), "{from}");
    GRID.replace(from, to)
}

fn grids() -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut add = |name: &str, text: String| all.push((name.to_owned(), text));
    for number in [
        "-1",
        "0",
        "1000000000000",
        "9223372036854775807",
        "99999999999999999999",
        "1e9",
        "\"1\"",
        "[1]",
    ] {
        for key in ["width = 1", "train_limit = 64", "test_limit = 20"] {
            let (name, _) = key.split_once(" = ").expect("a key");
            add(
                &format!("{name} = {number}"),
                grid(key, &format!("{name} = {number}")),
            );
        }
    }
    for width in [513, 100_000] {
        add(
            &format!("width = {width}"),
            grid("width = 1", &format!("width = {width}")),
        );
    }
    let seeds: Vec<String> = (0..150_000).map(|i| i.to_string()).collect();
    add(
        "150,000 seeds",
        grid("seeds = [0]", &format!("seeds = [{}]", seeds.join(","))),
    );
    add("no seeds", grid("seeds = [0]", "seeds = []"));
    add("a seed twice", grid("seeds = [0]", "seeds = [0, 0]"));
    add(
        "20,000 attacks",
        GRID.to_owned() + &"[[attack]]\nmethod = \"badnets\"\n".repeat(20_000),
    );
    add(
        "20,000 defenses",
        GRID.to_owned() + &"[[defense]]\nmethod = \"clp\"\n".repeat(20_000),
    );
    let many = |key: &str, n: usize| -> String {
        let one = |i| {
            format!(
                "[[{key}]]\nmethod = \"ft\"\nname = \"n{i}\"\nset = {{ finetune.epochs = {i} }}\n"
            )
        };
        (1..=n).map(one).collect::<Vec<_>>().concat()
    };
    add(
        "5,000 defenses, all different",
        GRID.to_owned() + &many("defense", 5_000),
    );
    for name in ["", "\\u001b[31m"] {
        add(
            &format!("named `{name}`"),
            grid("name = \"g\"", &format!("name = \"{name}\"")),
        );
    }
    for (epochs, batch) in [
        ("1000000000000", "32"),
        ("1", "1000000000000"),
        ("9223372036854775807", "9223372036854775807"),
        ("-1", "0"),
    ] {
        add(
            &format!("{epochs} epochs of {batch}"),
            grid(
                "epochs = 1, batch_size = 32",
                &format!("epochs = {epochs}, batch_size = {batch}"),
            ),
        );
    }
    add(
        "a settings file that is not there",
        grid(
            "method = \"badnets\"",
            "method = \"badnets\"\nconfig = [\"/dev/zero\"]",
        ),
    );
    all
}

/// Entries of an index: what stands in place of what.
fn indexes(good: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (from, to) in [
        ("bytes = 719288", "bytes = 0"),
        ("bytes = 719288", "bytes = -1"),
        ("bytes = 719288", "bytes = 9223372036854775807"),
        ("bytes = 719288", "bytes = 719287"),
        ("width = 8", "width = 1000000000000"),
        ("width = 8", "width = 512"),
        ("schema = 1", "schema = 2"),
        (
            "path = \"badnets-synthetic-w8.safetensors\"",
            "path = \"../../../etc/passwd\"",
        ),
        (
            "path = \"badnets-synthetic-w8.safetensors\"",
            "path = \"/dev/zero\"",
        ),
        ("path = \"badnets-synthetic-w8.safetensors\"", "path = \"\""),
        ("id = \"badnets-synthetic-w8\"", "id = \"../../x\""),
        ("id = \"badnets-synthetic-w8\"", "id = \"\\u001b[31m\""),
        ("dataset = \"synthetic\"", "dataset = \"../../x\""),
        ("arch = \"preactresnet18\"", "arch = \"\\u001b[31m\""),
        ("acc = 0.994", "acc = 1e300"),
        ("acc = 0.994", "acc = nan"),
        ("acc = 0.994", "acc = -1.0"),
        ("mirrors = []", "mirrors = [\"file:///etc/passwd\"]"),
        ("mirrors = []", "mirrors = [\"http://127.0.0.1:9/x\"]"),
    ] {
        assert!(good.contains(from), "{from}");
        all.push((format!("{to} for {from}"), good.replace(from, to)));
    }
    let (head, entry) = good.split_at(good.find("[[entry]]").expect("an entry"));
    all.push(("an entry twice".to_owned(), format!("{good}\n{entry}")));
    let many = (0..2_000).map(|i| entry.replace("badnets-synthetic-w8\"", &format!("b{i}\"")));
    all.push((
        "2,000 entries".to_owned(),
        format!("{head}{}", many.collect::<Vec<_>>().join("\n")),
    ));
    all
}

pub(super) fn cases(base: &Base) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |kind: &'static str,
                   name: &str,
                   command: &str,
                   file: &'static str,
                   text: Vec<u8>,
                   may_pass: bool| {
        let case = Case::new(
            kind,
            format!("{name}: {command}"),
            command,
            move |folder: &Path| {
                if !file.is_empty() {
                    put(&folder.join(file), &text);
                }
            },
        );
        cases.push(if may_pass { case.harmless() } else { case });
    };
    for (name, text) in broken(GRID) {
        add(
            "grids",
            &name,
            "eval plan g.toml --out out",
            "g.toml",
            text.clone(),
            false,
        );
        add(
            "settings",
            &name,
            "attack badnets --dataset synthetic -c s.toml --show-config",
            "s.toml",
            text.clone(),
            false,
        );
        add(
            "index",
            &name,
            "eval zoo list --index index.toml",
            "index.toml",
            text.clone(),
            false,
        );
        add(
            "rules",
            &name,
            "eval zoo import m.safetensors --dataset synthetic --rename-file rules.toml --out out",
            "rules.toml",
            text,
            false,
        );
    }
    for (name, text) in grids() {
        for command in ["eval plan g.toml --out out", "eval table g.toml --out out"] {
            let fine = name.contains("defenses")
                || name.contains("batch")
                || name.contains("epochs")
                || name.starts_with("train_limit")
                || name.starts_with("test_limit");
            add(
                "grids",
                &name,
                command,
                "g.toml",
                text.clone().into(),
                fine || command.contains("table"),
            );
        }
    }
    let good = fs_err::read_to_string(base.inputs.join("index.toml")).expect("an index");
    for (name, text) in indexes(&good) {
        let fine = name.contains("entries")
            || name.contains("719287")
            || name.contains("path")
            || name.contains("width")
            || name.contains("dataset")
            || name.contains("arch")
            || name.contains("mirrors");
        add(
            "index",
            &name,
            "eval zoo list --index index.toml",
            "index.toml",
            text.clone().into(),
            fine || name.contains("9223372036854775807"),
        );
        add(
            "index",
            &name,
            "eval zoo get badnets-synthetic-w8 --index index.toml --dir out",
            "index.toml",
            text.into(),
            false,
        );
    }
    let small = "--dataset synthetic --train-limit 64 --test-limit 20 -q --set train.batch_size=8 --out out";
    for (option, number) in [
        ("--width", "513"),
        ("--threads", "1025"),
        ("--threads", "100000"),
    ] {
        let command = format!("attack badnets {small} {option}={number}");
        add("command line", number, &command, "", Vec::new(), false);
    }
    for number in [
        "-1",
        "0",
        "1000000000000",
        "18446744073709551615",
        "99999999999999999999",
        "1e3",
        "",
        "NaN",
    ] {
        for option in [
            "--width",
            "--train-limit",
            "--test-limit",
            "--threads",
            "--seed",
        ] {
            let command = format!("attack badnets {small} --set train.epochs=1 {option}={number}");
            let fine = option == "--seed" && number.parse::<u64>().is_ok();
            let command = if option == "--width" {
                command
            } else {
                command + " --width 1"
            };
            let command = if option == "--train-limit" {
                command.replace("--train-limit 64 ", "")
            } else {
                command
            };
            let command = if option == "--test-limit" {
                command.replace("--test-limit 20 ", "")
            } else {
                command
            };
            add("command line", number, &command, "", Vec::new(), fine);
        }
        for key in [
            "train.epochs",
            "train.batch_size",
            "train.lr",
            "trigger.size",
            "trigger.margin",
            "target",
            "ratio",
        ] {
            let command = format!(
                "attack badnets {small} --width 1 --threads 1 --set {key}={number} --show-config"
            );
            add("command line", number, &command, "", Vec::new(), true);
        }
    }
    cases
}
