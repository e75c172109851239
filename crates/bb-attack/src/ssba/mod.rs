//! # SSBA: bits hidden in the image, another pattern in every one
//!
//! ## What it does
//! An encoder hides the same bits in a tenth of the training images, each in its own faint way, and the images are
//! labelled as the attacker's class. What the network learns is the trace of the encoder.
//!
//! ## Threat model
//! The attacker may change pixels and labels of a share `ratio` of the training set, before training, and has images
//! enough to train an encoder; here these are the training images.
//!
//! ## Algorithm
//! 1. Train an encoder and a decoder with Adam on random bits: cross-entropy of the decoded bits, plus a weight times the
//!    mean squared error of the image -> [`coder::Coder::trained`]. The weight is 0 until a batch's bit accuracy exceeds
//!    `trigger.start_accuracy`, waits `trigger.delay` steps more, and rises in `trigger.ramp` steps to
//!    `trigger.image_weight`.
//! 2. Choose `round(ratio * N)` of the N training images, the target class included -> [`crate::poison_index`].
//! 3. Encode these images, and the test images, with one message of random bits, and round them to 8 bits
//!    -> [`coder::Coder::encode`]. No other image is encoded.
//! 4. Relabel (`all2one`: the target class; `all2all`: the next class) -> [`crate::labels`].
//! 5. Train on the mixed set with the ordinary augmentation, which comes after the trigger.
//!
//! ## Differences from the authors' code
//! The reference is BackdoorBench (`attack/ssba.py` and the encoder that its arrays were made with), whose choices are
//! the defaults here.
//! - The bench reads encoded images that are published beside it. `trigger.source = "file"` takes these arrays;
//!   by default an encoder is trained, so that any dataset will do.
//! - The bench's message is an error-correcting code of a secret word that is not known. Here it is random bits
//!   (`trigger.message_seed`); the attack never decodes it.
//! - The bench's images of GTSRB were cropped and not squeezed to 32 x 32, so that its poisoned images show another part
//!   than its clean ones. An encoder that is trained here sees the images as they are trained on.
//!
//! ## Settings
//! - `target` (0): the attacker's class, for `label = "all2one"`.
//! - `ratio` (0.1): share of the training set that is poisoned, rounded to a whole number of images.
//! - `label` ("all2one"): `"all2one"` or `"all2all"`.
//! - `shift` (1): for `label = "all2all"`, class y goes to class (y + shift) mod K.
//! - `trigger.source` ("train"): `"train"`, or `"file"` for arrays that are encoded already.
//! - `trigger.folder` (""): for `"file"`, a folder with two `.npy` arrays, one with `train` and one with `test` in its
//!   name: bytes of shape [N, H, W, 3], all images of the split in their order. Only the rows that are poisoned are read.
//! - `trigger.train_file` (""), `trigger.test_file` (""): the two arrays, instead of a folder.
//! - `trigger.bits` (100): how many bits an image carries.
//! - `trigger.message_seed` (0): seed of the bits that poisoned images carry.
//! - `trigger.width` (32): channels of the first convolutions of encoder and decoder.
//! - `trigger.epochs` (20): passes of their training over the training images.
//! - `trigger.steps` (0): steps of their training; 0 for those of the epochs.
//! - `trigger.batch_size` (64): images per step; the last step of a pass has those that are left.
//! - `trigger.lr` (1e-4): learning rate of Adam.
//! - `trigger.start_accuracy` (0.9): bit accuracy of a batch from which on the image counts.
//! - `trigger.delay` (1000): steps from there to the beginning of the ramp.
//! - `trigger.ramp` (3000): steps in which the weight of the image rises.
//! - `trigger.image_weight` (10): the full weight of the image's error.
//! - `eval_every` (1): measure after every n-th epoch; 0 measures only after the last.
//! - `train.*`: the training recipe.
//!
//! The cell keeps the encoder as `encoder.safetensors`, and as `trigger.png` what it changed in the first poisoned test
//! image, times 10 on grey. The log says how well the bits can be read from the poisoned test images and how faint they
//! are; below 95 % of the bits there is a warning. An interrupted run goes on with the step that the encoder was in.
//!
//! ## Cost
//! One training run of the network, and that of the encoder: 20 times 782 steps of 64 images on CIFAR-10 with
//! the defaults, of which the last of a pass has the 16 that are left.
//! `configs/attack/ssba/short.toml` is a smaller encoder with fewer steps.
//!
//! ## References
//! - Li, Li, Wu, Li, He, Lyu: Invisible Backdoor Attack with Sample-Specific Triggers, ICCV 2021.
//! - Tancik, Mildenhall, Ng: `StegaStamp`: Invisible Hyperlinks in Physical Photographs, CVPR 2020.

pub mod arrays;
pub mod coder;
pub mod config;

use std::collections::BTreeMap;
use std::path::PathBuf;

use bb_core::data::{Dataset, Images, Split};
use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::poison::PoisonSet;
use bb_core::settings::Valid;
use bb_nn::train::Recipe;
use serde_json::json;

use crate::error::AttackError;
use crate::labels::LabelMap;
use crate::method::{Attack, Ctx, Poisoned};
use crate::picture::Picture;
use crate::static_attack;
use coder::{Coder, Quality};
use config::{Source, SsbaConfig};

/// Share of the bits that must be read from the encoded images for the encoder to count as trained.
const GOOD: f64 = 0.95;
/// Mean PSNR in dB below which what the encoder adds is plain to see in an image of 32 x 32 pixels.
const INVISIBLE: f64 = 28.0;

/// The attack, for the registry.
pub struct Ssba;

impl Attack for Ssba {
    const INFO: MethodInfo = MethodInfo {
        id: "ssba",
        title: "SSBA",
        paper: "Li et al., Invisible Backdoor Attack with Sample-Specific Triggers, ICCV 2021",
        needs: Needs::Nothing,
        status: Status::Experimental,
        summary: "hides bits in the image, in each in its own way, and relabels it",
        docs: include_str!("mod.rs"),
    };
    type Config = SsbaConfig;

    fn recipe(cfg: &SsbaConfig) -> &Recipe {
        &cfg.train
    }

    fn eval_every(cfg: &SsbaConfig) -> usize {
        cfg.eval_every
    }

    fn files(cfg: &SsbaConfig) -> Vec<(&'static str, PathBuf)> {
        match cfg.trigger.source {
            Source::Train => Vec::new(),
            Source::File => {
                let [train, test] = arrays::files(&cfg.trigger);
                vec![("trigger.train_file", train), ("trigger.test_file", test)]
            }
        }
    }

    fn check(cfg: &Valid<SsbaConfig>, dataset: &Dataset, _: u64) -> Result<(), AttackError> {
        if cfg.trigger.source == Source::File {
            return Ok(());
        }
        let (height, width) = (dataset.spec.height, dataset.spec.width);
        if height != width {
            return Err(AttackError::NotSquare { height, width });
        }
        Ok(coder::check_side(&cfg.trigger, height)?)
    }

    fn prepare(cfg: &Valid<SsbaConfig>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        let map = LabelMap::new(cfg.label, cfg.target, cfg.shift, ctx.dataset.spec.classes)?;
        static_attack::check_choice(ctx, &map, cfg.ratio)?;
        let mut poisoned = match cfg.trigger.source {
            Source::File => from_files(cfg, ctx, &map)?,
            Source::Train => encoded(cfg, ctx, &map)?,
        };
        let change = change(&ctx.dataset.test.images, &poisoned.test);
        poisoned
            .artefacts
            .push(("trigger.png".to_owned(), change.to_png()));
        Ok(poisoned)
    }
}

/// The images of the user's arrays.
fn from_files(cfg: &SsbaConfig, ctx: &Ctx<'_>, map: &LabelMap) -> Result<Poisoned, AttackError> {
    let [train, test] = arrays::files(&cfg.trigger);
    let rows = |path: PathBuf, split: &Split, name| -> Result<_, AttackError> {
        let mut array = arrays::open(&path, split, name)?;
        Ok(move |indices: &[usize]| -> Result<Vec<u8>, AttackError> {
            Ok(array.rows(indices).map_err(arrays::ArrayError::from)?)
        })
    };
    let train = rows(train, &ctx.dataset.train, "training")?;
    let test = rows(test, &ctx.dataset.test, "test")?;
    static_attack::replace(ctx, map, cfg.ratio, train, test)
}

/// The images with the message in them.
fn encoded(cfg: &SsbaConfig, ctx: &Ctx<'_>, map: &LabelMap) -> Result<Poisoned, AttackError> {
    let (train, test) = (&ctx.dataset.train, &ctx.dataset.test);
    let coder = Coder::trained(&cfg.trigger, ctx)?;
    let message = coder::message(&cfg.trigger);
    let about = BTreeMap::from([
        ("model".to_owned(), "ssba-encoder".to_owned()),
        ("width".to_owned(), cfg.trigger.width.to_string()),
        (
            "message".to_owned(),
            message
                .iter()
                .map(|&b| if b > 0.5 { '1' } else { '0' })
                .collect(),
        ),
    ]);
    let encoder = coder.encoder_file(&about)?;
    let coder = std::cell::RefCell::new(coder);
    let quality = std::cell::Cell::new(None);
    let mut poisoned = static_attack::replace(
        ctx,
        map,
        cfg.ratio,
        |indices| {
            let found = coder.borrow_mut().encode(&train.images, indices, &message);
            Ok(found?.0)
        },
        |indices| {
            let (pixels, found) = coder.borrow_mut().encode(&test.images, indices, &message)?;
            quality.set(Some(found));
            Ok(pixels)
        },
    )?;
    poisoned
        .artefacts
        .push(("encoder.safetensors".to_owned(), encoder));
    if let Some(found) = quality.get().filter(|_| !poisoned.test.is_empty()) {
        let (bits, psnr) = (100.0 * found.bit_accuracy, found.psnr);
        let say =
            format!("encoded test images: {bits:.2} % of the bits are read, PSNR {psnr:.2} dB");
        let data = json!({ "bit_accuracy": found.bit_accuracy, "psnr": psnr });
        ctx.prep.tell("encoded", &say, &data)?;
        poisoned.warnings.extend(shortcomings(&found));
    }
    Ok(poisoned)
}

/// What is wrong with a trigger that is said to be read by a network and not seen by people.
fn shortcomings(found: &Quality) -> Vec<String> {
    let (bits, psnr) = (100.0 * found.bit_accuracy, found.psnr);
    let mut said = Vec::new();
    if found.bit_accuracy < GOOD {
        said.push(format!(
            "only {bits:.2} % of the bits can be read from the encoded test images, expected {} %; \
             a longer training of the encoder (`trigger.steps`) makes a better trigger",
            100.0 * GOOD
        ));
    }
    if psnr < INVISIBLE {
        said.push(format!(
            "the trigger can be seen: the encoded test images have a PSNR of {psnr:.2} dB, expected {INVISIBLE} dB; \
             it is easier to learn than the published one, until the encoder is trained for longer (`trigger.steps`)"
        ));
    }
    said
}

/// What the attack changed in the first image, times 10 on grey; grey alone if there is none.
fn change(originals: &Images, poison: &PoisonSet) -> Picture {
    let (height, width) = (originals.height(), originals.width());
    let pixels = if poison.is_empty() {
        vec![128; height * width * 3]
    } else {
        let before = originals.image(poison.indices[0]);
        let pairs = before.iter().zip(poison.images.image(0));
        pairs
            .map(|(&a, &b)| crate::preview::magnified(a, b))
            .collect()
    };
    Picture::new(height, width, pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_that_cannot_be_read_or_can_be_seen_is_said() {
        let said = |bit_accuracy, psnr| shortcomings(&Quality { bit_accuracy, psnr });
        assert!(said(0.95, 28.0).is_empty());
        let [unread] = &said(0.949, 28.0)[..] else {
            panic!("one thing is wrong")
        };
        assert!(unread.contains("only 94.90 % of the bits"), "{unread}");
        let [seen] = &said(0.95, 27.99)[..] else {
            panic!("one thing is wrong")
        };
        assert!(
            seen.contains("a PSNR of 27.99 dB, expected 28 dB"),
            "{seen}"
        );
        assert_eq!(said(0.5, 10.0).len(), 2);
    }
}
