//! The committed grids: every one names methods and settings that exist, and a defense of another crate fits in.
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bb_core::cli::Coded as _;
use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::{SettingsError, Valid, Validate};
use bb_defense::DefenseError;
use bb_defense::context::Ctx;
use bb_defense::data::NoImages;
use bb_defense::method::{Defense, Repaired, Suspect};
use bb_eval::grid::{GRID_FIELDS, Grid};
use bb_eval::part::{Part, Shard};
use bb_eval::plan::{plan, show};
use bb_eval::prepare::{Places, Prepared, methods};
use bb_eval::run::{Counts, OnFailure, Options, run};
use bb_nn::Compute;
use serde::{Deserialize, Serialize};

fn quiet() -> Options {
    Options {
        quiet: true,
        ..Options::default()
    }
}

#[test]
fn committed_grids_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/grid");
    let mut names = Vec::new();
    for entry in fs_err::read_dir(&folder).expect("the folder of grids") {
        let path = entry.expect("readable").path();
        let grid = Grid::load(&path).unwrap_or_else(|e| panic!("{e}"));
        let stem = path
            .file_stem()
            .and_then(|s| s.to_str())
            .expect("a plain name")
            .to_owned();
        assert_eq!(grid.name, stem, "a grid is named as its file");
        methods(&grid, &[]).unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
        names.push(stem);
    }
    names.sort();
    assert_eq!(
        names,
        [
            "attacks-cifar10-small",
            "ci-attacks",
            "ci-cifar10",
            "cifar10-small",
            "defenses-cifar10-small",
            "leaderboard-cifar10",
            "models",
            "otbr-cifar10",
            "otbr-cifar10-small",
            "otbr-tiny",
            "quickstart",
            "tsbd-table1",
            "tsbd-table1-small",
            "ulrl-cifar10",
            "ulrl-cifar10-small"
        ]
    );
}

#[test]
fn the_grid_of_the_guide_has_every_field_and_is_valid() {
    let page = include_str!("../../../docs/guide/grids.md");
    let (_, rest) = page.split_once("```toml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    let grid = Grid::parse("configs/grid/guide.toml", example).expect("a good grid");
    methods(&grid, &[]).expect("methods and settings exist");
    // Each field stands in the example and has a line in the table below it.
    for field in GRID_FIELDS {
        assert!(
            example
                .lines()
                .any(|line| line.starts_with(&format!("{field} = "))),
            "{field}"
        );
        assert!(page.contains(&format!("\n| `{field}` |")), "{field}");
    }
}

/// How often [`Buggy`] was called.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// A defense that panics, until it has been called three times.
struct Buggy;

impl Defense for Buggy {
    const INFO: MethodInfo = MethodInfo {
        id: "buggy",
        title: "Buggy",
        paper: "",
        needs: Needs::DataFree,
        status: Status::Experimental,
        summary: "panics",
        docs: "",
    };
    type Data = NoImages;
    type Config = NoSettings;

    fn repair(
        _: &Valid<NoSettings>,
        suspect: Suspect<'_, NoImages>,
        _: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let calls = 1 + CALLS.fetch_add(1, Ordering::Relaxed);
        assert!(calls >= 3, "call {calls}");
        Ok(Repaired::single(suspect.state().clone()))
    }
}

#[test]
fn a_panic_is_kept_as_a_failure_of_its_cell() {
    let text = "
        grid = { name = 'bug', dataset = 'synthetic', width = 4, seeds = [0], train_limit = 100, test_limit = 40 }
        attack = [{ method = 'badnets', set = { train = { epochs = 1, batch_size = 20 } } }]
        defense = [{ method = 'buggy' }, { method = 'nothing' }]
    ";
    let out = tempfile::tempdir().expect("a temporary folder");
    let places = Places {
        out: Some(out.path().to_owned()),
        data: None,
    };
    let grid = Grid::parse("g.toml", text).expect("a good grid");
    let prepared = Prepared::new(grid, &places, &[&Buggy, &Nothing]).expect("all is there");
    let retry = Options {
        retry: true,
        ..quiet()
    };
    let failed = |found, computed| Counts {
        found,
        computed,
        failed: 1,
        ..Counts::default()
    };
    for (options, calls, counts) in [
        (quiet(), 1, failed(0, 2)),
        (quiet(), 1, failed(2, 0)),
        (retry.clone(), 2, failed(2, 0)),
    ] {
        let outcome = run(&prepared, &Compute::Cpu, options).expect("the others go on");
        assert_eq!(CALLS.load(Ordering::Relaxed), calls);
        assert_eq!(outcome.counts, counts);
        let reason = format!("failed: BadNets / Buggy: seed 0: a bug: call {calls}");
        assert_eq!(outcome.table.left_out, [reason]);
        let failure = outcome.into_result().expect_err("one failed");
        assert_eq!(failure.exit_code(), 101);
    }
    let outcome = run(&prepared, &Compute::Cpu, retry).expect("it runs");
    assert_eq!((outcome.counts.found, outcome.counts.computed), (2, 1));
    outcome.into_result().expect("mended");
}

#[test]
fn each_value_of_a_sweep_has_its_row() {
    let text = "
        grid = { name = 'ratios', dataset = 'synthetic', width = 4, seeds = [0], train_limit = 100, test_limit = 40 }
        attack = [{ method = 'badnets', sweep = { ratio = [0.05, 0.1] } }, { method = 'blended' }]
    ";
    let out = tempfile::tempdir().expect("a temporary folder");
    let places = Places {
        out: Some(out.path().to_owned()),
        data: None,
    };
    let prepared = |text: &str| {
        Prepared::new(
            Grid::parse("g.toml", text).expect("a good grid"),
            &places,
            &[],
        )
    };
    let shown = prepared(text).expect("all is there");
    let steps = plan(&shown).expect("a plan");
    let titles: Vec<String> = steps.iter().map(|step| step.title(&shown)).collect();
    assert_eq!(
        titles,
        [
            "BadNets (ratio=0.05), seed 0",
            "BadNets (ratio=0.1), seed 0",
            "Blended, seed 0"
        ]
    );
    let ids: std::collections::BTreeSet<_> =
        steps.iter().filter_map(|step| step.place.clone()).collect();
    assert_eq!(ids.len(), 3, "each is a cell of its own");
    let error = prepared(&text.replace("[0.05, 0.1]", "[0.05, 7]"))
        .err()
        .expect("a ratio of 7");
    let report = error.report(false);
    assert!(report.contains("`ratio` is `7`"), "{report}");
}

#[test]
fn a_cell_of_an_earlier_revision_is_named_and_not_taken() {
    // The images of a batch were decided otherwise by its first version.
    let text = "
        grid = { name = 'old', dataset = 'synthetic', width = 4, seeds = [0], train_limit = 100, test_limit = 40 }
        attack = [{ method = 'wanet', set = { augmentation = 'image' } }]
    ";
    let out = tempfile::tempdir().expect("a temporary folder");
    let places = Places {
        out: Some(out.path().to_owned()),
        data: None,
    };
    let grid = Grid::parse("g.toml", text).expect("a good grid");
    let prepared = Prepared::new(grid, &places, &[]).expect("all is there");
    let shown = || show(&prepared, &plan(&prepared).expect("a plan"));
    assert!(!shown().contains("revision"), "{}", shown());
    let mut spec = prepared.attack_spec(0, 0).expect("a specification");
    assert_eq!(spec.settings["compute"]["revision"], 1);
    spec.settings["compute"] = serde_json::json!({ "precision": "f32" });
    let dir = spec.dir(out.path());
    fs_err::create_dir_all(&dir).expect("made");
    fs_err::write(dir.join("manifest.json"), "{}").expect("written");
    let text = shown();
    assert!(
        text.contains("missing   attack   WaNet, seed 0")
            && text
                .contains("revision 0 of it is there, which an earlier version computed otherwise"),
        "{text}"
    );
}

/// A defense that leaves the model as it is.
struct Nothing;

#[derive(Default, Serialize, Deserialize)]
struct NoSettings {}

impl Validate for NoSettings {
    fn validate(&self) -> Result<(), SettingsError> {
        Ok(())
    }
}

impl Defense for Nothing {
    const INFO: MethodInfo = MethodInfo {
        id: "nothing",
        title: "Nothing",
        paper: "",
        needs: Needs::DataFree,
        status: Status::Experimental,
        summary: "leaves the model as it is",
        docs: "",
    };
    type Data = NoImages;
    type Config = NoSettings;

    fn repair(
        _: &Valid<NoSettings>,
        suspect: Suspect<'_, NoImages>,
        _: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        Ok(Repaired::single(suspect.state().clone()))
    }
}

#[test]
fn a_defense_of_another_crate_runs_in_a_grid() {
    let text = "
        grid = { name = 'extra', dataset = 'synthetic', width = 4, seeds = [1, 2], train_limit = 100, test_limit = 40 }
        attack = [{ method = 'badnets', set = { train = { epochs = 1, batch_size = 20 } } }]
        defense = [{ method = 'nothing' }]
    ";
    let out = tempfile::tempdir().expect("a temporary folder");
    let places = Places {
        out: Some(out.path().to_owned()),
        data: None,
    };
    let prepare = |extra| {
        Prepared::new(
            Grid::parse("g.toml", text).expect("a good grid"),
            &places,
            extra,
        )
    };
    let error = prepare(&[]).err().expect("bb-defense does not have it");
    assert_eq!(error.exit_code(), 2);
    let prepared = prepare(&[&Nothing]).expect("all is there");
    let outcome = run(&prepared, &Compute::Cpu, quiet()).expect("it runs");
    assert_eq!(
        outcome.counts,
        Counts {
            computed: 4,
            ..Counts::default()
        }
    );
    let rows = &outcome.table.blocks[0].rows;
    let der = rows[1].values[3].expect("measured");
    assert_eq!(
        (der.mean, der.std, der.n),
        (0.5, Some(0.0), 2),
        "an unchanged model has 50 %"
    );
    for i in 0..3 {
        assert_eq!(rows[0].values[i], rows[1].values[i]);
    }
    outcome.into_result().expect("nothing failed");
    let outcome = run(&prepared, &Compute::Cpu, quiet()).expect("it runs again");
    assert_eq!(
        outcome.counts,
        Counts {
            found: 4,
            ..Counts::default()
        }
    );
}

/// A defense that always panics.
struct Broken;

impl Defense for Broken {
    const INFO: MethodInfo = MethodInfo {
        id: "broken",
        title: "Broken",
        ..Buggy::INFO
    };
    type Data = NoImages;
    type Config = NoSettings;

    fn repair(
        _: &Valid<NoSettings>,
        _: Suspect<'_, NoImages>,
        _: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        panic!("always")
    }
}

/// Two attacks, two seeds and two defenses: four and eight cells.
const TWELVE: &str = "
    grid = { name = 'twelve', dataset = 'synthetic', width = 4, seeds = [0, 1], train_limit = 100, test_limit = 40 }
    attack = [
        { method = 'badnets', set = { train = { epochs = 1, batch_size = 20 } } },
        { method = 'blended', label = 'Mix', set = { train = { epochs = 1, batch_size = 20 } } },
    ]
    defense = [{ method = 'nothing' }, { method = 'broken', label = 'B' }]
";

fn twelve(out: &Path) -> Prepared {
    let places = Places {
        out: Some(out.to_owned()),
        data: None,
    };
    let grid = Grid::parse("g.toml", TWELVE).expect("a good grid");
    Prepared::new(grid, &places, &[&Broken, &Nothing]).expect("all is there")
}

#[test]
fn a_part_is_named_by_attacks_and_defenses_and_cut_into_shards() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let prepared = twelve(out.path());
    let steps = plan(&prepared).expect("a plan");
    let part = |only: &[&str], shard: Option<&str>| Part {
        only: only.iter().map(|&name| name.to_owned()).collect(),
        shard: shard.map(|text| text.parse().expect("a shard")),
    };
    let asked = |part: &Part| -> Vec<String> {
        let asked = part.of(&prepared, &steps).expect("known names");
        let asked = steps.iter().zip(asked).filter(|(_, asked)| *asked);
        asked.map(|(step, _)| step.title(&prepared)).collect()
    };
    assert_eq!(asked(&Part::default()).len(), 12);
    let all = |name: &str| {
        let steps = steps.iter().map(|step| step.title(&prepared));
        steps
            .filter(|title| title.contains(name))
            .collect::<Vec<_>>()
    };
    assert_eq!(asked(&part(&["BADNETS"], None)), all("BadNets"));
    assert_eq!(asked(&part(&["mix"], None)), all("Mix"));
    assert_eq!(asked(&part(&["blended"], None)), all("Mix"));
    assert_eq!(asked(&part(&["nothing"], None)), all("Nothing on"));
    assert_eq!(
        asked(&part(&["b", "mix"], None)),
        ["B on Mix, seed 0", "B on Mix, seed 1"]
    );
    let mut together: Vec<String> = Vec::new();
    for shard in ["1/3", "2/3", "3/3"] {
        let shard = asked(&part(&["nothing"], Some(shard)));
        assert!((1..=2).contains(&shard.len()), "{shard:?}");
        together.extend(shard);
    }
    together.sort();
    assert_eq!(together, all("Nothing on"));
    // An attack and its repairs are in one part.
    let first = asked(&part(&[], Some("1/4")));
    let expect = [
        "BadNets, seed 0",
        "Nothing on BadNets, seed 0",
        "B on BadNets, seed 0",
    ];
    assert_eq!(first, expect);

    let error = part(&["nothin"], None).of(&prepared, &steps);
    let error = error.expect_err("no such method");
    assert_eq!(
        (error.to_string().as_str(), error.hint().as_deref()),
        (
            "the grid has no `nothin`, expected one of `BadNets`, `Mix`, `Nothing`, `B`",
            Some("did you mean `Nothing`?")
        )
    );
    for text in ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"] {
        assert!(text.parse::<Shard>().is_err(), "{text}");
    }
}

#[test]
fn a_part_of_a_grid_computes_what_it_needs_and_nothing_else() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let prepared = twelve(out.path());
    let options = Options {
        part: Part {
            only: vec!["nothing".to_owned(), "mix".to_owned()],
            shard: Some("2/2".parse().expect("a shard")),
        },
        ..quiet()
    };
    let outcome = run(&prepared, &Compute::Cpu, options).expect("it runs");
    // The defense with the second seed, and the attack that it needs.
    let expect = Counts {
        computed: 2,
        left: 10,
        ..Counts::default()
    };
    assert_eq!(outcome.counts, expect);
    outcome
        .into_result()
        .expect("all that was asked for is there");
}

#[test]
fn after_a_failure_no_cell_is_begun_if_so_asked() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let prepared = twelve(out.path());
    let options = Options {
        on_failure: OnFailure::Stop,
        part: Part {
            only: vec!["b".to_owned()],
            shard: None,
        },
        ..quiet()
    };
    let outcome = run(&prepared, &Compute::Cpu, options).expect("it ends in order");
    let expect = Counts {
        computed: 1,
        failed: 1,
        skipped: 3,
        left: 7,
        ..Counts::default()
    };
    assert_eq!(outcome.counts, expect);
    let failure = outcome.into_result().expect_err("one failed");
    assert_eq!(failure.exit_code(), 101);
}
