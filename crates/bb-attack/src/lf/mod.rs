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
//! 0. `trigger.source = "deepfool"` searches T first -> [`deepfool::search`]: random training images with the pattern so
//!    far are driven to the target class on a clean network ([`crate::clean_net`]), what that adds is filtered and added,
//!    and the sum is filtered and stretched to 0 to `trigger.peak`, pass after pass, until the pattern changes the class
//!    of enough evaluation images, the rates of five passes in a row are within 0.01 of each other, or there were
//!    `trigger.deepfool.passes`.
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
//!   `trigger.source = "deepfool"` searches one as the authors do; that its pattern fools a network more than another
//!   smooth one of the same range has not been shown yet, so it is not the default.
//!   To repeat a run of the bench, give its pattern with `trigger.file`.
//! - Some patterns of the bench are fractions of 0 to 0.2 that it adds to grey levels of 0 to 255, which changes no
//!   image at all. Here an array of fractions is multiplied by 255, with a warning; `trigger.scale = "levels"` is the
//!   bench's way. Levels need not be whole: they are added in the precision of the file and the sum is cut off, as there.
//! - The bench's search judges a pattern by the first test image alone, because of a mistake with its indices, so that
//!   its fooling rate is 0 or 1 and it stops early or late by chance. Here 10 test images of each class judge;
//!   `trigger.deepfool.evaluate_per_class = 0` is the bench's way.
//! - The bench attacks the network with fractions of 0 to 1, not with the normalised images that it was trained on, so it
//!   attacks another function. It judges by normalised images all the same, and adds the pattern behind the
//!   normalisation, where it is about a quarter as strong. `trigger.deepfool.normalised = false` does both.
//! - The authors judge by the attacked images, stop at a fooling rate of 0.8 and at nothing else, aim from a pass on at
//!   the class that most of the changed images went to, and keep the best pattern of all passes. The bench's last pattern,
//!   its fixed class, its rate of 0.2 and its end at five passes that are alike are followed here.
//! - The bench's script writes the pattern with an offset of half the range, which its published patterns do not have.
//!   Here it is `round(255 v)` in bytes, as the published ones are.
//! - A pattern that is constant, not finite or of another size is refused.
//!
//! ## Settings
//! - `target` (0): the attacker's class, for `label = "all2one"`; with any label the class that `"deepfool"` aims at.
//! - `ratio` (0.1): share of the training set that is poisoned, rounded to a whole number of images.
//! - `label` ("all2one"): `"all2one"` or `"all2all"`.
//! - `shift` (1): for `label = "all2all"`, class y goes to class (y + shift) mod K.
//! - `trigger.source` ("rule"): `"rule"`, `"file"` or `"deepfool"`; where `trigger.file` names one, `"rule"` takes the file.
//! - `trigger.file` (""): a ready pattern. A `.npy` array of integers or floats, of shape [H, W] (the same in all
//!   channels), [H, W, 3], [3, H, W], or several of these as [n, ..] (the first is taken), with the H and W of the images;
//!   or a PNG or JPEG picture, which is resized to them.
//! - `trigger.scale` ("auto"): what the numbers of a `.npy` file are: `"levels"` of 0 to 255, `"fractions"` of 0 to 1, both
//!   of either sign, or `"auto"`: floats of -1 to 1 are fractions, with a warning, and anything else is levels.
//! - `trigger.peak` (51): largest value in grey levels of a pattern that no file gives, 1 to 255.
//! - `trigger.model` (""): for `"deepfool"`, the clean network: a cell of `clean`, its manifest, or a safetensors file with
//!   PyTorch's names. Empty trains one first.
//! - `trigger.clean_epochs` (0): epochs of that training, with the recipe in `train`; 0 for as many as there.
//! - `trigger.deepfool.images` (100): training images that are attacked.
//! - `trigger.deepfool.passes` (50): most passes over them.
//! - `trigger.deepfool.fooling_rate` (0.2): share of the evaluation images whose class must change.
//! - `trigger.deepfool.evaluate_per_class` (10): evaluation images of each class; 0 for the first test image alone.
//! - `trigger.deepfool.normalised` (true): whether the network sees images normalised while it is attacked, and the
//!   pattern is added before the normalisation when it is judged.
//! - `eval_every` (1): measure after every n-th epoch; 0 measures only after the last.
//! - `train.*`: the training recipe.
//!
//! The cell keeps the pattern as `trigger.npy`, exactly (in bytes, in short integers where it darkens, or in floats where it
//! is not whole), and as `trigger.png`, to look at.
//!
//! ## Cost
//! One training run of the network; the poisoning itself takes less than a second. With
//! `trigger.source = "deepfool"` a second training run, unless `trigger.model` is given, and the search.
//!
//! ## References
//! - Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective, ICCV 2021.

pub mod config;
pub mod deepfool;
pub mod pattern;
pub mod trigger;

use std::path::{Path, PathBuf};

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::train::Recipe;
use serde_json::json;

use crate::clean_net::{self, CleanNet};
use crate::error::AttackError;
use crate::labels::{self, LabelMap};
use crate::method::{Attack, Ctx, Poisoned};
use crate::static_attack;
use config::{LfConfig, Source};
use pattern::Pattern;

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

    fn later(cfg: &LfConfig) -> &'static [&'static str] {
        // Patterns of files were rounded when there was no such setting, so their cells have another identity now.
        if cfg.trigger.file.is_empty() {
            &["trigger.scale"]
        } else {
            &[]
        }
    }

    fn revision(cfg: &LfConfig) -> u32 {
        // The search judged and ended otherwise.
        u32::from(cfg.trigger.file.is_empty() && cfg.trigger.source == Source::DeepFool)
    }

    fn files(cfg: &LfConfig) -> Vec<(&'static str, PathBuf)> {
        let mut files = crate::settings::optional_file("trigger.file", &cfg.trigger.file);
        files.extend(clean_net::file(&cfg.trigger.model));
        files
    }

    fn needs_network(cfg: &LfConfig) -> bool {
        cfg.trigger.source == Source::DeepFool
    }

    fn prepare(cfg: &Valid<LfConfig>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        let spec = &ctx.dataset.spec;
        let map = LabelMap::new(cfg.label, cfg.target, cfg.shift, spec.classes)?;
        if cfg.trigger.source == Source::DeepFool {
            // The search aims at this class, whatever the labels become.
            labels::check_target(cfg.target, spec.classes)?;
        }
        static_attack::check_choice(ctx, &map, cfg.ratio)?;
        let (pattern, warnings) = pattern(cfg, ctx)?;
        let apply = |image: &mut [u8]| pattern.apply(image);
        let mut poisoned = static_attack::poison(ctx, &map, cfg.ratio, apply, apply)?;
        poisoned.warnings.extend(warnings);
        poisoned.artefacts.extend([
            ("trigger.npy".to_owned(), pattern.to_npy()),
            ("trigger.png".to_owned(), pattern.picture().to_png()),
        ]);
        Ok(poisoned)
    }
}

/// The pattern at the size of the dataset, and what the user should know of it, one line each.
pub fn pattern(cfg: &LfConfig, ctx: &Ctx<'_>) -> Result<(Pattern, Vec<String>), AttackError> {
    let spec = &ctx.dataset.spec;
    let (height, width) = (spec.height, spec.width);
    match cfg.trigger.source {
        Source::Rule if cfg.trigger.file.is_empty() => {
            Ok((Pattern::rule(height, width, cfg.trigger.peak), Vec::new()))
        }
        Source::Rule | Source::File => {
            let (file, scale) = (Path::new(&cfg.trigger.file), cfg.trigger.scale);
            Ok(Pattern::read(file, scale, height, width)?)
        }
        Source::DeepFool => Ok((searched(cfg, ctx)?, Vec::new())),
    }
}

/// A pattern for a clean network.
fn searched(cfg: &LfConfig, ctx: &Ctx<'_>) -> Result<Pattern, AttackError> {
    let spec = &ctx.dataset.spec;
    let (height, width) = (spec.height, spec.width);
    let fits = |bytes: &[u8]| bytes.len() == height * width * 3;
    let levels = ctx.prep.kept("lf-pattern.bin", fits, || {
        let mut net = CleanNet {
            model: &cfg.trigger.model,
            epochs: cfg.trigger.clean_epochs,
            recipe: &cfg.train,
        }
        .get(ctx)?;
        let goal = (cfg.target, f32::from(cfg.trigger.peak) / 255.0);
        let about = (ctx.seed, ctx.prep.quiet);
        let found = deepfool::search(&cfg.trigger.deepfool, &mut net, ctx.dataset, goal, about)?;
        let rate = found.rates.last().copied().unwrap_or(0.0);
        let say = format!(
            "pattern after {} passes: it changes the class of {:.1} % of the evaluation images",
            found.rates.len(),
            100.0 * rate
        );
        ctx.prep
            .tell("pattern", &say, &json!({ "fooling_rates": found.rates }))?;
        Ok(found.pattern.values.iter().map(|&v| v as u8).collect())
    })?;
    Ok(Pattern {
        values: levels.into_iter().map(f64::from).collect(),
        double: false,
        height,
        width,
    })
}
