#!/usr/bin/env bash
# Makes the skeleton of a defense in a crate of its own, crates/bb-defense-NAME: it compiles, has a setting, passes its
# tests, and runs in a grid. docs/contributing/add-a-defense.md says what to write into it.
#   scripts/new-defense.sh NAME
# NAME is the defense's name on the command line: lower-case letters, digits and single `-`, a letter first.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { printf 'error: %s\n' "$1" >&2; exit 2; }

[ $# -eq 1 ] || fail "expected one NAME, as in \`scripts/new-defense.sh norm-prune\`"
name=$1
# No range of letters: what one holds depends on the language of the system.
letters=abcdefghijklmnopqrstuvwxyz digits=0123456789
case $name in
  [!$letters]* | *[!$letters$digits-]* | *--* | *- | '')
    fail "\`$name\` is no name of a defense: expected lower-case letters, digits and single \`-\`, a letter first" ;;
esac
[ ${#name} -le 40 ] || fail "\`$name\` is too long for the name of a defense: expected at most 40 characters"
[ ! -e "crates/bb-defense/src/${name//-/_}" ] || fail "\`$name\` is a defense of crates/bb-defense"
crate=bb-defense-$name folder=crates/bb-defense-$name
[ ! -e "$folder" ] || fail "\`$folder\` exists already"
library=${crate//-/_}
# weight-norm becomes WeightNorm in tables and WeightNormDefense in the code, which no name can make a word of Rust.
title=
IFS=- read -ra parts <<<"$name"
for part in "${parts[@]}"; do title+=${part^}; done
type=${title}Defense

# Whole or not at all: it is made beside its place, under a name that the workspace does not take for a crate.
work=$(mktemp -d .new-defense-XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/src" "$work/tests"
# put FILE: standard input with the names filled in.
put() {
  sed -e "s/@NAME@/$name/g" -e "s/@CRATE@/$crate/g" -e "s/@LIBRARY@/$library/g" -e "s/@TYPE@/$type/g" -e "s/@TITLE@/$title/g" \
    >"$work/$1"
}

put Cargo.toml <<'E'
[package]
name = "@CRATE@"
description = "The defense @NAME@"
version.workspace = true
edition.workspace = true
rust-version.workspace = true
license.workspace = true
publish.workspace = true

[features]
# Downloads from the Hugging Face hub.
hub = ["bb-eval/hub"]
# The engine on NVIDIA GPUs.
cuda = ["bb-eval/cuda"]

[dependencies]
bb-core.workspace = true
bb-defense.workspace = true
bb-eval.workspace = true
serde.workspace = true
serde_json.workspace = true

[dev-dependencies]
bb-nn.workspace = true
tempfile.workspace = true

[lints]
workspace = true
E

put src/main.rs <<'E'
//! `bb-eval` with one more defense; see `@CRATE@ --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    bb_eval::main_with(&[&@LIBRARY@::@TYPE@])
}
E

put src/config.rs <<'E'
//! Its settings.

use bb_core::settings::{SettingsError, Validate};
use bb_defense::data::CleanBudget;
use bb_defense::settings::share;
use serde::{Deserialize, Serialize};

/// Its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct @TITLE@Config {
    /// What the classifier's weights are multiplied by, 0 to 1.
    pub factor: f64,
    /// The clean images the defender has.
    pub clean: CleanBudget,
}

impl Default for @TITLE@Config {
    fn default() -> Self {
        Self {
            factor: 0.5,
            clean: CleanBudget::default(),
        }
    }
}

impl Validate for @TITLE@Config {
    fn validate(&self) -> Result<(), SettingsError> {
        share("factor", self.factor)?;
        self.clean.validate()
    }
}
E

put src/lib.rs <<'E'
//! # `@NAME@`: a defense to be written
//!
//! ## What it does
//! It multiplies the weights of the classifier by a factor, so that there is something to run and to replace.
//!
//! ## Threat model
//! The defender has the suspect model and 5 % of the clean training images with their labels. Triggers, poison
//! indices, the target class and the test set stay unseen.
//!
//! ## Algorithm
//! 1. The weights of the last linear layer, times `factor`.
//!
//! ## Differences from the authors' code
//! There is none to compare with yet.
//!
//! ## Settings
//! - `factor` (0.5): what the classifier's weights are multiplied by.
//! - `clean.ratio` (0.05): share of the training images that the defender has.
//! - `clean.seed` (0): seed of their draw, which is that of Python's `random.sample`.
//! - `clean.index_file` (""): text file with their indices instead.
//!
//! ## Cost
//! None.
//!
//! ## References
//! None yet.

pub mod config;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_defense::DefenseError;
use bb_defense::context::{At, Ctx};
use bb_defense::data::{CleanBudget, CleanImages};
use bb_defense::method::{Defense, Repaired, Suspect};
use bb_defense::parts::head;
use serde_json::json;

use crate::config::@TITLE@Config;

/// The defense, for `main`.
pub struct @TYPE@;

impl Defense for @TYPE@ {
    const INFO: MethodInfo = MethodInfo {
        id: "@NAME@",
        title: "@TITLE@",
        paper: "none",
        needs: Needs::CleanFraction,
        status: Status::Experimental,
        summary: "multiplies the weights of the classifier",
        docs: include_str!("lib.rs"),
    };
    type Data = CleanImages;
    type Config = @TITLE@Config;

    fn budget(cfg: &@TITLE@Config) -> CleanBudget {
        cfg.clean.clone()
    }

    fn repair(
        cfg: &Valid<@TITLE@Config>,
        suspect: Suspect<'_, CleanImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let mut net = suspect.net()?;
        let head = head(&net)?;
        ctx.check()?;
        for weight in net.params_mut().tensor_mut(head.weight) {
            *weight *= cfg.factor as f32;
        }
        ctx.probe(At::stage("scale"), &mut net);
        let mut repaired = Repaired::single(net.state()?);
        repaired.notes = json!({ "clean_images": suspect.clean().len() });
        Ok(repaired)
    }
}
E

put tests/small_grid.rs <<'E'
//! The defense in a grid: a small attack on the synthetic set, repaired.

use bb_core::cell::MODEL;
use bb_defense::method::{AnyDefense as _, Given};
use bb_defense::registry::faults;
use bb_eval::grid::Grid;
use bb_eval::plan::{State, plan};
use bb_eval::prepare::{Places, Prepared};
use bb_eval::run::{Options, run};
use bb_nn::{Compute, StateDict};
use @LIBRARY@::@TYPE@;

const GRID: &str = "
    grid = { name = 'tiny', dataset = 'synthetic', width = 4, seeds = [0], train_limit = 200, test_limit = 50 }
    attack = [{ method = 'badnets', set = { train = { epochs = 1, batch_size = 20 } } }]
    defense = [{ method = '@NAME@' }]
";

#[test]
fn it_says_what_it_is_and_checks_its_settings() {
    assert_eq!(faults(&@TYPE@), Vec::<String>::new());
    for (assignment, key) in [("factor=2", "factor"), ("clean.ratio=0", "clean.ratio")] {
        let given = Given {
            set: vec![assignment.to_owned()],
            ..Given::default()
        };
        let error = @TYPE@.resolve("synthetic", &given).err();
        let error = error.unwrap_or_else(|| panic!("{assignment} is accepted"));
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
    }
}

#[test]
fn it_runs_in_a_grid() {
    let out = tempfile::tempdir().expect("a folder");
    let places = Places {
        out: Some(out.path().to_owned()),
        data: None,
    };
    let grid = Grid::parse("grid.toml", GRID).expect("a good grid");
    let prepared = Prepared::new(grid, &places, &[&@TYPE@]).expect("all is there");
    let quiet = Options {
        quiet: true,
        ..Options::default()
    };
    let outcome = run(&prepared, &Compute::Cpu, quiet).expect("it runs");
    assert_eq!(outcome.counts.computed, 2);
    outcome.into_result().expect("nothing failed");

    let steps = plan(&prepared).expect("the cells");
    let weights = steps.iter().map(|step| {
        let State::Complete(cell) = &step.state else {
            panic!("it ran");
        };
        let state = StateDict::load(&cell.file(MODEL)).expect("a model");
        let weight = state.floats("linear.weight").expect("a classifier");
        weight.expect("floats")
    });
    let weights: Vec<Vec<f32>> = weights.collect();
    let halved: Vec<f32> = weights[0].iter().map(|weight| weight * 0.5).collect();
    assert_eq!(weights[1], halved);
}
E

put grid.toml <<'E'
# @TITLE@ beside FT: BadNets on the synthetic set, small. Needs no download.
# cargo run -p @CRATE@ -- run crates/@CRATE@/grid.toml
[grid]
name = "@NAME@"
dataset = "synthetic"
arch = "preactresnet18"
width = 8
seeds = [0]
train_limit = 2000
test_limit = 500

[[attack]]
method = "badnets"

[[defense]]
method = "ft"

[[defense]]
method = "@NAME@"
E

# Where lines break depends on the name.
if command -v rustfmt >/dev/null; then
  rustfmt --edition 2024 "$work"/src/lib.rs "$work"/src/main.rs "$work"/tests/small_grid.rs
fi
chmod 755 "$work"
mv -T "$work" "$folder"
cat <<E
$folder is there. Next:
  cargo test -p $crate
  cargo run -p $crate -- run $folder/grid.toml
E
