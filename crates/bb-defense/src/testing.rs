//! What the tests of several methods start from.

use std::collections::BTreeMap;

use bb_core::data::{DatasetSpec, Images, OpenOptions, Split, open, spec};
use bb_core::rng;
use bb_nn::data::Input;
use bb_nn::{ArchSpec, Mode, Net, StateDict, eval};

use crate::data::{CleanImages, FromNeeds as _, NoImages};

/// A pre-activation ResNet-18 of width 4 for CIFAR-10 that says several classes of random images, and `images` such images
/// for its defender, with labels in turn.
pub(crate) fn suspect(images: usize) -> (ArchSpec, &'static DatasetSpec, StateDict, CleanImages) {
    let task = spec("cifar10").expect("a known dataset");
    let arch = ArchSpec::new("preactresnet18", 4, task.classes).expect("a small network");
    let mut net = Net::new(&arch, 0);
    let pixels = |n: usize, index| -> Vec<u8> {
        let mut stream = rng::stream(0, "suspect of tests", index, 0);
        // A colour for each image, so that they differ for a network that takes means.
        let image = |_| {
            let colour: [u64; 3] = std::array::from_fn(|_| rng::below(&mut stream, 156));
            let noise = (0..32 * 32 * 3).map(|i| colour[i % 3] + rng::below(&mut stream, 100));
            noise.map(|value| value as u8).collect::<Vec<u8>>()
        };
        (0..n).flat_map(image).collect()
    };
    // Running statistics of such images.
    for step in 1..30 {
        let data = pixels(16, step);
        let input = Input {
            n: 16,
            h: 32,
            w: 32,
            data: data.iter().map(|&v| f32::from(v) / 64.0 - 2.0).collect(),
        };
        net.forward(&input, Mode::Train);
    }
    let clean = Split {
        images: Images::new(images, 32, 32, pixels(images, 0)).expect("the length fits"),
        labels: (0..images as u32).map(|i| i % 10).collect(),
    };
    let state = net.state().expect("a state");
    (arch, task, state, CleanImages::from_split(clean))
}

/// The same with labels that are what the model says of the images.
pub(crate) fn known(images: usize) -> (ArchSpec, &'static DatasetSpec, StateDict, CleanImages) {
    let (arch, task, state, clean) = suspect(images);
    let mut net = Net::from_state(&arch, &state).expect("the state fits");
    let clean = clean.split().clone();
    let predicted = eval::predict(&mut net, &clean.images, task).expect("numbers");
    let clean = Split {
        labels: predicted.into(),
        ..clean
    };
    (arch, task, state, CleanImages::from_split(clean))
}

/// What a data-free method is given.
pub(crate) fn no_images() -> NoImages {
    let one = OpenOptions {
        train_limit: Some(1),
        test_limit: Some(1),
        ..OpenOptions::default()
    };
    let dataset = open("synthetic", None, &one).expect("the synthetic data need no file");
    NoImages::grant(&dataset, &()).expect("nothing to give").0
}

/// A state as it is written.
pub(crate) fn bits(state: &StateDict) -> Vec<u8> {
    state.to_bytes(&BTreeMap::new()).expect("finite")
}

/// Fails unless two networks have the same parameters and running statistics, but for rounding.
#[track_caller]
pub(crate) fn check_alike(own: &StateDict, wanted: &StateDict) {
    assert_eq!(own.len(), wanted.len());
    for (name, tensor) in wanted.iter() {
        if tensor.rank() == 0 {
            let count = |state: &StateDict| {
                let counter = state.get(name).expect("the same names");
                counter.to_scalar::<i64>().expect("a counter")
            };
            assert_eq!(count(own), count(wanted), "{name}");
            continue;
        }
        let values = |state: &StateDict| {
            let values = state.floats(name).expect("the same names");
            values.expect("floats")
        };
        for (own, wanted) in values(own).iter().zip(values(wanted)) {
            let close = (own - wanted).abs() <= 1e-6 * wanted.abs().max(1.0);
            assert!(close, "{name}: {own} against {wanted}");
        }
    }
}
