//! The procedural dataset: reproducible, and neither too easy nor hopeless.

use bb_core::data::{Dataset, OpenOptions, Split, open, spec};

fn make(seed: u64, train: Option<usize>, test: Option<usize>) -> Dataset {
    let opts = OpenOptions {
        seed,
        train_limit: train,
        test_limit: test,
        ..OpenOptions::default()
    };
    open("synthetic", None, &opts).expect("opens")
}

#[test]
fn an_image_depends_on_seed_split_and_index_alone() {
    let data = make(3, None, None);
    assert_eq!((data.train.len(), data.test.len()), (5000, 1000));
    let less = make(3, Some(123), Some(7));
    assert_eq!(less.train, data.train.take(123));
    assert_eq!(less.test, data.test.take(7));
    assert_ne!(data.train.take(50), data.test.take(50));
    assert_ne!(make(4, Some(50), Some(1)).train, data.train.take(50));
    let one = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("a pool");
    assert_eq!(one.install(|| make(3, None, None)).digest, data.digest);
    assert!(make_fails(0), "an empty split is refused");
}

#[test]
fn nobody_asks_for_more_images_than_are_made() {
    let asked = |train: usize, test: usize| {
        let opts = OpenOptions {
            train_limit: Some(train),
            test_limit: Some(test),
            ..OpenOptions::default()
        };
        let error = open("synthetic", None, &opts).expect_err("more than there are");
        error.to_string()
    };
    let most = "training images of `synthetic`, expected at most 15000";
    for train in [15_001, 1_000_000_000_000, usize::MAX] {
        assert_eq!(asked(train, 1), format!("{train} {most}"));
    }
    let said = asked(1, 3_001);
    assert_eq!(
        said,
        "3001 test images of `synthetic`, expected at most 3000"
    );
}

fn make_fails(train: usize) -> bool {
    let opts = OpenOptions {
        train_limit: Some(train),
        ..OpenOptions::default()
    };
    open("synthetic", None, &opts).is_err()
}

/// The bits are the same on every machine: only operations that IEEE 754 fixes are used.
#[test]
fn the_images_of_seed_0_stay_what_they_are() {
    assert_eq!(
        make(0, Some(100), Some(20)).digest,
        "9f6508dbacafe80c9ff790e1c2a4b994813aa91b3295d4b01b4d5cc6491beb5c"
    );
}

#[test]
fn classes_are_balanced_and_the_constants_are_those_of_the_images() {
    let data = make(0, None, None);
    for split in [&data.train.take(230), &data.train, &data.test] {
        for class in 0..10 {
            let count = split.labels.iter().filter(|label| **label == class).count();
            assert_eq!(count, split.len() / 10, "class {class} of {}", split.len());
        }
    }
    let spec = spec("synthetic").expect("known");
    for c in 0..3 {
        let values = || {
            let bytes = data.train.images.as_bytes().iter();
            bytes.skip(c).step_by(3).map(|v| f64::from(*v) / 255.0)
        };
        let n = (data.train.len() * 32 * 32) as f64;
        let mean = values().sum::<f64>() / n;
        let std = (values().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((mean - f64::from(spec.mean[c])).abs() < 0.02, "mean {mean}");
        assert!((std - f64::from(spec.std[c])).abs() < 0.02, "std {std}");
    }
}

#[test]
fn the_corner_for_a_trigger_is_plain() {
    let data = make(0, Some(500), Some(1));
    for i in 0..500 {
        let image = data.train.images.image(i);
        for c in 0..3 {
            let corner = (29..32).flat_map(|y| (29..32).map(move |x| (y * 32 + x) * 3 + c));
            let values: Vec<u8> = corner.map(|at| image[at]).collect();
            let range = values.iter().max().expect("nine") - values.iter().min().expect("nine");
            assert!(range < 40, "image {i}, channel {c}: {values:?}");
        }
    }
}

const CLASSES: usize = 10;
const FEATURES: usize = 32 * 32 * 3;

/// One row of weights per input; classes innermost, which is what the compiler vectorises.
type Weights = Vec<[f32; CLASSES]>;

fn logits(weights: &Weights, x: &[f32]) -> [f32; CLASSES] {
    let mut z = [0.0; CLASSES];
    for (row, x) in weights.iter().zip(x) {
        for (z, w) in z.iter_mut().zip(row) {
            *z += w * x;
        }
    }
    z
}

/// Inputs standardised by the constants of the dataset.
fn inputs(split: &Split) -> Vec<f32> {
    let spec = spec("synthetic").expect("known");
    let bytes = split.images.as_bytes().iter().enumerate();
    bytes
        .map(|(at, v)| (f32::from(*v) / 255.0 - spec.mean[at % 3]) / spec.std[at % 3])
        .collect()
}

/// Softmax regression on pixels by full gradient descent with momentum 0.9: test accuracy in percent after each of
/// `steps`.
fn linear_accuracies<const N: usize>(train: &Split, test: &Split, steps: [usize; N]) -> [f64; N] {
    let x = inputs(train);
    let rate = 0.01 / train.len() as f32;
    let mut weights: Weights = vec![[0.0; CLASSES]; FEATURES];
    let mut momentum = weights.clone();
    let step = |weights: &mut Weights, momentum: &mut Weights| {
        let mut gradient: Weights = vec![[0.0; CLASSES]; FEATURES];
        for (x, label) in x.chunks_exact(FEATURES).zip(&*train.labels) {
            let z = logits(weights, x);
            let top = z.iter().copied().fold(f32::MIN, f32::max);
            let mut error = z.map(|z| (z - top).exp());
            let sum: f32 = error.iter().sum();
            for e in &mut error {
                *e /= sum;
            }
            error[*label as usize] -= 1.0;
            for (row, x) in gradient.iter_mut().zip(x) {
                for (g, e) in row.iter_mut().zip(error) {
                    *g += e * x;
                }
            }
        }
        let rows = weights.iter_mut().zip(momentum).zip(&gradient);
        for ((w, m), g) in rows {
            for k in 0..CLASSES {
                m[k] = 0.9 * m[k] - rate * g[k];
                w[k] += m[k];
            }
        }
    };
    let test_inputs = inputs(test);
    let mut done = 0;
    steps.map(|until| {
        for _ in done..until {
            step(&mut weights, &mut momentum);
        }
        done = until;
        let pairs = test_inputs.chunks_exact(FEATURES).zip(&*test.labels);
        let right = pairs.filter(|(x, label)| {
            let z = logits(&weights, x);
            let best = (0..CLASSES).max_by(|a, b| z[*a].total_cmp(&z[*b]));
            best == Some(**label as usize)
        });
        100.0 * right.count() as f64 / test.len() as f64
    })
}

#[test]
fn a_linear_model_on_pixels_stays_low_but_above_chance() {
    let data = make(0, None, None);
    let steps = [15, 40];
    for (steps, accuracy) in steps
        .iter()
        .zip(linear_accuracies(&data.train, &data.test, steps))
    {
        assert!(accuracy > 15.0, "{accuracy} % after {steps} steps");
        assert!(accuracy < 60.0, "{accuracy} % after {steps} steps");
    }
}
