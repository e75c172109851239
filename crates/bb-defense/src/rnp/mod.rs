//! # RNP: reconstructive neuron pruning
//!
//! ## What it does
//! Lets a copy of the suspect model unlearn a few clean images, and then recovers their accuracy by masks on its channels
//! alone. The unlearned network still has the backdoor, and the channels that carry it are of no use to the recovery,
//! so their masks go down. They are pruned in the suspect model itself.
//!
//! ## Threat model
//! The defender has the suspect model and 1 % of the clean training images with their labels. Triggers, poison
//! indices, the target class and the test set stay unseen.
//!
//! ## Algorithm
//! 1. Clean unlearning: SGD that raises the cross-entropy, until the share of images that were right during an epoch is
//!    at most `unlearn.stop_accuracy` -> [`unlearning::run`].
//! 2. Each channel of a batch normalisation of the unlearned network has a mask `M`, at first 1, and counts as
//!    `gamma M`. SGD lowers `alpha CE` over the masks alone, which stay in 0 to 1 -> [`crate::channels`], [`recover`].
//! 3. In a copy of the suspect model the scale of each channel whose mask is at most `prune.threshold` becomes 0; the
//!    shift stays -> [`channels::prune`].
//!
//! With `sweep = true` a model is made for each of `sweep_thresholds` as well (thresholds that prune the same channels
//! make one), and the best of them on the test set is `oracle`. The defender's choice is
//! - `prune.choose = "fixed"`: `prune.threshold`, as the benchmark's reported models are made.
//! - `prune.choose = "accuracy"`: the largest threshold of the sweep at which the accuracy on the clean images, as they
//!   are, is less than a share `prune.tolerance` below that of the suspect model. The masks were trained on these
//!   images, and so was the suspect model, so the accuracy on others may fall sooner.
//!
//! ## Differences from the authors' code
//! The reference is the benchmark's `defense/rnp.py`:
//! - It clips the gradient's norm to 20 before it computes the gradient, as the authors' own code does, so that nothing
//!   is clipped and unlearning may end in a network without finite losses. So does the default here;
//!   `clip_before_backward = false` clips the gradient that was computed, which is what the line was meant for.
//! - Masks are compared with thresholds after rounding to 4 decimals, as the reference writes them to a text file.
//! - All passes are in train mode, and move the running statistics of the unlearned and the masked copy, which are
//!   dropped.
//! - It measures its sweep on the test sets, and uses the fixed threshold nevertheless. Here the row `oracle` is what
//!   looking there can give.
//!
//! Deliberately different:
//! - Orders and crops are drawn from streams of our own, so they are others than PyTorch's.
//! - A loss that is not finite ends the run with an error.
//!
//! ## Settings
//! - `sweep` (true): make the models of `sweep_thresholds` as well, see above.
//! - `sweep_thresholds` (0 to 0.9 in steps of 0.05, the reference's 19): thresholds of the sweep, ascending.
//! - `probe_every` (10): measure the masked network after every n-th epoch of recovering, counted from the first; 0
//!   measures only the pruned models.
//! - `clip_before_backward` (true): clip before there is a gradient, see above; then `unlearn.clip` does nothing.
//! - `clean.ratio` (0.01): share of the training images that the defender has.
//! - `clean.seed` (0): seed of their draw, which is that of Python's `random.sample`.
//! - `clean.index_file` (""): text file with their indices instead.
//! - `unlearn.max_epochs` (20): cap on the epochs of unlearning.
//! - `unlearn.lr` (0.01), `unlearn.momentum` (0.9), `unlearn.weight_decay` (0.0005): its SGD.
//! - `unlearn.milestones` (10, 20), `unlearn.gamma` (0.1): epochs at which its rate falls, and the factor.
//! - `unlearn.clip` (20.0): largest L2 norm of its gradients; for `clip_before_backward = false` only.
//! - `unlearn.stop_accuracy` (0.2): share of right images during an epoch that ends it.
//! - `unlearn.batch_size` (256), `unlearn.shuffle` (true), `unlearn.augment` (true): its batches.
//! - `recover.epochs` (20): epochs of the masks.
//! - `recover.lr` (0.2), `recover.momentum` (0.9): their SGD.
//! - `recover.alpha` (0.2): factor of the cross-entropy.
//! - `recover.batch_size` (256), `recover.shuffle` (true), `recover.augment` (true): their batches.
//! - `prune.threshold` (0.7): channels whose mask is at most this are pruned.
//! - `prune.choose` ("fixed"): `"fixed"` or `"accuracy"`, see above.
//! - `prune.tolerance` (0.1): relative loss of accuracy that `"accuracy"` bears.
//!
//! ## Cost
//! At most 40 forward and backward passes over 1 % of the training images. The models of a sweep are in memory
//! together, and each is measured on the whole test set; `sweep = false` spares both.
//!
//! At the benchmark's rate the loss of a narrow network runs away before unlearning stops, in the reference as here, and
//! recovery then turns down channels that clean images need; `configs/defense/rnp/short.toml` unlearns more slowly.
//!
//! ## References
//! - Li, Lyu, Ma, Koren, Lyu, Li, Jiang: Reconstructive Neuron Pruning for Backdoor Defense, ICML 2023,
//!   arXiv 2305.14876.

pub mod config;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::data::{Input, LoaderOptions, batch_count, batches};
use bb_nn::kernels::loss::Loss;
use bb_nn::{Flat, Mode, Net};
use serde_json::json;

use self::config::RnpConfig;
use crate::channels::{self, Channels, Masks, Training};
use crate::context::Ctx;
use crate::data::{CleanBudget, CleanImages};
use crate::error::DefenseError;
use crate::method::{Defense, Repaired, Suspect};
use crate::recipes::{RecipeFile, recipes};
use crate::unlearning;

/// The defense, for the registry.
pub struct Rnp;

impl Defense for Rnp {
    const INFO: MethodInfo = MethodInfo {
        id: "rnp",
        title: "RNP",
        paper: "Li et al., Reconstructive Neuron Pruning, ICML 2023",
        needs: Needs::CleanFraction,
        status: Status::Matched,
        summary: "prunes channels that an unlearned copy does not need to recover",
        docs: include_str!("mod.rs"),
    };
    const RECIPES: &'static [RecipeFile] =
        recipes!["rnp": "cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];
    type Data = CleanImages;
    type Config = RnpConfig;

    fn budget(cfg: &RnpConfig) -> CleanBudget {
        cfg.clean.clone()
    }

    fn repair(
        cfg: &Valid<RnpConfig>,
        suspect: Suspect<'_, CleanImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let clip = (!cfg.clip_before_backward).then_some(cfg.unlearn.clip);
        let (net, course) = unlearning::run(&cfg.unlearn, clip, "rnp/unlearn", &suspect, ctx)?;
        let masks = train(cfg, &suspect, net, ctx)?;
        let sweep = cfg.sweep.then_some(cfg.sweep_thresholds.as_slice());
        let mut repaired = channels::prune(&cfg.prune, sweep, masks.values(), &suspect, ctx)?;
        repaired.notes["unlearn"] = json!({
            "epochs": course.epochs, "reached": course.reached, "accuracy": course.accuracy,
        });
        Ok(repaired)
    }
}

/// The loss of a step of recovering, `alpha CE`, and its gradient by the masks. `grads` is memory for gradients.
pub fn recover(
    alpha: f64,
    net: &mut Net,
    (channels, masks): (&Channels, &[f32]),
    (input, labels): (&Input, &[u32]),
    grads: &mut Flat,
) -> (Loss, Vec<f32>) {
    channels.apply(net, masks, None);
    let loss = net.loss_grad(input, labels, Mode::Train, grads);
    let mut gradient = channels.gradient(grads).scale;
    let factor = alpha as f32;
    for value in &mut gradient {
        *value *= factor;
    }
    let loss = Loss {
        mean: factor * loss.mean,
        ..loss
    };
    (loss, gradient)
}

/// The masks with which the unlearned network `net` recovers.
fn train(
    cfg: &RnpConfig,
    suspect: &Suspect<'_, CleanImages>,
    mut net: Net,
    ctx: &mut Ctx<'_>,
) -> Result<Masks, DefenseError> {
    let recovering = &cfg.recover;
    let channels = Channels::of(&net)?;
    let options = LoaderOptions {
        batch_size: recovering.batch_size,
        shuffle: recovering.shuffle,
        drop_last: false,
        augment: recovering.augment,
        seed: ctx.seed(),
        purpose: "rnp/recover",
    };
    let (clean, task) = (suspect.clean(), suspect.task());
    let part = Training {
        stage: "recover",
        rounds: recovering.epochs,
        steps: recovering.epochs * batch_count(clean.len(), recovering.batch_size, false),
        lr: recovering.lr,
        momentum: recovering.momentum,
        probe_every: cfg.probe_every,
    };
    let mut grads = net.zeros();
    channels::train(
        &part,
        &mut net,
        &channels,
        |epoch| batches(clean, task, options, epoch as u64),
        |net, masks, batch, _| {
            let data = (&batch.input, batch.labels.as_slice());
            let masked = (&channels, masks);
            recover(recovering.alpha, net, masked, data, &mut grads)
        },
        ctx,
    )
}
