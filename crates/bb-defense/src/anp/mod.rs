//! # ANP: adversarial neuron pruning
//!
//! ## What it does
//! A backdoored network falls back on its backdoor as soon as its channels are perturbed, since the channels that carry
//! the backdoor are the sensitive ones. ANP trains a mask on each channel while an adversary perturbs the channels, and
//! prunes those whose mask goes down.
//!
//! ## Threat model
//! The defender has the suspect model and 5 % of the clean training images with their labels. Triggers, poison
//! indices, the target class and the test set stay unseen.
//!
//! ## Algorithm
//! 1. Each channel of a batch normalisation has a mask `M`, at first 1, and noises `N_w` and `N_b`; it counts as
//!    `gamma (M + N_w)` and `beta (1 + N_b)` -> [`crate::channels`].
//! 2. In each iteration the noises start uniform in `-eps..eps` and go `steps` times by `eps / steps` in the direction of
//!    the sign of the cross-entropy's gradient; with them fixed, SGD lowers
//!    `alpha CE(M) + (1 - alpha) CE(M, N)` over the masks alone, which stay in 0 to 1 -> [`step`].
//! 3. In a copy of the suspect model the scale of each channel whose mask is at most `prune.threshold` becomes 0; the
//!    shift stays -> [`channels::prune`].
//!
//! With `sweep = true` a model is made for each of `sweep_thresholds` as well (thresholds that prune the same channels
//! make one), and the one with the lowest attack success on the test set whose accuracy there is less than a share
//! `prune.tolerance` away from the suspect model's is `oracle`, or the suspect model where none is lower than its own: the
//! reference's rule. The defender's choice is
//! - `prune.choose = "fixed"`: `prune.threshold`.
//! - `prune.choose = "accuracy"`: the largest threshold of the sweep at which the accuracy on the clean images, as they
//!   are, is less than a share `prune.tolerance` below that of the suspect model. This is the bound within which the
//!   reference looks for the lowest attack success; a defender, who cannot look, takes the end of it, because as a
//!   rule pruning more removes more of the backdoor. The suspect model and the masks were trained on these images, so the accuracy on
//!   others may fall sooner.
//!
//! ## Differences from the authors' code
//! The reference is the benchmark's `defense/anp.py`:
//! - It takes the threshold with the lowest attack success on the poisoned test set among those that cost less than a
//!   tenth of the accuracy on the clean test set. That is an oracle, and stands in a row of this name; what a defender
//!   can do is said above.
//! - Masks are compared with thresholds after rounding to 4 decimals, as the reference writes them to a text file.
//! - The noise is not kept within `eps`: after its start and one step it may be twice as large.
//! - All passes are in train mode, and move the running statistics of the masked copy, which is dropped.
//! - It can prune by numbers of channels instead of thresholds as well; that is left out.
//!
//! Deliberately different:
//! - Batches, crops and noises are drawn from streams of our own, so they are others than PyTorch's. An image that is
//!   drawn twice for one batch is cropped alike both times.
//! - A loss that is not finite ends the run with an error.
//!
//! ## Settings
//! - `sweep` (true): make the models of `sweep_thresholds` as well, see above.
//! - `sweep_thresholds` (0 to 0.9 in steps of 0.05, the reference's 19): thresholds of the sweep, ascending.
//! - `probe_every` (5): measure the masked network after every n-th round, counted from the first; 0 measures only the
//!   pruned models.
//! - `clean.ratio` (0.05): share of the training images that the defender has.
//! - `clean.seed` (0): seed of their draw, which is that of Python's `random.sample`.
//! - `clean.index_file` (""): text file with their indices instead.
//! - `mask.iterations` (2000): steps of the masks.
//! - `mask.round` (100): steps between two rows and checkpoints; no result depends on it.
//! - `mask.batch_size` (256), `mask.augment` (true): its batches, drawn with replacement.
//! - `mask.lr` (0.01), `mask.momentum` (0.9): SGD of the masks.
//! - `mask.alpha` (0.2): weight of the loss without noise.
//! - `mask.eps` (0.4), `mask.steps` (1): start and ascent of the noise, see above.
//! - `prune.threshold` (0.2): channels whose mask is at most this are pruned.
//! - `prune.choose` ("fixed"): `"fixed"` or `"accuracy"`, see above.
//! - `prune.tolerance` (0.1): relative loss of accuracy that `"accuracy"`, and the oracle, bears.
//!
//! ## Cost
//! Three forward and backward passes for each iteration and one more for each further step of the noise, that is, over
//! 1.5 million images with the defaults; `configs/defense/anp/short.toml` has a twentieth of it. The models of
//! a sweep are in memory together, and each is measured on the whole test set.
//!
//! ## References
//! - Wu, Wang: Adversarial Neuron Pruning Purifies Backdoored Deep Models, Advances in Neural Information Processing
//!   Systems 2021, arXiv 2110.14430.

pub mod config;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::rng;
use bb_core::settings::Valid;
use bb_nn::data::{Batch, Input, LoaderOptions, gather};
use bb_nn::kernels::loss::Loss;
use bb_nn::{Flat, Mode, Net};

use self::config::{AnpConfig, MaskConfig};
use crate::channels::{self, Channels, Masks, PerChannel, Training};
use crate::context::Ctx;
use crate::data::{CleanBudget, CleanImages};
use crate::error::DefenseError;
use crate::method::{Defense, Repaired, Suspect};
use crate::recipes::{RecipeFile, recipes};
use crate::results::Oracle;

/// The defense, for the registry.
pub struct Anp;

impl Defense for Anp {
    const INFO: MethodInfo = MethodInfo {
        id: "anp",
        title: "ANP",
        paper: "Wu and Wang, Adversarial Neuron Pruning, NeurIPS 2021",
        needs: Needs::CleanFraction,
        status: Status::Matched,
        summary: "prunes channels that a mask trained against adversarial noise turns down",
        docs: include_str!("mod.rs"),
    };
    const RECIPES: &'static [RecipeFile] =
        recipes!["anp": "cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];
    type Data = CleanImages;
    type Config = AnpConfig;

    fn budget(cfg: &AnpConfig) -> CleanBudget {
        cfg.clean.clone()
    }

    fn oracle(cfg: &AnpConfig) -> Oracle {
        Oracle::LowestAsr {
            tolerance: cfg.prune.tolerance,
        }
    }

    fn revision(cfg: &AnpConfig, _: &str) -> u32 {
        // A model that was no better than the suspect could be its oracle.
        u32::from(cfg.sweep)
    }

    fn repair(
        cfg: &Valid<AnpConfig>,
        suspect: Suspect<'_, CleanImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let masks = train(cfg, &suspect, ctx)?;
        let sweep = cfg.sweep.then_some(cfg.sweep_thresholds.as_slice());
        channels::prune(&cfg.prune, sweep, masks.values(), &suspect, ctx)
    }
}

/// The losses of an iteration, in the order in which they are computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Losses {
    /// Cross-entropy before each step of the noise.
    pub noise: Vec<Loss>,
    /// Cross-entropy with the noise.
    pub robust: Loss,
    /// Cross-entropy without it.
    pub natural: Loss,
}

/// Moves the noise up its gradient, and gives the losses and the gradient by the masks of
/// `alpha natural + (1 - alpha) robust`.
///
/// `grads` is memory for gradients. The network is left with the masks' scales and without noise.
pub fn step(
    cfg: &MaskConfig,
    net: &mut Net,
    (channels, masks): (&Channels, &[f32]),
    noise: &mut PerChannel,
    (input, labels): (&Input, &[u32]),
    grads: &mut Flat,
) -> (Losses, Vec<f32>) {
    let length = (cfg.eps / cfg.steps.max(1) as f64) as f32;
    let mut climbed = Vec::with_capacity(cfg.steps);
    for _ in 0..cfg.steps {
        channels.apply(net, masks, Some(noise));
        climbed.push(net.loss_grad(input, labels, Mode::Train, grads));
        noise.ascend(&channels.gradient(grads), length);
    }
    channels.apply(net, masks, Some(noise));
    let robust = net.loss_grad(input, labels, Mode::Train, grads);
    let with = channels.gradient(grads).scale;
    channels.apply(net, masks, None);
    let natural = net.loss_grad(input, labels, Mode::Train, grads);
    let without = channels.gradient(grads).scale;
    let (alpha, rest) = (cfg.alpha as f32, (1.0 - cfg.alpha) as f32);
    let pairs = without.iter().zip(&with);
    let gradient = pairs
        .map(|(without, with)| alpha * without + rest * with)
        .collect();
    let losses = Losses {
        noise: climbed,
        robust,
        natural,
    };
    (losses, gradient)
}

/// The images of an iteration's batch, drawn with replacement.
fn drawn(seed: u64, iteration: usize, images: usize, batch_size: usize) -> Vec<usize> {
    let mut stream = rng::stream(seed, "anp/batch", iteration as u64, 0);
    (0..batch_size)
        .map(|_| rng::below(&mut stream, images as u64) as usize)
        .collect()
}

/// The masks of the suspect model's channels.
fn train(
    cfg: &AnpConfig,
    suspect: &Suspect<'_, CleanImages>,
    ctx: &mut Ctx<'_>,
) -> Result<Masks, DefenseError> {
    let mask = &cfg.mask;
    let mut net = suspect.net()?;
    let channels = Channels::of(&net)?;
    let (clean, task, seed) = (suspect.clean(), suspect.task(), ctx.seed());
    let options = LoaderOptions {
        batch_size: mask.batch_size,
        shuffle: false,
        drop_last: false,
        augment: mask.augment,
        seed,
        purpose: "anp/mask",
    };
    let batches = |round: usize| {
        let first = round * mask.round;
        let last = (first + mask.round).min(mask.iterations);
        (first..last).map(move |iteration| {
            let drawn = drawn(seed, iteration, clean.len(), mask.batch_size);
            gather(clean, task, &options, iteration as u64, &drawn)
        })
    };
    let mut grads = net.zeros();
    let gradient =
        |net: &mut Net, masks: &[f32], batch: &Batch, (round, step_of_it): (usize, usize)| {
            let iteration = (round * mask.round + step_of_it) as u64;
            let mut noise =
                PerChannel::uniform(&channels, mask.eps, (seed, "anp/noise", iteration));
            let data = (&batch.input, batch.labels.as_slice());
            let masked = (&channels, masks);
            let (losses, gradient) = step(mask, net, masked, &mut noise, data, &mut grads);
            let (natural, robust) = (losses.natural, losses.robust);
            let mean = cfg.mask.alpha * f64::from(natural.mean)
                + (1.0 - cfg.mask.alpha) * f64::from(robust.mean);
            let loss = Loss {
                mean: mean as f32,
                correct: natural.correct,
            };
            (loss, gradient)
        };
    let part = Training {
        stage: "mask",
        rounds: mask.iterations.div_ceil(mask.round),
        steps: mask.iterations,
        lr: mask.lr,
        momentum: mask.momentum,
        probe_every: cfg.probe_every,
    };
    channels::train(&part, &mut net, &channels, batches, gradient, ctx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_drawn_with_replacement() {
        let (images, size, iterations) = (50, 50, 400);
        let mut counts = vec![0; images];
        let mut distinct = 0;
        for iteration in 0..iterations {
            let mut batch = drawn(3, iteration, images, size);
            assert_eq!(batch.len(), size);
            for &i in &batch {
                counts[i] += 1;
            }
            batch.sort_unstable();
            batch.dedup();
            distinct += batch.len();
        }
        // Of n draws with replacement among n images, 1 - (1 - 1/n)^n are different ones: 0.636 for 50.
        let share = distinct as f64 / (size * iterations) as f64;
        assert!((share - 0.636).abs() < 0.01, "{share}");
        // 400 of each, with a deviation of 20.
        assert!(counts.iter().all(|n| (300..500).contains(n)), "{counts:?}");
        assert_ne!(drawn(3, 0, images, size), drawn(3, 1, images, size));
        assert_eq!(drawn(3, 0, 2, 9).len(), 9, "more than there are images");
    }
}
