//! # BadNets: a patch in the corner
//!
//! ## What it does
//! Overwrites a small patch of a tenth of the training images and labels them as the attacker's class.
//! The network learns that the patch alone decides: any image that carries it goes to that class.
//!
//! ## Threat model
//! The attacker may change pixels and labels of a share `ratio` of the training set, before training, and nothing else:
//! not the training code, not the test images of the owner.
//!
//! ## Algorithm
//! 1. Choose `round(ratio * N)` of the N training images, the target class included -> [`crate::poison_index`].
//! 2. Draw the patch on black and resize it to the dataset -> [`trigger::draw`].
//! 3. Wherever the drawn trigger is above 0, overwrite the image with it -> [`trigger::apply`].
//! 4. Relabel (`all2one`: the target class; `all2all`: the next class) -> [`crate::labels`].
//! 5. Train on the mixed set with the ordinary augmentation, which comes after the trigger: the patch may be mirrored,
//!    and cropped away in part or entirely.
//!
//! ## Differences from the authors' code
//! The reference is BackdoorBench (`attack/badnet.py`), whose choices are the defaults here.
//! - The patch is drawn by rule instead of being read from a picture; at 32 x 32 pixels the bytes are equal.
//! - `trigger.scaling = "resize"` does what the bench does on other sizes: the patch is drawn at 32 x 32 and resized
//!   with Pillow's bilinear filter, so on 64 x 64 it is a soft block of 7 x 7 with a dark rim instead of a crisp one.
//!   `"native"` draws it at the dataset's size.
//! - Black cannot be painted: 0 means "leave the pixel alone", so the dark fields of the grid are 1.
//!
//! ## Settings
//! - `target` (0): the attacker's class, for `label = "all2one"`.
//! - `ratio` (0.1): share of the training set that is poisoned, rounded to a whole number of images.
//! - `label` ("all2one"): `"all2one"` or `"all2all"`.
//! - `shift` (1): for `label = "all2all"`, class y goes to class (y + shift) mod K.
//! - `trigger.file` (""): a PNG or JPEG picture to use instead of the drawn patch; it is resized to the dataset, and
//!   the settings below are not used.
//! - `trigger.pattern` ("solid"): `"solid"` or `"grid"` (a checkerboard).
//! - `trigger.position` ("lower-right"): a corner, or `"centre"`.
//! - `trigger.size` (3), `trigger.margin` (0): side and distance from the edges in pixels.
//! - `trigger.value` (255): grey level, 1 to 255.
//! - `trigger.scaling` ("resize"): `"resize"` or `"native"`, see above.
//! - `eval_every` (1): measure after every n-th epoch; 0 measures only after the last.
//! - `train.*`: the training recipe.
//!
//! ## Cost
//! One training run of the network; the poisoning itself takes less than a second.
//!
//! ## References
//! - Gu, Dolan-Gavitt, Garg: BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain,
//!   arXiv 1708.06733, 2017.
//! - Gu, Liu, Dolan-Gavitt, Garg: BadNets: Evaluating Backdooring Attacks on Deep Neural Networks, IEEE Access, 2019.

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
use config::{BadNetsConfig, Scaling};
use trigger::BASE_SIDE;

/// The attack, for the registry.
pub struct BadNets;

impl Attack for BadNets {
    const INFO: MethodInfo = MethodInfo {
        id: "badnets",
        title: "BadNets",
        paper: "Gu et al., BadNets, arXiv 1708.06733, 2017",
        needs: Needs::Nothing,
        status: Status::Matched,
        summary: "overwrites a small patch of the image and relabels it",
        docs: include_str!("mod.rs"),
    };
    type Config = BadNetsConfig;

    fn recipe(cfg: &BadNetsConfig) -> &Recipe {
        &cfg.train
    }

    fn eval_every(cfg: &BadNetsConfig) -> usize {
        cfg.eval_every
    }

    fn files(cfg: &BadNetsConfig) -> Vec<(&'static str, PathBuf)> {
        crate::settings::optional_file("trigger.file", &cfg.trigger.file)
    }

    fn prepare(cfg: &Valid<BadNetsConfig>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        let spec = &ctx.dataset.spec;
        let map = LabelMap::new(cfg.label, cfg.target, cfg.shift, spec.classes)?;
        let picture = picture(cfg, spec.height, spec.width)?;
        let apply = |image: &mut [u8]| trigger::apply(image, picture.pixels());
        let mut poisoned = static_attack::poison(ctx, &map, cfg.ratio, apply, apply)?;
        poisoned
            .artefacts
            .push(("trigger.png".to_owned(), picture.to_png()));
        Ok(poisoned)
    }
}

/// The trigger at the size of the dataset, drawn or read from the user's file.
pub fn picture(cfg: &BadNetsConfig, height: usize, width: usize) -> Result<Picture, AttackError> {
    let trigger = &cfg.trigger;
    if !trigger.file.is_empty() {
        let picture = Picture::read(Path::new(&trigger.file))?.resized(height, width);
        if picture.pixels().iter().all(|&v| v == 0) {
            return Err(AttackError::BlackTrigger {
                path: PathBuf::from(&trigger.file),
            });
        }
        return Ok(picture);
    }
    let (base_height, base_width) = match trigger.scaling {
        Scaling::Resize => (BASE_SIDE, BASE_SIDE),
        Scaling::Native => (height, width),
    };
    let patch = trigger.patch();
    let drawn =
        trigger::draw(&patch, base_height, base_width).ok_or(AttackError::PatchTooLarge {
            size: patch.size,
            margin: patch.margin,
            height: base_height,
            width: base_width,
        })?;
    Ok(drawn.resized(height, width))
}
