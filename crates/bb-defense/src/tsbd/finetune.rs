//! Stage 1c and 2: the zeroed copy of the suspect model and its activeness-aware fine-tuning.

use bb_core::data::Split;
use bb_core::metrics::Ratio;
use bb_nn::data::{Input, LoaderOptions, batches};
use bb_nn::kernels::loss::Loss;
use bb_nn::optim::Sgd;
use bb_nn::{Flat, Mode, Net};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::algorithm::{Zeroing, gradient_shares};
use super::config::{FinetuneConfig, TsbdConfig};
use crate::context::{At, Ctx, training_state};
use crate::data::CleanImages;
use crate::error::DefenseError;
use crate::method::Suspect;

/// The suspect model with the chosen weights cleared. Running statistics stay those of the suspect model.
pub fn zeroed(suspect: &Suspect<'_, CleanImages>, zeroing: &Zeroing) -> Result<Net, DefenseError> {
    let mut net = suspect.net()?;
    for (name, mask) in &zeroing.masks {
        let tensor = net
            .params()
            .layout()
            .position(name)
            .expect("masks are made from the model's own layers");
        let mut weights = net.params().to_plain(tensor);
        for (weight, _) in weights
            .iter_mut()
            .zip(mask)
            .filter(|(_, cleared)| **cleared)
        {
            *weight = 0.0;
        }
        net.params_mut().set_plain(tensor, &weights);
    }
    Ok(net)
}

/// Which fine-tuning this is, for rows and checkpoints.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The stage: `finetune`, or `select` where images are held out.
    pub stage: &'a str,
    /// The candidate.
    pub variant: &'a str,
    /// Measure after every n-th epoch; 0 never does.
    pub probe_every: usize,
}

/// How far fine-tuning has come, kept in its checkpoints.
#[derive(Serialize, Deserialize)]
struct Course {
    variant: String,
    epochs: usize,
}

/// The stage in which the candidates are made.
pub const STAGE: &str = "finetune";

/// Whether an earlier run left a checkpoint within the fine-tuning of this candidate.
pub fn begun(variant: &str, ctx: &mut Ctx<'_>) -> Result<bool, DefenseError> {
    Ok(ctx
        .load::<Course>(STAGE)?
        .is_some_and(|saved| saved.progress.variant == variant))
}

/// Fine-tunes `net` on `clean`, epoch by epoch, resuming where an earlier run stopped.
pub fn run(
    cfg: &TsbdConfig,
    suspect: &Suspect<'_, CleanImages>,
    clean: &Split,
    net: &mut Net,
    part: Part<'_>,
    ctx: &mut Ctx<'_>,
) -> Result<(), DefenseError> {
    let finetune = &cfg.finetune;
    let mut tuner = Tuner::new(net, finetune);
    let mut first = 0;
    if let Some(saved) = ctx.load::<Course>(part.stage)? {
        // The file is used for one candidate after the other; that of a finished one is of no use to the next.
        if saved.progress.variant == part.variant {
            saved.restore_training(net, &mut tuner.sgd)?;
            first = saved.progress.epochs;
        }
    }
    let options = LoaderOptions {
        batch_size: finetune.batch_size,
        shuffle: finetune.shuffle,
        drop_last: false,
        augment: finetune.augment,
        seed: ctx.seed(),
        purpose: "tsbd/finetune",
    };
    let images = clean.len() as u64;
    let label = format!("{}, {}", part.stage, part.variant);
    let progress = ctx
        .progress(&label, "images", images * finetune.epochs as u64)
        .resumed_at(images * first as u64);
    for epoch in first..finetune.epochs {
        let (mut loss_sum, mut correct, mut steps) = (0.0, 0, 0);
        for batch in batches(clean, suspect.task(), options, epoch as u64) {
            ctx.check()?;
            let loss = tuner.step(net, &batch.input, &batch.labels);
            if !loss.mean.is_finite() {
                net.take_failure()?;
                let stage = format!("{} {}", part.stage, part.variant);
                return Err(DefenseError::Diverged {
                    stage,
                    epoch,
                    step: steps,
                    loss: loss.mean,
                });
            }
            loss_sum += f64::from(loss.mean);
            correct += loss.correct as u64;
            steps += 1;
            progress.add(batch.labels.len() as u64);
        }
        // The loss is that of one of the passes only.
        net.take_failure()?;
        let at = At::stage(part.stage).variant(part.variant).epoch(epoch);
        let row = json!({
            "train_loss": loss_sum / f64::from(steps as u32),
            "train_acc": Ratio { hits: correct, total: images }.value(),
        });
        progress.note(&format!(
            "epoch {epoch}, loss {:.4}",
            loss_sum / f64::from(steps as u32)
        ));
        ctx.record(at, &row)?;
        let last = epoch + 1 == finetune.epochs;
        if part.probe_every > 0 && epoch.is_multiple_of(part.probe_every) && !last {
            ctx.probe(at, net);
        }
        if !last {
            let course = Course {
                variant: part.variant.to_owned(),
                epochs: epoch + 1,
            };
            ctx.save(part.stage, &training_state(net, &tuner.sgd)?, &course)?;
        }
    }
    progress.finish();
    match net.params().first_not_finite() {
        Some(tensor) => Err(DefenseError::NotFinite {
            stage: label,
            tensor: tensor.to_owned(),
        }),
        None => Ok(()),
    }
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

    /// One step; gives the loss at the weights before it.
    ///
    /// The reference computes both gradients on a throw-away copy of the network, so that the running statistics of
    /// the network itself move only in one more forward pass, after the step. Here the copy is only one of the
    /// parameters: both passes leave the statistics alone, and the weights are put back bit by bit.
    pub fn step(&mut self, net: &mut Net, input: &Input, labels: &[u32]) -> Loss {
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
        sgd.step(net.params_mut(), first, cfg.lr as f32);
        if cfg.refresh_bn {
            net.forward(input, Mode::Train);
        }
        loss
    }
}
