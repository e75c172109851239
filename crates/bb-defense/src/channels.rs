//! Masks and noise on the channels of batch normalisations, the training of such masks, and pruning by them.
//!
//! A channel is one pair of scale and shift, `gamma` and `beta`. With a mask `M` and noises `N_w` and `N_b` it counts as
//! `gamma (M + N_w)` and `beta (1 + N_b)`, which is what the layers of ANP's authors compute (Wu and Wang, 2021).
//! Nothing in the engine knows of it: these products are put in the place of the network's parameters, a pass gives the
//! gradients by them, and the chain rule leads on, `dL/dM = dL/dN_w = gamma dL/dgamma'` and `dL/dN_b = beta dL/dbeta'`.

use std::fmt::Write as _;
use std::ops::Range;

use bb_core::metrics::Ratio;
use bb_core::rng;
use bb_core::settings::{SettingsError, check};
use bb_nn::data::Batch;
use bb_nn::kernels::loss::Loss;
use bb_nn::kernels::vector::sgd_momentum;
use bb_nn::net::DropoutStream;
use bb_nn::{Flat, Net, eval};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::context::{At, Ctx};
use crate::data::CleanImages;
use crate::error::DefenseError;
use crate::method::{Candidate, Repaired, Suspect};
use crate::nwc::round_decimals;
use crate::parts::clear;
use crate::settings::{choice_needs_sweep, share};

/// A batch normalisation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Norm {
    /// Its scale, a place among the parameters; its shift is the next one.
    pub weight: usize,
    /// Numbers of its channels among those of all batch normalisations.
    pub channels: Range<usize>,
}

/// The running variance, a place among the buffers, of the batch normalisation whose scale is parameter `i`; `None` if
/// that is something else.
pub fn running_variance(net: &Net, i: usize) -> Option<usize> {
    let name = &net.params().layout().entries()[i].name;
    let stem = name.strip_suffix(".weight")?;
    net.buffers()
        .layout()
        .position(&format!("{stem}.running_var"))
}

/// The channels of all batch normalisations of a network, numbered through, with the scales and shifts they had when
/// this was made.
#[derive(Clone, Debug)]
pub struct Channels {
    norms: Vec<Norm>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
}

/// One number a channel for its scale, and one for its shift: noise, or a gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct PerChannel {
    /// For the scales.
    pub scale: Vec<f32>,
    /// For the shifts.
    pub shift: Vec<f32>,
}

impl Channels {
    /// The channels of a network, in the order of its parameters.
    ///
    /// # Errors
    /// [`DefenseError::NoChannels`] if it has no batch normalisation.
    pub fn of(net: &Net) -> Result<Self, DefenseError> {
        let params = net.params();
        let mut found = Self {
            norms: Vec::new(),
            gamma: Vec::new(),
            beta: Vec::new(),
        };
        for weight in 0..params.tensors() {
            if running_variance(net, weight).is_none() {
                continue;
            }
            let first = found.gamma.len();
            found.gamma.extend(params.tensor(weight));
            found.beta.extend(params.tensor(weight + 1));
            found.norms.push(Norm {
                weight,
                channels: first..found.gamma.len(),
            });
        }
        if found.norms.is_empty() {
            return Err(DefenseError::NoChannels {
                arch: net.spec().label(),
            });
        }
        Ok(found)
    }

    /// The batch normalisations.
    pub fn norms(&self) -> &[Norm] {
        &self.norms
    }

    /// Number of channels.
    pub fn count(&self) -> usize {
        self.gamma.len()
    }

    /// Sets the scales and shifts of a network to `gamma (mask + noise.scale)` and `beta (1 + noise.shift)`; without noise
    /// to `gamma mask` and `beta`.
    ///
    /// # Panics
    /// If the network or a vector has other channels than these.
    pub fn apply(&self, net: &mut Net, mask: &[f32], noise: Option<&PerChannel>) {
        assert_eq!(mask.len(), self.count(), "one mask a channel");
        let params = net.params_mut();
        for norm in &self.norms {
            let of = |vector: &[f32], i: usize| vector[norm.channels.start + i];
            for (i, scale) in params.tensor_mut(norm.weight).iter_mut().enumerate() {
                let noise = noise.map_or(0.0, |noise| of(&noise.scale, i));
                *scale = of(&self.gamma, i) * (of(mask, i) + noise);
            }
            for (i, shift) in params.tensor_mut(norm.weight + 1).iter_mut().enumerate() {
                let noise = noise.map_or(0.0, |noise| of(&noise.shift, i));
                *shift = of(&self.beta, i) * (1.0 + noise);
            }
        }
    }

    /// The gradient by masks and noises, from that by the parameters of a network that [`Channels::apply`] made: the one
    /// by masks and by the noise of the scales, which are the same, and the one by the noise of the shifts.
    pub fn gradient(&self, grads: &Flat) -> PerChannel {
        let by = |own: &[f32], which: usize| {
            let parts = self.norms.iter().flat_map(|norm| {
                let grads = grads.tensor(norm.weight + which);
                own[norm.channels.clone()].iter().zip(grads)
            });
            parts.map(|(own, grad)| own * grad).collect()
        };
        PerChannel {
            scale: by(&self.gamma, 0),
            shift: by(&self.beta, 1),
        }
    }

    /// Sets the scales of the channels that `pruned` names to 0 and leaves their shifts; gives how many there are.
    ///
    /// # Panics
    /// If the parameters have other channels than these.
    pub fn prune(&self, params: &mut Flat, pruned: &[bool]) -> usize {
        for norm in &self.norms {
            clear(params, norm.weight, &pruned[norm.channels.clone()]);
        }
        pruned.iter().filter(|&&pruned| pruned).count()
    }

    /// The table `masks.csv`: name of the scales, channel, and mask as [`rounded`] has it.
    pub fn table(&self, net: &Net, masks: &[f32]) -> Vec<u8> {
        let entries = net.params().layout().entries();
        let mut text = "norm,channel,mask\n".to_owned();
        for norm in &self.norms {
            let name = &entries[norm.weight].name;
            for (channel, mask) in masks[norm.channels.clone()].iter().enumerate() {
                writeln!(text, "{name},{channel},{mask:.DECIMALS$}").expect("strings take all");
            }
        }
        text.into_bytes()
    }
}

impl PerChannel {
    /// Numbers uniform in `-bound..bound`, from the stream (`seed`, `purpose`, `step`) of each batch normalisation: first
    /// its scales, then its shifts.
    pub fn uniform(
        channels: &Channels,
        bound: f64,
        (seed, purpose, step): (u64, &str, u64),
    ) -> Self {
        let (mut scale, mut shift) = (Vec::new(), Vec::new());
        for (number, norm) in channels.norms.iter().enumerate() {
            let mut stream = rng::stream(seed, purpose, step, number as u64);
            for side in [&mut scale, &mut shift] {
                for _ in norm.channels.clone() {
                    side.push(((2.0 * rng::unit_f64(&mut stream) - 1.0) * bound) as f32);
                }
            }
        }
        Self { scale, shift }
    }

    /// Moves every number by `length` in the direction of the gradient's sign; where that is 0 by nothing.
    pub fn ascend(&mut self, gradient: &Self, length: f32) {
        let pairs = [
            (&mut self.scale, &gradient.scale),
            (&mut self.shift, &gradient.shift),
        ];
        for (own, gradient) in pairs {
            for (own, gradient) in own.iter_mut().zip(gradient) {
                // `signum` of 0 is 1.
                if *gradient != 0.0 {
                    *own += length * gradient.signum();
                }
            }
        }
    }
}

/// One mask a channel, in 0 to 1, and the velocity of the SGD that trains them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Masks {
    values: Vec<f32>,
    velocity: Vec<f32>,
}

impl Masks {
    /// Masks of 1, at rest.
    pub fn ones(count: usize) -> Self {
        Self {
            values: vec![1.0; count],
            velocity: vec![0.0; count],
        }
    }

    /// The masks.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// A step of SGD without weight decay, after which each mask is moved into 0 to 1.
    pub fn step(&mut self, gradient: &[f32], lr: f32, momentum: f32) {
        let (values, velocity) = (&mut self.values, &mut self.velocity);
        sgd_momentum(values, velocity, gradient, lr, momentum, 0.0, false);
        for value in values {
            *value = value.clamp(0.0, 1.0);
        }
    }

    fn all_finite(&self) -> bool {
        let mut all = self.values.iter().chain(&self.velocity);
        all.all(|value| value.is_finite())
    }
}

/// How masks are trained.
#[derive(Clone, Copy, Debug)]
pub struct Training<'a> {
    /// The stage, for rows and as name of the checkpoint.
    pub stage: &'a str,
    /// Rounds: after each there is a row and a checkpoint.
    pub rounds: usize,
    /// Steps in all rounds.
    pub steps: usize,
    /// Learning rate.
    pub lr: f64,
    /// Momentum, 0 up to but not including 1.
    pub momentum: f64,
    /// Measure the masked network after every n-th round, counted from the first; 0 never does.
    pub probe_every: usize,
}

/// How far the training of masks has come, kept in its checkpoints.
#[derive(Serialize, Deserialize)]
struct Course {
    rounds: usize,
    masks: Masks,
    /// Forward passes that drew dropout masks.
    dropout: u64,
}

/// Trains masks on the channels of `net`, which is used: round after round, each over the batches that `batches` gives
/// for it. `gradient` computes a step's loss and its gradient by the masks; it is told the round and the step in it.
///
/// It resumes where an earlier run stopped. Running statistics of `net` move as `gradient`'s passes move them, and are
/// only looked at where the masked network is measured.
///
/// # Errors
/// [`DefenseError::Diverged`] and [`DefenseError::NotFinite`] for a loss or masks that are no numbers, and what the
/// checkpoints and the log give.
pub fn train<B: Iterator<Item = Batch>>(
    part: &Training<'_>,
    net: &mut Net,
    channels: &Channels,
    mut batches: impl FnMut(usize) -> B,
    mut gradient: impl FnMut(&mut Net, &[f32], &Batch, (usize, usize)) -> (Loss, Vec<f32>),
    ctx: &mut Ctx<'_>,
) -> Result<Masks, DefenseError> {
    let mut course = Course {
        rounds: 0,
        masks: Masks::ones(channels.count()),
        dropout: net.dropout().step,
    };
    if let Some(saved) = ctx.load::<Course>(part.stage)? {
        saved.restore(net, &mut [])?;
        course = saved.progress;
        net.set_dropout(DropoutStream {
            step: course.dropout,
            ..net.dropout()
        });
    }
    let done = part.steps * course.rounds / part.rounds.max(1);
    let progress = ctx
        .progress(part.stage, "steps", part.steps as u64)
        .resumed_at(done as u64);
    while course.rounds < part.rounds {
        let round = course.rounds;
        let (mut loss_sum, mut seen, mut correct, mut steps) = (0.0, 0, 0, 0);
        for batch in batches(round) {
            ctx.check()?;
            let (loss, gradient) = gradient(net, course.masks.values(), &batch, (round, steps));
            if !loss.mean.is_finite() {
                net.take_failure()?;
                return Err(DefenseError::Diverged {
                    stage: part.stage.to_owned(),
                    epoch: round,
                    step: steps,
                    loss: loss.mean,
                });
            }
            let (lr, momentum) = (part.lr as f32, part.momentum as f32);
            course.masks.step(&gradient, lr, momentum);
            loss_sum += f64::from(loss.mean);
            correct += loss.correct as u64;
            seen += batch.labels.len() as u64;
            steps += 1;
            progress.add(1);
        }
        net.take_failure()?;
        if !course.masks.all_finite() {
            return Err(DefenseError::NotFinite {
                stage: part.stage.to_owned(),
                tensor: "mask".to_owned(),
            });
        }
        course.rounds += 1;
        course.dropout = net.dropout().step;
        let masks = course.masks.values();
        let loss = loss_sum / steps as f64;
        let mean = masks.iter().map(|&m| f64::from(m)).sum::<f64>() / masks.len() as f64;
        let row = json!({
            "train_loss": loss,
            "train_acc": Ratio { hits: correct, total: seen }.value(),
            "mask_mean": mean,
            "mask_zero": masks.iter().filter(|&&mask| mask == 0.0).count(),
        });
        progress.note(&format!(
            "round {}, loss {loss:.4}, mean mask {mean:.3}",
            course.rounds
        ));
        let at = At::stage(part.stage).epoch(round);
        ctx.record(at, &row)?;
        if part.probe_every > 0 && round.is_multiple_of(part.probe_every) {
            channels.apply(net, masks, None);
            ctx.probe(at, net);
        }
        ctx.save(part.stage, &net.state()?, &course)?;
    }
    progress.finish();
    Ok(course.masks)
}

/// How the defender chooses the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choose {
    /// It is `prune.threshold`.
    Fixed,
    /// The largest of the sweep at which the clean images are classified well enough.
    Accuracy,
}

/// Table `[prune]`: which channels are pruned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneConfig {
    /// Channels whose mask is at most this are pruned, 0 to 1.
    pub threshold: f64,
    /// How the defender chooses the threshold.
    pub choose: Choose,
    /// Relative loss of accuracy on the clean images from which `accuracy` rejects a threshold, 0 to 1.
    pub tolerance: f64,
}

/// The thresholds of the benchmark's sweep: 0, 0.05, ..., 0.9.
pub fn usual_thresholds() -> Vec<f64> {
    (0..=18).map(|i| f64::from(i) / 20.0).collect()
}

/// Checks the table `prune`, and the thresholds of a sweep with the setting that switches it on.
pub fn validate(
    prune: &PruneConfig,
    sweep: bool,
    sweep_thresholds: &[f64],
) -> Result<(), SettingsError> {
    share("prune.threshold", prune.threshold)?;
    share("prune.tolerance", prune.tolerance)?;
    let ascending = sweep_thresholds.windows(2).all(|pair| pair[0] < pair[1]);
    let inside = sweep_thresholds.iter().all(|t| (0.0..=1.0).contains(t));
    check(
        "sweep_thresholds",
        format!("{sweep_thresholds:?}"),
        "one or more ascending shares of 0 to 1",
        !sweep_thresholds.is_empty() && ascending && inside,
    )?;
    choice_needs_sweep(
        "prune.choose",
        "accuracy",
        sweep || prune.choose == Choose::Fixed,
    )
}

/// Decimals of a mask when it is compared with a threshold.
const DECIMALS: usize = 4;

/// Masks with four decimals, as the references write them to a text file and read them back.
pub fn rounded(masks: &[f32]) -> Vec<f64> {
    masks
        .iter()
        .map(|&mask| round_decimals(mask, DECIMALS))
        .collect()
}

/// Makes the models that pruning the suspect by `masks` gives, and chooses one.
///
/// There is one model for `prune.threshold` and, if `sweep` names thresholds, one for each of them. Thresholds that prune
/// the same channels make one model, named after the chosen or else the smallest one.
///
/// # Errors
/// What the network, the log and the record give.
pub fn prune(
    cfg: &PruneConfig,
    sweep: Option<&[f64]>,
    masks: &[f32],
    suspect: &Suspect<'_, CleanImages>,
    ctx: &mut Ctx<'_>,
) -> Result<Repaired, DefenseError> {
    let mut net = suspect.net()?;
    let channels = Channels::of(&net)?;
    let scores = rounded(masks);
    let before = eval::accuracy(&mut net, suspect.clean(), suspect.task())
        .map_err(DefenseError::scores("the suspect model"))?;
    let kept = match cfg.choose {
        Choose::Fixed => Some(cfg.threshold),
        Choose::Accuracy => None,
    };
    let mut thresholds = sweep.map(<[f64]>::to_vec).unwrap_or_default();
    thresholds.extend(kept);
    let thresholds = distinct(&scores, thresholds, kept);
    let (mut candidates, mut hits) = (Vec::new(), Vec::new());
    for &threshold in &thresholds {
        ctx.check()?;
        let name = format!("threshold={threshold}");
        let mut net = suspect.net()?;
        let mask: Vec<bool> = scores.iter().map(|&score| score <= threshold).collect();
        let pruned = channels.prune(net.params_mut(), &mask);
        let accuracy = eval::accuracy(&mut net, suspect.clean(), suspect.task())
            .map_err(DefenseError::scores(format!("candidate `{name}`")))?;
        let notes = json!({ "threshold": threshold, "pruned": pruned, "clean": accuracy });
        let row =
            json!({ "threshold": threshold, "pruned": pruned, "clean_acc": accuracy.value() });
        ctx.record(At::stage("prune").variant(&name), &row)?;
        hits.push(accuracy.hits);
        candidates.push(Candidate {
            name,
            state: net.state()?,
            notes,
        });
    }
    let chosen = match kept {
        Some(kept) => thresholds.iter().position(|t| t.total_cmp(&kept).is_eq()),
        None => largest_within(&hits, before.hits, cfg.tolerance),
    };
    if chosen.is_none() {
        let text = "no threshold of the sweep keeps the accuracy on the clean images within `prune.tolerance`, so the \
                    smallest one is taken";
        ctx.warn("not-within", text)?;
    }
    let chosen = chosen.unwrap_or(0);
    let (name, pruned) = (
        &candidates[chosen].name,
        &candidates[chosen].notes["pruned"],
    );
    let text = format!("{name}: {pruned} of {} channels pruned", channels.count());
    ctx.info("pruned", &text)?;
    let notes: Value = json!({
        "norms": channels.norms().len(),
        "channels": channels.count(),
        "clean_before": before,
    });
    Ok(Repaired {
        candidates,
        chosen,
        artefacts: vec![("masks.csv".to_owned(), channels.table(&net, masks))],
        notes,
    })
}

/// The thresholds in ascending order, without those that prune no more than the one before; `kept` stays, and then that
/// one goes.
fn distinct(scores: &[f64], mut thresholds: Vec<f64>, kept: Option<f64>) -> Vec<f64> {
    thresholds.sort_by(f64::total_cmp);
    let pruned = |threshold: f64| scores.iter().filter(|&&score| score <= threshold).count();
    let mut found: Vec<f64> = Vec::with_capacity(thresholds.len());
    for threshold in thresholds {
        match found.last_mut() {
            Some(last) if pruned(*last) == pruned(threshold) => {
                if kept.is_some_and(|kept| kept.total_cmp(&threshold).is_eq()) {
                    *last = threshold;
                }
            }
            _ => found.push(threshold),
        }
    }
    found
}

/// The last of the models whose loss of right answers against `before` is less than the share `tolerance` of these.
fn largest_within(hits: &[u64], before: u64, tolerance: f64) -> Option<usize> {
    let lost = |own: u64| before.saturating_sub(own) as f64;
    let within = |own: &u64| *own >= before || lost(*own) < tolerance * before as f64;
    hits.iter().rposition(within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_nn::data::Input;
    use bb_nn::{ArchSpec, Mode};
    use proptest::prelude::*;

    fn network(arch: &str) -> Net {
        let mut net = Net::new(&ArchSpec::new(arch, 4, 5).expect("a small network"), 0);
        // Scales and shifts that are no ones and zeros, so that none of them drops out of a product.
        for i in 0..net.params().tensors() {
            if running_variance(&net, i).is_none() {
                continue;
            }
            for (which, offset) in [(i, 0.6), (i + 1, -0.3)] {
                let mut stream = rng::stream(0, "channels test", which as u64, 0);
                for value in net.params_mut().tensor_mut(which) {
                    *value = offset + 0.8 * rng::unit_f32(&mut stream);
                }
            }
        }
        net
    }

    fn images(n: usize) -> (Input, Vec<u32>) {
        let mut stream = rng::stream(0, "channels test images", 0, 0);
        let data = (0..n * 32 * 32 * 3)
            .map(|_| 2.0 * rng::unit_f32(&mut stream) - 1.0)
            .collect();
        let labels = (0..n).map(|i| (i % 5) as u32).collect();
        (
            Input {
                n,
                h: 32,
                w: 32,
                data,
            },
            labels,
        )
    }

    #[test]
    fn every_network_has_its_channels() {
        for (arch, norms, channels) in [
            ("preactresnet18", 16, 3392),
            ("resnet18", 20, 4800),
            ("vgg19_bn", 16, 5504),
        ] {
            let found = Channels::of(&network(arch)).expect("it has some");
            assert_eq!(
                (found.norms().len(), found.count()),
                (norms, channels / 16),
                "{arch}"
            );
        }
    }

    #[test]
    fn masks_of_one_leave_the_bits_alone() {
        let plain = network("preactresnet18");
        let channels = Channels::of(&plain).expect("it has some");
        let mut net = plain.clone();
        channels.apply(&mut net, &vec![1.0; channels.count()], None);
        assert!(net.params().data() == plain.params().data());
        let nothing = PerChannel {
            scale: vec![0.0; channels.count()],
            shift: vec![0.0; channels.count()],
        };
        channels.apply(&mut net, &vec![1.0; channels.count()], Some(&nothing));
        assert!(net.params().data() == plain.params().data());
    }

    /// The gradient by masks and noises is what small changes of them do to the loss.
    #[test]
    fn gradients_follow_the_chain_rule() {
        let mut net = network("preactresnet18");
        let channels = Channels::of(&net).expect("it has some");
        let (input, labels) = images(4);
        let mask: Vec<f32> = (0..channels.count())
            .map(|i| 0.5 + (i % 4) as f32 / 8.0)
            .collect();
        let noise = PerChannel::uniform(&channels, 0.2, (0, "channels test noise", 0));
        let mut grads = net.zeros();
        channels.apply(&mut net, &mask, Some(&noise));
        net.loss_grad(&input, &labels, Mode::TrainKeepStats, &mut grads);
        let found = channels.gradient(&grads);

        // Along a direction of the same signs as the gradient no two contributions cancel.
        let step = 1e-3;
        let mut slope = |side: &str, gradient: &[f32]| {
            let mut loss = |sign: f32| {
                let (mut mask, mut noise) = (mask.clone(), noise.clone());
                let moved = match side {
                    "mask" => &mut mask,
                    "scale" => &mut noise.scale,
                    _ => &mut noise.shift,
                };
                for (value, gradient) in moved.iter_mut().zip(gradient) {
                    *value += sign * step * gradient.signum();
                }
                channels.apply(&mut net, &mask, Some(&noise));
                f64::from(
                    net.loss_grad(&input, &labels, Mode::TrainKeepStats, &mut grads)
                        .mean,
                )
            };
            let slope = (loss(1.0) - loss(-1.0)) / f64::from(2.0 * step);
            let wanted: f64 = gradient.iter().map(|&g| f64::from(g.abs())).sum();
            assert!(
                (slope - wanted).abs() < 0.02 * wanted,
                "{side}: {slope} against {wanted}"
            );
        };
        slope("mask", &found.scale);
        slope("scale", &found.scale);
        slope("shift", &found.shift);
    }

    #[test]
    fn noise_is_uniform_and_steps_go_by_sign() {
        let channels = Channels::of(&network("preactresnet18")).expect("it has some");
        let noise = PerChannel::uniform(&channels, 0.4, (0, "channels test", 3));
        let all: Vec<f32> = noise.scale.iter().chain(&noise.shift).copied().collect();
        assert_eq!(all.len(), 2 * channels.count());
        assert!(all.iter().all(|v| v.abs() <= 0.4) && all.iter().any(|v| v.abs() > 0.39));
        let mean = all.iter().map(|&v| f64::from(v)).sum::<f64>() / all.len() as f64;
        assert!(mean.abs() < 0.05, "{mean}");
        let other = PerChannel::uniform(&channels, 0.4, (0, "channels test", 4));
        assert_ne!(noise, other);

        let mut moved = PerChannel {
            scale: vec![0.0, 0.0, 0.0],
            shift: vec![0.25],
        };
        let gradient = PerChannel {
            scale: vec![3.0, 0.0, -1e-20],
            shift: vec![-2.0],
        };
        moved.ascend(&gradient, 0.5);
        assert_eq!(moved.scale, [0.5, 0.0, -0.5]);
        assert_eq!(moved.shift, [-0.25]);
    }

    #[test]
    fn masks_stay_between_zero_and_one() {
        let mut masks = Masks::ones(3);
        masks.step(&[0.5, -1.0, 4.0], 0.5, 0.5);
        assert_eq!(masks.values(), [0.75, 1.0, 0.0]);
        // The velocity is not cut: 0.5 * (0.5, -1, 4).
        masks.step(&[0.0, 0.0, 0.0], 0.5, 0.5);
        assert_eq!(masks.values(), [0.625, 1.0, 0.0]);
        masks.step(&[0.0, 3.0, -8.0], 0.5, 0.5);
        assert_eq!(masks.velocity, [0.125, 2.75, -7.0]);
        assert_eq!(masks.values(), [0.5625, 0.0, 1.0]);
    }

    #[test]
    fn masks_that_are_no_numbers_end_the_training() {
        let part = Training {
            stage: "test",
            rounds: 2,
            steps: 2,
            lr: 0.1,
            momentum: 0.9,
            probe_every: 0,
        };
        // The gradient of a step, and what a round must end in; the loss is a number in all.
        for (wrong, refused) in [(0.5, false), (f32::NAN, true), (f32::INFINITY, true)] {
            let mut net = network("preactresnet18");
            let channels = Channels::of(&net).expect("it has some");
            let (input, labels) = images(2);
            let batch = Batch {
                input,
                labels,
                indices: vec![0, 1],
            };
            let gradient = |_: &mut Net, masks: &[f32], _: &Batch, _| {
                let mut gradient = vec![0.0; masks.len()];
                gradient[3] = wrong;
                let loss = Loss {
                    mean: 1.0,
                    correct: 1,
                };
                (loss, gradient)
            };
            let batches = |_| std::iter::once(batch.clone());
            let mut ctx = Ctx::detached(0);
            let trained = train(&part, &mut net, &channels, batches, gradient, &mut ctx);
            match trained {
                Ok(masks) => assert!(!refused && masks.values()[3] < 1.0, "{wrong}"),
                Err(DefenseError::NotFinite { stage, tensor }) => {
                    assert!(
                        refused && (&*stage, &*tensor) == ("test", "mask"),
                        "{wrong}"
                    );
                }
                Err(other) => panic!("{wrong}: {other}"),
            }
        }
    }

    #[test]
    fn pruning_clears_scales_alone() {
        let plain = network("preactresnet18");
        let channels = Channels::of(&plain).expect("it has some");
        let pruned: Vec<bool> = (0..channels.count()).map(|i| i % 7 == 0).collect();
        let mut params = plain.params().clone();
        let count = channels.prune(&mut params, &pruned);
        assert_eq!(count, channels.count().div_ceil(7));
        let changed: usize = (0..params.tensors())
            .map(|i| {
                let pairs = params.tensor(i).iter().zip(plain.params().tensor(i));
                pairs
                    .filter(|(own, before)| own.to_bits() != before.to_bits())
                    .inspect(|(own, _)| assert_eq!(own.to_bits(), 0))
                    .count()
            })
            .sum();
        assert_eq!(changed, count);
        let first = channels.norms()[0].weight;
        assert_eq!(params.tensor(first)[0].to_bits(), 0);
    }

    #[test]
    fn thresholds_that_prune_alike_are_one() {
        let scores = [0.0, 0.3, 0.3, 0.9];
        let all = vec![0.0, 0.1, 0.2, 0.3, 0.5, 0.9];
        assert_eq!(distinct(&scores, all.clone(), None), [0.0, 0.3, 0.9]);
        let with = |kept| {
            let mut all = all.clone();
            all.push(kept);
            distinct(&scores, all, Some(kept))
        };
        assert_eq!(with(0.2), [0.2, 0.3, 0.9], "the chosen one names the model");
        assert_eq!(with(0.7), [0.0, 0.7, 0.9]);
        assert_eq!(distinct(&[1.0], vec![0.2], Some(0.2)), [0.2]);
    }

    #[test]
    fn the_choice_by_accuracy_is_the_largest_threshold_within() {
        assert_eq!(largest_within(&[100, 95, 89, 91, 50], 100, 0.1), Some(3));
        assert_eq!(
            largest_within(&[100, 90], 100, 0.1),
            Some(0),
            "a tenth is no longer less"
        );
        assert_eq!(largest_within(&[90, 50], 100, 0.0), None);
        assert_eq!(largest_within(&[90, 100], 100, 0.0), Some(1));
        assert_eq!(largest_within(&[7, 9], 8, 0.0), Some(1), "more is no loss");
    }

    proptest! {
        #[test]
        fn a_mask_is_pruned_up_to_its_own_four_decimals(mask in 0.0f32..=1.0) {
            let score = rounded(&[mask])[0];
            prop_assert!((score - f64::from(mask)).abs() <= 0.5001e-4);
            let text = format!("{mask:.4}");
            let read: f64 = text.parse().expect("a number");
            prop_assert_eq!(score.to_bits(), read.to_bits());
        }
    }
}
