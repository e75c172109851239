//! The triggers against outputs of the original code: on random images, kept in the repository and made by
//! `golden_data/make.py`, and on photographs, which are not ours to keep.
//!
//! Sizes are read from the file, so that both serve.

use std::path::{Path, PathBuf};

use bb_attack as attack;
use bb_attack::in_loop::{Rounding, fractions, to_images};
use bb_nn::data::Input;
use safetensors::{Dtype, SafeTensors};

/// The goldens of the repository.
fn own() -> Vec<u8> {
    // Asked for at run time, so that the program also finds it on another machine than the one that built it.
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let path = Path::new(&folder).join("tests/golden_data/triggers.safetensors");
    fs_err::read(path).expect("a file of the repository")
}

/// Those on photographs.
fn photographs() -> Vec<u8> {
    let shared = std::env::var_os("BB_SHARED").expect("BB_SHARED names the folder of the goldens");
    let path = PathBuf::from(shared).join("golden/e_triggers.safetensors");
    fs_err::read(path).expect("the goldens")
}

#[test]
fn golden_badnets() {
    badnets(&own());
}

#[test]
fn golden_blended() {
    blended(&own());
}

#[test]
fn golden_sig() {
    sig(&own());
}

#[test]
fn golden_lf() {
    lf(&own());
}

#[test]
fn golden_wanet() {
    wanet(&own());
}

#[test]
#[ignore = "needs BB_SHARED"]
fn golden_triggers_on_photographs() {
    let file = photographs();
    for check in [badnets, blended, sig, lf, wanet] {
        check(&file);
    }
}

/// The bytes and the shape of a u8 tensor.
fn u8s<'a>(file: &SafeTensors<'a>, name: &str) -> (&'a [u8], Vec<usize>) {
    let tensor = file.tensor(name).expect("a tensor of the goldens");
    assert_eq!(tensor.dtype(), Dtype::U8, "{name}");
    (tensor.data(), tensor.shape().to_vec())
}

/// The values of an f32 tensor.
fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).expect("a tensor of the goldens");
    assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
    let bytes = tensor.data().chunks_exact(4);
    bytes
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

/// Applies a trigger to every image of `in_u8` and compares with a stored output, exactly.
fn check(file: &SafeTensors<'_>, output: &str, apply: impl Fn(&mut [u8])) {
    let (images, shape) = u8s(file, "in_u8");
    let (expect, expect_shape) = u8s(file, output);
    assert_eq!(shape, expect_shape);
    let mut got = images.to_vec();
    let size: usize = shape[1..].iter().product();
    for image in got.chunks_exact_mut(size) {
        apply(image);
    }
    let differing = got.iter().zip(expect).filter(|(a, b)| a != b).count();
    assert_eq!(differing, 0, "values of {output} that differ");
}

fn badnets(bytes: &[u8]) {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let (trigger, shape) = u8s(&file, "badnet.trigger");
    check(&file, "badnet.out_u8", |image| {
        attack::badnets::trigger::apply(image, trigger);
    });
    // The patch that is drawn by default is the bench's file, at the size of the goldens.
    let drawn = attack::badnets::picture(
        &attack::badnets::config::BadNetsConfig::default(),
        shape[0],
        shape[1],
    )
    .expect("the default patch fits");
    assert_eq!(drawn.pixels(), trigger);
}

fn blended(bytes: &[u8]) {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let trigger = f32s(&file, "blended.trigger_resized_f32");
    check(&file, "blended.out_u8", |image| {
        attack::blended::trigger::apply(image, &trigger, 0.2);
    });
    if file.names().contains(&"blended.source_u8") {
        let (source, size) = u8s(&file, "blended.source_u8");
        let (_, shape) = u8s(&file, "in_u8");
        let picture = bb_attack::picture::Picture::new(size[0], size[1], source.to_vec());
        let resized = picture.resized(shape[1], shape[2]);
        assert_eq!(attack::blended::trigger::widen(resized.pixels()), trigger);
    }
}

fn sig(bytes: &[u8]) {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let stored = f32s(&file, "sig.pattern_row");
    let row = attack::sig::trigger::row(stored.len(), 40.0, 6.0);
    // NumPy's sine and ours may differ in the last bit; what is stored are 32 bits of it.
    for (column, (&found, &expect)) in row.iter().zip(&stored).enumerate() {
        assert!(
            (found - expect).abs() < 1e-5,
            "column {column}: {found}, {expect}"
        );
    }
    for row in [&row, &stored] {
        check(&file, "sig.out_u8", |image| {
            attack::sig::trigger::apply(image, row);
        });
    }
}

fn lf(bytes: &[u8]) {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let pattern = f32s(&file, "lowFrequency.pattern");
    check(&file, "lowFrequency.out_u8", |image| {
        attack::lf::trigger::apply(image, &pattern);
    });
    // The same through a file, in grey levels and in fractions.
    let (_, shape) = u8s(&file, "in_u8");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("pattern.npy");
    for fractions in [false, true] {
        let scale = if fractions { 255.0 } else { 1.0 };
        let values: Vec<f32> = pattern.iter().map(|v| v / scale).collect();
        let bytes = bb_attack::npy::to_bytes(&[1, shape[1], shape[2], 3], &values);
        fs_err::write(&path, bytes).expect("a writable folder");
        let scale = attack::lf::config::Scale::Auto;
        let (read, warnings) = attack::lf::pattern::Pattern::read(&path, scale, shape[1], shape[2])
            .expect("a pattern");
        assert_eq!(!warnings.is_empty(), fractions);
        check(&file, "lowFrequency.out_u8", |image| read.apply(image));
    }
}

/// Values within 2e-5, and images after the way back to bytes within a level for 999 of 1000 values.
fn check_warped(file: &SafeTensors<'_>, name: &str, warped: &Input) {
    let (float, bytes) = (format!("wanet.{name}_float"), format!("wanet.{name}_u8"));
    let expect = Input::from_nchw(warped.n, warped.h, warped.w, &f32s(file, &float));
    let spec = bb_core::data::spec("cifar10").expect("a known dataset");
    close(&float, &fractions(&warped.data, spec), &expect.data);
    let images = to_images(warped, spec, Rounding::Truncate).expect("images");
    let (expect, _) = u8s(file, &bytes);
    let apart = |level: u8| {
        let pairs = images.as_bytes().iter().zip(expect);
        pairs.filter(|(a, b)| a.abs_diff(**b) > level).count() * 1000
    };
    assert!(apart(1) <= expect.len(), "{bytes}");
    // Truncation turns the last bit of a sum into a level, but seldom.
    assert!(apart(0) <= 20 * expect.len(), "{bytes}: {}", apart(0));
}

fn close(name: &str, found: &[f32], expect: &[f32]) {
    assert_eq!(found.len(), expect.len(), "{name}");
    let pairs = found.iter().zip(expect);
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 2e-5, "{name}: {worst}");
}

fn wanet(bytes: &[u8]) {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let (_, shape) = u8s(&file, "in_u8");
    let (n, size) = (shape[0], (shape[1], shape[2]));
    let raw = f32s(&file, "wanet.ins_raw");
    let k = 4;
    assert_eq!(raw.len(), 2 * k * k);
    let raw: Vec<f32> = (0..k * k).flat_map(|i| [raw[i], raw[k * k + i]]).collect();
    let noise = attack::wanet::trigger::smooth(&raw, k, size);
    close("noise_grid", &noise, &f32s(&file, "wanet.noise_grid"));
    let identity = attack::wanet::trigger::identity(size.0, size.1);
    close("identity", &identity, &f32s(&file, "wanet.identity_grid"));
    let field = attack::wanet::trigger::Field::new(&noise, size, 0.5, 1.0);
    close("grid", field.grid(), &f32s(&file, "wanet.grid"));

    let values = f32s(&file, "wanet.in_norm");
    let images = Input::from_nchw(n, size.0, size.1, &values);
    let warped = Input {
        data: field.warp(&images.data),
        ..images.clone()
    };
    check_warped(&file, "out", &warped);
    let disturbance = f32s(&file, "wanet.cross_rand");
    assert!(disturbance.iter().any(|&u| u < -0.9) && disturbance.iter().any(|&u| u > 0.9));
    let warped = Input {
        data: field.warp_disturbed(&images.data, &disturbance),
        ..images
    };
    check_warped(&file, "cross_out", &warped);
}
