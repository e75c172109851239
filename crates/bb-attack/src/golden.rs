//! What the tests of this crate read from `tests/golden_data`: numbers of the original code, see `make.py` there.

use std::path::Path;

use bb_core::data::{DatasetSpec, Images};
use bb_nn::data::Input;
use bb_nn::{Flat, Net};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// A file of `tests/golden_data`.
pub(crate) struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    pub(crate) fn load(name: &str) -> Self {
        // Asked for at run time, so that the program also finds it on another machine than the one that built it.
        let folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
        let path = Path::new(&folder).join(format!("tests/golden_data/{name}.safetensors"));
        let bytes = fs_err::read(path).expect("a file of the repository");
        Self { bytes }
    }

    fn view<T>(&self, name: &str, read: impl FnOnce(TensorView<'_>) -> T) -> T {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let tensor = file.tensor(name);
        read(tensor.unwrap_or_else(|error| panic!("{name}: {error}")))
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        self.view(name, |tensor| tensor.shape().to_vec())
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.view(name, |tensor| {
            assert_eq!(tensor.dtype(), Dtype::U8, "{name}");
            tensor.data().to_vec()
        })
    }

    /// Floats of any width, and integers of 64 bits.
    pub(crate) fn doubles(&self, name: &str) -> Vec<f64> {
        self.view(name, |tensor| {
            let data = tensor.data();
            match tensor.dtype() {
                Dtype::F64 => {
                    let (parts, _) = data.as_chunks();
                    parts.iter().map(|b| f64::from_le_bytes(*b)).collect()
                }
                Dtype::F32 => {
                    let (parts, _) = data.as_chunks();
                    let values = parts.iter().map(|b| f32::from_le_bytes(*b));
                    values.map(f64::from).collect()
                }
                Dtype::BF16 => {
                    let (parts, _) = data.as_chunks();
                    let words = parts.iter().map(|b| u32::from(u16::from_le_bytes(*b)));
                    words
                        .map(|word| f64::from(f32::from_bits(word << 16)))
                        .collect()
                }
                Dtype::I64 => {
                    let (parts, _) = data.as_chunks();
                    parts
                        .iter()
                        .map(|b| i64::from_le_bytes(*b) as f64)
                        .collect()
                }
                other => panic!("{name} is {other:?}"),
            }
        })
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.doubles(name).into_iter().map(|v| v as f32).collect()
    }

    pub(crate) fn indices(&self, name: &str) -> Vec<usize> {
        self.doubles(name).into_iter().map(|v| v as usize).collect()
    }

    pub(crate) fn labels(&self, name: &str) -> Vec<u32> {
        self.doubles(name).into_iter().map(|v| v as u32).collect()
    }

    /// Images `[n, h, w, 3]`.
    pub(crate) fn images(&self, name: &str) -> Images {
        let shape = self.shape(name);
        Images::new(shape[0], shape[1], shape[2], self.bytes(name)).expect("images")
    }

    /// Values `[n, 3, h, w]`.
    pub(crate) fn input(&self, name: &str) -> Input {
        let shape = self.shape(name);
        Input::from_nchw(shape[0], shape[2], shape[3], &self.floats(name))
    }

    /// Gives a network the parameters and buffers behind `prefix`.
    pub(crate) fn fill(&self, prefix: &str, net: &mut Net) {
        for flat in [true, false] {
            let flat = if flat {
                net.params_mut()
            } else {
                net.buffers_mut()
            };
            for i in 0..flat.tensors() {
                let name = format!("{prefix}{}", flat.layout().entries()[i].name);
                flat.set_plain(i, &self.floats(&name));
            }
        }
    }

    /// Compares those tensors of `flat` that stand behind `prefix`, at least one.
    #[track_caller]
    pub(crate) fn check(&self, prefix: &str, flat: &Flat, tolerance: f64) {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let mut known = 0;
        for (i, entry) in flat.layout().entries().iter().enumerate() {
            let name = format!("{prefix}{}", entry.name);
            if file.tensor(&name).is_ok() {
                close(&name, &flat.to_plain(i), &self.floats(&name), tolerance);
                known += 1;
            }
        }
        assert!(known > 0, "nothing behind {prefix}");
    }
}

/// L2 norms of the tensors of a vector whose names `wanted` takes.
pub(crate) fn norms(flat: &Flat, wanted: impl Fn(&str) -> bool) -> Vec<f32> {
    let entries = flat
        .layout()
        .entries()
        .iter()
        .zip(flat.norm_l2_per_tensor());
    let wanted = entries.filter(|(entry, _)| wanted(&entry.name));
    wanted.map(|(_, norm)| norm as f32).collect()
}

/// Fails where the L2 norm of the difference is more than `tolerance` of that of the expected values.
#[track_caller]
pub(crate) fn close(name: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let square = |v: f64| v * v;
    let pairs = found.iter().zip(expected);
    let off: f64 = pairs.map(|(a, b)| square(f64::from(a - b))).sum();
    let norm: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    let relative = (off / norm.max(1e-30)).sqrt();
    assert!(
        relative <= tolerance,
        "{name}: relative difference {relative:e}, allowed {tolerance:e}"
    );
}

/// CIFAR-10 with images of another size, as which the goldens are made.
pub(crate) fn spec(side: usize) -> DatasetSpec {
    let spec = bb_core::data::spec("cifar10").expect("a known dataset");
    DatasetSpec {
        height: side,
        width: side,
        ..spec.clone()
    }
}

/// The goldens' classifier.
pub(crate) fn classifier() -> Net {
    let arch = bb_nn::ArchSpec::new("preactresnet18", 4, 10).expect("a small network");
    let mut net = Net::new(&arch, 0);
    Golden::load("classifier").fill("state.", &mut net);
    net
}
