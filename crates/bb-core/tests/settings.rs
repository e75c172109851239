//! Settings: what the layers yield, and the exact words of every error.

use bb_core::cli::{Coded, Failure, exit};
use bb_core::settings::{
    Idle, Layers, Origin, Resolved, SettingsError, Valid, Validate, nearest, render, zero_epochs,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    ratio: f64,
    target: u32,
    file: String,
    sweep: bool,
    kind: Kind,
    stage1: Stage,
    stage2: Stage,
    runs: Vec<Run>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Step,
    Cosine,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    lr: f32,
    weight_decay: f32,
    epochs: usize,
    milestones: Vec<usize>,
    betas: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    name: String,
    scale: f32,
}

impl Default for Config {
    fn default() -> Self {
        let stage = Stage {
            lr: 0.01,
            weight_decay: 5e-4,
            epochs: 20,
            milestones: Vec::new(),
            betas: vec![0.9, 0.999],
        };
        Self {
            ratio: 0.1,
            target: 0,
            file: String::new(),
            sweep: false,
            kind: Kind::Step,
            stage1: stage.clone(),
            stage2: Stage {
                epochs: 10,
                ..stage
            },
            runs: vec![Run {
                name: "plain".to_owned(),
                scale: 1.0,
            }],
        }
    }
}

impl Validate for Config {
    fn validate(&self) -> Result<(), SettingsError> {
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(SettingsError::value(
                "ratio",
                self.ratio,
                "a share from 0 to 1",
            ));
        }
        self.stage1
            .validate()
            .map_err(|error| error.within("stage1"))?;
        self.stage2
            .validate()
            .map_err(|error| error.within("stage2"))
    }
}

impl Validate for Stage {
    fn validate(&self) -> Result<(), SettingsError> {
        if self.epochs == 0 {
            return Err(SettingsError::value(
                "epochs",
                self.epochs,
                "at least one epoch",
            ));
        }
        Ok(())
    }
}

const RECIPE: &str = "configs/attack/badnets/cifar10.toml";

fn defaults() -> Layers {
    Layers::new(&Config::default())
}

fn resolve(layers: Result<Layers, SettingsError>) -> Result<Resolved<Config>, SettingsError> {
    layers?.resolve()
}

/// The report on the error of `layers`, as the user sees it.
fn report(layers: Result<Layers, SettingsError>) -> String {
    let error = resolve(layers)
        .map(|resolved| render(&resolved))
        .expect_err("an error is due");
    // A file that cannot be read is input, whichever option names it.
    let expected = match error {
        SettingsError::Read(_) => exit::INPUT,
        _ => exit::USAGE,
    };
    let failure = Failure::from(error);
    assert_eq!(failure.exit_code(), expected);
    failure.report(false)
}

fn origin<T>(resolved: &Resolved<T>, key: &str) -> String {
    let found = resolved.origins.iter().find(|(known, ..)| known == key);
    found.map_or_else(
        || panic!("no setting {key}"),
        |(_, value, origin)| format!("{value}  # {origin}"),
    )
}

#[test]
fn the_defaults_alone_are_themselves() {
    let resolved: Resolved<Config> = defaults().resolve().unwrap();
    assert_eq!(resolved.value, Config::default());
    let expected = "\
ratio = 0.1  # defaults
target = 0  # defaults
file = \"\"  # defaults
sweep = false  # defaults
kind = \"step\"  # defaults
stage1.lr = 0.01  # defaults
stage1.weight_decay = 0.0005  # defaults
stage1.epochs = 20  # defaults
stage1.milestones = []  # defaults
stage1.betas = [0.9, 0.999]  # defaults
stage2.lr = 0.01  # defaults
stage2.weight_decay = 0.0005  # defaults
stage2.epochs = 10  # defaults
stage2.milestones = []  # defaults
stage2.betas = [0.9, 0.999]  # defaults
runs = [{ name = \"plain\", scale = 1.0 }]  # defaults
";
    assert_eq!(render(&resolved), expected);
}

#[test]
fn the_last_layer_wins_and_every_value_knows_its_origin() {
    let folder = tempfile::tempdir().unwrap();
    let (mine, other) = (
        folder.path().join("mine.toml"),
        folder.path().join("other.toml"),
    );
    fs_err::write(
        &mine,
        "# mine\n\n[stage1]\nlr = 0.3\nepochs = 3\n[stage2]\nlr = 0.4\n",
    )
    .unwrap();
    fs_err::write(&other, "stage1.epochs = 4\n").unwrap();
    let recipe =
        "ratio = 0.2\n[stage1]\nlr = 0.02\nepochs = 2\nweight_decay = 0\nmilestones = [1]\n";
    let resolved: Resolved<Config> = defaults()
        .toml_text(RECIPE, recipe)
        .and_then(|layers| layers.file(&mine))
        .and_then(|layers| layers.file(&other))
        .and_then(|layers| layers.set("stage2.lr=0.5"))
        .and_then(|layers| layers.set("stage2.lr=0.6"))
        .and_then(Layers::resolve)
        .unwrap();

    let at = |path: &std::path::Path, line: usize| format!("{}:{line}", path.display());
    let cases = [
        ("target", "0  # defaults".to_owned()),
        ("ratio", format!("0.2  # recipe {RECIPE}")),
        ("stage1.weight_decay", format!("0.0  # recipe {RECIPE}")),
        ("stage1.milestones", format!("[1]  # recipe {RECIPE}")),
        ("stage1.lr", format!("0.3  # {}", at(&mine, 4))),
        ("stage1.epochs", format!("4  # {}", at(&other, 1))),
        ("stage2.lr", "0.6  # --set".to_owned()),
        ("stage2.epochs", "10  # defaults".to_owned()),
    ];
    for (key, expected) in cases {
        assert_eq!(origin(&resolved, key), expected, "{key}");
    }
    assert_eq!(resolved.value.stage2.lr.to_bits(), 0.6f32.to_bits());
}

#[test]
fn arrays_are_replaced_whole_and_tables_merge() {
    let layers = defaults()
        .toml_text(
            "a.toml",
            "stage1 = { betas = [0.5], epochs = 1 }\n[[runs]]\nname = \"x\"\nscale = 2\n",
        )
        .and_then(|layers| layers.set("stage1={lr = 1}"))
        .and_then(|layers| layers.set("stage2.milestones=[5, 8]"));
    let config = resolve(layers).unwrap().value;
    assert_eq!(config.stage1.betas, [0.5]);
    assert_eq!((config.stage1.epochs, config.stage1.lr), (1, 1.0));
    assert_eq!(config.stage2.milestones, [5, 8]);
    assert_eq!(
        config.runs,
        [Run {
            name: "x".to_owned(),
            scale: 2.0
        }]
    );
}

#[test]
fn an_integer_does_for_a_float_and_is_the_same_setting() {
    let tree = |assignments: &[&str]| {
        let layers = assignments
            .iter()
            .try_fold(defaults(), |layers, text| layers.set(text));
        serde_json::to_string(&resolve(layers).unwrap().tree).unwrap()
    };
    let same = [
        (["stage1.lr=1", "ratio=1"], ["stage1.lr=1.0", "ratio=1e0"]),
        (
            ["stage1.betas=[0, 1]", "ratio=0"],
            ["stage1.betas=[0.0, 1.0]", "ratio=0.0"],
        ),
        // Single precision cannot tell these apart, so the run is the same.
        (
            ["stage1.lr=0.1", "ratio=0.1"],
            ["stage1.lr=0.1000000001", "ratio=0.1"],
        ),
        (
            ["stage1.lr=0.01", "ratio=0.1"],
            ["sweep=false", "target=0x0"],
        ),
    ];
    for (one, other) in same {
        assert_eq!(tree(&one), tree(&other));
    }
    assert_ne!(tree(&["ratio=0.1"]), tree(&["ratio=0.1000000001"]));
    assert!(tree(&["stage1.lr=0.1"]).contains(r#""lr":0.1,"#));
}

#[test]
fn set_reads_toml_and_takes_bare_words_as_strings() {
    let file = |assignment: &str| resolve(defaults().set(assignment)).unwrap().value.file;
    let cases = [
        ("file=word", "word"),
        ("file = two words ", "two words"),
        ("file=/data/a b/trigger-1.png", "/data/a b/trigger-1.png"),
        ("file=\"quoted\\n\"", "quoted\n"),
        ("file='C:\\x'", "C:\\x"),
        ("file=a=b", "a=b"),
        ("file=", ""),
    ];
    for (assignment, expected) in cases {
        assert_eq!(file(assignment), expected, "{assignment}");
    }
    assert_eq!(
        resolve(defaults().set("kind=cosine")).unwrap().value.kind,
        Kind::Cosine
    );
    assert!(resolve(defaults().set("sweep=true")).unwrap().value.sweep);
    assert_eq!(
        resolve(defaults().set("\"stage1\".epochs=1_000"))
            .unwrap()
            .value
            .stage1
            .epochs,
        1000
    );
}

#[test]
fn every_error_says_what_where_and_what_to_do() {
    let recipe = |text: &str| report(defaults().toml_text("configs/mine.toml", text));
    let set = |assignment: &str| report(defaults().set(assignment));
    let in_file = [
        // Unknown keys.
        (
            "# mine\n[stage1]\n\nlearning_rate = 0.1\n",
            "error: unknown setting `stage1.learning_rate`\n  in configs/mine.toml, line 4\nhint: did you mean `stage1.lr`?\n",
        ),
        (
            "[stge1]\nlr = 0.1\n",
            "error: unknown setting `stge1`\n  in configs/mine.toml, line 1\nhint: did you mean `stage1`?\n",
        ),
        (
            "stage1.wd = 0.1\n",
            "error: unknown setting `stage1.wd`\n  in configs/mine.toml, line 1\nhint: did you mean `stage1.weight_decay`?\n",
        ),
        (
            "epochs = 3\n",
            "error: unknown setting `epochs`\n  in configs/mine.toml, line 1\nhint: did you mean `stage1.epochs`?\n",
        ),
        (
            "stage2 = { xyzzy = 3 }\n",
            "error: unknown setting `stage2.xyzzy`\n  in configs/mine.toml, line 1\n\
             hint: known here: `lr`, `weight_decay`, `epochs`, `milestones`, `betas`\n",
        ),
        (
            "\"a.b c\" = 3\n",
            "error: unknown setting `\"a.b c\"`\n  in configs/mine.toml, line 1\n\
             hint: known here: `ratio`, `target`, `file`, `sweep`, `kind`, `stage1`, `stage2`, `runs`\n",
        ),
        // The first wrong line is told, not the first key of the type.
        (
            "[stage2]\nfoo_bar_baz = 1\n[stage1]\nlr = \"x\"\n",
            "error: unknown setting `stage2.foo_bar_baz`\n  in configs/mine.toml, line 2\n\
             hint: known here: `lr`, `weight_decay`, `epochs`, `milestones`, `betas`\n",
        ),
        // Kinds.
        (
            "[stage1]\nlr = \"fast\"\n",
            "error: setting `stage1.lr` expects a number, found the string `\"fast\"`\n  in configs/mine.toml, line 2\n",
        ),
        (
            "stage1.epochs = 1.0\n",
            "error: setting `stage1.epochs` expects an integer, found the float `1.0`\n  in configs/mine.toml, line 1\n",
        ),
        (
            "sweep = 1\n",
            "error: setting `sweep` expects true or false, found the integer `1`\n  in configs/mine.toml, line 1\n",
        ),
        (
            "ratio = nan\n",
            "error: setting `ratio` expects a number, found the float `NaN`\n  in configs/mine.toml, line 1\n",
        ),
        (
            "file = 2024-01-31\n",
            "error: setting `file` expects a string, found the date `2024-01-31`\n  in configs/mine.toml, line 1\n",
        ),
        (
            "[ratio]\nx = 1\n",
            "error: setting `ratio` expects a number, found a table\n  in configs/mine.toml, line 1\n",
        ),
        (
            "stage1 = 3\n",
            "error: setting `stage1` expects a table, found the integer `3`\n  in configs/mine.toml, line 1\n\
             hint: set what it holds, such as `stage1.lr`\n",
        ),
        (
            "[[stage1]]\nlr = 3\n",
            "error: setting `stage1` expects a table, found the array `[{ lr = 3 }]`\n  in configs/mine.toml, line 1\n\
             hint: set what it holds, such as `stage1.lr`\n",
        ),
        (
            "stage1.milestones = 5\n",
            "error: setting `stage1.milestones` expects an array, found the integer `5`\n  in configs/mine.toml, line 1\n",
        ),
        (
            "stage1.betas = [0.9, inf]\n",
            "error: setting `stage1.betas` expects an array, found the float `inf`\n  in configs/mine.toml, line 1\n",
        ),
        (
            "target = \"0123456789012345678901234567890123456789012345678901234567890123456789\"\n",
            "error: setting `target` expects an integer, \
             found the string `\"01234567890123456789012345678901234567890123456789012345678…`\n  \
             in configs/mine.toml, line 1\n",
        ),
        // What only the type knows.
        (
            "\nkind = \"cosin\"\n",
            "error: setting `kind` is not accepted: unknown variant `cosin`, expected `step` or `cosine`\n  \
             in configs/mine.toml, line 2\nhint: did you mean `cosine`?\n",
        ),
        (
            "stage1.epochs = -1\n",
            "error: setting `stage1.epochs` is `-1`, expected a whole number of at least 0\n  \
             in configs/mine.toml, line 1\n",
        ),
        (
            "target = -1\n",
            "error: setting `target` is `-1`, expected a whole number from 0 to 4294967295\n  \
             in configs/mine.toml, line 1\n",
        ),
        (
            "target = 4294967296\n",
            "error: setting `target` is `4294967296`, expected a whole number from 0 to 4294967295\n  \
             in configs/mine.toml, line 1\n",
        ),
        (
            "stage1.betas = [0.9, \"b\"]\n",
            "error: setting `stage1.betas[1]` is `b`, expected a number\n  \
             in configs/mine.toml, line 1\n",
        ),
        (
            "stage1.milestones = [1, [2]]\n",
            "error: setting `stage1.milestones[1]` is `[..]`, expected a whole number of at least 0\n  \
             in configs/mine.toml, line 1\n",
        ),
        (
            "stage1.milestones = [1, 2.5]\n",
            "error: setting `stage1.milestones[1]` is `2.5`, expected a whole number of at least 0\n  \
             in configs/mine.toml, line 1\n",
        ),
        (
            "[[runs]]\nname = \"a\"\nsize = 1\n",
            "error: setting `runs[0].size` is not accepted: unknown field `size`, expected `name` or `scale`\n  \
             in configs/mine.toml, line 1\n",
        ),
        (
            "stage1.lr = 1e300\n",
            "error: setting `stage1.lr` is `1e300`, expected a number that fits single precision\n  \
             in configs/mine.toml, line 1\n",
        ),
        // Not TOML.
        (
            "ratio = 0.1\n[stage1\n",
            "error: not valid TOML: unclosed table, expected `]`\n  in configs/mine.toml, line 2\n",
        ),
        (
            "ratio = 0.1\nratio = 0.2\n",
            "error: not valid TOML: duplicate key\n  in configs/mine.toml, line 2\n",
        ),
        (
            "lr =\n",
            "error: not valid TOML: string values must be quoted, expected literal string\n  in configs/mine.toml, line 1\n",
        ),
    ];
    for (text, expected) in in_file {
        assert_eq!(recipe(text), expected, "{text}");
    }

    let in_set = [
        (
            "stage1.learning_rate=0.1",
            "error: unknown setting `stage1.learning_rate`\n  in `--set stage1.learning_rate=0.1`\n\
             hint: did you mean `stage1.lr`?\n",
        ),
        (
            "stage1=fast",
            "error: setting `stage1` expects a table, found the string `\"fast\"`\n  in `--set stage1=fast`\n\
             hint: set what it holds, such as `stage1.lr`\n",
        ),
        (
            "ratio.x=1",
            "error: setting `ratio` expects a number, found a table\n  in `--set ratio.x=1`\n",
        ),
        (
            "file=12",
            "error: setting `file` expects a string, found the integer `12`\n  in `--set file=12`\n\
             hint: quote it for the shell and for TOML: `--set 'file=\"12\"'`\n",
        ),
        (
            "stage1.lr=fast",
            "error: setting `stage1.lr` expects a number, found the string `\"fast\"`\n  in `--set stage1.lr=fast`\n",
        ),
        (
            "sweep",
            "error: `--set` expects `key=value`, found `sweep`\nhint: write `--set sweep=VALUE`\n",
        ),
        ("=1", "error: `--set` expects `key=value`, found `=1`\n"),
        ("", "error: `--set` expects `key=value`, found ``\n"),
        (
            "a..b=1",
            "error: `--set` expects `key=value`, found `a..b=1`\n",
        ),
        (
            "stage1.betas=[0.9",
            "error: not valid TOML: unclosed array, expected `]`\n  in `--set stage1.betas=[0.9`\n",
        ),
        (
            "kind=cosin",
            "error: setting `kind` is not accepted: unknown variant `cosin`, expected `step` or `cosine`\n  \
             in `--set kind=cosin`\nhint: did you mean `cosine`?\n",
        ),
    ];
    for (assignment, expected) in in_set {
        assert_eq!(set(assignment), expected, "{assignment}");
    }
}

#[test]
fn a_list_has_no_more_values_than_a_manifest_can_hold_results_for() {
    let list = |n: usize| format!("stage1.milestones={:?}", (0..n).collect::<Vec<_>>());
    assert!(resolve(defaults().set(&list(1000))).is_ok());
    let said = report(defaults().set(&list(1001)));
    let expect =
        "error: setting `stage1.milestones` is `a list of 1001 values`, expected at most 1000\n";
    assert!(said.starts_with(expect), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.toml");
    let expected = format!(
        "error: failed to open file `{}`: No such file or directory (os error 2)\n",
        absent.display()
    );
    assert_eq!(report(defaults().file(&absent)), expected);

    let binary = folder.path().join("binary.toml");
    fs_err::write(&binary, b"ratio = \xff\n").unwrap();
    assert!(report(defaults().file(&binary)).contains(&binary.display().to_string()));
}

#[test]
fn a_checked_setting_that_makes_no_sense_is_told_with_its_origin() {
    let refused = |assignment: &str| {
        let resolved = resolve(defaults().set(assignment)).unwrap();
        Failure::from(resolved.valid().map(|_| ()).expect_err("an error is due")).report(false)
    };
    assert_eq!(
        refused("ratio=2"),
        "error: setting `ratio` is `2`, expected a share from 0 to 1\n  in `--set ratio=2`\n"
    );
    assert_eq!(
        refused("stage2.epochs=0"),
        "error: setting `stage2.epochs` is `0`, expected at least one epoch\n  in `--set stage2.epochs=0`\n"
    );

    let valid = resolve(Ok(defaults())).unwrap().valid().unwrap();
    assert_eq!(valid.value.stage2.epochs, 10);
    assert_eq!(valid.value.into_inner(), Config::default());
    let error = Valid::new(Config {
        ratio: -1.0,
        ..Config::default()
    })
    .expect_err("an error is due");
    assert_eq!(
        error.to_string(),
        "setting `ratio` is `-1`, expected a share from 0 to 1"
    );
    assert_eq!(error.key(), Some("ratio"));
    assert_eq!(error.hint(), None);
}

#[test]
fn config_toml_reads_well_and_repeats_the_run() {
    let layers = defaults()
        .set("file=\"a \\\"b\\\"\\n\\u0001\\\\é\"")
        .and_then(|layers| layers.set("stage1.lr=1e-7"))
        .and_then(|layers| layers.set("stage1.milestones=[3, 5]"));
    let resolved = resolve(layers).unwrap();
    let expected = r#"# The complete settings of a run; given with -c they repeat it.
ratio = 0.1
target = 0
file = "a \"b\"\n\u0001\\é"
sweep = false
kind = "step"
runs = [{ name = "plain", scale = 1.0 }]

[stage1]
lr = 1e-7
weight_decay = 0.0005
epochs = 20
milestones = [3, 5]
betas = [0.9, 0.999]

[stage2]
lr = 0.01
weight_decay = 0.0005
epochs = 10
milestones = []
betas = [0.9, 0.999]
"#;
    assert_eq!(resolved.to_toml(), expected);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    // An editor may put a mark in front and end lines with two letters.
    fs_err::write(&path, format!("\u{feff}{}", expected.replace('\n', "\r\n"))).unwrap();
    let again = resolve(defaults().file(&path)).unwrap();
    assert_eq!(again.value, resolved.value);
    assert_eq!(again.tree, resolved.tree);
    assert_eq!(
        origin(&again, "stage1.lr"),
        format!("1e-7  # {}:10", path.display())
    );
    assert!(
        again
            .origins
            .iter()
            .all(|(.., origin)| *origin != Origin::Defaults)
    );
}

#[test]
fn defaults_that_toml_cannot_say_are_a_bug() {
    let message = |defaults: serde_json::Value| {
        let panic =
            std::panic::catch_unwind(|| Layers::new(&defaults)).expect_err("a panic is due");
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    };
    let expected = "the default of the setting `a.b` is null or too large, which TOML cannot say";
    assert_eq!(message(serde_json::json!({ "a": { "b": null } })), expected);
    assert_eq!(
        message(serde_json::json!({ "a": { "b": [1, u64::MAX] } })),
        expected
    );
}

#[test]
fn names_are_suggested_when_they_are_close() {
    let known = ["badnets", "blended", "wanet", "lr", "weight_decay"];
    let cases = [
        ("badnet", Some("badnets")),
        ("BADNETS", Some("badnets")),
        ("blend", Some("blended")),
        ("learning_rate", Some("lr")),
        ("learning-rate", Some("lr")),
        ("wd", Some("weight_decay")),
        ("lrr", Some("lr")),
        ("sig", None),
        ("", None),
    ];
    for (name, expected) in cases {
        assert_eq!(nearest(name, known), expected, "{name}");
    }
    assert_eq!(nearest("x", []), None);
}

/// Assignments of which no two set the same thing.
const INDEPENDENT: [&str; 8] = [
    "ratio=0.25",
    "target=3",
    "file=a.png",
    "sweep=true",
    "stage1.lr=1",
    "stage1={ epochs = 7, milestones = [1, 2] }",
    "stage2.weight_decay=0",
    "runs=[]",
];

proptest! {
    #[test]
    fn the_order_of_independent_assignments_does_not_matter(
        order in Just(INDEPENDENT.to_vec()).prop_shuffle(),
        count in 0..=INDEPENDENT.len(),
    ) {
        let resolved = |order: &[&str]| {
            let layers = order.iter().try_fold(defaults(), |layers, text| layers.set(text));
            let resolved = resolve(layers).unwrap();
            (render(&resolved), resolved.tree)
        };
        let some = &order[..count];
        let sorted: Vec<_> = INDEPENDENT.into_iter().filter(|text| some.contains(text)).collect();
        prop_assert_eq!(resolved(some), resolved(&sorted));
    }

    #[test]
    fn config_toml_repeats_any_run(
        ratio in any::<f64>().prop_filter("finite", |x| x.is_finite()),
        lr in any::<f32>().prop_filter("finite", |x| x.is_finite()),
        target in any::<u32>(),
        file in any::<String>(),
        sweep in any::<bool>(),
        betas in prop::collection::vec(-1.0e3f32..1.0e3, 0..4),
        names in prop::collection::vec(any::<String>(), 0..3),
    ) {
        let mut config = Config { ratio, target, file, sweep, ..Config::default() };
        config.stage1.lr = lr;
        config.stage2.betas = betas;
        config.runs = names.into_iter().map(|name| Run { name, scale: lr }).collect();
        let first: Resolved<Config> = Layers::new(&config).resolve().unwrap();
        prop_assert_eq!(&first.value, &config);
        for text in [first.to_toml(), render(&first)] {
            let again = resolve(defaults().toml_text("config.toml", &text)).unwrap();
            prop_assert_eq!(&again.value, &config);
            prop_assert_eq!(&again.tree, &first.tree);
            prop_assert_eq!(again.to_toml(), first.to_toml());
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>(), value in "[\\[\\]{}\"'=,.a-c0-9 \n#-]{0,40}") {
        let _ = defaults().toml_text("x", &text);
        let _ = defaults().set(&text);
        let _ = defaults().set(&format!("file={value}"));
        let _ = defaults().toml_text("x", &format!("stage1 = {value}"));
    }
}

#[test]
fn a_setting_that_came_later_is_left_out_of_the_identity_at_its_default() {
    let defaults = json!({ "a": 1, "t": { "b": 0.5, "c": "x" } });
    let identity = |set: &str| {
        let layers = Layers::new(&defaults).set(set).expect("a setting");
        let resolved = layers.resolve::<Value>().expect("any value");
        resolved.identity(&["t.c", "a"], &defaults)
    };
    assert_eq!(identity("t.c=x"), json!({ "t": { "b": 0.5 } }));
    assert_eq!(identity("t.c=y"), json!({ "t": { "b": 0.5, "c": "y" } }));
    assert_eq!(identity("a=2"), json!({ "a": 2, "t": { "b": 0.5 } }));
}

#[test]
fn a_class_is_given_by_its_number_or_its_name() {
    let layers = |set: &str| {
        Layers::new(&Config::default())
            .with_classes(&["target", "absent"])
            .set(set)
    };
    let names = [("cat", 0), ("ship", 1), ("7", 2), ("twin", 3), ("twin", 4)];
    let numbered = |set: &str| {
        let (layers, left) = layers(set)
            .expect("a class")
            .numbered(&names)
            .expect("one class");
        let resolved = layers.resolve::<Config>().expect("settings");
        (resolved.value.target, left)
    };
    assert_eq!(numbered("target=ship"), (1, vec![]));
    assert_eq!(numbered("target=\"7\""), (2, vec![]));
    assert_eq!(numbered("target=7"), (7, vec![]));
    assert_eq!(
        numbered("target=shp"),
        (0, vec![("target", "shp".to_owned())])
    );
    let error = layers("target=twin")
        .expect("a class")
        .numbered(&names)
        .expect_err("two classes");
    assert_eq!(
        Failure::from(error).report(false),
        "error: setting `target` is `twin`, expected the number of a class, since 3 and 4 are both called so\n  \
         in `--set target=twin`\n"
    );
    let known = ["cat", "ship"];
    let error = layers("target=shp")
        .expect("a class")
        .unknown_class("target", "shp", &known);
    assert_eq!(
        Failure::from(error).report(false),
        "error: setting `target` is `shp`, which is no class of the data\n  in `--set target=shp`\n\
         hint: did you mean `ship`? the classes are `cat`, `ship`\n"
    );
    // A later layer may go back to a number, and other kinds are refused.
    let again = layers("target=ship")
        .expect("a class")
        .set("target=3")
        .expect("a class");
    assert_eq!(again.class_numbers(), [("target", 3)]);
    assert_eq!(
        report(layers("target=true")),
        "error: setting `target` expects the number or the name of a class, found `true`\n  in `--set target=true`\n\
         hint: quote it for the shell and for TOML: `--set 'target=\"true\"'`\n"
    );
}

#[test]
fn epochs_that_somebody_set_to_none_are_told() {
    let told = |set: &str| {
        let resolved = Layers::new(
            &serde_json::json!({ "train": { "epochs": 3 }, "clean_epochs": 0, "max_epochs": 0 }),
        );
        let resolved = resolved.set(set).expect("a setting").resolve::<Value>();
        zero_epochs(&resolved.expect("any value").origins)
    };
    assert_eq!(
        told("train.epochs=0"),
        ["`train.epochs` is 0, so nothing is trained there"]
    );
    assert_eq!(told("train.epochs=1"), [""; 0]);
    assert_eq!(
        told("clean_epochs=0"),
        [""; 0],
        "0 stands for something else there"
    );
}

/// A sweep that is off, as in the settings of defenses.
#[derive(Debug, Serialize, Deserialize)]
struct Swept {
    sweep: bool,
    table: Values,
}

#[derive(Debug, Serialize, Deserialize)]
struct Values {
    values: Vec<f64>,
}

impl Validate for Swept {
    fn validate(&self) -> Result<(), SettingsError> {
        Ok(())
    }

    fn idle(&self) -> Vec<Idle> {
        if self.sweep {
            return Vec::new();
        }
        vec![("table", "`sweep` is false")]
    }
}

#[test]
fn a_setting_that_does_nothing_is_refused_where_it_is_given_alone() {
    let layers = || {
        Layers::new(&Swept {
            sweep: false,
            table: Values { values: Vec::new() },
        })
    };
    let refused = layers().set("table.values=[0.5]").expect("a known setting");
    let refused = refused.resolve::<Swept>().expect("the right type").valid();
    let error = refused.expect_err("it does nothing");
    assert_eq!(
        error.to_string(),
        "setting `table.values` does nothing, because `sweep` is false\n  in `--set table.values=[0.5]`"
    );
    assert_eq!(error.exit_code(), 2);
    assert!(error.hint().expect("a hint").starts_with("leave it out"));
    // With a sweep it does something, and a recipe is for either.
    let both = layers().set("table.values=[0.5]").expect("a known setting");
    let both = both.set("sweep=true").expect("a known setting");
    assert!(
        both.resolve::<Swept>()
            .expect("the right type")
            .valid()
            .is_ok()
    );
    let recipe = layers().toml_text("some.toml", "[table]\nvalues = [0.5]");
    let recipe = recipe.expect("known settings").resolve::<Swept>();
    assert!(recipe.expect("the right type").valid().is_ok());
}
