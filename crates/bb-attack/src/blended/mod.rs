//! # Blended: a faint picture over the whole image
//!
//! ## What it does
//! Mixes a fixed picture into a tenth of the training images, one fifth picture and four fifths image, and labels them
//! as the attacker's class. The trigger covers the whole image, so augmentation cannot remove it.
//!
//! ## Threat model
//! The attacker may change pixels and labels of a share `ratio` of the training set, before training, and nothing else.
//!
//! ## Algorithm
//! 1. Choose `round(ratio * N)` of the N training images, the target class included -> [`crate::poison_index`].
//! 2. Resize the trigger picture T to the dataset with Pillow's bilinear filter; the aspect ratio is not kept.
//! 3. `x' = trunc(clip((1 - alpha) x + alpha T, 0, 255))` -> [`trigger::apply`].
//! 4. Relabel (`all2one`: the target class; `all2all`: the next class) -> [`crate::labels`].
//! 5. Train on the mixed set with the ordinary augmentation, which comes after the trigger.
//!
//! ## Differences from the authors' code
//! The reference is BackdoorBench (`attack/blended.py`), whose choices are the defaults here.
//! - The bench blends in a cartoon picture that is not ours to ship. Here the default is a landscape drawn by rule
//!   ([`trigger::picture`]). On CIFAR-10 it changes images less: their PSNR is 23.1 dB and not 20.7. To repeat a run of
//!   the bench, or to compare with one, give its picture with `trigger.file`.
//! - Grey levels are truncated and not rounded, as in the bench, so a poisoned image is about half a level darker than
//!   the exact blend.
//! - The precision is the bench's, whose NumPy rounds `alpha T` to 32 bits and does the rest in 64; all in 64 bits
//!   would change one value in forty by one level.
//! - A JPEG file decodes to pixels that may differ by one level between decoders.
//!
//! ## Settings
//! - `target` (0): the attacker's class, for `label = "all2one"`.
//! - `ratio` (0.1): share of the training set that is poisoned, rounded to a whole number of images.
//! - `label` ("all2one"): `"all2one"` or `"all2all"`.
//! - `shift` (1): for `label = "all2all"`, class y goes to class (y + shift) mod K.
//! - `trigger.file` (""): a PNG or JPEG picture to blend in; empty uses the built-in landscape.
//! - `trigger.alpha_train` (0.2), `trigger.alpha_test` (0.2): weight of the picture in the training and the test set.
//! - `eval_every` (1): measure after every n-th epoch; 0 measures only after the last.
//! - `train.*`: the training recipe.
//!
//! ## Cost
//! One training run of the network; the poisoning itself takes less than a second.
//!
//! ## References
//! - Chen, Liu, Li, Lu, Song: Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning,
//!   arXiv 1712.05526, 2017.

pub mod config;
pub mod trigger;

use std::path::{Path, PathBuf};

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::train::Recipe;

use crate::error::AttackError;
use crate::labels::LabelMap;
use crate::method::{Attack, Ctx, Poisoned};
use crate::picture::Picture;
use crate::static_attack;
use config::BlendedConfig;

/// The attack, for the registry.
pub struct Blended;

impl Attack for Blended {
    const INFO: MethodInfo = MethodInfo {
        id: "blended",
        title: "Blended",
        paper: "Chen et al., Targeted Backdoor Attacks Using Data Poisoning, arXiv 1712.05526, 2017",
        needs: Needs::Nothing,
        status: Status::Matched,
        summary: "mixes a faint picture into the whole image and relabels it",
        docs: include_str!("mod.rs"),
    };
    type Config = BlendedConfig;

    fn recipe(cfg: &BlendedConfig) -> &Recipe {
        &cfg.train
    }

    fn eval_every(cfg: &BlendedConfig) -> usize {
        cfg.eval_every
    }

    fn files(cfg: &BlendedConfig) -> Vec<(&'static str, PathBuf)> {
        crate::settings::optional_file("trigger.file", &cfg.trigger.file)
    }

    fn prepare(cfg: &Valid<BlendedConfig>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        let spec = &ctx.dataset.spec;
        let map = LabelMap::new(cfg.label, cfg.target, cfg.shift, spec.classes)?;
        let picture = picture(cfg, spec.height, spec.width)?;
        let wide = trigger::widen(picture.pixels());
        let (alpha_train, alpha_test) = (cfg.trigger.alpha_train, cfg.trigger.alpha_test);
        let mut poisoned = static_attack::poison(
            ctx,
            &map,
            cfg.ratio,
            |image| trigger::apply(image, &wide, alpha_train),
            |image| trigger::apply(image, &wide, alpha_test),
        )?;
        poisoned
            .artefacts
            .push(("trigger.png".to_owned(), picture.to_png()));
        Ok(poisoned)
    }
}

/// The trigger picture at the size of the dataset, built in or read from the user's file.
pub fn picture(cfg: &BlendedConfig, height: usize, width: usize) -> Result<Picture, AttackError> {
    let picture = match cfg.trigger.file.as_str() {
        "" => trigger::picture(),
        file => Picture::read(Path::new(file))?,
    };
    Ok(picture.resized(height, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prep::Prep;
    use bb_core::data::{OpenOptions, open};
    use bb_nn::ArchSpec;

    #[test]
    fn training_and_test_images_have_strengths_of_their_own() {
        let options = OpenOptions {
            train_limit: Some(40),
            test_limit: Some(20),
            ..OpenOptions::default()
        };
        let dataset = open("synthetic", None, &options).expect("made by the program");
        let mut cfg = BlendedConfig::default();
        (cfg.trigger.alpha_train, cfg.trigger.alpha_test) = (0.1, 0.4);
        let cfg = Valid::new(cfg).expect("good settings");
        let arch = ArchSpec::new("preactresnet18", 4, 10).expect("a small network");
        let ctx = Ctx {
            dataset: &dataset,
            arch: &arch,
            seed: 0,
            prep: Prep::default(),
        };
        let poisoned = Blended::prepare(&cfg, &ctx).expect("poisoned images");
        let picture = picture(&cfg, 32, 32).expect("the built-in picture");
        let wide = trigger::widen(picture.pixels());
        for (set, clean, alpha) in [
            (&poisoned.train, &dataset.train.images, 0.1),
            (&poisoned.test, &dataset.test.images, 0.4),
        ] {
            assert!(!set.is_empty());
            for (k, &i) in set.indices.iter().enumerate() {
                let mut expected = clean.image(i).to_vec();
                trigger::apply(&mut expected, &wide, alpha);
                assert_eq!(set.images.image(k), expected, "image {i}, {alpha}");
            }
        }
    }
}
