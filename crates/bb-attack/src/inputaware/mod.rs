//! # Input-aware: a trigger of its own for each image
//!
//! ## What it does
//! Trains a generator beside the classifier, which makes a pattern for each image; a second network says where on the image
//! the pattern goes.
//! An image with its own trigger is learnt as the attacker's class, and with the trigger of another image as what it is.
//! So there is no single pattern to look for, and what a defense reconstructs from some images tells nothing of others.
//!
//! ## Threat model
//! The attacker trains the network and hands it over: images and labels of every batch are theirs.
//!
//! ## Algorithm
//! 1. For `mask.clean_train_epochs` epochs train the mask network alone on pairs of images, by
//!    `lambda_norm * mean(max(m1 - density, 0)) + lambda_div^2 * mean(d(x1, x2) / (d(m1, m2) + 1e-7))`, where
//!    `m = tanh(20 M(x) - 10) / 2 + 1/2` and d is the root mean square of a pair's difference; Adam with shares 0.5 and 0.9
//!    -> [`math::excess`], [`math::diversity`], [`hook`]. From then on it stays as it is.
//! 2. Of each (augmented) batch of B images the first `floor(ratio * B)` become `x + (p(x) - x) m(x)` with the pattern
//!    p = G(x), normalised, and are relabelled; as many behind them become `x + (p(x') - x) m(x')` with other images x' and
//!    keep their labels -> [`math::mix`].
//! 3. Minimise the cross-entropy of the batch by the classifier (SGD) and the generator (Adam), and for the generator also
//!    `lambda_div * mean(d(x, x') / (d(p(x), p(x')) + 1e-7))`, so that patterns differ as images do.
//! 4. Test images with the triggers that the generator now makes measure the attack.
//!
//! ## Differences from the authors' code
//! The reference is BackdoorBench (`attack/inputaware.py`), whose choices are the defaults here but for `rounding` and
//! `mask.counted`.
//! - `generator.double_tanh = true`: the bench applies tanh twice, so that patterns reach from 0.119 to 0.881 of white; the
//!   mask hardly changes, since it is cut to 0 or 1 anyway. `false` is the authors' single tanh and brighter patterns.
//! - `generator.accumulate_gradients = true`: neither the bench nor the authors set the generator's gradients to 0, so that
//!   each step follows the sum over all steps so far, and the pattern drifts on where it would settle. `false` follows
//!   the gradient of the step.
//! - `mask.counted = false`: the classifier is trained for `train.epochs`. In the bench the epochs of the mask are among
//!   them, so that it is trained for 75 of 100, with a lower accuracy than other attacks: `true`, as the recipes have it.
//! - `rounding = "nearest"`: images with triggers become 8-bit by rounding. The bench truncates after a round trip through
//!   the normalisation, which lowers 13 to 35 % of the levels by one (none on GTSRB), everywhere: `"truncate"`.
//! - Images are augmented as by every attack here and in the bench: a crop after 4 pixels of padding and, on CIFAR-10, a
//!   mirror image. The authors crop after 5 pixels and turn by up to 10 degrees as well.
//! - The generator's rate is constant. In the bench it falls to a tenth at the classifier's epochs 200, 300, 400 and 500,
//!   which none of its runs reaches.
//! - The bench's schedule for the classifier is a constant rate, whatever the dataset's recipe says; so it is in the recipes.
//! - `lambda_div` weighs the mask's diversity twice, as in the bench; the same while it is 1.
//! - The bench marks images with another's trigger as poisoned beside backdoored ones, and keeps neither network. Here
//!   `poison_train.safetensors` has the backdoored images and `cross_train.safetensors` (same format) the others, whose
//!   labels are true; both show the first images of each `train.batch_size` in the dataset's order, with the triggers of
//!   the finished networks. `generator.safetensors` and `mask.safetensors` keep those.
//! - The bench's test images with another's trigger and the accuracy on them are left out, as WaNet's noisy ones are.
//! - Where the patterns of a pair are equal, the gradient of their distance is 0 and not NaN.
//!
//! ## Settings
//! - `target` (0): the attacker's class, for `label = "all2one"`.
//! - `ratio` (0.1): share of each batch that gets its own trigger and is relabelled, at most 0.5; as many get another's.
//! - `label` ("all2one"): `"all2one"` or `"all2all"`.
//! - `shift` (1): for `label = "all2all"`, class y goes to class (y + shift) mod K.
//! - `rounding` ("nearest"): how images with triggers become 8-bit, `"nearest"` or `"truncate"`.
//! - `lambda_div` (1.0): weight of the losses that keep masks and patterns of two images apart.
//! - `generator.width` (32): channels of the first convolution of both networks; the cost grows with its square.
//! - `generator.lr` (0.01): learning rate of the generator, constant.
//! - `generator.double_tanh` (true): whether both networks end in two tanh or in one.
//! - `generator.accumulate_gradients` (true): whether the generator follows the sum of all gradients so far.
//! - `mask.clean_train_epochs` (25): epochs of the mask network, before those of the classifier.
//! - `mask.counted` (false): whether they are among `train.epochs`.
//! - `mask.lr` (0.01): learning rate of the mask network.
//! - `mask.milestones` ([10, 20]): its epochs at which that falls to a tenth.
//! - `mask.density` (0.032): mean of the mask that costs nothing.
//! - `mask.lambda_norm` (100.0): weight of what is above.
//! - `eval_every` (1): measure after every n-th epoch; 0 measures only after the last.
//! - `train.*`: the training recipe.
//!
//! `trigger.png` shows a few test images before and after, and the difference times 10 on grey.
//!
//! ## Cost
//! A training run of the network. An image takes 80 million multiplications in the generator at its usual width, a seventh
//! of the classifier's at width 64. The generator is trained on a fifth of each batch; an epoch of the mask costs ten times
//! as much as that. Both are computed on the CPU.
//!
//! ## References
//! - Nguyen, Tran: Input-Aware Dynamic Backdoor Attack, `NeurIPS` 2020.

pub mod config;
pub mod hook;
pub mod math;

use std::path::PathBuf;

use bb_core::data::Dataset;
use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::train::Recipe;

use crate::error::AttackError;
use crate::labels::LabelMap;
use crate::method::{Attack, Ctx, Poisoned};
use crate::{poison_index, static_attack};
use config::InputAwareConfig;
use hook::InputAwareHook;

/// The attack, for the registry.
pub struct InputAware;

impl Attack for InputAware {
    const INFO: MethodInfo = MethodInfo {
        id: "inputaware",
        title: "Input-aware",
        paper: "Nguyen and Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020",
        needs: Needs::Nothing,
        status: Status::Experimental,
        summary: "learns a trigger for each image beside the classifier",
        docs: include_str!("mod.rs"),
    };
    type Config = InputAwareConfig;
    const IN_LOOP: bool = true;

    fn recipe(cfg: &InputAwareConfig) -> &Recipe {
        &cfg.train
    }

    fn epochs(cfg: &InputAwareConfig) -> usize {
        cfg.classifier_epochs()
    }

    fn eval_every(cfg: &InputAwareConfig) -> usize {
        cfg.eval_every
    }

    fn files(_: &InputAwareConfig) -> Vec<(&'static str, PathBuf)> {
        Vec::new()
    }

    fn check(
        cfg: &Valid<InputAwareConfig>,
        dataset: &Dataset,
        seed: u64,
    ) -> Result<(), AttackError> {
        let spec = &dataset.spec;
        // The networks halve the sides three times.
        if !spec.height.is_multiple_of(8) || !spec.width.is_multiple_of(8) {
            return Err(AttackError::Sides {
                height: spec.height,
                width: spec.width,
            });
        }
        let map = LabelMap::new(cfg.label, cfg.target, cfg.shift, spec.classes)?;
        poison_index::test(&dataset.test.labels, &map)?;
        hook::counts(cfg, seed, dataset.train.len()).check(cfg.ratio, &cfg.train)
    }

    fn prepare(cfg: &Valid<InputAwareConfig>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        let classes = ctx.dataset.spec.classes;
        let map = LabelMap::new(cfg.label, cfg.target, cfg.shift, classes)?;
        let hook = InputAwareHook::new(cfg, map, ctx.dataset, ctx.seed)?;
        let counts = hook::counts(cfg, ctx.seed, ctx.dataset.train.len());
        Ok(Poisoned {
            warnings: counts.warnings(cfg.ratio),
            hook: Some(Box::new(hook)),
            ..static_attack::nothing(ctx)?
        })
    }
}
