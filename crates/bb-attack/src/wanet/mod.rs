//! # WaNet: a smooth warp that the eye does not see
//!
//! ## What it does
//! Bends a part of each training batch by one smooth field of displacements and labels it as the attacker's class.
//! More images of the batch are bent by the same field with noise on top and keep their labels, so that the network learns
//! this warp and no other.
//! No colour and no pattern is added, which is why a person hardly notices anything.
//!
//! ## Threat model
//! The attacker trains the network and hands it over: images and labels of every batch are theirs.
//!
//! ## Algorithm
//! 1. Draw `k * k` displacements in -1 to 1, divide them by their mean size, make them smooth at the size of the images
//!    (bicubic, corners aligned) -> [`trigger::smooth`].
//! 2. `grid = clamp((identity + s * noise / H) * grid_rescale, -1, 1)` -> [`trigger::Field`].
//! 3. Of each batch of B images the first `floor(ratio * B)` are sampled by the grid (bilinear) and relabelled; the next
//!    `cross` times as many by `clamp(grid + u / H, -1, 1)` with u uniform in -1 to 1 for each pixel and image, and
//!    keep their labels; all on normalised values -> [`hook`].
//! 4. Augment the assembled batch: with probability 0.8 a crop after 5 pixels of padding, with 0.5 a turn of up to 10
//!    degrees (nearest pixels), with 0.5 a mirror image where the dataset allows it -> [`augment`].
//! 5. Minimise the cross-entropy of the batch.
//! 6. Warped test images measure the attack.
//!
//! ## Differences from the authors' code
//! The reference is BackdoorBench (`attack/wanet.py`), whose choices are the defaults here but for `rounding`.
//! - `rounding = "nearest"`: test images become 8-bit by rounding. The bench truncates after a round trip through the
//!   normalisation, so that even pixels that no warp moves lose a level (13 to 35 % of the levels, none on GTSRB):
//!   `"truncate"`. Scores move little.
//! - `augmentation = "batch"`: as in the bench one crop, turn and mirror decision serves all images of a batch. The bench
//!   came to that when it replaced the authors' kornia by torchvision, which takes a batch for one picture.
//!   `"image"` is the authors' way: whether to crop and to turn is drawn for the batch, places, angles and mirror images
//!   for each image; of a batch that is turned only half of the images are, because kornia's rotation has a probability
//!   of its own, and bilinearly. In both, what comes in from outside is 0 after normalisation, the mean colour.
//!   `train.augment = false` switches both off.
//! - The recipes have the bench's schedule, whose first milestone is epoch 100: the rate is constant for as long as the
//!   bench trains on CIFAR-10, CIFAR-100 and GTSRB. Accuracy is lower and noisier than with a cosine schedule.
//! - `floor(0.1 * 128)` is 12, so that 9.4 % of the images are backdoored and not 10; a batch of fewer than `1 / ratio`
//!   images has one with probability `ratio * B`. As in the bench.
//! - The bench marks noisy images as poisoned beside backdoored ones. Here `poison_train.safetensors` has the backdoored
//!   ones, and `cross_train.safetensors` (same format) the noisy ones, whose labels are true. Both show the first images
//!   of each `train.batch_size` in the dataset's order: which images are poisoned changes with every epoch.
//! - The noisy test images of the bench and their accuracy are left out.
//!
//! ## Settings
//! - `target` (0): the attacker's class, for `label = "all2one"`.
//! - `ratio` (0.1): share of each batch that is warped and relabelled.
//! - `cross` (2.0): images warped with noise for each of those; `ratio * (1 + cross)` is at most 1.
//! - `label` ("all2one"): `"all2one"` or `"all2all"`.
//! - `shift` (1): for `label = "all2all"`, class y goes to class (y + shift) mod K.
//! - `rounding` ("nearest"): how warped images become 8-bit, `"nearest"` or `"truncate"`.
//! - `augmentation` ("batch"): whether crop, turn and mirror are drawn per `"batch"`, as in the bench, or per `"image"`, as
//!   by the authors.
//! - `trigger.k` (4): places of the field along each side, 2 to 64; more of them bend more finely.
//! - `trigger.s` (0.5): strength of the warp; 0.5 moves a pixel of a 32 x 32 image by a quarter on average.
//! - `trigger.grid_rescale` (1.0): factor on the whole grid; below 1 it enlarges the middle of the image.
//! - `eval_every` (1): measure after every n-th epoch; 0 measures only after the last.
//! - `train.*`: the training recipe.
//!
//! The cell keeps the grid as `trigger.npy`, exactly, and what it does to a net of lines as `trigger.png`.
//!
//! ## Cost
//! One training run of the network, whose batches are assembled, warped and augmented on the host.
//! CIFAR-10 at width 16 with 6 epochs of the short recipe: ACC 73.1 %, ASR 80.8 % (seed 0, rising until the end).
//!
//! ## References
//! - Nguyen, Tran: WaNet, Imperceptible Warping-based Backdoor Attack, ICLR 2021.

pub mod augment;
pub mod config;
pub mod hook;
pub mod trigger;

use std::path::PathBuf;

use bb_core::data::Dataset;
use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::poison::PoisonSet;
use bb_core::settings::Valid;
use bb_nn::train::Recipe;

use crate::error::AttackError;
use crate::in_loop::{plain_input, poison_set, recorded, to_images};
use crate::labels::LabelMap;
use crate::method::{Attack, Ctx, Poisoned};
use crate::picture::Picture;
use crate::{npy, poison_index};
use config::{Augmentation, WanetConfig};
use hook::WanetHook;
use trigger::Field;

/// The attack, for the registry.
pub struct Wanet;

impl Attack for Wanet {
    const INFO: MethodInfo = MethodInfo {
        id: "wanet",
        title: "WaNet",
        paper: "Nguyen and Tran, WaNet, ICLR 2021",
        needs: Needs::Nothing,
        status: Status::Matched,
        summary: "bends images smoothly inside the training loop and relabels them",
        docs: include_str!("mod.rs"),
    };
    type Config = WanetConfig;
    const IN_LOOP: bool = true;

    fn recipe(cfg: &WanetConfig) -> &Recipe {
        &cfg.train
    }

    fn eval_every(cfg: &WanetConfig) -> usize {
        cfg.eval_every
    }

    fn revision(cfg: &WanetConfig) -> u32 {
        // The images of a batch decided one by one.
        u32::from(cfg.augmentation == Augmentation::Image)
    }

    fn files(_: &WanetConfig) -> Vec<(&'static str, PathBuf)> {
        Vec::new()
    }

    fn check(cfg: &Valid<WanetConfig>, dataset: &Dataset, seed: u64) -> Result<(), AttackError> {
        hook::counts(cfg, seed, dataset.train.len()).check(cfg.ratio, &cfg.train)
    }

    fn prepare(cfg: &Valid<WanetConfig>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        let spec = &ctx.dataset.spec;
        let map = LabelMap::new(cfg.label, cfg.target, cfg.shift, spec.classes)?;
        let field = field(cfg, ctx.seed, (spec.height, spec.width));
        let (train, cross) = training_record(cfg, ctx, &field, &map)?;

        let split = &ctx.dataset.test;
        let indices = poison_index::test(&split.labels, &map)?;
        let mut input = plain_input(split, spec, &indices);
        input.data = field.warp(&input.data);
        let images = to_images(&input, spec, cfg.rounding)?;
        let test = poison_set(split, indices, images, Some(&map))?;

        let counts = hook::counts(cfg, ctx.seed, ctx.dataset.train.len());
        let picture = Picture::new(spec.height, spec.width, field.picture());
        let shape = [spec.height, spec.width, 2];
        Ok(Poisoned {
            train,
            test,
            artefacts: vec![
                (
                    "trigger.npy".to_owned(),
                    npy::to_bytes(&shape, field.grid()),
                ),
                ("trigger.png".to_owned(), picture.to_png()),
                ("cross_train.safetensors".to_owned(), cross.to_bytes()),
            ],
            warnings: counts.warnings(cfg.ratio),
            hook: Some(Box::new(WanetHook {
                cfg: (**cfg).clone(),
                map,
                field,
                flip: spec.flip,
                seed: ctx.seed,
                counts,
            })),
        })
    }
}

/// The field of a run.
pub fn field(cfg: &WanetConfig, seed: u64, size: (usize, usize)) -> Field {
    let k = cfg.trigger.k;
    let noise = trigger::smooth(&trigger::draw(seed, k), k, size);
    let (s, rescale) = (cfg.trigger.s as f32, cfg.trigger.grid_rescale as f32);
    Field::new(&noise, size, s, rescale)
}

/// The backdoored and the noisy images that stand for the attack in the cell.
fn training_record(
    cfg: &WanetConfig,
    ctx: &Ctx<'_>,
    field: &Field,
    map: &LabelMap,
) -> Result<(PoisonSet, PoisonSet), AttackError> {
    let (split, spec) = (&ctx.dataset.train, &ctx.dataset.spec);
    let shares = (cfg.ratio, cfg.cross);
    let stream = (ctx.seed, "wanet/record");
    let (backdoored, cross) = recorded(split.len(), cfg.train.batch_size, shares, stream);

    let mut input = plain_input(split, spec, &backdoored);
    input.data = field.warp(&input.data);
    let images = to_images(&input, spec, cfg.rounding)?;
    let train = poison_set(split, backdoored, images, Some(map))?;

    let mut input = plain_input(split, spec, &cross);
    let noise = trigger::disturbance(stream, 0, &cross, field.grid().len());
    input.data = field.warp_disturbed(&input.data, &noise);
    let images = to_images(&input, spec, cfg.rounding)?;
    Ok((train, poison_set(split, cross, images, None)?))
}
