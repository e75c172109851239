//! i-BAU against outputs of the benchmark's code, whose second derivatives are exact.
//!
//! That is what our differences are made to find where a network is smooth, so the one of this case is: each of its units
//! is on for all images, or off, and stays so by a wide margin when the images move. Nothing here says that both agree
//! where units switch, and they do not.

use bb_defense::ibau::config::IbauConfig;
use bb_defense::ibau::hypergradient::{Bilevel, hypergradient};
use bb_defense::ibau::{Network, seek_step, unlearn_step};
use bb_nn::data::{Batch, Input};
use bb_nn::optim::Adam;
use bb_nn::{Flat, Net};

use super::{Folder, Golden, Setting, check_flat, check_relative};

/// The network of the case and its first two batches.
fn start(golden: &Golden) -> (Net, Vec<Batch>) {
    let setting = Setting::read(&Folder::committed());
    let mut net = setting.net();
    let mut changed = 0;
    for (key, (_, values)) in &golden.floats {
        let Some(name) = key.strip_prefix("start.") else {
            continue;
        };
        if let Some(i) = net.params().layout().position(name) {
            net.params_mut().set_plain(i, values);
        } else {
            let i = net.buffers().layout().position(name);
            let i = i.expect("a parameter or a running statistic");
            net.buffers_mut().set_plain(i, values);
        }
        changed += 1;
    }
    assert!(changed > 50, "{changed} tensors");
    let batches = setting.batches.into_iter().take(2);
    let batches = batches.map(|(input, labels)| Batch {
        indices: (0..labels.len()).collect(),
        input,
        labels,
    });
    (net, batches.collect())
}

/// The stored perturbation, `[h, w, 3]`.
fn stored_perturbation(golden: &Golden) -> Vec<f64> {
    let (shape, values) = &golden.floats["perturbation"];
    let plain = Input::from_nchw(1, shape[2], shape[3], values).data;
    plain.iter().map(|&value| f64::from(value)).collect()
}

fn settings(golden: &Golden) -> (IbauConfig, Vec<Vec<usize>>) {
    let mut cfg = IbauConfig::default();
    let lr = golden.metadata["perturb_lr"].parse();
    cfg.perturb.lr = lr.expect("a number");
    // This network's outputs are so steep that a longer step would see its third derivatives.
    cfg.hypergradient.step = 1e-3;
    let patched = serde_json::from_str(&golden.metadata["patched"]);
    (cfg, patched.expect("lists of images"))
}

/// A problem whose outer loss does not depend on the parameters but through the perturbation.
struct ThroughPerturbation<'a>(Network<'a>);

impl Bilevel for ThroughPerturbation<'_> {
    type Gradient = Flat;

    fn outer(&mut self, perturbation: &[f64]) -> (Vec<f64>, Flat) {
        (self.0.outer(perturbation).0, self.0.net.zeros())
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

#[test]
fn golden_hypergradient() {
    let golden = Golden::read(&Folder::committed(), "m_ibau.safetensors");
    let (mut net, batches) = start(&golden);
    let (cfg, patched) = settings(&golden);
    let perturbation = stored_perturbation(&golden);
    let problem = Network {
        net: &mut net,
        inner: &batches[0],
        outer: &batches[1],
        patched: &patched[1],
        penalty: cfg.perturb.penalty,
        loss: None,
    };
    let mut through = ThroughPerturbation(problem);
    let indirect = hypergradient(&mut through, &perturbation, &cfg.hypergradient);
    check_flat(&indirect, &golden, "indirect.", 2e-3);
    let (_, mut whole) = through.0.outer(&perturbation);
    check_flat(&whole, &golden, "direct.", 1e-3);
    let found = hypergradient(&mut through.0, &perturbation, &cfg.hypergradient);
    whole.add_scaled(1.0, &indirect);
    for i in 0..whole.tensors() {
        let name = &whole.layout().entries()[i].name;
        check_relative(name, found.tensor(i), whole.tensor(i), 1e-5);
    }
}

/// The perturbation after both batches, and the network after a step on each.
#[test]
fn golden_round() {
    let golden = Golden::read(&Folder::committed(), "m_ibau.safetensors");
    let (mut net, batches) = start(&golden);
    let (cfg, patched) = settings(&golden);
    let stored = stored_perturbation(&golden);
    let mut perturbation = vec![0.0; stored.len()];
    for batch in &batches {
        seek_step(&cfg.perturb, &mut net, batch, 0, &mut perturbation).expect("numbers");
    }
    let single = |values: &[f64]| -> Vec<f32> { values.iter().map(|&v| v as f32).collect() };
    check_relative(
        "perturbation",
        &single(&perturbation),
        &single(&stored),
        1e-3,
    );

    let before = net.params().clone();
    let mut adam = Adam::amsgrad(net.params(), (0.9, 0.999));
    for (batch, patched) in batches.iter().zip(&patched) {
        let data = (&batches[0], batch, patched.as_slice());
        let loss = unlearn_step(&cfg, &mut net, &mut adam, &perturbation, data);
        assert!(loss.mean.is_finite());
    }
    let mut compared = 0;
    for (i, entry) in before.layout().entries().iter().enumerate() {
        let Some((_, after)) = golden.floats.get(&format!("after.{}", entry.name)) else {
            continue;
        };
        let (before, own) = (before.to_plain(i), net.params().to_plain(i));
        let moved =
            |after: &[f32]| -> Vec<f32> { after.iter().zip(&before).map(|(a, b)| a - b).collect() };
        check_relative(&entry.name, &moved(&own), &moved(after), 1e-3);
        compared += 1;
    }
    assert!(compared > 10, "{compared} tensors");
}
