//! What the tests against PyTorch's numbers share.

use candle_core::Tensor;
use std::collections::HashMap;
use std::path::Path;

pub(crate) type Tensors = HashMap<String, Tensor>;

/// All tensors of a safetensors file.
pub(crate) fn load(path: &Path) -> Tensors {
    candle_core::safetensors::load(path, &candle_core::Device::Cpu)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A file of `golden_data`.
#[allow(dead_code, reason = "not every test has one")]
pub(crate) fn golden(name: &str) -> Tensors {
    // Asked for at run time, so that the program also finds it on another machine than the one that built it.
    let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    load(&Path::new(&crate_folder).join(format!("tests/golden_data/{name}.safetensors")))
}

pub(crate) fn floats(t: &Tensor) -> Vec<f32> {
    t.flatten_all()
        .unwrap()
        .to_dtype(candle_core::DType::F32)
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[allow(dead_code, reason = "not every test has any")]
pub(crate) fn labels(t: &Tensor) -> Vec<u32> {
    t.flatten_all()
        .unwrap()
        .to_vec1::<i64>()
        .unwrap()
        .iter()
        .map(|v| *v as u32)
        .collect()
}

#[track_caller]
pub(crate) fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let worst = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(
        worst <= tolerance,
        "{name}: largest difference {worst:e}, allowed {tolerance:e}"
    );
}

#[track_caller]
pub(crate) fn assert_relative(name: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let square = |v: f64| v * v;
    let difference: f64 = found
        .iter()
        .zip(expected)
        .map(|(a, b)| square(f64::from(*a) - f64::from(*b)))
        .sum();
    let norm: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    let relative = (difference / norm.max(1e-30)).sqrt();
    assert!(
        relative <= tolerance,
        "{name}: relative difference {relative:e}, allowed {tolerance:e}"
    );
}
