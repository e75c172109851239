//! TSBD against outputs of the authors' code, kept in the shared golden files (see `docs/` for what they hold).
//!
//! Sizes, layer names and neuron counts are read from the files, so another network's set of the same cases passes too.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bb_core::data::spec;
use bb_defense::data::CleanImages;
use bb_defense::method::Suspect;
use bb_defense::tsbd::algorithm::{
    Layer, NormRecord, Scheme, WeightChange, count_of, rank_descending, round_decimals,
    zero_reinitialisation,
};
use bb_defense::tsbd::config::TsbdConfig;
use bb_defense::tsbd::finetune::{Tuner, zeroed};
use bb_defense::tsbd::unlearn;
use bb_nn::data::Input;
use bb_nn::kernels::loss::cross_entropy;
use bb_nn::optim::Sgd;
use bb_nn::{ArchSpec, Mode, Net, StateDict};
use safetensors::{Dtype, SafeTensors};

/// The tensors of one golden file, converted to plain vectors.
struct Golden {
    floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    integers: BTreeMap<String, Vec<i64>>,
    metadata: std::collections::HashMap<String, String>,
}

impl Golden {
    fn read(name: &str) -> Option<Self> {
        let path = golden(name)?;
        let bytes = fs_err::read(&path).expect("the golden file is readable");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors header");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let mut golden = Self {
            floats: BTreeMap::new(),
            integers: BTreeMap::new(),
            metadata: header.metadata().clone().unwrap_or_default(),
        };
        for (name, view) in file.tensors() {
            match view.dtype() {
                Dtype::F32 => {
                    let values = view
                        .data()
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .map(|b| f32::from_le_bytes(*b))
                        .collect();
                    golden.floats.insert(name, (view.shape().to_vec(), values));
                }
                Dtype::I64 => {
                    let values = view
                        .data()
                        .as_chunks::<8>()
                        .0
                        .iter()
                        .map(|b| i64::from_le_bytes(*b))
                        .collect();
                    golden.integers.insert(name, values);
                }
                Dtype::U8 => {
                    golden
                        .integers
                        .insert(name, view.data().iter().map(|&b| i64::from(b)).collect());
                }
                other => panic!("tensor `{name}` has type {other:?}"),
            }
        }
        Some(golden)
    }

    fn layers(&self) -> Vec<String> {
        serde_json::from_str(&self.metadata["layers"]).expect("a list of layer names")
    }

    fn float(&self, name: &str) -> &[f32] {
        &self
            .floats
            .get(name)
            .unwrap_or_else(|| panic!("tensor `{name}`"))
            .1
    }

    fn integer(&self, name: &str) -> &[i64] {
        self.integers
            .get(name)
            .unwrap_or_else(|| panic!("tensor `{name}`"))
    }

    fn target<'a>(&'a self, prefix: &str, names: &'a [String]) -> Vec<Layer<'a>> {
        names
            .iter()
            .map(|name| {
                let (shape, weights) = &self.floats[&format!("{prefix}{name}")];
                Layer {
                    name,
                    outputs: shape[0],
                    weights,
                }
            })
            .collect()
    }
}

#[expect(clippy::print_stderr, reason = "a test says why it did nothing")]
fn golden(name: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("BB_SHARED");
    if shared.is_none() {
        eprintln!("skipped: BB_SHARED is not set");
    }
    Some(PathBuf::from(shared?).join("golden").join(name))
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).expect("a count")
}

fn usizes(values: &[i64]) -> Vec<usize> {
    values
        .iter()
        .map(|&v| usize::try_from(v).expect("a count"))
        .collect()
}

/// The share of neurons the goldens were made with.
const N: f64 = 0.15;
/// The share of weights the goldens were made with.
const M: f64 = 0.7;

#[test]
fn golden_nwc_ranking_and_masks() {
    let (Some(model), Some(golden)) = (
        Golden::read("model.safetensors"),
        Golden::read("f_tsbd.safetensors"),
    ) else {
        return;
    };
    let names = golden.layers();
    let change = WeightChange::new(
        &model.target("", &names),
        &golden.target("unlearned.", &names),
    )
    .expect("same net");

    let places: Vec<(i64, i64)> = (0..change.neurons())
        .map(|neuron| change.place(neuron))
        .map(|place| (signed(place.layer_number), signed(place.channel)))
        .collect();
    let stored: Vec<(i64, i64)> = golden
        .integer("neuron_layer")
        .iter()
        .copied()
        .zip(golden.integer("neuron_index").iter().copied())
        .collect();
    assert_eq!(places, stored);

    let nwc = change.nwc();
    for (neuron, (got, want)) in nwc.iter().zip(golden.float("nwc")).enumerate() {
        assert!(
            (got - want).abs() <= 1e-3 * want.abs() + 1e-7,
            "neuron {neuron}: {got} against {want}"
        );
    }

    let scores: Vec<f64> = golden
        .float("nwc_4dp")
        .iter()
        .map(|&v| round_decimals(v, 4))
        .collect();
    let order = rank_descending(&scores);
    assert_eq!(order, usizes(golden.integer("order_desc")));
    assert_eq!(
        signed(count_of(change.neurons(), N)),
        golden.integer("top_num")[0]
    );

    let zeroing = zero_reinitialisation(&change, &order, N, M, Scheme::V3);
    assert_eq!(
        signed(zeroing.requested),
        golden.integer("reinit_weight_num")[0]
    );
    assert_eq!(signed(zeroing.zeroed), golden.integer("zeroed_total")[0]);
    for (name, mask) in &zeroing.masks {
        let got: Vec<i64> = mask.iter().map(|&cleared| i64::from(cleared)).collect();
        assert_eq!(
            got,
            golden.integer(&format!("reinit_zeroed.{name}")),
            "mask of {name}"
        );
    }
}

/// Every stored NWC, rounded by us, is the value the reference read back from its text file.
#[test]
fn golden_rounding_is_the_reference_text_file() {
    for file in ["f_tsbd.safetensors", "f_tsbd_lr1e-4.safetensors"] {
        let Some(golden) = Golden::read(file) else {
            return;
        };
        for (value, rounded) in golden.float("nwc").iter().zip(golden.float("nwc_4dp")) {
            assert_eq!(
                (round_decimals(*value, 4) as f32).to_bits(),
                rounded.to_bits(),
                "{file}: {value}"
            );
        }
    }
}

/// At the published rate the rounded values are full of ties, so this is where a stable order shows.
#[test]
fn golden_ranking_with_many_ties() {
    let Some(golden) = Golden::read("f_tsbd_lr1e-4.safetensors") else {
        return;
    };
    let scores: Vec<f64> = golden
        .float("nwc_4dp")
        .iter()
        .map(|&v| round_decimals(v, 4))
        .collect();
    let mut distinct = scores.clone();
    distinct.sort_by(f64::total_cmp);
    distinct.dedup();
    assert!(
        distinct.len() < scores.len(),
        "the case is meant to have ties"
    );
    assert_eq!(
        rank_descending(&scores),
        usizes(golden.integer("order_desc"))
    );
    assert_eq!(
        signed(count_of(scores.len(), N)),
        golden.integer("top_num")[0]
    );
}

/// Batches in the file of inputs.
const BATCHES: usize = 6;

/// The golden network and its batches of inputs.
struct Setting {
    arch: ArchSpec,
    state: StateDict,
    batches: Vec<(Input, Vec<u32>)>,
}

impl Setting {
    fn read() -> Option<Self> {
        let state = StateDict::load(&golden("model.safetensors")?).expect("a state dictionary");
        let dims = |name: &str| {
            state
                .get(name)
                .unwrap_or_else(|| panic!("tensor `{name}`"))
                .dims()
                .to_vec()
        };
        let (width, classes) = (dims("conv1.weight")[0], dims("linear.weight")[0]);
        let arch = ArchSpec::new("preactresnet18", width, classes).expect("the golden network");
        let inputs = Golden::read("inputs.safetensors")?;
        let (shape, x) = &inputs.floats["x"];
        let &[n, 3, h, w] = shape.as_slice() else {
            panic!("inputs of shape {shape:?}")
        };
        let size = n / BATCHES;
        let labels: Vec<u32> = inputs
            .integer("labels")
            .iter()
            .map(|&l| u32::try_from(l).expect("a class"))
            .collect();
        let batches = x
            .chunks_exact(size * 3 * h * w)
            .zip(labels.chunks_exact(size))
            .map(|(x, labels)| (Input::from_nchw(size, h, w, x), labels.to_vec()))
            .collect();
        Some(Self {
            arch,
            state,
            batches,
        })
    }

    fn net(&self) -> Net {
        Net::from_state(&self.arch, &self.state).expect("the state fits")
    }
}

/// Fails unless every tensor `prefix + name` of the golden file is close to that of the network, in relative L2 norm.
fn check_state(net: &Net, golden: &Golden, prefix: &str, tolerance: f64) {
    let state = net.state().expect("a state");
    let mut compared = 0;
    for (name, tensor) in state.iter() {
        let key = format!("{prefix}{name}");
        if let Some((_, want)) = golden.floats.get(&key) {
            let got = tensor
                .flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("floats");
            let square = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>()
            };
            let error = square(&mut got.iter().zip(want).map(|(a, b)| a - b)).sqrt();
            let norm = square(&mut want.iter().copied()).sqrt();
            assert!(
                error <= tolerance * norm,
                "{name}: relative error {:e}",
                error / norm
            );
        } else {
            let got = tensor
                .flatten_all()
                .and_then(|t| t.to_vec1::<i64>())
                .expect("a counter");
            assert_eq!(got, golden.integer(&key), "{name}");
        }
        compared += 1;
    }
    let stored = golden
        .floats
        .keys()
        .chain(golden.integers.keys())
        .filter(|key| key.starts_with(prefix))
        .count();
    assert_eq!(compared, stored, "every stored tensor is compared");
}

fn check_close(what: &str, got: f64, want: f32, tolerance: f64) {
    let want = f64::from(want);
    assert!(
        (got - want).abs() <= tolerance * want.abs(),
        "{what}: {got} against {want}"
    );
}

/// Five steps of clean unlearning from the stored model give the reference's losses, gradient norms and NWC.
#[test]
fn golden_unlearning() {
    let (Some(setting), Some(golden)) = (Setting::read(), Golden::read("f_tsbd.safetensors"))
    else {
        return;
    };
    let mut net = setting.net();
    let names = golden.layers();
    let targets = unlearn::target_tensors(net.params(), &TsbdConfig::default().layers.exclude);
    let original = unlearn::plain_tensors(net.params(), &targets);
    assert_eq!(
        original
            .iter()
            .map(|(name, ..)| name.as_str())
            .collect::<Vec<_>>(),
        names
    );

    let recorded = net
        .params()
        .layout()
        .position("layer4.1.conv2.weight")
        .expect("the recorded layer");
    let mut sgd = Sgd::new(net.params(), 0.9, 0.0, false);
    let mut grads = net.zeros();
    let mut record = NormRecord::default();
    let mut losses = 0.0;
    for (input, labels) in &setting.batches[..5] {
        losses +=
            f64::from(unlearn::step(&mut net, &mut sgd, &mut grads, input, labels, 0.002).mean);
        record.push(grads.channel_l1(recorded));
    }
    check_close(
        "mean loss",
        losses / 5.0,
        golden.float("unlearn.train_loss")[0].abs(),
        1e-4,
    );
    for (neuron, (mean, variance)) in record.summary().into_iter().enumerate() {
        check_close(
            "mean gradient norm",
            mean,
            golden.float("unlearn.avg_gradnorm")[neuron],
            1e-3,
        );
        check_close(
            "its variance",
            variance,
            golden.float("unlearn.var_gradnorm")[neuron],
            5e-3,
        );
    }
    check_state(&net, &golden, "unlearned.", 1e-3);

    let unlearned = unlearn::plain_tensors(net.params(), &targets);
    let change = WeightChange::new(&unlearn::layers(&original), &unlearn::layers(&unlearned))
        .expect("same net");
    for (neuron, (got, want)) in change.nwc().iter().zip(golden.float("nwc")).enumerate() {
        check_close(
            &format!("NWC of neuron {neuron}"),
            f64::from(*got),
            *want,
            1e-3,
        );
    }
}

/// Zero reinitialisation from the stored weight change, then two steps of activeness-aware fine-tuning.
#[test]
fn golden_finetuning() {
    let (Some(setting), Some(unlearned), Some(golden)) = (
        Setting::read(),
        Golden::read("f_tsbd.safetensors"),
        Golden::read("f_tsbd_finetuned.safetensors"),
    ) else {
        return;
    };
    let names = unlearned.layers();
    let net = setting.net();
    let targets = unlearn::target_tensors(net.params(), &TsbdConfig::default().layers.exclude);
    let original = unlearn::plain_tensors(net.params(), &targets);
    let change = WeightChange::new(
        &unlearn::layers(&original),
        &unlearned.target("unlearned.", &names),
    )
    .expect("same net");
    let zeroing = zero_reinitialisation(
        &change,
        &usizes(unlearned.integer("order_desc")),
        N,
        M,
        Scheme::V3,
    );
    let clean = CleanImages::from_split(bb_core::data::Split {
        images: bb_core::data::Images::new(0, 32, 32, Vec::new()).expect("no image"),
        labels: Vec::new().into(),
    });
    let task = spec("cifar10").expect("a known dataset");
    let mut net = zeroed(
        &Suspect::new(&setting.arch, task, &setting.state, &clean),
        &zeroing,
    )
    .expect("the state fits");
    let cleared = |net: &Net| -> usize {
        let zeros = |(_, _, weights): &(String, usize, Vec<f32>)| {
            weights.iter().filter(|w| **w == 0.0).count()
        };
        unlearn::plain_tensors(net.params(), &targets)
            .iter()
            .map(zeros)
            .sum()
    };
    assert_eq!(cleared(&net) - cleared(&setting.net()), zeroing.zeroed);

    let mut tuner = Tuner::new(&net, &TsbdConfig::default().finetune);
    let mut losses = 0.0;
    for (input, labels) in &setting.batches[..2] {
        tuner.step(&mut net, input, labels);
        // The reference logs the loss of the pass that follows the step.
        let logits = net.forward(input, Mode::TrainKeepStats);
        losses += f64::from(cross_entropy(&logits, labels, setting.arch.classes(), None).mean);
    }
    check_close(
        "mean loss after a step",
        losses / 2.0,
        unlearned.float("finetune.loss_mean")[0],
        1e-4,
    );
    check_state(&net, &golden, "param.", 2e-3);
}
