//! Stage 1a: clean unlearning, and the weight change that it leaves.

use std::collections::BTreeSet;

use bb_core::metrics::Ratio;
use bb_core::precision::Precision;
use bb_nn::data::{LoaderOptions, batches};
use bb_nn::net::DropoutStream;
use bb_nn::optim::Sgd;
use bb_nn::{Mode, Net, eval};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::algorithm::NormRecord;
use super::config::{LAST, TsbdConfig};
use crate::context::{At, Ctx, training_state};
use crate::data::CleanImages;
use crate::error::DefenseError;
use crate::method::Suspect;
use crate::nwc::{WeightChange, layers, plain_tensors, target_tensors};
use crate::unlearning::ascend;

const STAGE: &str = "unlearn";

/// What clean unlearning found.
#[derive(Clone, Debug)]
pub struct Unlearned {
    /// How far each weight of the target layers moved.
    pub change: WeightChange,
    /// How it went.
    pub course: Course,
}

/// How unlearning went, kept in its checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// Finished epochs.
    pub epochs: usize,
    /// Whether the accuracy fell to the threshold; otherwise the cap on the epochs ended it.
    pub reached: bool,
    /// Whether it ended because every clean image was given the same class.
    pub constant: bool,
    /// Accuracy on the clean images after the last epoch.
    pub accuracy: Option<Ratio>,
    /// Mean and variance over the steps of the first epoch of the L1 norm of each neuron's gradient in the recorded
    /// layer; empty if none is recorded.
    pub activeness: Vec<(f64, f64)>,
    /// Forward passes that drew dropout masks.
    #[serde(default)]
    pub dropout: u64,
}

/// An epoch of unlearning that has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epoch {
    /// Its number, counted from 0.
    pub number: usize,
    /// Mean of the steps' losses, each before its step.
    pub train_loss: f64,
    /// Images that were right before the step they were part of.
    pub train_acc: Ratio,
    /// Images that are right now, in eval mode.
    pub accuracy: Ratio,
}

/// Unlearns a copy of the suspect model until it has forgotten the clean images.
///
/// The unlearned model itself is dropped, with its running statistics: only the weight change is used.
pub fn run(
    cfg: &TsbdConfig,
    suspect: &Suspect<'_, CleanImages>,
    ctx: &mut Ctx<'_>,
) -> Result<Unlearned, DefenseError> {
    watched(cfg, suspect, ctx, &mut |_, _| Ok(()))
}

/// [`run`], showing `watch` the network after each epoch. A run that resumes shows only the epochs that were left.
pub fn watched(
    cfg: &TsbdConfig,
    suspect: &Suspect<'_, CleanImages>,
    ctx: &mut Ctx<'_>,
    watch: &mut dyn FnMut(&Epoch, &mut Net) -> Result<(), DefenseError>,
) -> Result<Unlearned, DefenseError> {
    let unlearn = &cfg.unlearn;
    let mut net = suspect.net()?;
    let targets = target_tensors(net.params(), &cfg.layers.exclude);
    let original = plain_tensors(net.params(), &targets);
    let recorded = recorded_tensor(&net, &cfg.record_layer, &targets)?;

    let mut sgd = Sgd::new(net.params(), unlearn.momentum as f32, 0.0, false);
    let mut course = Course::default();
    if let Some(saved) = ctx.load::<Course>(STAGE)? {
        saved.restore_training(&mut net, &mut sgd)?;
        course = saved.progress;
        net.set_dropout(DropoutStream {
            step: course.dropout,
            ..net.dropout()
        });
    }
    let (clean, task) = (suspect.clean(), suspect.task());
    let options = LoaderOptions {
        batch_size: unlearn.batch_size,
        shuffle: unlearn.shuffle,
        drop_last: false,
        augment: unlearn.augment,
        seed: ctx.seed(),
        purpose: "tsbd/unlearn",
    };
    let mut grads = net.zeros();
    // How many epochs it takes is not known before, so the total is that of the cap.
    let images = clean.len() as u64;
    let progress = ctx
        .progress(
            "unlearn, at most",
            "images",
            images * unlearn.max_epochs as u64,
        )
        .resumed_at(images * course.epochs as u64);
    while !course.reached && !course.constant && course.epochs < unlearn.max_epochs {
        let epoch = course.epochs;
        let mut record = NormRecord::default();
        let (mut loss_sum, mut correct, mut steps) = (0.0, 0, 0);
        for batch in batches(clean, task, options, epoch as u64) {
            ctx.check()?;
            let loss = ascend(
                &mut net,
                &mut sgd,
                &mut grads,
                (&batch.input, &batch.labels),
                unlearn.lr as f32,
                None,
            );
            if !loss.mean.is_finite() {
                net.take_failure()?;
                return Err(DefenseError::Diverged {
                    stage: STAGE.to_owned(),
                    epoch,
                    step: steps,
                    loss: loss.mean,
                });
            }
            if let Some(tensor) = recorded.filter(|_| epoch == 0) {
                record.push(grads.channel_l1(tensor));
            }
            loss_sum += f64::from(loss.mean);
            correct += loss.correct as u64;
            steps += 1;
            progress.add(batch.labels.len() as u64);
        }
        if epoch == 0 {
            course.activeness = record.summary();
        }
        // The stop test sees the clean images augmented once more, as the reference's loader gives them.
        let check = LoaderOptions {
            shuffle: false,
            purpose: "tsbd/unlearn-check",
            ..options
        };
        // It is a measurement, so it is computed in `f32` as all of them are.
        net = net.with_precision(Precision::F32)?;
        let mut logits = Vec::with_capacity(clean.len() * task.classes);
        for batch in batches(clean, task, check, epoch as u64) {
            logits.extend(net.forward(&batch.input, Mode::Eval));
        }
        net.take_failure()?;
        // In the images' own order, since they were not shuffled.
        let said = eval::classes(&logits, task.classes).map_err(|error| {
            let network = format!("{STAGE} diverged: the model after epoch {}", epoch + 1);
            DefenseError::scores(network)(error.into())
        })?;
        let hits = eval::agreement(&said, &clean.labels).hits;
        let predicted: BTreeSet<u32> = said.into_iter().collect();
        net = net.with_precision(suspect.precision())?;
        let accuracy = Ratio {
            hits,
            total: images,
        };
        course.epochs += 1;
        course.accuracy = Some(accuracy);
        course.reached = hits as f64 / images as f64 <= unlearn.stop_accuracy;
        course.constant = unlearn.stop_constant && predicted.len() == 1;
        course.dropout = net.dropout().step;
        let ended = Epoch {
            number: epoch,
            train_loss: loss_sum / f64::from(steps as u32),
            train_acc: Ratio {
                hits: correct,
                total: images,
            },
            accuracy,
        };
        let row = json!({
            "train_loss": ended.train_loss,
            "train_acc": ended.train_acc.value(),
            "clean_acc": accuracy.value(),
        });
        progress.note(&format!(
            "epoch {}, {hits} of {images} right",
            course.epochs
        ));
        ctx.record(At::stage(STAGE).epoch(epoch), &row)?;
        ctx.save(STAGE, &training_state(&net, &sgd)?, &course)?;
        watch(&ended, &mut net)?;
    }
    drop(progress);
    let percent = course.accuracy.and_then(Ratio::percent).unwrap_or(100.0);
    let text = format!(
        "unlearning ended after epoch {}: {percent:.2} % of the clean images right",
        course.epochs
    );
    if course.reached {
        ctx.info("unlearned", &text)?;
    } else if course.constant {
        ctx.info("unlearned", &format!("{text}, all of one class"))?;
    } else {
        let goal = 100.0 * unlearn.stop_accuracy;
        ctx.warn(
            "not-unlearned",
            &format!("{text}, which is above `unlearn.stop_accuracy` ({goal} %)"),
        )?;
    }
    if let Some(tensor) = net.params().first_not_finite() {
        return Err(DefenseError::NotFinite {
            stage: STAGE.to_owned(),
            tensor: tensor.to_owned(),
        });
    }
    let unlearned = plain_tensors(net.params(), &targets);
    let change = WeightChange::new(&layers(&original), &layers(&unlearned))?;
    Ok(Unlearned { change, course })
}

/// The place of the tensor that `record_layer` stands for, if it stands for one.
fn recorded_tensor(
    net: &Net,
    name: &str,
    targets: &[usize],
) -> Result<Option<usize>, DefenseError> {
    if name.is_empty() {
        return Ok(None);
    }
    if name == LAST {
        return Ok(targets.last().copied());
    }
    let position = net.params().layout().position(name);
    position.map(Some).ok_or_else(|| DefenseError::NoTensor {
        key: "record_layer",
        name: name.to_owned(),
        arch: net.spec().label(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::head;
    use crate::testing::known;
    use bb_core::data::{DatasetSpec, Split};
    use bb_nn::StateDict;

    /// What a network says of the images after `epoch`, with batches of 16.
    fn said(
        net: &mut Net,
        (clean, task): (&Split, &DatasetSpec),
        (augment, mode): (bool, Mode),
        epoch: usize,
    ) -> Vec<u32> {
        let options = LoaderOptions {
            batch_size: 16,
            shuffle: false,
            drop_last: false,
            augment,
            seed: 0,
            purpose: "tsbd/unlearn-check",
        };
        let mut logits = Vec::new();
        for batch in batches(clean, task, options, epoch as u64) {
            logits.extend(net.forward(&batch.input, mode));
        }
        eval::classes(&logits, task.classes).expect("numbers")
    }

    /// So slow that little but the running statistics changes.
    fn config(max_epochs: usize, stop_accuracy: f64, stop_constant: bool) -> TsbdConfig {
        let mut cfg = TsbdConfig::default();
        (cfg.unlearn.batch_size, cfg.unlearn.lr) = (16, 1e-7);
        (cfg.unlearn.max_epochs, cfg.unlearn.stop_accuracy) = (max_epochs, stop_accuracy);
        cfg.unlearn.stop_constant = stop_constant;
        cfg
    }

    #[test]
    fn the_stop_test_is_of_augmented_images_in_eval_mode() {
        let (arch, task, state, clean) = known(60);
        let run = |cfg: &TsbdConfig, watch: &mut dyn FnMut(&Epoch, &mut Net)| {
            let suspect = Suspect::new(&arch, task, &state, &clean);
            let mut ctx = Ctx::detached(0);
            watched(cfg, &suspect, &mut ctx, &mut |epoch, net| {
                watch(epoch, net);
                Ok(())
            })
        };
        let mut right = Vec::new();
        let unlearned = run(&config(3, 0.0, false), &mut |epoch, net| {
            let suspect = Suspect::new(&arch, task, &state, &clean);
            let clean = suspect.clean();
            let mut hits = |augment, mode| {
                let said = said(net, (clean, task), (augment, mode), epoch.number);
                eval::agreement(&said, &clean.labels).hits
            };
            let own = hits(true, Mode::Eval);
            assert_eq!((epoch.accuracy.hits, epoch.accuracy.total), (own, 60));
            right.push((
                own,
                hits(false, Mode::Eval),
                hits(true, Mode::TrainKeepStats),
            ));
        });
        assert_eq!(unlearned.expect("unlearned").course.epochs, 3);
        assert!(
            right.iter().any(|(own, plain, _)| own != plain)
                && right.iter().any(|(own, _, train)| own != train),
            "the images and the mode have to matter: {right:?}"
        );

        // It ends as soon as the accuracy is no more than the threshold.
        let first = right[0].0 as f64 / 60.0;
        let epochs = |stop| {
            let unlearned = run(&config(3, stop, false), &mut |_, _| ());
            let course = unlearned.expect("unlearned").course;
            (course.epochs, course.reached)
        };
        assert_eq!(epochs(first), (1, true));
        assert!(epochs(first - 1e-9).0 > 1);
    }

    #[test]
    fn one_class_for_all_images_ends_it_if_asked_to() {
        let (arch, task, state, clean) = known(60);
        let mut constant = Net::from_state(&arch, &state).expect("the state fits");
        let head = head(&constant).expect("a classifier");
        let mut bias = vec![0.0; head.classes];
        // A class that some of the images have.
        bias[7] = 50.0;
        constant.params_mut().set_plain(head.bias, &bias);
        let constant = constant.state().expect("a state");
        let run = |state: &StateDict, stop_constant| {
            let cfg = config(2, 0.05, stop_constant);
            let suspect = Suspect::new(&arch, task, state, &clean);
            let mut ctx = Ctx::detached(0);
            let mut classes = Vec::new();
            let unlearned = watched(&cfg, &suspect, &mut ctx, &mut |epoch, net| {
                let data = (suspect.clean(), task);
                let said = said(net, data, (true, Mode::Eval), epoch.number);
                classes.push(said.into_iter().collect::<BTreeSet<_>>().len());
                Ok(())
            });
            let course = unlearned.expect("unlearned").course;
            assert!(!course.reached);
            (course.epochs, course.constant, classes)
        };
        assert_eq!(run(&constant, true), (1, true, vec![1]));
        assert_eq!(run(&constant, false), (2, false, vec![1, 1]));
        let (epochs, ended, classes) = run(&state, true);
        assert_eq!((epochs, ended), (2, false));
        assert!(classes.iter().all(|n| (2..=9).contains(n)), "{classes:?}");
    }
}
