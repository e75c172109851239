//! # FT: fine-tuning
//!
//! ## What it does
//! Trains the suspect model on for a while, on clean images alone. It forgets part of the backdoor, since nothing asks
//! for it any more; the baseline that other defenses are compared with.
//!
//! ## Threat model
//! The defender has the suspect model and 5 % of the clean training images with their labels. Triggers, poison
//! indices, the target class and the test set stay unseen.
//!
//! ## Algorithm
//! SGD with momentum and weight decay on the cross-entropy, over all parameters, in train mode, shuffled and augmented
//! -> [`crate::finetuning::run`]. The result is the model after the last epoch, whatever came before.
//!
//! ## Differences from the authors' code
//! The reference is the benchmark's `defense/ft.py`:
//! - Its cosine has a half period of 100 epochs, however many there are (`finetune.schedule.t_max`).
//! - It computes in mixed precision; here it is `f32` unless another precision is asked for.
//!
//! Deliberately different:
//! - Orders and crops are drawn from streams of our own, so they are others than PyTorch's.
//! - A loss that is not finite ends the run with an error.
//!
//! ## Settings
//! - `probe_every` (10): measure the model after every n-th epoch, counted from the first; 0 measures only at the end.
//! - `clean.ratio` (0.05): share of the training images that the defender has.
//! - `clean.seed` (0): seed of their draw, which is that of Python's `random.sample`.
//! - `clean.index_file` (""): text file with their indices instead.
//! - `finetune.epochs` (100): epochs; 0 leaves the model as it is.
//! - `finetune.batch_size` (256), `finetune.shuffle` (true), `finetune.augment` (true): its batches.
//! - `finetune.lr` (0.01), `finetune.momentum` (0.9), `finetune.weight_decay` (0.0005): SGD.
//! - `finetune.schedule.kind` ("cosine"): `"constant"`, `"cosine"` or `"plateau"`, which is the benchmark's for Tiny
//!   ImageNet.
//! - `finetune.schedule.t_max` (100): half period of the cosine, in epochs.
//! - `finetune.schedule.gamma` (0.1): factor of the plateau.
//! - `finetune.schedule.patience` (10): epochs without improvement that the plateau bears.
//!
//! ## Cost
//! 100 passes over the clean images.
//!
//! ## References
//! - Wu et al.: `BackdoorBench`: A Comprehensive Benchmark of Backdoor Learning, Advances in Neural Information
//!   Processing Systems 2022, arXiv 2206.12654.

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::{Idle, SettingsError, Valid, Validate};
use serde::{Deserialize, Serialize};

use crate::context::Ctx;
use crate::data::{CleanBudget, CleanImages};
use crate::error::DefenseError;
use crate::finetuning::{self, FinetuneConfig, Part, Plain};
use crate::method::{Defense, Repaired, Suspect};
use crate::recipes::{RecipeFile, recipes};

/// The defense, for the registry.
pub struct Ft;

/// Settings of FT; the defaults are the benchmark's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FtConfig {
    /// Measure the model after every n-th epoch, counted from the first; 0 measures only at the end.
    pub probe_every: usize,
    /// The clean images the defender has.
    pub clean: CleanBudget,
    /// How they are trained on.
    pub finetune: FinetuneConfig,
}

impl Default for FtConfig {
    fn default() -> Self {
        Self {
            probe_every: 10,
            clean: CleanBudget::default(),
            finetune: FinetuneConfig::default(),
        }
    }
}

impl Validate for FtConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        self.clean.validate()?;
        self.finetune.validate()
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = self.clean.idle();
        idle.extend(self.finetune.idle());
        idle
    }
}

impl Defense for Ft {
    const INFO: MethodInfo = MethodInfo {
        id: "ft",
        title: "FT",
        paper: "Wu et al., BackdoorBench, NeurIPS 2022",
        needs: Needs::CleanFraction,
        status: Status::Matched,
        summary: "trains on with clean images",
        docs: include_str!("mod.rs"),
    };
    const RECIPES: &'static [RecipeFile] =
        recipes!["ft": "cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];
    type Data = CleanImages;
    type Config = FtConfig;

    fn budget(cfg: &FtConfig) -> CleanBudget {
        cfg.clean.clone()
    }

    fn repair(
        cfg: &Valid<FtConfig>,
        suspect: Suspect<'_, CleanImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let mut net = suspect.net()?;
        let mut steps = Plain::new(&net, &cfg.finetune);
        let part = Part {
            stage: "finetune",
            variant: "repaired",
            epochs: cfg.finetune.epochs,
            loader: cfg.finetune.loader(ctx.seed(), "ft/finetune"),
            lr: cfg.finetune.lr,
            schedule: &cfg.finetune.schedule(),
            probe_every: cfg.probe_every,
        };
        let data = (suspect.clean(), suspect.task());
        finetuning::run(&part, data, &mut net, &mut steps, ctx)?;
        Ok(Repaired::single(net.state()?))
    }
}
