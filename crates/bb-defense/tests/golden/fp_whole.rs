//! FP against the benchmark's run of it, with the clean images in the place of its test images.

use bb_defense::fp::Fp;
use bb_defense::parts::head;
use bb_nn::data::{Normaliser, plain_input};

use super::baseline::{Baseline, Stored};
use super::ft::PLAIN;

const PRUNE: [&str; 4] = [
    "prune.step=0.1",
    "prune.tolerance=0.2",
    "prune.augment=false",
    "prune.batch_size=4",
];

/// Order, search as the benchmark does it, and two epochs with the mask.
#[test]
fn golden_run() {
    let (baseline, golden) = (Baseline::read(), Stored::read("fp"));
    let mut net = baseline.net();
    let head = head(&net).expect("a classifier");
    let all = 0..baseline.clean.len();
    let images = plain_input(&baseline.clean.images, all, &Normaliser::new(baseline.task));
    let inputs = std::iter::once(std::borrow::Cow::Borrowed(&images));
    let activations = bb_defense::fp::activations(&mut net, head, inputs);
    let found: Vec<f32> = activations.iter().map(|&a| a as f32).collect();
    golden.check_close("activation", &found, 5e-6);
    assert_eq!(
        bb_defense::fp::ascending(&activations),
        golden.counts("order")
    );

    let bench = [
        "prune.keep=last-tried",
        "prune.one_less=true",
        "finetune.epochs=2",
    ];
    let repaired = baseline.repaired::<Fp>(&[&PLAIN[..], &PRUNE, &bench].concat());
    let mask = golden.get("mask");
    let masked = mask[..head.features].iter().filter(|&&m| m == 0.0).count();
    assert_eq!(repaired.notes["masked"], masked);
    let state = &repaired.candidates[repaired.chosen].state;
    let weight = state.floats("linear.weight").expect("a tensor");
    for (weight, mask) in weight.expect("floats").iter().zip(mask) {
        assert_eq!(*weight == 0.0, *mask == 0.0, "masked weights stay masked");
    }
    golden.check_state(state, "after", 1e-5);
}

/// The default stops one step earlier: it keeps the last mask within the tolerance, and as many features as it says.
#[test]
fn golden_search() {
    let (baseline, golden) = (Baseline::read(), Stored::read("fp"));
    let accuracy = golden.get("accuracy");
    let broken = accuracy
        .iter()
        .position(|own| (own - accuracy[0]).abs() / accuracy[0] >= 0.2)
        .expect("the run ended with it");
    assert_eq!(broken + 1, accuracy.len());
    let features = 32.0_f64;
    let step = (0.1 * features).ceil() as usize;
    let repaired = baseline.repaired::<Fp>(&[&PLAIN[..], &PRUNE, &["finetune.epochs=0"]].concat());
    assert_eq!(repaired.notes["masked"], step * (broken - 1));
}
