//! The one training loop.

use crate::data::{Batch, Batches, LoaderOptions, batch_count, batches};
use crate::error::NnError;
use crate::flat::Flat;
use crate::kernels::loss::Loss;
use crate::net::{DropoutStream, Mode, Net};
use crate::optim::Sgd;
use crate::schedule::{PlateauState, Schedule};
use crate::state::StateDict;
use bb_core::artifact::ArtifactError;
use bb_core::artifact::checkpoint::{self, Found, Version};
use bb_core::cli::{Coded, RESUMES, check_interrupt, exit};
use bb_core::data::{DatasetSpec, Split};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How a classifier is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Passes over the training set.
    pub epochs: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Base learning rate of SGD.
    pub lr: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// L2 penalty on every parameter.
    pub weight_decay: f64,
    /// Nesterov's variant of momentum.
    pub nesterov: bool,
    /// Whether the last batch of an epoch is left out when it is not full.
    pub drop_last: bool,
    /// Whether the dataset's crop and flip are applied.
    pub augment: bool,
    /// Learning-rate schedule.
    pub schedule: Schedule,
}

impl Default for Recipe {
    /// The benchmark's recipe for CIFAR-10.
    fn default() -> Self {
        Self {
            epochs: 100,
            batch_size: 128,
            lr: 0.01,
            momentum: 0.9,
            weight_decay: 5e-4,
            nesterov: false,
            drop_last: true,
            augment: true,
            schedule: Schedule::default(),
        }
    }
}

impl Recipe {
    /// The first setting out of range, as (name, value, what is allowed).
    pub fn first_invalid(&self) -> Option<(&'static str, String, &'static str)> {
        let share = |v: f64| (0.0..1.0).contains(&v);
        let checks: [(bool, &'static str, String, &'static str); 10] = [
            (
                self.epochs <= 100_000,
                "epochs",
                self.epochs.to_string(),
                "at most 100000",
            ),
            (
                (1..=65_536).contains(&self.batch_size),
                "batch_size",
                self.batch_size.to_string(),
                "1 to 65536",
            ),
            (
                self.lr.is_finite() && self.lr >= 0.0,
                "lr",
                self.lr.to_string(),
                "a number of at least 0",
            ),
            (
                share(self.momentum),
                "momentum",
                self.momentum.to_string(),
                "0 or more and below 1",
            ),
            (
                self.weight_decay.is_finite() && self.weight_decay >= 0.0,
                "weight_decay",
                self.weight_decay.to_string(),
                "a number of at least 0",
            ),
            (
                self.schedule.t_max > 0,
                "schedule.t_max",
                self.schedule.t_max.to_string(),
                "at least 1",
            ),
            (
                self.schedule.step_size > 0,
                "schedule.step_size",
                self.schedule.step_size.to_string(),
                "at least 1",
            ),
            (
                self.schedule.gamma > 0.0 && self.schedule.gamma <= 1.0,
                "schedule.gamma",
                self.schedule.gamma.to_string(),
                "above 0 and at most 1",
            ),
            (
                share(self.schedule.warmup),
                "schedule.warmup",
                self.schedule.warmup.to_string(),
                "0 or more and below 1",
            ),
            (
                self.schedule.min_lr.is_finite() && self.schedule.min_lr >= 0.0,
                "schedule.min_lr",
                self.schedule.min_lr.to_string(),
                "a number of at least 0",
            ),
        ];
        checks
            .into_iter()
            .find(|(ok, ..)| !ok)
            .map(|(_, name, value, allowed)| (name, value, allowed))
    }
}

/// What an epoch gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EpochRow {
    /// Epoch, counted from 0.
    pub epoch: usize,
    /// Learning rate of the epoch's first step.
    pub lr: f64,
    /// Mean of the batches' mean losses.
    pub train_loss: f64,
    /// Images predicted right while training (in train mode, before each step).
    pub train_correct: u64,
    /// Images seen.
    pub train_total: u64,
}

/// Errors of training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The loss is not a finite number.
    /// A GPU is asked once an epoch, so there the step is the epoch's last one.
    #[error("training diverged: the loss of epoch {}, step {} is {loss}", .epoch + 1, .step + 1)]
    Diverged {
        /// Epoch, counted from 0 here and from 1 in the message.
        epoch: usize,
        /// Step in the epoch, counted likewise.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// The network is no longer finite although the loss of every step was: the last step's update can do that.
    #[error("training diverged: tensor `{tensor}` is NaN or infinite after epoch {epoch}")]
    NotFinite {
        /// Epoch, counted from 1.
        epoch: usize,
        /// The first such tensor.
        tensor: String,
    },
    /// The training set does not fill one batch.
    #[error(
        "the training set has {images} images, but `batch_size` is {batch_size} and `drop_last` is true"
    )]
    NoBatch {
        /// Images in the set.
        images: usize,
        /// Images per batch.
        batch_size: usize,
    },
    /// A checkpoint does not fit.
    #[error("cannot resume from `{}`: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Training was asked to stop; the last checkpoint stands.
    #[error("interrupted in epoch {}", .epoch + 1)]
    Interrupted {
        /// Epoch, counted from 0 here and from 1 in the message.
        epoch: usize,
    },
    /// The engine refused.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// A file could not be written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A hook failed.
    #[error(transparent)]
    Hook(Box<dyn std::error::Error + Send + Sync>),
}

impl Coded for TrainError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Diverged { .. } | Self::NotFinite { .. } => exit::NUMERICAL,
            Self::NoBatch { .. } => exit::USAGE,
            Self::Interrupted { .. } => {
                check_interrupt().map_or_else(|signal| signal.exit_code(), |()| exit::INTERRUPTED)
            }
            Self::Nn(error) => error.exit_code(),
            Self::Artifact(error) => error.exit_code(),
            Self::Checkpoint { .. } | Self::Hook(_) => exit::INPUT,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Interrupted { .. } => Some(RESUMES.to_owned()),
            Self::Nn(error) => error.hint(),
            Self::Artifact(error) => error.hint(),
            _ => None,
        }
    }
}

/// Where in a training run a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepAt {
    /// Epoch, counted from 0.
    pub epoch: usize,
    /// Step in the epoch, counted from 0.
    pub step: usize,
}

/// What happens around the loop's own work.
pub trait Hooks {
    /// What a checkpoint of now belongs to beside the network; [`Hooks::fits`] is asked for it when it is found again.
    fn mark(&self) -> String {
        String::new()
    }

    /// Whether what the hook keeps itself can go on after `epochs` finished epochs, with a checkpoint of this mark.
    fn fits(&mut self, epochs: usize, mark: &str) -> Result<bool, TrainError> {
        let _ = (epochs, mark);
        Ok(true)
    }

    /// A checkpoint is not used; `why` is for people.
    fn unusable(&mut self, why: &str) -> Result<(), TrainError> {
        let _ = why;
        Ok(())
    }

    /// Training goes on after `epochs` finished epochs (0 for a fresh start).
    fn started(&mut self, epochs: usize) -> Result<(), TrainError> {
        let _ = epochs;
        Ok(())
    }

    /// Whether [`Hooks::gradients`] must be called; otherwise a GPU assembles the batches itself.
    fn sees_batches(&self) -> bool {
        true
    }

    /// Whether the loader augments, where the recipe wants it; a hook that says no does it itself, after its changes.
    fn loader_augments(&self) -> bool {
        true
    }

    /// The loss of a step, of which `grads` becomes the gradient by the parameters: mean cross-entropy of the batch unless
    /// the hook says otherwise. It may change the batch first, as attacks that poison inside the loop do.
    fn gradients(
        &mut self,
        net: &mut Net,
        at: StepAt,
        batch: &mut Batch,
        grads: &mut Flat,
    ) -> Result<Loss, TrainError> {
        let _ = at;
        Ok(net.loss_grad(&batch.input, &batch.labels, Mode::Train, grads))
    }

    /// A step over `images` images is done.
    fn step(&mut self, images: usize) {
        let _ = images;
    }

    /// An epoch is done; called before its checkpoint is written.
    fn epoch(&mut self, net: &mut Net, row: &EpochRow) -> Result<(), TrainError> {
        let _ = (net, row);
        Ok(())
    }
}

/// No hook.
impl Hooks for () {
    fn sees_batches(&self) -> bool {
        false
    }
}

/// Where checkpoints of a training run are kept.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    path: Option<PathBuf>,
    every: usize,
}

const EPOCH_KEY: &str = "epochs_done";
const PLATEAU_KEY: &str = "plateau";
/// Forward passes that drew dropout masks; absent where there were none.
const DROPOUT_KEY: &str = "dropout_step";
/// What the hook keeps beside; absent where it keeps nothing.
const MARK_KEY: &str = "mark";
const VELOCITY: &str = "velocity.";

impl Checkpoints {
    /// One file, replaced after every `every` epochs; the one before stays beside it.
    pub fn at(path: impl Into<PathBuf>, every: usize) -> Self {
        Self {
            path: Some(path.into()),
            every: every.max(1),
        }
    }

    /// No checkpoint.
    pub fn none() -> Self {
        Self {
            path: None,
            every: 1,
        }
    }

    fn save(
        &self,
        net: &Net,
        sgd: &Sgd,
        done: usize,
        plateau: &PlateauState,
        mark: String,
    ) -> Result<(), TrainError> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let mut state = net.state()?;
        state.insert_flat(VELOCITY, sgd.velocity())?;
        let plateau = serde_json::to_string(plateau).expect("three numbers serialise");
        let mut metadata = BTreeMap::from([
            (EPOCH_KEY.to_owned(), done.to_string()),
            (PLATEAU_KEY.to_owned(), plateau),
        ]);
        if net.dropout().step > 0 {
            let step = net.dropout().step.to_string();
            metadata.insert(DROPOUT_KEY.to_owned(), step);
        }
        if !mark.is_empty() {
            metadata.insert(MARK_KEY.to_owned(), mark);
        }
        Ok(checkpoint::replace(path, &state.to_bytes(&metadata)?)?)
    }

    /// Loads the newest checkpoint that can be used into `net` and `sgd`; gives the finished epochs.
    fn load(
        &self,
        net: &mut Net,
        sgd: &mut Sgd,
        plateau: &mut PlateauState,
        hooks: &mut dyn Hooks,
    ) -> Result<usize, TrainError> {
        let Some(path) = self.path.as_deref() else {
            return Ok(0);
        };
        for version in Version::BOTH {
            match checkpoint::read(path, version)? {
                Found::Absent => {}
                Found::Damaged(damage) => hooks.unusable(&damage.to_string())?,
                Found::Whole(bytes) => {
                    let saved = Saved::of(path, &bytes)?;
                    let mark = saved.metadata.get(MARK_KEY);
                    let done = saved.number(EPOCH_KEY)?;
                    if hooks.fits(done, mark.map_or("", String::as_str))? {
                        saved.restore(&bytes, net, sgd, plateau)?;
                        return Ok(done);
                    }
                }
            }
        }
        Ok(0)
    }
}

/// A checkpoint that is whole.
struct Saved<'a> {
    path: &'a Path,
    metadata: BTreeMap<String, String>,
}

impl<'a> Saved<'a> {
    fn of(path: &'a Path, bytes: &[u8]) -> Result<Self, TrainError> {
        let metadata = StateDict::metadata(bytes, path)?;
        Ok(Self { path, metadata })
    }

    fn wrong(&self, reason: &str) -> TrainError {
        TrainError::Checkpoint {
            path: self.path.to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn field(&self, key: &str) -> Result<&str, TrainError> {
        let field = self.metadata.get(key).map(String::as_str);
        field.ok_or_else(|| self.wrong(&format!("`{key}` is missing")))
    }

    fn number<N: FromStr>(&self, key: &str) -> Result<N, TrainError> {
        let number = self.field(key)?.parse();
        number.map_err(|_| self.wrong(&format!("`{key}` is not a number")))
    }

    fn restore(
        &self,
        bytes: &[u8],
        net: &mut Net,
        sgd: &mut Sgd,
        plateau: &mut PlateauState,
    ) -> Result<(), TrainError> {
        let (velocity, state) = StateDict::from_bytes(bytes, self.path)?.split(VELOCITY);
        velocity
            .read_flat(sgd.velocity_mut())
            .map_err(|e| self.wrong(&e.to_string()))?;
        net.set_state(&state)?;
        let text = self.field(PLATEAU_KEY)?;
        *plateau = serde_json::from_str(text).map_err(|e| self.wrong(&e.to_string()))?;
        if self.metadata.contains_key(DROPOUT_KEY) {
            let step = self.number(DROPOUT_KEY)?;
            net.set_dropout(DropoutStream {
                step,
                ..net.dropout()
            });
        }
        Ok(())
    }
}

/// Trains `net` on `split`, going on from the newest checkpoint that can be used, if there is one.
///
/// The same arguments give the same bits, with or without interruption, on any number of threads.
pub fn fit(
    net: &mut Net,
    split: &Split,
    spec: &DatasetSpec,
    recipe: &Recipe,
    seed: u64,
    checkpoints: &Checkpoints,
    hooks: &mut dyn Hooks,
) -> Result<(), TrainError> {
    let steps = batch_count(split.len(), recipe.batch_size, recipe.drop_last);
    if steps == 0 && recipe.epochs > 0 {
        return Err(TrainError::NoBatch {
            images: split.len(),
            batch_size: recipe.batch_size,
        });
    }
    let mut sgd = Sgd::new(
        net.params(),
        recipe.momentum as f32,
        recipe.weight_decay as f32,
        recipe.nesterov,
    );
    let mut plateau = PlateauState::default();
    net.set_dropout(DropoutStream { seed, step: 0 });
    let first = checkpoints.load(net, &mut sgd, &mut plateau, hooks)?;
    hooks.started(first)?;
    let options = LoaderOptions {
        batch_size: recipe.batch_size,
        shuffle: true,
        drop_last: recipe.drop_last,
        augment: recipe.augment && hooks.loader_augments(),
        seed,
        purpose: "train",
    };
    let mut grads = net.zeros();
    // Where no hook wants to see the batches, the images go to the GPU once.
    let mut images = if hooks.sees_batches() {
        None
    } else {
        net.resident(split, spec)?
    };
    for epoch in first..recipe.epochs {
        let rate = |step, plateau: &PlateauState| {
            recipe
                .schedule
                .rate(recipe.lr, (epoch, recipe.epochs), (step, steps), plateau)
        };
        let mut row = EpochRow {
            epoch,
            lr: rate(0, &plateau),
            train_loss: 0.0,
            train_correct: 0,
            train_total: 0,
        };
        let rate = |step| rate(step, &plateau) as f32;
        let mut epoch_steps = Steps {
            net,
            sgd: &mut sgd,
            grads: &mut grads,
            hooks,
        };
        match &mut images {
            #[cfg(feature = "cuda")]
            Some(images) => epoch_steps.on_device(images, &options, &rate, &mut row)?,
            _ => {
                epoch_steps.on_host(batches(split, spec, options, epoch as u64), &rate, &mut row)?
            }
        }
        row.train_loss /= steps as f64;
        plateau.record(&recipe.schedule, row.train_loss);
        let done = epoch + 1;
        net.take_failure()?;
        if let Some(tensor) = net.first_not_finite() {
            return Err(TrainError::NotFinite {
                epoch: done,
                tensor: tensor.to_owned(),
            });
        }
        hooks.epoch(net, &row)?;
        if done % checkpoints.every == 0 && done < recipe.epochs {
            checkpoints.save(net, &sgd, done, &plateau, hooks.mark())?;
        }
    }
    Ok(())
}

/// What the steps of an epoch work on.
struct Steps<'a> {
    net: &'a mut Net,
    sgd: &'a mut Sgd,
    grads: &'a mut Flat,
    hooks: &'a mut dyn Hooks,
}

impl Steps<'_> {
    /// One step for each batch; losses and hits are added to `row`.
    fn on_host(
        &mut self,
        batches: Batches<'_>,
        rate: &dyn Fn(usize) -> f32,
        row: &mut EpochRow,
    ) -> Result<(), TrainError> {
        let epoch = row.epoch;
        for (step, mut batch) in batches.enumerate() {
            if bb_core::cli::interrupted() {
                return Err(TrainError::Interrupted { epoch });
            }
            let at = StepAt { epoch, step };
            let loss = self.hooks.gradients(self.net, at, &mut batch, self.grads)?;
            if !loss.mean.is_finite() {
                self.net.take_failure()?;
                let loss = loss.mean;
                return Err(TrainError::Diverged { epoch, step, loss });
            }
            self.sgd.step(self.net.params_mut(), self.grads, rate(step));
            row.train_loss += f64::from(loss.mean);
            row.train_correct += loss.correct as u64;
            row.train_total += batch.labels.len() as u64;
            self.hooks.step(batch.labels.len());
        }
        Ok(())
    }

    /// The same with images that are on the GPU, which is asked for its sums once, after the last step.
    #[cfg(feature = "cuda")]
    fn on_device(
        &mut self,
        images: &mut crate::cuda::DeviceSplit<'_>,
        options: &LoaderOptions,
        rate: &dyn Fn(usize) -> f32,
        row: &mut EpochRow,
    ) -> Result<(), TrainError> {
        let epoch = row.epoch;
        images.begin(options, epoch as u64).map_err(NnError::from)?;
        let steps = batch_count(images.len(), options.batch_size, options.drop_last);
        for step in 0..steps {
            if bb_core::cli::interrupted() {
                return Err(TrainError::Interrupted { epoch });
            }
            let first = step * options.batch_size;
            let range = first..(first + options.batch_size).min(images.len());
            let count = range.len();
            self.net.gradients_resident(images, range, self.grads);
            self.sgd.step(self.net.params_mut(), self.grads, rate(step));
            row.train_total += count as u64;
            self.hooks.step(count);
        }
        let tally = self.net.take_tally()?;
        if !tally.loss.is_finite() {
            return Err(TrainError::Diverged {
                epoch,
                step: steps - 1,
                loss: (tally.loss / steps as f64) as f32,
            });
        }
        row.train_loss += tally.loss;
        row.train_correct += tally.correct;
        Ok(())
    }
}
