//! Forward passes that are kept, and backward passes from any value: against differences and against `loss_grad`.

use bb_nn::data::Input;
use bb_nn::kernels::loss::cross_entropy;
use bb_nn::model::ModelSpec;
use bb_nn::net::{DropoutStream, Inputs, Mode, Net};
use bb_nn::{ArchSpec, Flat, NnError};

const CLASSES: usize = 6;

/// Reproducible values in -0.5..0.5.
fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut stream = bb_core::rng::stream(seed, "pass tests", 0, len as u64);
    (0..len)
        .map(|_| bb_core::rng::unit_f32(&mut stream) - 0.5)
        .collect()
}

fn images(n: usize, side: usize, seed: u64) -> Input {
    Input {
        n,
        h: side,
        w: side,
        data: random(n * side * side * 3, seed)
            .iter()
            .map(|v| v * 3.0)
            .collect(),
    }
}

fn classifier(name: &str) -> Net {
    let mut net = Net::new(&ArchSpec::new(name, 4, CLASSES).unwrap(), 3);
    // Normalisations that are not at their start, with most of their ReLUs open.
    for i in 0..net.params().tensors() {
        if net.params().layout().entries()[i].shape.len() == 1 {
            let noise = random(net.params().tensor(i).len(), i as u64);
            for (p, v) in net.params_mut().tensor_mut(i).iter_mut().zip(noise) {
                *p += 0.2 + 0.4 * v;
            }
        }
    }
    // Running statistics that belong to the network, so that it is as tame in eval mode as in train mode.
    for step in 0..30 {
        net.forward(&images(8, 32, 100 + step), Mode::Train);
    }
    net.set_dropout(DropoutStream::default());
    net
}

/// Sum of `cotangent * value`, in `f64`.
fn dot(cotangent: &[f32], value: &[f32]) -> f64 {
    assert_eq!(cotangent.len(), value.len());
    cotangent
        .iter()
        .zip(value)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

#[test]
fn cross_entropy_through_a_tape_has_the_bits_of_loss_grad() {
    for name in bb_nn::arch::NAMES {
        for mode in [Mode::Eval, Mode::TrainKeepStats, Mode::Train] {
            let mut one = classifier(name);
            let mut two = one.clone();
            let input = images(4, 32, 1);
            let labels = [0, 1, 2, 3];
            let mut grads = [one.zeros(), one.zeros()];
            let (loss, dx) = one.loss_grad_input(&input, &labels, mode, &mut grads[0]);

            let tape = two.record(&input, mode);
            let logits = &tape.output().data;
            let mut cotangent = vec![0.0; logits.len()];
            let same_loss = cross_entropy(logits, &labels, CLASSES, Some(&mut cotangent));
            let same_dx = two
                .backward_input(tape, &[("output", &cotangent)], &mut grads[1])
                .unwrap();
            assert_eq!(loss, same_loss, "{name}");
            assert!(dx == same_dx, "{name} {mode:?}: gradient by the input");
            assert!(grads[0].data() == grads[1].data(), "{name} {mode:?}");
            assert!(one.buffers().data() == two.buffers().data(), "{name}");

            if mode != Mode::Train {
                one.set_dropout(DropoutStream::default());
                let tape = one.record(&input, mode);
                let alone = one.input_gradient(tape, &[("output", &cotangent)]).unwrap();
                assert!(alone == dx, "{name} {mode:?}: gradient by the input alone");

                one.set_dropout(DropoutStream::default());
                let (same_loss, alone) = one.loss_input_gradient(&input, &labels, mode);
                assert_eq!(loss, same_loss, "{name}");
                assert!(alone == dx, "{name} {mode:?}: in one call");
            }
        }
    }
}

#[test]
fn several_passes_may_be_kept_at_a_time() {
    let mut net = classifier("resnet18");
    let (a, b) = (images(2, 32, 1), images(3, 32, 2));
    let cotangents = [random(2 * CLASSES, 3), random(3 * CLASSES, 4)];
    let alone: Vec<Vec<f32>> = [&a, &b]
        .into_iter()
        .zip(&cotangents)
        .map(|(x, cotangent)| {
            let tape = net.record(x, Mode::Eval);
            net.input_gradient(tape, &[("output", cotangent)]).unwrap()
        })
        .collect();
    let tapes = [net.record(&a, Mode::Eval), net.record(&b, Mode::Eval)];
    let between = net.record(&a, Mode::Eval);
    net.discard(between);
    for ((tape, cotangent), expected) in tapes.into_iter().zip(&cotangents).zip(&alone) {
        let found = net.input_gradient(tape, &[("output", cotangent)]).unwrap();
        assert!(found == *expected);
    }
}

#[test]
fn a_features_gradient_leaves_what_is_behind_it_at_zero_and_adds_up() {
    let mut net = classifier("preactresnet18");
    let input = images(2, 16, 1);
    let gradient = |net: &mut Net, cotangents: &[(&str, &[f32])]| {
        let tape = net.record(&input, Mode::Eval);
        let mut grads = net.zeros();
        // What it held before must not matter.
        grads.data_mut().fill(f32::NAN);
        let dx = net.backward_input(tape, cotangents, &mut grads).unwrap();
        (dx, grads)
    };
    let (_, features) = net.forward_with(&input, Mode::Eval, &["layer2", "penultimate"]);
    let (layer2, last) = (
        random(features[0].data.len(), 2),
        random(features[1].data.len(), 3),
    );
    let (dx2, grads2) = gradient(&mut net, &[("layer2", &layer2)]);
    for (i, entry) in grads2.layout().entries().iter().enumerate() {
        let behind = ["layer3", "layer4", "linear"]
            .iter()
            .any(|part| entry.name.starts_with(part));
        let zero = grads2.tensor(i).iter().all(|v| *v == 0.0);
        assert_eq!(zero, behind, "{}", entry.name);
    }
    let (dx, grads) = gradient(&mut net, &[("penultimate", &last)]);
    let (both_dx, both) = gradient(&mut net, &[("layer2", &layer2), ("penultimate", &last)]);
    let near = |a: &[f32], b: &[f32], sum: &[f32]| {
        for ((a, b), sum) in a.iter().zip(b).zip(sum) {
            assert!(
                (a + b - sum).abs() <= 1e-5 * (1.0 + sum.abs()),
                "{a} {b} {sum}"
            );
        }
    };
    near(&dx2, &dx, &both_dx);
    near(grads2.data(), grads.data(), both.data());
}

/// The gradient against differences of `value` along random directions of parameters and input.
fn check_differences(
    name: &str,
    net: &mut Net,
    inputs: (&Input, Option<&[f32]>),
    feature: &str,
    mode: Mode,
) {
    let start = DropoutStream { seed: 7, step: 3 };
    fn all<'a>(image: &'a Input, second: Option<&'a [f32]>) -> Inputs<'a> {
        second.map_or_else(|| image.into(), |second| (image, second).into())
    }
    net.set_dropout(start);
    let tape = net.record(all(inputs.0, inputs.1), mode);
    let cotangent = random(tape.feature(feature).unwrap().data.len(), 9);
    let mut grads = net.zeros();
    let dx = net
        .backward_input(tape, &[(feature, &cotangent)], &mut grads)
        .unwrap();
    let value = |net: &mut Net, image: &Input| {
        net.set_dropout(start);
        let tape = net.record(all(image, inputs.1), mode);
        let value = dot(&cotangent, &tape.feature(feature).unwrap().data);
        net.discard(tape);
        value
    };
    let step = 2e-4f32;
    let moved = |x: &[f32], d: &[f32], by: f32| -> Vec<f32> {
        x.iter().zip(d).map(|(x, d)| x + by * d).collect()
    };
    let close = |what: &str, expected: f64, up: f64, down: f64| {
        let found = (up - down) / (2.0 * f64::from(step));
        assert!(
            (found - expected).abs() <= 0.03 * expected.abs().max(0.05),
            "{name}, {feature}, {what}: differences {found}, gradient {expected}"
        );
    };
    // Along the gradient itself, where the derivative is large, mixed with noise.
    let along = |g: &[f32], seed: u64| -> Vec<f32> {
        let norm = dot(g, g).sqrt().max(1e-12) as f32;
        let noise = random(g.len(), seed);
        let scale = 1.0 / (g.len() as f32).sqrt();
        g.iter()
            .zip(noise)
            .map(|(g, n)| g / norm + n * scale)
            .collect()
    };
    let original: Flat = net.params().clone();
    let direction = along(grads.data(), 11);
    let at = |by: f32, net: &mut Net| {
        let params = moved(original.data(), &direction, by);
        net.params_mut().data_mut().copy_from_slice(&params);
        value(net, inputs.0)
    };
    let (up, down) = (at(step, net), at(-step, net));
    close("parameters", dot(grads.data(), &direction), up, down);
    net.params_mut().copy_from(&original);

    let direction = along(&dx, 13);
    let mut at = |by: f32| {
        let image = Input {
            data: moved(&inputs.0.data, &direction, by),
            ..*inputs.0
        };
        value(net, &image)
    };
    let (up, down) = (at(step), at(-step));
    close("input", dot(&dx, &direction), up, down);
}

#[test]
fn gradients_are_derivatives() {
    // Large enough that the last normalisations see more than a few pixels, which would make them very steep.
    let image = images(6, 64, 5);
    for name in bb_nn::arch::NAMES {
        for mode in [Mode::Eval, Mode::TrainKeepStats] {
            let mut net = classifier(name);
            for feature in ["output", "penultimate"] {
                check_differences(name, &mut net, (&image, None), feature, mode);
            }
        }
    }
    let image = images(3, 32, 5);
    let mut generator = Net::new(&ModelSpec::input_aware(3, 4).unwrap(), 1);
    for mode in [Mode::Eval, Mode::TrainKeepStats] {
        check_differences("generator", &mut generator, (&image, None), "output", mode);
    }
    let bits: Vec<f32> = random(3 * 20, 6)
        .iter()
        .map(|v| if *v > 0.0 { 1.0 } else { 0.0 })
        .collect();
    let mut encoder = Net::new(&ModelSpec::ssba_encoder(32, 20, 4).unwrap(), 1);
    let both = (&image, Some(bits.as_slice()));
    check_differences("encoder", &mut encoder, both, "output", Mode::Train);
    let mut decoder = Net::new(&ModelSpec::ssba_decoder(32, 20, 4).unwrap(), 1);
    check_differences(
        "decoder",
        &mut decoder,
        (&image, None),
        "output",
        Mode::Train,
    );
}

#[test]
fn passes_give_the_same_bits_on_any_number_of_threads() {
    let image = images(9, 32, 5);
    for name in ["vgg19_bn", "resnet18"] {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let mut net = classifier(name);
                let mut grads = net.zeros();
                let labels = [0, 1, 2, 3, 4, 5, 0, 1, 2];
                let (loss, dx) = net.loss_grad_input(&image, &labels, Mode::Train, &mut grads);
                (
                    loss.mean,
                    dx,
                    grads.data().to_vec(),
                    net.buffers().data().to_vec(),
                )
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3), "{name}");
    }
}

#[test]
fn an_unknown_feature_names_the_known_ones() {
    let mut net = classifier("vgg19_bn");
    let input = images(1, 32, 1);
    let tape = net.record(&input, Mode::Eval);
    assert!(tape.feature("layer4").is_none());
    let error = net.input_gradient(tape, &[("layer4", &[])]).unwrap_err();
    assert!(matches!(error, NnError::UnknownFeature { .. }));
    assert_eq!(
        error.to_string(),
        "unknown feature `layer4`, expected one of features.0, features.3, features.6, features.7, features.10, \
         features.13, features.14, features.17, features.20, features.23, features.26, features.27, features.30, \
         features.33, features.36, features.39, features.40, features.43, features.46, features.49, features.52, \
         features, avgpool, classifier.2, classifier.5, penultimate, output"
    );
}

#[test]
fn sizes_of_models_are_checked() {
    for (spec, expected) in [
        (
            ModelSpec::ssba_encoder(48, 100, 32),
            "`side` of `ssba-encoder` is 48, expected a multiple of 32, at most 256",
        ),
        (
            ModelSpec::input_aware(0, 32),
            "`outputs` of `input-aware` is 0, expected 1 to 4",
        ),
    ] {
        assert_eq!(spec.unwrap_err().to_string(), expected);
    }
}
