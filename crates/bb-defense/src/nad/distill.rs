//! Steps of a student that learns labels and where its teacher looks.

use bb_nn::data::Input;
use bb_nn::kernels::loss::{Loss, cross_entropy};
use bb_nn::optim::Sgd;
use bb_nn::{ArchSpec, Flat, Mode, Net};
use serde::Serialize;

use super::attention::Attention;
use super::config::{DistillConfig, Layers};
use crate::finetuning::Stepper;

/// A layer at which the attention of student and teacher is compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Term {
    /// The layer's name in the network.
    pub layer: &'static str,
    /// Weight of the distance.
    pub beta: f64,
}

/// The layers of an architecture that are compared.
pub fn terms(cfg: &DistillConfig, arch: &ArchSpec) -> Vec<Term> {
    let term = |layer, beta| Term { layer, beta };
    let last = term("avgpool", cfg.beta3);
    let stages = match cfg.layers {
        Layers::Reference => arch.name() == "preactresnet18",
        Layers::Stages => arch.name().contains("resnet"),
    };
    if stages {
        vec![term("layer3", cfg.beta1), term("layer4", cfg.beta2), last]
    } else {
        vec![last]
    }
}

/// Share of a batch's statistics in the running ones, in all classifiers.
const MOMENTUM: f32 = 0.1;

/// How often a running statistic is moved by one more forward pass up to each of `terms`: as often as there are terms
/// whose layer lies behind it.
fn repeats(terms: &[Term], buffer: &str) -> i32 {
    // `layer3` is behind what is in `layer1` to `layer3` and in the stem; `avgpool` is behind everything.
    let stage = |name: &str| -> Option<u32> { name.strip_prefix("layer")?.get(..1)?.parse().ok() };
    let sees = |term: &&Term| match (stage(term.layer), stage(buffer)) {
        (Some(seen), Some(own)) => own <= seen,
        _ => true,
    };
    i32::try_from(terms.iter().filter(sees).count()).expect("at most three terms")
}

/// Steps of SGD on the cross-entropy and the weighted distances of the student's attention from the teacher's.
#[derive(Debug)]
pub struct Distiller<'a> {
    cfg: &'a DistillConfig,
    terms: Vec<Term>,
    teacher: Net,
    sgd: Sgd,
    grads: Flat,
    /// For each running statistic, what [`repeats`] more moves add, as a factor on the first one.
    further: Vec<f32>,
}

impl<'a> Distiller<'a> {
    /// An optimiser at rest for `student`, which learns from `teacher`; both are networks of `arch`.
    pub fn new(student: &Net, teacher: Net, arch: &ArchSpec, cfg: &'a DistillConfig) -> Self {
        let terms = terms(cfg, arch);
        let (momentum, decay) = (cfg.momentum as f32, cfg.weight_decay as f32);
        // The batch's statistics are the same each time, so each move is `1 - MOMENTUM` times the one before.
        let further = |buffer: &str| -> f32 {
            (1..=repeats(&terms, buffer))
                .map(|i| (1.0 - MOMENTUM).powi(i))
                .sum()
        };
        let buffers = student.buffers().layout().entries().iter();
        let further = if cfg.repeat_bn {
            buffers.map(|entry| further(&entry.name)).collect()
        } else {
            Vec::new()
        };
        Self {
            cfg,
            terms,
            teacher,
            sgd: Sgd::new(student.params(), momentum, decay, false),
            grads: student.zeros(),
            further,
        }
    }

    /// The layers that are compared.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Whether the attention maps of the teacher on `input` say nothing, see [`Attention::is_constant`].
    pub fn is_blind(&mut self, input: &Input) -> bool {
        let features = self.targets(input);
        features.iter().all(Attention::is_constant)
    }

    /// The teacher's attention.
    fn targets(&mut self, input: &Input) -> Vec<Attention> {
        let names: Vec<&str> = self.terms.iter().map(|term| term.layer).collect();
        let (_, features) = self.teacher.forward_with(input, Mode::Eval, &names);
        let power = self.cfg.power;
        features.iter().map(|f| Attention::of(f, power)).collect()
    }

    /// The loss before the step, and its gradient, which is left in the distiller; the running statistics move.
    pub fn loss_grad(&mut self, net: &mut Net, input: &Input, labels: &[u32]) -> Loss {
        let targets = self.targets(input);
        let before = (!self.further.is_empty()).then(|| net.buffers().clone());
        let tape = net.record(input, Mode::Train);
        let logits = &tape.output().data;
        let mut by_logits = vec![0.0; logits.len()];
        let classes = net.spec().outputs();
        let mut loss = cross_entropy(logits, labels, classes, Some(&mut by_logits));
        if targets.len() < self.terms.len() {
            // A GPU failed, which whoever runs this will ask about.
            loss.mean = f32::NAN;
        }
        let mut total = f64::from(loss.mean);
        let mut gradients = vec![("output", by_logits)];
        for (term, target) in self.terms.iter().zip(&targets) {
            let feature = tape
                .feature(term.layer)
                .expect("the teacher, which is alike, has this layer");
            let power = self.cfg.power;
            let own = Attention::of(feature, power);
            total += term.beta * own.distance(target);
            let gradient = own.distance_gradient(target, feature, power, term.beta);
            gradients.push((term.layer, gradient));
        }
        loss.mean = total as f32;
        let cotangents: Vec<(&str, &[f32])> = gradients
            .iter()
            .map(|(name, gradient)| (*name, gradient.as_slice()))
            .collect();
        net.backward(tape, &cotangents, &mut self.grads)
            .expect("each of these names was found on the tape");
        if let Some(before) = before {
            self.repeat_moves(net, &before);
        }
        loss
    }

    /// Moves the running statistics as often as the reference's further forward passes do.
    fn repeat_moves(&self, net: &mut Net, before: &Flat) {
        for (i, factor) in self.further.iter().enumerate() {
            let now = net.buffers_mut().tensor_mut(i);
            for (now, before) in now.iter_mut().zip(before.tensor(i)) {
                *now += factor * (*now - before);
            }
        }
    }

    /// The gradient of the last step.
    pub fn gradient(&self) -> &Flat {
        &self.grads
    }
}

impl Stepper for Distiller<'_> {
    fn step(&mut self, net: &mut Net, input: &Input, labels: &[u32], lr: f32) -> Loss {
        let loss = self.loss_grad(net, input, labels);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nad::config::NadConfig;
    use bb_core::rng;

    const CLASSES: usize = 5;

    fn images(n: usize, side: usize, index: u64) -> (Input, Vec<u32>) {
        let mut stream = rng::stream(0, "distill tests", 0, index);
        let data = (0..n * side * side * 3)
            .map(|_| 4.0 * rng::unit_f32(&mut stream) - 2.0)
            .collect();
        let (h, w) = (side, side);
        let labels = (0..n).map(|i| (i % CLASSES) as u32).collect();
        (Input { n, h, w, data }, labels)
    }

    fn arch(name: &str) -> ArchSpec {
        ArchSpec::new(name, 4, CLASSES).expect("a small network")
    }

    /// Settings in which all distances weigh as much as the cross-entropy or more.
    fn config() -> DistillConfig {
        NadConfig::default().distill
    }

    #[test]
    fn the_reference_compares_three_layers_of_one_architecture() {
        let layers = |layers, name| -> Vec<(&str, f64)> {
            let cfg = DistillConfig { layers, ..config() };
            let terms = terms(&cfg, &arch(name));
            terms.iter().map(|term| (term.layer, term.beta)).collect()
        };
        let all = [("layer3", 500.0), ("layer4", 1000.0), ("avgpool", 1000.0)];
        assert_eq!(layers(Layers::Reference, "preactresnet18"), all);
        assert_eq!(layers(Layers::Stages, "preactresnet18"), all);
        assert_eq!(layers(Layers::Reference, "resnet18"), all[2..]);
        assert_eq!(layers(Layers::Stages, "resnet34"), all);
        assert_eq!(layers(Layers::Stages, "vgg19_bn"), all[2..]);
        // Every name is one of the network's.
        for name in bb_nn::arch::NAMES {
            let cfg = DistillConfig {
                layers: Layers::Stages,
                ..config()
            };
            let mut net = Net::new(&arch(name), 0);
            let tape_input = images(1, 32, 0).0;
            let tape = net.record(&tape_input, Mode::Eval);
            for term in terms(&cfg, &arch(name)) {
                assert!(tape.feature(term.layer).is_some(), "{name}: {}", term.layer);
            }
        }
    }

    #[test]
    fn a_layer_of_one_pixel_is_blind() {
        let (input, _) = images(2, 32, 0);
        for (name, blind) in [
            ("preactresnet18", false),
            ("resnet18", true),
            ("vgg19_bn", true),
        ] {
            let cfg = config();
            let net = Net::new(&arch(name), 1);
            let mut steps = Distiller::new(&net, net.clone(), &arch(name), &cfg);
            assert_eq!(steps.is_blind(&input), blind, "{name}");
        }
        // VGG sees 2 x 2 pixels of a larger image.
        let (cfg, net) = (config(), Net::new(&arch("vgg19_bn"), 1));
        let mut steps = Distiller::new(&net, net.clone(), &arch("vgg19_bn"), &cfg);
        assert!(!steps.is_blind(&images(2, 64, 0).0));
    }

    #[test]
    fn without_distances_it_is_the_plain_gradient() {
        let (input, labels) = images(6, 32, 0);
        let cfg = DistillConfig {
            beta1: 0.0,
            beta2: 0.0,
            beta3: 0.0,
            repeat_bn: false,
            ..config()
        };
        let mut net = Net::new(&arch("preactresnet18"), 1);
        let mut plain = net.clone();
        let teacher = Net::new(&arch("preactresnet18"), 2);
        let mut steps = Distiller::new(&net, teacher, &arch("preactresnet18"), &cfg);
        let found = steps.loss_grad(&mut net, &input, &labels);
        let mut grads = plain.zeros();
        let wanted = plain.loss_grad(&input, &labels, Mode::Train, &mut grads);
        assert_eq!(found, wanted);
        for (found, wanted) in steps.gradient().data().iter().zip(grads.data()) {
            assert!((found - wanted).abs() <= 1e-6, "{found} {wanted}");
        }
        assert_eq!(net.buffers().data(), plain.buffers().data());
    }

    /// Along its gradient the loss falls as fast as the gradient is long, whichever layer it comes from.
    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        const LENGTH: f64 = 2e-3;
        let name = "preactresnet18";
        let (input, labels) = images(8, 32, 0);
        for betas in [
            [500.0, 0.0, 0.0],
            [0.0, 1000.0, 0.0],
            [500.0, 1000.0, 1000.0],
        ] {
            let [beta1, beta2, beta3] = betas;
            let cfg = DistillConfig {
                beta1,
                beta2,
                beta3,
                ..config()
            };
            let teacher = Net::new(&arch(name), 2);
            let student = Net::new(&arch(name), 1);
            let mut steps = Distiller::new(&student, teacher, &arch(name), &cfg);
            let mut at = |length: f64, gradient: Option<&Flat>| {
                let mut net = student.clone();
                if let Some(gradient) = gradient {
                    let factor = length / gradient.norm_l2();
                    net.params_mut().add_scaled(factor as f32, gradient);
                }
                let loss = steps.loss_grad(&mut net, &input, &labels).mean;
                (f64::from(loss), steps.gradient().clone())
            };
            let (start, gradient) = at(0.0, None);
            let plain =
                student
                    .clone()
                    .loss_grad(&input, &labels, Mode::Train, &mut student.zeros());
            assert!(start > 1.1 * f64::from(plain.mean), "{betas:?}: {start}");
            let (above, _) = at(LENGTH, Some(&gradient));
            let (below, _) = at(-LENGTH, Some(&gradient));
            let (found, norm) = ((above - below) / (2.0 * LENGTH), gradient.norm_l2());
            assert!(
                (found - norm).abs() <= 0.03 * norm,
                "{betas:?}: {found} {norm}"
            );
        }
    }

    /// The reference runs the student once more up to each layer that is compared.
    #[test]
    fn running_statistics_move_as_by_further_passes() {
        for name in ["preactresnet18", "vgg19_bn"] {
            let (input, labels) = images(6, 32, 0);
            let cfg = config();
            let mut net = Net::new(&arch(name), 1);
            let mut steps = Distiller::new(&net, net.clone(), &arch(name), &cfg);
            // After so many passes.
            let mut passed = net.clone();
            let after: Vec<Flat> = (0..=4)
                .map(|i| {
                    if i > 0 {
                        passed.forward(&input, Mode::Train);
                    }
                    passed.buffers().clone()
                })
                .collect();
            steps.loss_grad(&mut net, &input, &labels);
            for (i, entry) in net.buffers().layout().entries().iter().enumerate() {
                let passes = match name {
                    "vgg19_bn" => 2,
                    _ if entry.name.starts_with("layer4") => 3,
                    _ => 4,
                };
                let found = net.buffers().tensor(i).iter();
                for (found, wanted) in found.zip(after[passes].tensor(i)) {
                    let scale = wanted.abs().max(1e-3);
                    let same = (found - wanted).abs() <= 1e-4 * scale;
                    assert!(same, "{}: {found} {wanted}", entry.name);
                }
                assert_ne!(
                    after[passes].tensor(i),
                    after[1].tensor(i),
                    "{}",
                    entry.name
                );
            }
        }
    }
}
