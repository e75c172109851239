//! The committed grids: every one names methods and settings that exist, and a defense of another crate fits in.
use std::path::Path;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::{SettingsError, Valid, Validate};
use bb_defense::DefenseError;
use bb_defense::context::Ctx;
use bb_defense::data::NoImages;
use bb_defense::method::{Defense, Repaired, Suspect};
use bb_eval::grid::Grid;
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
            "quickstart"
        ]
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
