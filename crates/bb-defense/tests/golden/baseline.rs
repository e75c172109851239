//! A small suspect model with its clean images, and what the benchmark's code made of it: the files of
//! `golden_data/make_baselines.py`, whose head says what is in them.
//!
//! Whole defenses are compared. Batches are neither shuffled nor augmented on either side, so nothing is drawn.
//!
//! Tolerances are about ten times what `f32` and `f64` differ by on the other side, which is in the files' metadata, or
//! more where a step may amplify the rounding of another processor.

use std::collections::BTreeMap;

use bb_core::data::{DatasetSpec, Images, Split, spec};
use bb_core::settings::{Layers, Resolved};
use bb_defense::context::Ctx;
use bb_defense::data::CleanImages;
use bb_defense::method::{Defense, Repaired, Suspect};
use bb_nn::{ArchSpec, Net, StateDict};
use safetensors::{Dtype, SafeTensors};

/// Values that a stored state has of each tensor, at most.
const KEPT: usize = 96;

/// The tensors of a file, all as `f64`, by name.
pub(crate) struct Stored(BTreeMap<String, Vec<f64>>);

fn values(dtype: Dtype, data: &[u8]) -> Vec<f64> {
    let four = || data.as_chunks::<4>().0.iter();
    let eight = || data.as_chunks::<8>().0.iter();
    match dtype {
        Dtype::F32 => four().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        Dtype::F64 => eight().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::I64 => eight().map(|b| i64::from_le_bytes(*b) as f64).collect(),
        Dtype::U8 => data.iter().map(|&b| f64::from(b)).collect(),
        // The upper half of an `f32`.
        Dtype::BF16 => {
            let two = data.as_chunks::<2>().0.iter();
            two.map(|b| f64::from(f32::from_le_bytes([0, 0, b[0], b[1]])))
                .collect()
        }
        other => panic!("a tensor has type {other:?}"),
    }
}

impl Stored {
    pub(crate) fn read(name: &str) -> Self {
        // Asked for at run time, so that the program also finds it on another machine than the one that built it.
        let folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
        let path = std::path::Path::new(&folder)
            .join("tests/golden_data")
            .join(format!("baseline_{name}.safetensors"));
        let bytes = fs_err::read(&path).expect("the golden file is readable");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensors = file.tensors().into_iter();
        Self(
            tensors
                .map(|(name, view)| (name, values(view.dtype(), view.data())))
                .collect(),
        )
    }

    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> &[f64] {
        let found = self.0.get(name);
        found.unwrap_or_else(|| panic!("tensor `{name}`"))
    }

    #[track_caller]
    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.get(name).iter().map(|&v| v as f32).collect()
    }

    #[track_caller]
    pub(crate) fn counts(&self, name: &str) -> Vec<usize> {
        self.get(name).iter().map(|&v| v as usize).collect()
    }

    #[track_caller]
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.get(name).iter().map(|&v| v as u8).collect()
    }

    /// Fails unless every float of a state is that of the tensors `prefix.*`, in relative L2 norm of each tensor.
    #[track_caller]
    pub(crate) fn check_state(&self, state: &StateDict, prefix: &str, tolerance: f64) {
        let mut compared = 0;
        for (name, tensor) in state.iter().filter(|(_, tensor)| tensor.rank() > 0) {
            let found = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>());
            let found = found.expect("floats");
            let stride = found.len().div_ceil(KEPT);
            let found: Vec<f32> = found.into_iter().step_by(stride).collect();
            self.check_close(&format!("{prefix}.{name}"), &found, tolerance);
            compared += 1;
        }
        let counters = |name: &&String| name.ends_with(".num_batches_tracked");
        let of_state = |name: &&String| name.starts_with(&format!("{prefix}."));
        let stored = self.0.keys().filter(of_state);
        let stored = stored.filter(|name| !counters(name)).count();
        assert_eq!(compared, stored, "every tensor is compared");
    }

    /// Fails unless these are the values of a tensor, in relative L2 norm.
    #[track_caller]
    pub(crate) fn check_close(&self, name: &str, found: &[f32], tolerance: f64) {
        let wanted = self.get(name);
        assert_eq!(found.len(), wanted.len(), "{name}");
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let pairs = found.iter().zip(wanted);
        let error = square(&mut pairs.map(|(a, b)| f64::from(*a) - b));
        let norm = square(&mut wanted.iter().copied());
        let relative = (error / norm.max(1e-60)).sqrt();
        assert!(
            relative <= tolerance,
            "{name}: relative difference {relative:e}"
        );
    }
}

/// The suspect model and its clean images.
pub(crate) struct Baseline {
    pub(crate) arch: ArchSpec,
    pub(crate) task: &'static DatasetSpec,
    pub(crate) state: StateDict,
    pub(crate) clean: Split,
}

impl Baseline {
    pub(crate) fn read() -> Self {
        let stored = Stored::read("model");
        let task = spec("cifar10").expect("a dataset");
        let arch = ArchSpec::new("preactresnet18", 4, task.classes).expect("a small network");
        let mut net = Net::new(&arch, 0);
        let fill = |flat: &mut bb_nn::Flat| {
            let layout = std::sync::Arc::clone(flat.layout());
            for (i, entry) in layout.entries().iter().enumerate() {
                flat.set_plain(i, &stored.floats(&format!("state.{}", entry.name)));
            }
        };
        fill(net.params_mut());
        fill(net.buffers_mut());
        let labels = stored.counts("labels");
        let labels = labels.iter().map(|&l| u32::try_from(l).expect("a class"));
        let labels: std::sync::Arc<[u32]> = labels.collect();
        let pixels = stored.bytes("pixels");
        let images = Images::new(labels.len(), task.height, task.width, pixels);
        Self {
            arch,
            task,
            state: net.state().expect("a state"),
            clean: Split {
                images: images.expect("the length fits"),
                labels,
            },
        }
    }

    pub(crate) fn net(&self) -> Net {
        Net::from_state(&self.arch, &self.state).expect("the state fits")
    }

    /// What a defense makes of the model with the settings of CIFAR-10's recipe and these.
    pub(crate) fn repaired<D: Defense<Data = CleanImages>>(&self, set: &[&str]) -> Repaired {
        let recipe = D::RECIPES.iter().find(|recipe| recipe.dataset == "cifar10");
        let recipe = recipe.expect("it has one");
        let layers = Layers::new(&D::Config::default())
            .toml_text("the recipe", recipe.text)
            .and_then(|layers| set.iter().try_fold(layers, |layers, set| layers.set(set)));
        let cfg = layers
            .and_then(Layers::resolve::<D::Config>)
            .and_then(Resolved::valid)
            .expect("valid settings");
        let clean = CleanImages::from_split(self.clean.clone());
        let suspect = Suspect::new(&self.arch, self.task, &self.state, &clean);
        D::repair(&cfg.value, suspect, &mut Ctx::detached(0)).expect("repaired")
    }
}
