//! PyTorch's numbers on small networks of every architecture, made by `golden_data/networks.py` and kept beside it.

mod common;

use bb_core::cli::{Coded as _, exit};
use bb_core::data::DatasetSpec;
use bb_nn::data::Input;
use bb_nn::model::ModelSpec;
use bb_nn::net::{DropoutStream, Inputs, Mode, Net};
use bb_nn::{ArchSpec, Flat, Spec, StateDict};
use candle_core::DType;
use common::{Tensors, assert_close, assert_relative, floats, golden, labels};

/// The network of a file with its tensors, and its batch.
struct Case {
    net: Net,
    all: Tensors,
    input: Input,
    bits: Vec<f32>,
}

impl Case {
    fn new(file: &str, spec: impl Into<Spec>) -> Self {
        let all = golden(file);
        let mut state = StateDict::new();
        for (name, tensor) in &all {
            if let Some(name) = name.strip_prefix("state.") {
                let tensor = match tensor.dtype() {
                    DType::BF16 => tensor.to_dtype(DType::F32).unwrap(),
                    _ => tensor.clone(),
                };
                state.insert(name, tensor);
            }
        }
        let (n, _, h, w) = all["x"].dims4().unwrap();
        Self {
            net: Net::from_state(spec, &state).unwrap(),
            input: Input::from_nchw(n, h, w, &floats(&all["x"])),
            bits: all.get("bits").map(floats).unwrap_or_default(),
            all,
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        if self.bits.is_empty() {
            (&self.input).into()
        } else {
            (&self.input, self.bits.as_slice()).into()
        }
    }

    /// A stored image in the engine's order, whatever its number of channels.
    fn image(&self, name: &str) -> Vec<f32> {
        let t = &self.all[name];
        match t.dims() {
            [_, _, _, _] => floats(&t.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()),
            _ => floats(t),
        }
    }

    fn check_gradients(&self, mode: &str, grads: &Flat) {
        let mut compared = 0;
        for (i, entry) in grads.layout().entries().iter().enumerate() {
            if let Some(expected) = self.all.get(&format!("{mode}.grad.{}", entry.name)) {
                assert_relative(&entry.name, &grads.to_plain(i), &floats(expected), 1e-3);
                compared += 1;
            }
        }
        let prefix = format!("{mode}.grad.");
        let stored = self.all.keys().filter(|k| k.starts_with(&prefix)).count();
        assert_eq!(compared, stored, "gradients in {mode} mode");
    }

    fn check_statistics(&self) {
        let state = self.net.state().unwrap();
        for (name, expected) in &self.all {
            let Some(name) = name.strip_prefix("after.") else {
                continue;
            };
            let found = state.get(name).expect("a tensor of that name");
            if name.ends_with("tracked") {
                assert_eq!(labels(found), labels(expected), "{name}");
            } else {
                assert_close(name, &floats(found), &floats(expected), 2e-5);
            }
        }
    }
}

fn check_classifier(name: &str, width: usize) {
    let spec = ArchSpec::new(name, width, 5).unwrap();
    let mut case = Case::new(name, &spec);
    let (input, batch_labels) = (case.input.clone(), labels(&case.all["labels"]));
    let mut grads = case.net.zeros();

    let logits = case.net.forward(&input, Mode::Eval);
    assert_relative("eval", &logits, &floats(&case.all["eval.output"]), 1e-5);
    let (loss, dx) = case
        .net
        .loss_grad_input(&input, &batch_labels, Mode::Eval, &mut grads);
    assert_close("loss", &[loss.mean], &floats(&case.all["eval.loss"]), 2e-5);
    assert_relative("input", &dx, &case.image("eval.grad_input"), 1e-3);
    case.check_gradients("eval", &grads);

    if let Some(cotangent) = case.all.get("train.cotangent") {
        // Up to where dropout begins.
        let shape = cotangent.dims().to_vec();
        let cotangent = case.image("train.cotangent");
        let mut net = case.net.clone();
        let tape = net.record(&input, Mode::Train);
        let found = tape.feature("avgpool").unwrap();
        assert_eq!([found.shape.h, found.shape.w], shape[2..]);
        assert_relative("train", &found.data, &case.image("train.output"), 1e-5);
        let cotangents = [("avgpool", cotangent.as_slice())];
        net.backward(tape, &cotangents, &mut grads).unwrap();
        for (i, entry) in grads.layout().entries().iter().enumerate() {
            let behind = entry.name.starts_with("classifier");
            let zero = grads.tensor(i).iter().all(|v| *v == 0.0);
            assert_eq!(zero, behind, "{}", entry.name);
        }
        case.net = net;
    } else {
        let logits = case.net.forward(&input, Mode::TrainKeepStats);
        assert_relative("train", &logits, &floats(&case.all["train.output"]), 1e-5);
        let loss = case
            .net
            .loss_grad(&input, &batch_labels, Mode::Train, &mut grads);
        assert_close("loss", &[loss.mean], &floats(&case.all["train.loss"]), 2e-5);
    }
    case.check_gradients("train", &grads);
    case.check_statistics();
}

#[test]
fn golden_resnet18() {
    check_classifier("resnet18", 2);
}

#[test]
fn golden_resnet34() {
    check_classifier("resnet34", 2);
}

#[test]
fn golden_vgg19_bn() {
    check_classifier("vgg19_bn", 1);
}

fn check_model(file: &str, spec: Result<ModelSpec, bb_nn::NnError>) {
    let mut case = Case::new(file, &spec.unwrap());
    let cotangent = case.image("cotangent");
    let mut net = case.net.clone();
    for (mode, mode_name) in [(Mode::Eval, "eval"), (Mode::Train, "train")] {
        if !case.all.contains_key(&format!("{mode_name}.output")) {
            continue;
        }
        let mut grads = net.zeros();
        let tape = net.record(case.inputs(), mode);
        let expected = case.image(&format!("{mode_name}.output"));
        assert_close(mode_name, &tape.output().data, &expected, 2e-5);
        let dx = net
            .backward_input(tape, &[("output", &cotangent)], &mut grads)
            .unwrap();
        if mode == Mode::Eval {
            assert_relative("input", &dx, &case.image("eval.grad_input"), 1e-3);
            let tape = net.record(case.inputs(), mode);
            let alone = net.input_gradient(tape, &[("output", &cotangent)]).unwrap();
            assert!(alone == dx, "the input's gradient alone has other bits");
        }
        case.check_gradients(mode_name, &grads);
    }
    case.net = net;
    case.check_statistics();
}

#[test]
fn golden_input_aware() {
    check_model("input_aware_pattern", ModelSpec::input_aware(3, 4));
    check_model("input_aware_mask", ModelSpec::input_aware(1, 2));
}

#[test]
fn input_aware_with_one_tanh_goes_further() {
    let spec = ModelSpec::input_aware(3, 4).expect("a model");
    let images = Input {
        n: 2,
        h: 16,
        w: 16,
        data: (0..2 * 16 * 16 * 3)
            .map(|i| (i % 19) as f32 / 9.0 - 1.0)
            .collect(),
    };
    let give = |spec| Net::new(&spec, 5).output(&images, Mode::Train).data;
    let (twice, once) = (give(spec), give(spec.with_one_tanh()));
    for (twice, once) in twice.iter().zip(once) {
        let again = 0.5 * (2.0 * once - 1.0).tanh() + 0.5;
        assert!((twice - again).abs() < 1e-5, "{twice} {once}");
    }
}

#[test]
fn golden_ssba() {
    check_model("ssba_encoder32", ModelSpec::ssba_encoder(32, 12, 2));
    check_model("ssba_encoder64", ModelSpec::ssba_encoder(64, 8, 2));
    check_model("ssba_decoder32", ModelSpec::ssba_decoder(32, 12, 4));
    check_model("ssba_decoder64", ModelSpec::ssba_decoder(64, 8, 4));
}

/// Names, order and number of parameters of the full networks, as published.
#[test]
fn state_dictionaries_are_torchvisions() {
    for (name, entries, parameters, first, last) in [
        (
            "preactresnet18",
            102,
            11_171_146,
            "conv1.weight",
            "linear.bias",
        ),
        ("resnet18", 122, 11_181_642, "conv1.weight", "fc.bias"),
        ("resnet34", 218, 21_289_802, "conv1.weight", "fc.bias"),
        ("vgg19_bn", 118, 0, "features.0.weight", "classifier.6.bias"),
    ] {
        // The largest network at its full width would fill half a gigabyte.
        let width = if parameters == 0 { 2 } else { 64 };
        let net = Net::new(&ArchSpec::new(name, width, 10).unwrap(), 0);
        let state = net.state().unwrap();
        let names: Vec<&str> = state.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), entries, "{name}");
        assert_eq!((names[0], names[entries - 1]), (first, last), "{name}");
        if parameters > 0 {
            assert_eq!(net.params().data().len(), parameters, "{name}");
        }
        if name == "resnet18" {
            let at = names.iter().position(|n| n.contains("downsample")).unwrap();
            assert_eq!(names[at - 1], "layer2.0.bn2.num_batches_tracked");
            assert_eq!(names[at], "layer2.0.downsample.0.weight");
        }
    }
}

/// Every architecture learns from images of both sizes, with and without many classes.
#[test]
fn every_architecture_takes_both_image_sizes() {
    for name in bb_nn::arch::NAMES {
        for (side, classes) in [(32, 43), (64, 200)] {
            let mut net = Net::new(&ArchSpec::new(name, 2, classes).unwrap(), 1);
            let data = (0..2 * side * side * 3).map(|i| (i % 17) as f32 / 17.0);
            let input = Input {
                n: 2,
                h: side,
                w: side,
                data: data.collect(),
            };
            let mut grads = net.zeros();
            let loss = net.loss_grad(&input, &[0, 1], Mode::Train, &mut grads);
            assert!(loss.mean.is_finite(), "{name} {side}");
            assert_eq!(grads.first_not_finite(), None, "{name} {side}");
            let (_, features) = net.forward_with(&input, Mode::Eval, &["penultimate"]);
            assert_eq!(features.len(), 1, "{name}");
        }
    }
}

/// The least image that an architecture names is one that it learns from, and smaller ones are refused.
#[test]
fn every_architecture_says_its_smallest_image() {
    let dataset = |height, width| DatasetSpec {
        height,
        width,
        ..bb_core::data::spec("cifar10").expect("a dataset").clone()
    };
    for name in bb_nn::arch::NAMES {
        let arch = ArchSpec::new(name, 2, 10).unwrap();
        let least = arch.least_side();
        // As small as can be, one image alone, and odd and very wide ones.
        for (n, h, w) in [
            (1, least, least),
            (3, least, least + 1),
            (2, least + 2, 4 * least + 3),
        ] {
            arch.check_images(&dataset(h, w)).expect("large enough");
            let mut net = Net::new(&arch, 1);
            let data = (0..n * h * w * 3).map(|i| (i % 17) as f32 / 17.0).collect();
            let input = Input { n, h, w, data };
            let labels: Vec<u32> = (0..n as u32).collect();
            let mut grads = net.zeros();
            let loss = net.loss_grad(&input, &labels, Mode::Train, &mut grads);
            assert!(loss.mean.is_finite(), "{name} {n} {h} {w}");
            assert_eq!(net.first_not_finite(), None, "{name} {n} {h} {w}");
            assert_eq!(grads.first_not_finite(), None, "{name} {n} {h} {w}");
        }
        if least > 1 {
            for (height, width) in [(least - 1, least), (least, least - 1), (1, 500)] {
                let spec = dataset(height, width);
                let error = ArchSpec::for_dataset(name, 2, &spec).expect_err("too small");
                assert_eq!(error.exit_code(), exit::USAGE);
                let expected = format!(
                    "`{name}` needs images of at least {least} x {least} pixels, the dataset has {height} x {width}"
                );
                assert_eq!(error.to_string(), expected);
            }
        }
    }
}

#[test]
fn dropout_masks_are_fair_repeat_and_move_on() {
    let spec = ArchSpec::new("vgg19_bn", 2, 10).unwrap();
    let mut net = Net::new(&spec, 0);
    let input = Input {
        n: 16,
        h: 32,
        w: 32,
        data: vec![0.5; 16 * 32 * 32 * 3],
    };
    net.set_dropout(DropoutStream { seed: 5, step: 0 });
    // Without normalisation by the batch, equal images differ by their masks alone.
    for v in net.params_mut().data_mut() {
        *v = v.abs() + 1e-3;
    }
    let name = ["classifier.2"];
    let (_, kept) = net.forward_with(&input, Mode::Eval, &name);
    assert_eq!(net.dropout().step, 0, "nothing is drawn in eval mode");
    assert!(kept[0].data.iter().all(|v| *v > 0.0));
    let (logits, dropped) = net.forward_with(&input, Mode::TrainKeepStats, &name);
    assert_eq!(net.dropout().step, 1);
    let zeros = dropped[0].data.iter().filter(|v| **v == 0.0).count();
    let total = dropped[0].data.len();
    // Five standard deviations of a fair coin.
    let allowed = 2.5 * (total as f64).sqrt();
    assert!(
        (zeros as f64 - total as f64 / 2.0).abs() < allowed,
        "{zeros} of {total}"
    );
    let (one, two) = dropped[0].data.split_at(total / 16);
    assert!(one.iter().zip(two).any(|(a, b)| (*a == 0.0) != (*b == 0.0)));

    let (next, _) = net.forward_with(&input, Mode::TrainKeepStats, &name);
    assert!(next != logits, "the next pass draws other masks");
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let state = net.state().unwrap();
        let again = pool.install(|| {
            let mut net = Net::from_state(&spec, &state).unwrap();
            net.set_dropout(DropoutStream { seed: 5, step: 0 });
            net.forward(&input, Mode::TrainKeepStats)
        });
        assert!(again == logits, "{threads} threads");
    }
}
