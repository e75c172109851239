//! Stage 1c and 2: the zeroed copy of the suspect model and its activeness-aware fine-tuning.

use bb_core::data::Split;
use bb_nn::data::{Input, LoaderOptions};
use bb_nn::kernels::loss::Loss;
use bb_nn::optim::Sgd;
use bb_nn::schedule::{Kind, Schedule};
use bb_nn::{Flat, Mode, Net};

use super::algorithm::{Zeroing, gradient_shares};
use super::config::{FinetuneConfig, TsbdConfig};
use crate::context::Ctx;
use crate::data::CleanImages;
use crate::error::DefenseError;
use crate::finetuning::{self, Part, Stepper};
use crate::method::Suspect;
use crate::parts::clear;

/// The suspect model with the chosen weights cleared. Running statistics stay those of the suspect model.
pub fn zeroed(suspect: &Suspect<'_, CleanImages>, zeroing: &Zeroing) -> Result<Net, DefenseError> {
    let mut net = suspect.net()?;
    for (name, mask) in &zeroing.masks {
        let tensor = net
            .params()
            .layout()
            .position(name)
            .expect("masks are made from the model's own layers");
        clear(net.params_mut(), tensor, mask);
    }
    Ok(net)
}

/// The stage in which the candidates are made.
pub const STAGE: &str = "finetune";

/// Fine-tunes `net` on `clean`, epoch by epoch, resuming where an earlier run stopped.
pub fn run(
    cfg: &TsbdConfig,
    suspect: &Suspect<'_, CleanImages>,
    clean: &Split,
    net: &mut Net,
    (stage, variant, probe_every): (&str, &str, usize),
    ctx: &mut Ctx<'_>,
) -> Result<(), DefenseError> {
    let finetune = &cfg.finetune;
    let constant = Schedule {
        kind: Kind::Constant,
        ..Schedule::default()
    };
    let part = Part {
        stage,
        variant,
        epochs: finetune.epochs,
        loader: LoaderOptions {
            batch_size: finetune.batch_size,
            shuffle: finetune.shuffle,
            drop_last: false,
            augment: finetune.augment,
            seed: ctx.seed(),
            purpose: "tsbd/finetune",
        },
        lr: finetune.lr,
        schedule: &constant,
        probe_every,
    };
    let mut tuner = Tuner::new(net, finetune);
    finetuning::run(&part, (clean, suspect.task()), net, &mut tuner, ctx)
}

/// Activeness-aware steps on one network.
#[derive(Debug)]
pub struct Tuner {
    cfg: FinetuneConfig,
    sgd: Sgd,
    /// The gradient at the weights, then the mix.
    first: Flat,
    /// The gradient at the perturbed weights.
    second: Flat,
    /// The weights before the perturbation.
    kept: Flat,
}

impl Tuner {
    /// An optimiser at rest for `net`.
    pub fn new(net: &Net, cfg: &FinetuneConfig) -> Self {
        Self {
            cfg: cfg.clone(),
            sgd: Sgd::new(net.params(), cfg.momentum as f32, 0.0, false),
            first: net.zeros(),
            second: net.zeros(),
            kept: net.zeros(),
        }
    }
}

impl Stepper for Tuner {
    /// The reference computes both gradients on a throw-away copy of the network, so that the running statistics of
    /// the network itself move only in one more forward pass, after the step. Here the copy is only one of the
    /// parameters: both passes leave the statistics alone, and the weights are put back bit by bit.
    fn step(&mut self, net: &mut Net, input: &Input, labels: &[u32], lr: f32) -> Loss {
        let Self {
            cfg,
            sgd,
            first,
            second,
            kept,
        } = self;
        let mode = if cfg.refresh_bn {
            Mode::TrainKeepStats
        } else {
            Mode::Train
        };
        let loss = net.loss_grad(input, labels, mode, first);
        if cfg.alpha > 0.0 {
            kept.copy_from(net.params());
            net.params_mut().add_normalised(first, cfg.r, cfg.norm);
            net.loss_grad(input, labels, Mode::TrainKeepStats, second);
            net.params_mut().copy_from(kept);
            let (keep, take) = gradient_shares(cfg.alpha);
            first.mix(keep, second, take);
        }
        sgd.step(net.params_mut(), first, lr);
        if cfg.refresh_bn {
            net.forward(input, Mode::Train);
        }
        loss
    }

    fn sgd(&self) -> &Sgd {
        &self.sgd
    }

    fn sgd_mut(&mut self) -> &mut Sgd {
        &mut self.sgd
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_alike, suspect};
    use bb_nn::data::batches;

    /// The reference's loader: every image in every epoch, in order, augmented, with a small last batch; the rate stays.
    #[test]
    fn each_epoch_goes_once_over_all_images() {
        let (arch, task, state, clean) = suspect(10);
        let suspect = Suspect::new(&arch, task, &state, &clean);
        let mut cfg = TsbdConfig::default();
        (cfg.finetune.batch_size, cfg.finetune.epochs) = (4, 2);
        let mut net = suspect.net().expect("the state fits");
        let part = (STAGE, "own", 0);
        let mut ctx = Ctx::detached(0);
        run(&cfg, &suspect, suspect.clean(), &mut net, part, &mut ctx).expect("trained");

        let mut own = suspect.net().expect("the state fits");
        let mut tuner = Tuner::new(&own, &cfg.finetune);
        let options = LoaderOptions {
            batch_size: 4,
            shuffle: false,
            drop_last: false,
            augment: true,
            seed: 0,
            purpose: "tsbd/finetune",
        };
        let mut sizes = Vec::new();
        for epoch in 0..2 {
            for batch in batches(suspect.clean(), task, options, epoch) {
                sizes.push(batch.input.n);
                tuner.step(&mut own, &batch.input, &batch.labels, 0.01);
            }
        }
        assert_eq!(sizes, [4, 4, 2, 4, 4, 2]);
        let state = |net: &Net| net.state().expect("a state");
        check_alike(&state(&net), &state(&own));
    }
}
