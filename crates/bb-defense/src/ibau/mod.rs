//! # i-BAU: implicit backdoor adversarial unlearning
//!
//! ## What it does
//! Seeks one perturbation that, added to any image, changes what the model says, as a trigger does, and trains the model
//! to say the right class nevertheless. The perturbation depends on the model, and i-BAU lets the model's gradient go
//! through that dependence, by implicit differentiation.
//!
//! ## Threat model
//! The defender has the suspect model and 5 % of the clean training images with their labels. Triggers, poison
//! indices, the target class and the test set stay unseen.
//!
//! ## Algorithm
//! All passes are in eval mode: the running statistics stay, scales and shifts are trained like all other parameters.
//! In each round:
//! 1. A perturbation `d` of the normalised images, at first 0, goes one pass over the clean images: SGD lowers
//!    `-CE(f(x + d), y') + penalty ||d||^2` over it, where `y'` is what the model says of `x` -> [`seek`].
//! 2. For each batch of the clean images, cut once for the whole run, one step of Adam:
//!    - The outer loss is the cross-entropy of the batch, with `d` on some of its images.
//!    - The inner loss is `-CE(f(x + d), y) + penalty ||d||^2` on the first batch, with true labels.
//!    - The gradient of the outer loss goes through `d` as a fixed point of the gradient step `d - rate dG/dd` on the
//!      inner loss, with the first `terms` terms of the series that solves it
//!      -> [`hypergradient::hypergradient`], [`Network`].
//!
//! The series needs products of the inner loss's second derivatives with a vector `v`. They are central differences of
//! gradients at `d ± h v`, where `h` is such that the values of `d` move by `hypergradient.step` (root of the mean
//! square), in units of normalised images, whose values have a deviation of about 1. What limits the step from below is
//! not the rounding of `f32` but the kinks of `ReLU`: each one that lies between the two ends adds a jump, and the sum of
//! the jumps, divided by the step, is noise that falls with the root of the step, because more kinks average it out.
//! Measured with 256 images of CIFAR-10 on a network of width 16 with BadNets, the mixed derivative found from the
//! perturbation's side has along itself this share of its value found from the parameters' side, and consecutive steps
//! give Hessian products of these cosines:
//!
//! | step | 0.0003 | 0.001 | 0.003 | 0.01 | 0.03 | 0.1 | 0.3 |
//! |---|---|---|---|---|---|---|---|
//! | share | 0.31 | 0.56 | 0.80 | 0.92 | 0.98 | 0.98 | 0.45 |
//! | cosine with the step before | 0.57 | 0.57 | 0.74 | 0.83 | 0.93 | 0.94 | 0.74 |
//!
//! The default 0.03 lies where both sides agree, below the steps that leave the neighbourhood. But the table compares
//! differences with differences, so it says which of them are stable and not that they are the derivatives. Where no unit
//! of a `ReLU` switches between the two ends they are: on a network made so, the part of the gradient that goes through
//! the perturbation is that of exact differentiation to 6e-5 with a step of 0.001, and to 0.4 % and 4 % with 0.01 and
//! 0.03, because that network's outputs are steep. Where units switch, exact differentiation takes the piece on which the
//! images lie, and a difference the mean of all pieces between its ends, so what is found here is no exact
//! hypergradient. Against exact second derivatives in PyTorch, with the default step, on networks of width 8 with BadNets,
//! at the perturbation that a pass over two batches finds:
//!
//! | network | images | Hessian product: cosine, length | mixed derivative: cosine, length | exact part through the perturbation, beside the rest of the gradient |
//! |---|---|---|---|---|
//! | `badnets-synthetic-w8` of the zoo, right on 99.8 % | 256 | 0.61, 2.97 | 0.68, 1.48 | 3.4e-4 |
//! | the same | 32 | 0.92, 1.29 | 0.96, 1.14 | 6.6e-5 |
//! | three on made-up images, right on 79 to 84 % | 256 | 0.96 to 0.98, 0.81 to 1.13 | 0.98 to 0.99, 0.93 to 1.11 | 1.7e-4 to 5.2e-3 |
//!
//! Length is the ratio to the exact one's; the penalty, which differences find exactly, is left out. A step of
//! 0.0003 is worse on all of them (cosines of -0.10 to 0.83). With the defaults, 2 of 256 images perturbed, this whole part
//! is so small beside the rest that its direction hardly counts; with a larger `unlearn.patched` or smaller batches it
//! counts more, and a run with other second derivatives may then end elsewhere.
//!
//! ## Differences from the authors' code
//! The reference is the benchmark's `defense/i-bau.py` with the hypergradients of Grazzi et al. (ICML 2020), whose choices
//! are the defaults here:
//! - The inner loss is that of the first batch, whichever batch the outer loss is of.
//! - `d` is added to a share `unlearn.patched` of a batch, cut to a whole number: to 2 of 256 images, and to none of a
//!   last batch below 100. Then nothing depends on `d` and the step is a plain one.
//! - `d` has no bound but the penalty, and lives in the space of normalised images.
//! - `d` is sought on labels that the model gives, while the inner loss has the true ones.
//! - Adam has `AMSGrad` (`unlearn.amsgrad`).
//! - Second derivatives are central differences, where the reference differentiates twice. The two agree where no unit
//!   switches, and differ by what is said above on trained networks, so this step is not the reference's.
//!
//! Deliberately different:
//! - Orders, crops and the perturbed images are drawn from streams of our own, so they are others than PyTorch's.
//! - Everything is computed in `f32` whatever precision is asked for: a difference of gradients has no digits left in
//!   another one.
//! - A loss that is not finite ends the run with an error.
//!
//! ## Settings
//! - `rounds` (5): rounds.
//! - `probe_every` (1): measure the model after every n-th round but the last; 0 measures only at the end.
//! - `clean.ratio` (0.05): share of the training images that the defender has.
//! - `clean.seed` (0): seed of their draw, which is that of Python's `random.sample`.
//! - `clean.index_file` (""): text file with their indices instead.
//! - `perturb.lr` (10.0): SGD of the perturbation.
//! - `perturb.penalty` (0.001): factor of its squared norm, here and in the inner loss.
//! - `perturb.batch_size` (256), `perturb.shuffle` (true), `perturb.augment` (true): its batches, drawn anew in each round.
//! - `hypergradient.rate` (0.1): rate of the step whose fixed point the perturbation is taken for.
//! - `hypergradient.terms` (5): terms of the series; 0 takes the perturbation for fixed.
//! - `hypergradient.tolerance` (1e-10): norm of a term below which the others are left out.
//! - `hypergradient.step` (0.03): length of the differences, see above.
//! - `unlearn.lr` (0.0001), `unlearn.amsgrad` (true): Adam, with its usual shares 0.9 and 0.999.
//! - `unlearn.patched` (0.01): share of a batch that is perturbed.
//! - `unlearn.batch_size` (256), `unlearn.shuffle` (true), `unlearn.augment` (true): its batches, cut and cropped once.
//!
//! ## Cost
//! In each round a forward pass and a pass with a gradient over the clean images to seek the perturbation, and eleven
//! passes with gradients for each step: one of the outer loss, two for each term of the series after the first, and two
//! for the parameters. `configs/defense/ibau/short.toml` does with three.
//!
//! ## References
//! - Zeng, Chen, Park, Mao, Jin, Jia: Adversarial Unlearning of Backdoors via Implicit Hypergradient, ICLR 2022,
//!   arXiv 2110.03735.
//! - Grazzi, Franceschi, Pontil, Salzo: On the Iteration Complexity of Hypergradient Computation, ICML 2020.

pub mod config;
pub mod hypergradient;

use bb_core::data::{DatasetSpec, Split};
use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::metrics::Ratio;
use bb_core::precision::Precision;
use bb_core::rng;
use bb_core::settings::Valid;
use bb_nn::data::{Batch, Input, LoaderOptions, batch_count, batches};
use bb_nn::eval::{self, NotFiniteLogits};
use bb_nn::kernels::loss::Loss;
use bb_nn::optim::Adam;
use bb_nn::{Flat, Mode, Net};
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::config::{IbauConfig, PerturbConfig};
use self::hypergradient::{Bilevel, hypergradient};
use crate::context::{At, Ctx};
use crate::data::{CleanBudget, CleanImages};
use crate::error::DefenseError;
use crate::method::{Defense, Repaired, Suspect};
use crate::recipes::{RecipeFile, recipes};

/// The defense, for the registry.
pub struct Ibau;

impl Defense for Ibau {
    const INFO: MethodInfo = MethodInfo {
        id: "ibau",
        title: "i-BAU",
        paper: "Zeng et al., Adversarial Unlearning via Implicit Hypergradient, ICLR 2022",
        needs: Needs::CleanFraction,
        status: Status::Experimental,
        summary: "unlearns a perturbation for all images, differentiating through its dependence on the model",
        docs: include_str!("mod.rs"),
    };
    const RECIPES: &'static [RecipeFile] =
        recipes!["ibau": "cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];
    type Data = CleanImages;
    type Config = IbauConfig;

    fn budget(cfg: &IbauConfig) -> CleanBudget {
        cfg.clean.clone()
    }

    fn repair(
        cfg: &Valid<IbauConfig>,
        suspect: Suspect<'_, CleanImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let mut net = suspect.net()?.with_precision(Precision::F32)?;
        let betas = (0.9, 0.999);
        let mut adam = if cfg.unlearn.amsgrad {
            Adam::amsgrad(net.params(), betas)
        } else {
            Adam::new(net.params(), betas)
        };
        let mut rounds = 0;
        if let Some(saved) = ctx.load::<Course>(STAGE)? {
            let names: Vec<String> = adam.vectors_mut().iter().map(|(n, _)| prefix(n)).collect();
            let vectors = adam.vectors_mut().into_iter().map(|(_, vector)| vector);
            let mut named: Vec<(&str, &mut Flat)> =
                names.iter().map(String::as_str).zip(vectors).collect();
            saved.restore(&mut net, &mut named)?;
            adam.set_steps(saved.progress.steps);
            rounds = saved.progress.rounds;
        }
        let options = LoaderOptions {
            batch_size: cfg.unlearn.batch_size,
            shuffle: cfg.unlearn.shuffle,
            drop_last: false,
            augment: cfg.unlearn.augment,
            seed: ctx.seed(),
            purpose: "ibau/unlearn",
        };
        let clean = (suspect.clean(), suspect.task());
        let first = batches(clean.0, clean.1, options, 0)
            .next()
            .expect("a defender with clean images has one or more");
        let steps = |size| batch_count(clean.0.len(), size, false) as u64;
        let in_round = steps(cfg.perturb.batch_size) + steps(cfg.unlearn.batch_size);
        let progress = ctx
            .progress("unlearn", "batches", in_round * cfg.rounds as u64)
            .resumed_at(in_round * rounds as u64);
        for round in rounds..cfg.rounds {
            let name = (ctx.seed(), round);
            let (perturbation, fooled) = seek(&cfg.perturb, &mut net, clean, name, || {
                progress.add(1);
                ctx.check()
            })?;
            let (mut loss_sum, mut correct, mut steps) = (0.0, 0, 0);
            // The reference keeps the batches; the same epoch number makes the same ones again.
            for batch in batches(clean.0, clean.1, options, 0) {
                ctx.check()?;
                let patched = drawn(cfg.unlearn.patched, batch.input.n, name, steps);
                let data = (&first, &batch, patched.as_slice());
                let loss = unlearn_step(cfg, &mut net, &mut adam, &perturbation, data);
                if !loss.mean.is_finite() {
                    return Err(diverged(&mut net, round, steps, loss.mean));
                }
                loss_sum += f64::from(loss.mean);
                correct += loss.correct as u64;
                steps += 1;
                progress.add(1);
            }
            net.take_failure()?;
            if let Some(tensor) = net.first_not_finite() {
                return Err(DefenseError::NotFinite {
                    stage: STAGE.to_owned(),
                    tensor: tensor.to_owned(),
                });
            }
            let total = clean.0.len() as u64;
            let norm = perturbation.iter().map(|v| v * v).sum::<f64>().sqrt();
            let loss = loss_sum / steps as f64;
            let row = json!({
                "norm": norm,
                "fooled": Ratio { hits: fooled, total }.value(),
                "train_loss": loss,
                "train_acc": Ratio { hits: correct, total }.value(),
            });
            progress.note(&format!(
                "round {}, loss {loss:.4}, {fooled} of {total} fooled",
                round + 1
            ));
            let at = At::stage(STAGE).epoch(round);
            ctx.record(at, &row)?;
            let last = round + 1 == cfg.rounds;
            if cfg.probe_every > 0 && round.is_multiple_of(cfg.probe_every) && !last {
                ctx.probe(at, &mut net);
            }
            let mut state = net.state()?;
            for (name, vector) in adam.vectors_mut() {
                state.insert_flat(&prefix(name), vector)?;
            }
            let course = Course {
                rounds: round + 1,
                steps: adam.steps(),
            };
            ctx.save(STAGE, &state, &course)?;
        }
        progress.finish();
        Ok(Repaired::single(net.state()?))
    }
}

const STAGE: &str = "unlearn";

/// How far it has come, kept in its checkpoints beside the network and Adam's vectors.
#[derive(Serialize, Deserialize)]
struct Course {
    rounds: usize,
    /// Steps of Adam.
    steps: u64,
}

/// Under which names a checkpoint holds a vector of Adam.
fn prefix(vector: &str) -> String {
    format!("adam.{vector}.")
}

fn diverged(net: &mut Net, epoch: usize, step: usize, loss: f32) -> DefenseError {
    match net.take_failure() {
        Err(error) => error.into(),
        Ok(()) => DefenseError::Diverged {
            stage: STAGE.to_owned(),
            epoch,
            step,
            loss,
        },
    }
}

/// The images of a batch that are perturbed: a share of `images`, cut to a whole number.
fn drawn(share: f64, images: usize, (seed, round): (u64, usize), batch: usize) -> Vec<usize> {
    let mut stream = rng::stream(seed, "ibau/patched", round as u64, batch as u64);
    let mut all = rng::permutation(&mut stream, images);
    all.truncate((images as f64 * share) as usize);
    all
}

/// The images with the perturbation, `[h, w, 3]`, on those of `which`, or on all.
fn perturbed(input: &Input, perturbation: &[f64], which: Option<&[usize]>) -> Input {
    let mut moved = input.clone();
    for (i, image) in moved.data.chunks_exact_mut(perturbation.len()).enumerate() {
        if which.is_none_or(|which| which.contains(&i)) {
            for (value, by) in image.iter_mut().zip(perturbation) {
                *value += *by as f32;
            }
        }
    }
    moved
}

/// The gradient by a perturbation that the images of `which`, or all, share: the sum of theirs, `[h, w, 3]`.
fn shared(gradients: &[f32], size: usize, which: Option<&[usize]>) -> Vec<f64> {
    let mut sum = vec![0.0; size];
    for (i, gradient) in gradients.chunks_exact(size).enumerate() {
        if which.is_none_or(|which| which.contains(&i)) {
            for (sum, value) in sum.iter_mut().zip(gradient) {
                *sum += f64::from(*value);
            }
        }
    }
    sum
}

/// Step 1 of round `round`: the perturbation, `[h, w, 3]`, and how many images' class it changed when they were looked at.
///
/// `tick` is called for each batch, and may end it.
///
/// # Errors
/// [`DefenseError::Diverged`] if the loss is no number, and what `tick` gives.
pub fn seek(
    cfg: &PerturbConfig,
    net: &mut Net,
    (clean, task): (&Split, &DatasetSpec),
    (seed, round): (u64, usize),
    mut tick: impl FnMut() -> Result<(), DefenseError>,
) -> Result<(Vec<f64>, u64), DefenseError> {
    let options = LoaderOptions {
        batch_size: cfg.batch_size,
        shuffle: cfg.shuffle,
        drop_last: false,
        augment: cfg.augment,
        seed,
        purpose: "ibau/perturb",
    };
    let mut perturbation = vec![0.0; task.height * task.width * 3];
    let mut fooled = 0;
    for (step, batch) in batches(clean, task, options, round as u64).enumerate() {
        tick()?;
        let loss = seek_step(cfg, net, &batch, round, &mut perturbation)?;
        if !loss.mean.is_finite() {
            return Err(diverged(net, round, step, loss.mean));
        }
        fooled += (batch.input.n - loss.correct) as u64;
    }
    Ok((perturbation, fooled))
}

/// A step of SGD on the perturbation, `[h, w, 3]`, with what the model says of the images without it for labels. Gives
/// the loss before it; a loss that is not finite leaves the perturbation alone.
///
/// # Errors
/// If the model says nothing of the images, because its outputs are no numbers.
pub fn seek_step(
    cfg: &PerturbConfig,
    net: &mut Net,
    batch: &Batch,
    round: usize,
    perturbation: &mut [f64],
) -> Result<Loss, DefenseError> {
    let logits = net.forward(&batch.input, Mode::Eval);
    net.take_failure()?;
    let classes = logits.len() / batch.input.n;
    let said = eval::classes(&logits, classes).map_err(|error| {
        let first = batch.indices[error.first];
        let error = NotFiniteLogits { first, ..error };
        let network = format!("{STAGE} diverged: the model of round {}", round + 1);
        DefenseError::scores(network)(error.into())
    })?;
    let moved = perturbed(&batch.input, perturbation, None);
    let (loss, gradients) = net.loss_input_gradient(&moved, &said, Mode::Eval);
    if loss.mean.is_finite() {
        let gradient = shared(&gradients, perturbation.len(), None);
        for (value, gradient) in perturbation.iter_mut().zip(gradient) {
            *value -= cfg.lr * (2.0 * cfg.penalty * *value - gradient);
        }
    }
    Ok(loss)
}

/// Step 2 on a batch, some of whose images are patched, with the inner loss of the first one. Gives the outer loss before
/// it; one that is not finite leaves the network alone.
pub fn unlearn_step(
    cfg: &IbauConfig,
    net: &mut Net,
    adam: &mut Adam,
    perturbation: &[f64],
    (first, batch, patched): (&Batch, &Batch, &[usize]),
) -> Loss {
    let mut problem = Network {
        net,
        inner: first,
        outer: batch,
        patched,
        penalty: cfg.perturb.penalty,
        loss: None,
    };
    let gradient = hypergradient(&mut problem, perturbation, &cfg.hypergradient);
    let loss = problem.loss.expect("the outer loss was computed");
    if loss.mean.is_finite() {
        adam.step(net.params_mut(), &gradient, cfg.unlearn.lr as f32);
    }
    loss
}

/// The losses of step 2, in eval mode.
#[derive(Debug)]
pub struct Network<'a> {
    /// The network.
    pub net: &'a mut Net,
    /// The batch of the inner loss, whose images are all perturbed.
    pub inner: &'a Batch,
    /// The batch of the outer loss.
    pub outer: &'a Batch,
    /// Which of its images are perturbed.
    pub patched: &'a [usize],
    /// Factor of the perturbation's squared norm in the inner loss.
    pub penalty: f64,
    /// The outer loss, once it was computed.
    pub loss: Option<Loss>,
}

impl Bilevel for Network<'_> {
    type Gradient = Flat;

    fn outer(&mut self, perturbation: &[f64]) -> (Vec<f64>, Flat) {
        let input = perturbed(&self.outer.input, perturbation, Some(self.patched));
        let mut grads = self.net.zeros();
        let labels = &self.outer.labels;
        let (loss, gradients) = self
            .net
            .loss_grad_input(&input, labels, Mode::Eval, &mut grads);
        self.loss = Some(loss);
        let shared = shared(&gradients, perturbation.len(), Some(self.patched));
        (shared, grads)
    }

    fn inner_by_perturbation(&mut self, perturbation: &[f64]) -> Vec<f64> {
        let input = perturbed(&self.inner.input, perturbation, None);
        let labels = &self.inner.labels;
        let (_, gradients) = self.net.loss_input_gradient(&input, labels, Mode::Eval);
        let mut gradient = shared(&gradients, perturbation.len(), None);
        for (gradient, value) in gradient.iter_mut().zip(perturbation) {
            *gradient = 2.0 * self.penalty * value - *gradient;
        }
        gradient
    }

    fn inner_by_parameters(&mut self, perturbation: &[f64]) -> Flat {
        let input = perturbed(&self.inner.input, perturbation, None);
        let mut grads = self.net.zeros();
        self.net
            .loss_grad(&input, &self.inner.labels, Mode::Eval, &mut grads);
        grads.scale(-1.0);
        grads
    }

    fn add(sum: &mut Flat, factor: f64, other: &Flat) {
        sum.add_scaled(factor as f32, other);
    }
}

#[cfg(test)]
mod tests {
    use super::hypergradient::HypergradientConfig;
    use super::*;
    use crate::channels::Channels;
    use bb_nn::ArchSpec;

    /// A smooth network of width 4 whose running statistics are those of its inputs, and a batch.
    fn setting() -> (Net, Batch) {
        let arch = ArchSpec::new("preactresnet18", 4, 5).expect("a small network");
        let mut net = Net::new(&arch, 0);
        let (n, size) = (16, 32 * 32 * 3);
        let images = |index| {
            let mut stream = rng::stream(0, "ibau test", index, 0);
            let data = (0..n * size)
                .map(|_| 3.0 * rng::unit_f32(&mut stream) - 1.5)
                .collect();
            Input {
                n,
                h: 32,
                w: 32,
                data,
            }
        };
        // Shifts that keep every ReLU where it is linear, so that nothing but the cross-entropy bends the losses and what
        // differs is an error.
        for norm in Channels::of(&net).expect("it has some").norms() {
            net.params_mut().tensor_mut(norm.weight + 1).fill(8.0);
        }
        for step in 1..60 {
            net.forward(&images(step), Mode::Train);
        }
        let batch = Batch {
            input: images(0),
            labels: (0..n as u32).map(|i| i % 5).collect(),
            indices: (0..n).collect(),
        };
        (net, batch)
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn direction(size: usize, index: u64) -> Vec<f64> {
        let mut stream = rng::stream(0, "ibau test direction", index, 0);
        (0..size)
            .map(|_| 2.0 * rng::unit_f64(&mut stream) - 1.0)
            .collect()
    }

    fn problem<'a>(net: &'a mut Net, batch: &'a Batch, patched: &'a [usize]) -> Network<'a> {
        Network {
            net,
            inner: batch,
            outer: batch,
            patched,
            penalty: 0.0,
            loss: None,
        }
    }

    /// The outer loss is `-<v, d>`, so that `v_1 = -v` and the hypergradient is the mixed derivative along `v`.
    struct Along<'a>(Network<'a>, Vec<f64>);
    impl Bilevel for Along<'_> {
        type Gradient = Flat;
        fn outer(&mut self, _: &[f64]) -> (Vec<f64>, Flat) {
            (self.1.iter().map(|v| -v).collect(), self.0.net.zeros())
        }
        fn inner_by_perturbation(&mut self, perturbation: &[f64]) -> Vec<f64> {
            self.0.inner_by_perturbation(perturbation)
        }
        fn inner_by_parameters(&mut self, perturbation: &[f64]) -> Flat {
            self.0.inner_by_parameters(perturbation)
        }
        fn add(sum: &mut Flat, factor: f64, other: &Flat) {
            Network::add(sum, factor, other);
        }
    }

    /// Losses along a line: their slope is what the gradients say.
    #[test]
    fn gradients_are_the_slopes_of_the_losses() {
        let (mut net, batch) = setting();
        let size = 32 * 32 * 3;
        let at: Vec<f64> = direction(size, 1).iter().map(|v| 0.1 * v).collect();
        let mut own = Network {
            penalty: 0.001,
            ..problem(&mut net, &batch, &[1, 6])
        };
        let (outer, _) = own.outer(&at);
        let inner = own.inner_by_perturbation(&at);
        for (gradient, patched) in [(outer, true), (inner, false)] {
            let length = dot(&gradient, &gradient).sqrt();
            let mut loss = |h: f64| {
                let moved: Vec<f64> = at
                    .iter()
                    .zip(&gradient)
                    .map(|(at, g)| at + h * g / length)
                    .collect();
                own.outer(&moved);
                let outer = f64::from(own.loss.expect("computed").mean);
                let input = perturbed(&batch.input, &moved, None);
                let ce = own
                    .net
                    .loss_input_gradient(&input, &batch.labels, Mode::Eval);
                let inner = 0.001 * dot(&moved, &moved) - f64::from(ce.0.mean);
                if patched { outer } else { inner }
            };
            let slope = (loss(0.02) - loss(-0.02)) / 0.04;
            assert!((slope - length).abs() < 0.02 * length, "{slope} {length}");
        }
    }

    /// The mixed derivative has two sides: how the gradient by the parameters changes with the perturbation, which the
    /// method takes, and how the gradient by the perturbation changes with the parameters.
    #[test]
    fn the_mixed_derivative_is_the_same_from_both_sides() {
        let (mut net, batch) = setting();
        let size = 32 * 32 * 3;
        let at: Vec<f64> = direction(size, 1).iter().map(|v| 0.1 * v).collect();
        let v = direction(size, 2);
        let cfg = HypergradientConfig {
            rate: 1.0,
            terms: 1,
            ..IbauConfig::default().hypergradient
        };
        let mut along = Along(problem(&mut net, &batch, &[]), v.clone());
        let mixed = hypergradient::hypergradient(&mut along, &at, &cfg);
        // Along itself, where it is largest beside the rounding.
        let length = mixed.norm_l2();
        let mut moved = |h: f64| {
            let own = &mut along.0;
            own.net.params_mut().add_scaled((h / length) as f32, &mixed);
            let found = dot(&own.inner_by_perturbation(&at), &v);
            own.net
                .params_mut()
                .add_scaled((-h / length) as f32, &mixed);
            found
        };
        let slope = (moved(1e-3) - moved(-1e-3)) / 2e-3;
        assert!(
            (slope - length).abs() < 0.005 * length,
            "{slope} against {length}"
        );
    }

    /// Products with the Hessian by the perturbation are symmetric, and hardly depend on the step.
    #[test]
    fn hessian_products_are_symmetric_and_keep_with_other_steps() {
        let (mut net, batch) = setting();
        let size = 32 * 32 * 3;
        let at: Vec<f64> = direction(size, 1).iter().map(|v| 0.1 * v).collect();
        let gradient = problem(&mut net, &batch, &[]).inner_by_perturbation(&at);
        let default = IbauConfig::default().hypergradient;
        // Two terms with a rate of 1 are `v + (v - H v)`.
        let mut product = |v: &[f64], step: f64| -> Vec<f64> {
            let own = &mut problem(&mut net, &batch, &[]);
            let cfg = HypergradientConfig {
                rate: 1.0,
                terms: 2,
                step,
                ..default.clone()
            };
            let series = hypergradient::series(own, &at, v, &cfg);
            let pairs = series.iter().zip(v);
            pairs.map(|(series, v)| 2.0 * v - series).collect()
        };
        let one = product(&gradient, default.step);
        let two = product(&one, default.step);
        let (left, right) = (dot(&one, &one), dot(&two, &gradient));
        assert!((left - right).abs() < 1e-3 * left, "{left} {right}");
        for factor in [0.5, 2.0] {
            let again = product(&gradient, factor * default.step);
            let cosine = dot(&again, &one) / (dot(&again, &again) * left).sqrt();
            assert!(cosine > 0.9999, "{factor} times the step: {cosine}");
        }
    }

    /// As in the reference: the batches of the first pass are kept, the first of them has the inner loss in every step and
    /// round, and the outer loss has the true labels.
    #[test]
    fn every_round_has_the_same_batches() {
        let (arch, task, state, clean) = crate::testing::suspect(10);
        let mut cfg = IbauConfig {
            rounds: 2,
            ..IbauConfig::default()
        };
        (cfg.perturb.batch_size, cfg.unlearn.batch_size) = (4, 4);
        (cfg.unlearn.patched, cfg.unlearn.lr) = (0.5, 0.01);
        let cfg = Valid::new(cfg).expect("valid settings");
        let suspect = || Suspect::new(&arch, task, &state, &clean);
        let repaired = Ibau::repair(&cfg, suspect(), &mut Ctx::detached(0)).expect("repaired");
        let suspect = suspect();

        let mut net = suspect.net().expect("the state fits");
        let mut adam = Adam::amsgrad(net.params(), (0.9, 0.999));
        let options = LoaderOptions {
            batch_size: 4,
            shuffle: true,
            drop_last: false,
            augment: true,
            seed: 0,
            purpose: "ibau/unlearn",
        };
        let kept: Vec<Batch> = batches(suspect.clean(), task, options, 0).collect();
        assert_eq!(kept.len(), 3);
        for round in 0..2 {
            let data = (suspect.clean(), task);
            let (d, _) = seek(&cfg.perturb, &mut net, data, (0, round), || Ok(())).expect("found");
            for (step, batch) in kept.iter().enumerate() {
                let own = batch.indices.iter().map(|&i| suspect.clean().labels[i]);
                assert!(own.eq(batch.labels.iter().copied()), "true labels");
                let patched = drawn(0.5, batch.input.n, (0, round), step);
                let data = (&kept[0], batch, patched.as_slice());
                unlearn_step(&cfg, &mut net, &mut adam, &d, data);
            }
        }
        let own = net.state().expect("a state");
        assert!(crate::testing::bits(&own) == crate::testing::bits(&repaired.candidates[0].state));
    }

    #[test]
    fn patched_images_are_cut_to_a_whole_number() {
        for (images, count) in [(256, 2), (196, 1), (99, 0)] {
            let all = drawn(0.01, images, (0, 0), 0);
            assert_eq!(all.len(), count);
            assert!(all.iter().all(|&i| i < images));
        }
        let rounds = [0, 1].map(|round| drawn(0.5, 100, (0, round), 3));
        assert_ne!(rounds[0], rounds[1]);
        let mut sorted = rounds[0].clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 50, "none twice");
    }

    #[test]
    fn the_perturbation_goes_where_it_is_told() {
        let input = Input {
            n: 3,
            h: 1,
            w: 1,
            data: vec![0.0; 9],
        };
        let by = [1.0, 2.0, -1.0];
        let some = perturbed(&input, &by, Some(&[0, 2]));
        assert_eq!(some.data, [1.0, 2.0, -1.0, 0.0, 0.0, 0.0, 1.0, 2.0, -1.0]);
        let all = perturbed(&input, &by, None).data;
        assert_eq!(shared(&all, 3, None), [3.0, 6.0, -3.0]);
        assert_eq!(shared(&all, 3, Some(&[1])), by);
        assert_eq!(shared(&all, 3, Some(&[])), [0.0; 3]);
    }
}
