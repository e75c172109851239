//! The loop of every stage that trains on clean images for a number of epochs, with rows, checkpoints and resume.

use bb_core::data::{DatasetSpec, Split};
use bb_core::metrics::Ratio;
use bb_core::settings::{Idle, SettingsError, check};
use bb_nn::data::{Input, LoaderOptions, batch_count, batches};
use bb_nn::kernels::loss::Loss;
use bb_nn::net::DropoutStream;
use bb_nn::optim::Sgd;
use bb_nn::schedule::{Kind, PlateauState, Schedule};
use bb_nn::{Flat, Mode, Net};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::context::{At, Ctx, training_state};
use crate::error::DefenseError;
use crate::settings::{batch_size, epochs, momentum, not_negative, rate};

/// What a step does to a network, and the optimiser it does it with.
pub trait Stepper {
    /// One step with learning rate `lr`; gives the loss before it.
    fn step(&mut self, net: &mut Net, input: &Input, labels: &[u32], lr: f32) -> Loss;

    /// The optimiser, whose velocity belongs to a checkpoint.
    fn sgd(&self) -> &Sgd;

    /// See [`Stepper::sgd`].
    fn sgd_mut(&mut self) -> &mut Sgd;
}

/// Which training this is.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The stage, for rows and as name of the checkpoint: one stage, one file.
    pub stage: &'a str,
    /// The candidate, for rows; the checkpoint of another one is not taken up.
    pub variant: &'a str,
    /// Epochs.
    pub epochs: usize,
    /// How batches are made.
    pub loader: LoaderOptions,
    /// Base learning rate.
    pub lr: f64,
    /// What becomes of it.
    pub schedule: &'a Schedule,
    /// Measure after every n-th epoch, counted from the first, but not after the last; 0 never does.
    pub probe_every: usize,
}

/// How far training has come, kept in its checkpoints.
#[derive(Serialize, Deserialize)]
struct Course {
    variant: String,
    epochs: usize,
    #[serde(default)]
    plateau: PlateauState,
    /// Forward passes that drew dropout masks.
    #[serde(default)]
    dropout: u64,
}

/// Whether an earlier run left a checkpoint of `stage` within the training of this candidate.
pub fn begun(stage: &str, variant: &str, ctx: &mut Ctx<'_>) -> Result<bool, DefenseError> {
    Ok(ctx
        .load::<Course>(stage)?
        .is_some_and(|saved| saved.progress.variant == variant))
}

/// Trains `net` on `clean`, epoch by epoch, resuming where an earlier run stopped.
///
/// What the whole training made is not kept here: the method saves it under a name of its own, since the checkpoint of
/// the last epoch is not written.
pub fn run(
    part: &Part<'_>,
    (clean, task): (&Split, &DatasetSpec),
    net: &mut Net,
    stepper: &mut dyn Stepper,
    ctx: &mut Ctx<'_>,
) -> Result<(), DefenseError> {
    let mut plateau = PlateauState::default();
    let mut first = 0;
    if let Some(saved) = ctx.load::<Course>(part.stage)? {
        // The file is used for one candidate after the other; that of a finished one is of no use to the next.
        if saved.progress.variant == part.variant {
            saved.restore_training(net, stepper.sgd_mut())?;
            let Course {
                epochs, dropout, ..
            } = saved.progress;
            plateau = saved.progress.plateau;
            first = epochs;
            net.set_dropout(DropoutStream {
                step: dropout,
                ..net.dropout()
            });
        }
    }
    let images = clean.len() as u64;
    let label = format!("{}, {}", part.stage, part.variant);
    let progress = ctx
        .progress(&label, "images", images * part.epochs as u64)
        .resumed_at(images * first as u64);
    let count = batch_count(clean.len(), part.loader.batch_size, part.loader.drop_last);
    for epoch in first..part.epochs {
        let (mut loss_sum, mut correct, mut steps) = (0.0, 0, 0);
        for batch in batches(clean, task, part.loader, epoch as u64) {
            ctx.check()?;
            let place = ((epoch, part.epochs), (steps, count));
            let lr = part.schedule.rate(part.lr, place.0, place.1, &plateau);
            let loss = stepper.step(net, &batch.input, &batch.labels, lr as f32);
            if !loss.mean.is_finite() {
                net.take_failure()?;
                return Err(DefenseError::Diverged {
                    stage: format!("{} {}", part.stage, part.variant),
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
        // The loss may be that of only one of a step's passes.
        net.take_failure()?;
        let loss = loss_sum / steps as f64;
        plateau.record(part.schedule, loss);
        let at = At::stage(part.stage).variant(part.variant).epoch(epoch);
        let row = json!({
            "train_loss": loss,
            "train_acc": Ratio { hits: correct, total: images }.value(),
        });
        progress.note(&format!("epoch {}, loss {loss:.4}", epoch + 1));
        ctx.record(at, &row)?;
        let last = epoch + 1 == part.epochs;
        if part.probe_every > 0 && epoch.is_multiple_of(part.probe_every) && !last {
            ctx.probe(at, net);
        }
        if !last {
            let course = Course {
                variant: part.variant.to_owned(),
                epochs: epoch + 1,
                plateau,
                dropout: net.dropout().step,
            };
            ctx.save(part.stage, &training_state(net, stepper.sgd())?, &course)?;
        }
    }
    progress.finish();
    match net.first_not_finite() {
        Some(tensor) => Err(DefenseError::NotFinite {
            stage: label,
            tensor: tensor.to_owned(),
        }),
        None => Ok(()),
    }
}

/// Settings of plain fine-tuning, as the benchmark's trainer does it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Passes over the clean images; 0 leaves the model as it is.
    pub epochs: usize,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Shuffle the clean images before each epoch.
    pub shuffle: bool,
    /// Crop and mirror the clean images as in training.
    pub augment: bool,
    /// Base learning rate, above 0.
    pub lr: f64,
    /// Momentum, 0 up to but not including 1.
    pub momentum: f64,
    /// L2 penalty on every parameter.
    pub weight_decay: f64,
    /// What becomes of the rate.
    pub schedule: ScheduleConfig,
}

/// Table `[finetune.schedule]`: what becomes of the learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Which schedule.
    pub kind: ScheduleKind,
    /// Half period of `cosine` in epochs, whatever the number of epochs.
    pub t_max: usize,
    /// Factor of `plateau`.
    pub gamma: f64,
    /// Epochs without improvement of the mean training loss that `plateau` bears.
    pub patience: usize,
}

/// The schedules of the benchmark's defenses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// The same rate throughout.
    Constant,
    /// Half a cosine, once per epoch.
    Cosine,
    /// Less once the training loss no longer falls.
    Plateau,
}

impl Default for FinetuneConfig {
    fn default() -> Self {
        Self {
            epochs: 100,
            batch_size: 256,
            shuffle: true,
            augment: true,
            lr: 0.01,
            momentum: 0.9,
            weight_decay: 5e-4,
            schedule: ScheduleConfig {
                kind: ScheduleKind::Cosine,
                t_max: 100,
                gamma: 0.1,
                patience: 10,
            },
        }
    }
}

impl FinetuneConfig {
    /// What the schedule leaves without effect, in the table `finetune`.
    pub fn idle(&self) -> Vec<Idle> {
        let why = "`finetune.schedule.kind` is another one";
        let cosine = ["finetune.schedule.t_max"].as_slice();
        let plateau = ["finetune.schedule.gamma", "finetune.schedule.patience"].as_slice();
        let keys = match self.schedule.kind {
            ScheduleKind::Constant => [cosine, plateau].concat(),
            ScheduleKind::Cosine => plateau.to_vec(),
            ScheduleKind::Plateau => cosine.to_vec(),
        };
        keys.into_iter().map(|key| (key, why)).collect()
    }

    /// Checks the settings, which stand in the table `finetune`.
    pub fn validate(&self) -> Result<(), SettingsError> {
        epochs("finetune.epochs", self.epochs)?;
        batch_size("finetune.batch_size", self.batch_size)?;
        rate("finetune.lr", self.lr)?;
        momentum("finetune.momentum", self.momentum)?;
        not_negative("finetune.weight_decay", self.weight_decay)?;
        let schedule = &self.schedule;
        check(
            "finetune.schedule.t_max",
            schedule.t_max,
            "at least 1",
            schedule.t_max >= 1,
        )?;
        check(
            "finetune.schedule.gamma",
            schedule.gamma,
            "above 0 and at most 1",
            schedule.gamma > 0.0 && schedule.gamma <= 1.0,
        )
    }

    /// The schedule of the engine.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            kind: match self.schedule.kind {
                ScheduleKind::Constant => Kind::Constant,
                ScheduleKind::Cosine => Kind::Cosine,
                ScheduleKind::Plateau => Kind::Plateau,
            },
            t_max: self.schedule.t_max,
            gamma: self.schedule.gamma,
            patience: self.schedule.patience,
            ..Schedule::default()
        }
    }

    /// How batches are made, with `purpose` as name of their random streams.
    pub fn loader(&self, seed: u64, purpose: &'static str) -> LoaderOptions {
        LoaderOptions {
            batch_size: self.batch_size,
            shuffle: self.shuffle,
            drop_last: false,
            augment: self.augment,
            seed,
            purpose,
        }
    }
}

/// Plain steps of SGD on the cross-entropy.
#[derive(Debug)]
pub struct Plain {
    sgd: Sgd,
    grads: Flat,
}

impl Plain {
    /// An optimiser at rest for `net`.
    pub fn new(net: &Net, cfg: &FinetuneConfig) -> Self {
        let (momentum, decay) = (cfg.momentum as f32, cfg.weight_decay as f32);
        Self {
            sgd: Sgd::new(net.params(), momentum, decay, false),
            grads: net.zeros(),
        }
    }
}

impl Stepper for Plain {
    fn step(&mut self, net: &mut Net, input: &Input, labels: &[u32], lr: f32) -> Loss {
        let loss = net.loss_grad(input, labels, Mode::Train, &mut self.grads);
        self.sgd.step(net.params_mut(), &self.grads, lr);
        loss
    }

    fn sgd(&self) -> &Sgd {
        &self.sgd
    }

    fn sgd_mut(&mut self) -> &mut Sgd {
        &mut self.sgd
    }
}
