//! Input-aware's part in the training loop: two networks of its own, trained before and beside the classifier.

use std::collections::BTreeMap;
use std::path::Path;

use bb_core::data::{Dataset, Images, Split};
use bb_core::poison::PoisonSet;
use bb_core::rng;
use bb_nn::data::{Batch, Input, LoaderOptions, batches, gather, order};
use bb_nn::kernels::loss::Loss;
use bb_nn::model::ModelSpec;
use bb_nn::optim::Adam;
use bb_nn::train::{Recipe, StepAt, TrainError};
use bb_nn::{Flat, Mode, Net, StateDict};

use super::config::InputAwareConfig;
use super::math;
use crate::error::AttackError;
use crate::in_loop::{Counts, Share, plain_input, poison_set, recorded, to_images};
use crate::labels::LabelMap;
use crate::method::{Finished, TrainHook};
use crate::{poison_index, preview};

/// The optimiser's shares, of both networks.
const BETAS: (f64, f64) = (0.5, 0.9);

/// Images that get their trigger together outside of training.
const TOGETHER: usize = 250;

/// A network with its optimiser.
struct Learner {
    net: Net,
    adam: Adam,
}

impl Learner {
    fn new(spec: ModelSpec, seed: u64) -> Self {
        let net = Net::new(&spec, seed);
        let adam = Adam::new(net.params(), BETAS);
        Self { net, adam }
    }

    fn step(&mut self, grads: &Flat, lr: f64) {
        self.adam.step(self.net.params_mut(), grads, lr as f32);
    }

    fn save(&self, name: &str, state: &mut StateDict) -> Result<(), AttackError> {
        let (mean, square) = self.adam.moments();
        state.insert_all(&format!("{name}."), &self.net.state()?);
        state.insert_flat(&format!("{name}-mean."), mean)?;
        state.insert_flat(&format!("{name}-square."), square)?;
        Ok(())
    }

    /// Takes its part of a state; gives the rest.
    fn load(&mut self, name: &str, state: StateDict, steps: u64) -> Result<StateDict, AttackError> {
        let (net, rest) = state.split(&format!("{name}."));
        self.net.set_state(&net)?;
        let (saved_mean, rest) = rest.split(&format!("{name}-mean."));
        let (saved_square, rest) = rest.split(&format!("{name}-square."));
        let (mean, square) = self.adam.moments_mut();
        saved_mean.read_flat(mean)?;
        saved_square.read_flat(square)?;
        self.adam.set_steps(steps);
        Ok(rest)
    }
}

/// Names in the state.
const GENERATOR: &str = "generator";
const MASK: &str = "mask";
const SUM: &str = "gradients.";

/// Gives each image its own trigger, and learns to.
pub(super) struct InputAwareHook {
    cfg: InputAwareConfig,
    map: LabelMap,
    dataset: Dataset,
    seed: u64,
    generator: Learner,
    mask: Learner,
    /// Gradients of the generator: of the last step, or of all steps so far.
    gradients: Flat,
    /// An epoch and its order of the images that lend their triggers.
    partners: Option<(usize, Vec<usize>)>,
}

impl InputAwareHook {
    pub(super) fn new(
        cfg: &InputAwareConfig,
        map: LabelMap,
        dataset: &Dataset,
        seed: u64,
    ) -> Result<Self, AttackError> {
        let model = |outputs| -> Result<ModelSpec, AttackError> {
            let spec = ModelSpec::input_aware(outputs, cfg.generator.width)?;
            Ok(if cfg.generator.double_tanh {
                spec
            } else {
                spec.with_one_tanh()
            })
        };
        // The two have tensors of the same names, so they start from streams of their own.
        let start = |purpose| rng::RngCore::next_u64(&mut rng::stream(seed, purpose, 0, 0));
        let generator = Learner::new(model(3)?, start("inputaware/generator"));
        let mask = Learner::new(model(1)?, start("inputaware/mask"));
        let gradients = generator.net.zeros();
        Ok(Self {
            cfg: cfg.clone(),
            map,
            dataset: dataset.clone(),
            seed,
            generator,
            mask,
            gradients,
            partners: None,
        })
    }

    fn loader(&self, purpose: &'static str) -> LoaderOptions {
        let recipe = &self.cfg.train;
        LoaderOptions {
            batch_size: recipe.batch_size,
            shuffle: true,
            drop_last: recipe.drop_last,
            augment: recipe.augment,
            seed: self.seed,
            purpose,
        }
    }

    /// One step of the mask network on two batches of other images; gives the loss.
    fn mask_step(&mut self, first: &Input, second: &Input, lr: f64) -> Result<f64, AttackError> {
        let cfg = &self.cfg;
        let net = &mut self.mask.net;
        // The bench passes the first images twice, which moves the running statistics once more.
        net.output(first, Mode::Train);
        let (tape1, tape2) = (
            net.record(first, Mode::Train),
            net.record(second, Mode::Train),
        );
        let mask1 = math::threshold(&tape1.output().data);
        let mask2 = math::threshold(&tape2.output().data);
        let (mut g1, mut g2) = (vec![0.0; mask1.len()], vec![0.0; mask2.len()]);
        let (density, norm) = (cfg.mask.density as f32, cfg.mask.lambda_norm);
        let excess = math::excess(&mask1, density, norm, &mut g1);
        // Applied twice in the bench, which is the same while it is 1.
        let weight = cfg.lambda_div * cfg.lambda_div;
        let diversity = math::diversity(
            first.n,
            (&first.data, &second.data),
            (&mask1, &mask2),
            weight,
            (&mut g1, &mut g2),
        );
        math::threshold_gradient(&mask1, &mut g1);
        math::threshold_gradient(&mask2, &mut g2);
        let (mut grads, mut more) = (net.zeros(), net.zeros());
        net.backward(tape1, &[("output", &g1)], &mut grads)?;
        net.backward(tape2, &[("output", &g2)], &mut more)?;
        grads.add_scaled(1.0, &more);
        self.mask.step(&grads, lr);
        Ok(norm * excess + weight * diversity)
    }

    /// Patterns between 0 and 1 as normalised pixels.
    fn normalised(&self, patterns: &[f32]) -> Vec<f32> {
        let (mean, std) = (self.dataset.spec.mean, self.dataset.spec.std);
        let value = |(k, v): (usize, &f32)| (v - mean[k % 3]) / std[k % 3];
        patterns.iter().enumerate().map(value).collect()
    }

    /// The mask of each image, cut to nearly 0 or 1, by the mask network as it was trained.
    fn masks(&mut self, images: &Input) -> Vec<f32> {
        math::threshold(&self.mask.net.output(images, Mode::Eval).data)
    }

    /// Images `indices` of a split with the triggers that the networks now make for the images `from`.
    fn triggered(
        &mut self,
        split: &Split,
        indices: &[usize],
        from: &[usize],
    ) -> Result<Images, AttackError> {
        let (height, width) = (split.images.height(), split.images.width());
        let mut pixels = Vec::with_capacity(indices.len() * height * width * 3);
        for (indices, from) in indices.chunks(TOGETHER).zip(from.chunks(TOGETHER)) {
            let mut images = plain_input(split, &self.dataset.spec, indices);
            let lenders = plain_input(split, &self.dataset.spec, from);
            let patterns = self.generator.net.output(&lenders, Mode::Eval);
            let patterns = self.normalised(&patterns.data);
            let masks = self.masks(&lenders);
            // As bytes, which they become below, they would be black.
            let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
            for (network, what, values) in [
                ("generator", "patterns", &patterns),
                ("mask network", "masks", &masks),
            ] {
                if !finite(values) {
                    let what = what.to_owned();
                    return Err(AttackError::OwnNetwork { network, what });
                }
            }
            math::mix(&mut images.data, &patterns, &masks);
            let images = to_images(&images, &self.dataset.spec, self.cfg.rounding)?;
            pixels.extend_from_slice(images.as_bytes());
        }
        Ok(Images::new(indices.len(), height, width, pixels)?)
    }

    fn poisoned_test(&mut self) -> Result<PoisonSet, AttackError> {
        let split = self.dataset.test.clone();
        let indices = poison_index::test(&split.labels, &self.map)?;
        let images = self.triggered(&split, &indices, &indices)?;
        poison_set(&split, indices, images, Some(&self.map))
    }

    /// The images `range` of a step's batch of partners.
    fn lenders(&mut self, at: StepAt, range: std::ops::Range<usize>) -> Input {
        let options = self.loader("inputaware/partners");
        let (split, spec) = (&self.dataset.train, &self.dataset.spec);
        let epoch = at.epoch as u64;
        let (_, order) = match &mut self.partners {
            Some(known) if known.0 == at.epoch => known,
            other => other.insert((at.epoch, order(split.len(), &options, epoch))),
        };
        let first = at.step * options.batch_size;
        let indices = &order[first + range.start..first + range.end];
        gather(split, spec, &options, epoch, indices).input
    }
}

/// The images of a batch that get triggers: none where there are not as many others for the triggers of others.
fn share(cfg: &InputAwareConfig, seed: u64, images: usize, at: StepAt) -> Share {
    let share = Share::of(images, (cfg.ratio, 1.0), (seed, "inputaware/count"), at);
    if share.cross < share.backdoored {
        return Share::default();
    }
    share
}

/// Those of all batches of a run on `images` images.
pub(super) fn counts(cfg: &InputAwareConfig, seed: u64, images: usize) -> Counts {
    let recipe = Recipe {
        epochs: cfg.classifier_epochs(),
        ..cfg.train.clone()
    };
    Counts::of(images, &recipe, |batch, at| share(cfg, seed, batch, at))
}

/// Images `range` of a batch.
fn part(input: &Input, range: std::ops::Range<usize>) -> Input {
    let size = input.h * input.w * 3;
    Input {
        n: range.len(),
        data: input.data[range.start * size..range.end * size].to_vec(),
        ..*input
    }
}

/// From the gradient by images with triggers to that by the patterns between 0 and 1.
fn by_patterns(gradient: &[f32], masks: &[f32]) -> Vec<f32> {
    gradient
        .chunks_exact(3)
        .zip(masks)
        .flat_map(|(g, m)| g.iter().map(move |g| g * m))
        .collect()
}

impl TrainHook for InputAwareHook {
    fn epochs_before(&self) -> usize {
        self.cfg.mask.clean_train_epochs
    }

    fn epoch_before(
        &mut self,
        epoch: usize,
        done: &mut dyn FnMut(usize) -> Result<(), AttackError>,
    ) -> Result<String, AttackError> {
        let mask = &self.cfg.mask;
        let passed = mask.milestones.iter().filter(|&&m| epoch >= m);
        let lr = passed.fold(mask.lr, |lr, _| lr * 0.1);
        let (split, spec) = (self.dataset.train.clone(), self.dataset.spec.clone());
        let first = self.loader("inputaware/mask/first");
        let second = self.loader("inputaware/mask/second");
        let first = batches(&split, &spec, first, epoch as u64);
        let second = batches(&split, &spec, second, epoch as u64);
        let (mut sum, mut steps) = (0.0, 0);
        for (step, (first, second)) in first.zip(second).enumerate() {
            let loss = self.mask_step(&first.input, &second.input, lr)?;
            if !loss.is_finite() {
                let loss = loss as f32;
                return Err(TrainError::Diverged { epoch, step, loss }.into());
            }
            sum += loss;
            steps += 1;
            done(first.labels.len())?;
        }
        Ok(format!(
            "loss of the mask {:.4}",
            sum / f64::from(steps.max(1))
        ))
    }

    fn counts(&self) -> Option<Counts> {
        Some(counts(&self.cfg, self.seed, self.dataset.train.len()))
    }

    fn gradients(
        &mut self,
        net: &mut Net,
        at: StepAt,
        batch: &mut Batch,
        grads: &mut Flat,
    ) -> Result<Loss, AttackError> {
        let n = share(&self.cfg, self.seed, batch.labels.len(), at).backdoored;
        if n == 0 {
            return Ok(net.loss_grad(&batch.input, &batch.labels, Mode::Train, grads));
        }
        let own = part(&batch.input, 0..n);
        let lenders = self.lenders(at, n..2 * n);
        let masks = [self.masks(&own), self.masks(&lenders)];
        let generator = &mut self.generator.net;
        let tapes = [
            generator.record(&own, Mode::Train),
            generator.record(&lenders, Mode::Train),
        ];
        let patterns = [0, 1].map(|i: usize| self.normalised(&tapes[i].output().data));
        let size = own.data.len();
        for i in 0..2 {
            let images = &mut batch.input.data[i * size..(i + 1) * size];
            math::mix(images, &patterns[i], &masks[i]);
        }
        for label in &mut batch.labels[..n] {
            *label = self.map.attacked(*label);
        }

        let (mut loss, by_images) =
            net.loss_grad_input(&batch.input, &batch.labels, Mode::Train, grads);
        let mut g1 = by_patterns(&by_images[..size], &masks[0]);
        let mut g2 = by_patterns(&by_images[size..2 * size], &masks[1]);
        let weight = self.cfg.lambda_div;
        let diversity = math::diversity(
            n,
            (&own.data, &lenders.data),
            (&patterns[0], &patterns[1]),
            weight,
            (&mut g1, &mut g2),
        );
        loss.mean += (weight * diversity) as f32;
        // The networks give patterns before their normalisation.
        let std = self.dataset.spec.std;
        for gradient in [&mut g1, &mut g2] {
            for (k, g) in gradient.iter_mut().enumerate() {
                *g /= std[k % 3];
            }
        }
        if !self.cfg.generator.accumulate_gradients {
            self.gradients.scale(0.0);
        }
        let mut each = self.generator.net.zeros();
        for (tape, gradient) in tapes.into_iter().zip([&g1, &g2]) {
            self.generator
                .net
                .backward(tape, &[("output", gradient)], &mut each)?;
            self.gradients.add_scaled(1.0, &each);
        }
        self.generator.step(&self.gradients, self.cfg.generator.lr);
        Ok(loss)
    }

    fn test_set(&mut self) -> Result<Option<PoisonSet>, AttackError> {
        self.poisoned_test().map(Some)
    }

    fn save(&self) -> Result<Vec<u8>, AttackError> {
        let mut state = StateDict::new();
        self.generator.save(GENERATOR, &mut state)?;
        self.mask.save(MASK, &mut state)?;
        state.insert_flat(SUM, &self.gradients)?;
        let metadata = [(GENERATOR, &self.generator), (MASK, &self.mask)]
            .map(|(name, learner)| (name.to_owned(), learner.adam.steps().to_string()));
        Ok(state.to_bytes(&BTreeMap::from(metadata))?)
    }

    fn load(&mut self, state: &[u8], path: &Path) -> Result<(), AttackError> {
        let metadata = StateDict::metadata(state, path)?;
        let steps = |name: &str| {
            let steps = metadata.get(name).and_then(|steps| steps.parse().ok());
            steps.ok_or_else(|| TrainError::Checkpoint {
                path: path.to_owned(),
                reason: format!("the steps of the {name} are missing"),
            })
        };
        let all = StateDict::from_bytes(state, path)?;
        let rest = self.generator.load(GENERATOR, all, steps(GENERATOR)?)?;
        let rest = self.mask.load(MASK, rest, steps(MASK)?)?;
        let (sum, _) = rest.split(SUM);
        sum.read_flat(&mut self.gradients)?;
        Ok(())
    }

    fn finish(&mut self, _: &mut Net) -> Result<Option<Finished>, AttackError> {
        let test = self.poisoned_test()?;
        let split = self.dataset.train.clone();
        let stream = (self.seed, "inputaware/record");
        let shares = (self.cfg.ratio, 1.0);
        let batch_size = self.cfg.train.batch_size;
        let (backdoored, cross) = recorded(split.len(), batch_size, shares, stream);
        let images = self.triggered(&split, &backdoored, &backdoored)?;
        let train = poison_set(&split, backdoored, images, Some(&self.map))?;
        let partners = rng::permutation(&mut rng::stream(stream.0, stream.1, 0, 0), split.len());
        let images = self.triggered(&split, &cross, &partners[..cross.len()])?;
        let cross = poison_set(&split, cross, images, None)?;

        let weights = |outputs: &str, learner: &Learner| {
            let metadata = [
                ("model", "input-aware".to_owned()),
                ("outputs", outputs.to_owned()),
                ("width", self.cfg.generator.width.to_string()),
                ("double_tanh", self.cfg.generator.double_tanh.to_string()),
            ]
            .map(|(key, value)| (key.to_owned(), value));
            learner.net.state()?.to_bytes(&BTreeMap::from(metadata))
        };
        let sheet = preview::sheet(&self.dataset.test.images, &test, preview::IMAGES);
        let artefacts = vec![
            ("trigger.png".to_owned(), sheet.to_png()),
            (
                "generator.safetensors".to_owned(),
                weights("3", &self.generator)?,
            ),
            ("mask.safetensors".to_owned(), weights("1", &self.mask)?),
            ("cross_train.safetensors".to_owned(), cross.to_bytes()),
        ];
        Ok(Some(Finished {
            train,
            test,
            artefacts,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{Golden, classifier, close, norms, spec};
    use bb_core::data::{OpenOptions, open};

    /// The settings of the goldens; the weight of the diversity is not 1, so that its place matters.
    fn settings() -> InputAwareConfig {
        let mut cfg = InputAwareConfig {
            target: 3,
            ratio: 1.0 / 3.0,
            lambda_div: 0.7,
            ..InputAwareConfig::default()
        };
        cfg.generator.width = 4;
        cfg.train.batch_size = 6;
        cfg.train.augment = false;
        cfg
    }

    fn hook(cfg: &InputAwareConfig, train: Split, seed: u64) -> InputAwareHook {
        let map = LabelMap::new(cfg.label, cfg.target, cfg.shift, 10).expect("a class");
        let options = OpenOptions {
            train_limit: Some(1),
            test_limit: Some(1),
            ..OpenOptions::default()
        };
        let mut dataset = open("synthetic", None, &options).expect("made by the program");
        dataset.spec = spec(train.images.height());
        dataset.train = train;
        InputAwareHook::new(cfg, map, &dataset, seed).expect("small networks")
    }

    fn all(images: &Images) -> Split {
        Split {
            images: images.clone(),
            labels: vec![0; images.len()].into(),
        }
    }

    /// Biases in front of a batch normalisation have gradients of rounding errors, which Adam makes steps of.
    fn alone(name: &str) -> bool {
        !name.ends_with("conv2d.bias")
    }

    /// Two steps of the mask network; of 16 images the first 8 are the first ones of a pair.
    #[test]
    fn golden_steps_of_the_mask() {
        let golden = Golden::load("input_aware_mask");
        let images = golden.images("x");
        let split = all(&images);
        let mut hook = hook(&settings(), split.clone(), 0);
        golden.fill("state.", &mut hook.mask.net);
        let spec = spec(images.height());
        let mut losses = Vec::new();
        for step in 0..2 {
            let part = |first: usize| {
                let indices: Vec<usize> = (first..first + 4).collect();
                plain_input(&split, &spec, &indices)
            };
            let (first, second) = (part(4 * step), part(8 + 4 * step));
            losses.push(hook.mask_step(&first, &second, 0.01).expect("a step") as f32);
            if step == 0 {
                golden.check("first.", hook.mask.net.buffers(), 1e-4);
            }
        }
        // The original prints four decimals. In single and double precision it differs by 4e-6 at most.
        for (found, expected) in losses.iter().zip(golden.floats("loss")) {
            assert!((found - expected).abs() < 1e-4, "{found}, {expected}");
        }
        golden.check("after.", hook.mask.net.params(), 1e-4);
    }

    /// Two steps of the generator beside the classifier, on batches of 6 images.
    #[test]
    fn golden_steps_of_generator_and_classifier() {
        let golden = Golden::load("input_aware");
        let (images, lenders) = (golden.images("x"), golden.images("lenders"));
        let (own, spec) = (all(&images), spec(images.height()));
        let labels = golden.labels("labels");
        let cfg = settings();
        // The training set is such that the batches of partners are the original's.
        let seed = 5;
        let order = order(
            lenders.len(),
            &hook(&cfg, all(&lenders), seed).loader("inputaware/partners"),
            0,
        );
        let size = lenders.image(0).len();
        let mut pixels = vec![0; lenders.as_bytes().len()];
        for (k, &i) in order.iter().enumerate() {
            pixels[i * size..(i + 1) * size].copy_from_slice(lenders.image(k));
        }
        let side = images.height();
        let train = all(&Images::new(lenders.len(), side, side, pixels).expect("images"));

        let mut sums = Vec::new();
        for accumulate_gradients in [true, false] {
            let mut cfg = cfg.clone();
            cfg.generator.accumulate_gradients = accumulate_gradients;
            let mut hook = hook(&cfg, train.clone(), seed);
            golden.fill("state.", &mut hook.generator.net);
            golden.fill("mask.", &mut hook.mask.net);
            let mask = hook.mask.net.clone();
            let mut net = classifier();
            let mut grads = net.zeros();
            let (mut found, mut found_labels, mut losses) = (Vec::new(), Vec::new(), Vec::new());
            for step in 0..2 {
                let indices: Vec<usize> = (6 * step..6 * step + 6).collect();
                let mut batch = Batch {
                    input: plain_input(&own, &spec, &indices),
                    labels: labels[6 * step..6 * step + 6].to_vec(),
                    indices,
                };
                let at = StepAt { epoch: 0, step };
                let loss = hook
                    .gradients(&mut net, at, &mut batch, &mut grads)
                    .expect("a step");
                losses.push(loss.mean);
                found.extend(batch.input.data);
                found_labels.extend(batch.labels);
                sums.push(hook.gradients.clone());
                if !accumulate_gradients {
                    continue;
                }
                // In single and double precision the original differs by 2e-5 at most.
                let expected = golden.floats(&format!("norm.classifier{step}"));
                close("classifier", &norms(&grads, |_| true), &expected, 1e-3);
                let expected = golden.floats(&format!("norm.generator{step}"));
                close("generator", &norms(&hook.gradients, alone), &expected, 1e-3);
                if step == 0 {
                    golden.check("first.", hook.generator.net.buffers(), 1e-4);
                }
            }
            if accumulate_gradients {
                assert_eq!(found_labels, golden.labels("labels_after"));
                let expected = golden.input("inputs");
                close("inputs", &found, &expected.data, 1e-4);
                close("losses", &losses, &golden.floats("loss"), 1e-4);
                golden.check("after.", hook.generator.net.params(), 1e-3);
            }
            // The mask network is not trained any more, and its statistics stay.
            assert_eq!(hook.mask.net.params().data(), mask.params().data());
            assert_eq!(hook.mask.net.buffers().data(), mask.buffers().data());
        }
        // Without the sum a step has its own gradients; the networks are the same in the first step only.
        close("one step", sums[2].data(), sums[0].data(), 1e-6);
        let ratio = sums[3].norm_l2() / sums[1].norm_l2();
        assert!((ratio - 1.0).abs() > 0.05, "{ratio}");
    }

    /// Adam's first step moves every parameter by the learning rate, so the largest move tells it.
    #[test]
    fn the_rate_of_the_mask_falls_to_a_tenth_at_each_milestone() {
        let images = Golden::load("input_aware").images("x");
        let rate = |epoch| {
            let mut hook = hook(&settings(), all(&images), 1);
            let before = hook.mask.net.params().clone();
            // One step with all images.
            hook.cfg.train.batch_size = images.len();
            hook.epoch_before(epoch, &mut |_| Ok(())).expect("an epoch");
            let pairs = hook.mask.net.params().data().iter().zip(before.data());
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        for (epoch, expected) in [
            (0, 1e-2),
            (9, 1e-2),
            (10, 1e-3),
            (19, 1e-3),
            (20, 1e-4),
            (24, 1e-4),
        ] {
            let found = rate(epoch);
            assert!(
                (found / expected - 1.0).abs() < 0.01,
                "epoch {epoch}: {found}"
            );
        }
    }
}
