//! Stage 1a: random unlearning, and the ranking of the neurons by the weight change that it leaves.

use bb_core::data::DatasetSpec;
use bb_core::rng;
use bb_nn::data::Input;
use bb_nn::net::DropoutStream;
use bb_nn::optim::Sgd;
use bb_nn::{Flat, Net, StateDict, neurons};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::config::{Labels, Noise, OtbrConfig, UnlearnConfig};
use crate::context::{At, Ctx};
use crate::data::NoImages;
use crate::error::DefenseError;
use crate::method::Suspect;
use crate::nwc::{MismatchError, Ranking, target_tensors};
use crate::unlearning::ascend;

const STAGE: &str = "unlearn";

/// Random images with random labels, of the dataset's size and classes.
pub fn noise(
    cfg: &UnlearnConfig,
    task: &DatasetSpec,
    images: usize,
    (seed, purpose, step): (u64, &str, usize),
) -> (Input, Vec<u32>) {
    let (h, w) = (task.height, task.width);
    let classes = match cfg.labels {
        Labels::All => task.classes,
        Labels::AllButLast => (task.classes - 1).max(1),
    };
    let mut data = Vec::with_capacity(images * h * w * 3);
    let mut labels = Vec::with_capacity(images);
    for image in 0..images {
        let mut stream = rng::stream(seed, purpose, step as u64, image as u64);
        let class = rng::below(&mut stream, classes as u64);
        labels.push(u32::try_from(class).expect("a class"));
        for at in 0..h * w * 3 {
            let value = rng::unit_f32(&mut stream);
            data.push(match cfg.noise {
                Noise::Raw => value,
                Noise::Normalised => (value - task.mean[at % 3]) / task.std[at % 3],
            });
        }
    }
    (
        Input {
            n: images,
            h,
            w,
            data,
        },
        labels,
    )
}

/// The target layers of a network and their neurons, numbered through all layers.
#[derive(Clone, Debug)]
pub struct Targets {
    /// Places of the weights among the parameters.
    pub tensors: Vec<usize>,
    /// Number of the first neuron of each, and one past the last at the end.
    first: Vec<usize>,
    names: Vec<String>,
}

impl Targets {
    /// The convolutions of a network whose name contains none of `exclude`.
    ///
    /// # Errors
    /// [`MismatchError::NoLayers`] if there is none.
    pub fn new(params: &Flat, exclude: &[String]) -> Result<Self, DefenseError> {
        let tensors = target_tensors(params, exclude);
        if tensors.is_empty() {
            return Err(MismatchError::NoLayers.into());
        }
        let entries = params.layout().entries();
        let mut first = vec![0];
        for &tensor in &tensors {
            first.push(first[first.len() - 1] + entries[tensor].shape[0]);
        }
        let names = tensors.iter().map(|&i| entries[i].name.clone()).collect();
        Ok(Self {
            tensors,
            first,
            names,
        })
    }

    /// Number of neurons.
    pub fn neurons(&self) -> usize {
        self.first[self.tensors.len()]
    }

    /// The neurons of a target layer.
    pub fn of(&self, layer: usize) -> std::ops::Range<usize> {
        self.first[layer]..self.first[layer + 1]
    }

    /// Name and channel of a neuron.
    pub fn place(&self, neuron: usize) -> (&str, usize) {
        let layer = self.first.partition_point(|&first| first <= neuron) - 1;
        (&self.names[layer], neuron - self.first[layer])
    }

    /// Weight change of every neuron.
    pub fn nwc(&self, before: &Flat, after: &Flat) -> Vec<f32> {
        let layers = self.tensors.iter();
        layers
            .flat_map(|&tensor| neurons::weight_change(before, after, tensor))
            .collect()
    }
}

#[derive(Serialize, Deserialize)]
struct Course {
    nwc: Vec<f32>,
}

/// Unlearns a copy of the suspect model on noise, and ranks the neurons by what that moved.
///
/// The unlearned model is dropped, with its running statistics.
pub fn run(
    cfg: &OtbrConfig,
    suspect: &Suspect<'_, NoImages>,
    targets: &Targets,
    ctx: &mut Ctx<'_>,
) -> Result<Ranking, DefenseError> {
    if let Some(saved) = ctx.load::<Course>(STAGE)? {
        return Ok(Ranking::new(saved.progress.nwc, &cfg.nwc));
    }
    let unlearn = &cfg.unlearn;
    let mut net: Net = suspect.net()?;
    net.set_dropout(DropoutStream {
        seed: ctx.seed(),
        step: 0,
    });
    let original = net.params().clone();
    let mut sgd = Sgd::new(net.params(), unlearn.momentum as f32, 0.0, false);
    let mut grads = net.zeros();
    let progress = ctx.progress("unlearn", "steps", unlearn.steps as u64);
    for step in 0..unlearn.steps {
        ctx.check()?;
        let name = (ctx.seed(), "otbr/unlearn", step);
        let (input, labels) = noise(unlearn, suspect.task(), unlearn.batch_size, name);
        let lr = unlearn.lr as f32;
        let loss = ascend(&mut net, &mut sgd, &mut grads, (&input, &labels), lr, None);
        if !loss.mean.is_finite() {
            net.take_failure()?;
            return Err(DefenseError::Diverged {
                stage: STAGE.to_owned(),
                epoch: 0,
                step,
                loss: loss.mean,
            });
        }
        ctx.record(
            At::stage(STAGE),
            &json!({ "step": step, "train_loss": loss.mean }),
        )?;
        progress.add(1);
    }
    progress.finish();
    net.take_failure()?;
    if let Some(tensor) = net.params().first_not_finite() {
        return Err(DefenseError::NotFinite {
            stage: STAGE.to_owned(),
            tensor: tensor.to_owned(),
        });
    }
    let nwc = targets.nwc(&original, net.params());
    // The weight change itself is computed where the network is.
    net.take_failure()?;
    if nwc.iter().any(|change| !change.is_finite()) {
        return Err(DefenseError::NotFinite {
            stage: STAGE.to_owned(),
            tensor: "weight change of the neurons".to_owned(),
        });
    }
    ctx.save(STAGE, &StateDict::new(), &Course { nwc: nwc.clone() })?;
    Ok(Ranking::new(nwc, &cfg.nwc))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_core::data::spec;

    #[test]
    fn noise_has_the_datasets_size_and_leaves_the_last_class_out() {
        let tiny = spec("tiny").expect("a dataset");
        let cfg = OtbrConfig::default().unlearn;
        let (input, labels) = noise(&cfg, tiny, 300, (0, "test", 1));
        assert_eq!((input.n, input.h, input.w), (300, 64, 64));
        assert!(input.data.iter().all(|v| (0.0..1.0).contains(v)));
        let mean = input.data.iter().map(|&v| f64::from(v)).sum::<f64>() / input.data.len() as f64;
        assert!((mean - 0.5).abs() < 1e-3, "{mean}");
        assert!(labels.iter().all(|&l| (l as usize) < tiny.classes - 1));

        let cifar = spec("cifar10").expect("a dataset");
        let seen = |labels: Labels| {
            let cfg = UnlearnConfig {
                labels,
                ..cfg.clone()
            };
            let (_, drawn) = noise(&cfg, cifar, 300, (0, "test", 0));
            (0..10).filter(|class| drawn.contains(class)).count()
        };
        assert_eq!((seen(Labels::AllButLast), seen(Labels::All)), (9, 10));

        let normalised = UnlearnConfig {
            noise: Noise::Normalised,
            ..cfg.clone()
        };
        let (raw, _) = noise(&cfg, cifar, 1, (0, "test", 0));
        let (own, _) = noise(&normalised, cifar, 1, (0, "test", 0));
        let wanted = (raw.data[4] - cifar.mean[1]) / cifar.std[1];
        assert_eq!(own.data[4].to_bits(), wanted.to_bits());
    }

    /// Every step has noise of its own, and SGD has momentum and no weight decay.
    #[test]
    fn each_step_unlearns_noise_of_its_own() {
        let (arch, task, state, _) = crate::testing::suspect(0);
        let none = crate::testing::no_images();
        let suspect = Suspect::new(&arch, task, &state, &none);
        let mut cfg = OtbrConfig::default();
        (cfg.unlearn.batch_size, cfg.unlearn.steps, cfg.unlearn.lr) = (4, 3, 0.01);
        let mut net = suspect.net().expect("the state fits");
        let targets = Targets::new(net.params(), &cfg.layers.exclude).expect("target layers");
        let ranking = run(&cfg, &suspect, &targets, &mut Ctx::detached(0)).expect("ranked");

        let original = net.params().clone();
        let mut sgd = Sgd::new(net.params(), 0.9, 0.0, false);
        let mut grads = net.zeros();
        let mut drawn: Vec<(Input, Vec<u32>)> = Vec::new();
        for step in 0..3 {
            let (input, labels) = noise(&cfg.unlearn, task, 4, (0, "otbr/unlearn", step));
            ascend(
                &mut net,
                &mut sgd,
                &mut grads,
                (&input, &labels),
                0.01,
                None,
            );
            let is_new = drawn.iter().all(|(other, _)| other.data != input.data);
            assert!(is_new && labels.len() == 4);
            drawn.push((input, labels));
        }
        assert_eq!(ranking.nwc, targets.nwc(&original, net.params()));
    }
}
