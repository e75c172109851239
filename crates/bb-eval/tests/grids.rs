//! The committed grids: every one names methods and settings that exist, and a defense of another crate fits in.
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::{SettingsError, Valid, Validate};
use bb_defense::DefenseError;
use bb_defense::context::Ctx;
use bb_defense::data::NoImages;
use bb_defense::method::{Defense, Repaired, Suspect};
use bb_eval::grid::{GRID_FIELDS, Grid};
use bb_eval::prepare::{Places, Prepared, methods};
use bb_eval::run::{Counts, Options, run};
use bb_nn::Compute;
use serde::{Deserialize, Serialize};

const QUIET: Options = Options {
    quiet: true,
    wait: true,
    retry: false,
};

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
            "models",
            "quickstart"
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
        ..QUIET
    };
    let failed = |found, computed| Counts {
        found,
        computed,
        failed: 1,
        ..Counts::default()
    };
    for (options, calls, counts) in [
        (QUIET, 1, failed(0, 2)),
        (QUIET, 1, failed(2, 0)),
        (retry, 2, failed(2, 0)),
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
    let outcome = run(&prepared, &Compute::Cpu, QUIET).expect("it runs");
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
    let outcome = run(&prepared, &Compute::Cpu, QUIET).expect("it runs again");
    assert_eq!(
        outcome.counts,
        Counts {
            found: 4,
            ..Counts::default()
        }
    );
}
