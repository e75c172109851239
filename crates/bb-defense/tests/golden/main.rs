//! Defenses against outputs of the original research code, kept in golden files.
//!
//! A tiny set is in `tests/golden_data`, with the scripts that make it. The folder `golden` of `BB_SHARED` holds a larger
//! one of the same cases, made with images of CIFAR-10: `-- --ignored` runs the same functions on it. Sizes, layer names
//! and neuron counts are read from the files.

mod anp;
mod baseline;
mod clp;
mod fp;
mod fp_whole;
mod ft;
mod ibau;
mod nad;
mod nc;
mod nc_whole;
mod otbr;
mod rnp;
mod tsbd;
mod ulrl;

use std::collections::BTreeMap;
use std::path::PathBuf;

use bb_defense::nwc::Layer;
use bb_nn::data::Input;
use bb_nn::{ArchSpec, Flat, Net, StateDict};
use safetensors::{Dtype, SafeTensors};

/// Makes a test on the committed files of each function of a folder, and one on those of `BB_SHARED`.
macro_rules! on_both_folders {
    ($($case:ident),+ $(,)?) => {
        mod committed {
            $(#[test]
            fn $case() {
                super::$case(&crate::Folder::committed());
            })+
        }

        mod shared {
            $(#[test]
            #[ignore = "needs BB_SHARED"]
            fn $case() {
                super::$case(&crate::Folder::shared());
            })+
        }
    };
}
use on_both_folders;

/// Where a set of golden files is.
struct Folder(PathBuf);

impl Folder {
    fn committed() -> Self {
        Self(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden_data"))
    }

    fn shared() -> Self {
        let shared = std::env::var_os("BB_SHARED")
            .expect("BB_SHARED names the folder whose `golden` holds the larger set of files");
        Self(PathBuf::from(shared).join("golden"))
    }
}

/// The tensors of one golden file, converted to plain vectors.
struct Golden {
    floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    doubles: BTreeMap<String, Vec<f64>>,
    integers: BTreeMap<String, Vec<i64>>,
    metadata: std::collections::HashMap<String, String>,
}

impl Golden {
    fn read(folder: &Folder, name: &str) -> Self {
        let bytes = fs_err::read(folder.0.join(name)).expect("the golden file is readable");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors header");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let mut golden = Self {
            floats: BTreeMap::new(),
            doubles: BTreeMap::new(),
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
                Dtype::F64 => {
                    let chunks = view.data().as_chunks::<8>().0.iter();
                    let values = chunks.map(|b| f64::from_le_bytes(*b)).collect();
                    golden.doubles.insert(name, values);
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
                Dtype::U8 if name == "pixels" => {
                    // As such the committed set stores the images that the network sees.
                    let values = view.data().iter().map(|&b| f32::from(b) / 128.0 - 1.0);
                    let x = (view.shape().to_vec(), values.collect());
                    golden.floats.insert("x".to_owned(), x);
                }
                Dtype::U8 => {
                    golden
                        .integers
                        .insert(name, view.data().iter().map(|&b| i64::from(b)).collect());
                }
                other => panic!("tensor `{name}` has type {other:?}"),
            }
        }
        golden
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

fn signed(count: usize) -> i64 {
    i64::try_from(count).expect("a count")
}

fn usizes(values: &[i64]) -> Vec<usize> {
    values
        .iter()
        .map(|&v| usize::try_from(v).expect("a count"))
        .collect()
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
    fn read(folder: &Folder) -> Self {
        let state =
            StateDict::load(&folder.0.join("model.safetensors")).expect("a state dictionary");
        let dims = |name: &str| {
            state
                .get(name)
                .unwrap_or_else(|| panic!("tensor `{name}`"))
                .dims()
                .to_vec()
        };
        let (width, classes) = (dims("conv1.weight")[0], dims("linear.weight")[0]);
        let arch = ArchSpec::new("preactresnet18", width, classes).expect("the golden network");
        let inputs = Golden::read(folder, "inputs.safetensors");
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
        Self {
            arch,
            state,
            batches,
        }
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
            check_relative(name, &got, want, tolerance);
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

/// Fails unless every tensor `prefix + name` of the golden file is close to that of the same name, in relative L2 norm.
fn check_flat(flat: &Flat, golden: &Golden, prefix: &str, tolerance: f64) {
    let mut compared = 0;
    for (key, (_, want)) in &golden.floats {
        let Some(name) = key.strip_prefix(prefix) else {
            continue;
        };
        let place = flat
            .layout()
            .position(name)
            .expect("a tensor of the network");
        check_relative(key, &flat.to_plain(place), want, tolerance);
        compared += 1;
    }
    assert!(compared > 1, "no tensor `{prefix}...` is stored");
}

/// Fails unless `got` is within a share of `want`, in L2 norm.
#[track_caller]
fn check_relative(what: &str, got: &[f32], want: &[f32], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let length = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
    };
    let error = length(&mut got.iter().zip(want).map(|(a, b)| a - b));
    let norm = length(&mut want.iter().copied());
    assert!(
        error <= tolerance * norm,
        "{what}: relative error {:e}",
        error / norm
    );
}

#[track_caller]
fn check_close(what: &str, got: f64, want: f32, tolerance: f64) {
    assert!(
        is_close(got, want, tolerance),
        "{what}: {got} against {want}"
    );
}

/// Whether a number is within a share of what is wanted.
fn is_close(got: f64, want: f32, tolerance: f64) -> bool {
    let want = f64::from(want);
    (got - want).abs() <= tolerance * want.abs()
}
