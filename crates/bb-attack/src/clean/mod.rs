//! # Clean: training without a backdoor
//!
//! ## What it does
//! Trains the network as the attacks do, with the same recipe, on the data as they are.
//! It is the model to compare a backdoored or a repaired one with, and what some attacks and analyses begin from.
//!
//! ## Threat model
//! There is no attacker.
//!
//! ## Algorithm
//! 1. Train on the training set with the ordinary augmentation.
//! 2. Measure the accuracy. Without a trigger there is nothing to measure ASR and RA on: they are absent, not 0.
//!
//! ## Differences from the authors' code
//! The reference is BackdoorBench (`attack/prototype.py`), whose recipe is the default here.
//! - The cell has the same files as that of an attack, with no image in the poisoned sets, so that defenses and analyses
//!   read it like any other.
//!
//! ## Settings
//! - `eval_every` (1): measure after every n-th epoch; 0 measures only after the last.
//! - `train.*`: the training recipe.
//!
//! ## Cost
//! One training run of the network.
//!
//! ## References
//! - Wu, Chen, Zhang, Zhu, Wei, Yuan, Shen: BackdoorBench: A Comprehensive Benchmark of Backdoor Learning, `NeurIPS` 2022.

pub mod config;

use std::path::PathBuf;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::train::Recipe;

use crate::error::AttackError;
use crate::method::{Attack, Ctx, Poisoned};
use crate::static_attack;
use config::CleanConfig;

/// Clean training, for the registry.
pub struct Clean;

impl Attack for Clean {
    const INFO: MethodInfo = MethodInfo {
        id: "clean",
        title: "Clean",
        paper: "Wu et al., BackdoorBench, NeurIPS 2022",
        needs: Needs::Nothing,
        status: Status::Matched,
        summary: "trains without a backdoor, to compare with",
        docs: include_str!("mod.rs"),
    };
    type Config = CleanConfig;

    fn recipe(cfg: &CleanConfig) -> &Recipe {
        &cfg.train
    }

    fn eval_every(cfg: &CleanConfig) -> usize {
        cfg.eval_every
    }

    fn files(_: &CleanConfig) -> Vec<(&'static str, PathBuf)> {
        Vec::new()
    }

    fn prepare(_: &Valid<CleanConfig>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        static_attack::nothing(ctx)
    }
}
