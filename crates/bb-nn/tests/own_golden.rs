//! PyTorch's numbers on tiny networks, kept in the repository, so that every checkout has them.

mod common;
#[path = "common/tiny.rs"]
mod tiny;

use bb_nn::{ArchSpec, Compute, Net};
use candle_core::DType;
use std::collections::BTreeMap;

#[test]
fn golden_tiny_network() {
    tiny::check(&Compute::Cpu);
}

/// 43 classes of 32 x 32 pixels.
#[test]
fn golden_shape_of_gtsrb() {
    tiny::check_case(&Compute::Cpu, "preactresnet_gtsrb");
}

/// 200 classes of 64 x 64 pixels, whose last map has 8 x 8 places and not 4 x 4.
#[test]
fn golden_shape_of_tiny_imagenet() {
    tiny::check_case(&Compute::Cpu, "preactresnet_tiny");
}

/// At full width, with the classes of CIFAR-10, GTSRB, CIFAR-100 and Tiny ImageNet.
#[test]
fn the_full_network_has_as_many_parameters_as_the_benchmarks() {
    for (classes, parameters) in [
        (10, 11_171_146),
        (43, 11_188_075),
        (100, 11_217_316),
        (200, 11_268_616),
    ] {
        let arch = ArchSpec::new("preactresnet18", 64, classes).unwrap();
        let net = Net::new(&arch, 0);
        assert_eq!(net.params().data().len(), parameters, "{classes} classes");
        let last = net.params().layout().entries().last().unwrap();
        assert_eq!(
            (last.name.as_str(), &last.shape[..]),
            ("linear.bias", &[classes][..])
        );
    }
}

/// Name, number of elements, mean, standard deviation and largest magnitude of a tensor.
type Drawn = (String, usize, f64, f64, f64);

/// A new network's tensors have the mean, the spread and the largest value of those that PyTorch draws.
#[test]
fn initial_weights_are_drawn_as_pytorch_draws_them() {
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let path = std::path::Path::new(&folder).join("tests/golden_data/initial_weights.json");
    let text = fs_err::read_to_string(path).expect("it is there");
    let all: BTreeMap<String, Vec<Drawn>> = serde_json::from_str(&text).expect("rows of five");
    for (name, rows) in &all {
        // VGG's 140 million parameters are drawn at a quarter of the width: its convolutions then have a quarter of the
        // outputs, and so twice the spread; that of its linear layers is a constant.
        let width = if name == "vgg19_bn" { 16 } else { 64 };
        let net = Net::new(&ArchSpec::new(name, width, 10).unwrap(), 0);
        let state = net.state().unwrap();
        assert_eq!(state.iter().count(), rows.len(), "{name}");
        for ((found, tensor), (expect, total, mean, std, max)) in state.iter().zip(rows) {
            assert_eq!(found, expect, "{name}");
            let values = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
            let values: Vec<f64> = values.to_vec1().unwrap();
            let n = values.len() as f64;
            let wider = if width == 16 && tensor.dims().len() == 4 {
                2.0
            } else {
                1.0
            };
            let (std, max) = (wider * std, wider * max);
            if std == 0.0 {
                assert!(values.iter().all(|v| v == mean), "{name} {expect}");
                continue;
            }
            assert!(width == 16 || values.len() == *total, "{name} {expect}");
            let ours = values.iter().sum::<f64>() / n;
            let spread = (values.iter().map(|v| (v - ours).powi(2)).sum::<f64>() / n).sqrt();
            // Five standard errors of the difference of two samples, one of which may be larger.
            assert!(
                (ours - mean).abs() < 7.1 * std / n.sqrt(),
                "{name} {expect}: {ours}, {mean}"
            );
            let off = (spread / std - 1.0).abs();
            assert!(off < 5.0 / n.sqrt(), "{name} {expect}: {spread}, {std}");
            // Uniform draws end at a bound, normal ones do not.
            let top = values.iter().fold(0.0_f64, |top, v| top.max(v.abs()));
            if n > 1000.0 {
                let uniform = max < 1.8 * std;
                let fits = if uniform {
                    (0.98..1.02).contains(&(top / max))
                } else {
                    top > 3.0 * std
                };
                assert!(fits, "{name} {expect}: {top}, {max}");
            }
        }
    }
}
