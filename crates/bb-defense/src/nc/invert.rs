//! Stage 1: the smallest trigger that leads to a class, for every class.

use std::sync::Arc;

use bb_core::data::DatasetSpec;
use bb_core::precision::Precision;
use bb_nn::data::{Input, LoaderOptions, batch_count, batches};
use bb_nn::flat::Layout;
use bb_nn::kernels::loss::Loss;
use bb_nn::optim::Adam;
use bb_nn::{Flat, Mode, Net, StateDict};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::config::{InvertConfig, NcConfig, Normalisation};
use super::search::Search;
use crate::context::{At, Ctx};
use crate::data::CleanImages;
use crate::error::DefenseError;
use crate::method::Suspect;

/// Where the variables of mask and pattern start.
const START: f32 = 1.0;

/// Places of the two tensors of a [`Trigger`].
const MASK: usize = 0;
const PATTERN: usize = 1;

/// A mask `[1, h, w]` and a pattern `[3, h, w]`, both within 0 to 1: the image with it is
/// `(1 - mask) * image + mask * pattern`.
#[derive(Clone, Debug)]
pub struct Trigger {
    values: Flat,
}

/// A vector of a mask and a pattern, or of what belongs to them.
fn zeros(height: usize, width: usize) -> Flat {
    let mask: &[usize] = &[1, height, width];
    let layout = Layout::plain(&[("mask", mask), ("pattern", &[3, height, width])]);
    Flat::zeros(&Arc::new(layout))
}

impl Trigger {
    /// A trigger of `(height, width)` pixels from its values in PyTorch's order.
    ///
    /// # Panics
    /// If there are more or fewer values.
    pub fn from_parts((height, width): (usize, usize), mask: &[f32], pattern: &[f32]) -> Self {
        let mut values = zeros(height, width);
        values.set_plain(MASK, mask);
        values.set_plain(PATTERN, pattern);
        Self { values }
    }

    /// The mask, row by row.
    pub fn mask(&self) -> &[f32] {
        self.values.tensor(MASK)
    }

    /// The pattern, three planes.
    pub fn pattern(&self) -> &[f32] {
        self.values.tensor(PATTERN)
    }

    /// L1 norm of the mask, in pixels.
    pub fn norm(&self) -> f64 {
        let absolute = self.mask().iter().map(|&m| f64::from(m).abs());
        absolute.sum()
    }

    /// Adds mask and pattern to `state` behind `prefix`.
    pub fn insert_into(&self, state: &mut StateDict, prefix: &str) -> Result<(), DefenseError> {
        Ok(state.insert_flat(prefix, &self.values)?)
    }

    /// The trigger on images that are normalised as those of `task`, with its pattern normalised in one way or the other.
    pub fn placed(&self, task: &DatasetSpec, normalise: Normalisation) -> Placed {
        let (pixels, width) = (self.mask().len(), task.width);
        let (mut pattern, mut slope) = (vec![0.0; 3 * pixels], vec![1.0; 3 * pixels]);
        for (c, plane) in self.pattern().chunks_exact(pixels).enumerate() {
            for (i, p) in plane.iter().enumerate() {
                let at = i * 3 + c;
                pattern[at] = *p;
                if let Some(by) = normalise.channel(c, i / width) {
                    pattern[at] = (p - task.mean[by]) / task.std[by];
                    slope[at] = 1.0 / f64::from(task.std[by]);
                }
            }
        }
        Placed {
            mask: self.mask().to_vec(),
            pattern,
            slope,
        }
    }
}

/// A trigger on the scale and in the order of a network's input.
#[derive(Clone, Debug)]
pub struct Placed {
    /// `[h, w]`.
    mask: Vec<f32>,
    /// `[h, w, 3]`.
    pattern: Vec<f32>,
    /// Slope of the normalised pattern by the pattern, `[h, w, 3]`.
    slope: Vec<f64>,
}

impl Placed {
    /// The images with the trigger.
    ///
    /// # Panics
    /// If they are of another size.
    pub fn stamp(&self, input: &Input) -> Input {
        assert_eq!(input.h * input.w, self.mask.len(), "pixels of an image");
        let mut stamped = input.clone();
        for image in stamped.data.chunks_exact_mut(self.pattern.len()) {
            let pixels = image.chunks_exact_mut(3).zip(self.pattern.chunks_exact(3));
            for ((pixel, pattern), mask) in pixels.zip(&self.mask) {
                for (x, p) in pixel.iter_mut().zip(pattern) {
                    *x = (1.0 - mask) * *x + mask * p;
                }
            }
        }
        stamped
    }
}

/// What a step found before it was made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Cross-entropy towards the class, and images that go to it.
    pub loss: Loss,
    /// L1 norm of the mask.
    pub norm: f64,
}

/// Mask and pattern as variables without bounds, of which they are `tanh(v) / 2 + 1 / 2`, and their optimiser.
#[derive(Debug)]
pub struct Inverter<'a> {
    task: &'a DatasetSpec,
    normalise: Normalisation,
    lr: f32,
    variables: Flat,
    adam: Adam,
    grads: Flat,
}

impl<'a> Inverter<'a> {
    /// An optimiser at rest, with all variables at 1.
    pub fn new(cfg: &InvertConfig, task: &'a DatasetSpec) -> Self {
        let mut variables = zeros(task.height, task.width);
        variables.data_mut().fill(START);
        Self {
            task,
            normalise: cfg.normalise,
            lr: cfg.lr as f32,
            adam: Adam::new(&variables, (cfg.beta1, cfg.beta2)),
            grads: zeros(task.height, task.width),
            variables,
        }
    }

    /// The variables, of mask and pattern.
    pub fn variables(&self) -> &Flat {
        &self.variables
    }

    /// See [`Inverter::variables`].
    pub fn variables_mut(&mut self) -> &mut Flat {
        &mut self.variables
    }

    /// The gradient of the last step.
    pub fn gradient(&self) -> &Flat {
        &self.grads
    }

    /// The trigger that the variables stand for.
    pub fn trigger(&self) -> Trigger {
        let mut values = self.variables.clone();
        for v in values.data_mut() {
            *v = v.tanh() / 2.0 + 0.5;
        }
        Trigger { values }
    }

    /// One step down the cross-entropy towards `class` of the images with the trigger, plus `cost` times the mask's
    /// norm.
    pub fn step(&mut self, net: &mut Net, input: &Input, class: u32, cost: f64) -> Found {
        let found = self.slope(net, input, class, cost);
        self.adam.step(&mut self.variables, &self.grads, self.lr);
        found
    }

    /// The gradient of that loss by the variables, which is left in the inverter.
    fn slope(&mut self, net: &mut Net, input: &Input, class: u32, cost: f64) -> Found {
        let trigger = self.trigger();
        let placed = trigger.placed(self.task, self.normalise);
        let stamped = placed.stamp(input);
        let (loss, slope) = net.loss_input_gradient(&stamped, &vec![class; input.n], Mode::Eval);
        let (mask, pattern) = (&placed.mask, &placed.pattern);
        let pixels = mask.len();
        // Sums over the images, by the mask and by the normalised image at each pixel.
        let mut by_mask = vec![0.0; pixels];
        let mut by_pixel = vec![0.0; 3 * pixels];
        let images = input.data.chunks_exact(3 * pixels);
        for (image, slope) in images.zip(slope.chunks_exact(3 * pixels)) {
            for (i, by_mask) in by_mask.iter_mut().enumerate() {
                for at in 3 * i..3 * i + 3 {
                    let slope = f64::from(slope[at]);
                    *by_mask += slope * f64::from(pattern[at] - image[at]);
                    by_pixel[at] += slope;
                }
            }
        }
        // The slope of `tanh(v) / 2 + 1 / 2`, in terms of its value.
        let inner = |value: f32| {
            let t = 2.0 * f64::from(value) - 1.0;
            (1.0 - t * t) / 2.0
        };
        for (i, slope) in self.grads.tensor_mut(MASK).iter_mut().enumerate() {
            // No mask is below 0, so its norm grows as fast as it does.
            *slope = ((by_mask[i] + cost) * inner(mask[i])) as f32;
        }
        let planes = trigger.pattern().chunks_exact(pixels).enumerate();
        for ((c, plane), slopes) in
            planes.zip(self.grads.tensor_mut(PATTERN).chunks_exact_mut(pixels))
        {
            for (i, (value, slope)) in plane.iter().zip(slopes).enumerate() {
                let at = i * 3 + c;
                let by_pattern = by_pixel[at] * f64::from(mask[i]) * placed.slope[at];
                *slope = (by_pattern * inner(*value)) as f32;
            }
        }
        Found {
            loss,
            norm: trigger.norm(),
        }
    }
}

/// The trigger of a class, and how it was found.
#[derive(Clone, Debug)]
pub struct Inverted {
    /// The trigger.
    pub trigger: Trigger,
    /// How it was found.
    pub course: Course,
}

/// How a class's trigger was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// The class.
    pub class: usize,
    /// The search, with the number of its epochs.
    pub search: Search,
    /// Share of the images that went to the class in the epoch of the trigger that is kept.
    pub success: f64,
    /// Steps of Adam.
    steps: u64,
}

const STAGE: &str = "invert";
/// What the variables, Adam's moments and the trigger kept so far are called in a checkpoint.
const PARTS: [&str; 4] = ["variables.", "mean.", "square.", "kept."];

/// Finds the trigger of every class of the suspect model.
///
/// # Errors
/// [`DefenseError::Diverged`] if a loss is not finite.
pub fn all(
    cfg: &NcConfig,
    suspect: &Suspect<'_, CleanImages>,
    ctx: &mut Ctx<'_>,
) -> Result<Vec<Inverted>, DefenseError> {
    let task = suspect.task();
    // The network is not trained but looked at, which is done in `f32`.
    let mut net = suspect.net()?.with_precision(Precision::F32)?;
    let mut found = Vec::with_capacity(task.classes);
    for class in 0..task.classes {
        let done = format!("trigger-{class}");
        let mut values = zeros(task.height, task.width);
        if let Some(saved) = ctx.load::<Course>(&done)? {
            saved.read_flat("", &mut values)?;
            found.push(Inverted {
                trigger: Trigger { values },
                course: saved.progress,
            });
            continue;
        }
        let inverted = one(&cfg.invert, suspect, &mut net, class, ctx)?;
        let mut state = StateDict::new();
        inverted.trigger.insert_into(&mut state, "")?;
        let Course {
            search, success, ..
        } = &inverted.course;
        let text = format!(
            "class {class}: {:.2} pixels send {:.2} % of the images there, after {} epochs",
            inverted.trigger.norm(),
            100.0 * success,
            search.epochs,
        );
        ctx.info("inverted", &text)?;
        ctx.save(&done, &state, &inverted.course)?;
        found.push(inverted);
    }
    Ok(found)
}

/// Finds the trigger of one class, going on where an earlier run stopped.
fn one(
    cfg: &InvertConfig,
    suspect: &Suspect<'_, CleanImages>,
    net: &mut Net,
    class: usize,
    ctx: &mut Ctx<'_>,
) -> Result<Inverted, DefenseError> {
    let (clean, task) = (suspect.clean(), suspect.task());
    let mut inverter = Inverter::new(cfg, task);
    let mut kept = inverter.trigger();
    let mut course = Course {
        class,
        search: Search::new(cfg),
        success: 0.0,
        steps: 0,
    };
    if let Some(saved) = ctx.load::<Course>(STAGE)? {
        // The file is used for one class after the other.
        if saved.progress.class == class {
            let Inverter {
                variables, adam, ..
            } = &mut inverter;
            adam.set_steps(saved.progress.steps);
            let (mean, square) = adam.moments_mut();
            let vectors = [variables, mean, square, &mut kept.values];
            for (part, vector) in PARTS.iter().zip(vectors) {
                saved.read_flat(part, vector)?;
            }
            course = saved.progress;
        }
    }
    let options = LoaderOptions {
        batch_size: cfg.batch_size,
        shuffle: cfg.shuffle,
        drop_last: false,
        augment: cfg.augment,
        seed: ctx.seed(),
        purpose: "nc/invert",
    };
    let images = clean.len() as u64;
    let label = format!("{STAGE} class {class} of {}, at most", task.classes);
    let progress = ctx
        .progress(&label, "images", images * cfg.max_epochs as u64)
        .resumed_at(images * course.search.epochs as u64);
    let count = batch_count(clean.len(), cfg.batch_size, false) as f64;
    let target = u32::try_from(class).expect("classes are few");
    let mut stop = false;
    while !stop && course.search.epochs < cfg.max_epochs {
        let epoch = course.search.epochs;
        let cost = course.search.cost;
        let (mut loss_sum, mut success, mut norm) = (0.0, 0.0, 0.0);
        // Each class draws orders and crops of its own.
        let drawn = ((class as u64) << 32) + epoch as u64;
        for (step, batch) in batches(clean, task, options, drawn).enumerate() {
            ctx.check()?;
            let found = inverter.step(net, &batch.input, target, cost);
            if !found.loss.mean.is_finite() {
                net.take_failure()?;
                return Err(DefenseError::Diverged {
                    stage: format!("{STAGE} class {class}"),
                    epoch,
                    step,
                    loss: found.loss.mean,
                });
            }
            loss_sum += f64::from(found.loss.mean);
            success += found.loss.correct as f64 / batch.labels.len() as f64;
            norm += found.norm;
            progress.add(batch.labels.len() as u64);
        }
        net.take_failure()?;
        let (success, norm) = (success / count, norm / count);
        let verdict = course.search.epoch(cfg, success, norm);
        if verdict.keep {
            kept = inverter.trigger();
            course.success = success;
        }
        course.steps = inverter.adam.steps();
        stop = verdict.stop;
        let row = json!({
            "class": class,
            "train_loss": loss_sum / count,
            "success": success,
            "norm": norm,
            "cost": cost,
        });
        progress.note(&format!(
            "epoch {}, {:.2} % to the class, {norm:.2} pixels",
            epoch + 1,
            100.0 * success
        ));
        ctx.record(At::stage(STAGE).epoch(epoch), &row)?;
        if !stop && course.search.epochs < cfg.max_epochs {
            let (mean, square) = inverter.adam.moments();
            let mut state = StateDict::new();
            let vectors = [&inverter.variables, mean, square, &kept.values];
            for (part, vector) in PARTS.iter().zip(vectors) {
                state.insert_flat(part, vector)?;
            }
            ctx.save(STAGE, &state, &course)?;
        }
    }
    progress.finish();
    Ok(Inverted {
        trigger: kept,
        course,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nc::config::NcConfig;
    use bb_core::data::spec;
    use bb_core::rng;
    use bb_nn::ArchSpec;
    use std::collections::BTreeMap;

    fn drawn(len: usize, index: u64) -> Vec<f32> {
        let mut stream = rng::stream(0, "inversion tests", 0, index);
        (0..len)
            .map(|_| 2.0 * rng::unit_f32(&mut stream) - 1.0)
            .collect()
    }

    fn network(arch: &str) -> Net {
        let arch = ArchSpec::new(arch, 4, 10).expect("a small network");
        Net::new(&arch, 1)
    }

    fn images(task: &DatasetSpec, n: usize) -> Input {
        let (h, w) = (task.height, task.width);
        let data = drawn(n * h * w * 3, 0);
        Input { n, h, w, data }
    }

    #[test]
    fn a_stamp_covers_what_its_mask_says() {
        let task = spec("cifar10").expect("a dataset");
        let pixels = task.height * task.width;
        let input = images(task, 2);
        let mut mask = vec![0.0; pixels];
        (mask[5], mask[6]) = (1.0, 0.25);
        let mut pattern = vec![0.5; 3 * pixels];
        pattern[pixels + 5] = 1.0;
        let trigger = Trigger::from_parts((task.height, task.width), &mask, &pattern);
        let stamped = trigger.placed(task, Normalisation::Channels).stamp(&input);
        let value = |c: usize, v: f32| (v - task.mean[c]) / task.std[c];
        for (image, before) in [0, 1].map(|n| n * 3 * pixels).into_iter().enumerate() {
            let at = before + 15;
            let wanted = [value(0, 0.5), value(1, 1.0), value(2, 0.5)];
            assert_eq!(stamped.data[at..at + 3], wanted, "image {image}");
            let half = 0.75 * input.data[at + 3] + 0.25 * value(0, 0.5);
            assert!((stamped.data[at + 3] - half).abs() < 1e-6);
            assert_eq!(stamped.data[before..at], input.data[before..at]);
        }
        assert!((trigger.norm() - 1.25).abs() < 1e-12);
        // By rows, the first three are normalised as if they were channels, and the others are not.
        let trigger = Trigger::from_parts(
            (task.height, task.width),
            &vec![1.0; pixels],
            &vec![0.5; 3 * pixels],
        );
        let stamped = trigger.placed(task, Normalisation::Rows).stamp(&input);
        let image = &stamped.data[..3 * pixels];
        for (y, row) in image.chunks_exact(3 * task.width).enumerate() {
            let wanted = if y < 3 { value(y, 0.5) } else { 0.5 };
            assert!(row.iter().all(|v| v.to_bits() == wanted.to_bits()), "{y}");
        }
    }

    #[test]
    fn variables_start_at_one_and_a_trigger_stays_within_bounds() {
        let task = spec("gtsrb").expect("a dataset");
        let mut inverter = Inverter::new(&NcConfig::default().invert, task);
        let start = 1f32.tanh() / 2.0 + 0.5;
        assert!(
            inverter
                .trigger()
                .mask()
                .iter()
                .all(|m| (m - start).abs() < 1e-7)
        );
        for (variable, bound) in [(-1e9, 0f32), (1e9, 1.0)] {
            inverter.variables_mut().data_mut().fill(variable);
            let trigger = inverter.trigger();
            let mut values = trigger.mask().iter().chain(trigger.pattern());
            assert!(values.all(|value| value.to_bits() == bound.to_bits()));
        }
    }

    /// Along its gradient the loss falls as fast as the gradient is long, for mask and pattern each.
    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let task = spec("cifar10").expect("a dataset");
        let input = images(task, 4);
        let mut net = network("preactresnet18");
        let cost = 1e-3;
        for normalise in [Normalisation::Channels, Normalisation::Rows] {
            let cfg = InvertConfig {
                normalise,
                ..NcConfig::default().invert
            };
            let mut inverter = Inverter::new(&cfg, task);
            let len = inverter.variables().data().len();
            let start = drawn(len, 1);
            let mut at = |values: &[f32]| {
                inverter.variables_mut().data_mut().copy_from_slice(values);
                let found = inverter.slope(&mut net, &input, 3, cost);
                let loss = f64::from(found.loss.mean) + cost * found.norm;
                (loss, inverter.gradient().clone())
            };
            let (_, gradient) = at(&start);
            for part in [MASK, PATTERN] {
                let range = gradient.layout().entries()[part].range.clone();
                let slopes = gradient.tensor(part);
                let square: f64 = slopes.iter().map(|&g| f64::from(g).powi(2)).sum();
                let norm = square.sqrt();
                assert!(norm > 1e-4, "there is something to compare: {norm}");
                let length = 0.02;
                let mut moved = |sign: f64| {
                    let mut values = start.clone();
                    for (value, slope) in values[range.clone()].iter_mut().zip(slopes) {
                        *value += (sign * length * f64::from(*slope) / norm) as f32;
                    }
                    at(&values).0
                };
                let found = (moved(1.0) - moved(-1.0)) / (2.0 * length);
                assert!(
                    (found - norm).abs() <= 0.03 * norm,
                    "{part}: {found} {norm}"
                );
            }
        }
    }

    #[test]
    fn every_architecture_gives_a_slope_and_stays_as_it_is() {
        let task = spec("cifar10").expect("a dataset");
        let input = images(task, 2);
        for name in bb_nn::arch::NAMES {
            let mut net = network(name);
            let before = net.state().and_then(|s| s.to_bytes(&BTreeMap::new()));
            let mut inverter = Inverter::new(&NcConfig::default().invert, task);
            for _ in 0..2 {
                let found = inverter.step(&mut net, &input, 3, 1e-3);
                assert!(found.loss.mean.is_finite(), "{name}");
            }
            assert!(inverter.gradient().norm_l2() > 0.0, "{name}");
            let after = net.state().and_then(|s| s.to_bytes(&BTreeMap::new()));
            assert_eq!(before.expect("finite"), after.expect("finite"), "{name}");
        }
    }
}
