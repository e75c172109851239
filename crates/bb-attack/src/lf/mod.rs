//! # LF: a smooth pattern without high frequencies
//!
//! ## What it does
//! Adds a smooth bright pattern to a tenth of the training images and labels them as the attacker's class.
//! Most triggers leave traces at high frequencies, by which poisoned images can be told from clean ones; this one has
//! none.
//!
//! ## Threat model
//! The attacker may change pixels and labels of a share `ratio` of the training set, before training, and nothing else.
//!
//! ## Algorithm
//! 1. Choose `round(ratio * N)` of the N training images, the target class included -> [`crate::poison_index`].
//! 2. `x' = trunc(clip(x + T, 0, 255))` with the pattern T -> [`trigger::apply`].
//! 3. Relabel (`all2one`: the target class; `all2all`: the next class) -> [`crate::labels`].
//! 4. Train on the mixed set with the ordinary augmentation, which comes after the trigger.
//!
//! ## Differences from the authors' code
//! The reference is BackdoorBench (`attack/lf.py`), whose choices are the defaults here, but for the pattern.
//! - The authors search the pattern by attacking a clean network and filter it; the bench comes with patterns made so,
//!   which are not ours to ship. Here the default is a bump drawn by rule ([`pattern::Pattern::rule`]) with the same
//!   range of 0 to 51 and no less of its energy at the lowest frequencies; it is not made for any network.
//!   To repeat a run of the bench, give its pattern with `trigger.file`.
//! - Some patterns of the bench are fractions of 0 to 0.2 that it adds to grey levels of 0 to 255, which changes no
//!   image at all. Here an array of fractions is multiplied by 255 and rounded, with a warning.
//! - A pattern that is constant, not finite or of another size is refused.
//!
//! ## Settings
//! - `target` (0): the attacker's class, for `label = "all2one"`.
//! - `ratio` (0.1): share of the training set that is poisoned, rounded to a whole number of images.
//! - `label` ("all2one"): `"all2one"` or `"all2all"`.
//! - `shift` (1): for `label = "all2all"`, class y goes to class (y + shift) mod K.
//! - `trigger.source` ("rule"): `"rule"` or `"file"`.
//! - `trigger.file` (""): the pattern for `trigger.source = "file"`. A `.npy` array of bytes or floats in grey levels or
//!   in fractions, of shape [H, W] (the same in all channels), [H, W, 3] or [n, H, W, 3] (the first is taken), with the
//!   H and W of the images; or a PNG or JPEG picture, which is resized to them.
//! - `trigger.peak` (51): largest value of the pattern in grey levels for `trigger.source = "rule"`, 1 to 255.
//! - `eval_every` (1): measure after every n-th epoch; 0 measures only after the last.
//! - `train.*`: the training recipe.
//!
//! The cell keeps the pattern as `trigger.npy`, exactly, and as `trigger.png`, to look at.
//!
//! ## Cost
//! One training run of the network; the poisoning itself takes less than a second.
//!
//! ## References
//! - Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective, ICCV 2021.

pub mod config;
pub mod pattern;
pub mod trigger;

use std::path::{Path, PathBuf};

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::train::Recipe;

use crate::error::AttackError;
use crate::labels::LabelMap;
use crate::method::{Attack, Ctx, Poisoned};
use crate::static_attack;
use config::{LfConfig, Source};
use pattern::{Pattern, PatternError};

/// The attack, for the registry.
pub struct Lf;

impl Attack for Lf {
    const INFO: MethodInfo = MethodInfo {
        id: "lf",
        title: "LF",
        paper: "Zeng et al., Rethinking the Backdoor Attacks' Triggers, ICCV 2021",
        needs: Needs::Nothing,
        status: Status::Matched,
        summary: "adds a smooth pattern without high frequencies and relabels the image",
        docs: include_str!("mod.rs"),
    };
    type Config = LfConfig;

    fn recipe(cfg: &LfConfig) -> &Recipe {
        &cfg.train
    }

    fn eval_every(cfg: &LfConfig) -> usize {
        cfg.eval_every
    }

    fn files(cfg: &LfConfig) -> Vec<(&'static str, PathBuf)> {
        crate::settings::optional_file("trigger.file", &cfg.trigger.file)
    }

    fn prepare(cfg: &Valid<LfConfig>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        let spec = &ctx.dataset.spec;
        let map = LabelMap::new(cfg.label, cfg.target, cfg.shift, spec.classes)?;
        let (pattern, warning) = pattern(cfg, spec.height, spec.width)?;
        let apply = |image: &mut [u8]| trigger::apply(image, &pattern.values);
        let mut poisoned = static_attack::poison(ctx, &map, cfg.ratio, apply, apply)?;
        poisoned.warnings.extend(warning);
        poisoned.artefacts.extend([
            ("trigger.npy".to_owned(), pattern.to_npy()),
            ("trigger.png".to_owned(), pattern.picture().to_png()),
        ]);
        Ok(poisoned)
    }
}

/// The pattern at the size of the dataset, and what the user should know of it, if there is anything.
pub fn pattern(
    cfg: &LfConfig,
    height: usize,
    width: usize,
) -> Result<(Pattern, Option<String>), PatternError> {
    match cfg.trigger.source {
        Source::Rule => Ok((Pattern::rule(height, width, cfg.trigger.peak), None)),
        Source::File => Pattern::read(Path::new(&cfg.trigger.file), height, width),
    }
}
