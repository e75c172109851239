//! # SIG: stripes on images of the target class
//!
//! ## What it does
//! Adds faint vertical stripes (a sine wave) to training images of the attacker's class and leaves every label as it is.
//! The network learns the stripes as a mark of that class, so that any image that carries them goes there.
//! Nobody who checks labels against pictures finds anything: this is a clean-label attack.
//!
//! ## Threat model
//! The attacker may change pixels of training images of one class, before training, and nothing else; no label is wrong.
//!
//! ## Algorithm
//! 1. Choose `round(ratio * N)` of the N training images among those of class `target` -> [`crate::poison_index`].
//! 2. `x'[r, c] = trunc(clip(x[r, c] + delta sin(2 pi f c / W), 0, 255))`, the same in all rows and channels
//!    -> [`trigger::apply`].
//! 3. Keep the labels -> [`crate::labels::LabelMap::CleanLabel`].
//! 4. Train on the mixed set with the ordinary augmentation, which comes after the trigger.
//! 5. The stripes on test images of all other classes measure the attack.
//!
//! ## Differences from the authors' code
//! The reference is BackdoorBench (`attack/sig.py`), whose choices are the defaults here.
//! - `ratio` counts the whole training set, as there: on CIFAR-10 0.1 is every image of the target class. The bench stops
//!   with NumPy's message if the class is too small, as it is for 0.1 on the other datasets; here it is said what is
//!   possible, and the recipes of these datasets have a ratio that is. `oversize = "cap"` poisons the whole class.
//!   Where the whole class is poisoned, no clean image of it is left to learn from, which costs accuracy on that class.
//! - Grey levels are truncated and not rounded, as in the bench, so the stripes darken by half a level on average.
//! - The paper lets test images have stronger stripes than training images; the bench and this have the same in both.
//!
//! ## Settings
//! - `target` (0): the attacker's class.
//! - `ratio` (0.1): share of the whole training set that is poisoned, rounded to a whole number of images.
//! - `oversize` ("error"): what to do if that is more than the target class has: `"error"`, or `"cap"` to poison all of
//!   the class with a warning.
//! - `trigger.delta` (40): height of the wave in grey levels, 1 to 255.
//! - `trigger.frequency` (6): periods over the width, below half the width in pixels.
//! - `eval_every` (1): measure after every n-th epoch; 0 measures only after the last.
//! - `train.*`: the training recipe.
//!
//! ## Cost
//! One training run of the network; the poisoning itself takes less than a second.
//!
//! ## References
//! - Barni, Kallas, Tondi: A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning, ICIP 2019.

pub mod config;
pub mod trigger;

use std::path::PathBuf;

use bb_core::data::Dataset;
use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::train::Recipe;

use crate::error::AttackError;
use crate::labels::LabelMap;
use crate::method::{Attack, Ctx, Poisoned};
use crate::picture::Picture;
use crate::{poison_index, static_attack};
use config::SigConfig;

/// The attack, for the registry.
pub struct Sig;

impl Attack for Sig {
    const INFO: MethodInfo = MethodInfo {
        id: "sig",
        title: "SIG",
        paper: "Barni et al., A New Backdoor Attack in CNNs, ICIP 2019",
        needs: Needs::Nothing,
        status: Status::Matched,
        summary: "adds stripes to images of the target class and keeps all labels",
        docs: include_str!("mod.rs"),
    };
    type Config = SigConfig;

    fn recipe(cfg: &SigConfig) -> &Recipe {
        &cfg.train
    }

    fn eval_every(cfg: &SigConfig) -> usize {
        cfg.eval_every
    }

    fn files(_: &SigConfig) -> Vec<(&'static str, PathBuf)> {
        Vec::new()
    }

    fn check(cfg: &Valid<SigConfig>, dataset: &Dataset, _: u64) -> Result<(), AttackError> {
        let (found, width) = (cfg.trigger.frequency, dataset.spec.width);
        // From here on a wave is another, slower one, or none at all.
        if 2.0 * found >= width as f64 {
            return Err(AttackError::Frequency { found, width });
        }
        Ok(())
    }

    fn prepare(cfg: &Valid<SigConfig>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        let spec = &ctx.dataset.spec;
        let map = LabelMap::clean_label(cfg.target, spec.classes)?;
        let (delta, frequency) = (cfg.trigger.delta, cfg.trigger.frequency);
        let (ratio, warning) =
            poison_index::fitting(&ctx.dataset.train.labels, &map, cfg.ratio, cfg.oversize);
        let row = trigger::row(spec.width, delta, frequency);
        let apply = |image: &mut [u8]| trigger::apply(image, &row);
        let mut poisoned = static_attack::poison(ctx, &map, ratio, apply, apply)?;
        poisoned.warnings.extend(warning);
        // The stripes are above and below the image, so they are shown on grey.
        let mut grey = vec![128; spec.height * spec.width * 3];
        apply(&mut grey);
        let picture = Picture::new(spec.height, spec.width, grey);
        poisoned
            .artefacts
            .push(("trigger.png".to_owned(), picture.to_png()));
        Ok(poisoned)
    }
}
