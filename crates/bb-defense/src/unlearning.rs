//! Steps that make a network unlearn, and the loop of the defenses that unlearn a few clean images at a falling rate.

use bb_core::metrics::Ratio;
use bb_core::settings::{SettingsError, check};
use bb_nn::data::{Input, LoaderOptions, batches};
use bb_nn::kernels::loss::Loss;
use bb_nn::net::DropoutStream;
use bb_nn::optim::Sgd;
use bb_nn::schedule::{Kind, PlateauState, Schedule};
use bb_nn::{Flat, Mode, Net};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::context::{At, Ctx, training_state};
use crate::data::CleanImages;
use crate::error::DefenseError;
use crate::method::Suspect;
use crate::settings::{above_zero, batch_size, momentum, not_negative, rate, rounds, share};

/// One step of gradient ascent on the cross-entropy, in train mode. Gives the loss before the step and leaves the
/// gradient of the negative loss in `grads`.
///
/// With `clip` the gradient's L2 norm over all parameters is at most that, as PyTorch's `clip_grad_norm_` does it; weight
/// decay comes after, in the optimiser.
pub fn ascend(
    net: &mut Net,
    sgd: &mut Sgd,
    grads: &mut Flat,
    (input, labels): (&Input, &[u32]),
    lr: f32,
    clip: Option<f64>,
) -> Loss {
    let loss = net.loss_grad(input, labels, Mode::Train, grads);
    grads.scale(-1.0);
    if let Some(norm) = clip {
        grads.clip_norm(norm);
    }
    sgd.step(net.params_mut(), grads, lr);
    loss
}

/// Table `[unlearn]`: clean unlearning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlearnConfig {
    /// Cap on the epochs, at least 1.
    pub max_epochs: usize,
    /// Base learning rate of the ascent, above 0.
    pub lr: f64,
    /// Momentum, 0 up to but not including 1.
    pub momentum: f64,
    /// L2 penalty on every parameter.
    pub weight_decay: f64,
    /// Epochs at which the rate falls.
    pub milestones: Vec<usize>,
    /// Factor by which it falls, above 0 and at most 1.
    pub gamma: f64,
    /// Largest L2 norm of a gradient over all parameters, above 0.
    pub clip: f64,
    /// Stop once the share of images that were right during an epoch is at most this, 0 to 1.
    pub stop_accuracy: f64,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Shuffle the clean images before each epoch.
    pub shuffle: bool,
    /// Crop and mirror the clean images as in training.
    pub augment: bool,
}

impl UnlearnConfig {
    /// What ULRL and RNP have in common, with `batch_size` images in a batch.
    pub fn usual(batch_size: usize) -> Self {
        Self {
            max_epochs: 20,
            lr: 0.01,
            momentum: 0.9,
            weight_decay: 5e-4,
            milestones: vec![10, 20],
            gamma: 0.1,
            clip: 20.0,
            stop_accuracy: 0.2,
            batch_size,
            shuffle: true,
            augment: true,
        }
    }

    /// Checks the settings, which stand in the table `unlearn`.
    pub fn validate(&self) -> Result<(), SettingsError> {
        rounds("unlearn.max_epochs", self.max_epochs)?;
        rate("unlearn.lr", self.lr)?;
        momentum("unlearn.momentum", self.momentum)?;
        not_negative("unlearn.weight_decay", self.weight_decay)?;
        check(
            "unlearn.gamma",
            self.gamma,
            "above 0 and at most 1",
            self.gamma > 0.0 && self.gamma <= 1.0,
        )?;
        above_zero("unlearn.clip", self.clip)?;
        share("unlearn.stop_accuracy", self.stop_accuracy)?;
        batch_size("unlearn.batch_size", self.batch_size)
    }
}

const STAGE: &str = "unlearn";

/// How unlearning went, kept in its checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// Finished epochs.
    pub epochs: usize,
    /// Whether the accuracy fell to the threshold; otherwise the cap on the epochs ended it.
    pub reached: bool,
    /// Share of the images that were right during the last epoch.
    pub accuracy: Option<Ratio>,
    /// Forward passes that drew dropout masks.
    pub dropout: u64,
}

/// Lets a copy of the suspect model unlearn the clean images, with `clip` as the largest norm of a gradient; gives the
/// unlearned network. `purpose` names the random streams of its batches.
///
/// # Errors
/// [`DefenseError::Diverged`] and [`DefenseError::NotFinite`] for a loss or a network that is no number, and what the
/// checkpoints and the log give.
pub fn run(
    cfg: &UnlearnConfig,
    clip: Option<f64>,
    purpose: &'static str,
    suspect: &Suspect<'_, CleanImages>,
    ctx: &mut Ctx<'_>,
) -> Result<(Net, Course), DefenseError> {
    let mut net: Net = suspect.net()?;
    let (momentum, decay) = (cfg.momentum as f32, cfg.weight_decay as f32);
    let mut sgd = Sgd::new(net.params(), momentum, decay, false);
    let mut course = Course::default();
    if let Some(saved) = ctx.load::<Course>(STAGE)? {
        saved.restore_training(&mut net, &mut sgd)?;
        course = saved.progress;
        net.set_dropout(DropoutStream {
            step: course.dropout,
            ..net.dropout()
        });
    }
    let options = LoaderOptions {
        batch_size: cfg.batch_size,
        shuffle: cfg.shuffle,
        drop_last: false,
        augment: cfg.augment,
        seed: ctx.seed(),
        purpose,
    };
    let schedule = Schedule {
        kind: Kind::Multistep,
        milestones: cfg.milestones.clone(),
        gamma: cfg.gamma,
        ..Schedule::default()
    };
    let (clean, task) = (suspect.clean(), suspect.task());
    let images = clean.len() as u64;
    let mut grads = net.zeros();
    let total = images * cfg.max_epochs as u64;
    let progress = ctx
        .progress("unlearn, at most", "images", total)
        .resumed_at(images * course.epochs as u64);
    while !course.reached && course.epochs < cfg.max_epochs {
        let epoch = course.epochs;
        let plateau = PlateauState::default();
        let lr = schedule.rate(cfg.lr, (epoch, cfg.max_epochs), (0, 1), &plateau);
        let (mut loss_sum, mut correct, mut steps) = (0.0, 0, 0);
        for batch in batches(clean, task, options, epoch as u64) {
            ctx.check()?;
            let data = (&batch.input, batch.labels.as_slice());
            let loss = ascend(&mut net, &mut sgd, &mut grads, data, lr as f32, clip);
            if !loss.mean.is_finite() {
                net.take_failure()?;
                return Err(DefenseError::Diverged {
                    stage: STAGE.to_owned(),
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
        net.take_failure()?;
        let accuracy = Ratio {
            hits: correct,
            total: images,
        };
        course.epochs += 1;
        course.accuracy = Some(accuracy);
        course.reached = correct as f64 / images as f64 <= cfg.stop_accuracy;
        course.dropout = net.dropout().step;
        let row = json!({
            "train_loss": loss_sum / steps as f64,
            "train_acc": accuracy.value(),
        });
        progress.note(&format!(
            "epoch {}, {correct} of {images} right",
            course.epochs
        ));
        ctx.record(At::stage(STAGE).epoch(epoch), &row)?;
        ctx.save(STAGE, &training_state(&net, &sgd)?, &course)?;
    }
    drop(progress);
    if let Some(tensor) = net.params().first_not_finite() {
        return Err(DefenseError::NotFinite {
            stage: STAGE.to_owned(),
            tensor: tensor.to_owned(),
        });
    }
    let percent = course.accuracy.and_then(Ratio::percent).unwrap_or(100.0);
    let text = format!(
        "unlearning ended after epoch {}: {percent:.2} % of the clean images right",
        course.epochs
    );
    if course.reached {
        ctx.info("unlearned", &text)?;
    } else {
        let goal = 100.0 * cfg.stop_accuracy;
        let text = format!("{text}, which is above `unlearn.stop_accuracy` ({goal} %)");
        ctx.warn("not-unlearned", &text)?;
    }
    Ok((net, course))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_alike, known};

    /// PyTorch's `MultiStepLR` and the stop by the hits of the epoch's own passes, written out.
    #[test]
    fn the_rate_falls_at_milestones_and_the_epochs_own_hits_end_it() {
        let (arch, task, state, clean) = known(20);
        let suspect = Suspect::new(&arch, task, &state, &clean);
        let cfg = UnlearnConfig {
            max_epochs: 4,
            lr: 1e-3,
            milestones: vec![1, 3],
            stop_accuracy: 0.0,
            ..UnlearnConfig::usual(8)
        };
        let unlearn = |cfg: &UnlearnConfig| {
            let mut ctx = Ctx::detached(0);
            run(cfg, Some(cfg.clip), "test/unlearn", &suspect, &mut ctx).expect("unlearned")
        };
        let (net, course) = unlearn(&cfg);

        let mut own = suspect.net().expect("the state fits");
        let mut sgd = Sgd::new(own.params(), 0.9, 5e-4, false);
        let mut grads = own.zeros();
        let options = LoaderOptions {
            batch_size: 8,
            shuffle: true,
            drop_last: false,
            augment: true,
            seed: 0,
            purpose: "test/unlearn",
        };
        let mut hits = Vec::new();
        for (epoch, lr) in [1e-3, 1e-4, 1e-4, 1e-5].into_iter().enumerate() {
            let mut right = 0;
            for batch in batches(suspect.clean(), task, options, epoch as u64) {
                let data = (&batch.input, batch.labels.as_slice());
                right += ascend(&mut own, &mut sgd, &mut grads, data, lr, Some(20.0)).correct;
            }
            hits.push(right as u64);
        }
        assert!(hits.iter().all(|hits| *hits > 0), "{hits:?}");
        let state = |net: &Net| net.state().expect("a state");
        check_alike(&state(&net), &state(&own));
        let last = Ratio {
            hits: hits[3],
            total: 20,
        };
        assert_eq!((course.epochs, course.reached), (4, false));
        assert_eq!(course.accuracy, Some(last));

        // No more than the threshold ends it, already in the first epoch.
        let ended = |stop_accuracy| {
            let cfg = UnlearnConfig {
                stop_accuracy,
                ..cfg.clone()
            };
            unlearn(&cfg).1
        };
        let first = hits[0] as f64 / 20.0;
        assert_eq!((ended(first).epochs, ended(first).reached), (1, true));
        assert!(ended(first - 1e-9).epochs > 1);
    }
}
