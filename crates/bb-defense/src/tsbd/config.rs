//! Settings of TSBD; the defaults are the authors' code.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use bb_nn::NormScope;
use serde::{Deserialize, Serialize};

use super::algorithm::Scheme;
use crate::data::CleanBudget;
use crate::nwc::{LayerConfig, NwcConfig};
use crate::settings::{
    ascending_shares, batch_size, choice_needs_sweep, epochs, idle_sweep, momentum, part, rate,
    rounds, share,
};

/// The setting `record_layer` for the last target layer, whatever its name in the suspect's network is.
pub const LAST: &str = "last";

/// Settings of TSBD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TsbdConfig {
    /// Repair with every ratio of `sweep_ratios`, and choose one as `select` says.
    pub sweep: bool,
    /// Neuron ratios of the sweep, in ascending order, each above 0 and at most 1.
    pub sweep_ratios: Vec<f64>,
    /// Parameter tensor whose gradient norm per neuron is recorded while unlearning: a name, [`LAST`] or nothing.
    pub record_layer: String,
    /// Measure the model after every n-th epoch of fine-tuning, counted from the first; 0 measures only at the end.
    pub probe_every: usize,
    /// The clean images the defender has.
    pub clean: CleanBudget,
    /// Which layers are scored and cleared.
    pub layers: LayerConfig,
    /// Stage 1a.
    pub unlearn: UnlearnConfig,
    /// Stage 1b.
    pub nwc: NwcConfig,
    /// Stage 1c.
    pub reinit: ReinitConfig,
    /// Stage 2.
    pub finetune: FinetuneConfig,
    /// How a sweep chooses.
    pub select: SelectConfig,
}

/// Table `[unlearn]`: clean unlearning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlearnConfig {
    /// Learning rate of the ascent, above 0.
    pub lr: f64,
    /// Momentum, 0 up to but not including 1.
    pub momentum: f64,
    /// Cap on the epochs, at least 1.
    pub max_epochs: usize,
    /// Stop once the accuracy on the clean images has fallen to this, 0 to 1.
    pub stop_accuracy: f64,
    /// Stop as well once every clean image is given the same class, which the authors' code does not.
    pub stop_constant: bool,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Shuffle the clean images before each epoch.
    pub shuffle: bool,
    /// Crop and mirror the clean images as in training, also for the stop test.
    pub augment: bool,
}

/// Table `[reinit]`: zero reinitialisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReinitConfig {
    /// Share of all target neurons that is selected, 0 to 1.
    pub n: f64,
    /// Share of the selected neurons' weights that is cleared, 0 to 1.
    pub m: f64,
    /// Which weights are cleared.
    pub scheme: Scheme,
}

/// Table `[finetune]`: activeness-aware fine-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Learning rate, constant, above 0.
    pub lr: f64,
    /// Momentum, 0 up to but not including 1.
    pub momentum: f64,
    /// Epochs; 0 leaves the model as reinitialised.
    pub epochs: usize,
    /// Length of the perturbation, at least 0.
    pub r: f64,
    /// Share of the gradient at the perturbed weights, 0 (plain fine-tuning) to 1.
    pub alpha: f64,
    /// Over what the length of the perturbation is taken: each tensor (the authors' code; with 54 tensors 7.3 times the
    /// paper's total), or all parameters together (the paper's formula).
    pub norm: NormScope,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Shuffle the clean images before each epoch.
    pub shuffle: bool,
    /// Crop and mirror the clean images as in training.
    pub augment: bool,
    /// Update the running statistics by one more forward pass after each step; otherwise the pass that gives the
    /// first gradient updates them, as in ordinary training.
    pub refresh_bn: bool,
}

/// How the defender chooses the ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choose {
    /// It is `reinit.n`.
    Fixed,
    /// The largest of the sweep whose model is right often enough on held-out clean images.
    HeldOut,
}

/// Table `[select]`: the defender's choice among the ratios of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectConfig {
    /// How the defender chooses.
    pub choose: Choose,
    /// Share of the clean images held out for the choice, above 0 and below 1.
    pub hold_out: f64,
    /// Held-out accuracy a choice may lack to the best ratio's, 0 to 1.
    pub tolerance: f64,
}

impl Default for TsbdConfig {
    fn default() -> Self {
        Self {
            sweep: false,
            sweep_ratios: vec![0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9],
            record_layer: LAST.to_owned(),
            probe_every: 10,
            clean: CleanBudget::default(),
            // The reference knows shortcuts by this name alone.
            layers: LayerConfig {
                exclude: vec!["shortcut".to_owned()],
            },
            unlearn: UnlearnConfig {
                lr: 1e-4,
                momentum: 0.9,
                max_epochs: 1000,
                stop_accuracy: 0.10,
                stop_constant: true,
                batch_size: 256,
                shuffle: false,
                augment: true,
            },
            nwc: NwcConfig::default(),
            reinit: ReinitConfig {
                n: 0.15,
                m: 0.7,
                scheme: Scheme::V3,
            },
            finetune: FinetuneConfig {
                lr: 0.01,
                momentum: 0.9,
                epochs: 21,
                r: 0.05,
                alpha: 0.7,
                norm: NormScope::PerTensor,
                batch_size: 256,
                shuffle: false,
                augment: true,
                refresh_bn: true,
            },
            select: SelectConfig {
                choose: Choose::Fixed,
                hold_out: 0.2,
                tolerance: 0.05,
            },
        }
    }
}

impl UnlearnConfig {
    /// Checks the settings, which stand in the table `unlearn`.
    pub fn validate(&self) -> Result<(), SettingsError> {
        rate("unlearn.lr", self.lr)?;
        momentum("unlearn.momentum", self.momentum)?;
        rounds("unlearn.max_epochs", self.max_epochs)?;
        share("unlearn.stop_accuracy", self.stop_accuracy)?;
        batch_size("unlearn.batch_size", self.batch_size)
    }
}

impl Validate for TsbdConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        ascending_shares("sweep_ratios", &self.sweep_ratios)?;
        self.layers.validate()?;
        self.clean.validate()?;

        self.unlearn.validate()?;
        self.nwc.validate()?;
        share("reinit.n", self.reinit.n)?;
        share("reinit.m", self.reinit.m)?;

        let finetune = &self.finetune;
        rate("finetune.lr", finetune.lr)?;
        momentum("finetune.momentum", finetune.momentum)?;
        check(
            "finetune.r",
            finetune.r,
            "a finite length of at least 0",
            finetune.r.is_finite() && finetune.r >= 0.0,
        )?;
        share("finetune.alpha", finetune.alpha)?;
        epochs("finetune.epochs", finetune.epochs)?;
        batch_size("finetune.batch_size", finetune.batch_size)?;

        choice_needs_sweep(
            "select.choose",
            "held-out",
            self.sweep || self.select.choose == Choose::Fixed,
        )?;
        part("select.hold_out", self.select.hold_out)?;
        share("select.tolerance", self.select.tolerance)
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = self.clean.idle();
        idle.extend(idle_sweep(self.sweep, "sweep_ratios"));
        if self.select.choose == Choose::Fixed {
            let keys = ["select.hold_out", "select.tolerance"];
            idle.extend(keys.map(|key| (key, "`select.choose` is `fixed`")));
        }
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{AnyDefense as _, Given};
    use crate::nwc::target_tensors;
    use crate::tsbd::Tsbd;
    use bb_nn::{ArchSpec, Net};
    use serde_json::json;

    #[test]
    fn defaults_are_valid() {
        assert!(TsbdConfig::default().validate().is_ok());
    }

    /// `tsbd/config.yaml` of the authors' code, and what the code itself sets.
    #[test]
    fn the_defaults_are_the_authors_but_for_the_choice_and_a_second_stop() {
        let own = serde_json::to_value(TsbdConfig::default()).expect("plain settings");
        let authors = json!({
            "sweep": false,
            "sweep_ratios": [0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9],
            "record_layer": "last",
            "probe_every": 10,
            "clean": { "ratio": 0.05, "seed": 0, "index_file": "" },
            "layers": { "exclude": ["shortcut"] },
            "unlearn": {
                "lr": 1e-4, "momentum": 0.9, "max_epochs": 1000, "stop_accuracy": 0.1,
                // Ours.
                "stop_constant": true,
                "batch_size": 256, "shuffle": false, "augment": true,
            },
            "nwc": { "precision": "rounded", "decimals": 4 },
            // The ratio is ours: the reference tries all and takes none.
            "reinit": { "n": 0.15, "m": 0.7, "scheme": "v3" },
            "finetune": {
                "lr": 0.01, "momentum": 0.9, "epochs": 21, "r": 0.05, "alpha": 0.7, "norm": "per-tensor",
                "batch_size": 256, "shuffle": false, "augment": true, "refresh_bn": true,
            },
            "select": { "choose": "fixed", "hold_out": 0.2, "tolerance": 0.05 },
        });
        assert_eq!(own, authors);
    }

    /// The reference leaves out what is called `shortcut`, as in `preactresnet18`; the `downsample` convolutions of
    /// `resnet18` and `resnet34` are target layers, each after the two convolutions of its block.
    #[test]
    fn shortcuts_are_no_target_layers_and_downsampling_ones_are() {
        let targets = |arch: &str| -> (Vec<String>, usize) {
            let net = Net::new(&ArchSpec::new(arch, 4, 10).expect("a small network"), 0);
            let targets = target_tensors(net.params(), &TsbdConfig::default().layers.exclude);
            let entries = net.params().layout().entries();
            let neurons = targets.iter().map(|&i| entries[i].shape[0]).sum();
            let names = targets.iter().map(|&i| entries[i].name.clone());
            (names.collect(), neurons)
        };
        for (arch, layers, neurons) in [
            ("preactresnet18", 17, 244),
            ("resnet18", 20, 300),
            ("resnet34", 36, 532),
            ("vgg19_bn", 16, 344),
        ] {
            let (names, found) = targets(arch);
            assert_eq!((names.len(), found), (layers, neurons), "{arch}");
        }
        let (names, _) = targets("resnet18");
        let block = [
            "layer2.0.conv1.weight",
            "layer2.0.conv2.weight",
            "layer2.0.downsample.0.weight",
            "layer2.1.conv1.weight",
        ];
        assert_eq!(names[5..9], block);
    }

    #[test]
    fn each_wrong_value_is_named() {
        let cases = [
            ("sweep_ratios=[]", "sweep_ratios"),
            ("sweep_ratios=[0.2, 0.1]", "sweep_ratios"),
            ("sweep_ratios=[0.1, 0.1]", "sweep_ratios"),
            ("sweep_ratios=[0.5, 1.5]", "sweep_ratios"),
            ("layers.exclude=[\"\"]", "layers.exclude"),
            ("clean.ratio=0.0", "clean.ratio"),
            ("clean.ratio=1.01", "clean.ratio"),
            ("unlearn.lr=0", "unlearn.lr"),
            ("unlearn.lr=inf", "unlearn.lr"),
            ("unlearn.momentum=1.0", "unlearn.momentum"),
            ("unlearn.max_epochs=0", "unlearn.max_epochs"),
            ("unlearn.stop_accuracy=-0.1", "unlearn.stop_accuracy"),
            ("unlearn.batch_size=0", "unlearn.batch_size"),
            ("nwc.decimals=0", "nwc.decimals"),
            ("nwc.decimals=31", "nwc.decimals"),
            ("nwc.precision=round", "nwc.precision"),
            ("reinit.n=1.1", "reinit.n"),
            ("reinit.m=-1", "reinit.m"),
            ("reinit.scheme=v4", "reinit.scheme"),
            ("finetune.lr=-0.01", "finetune.lr"),
            ("finetune.momentum=-0.5", "finetune.momentum"),
            ("finetune.r=-1", "finetune.r"),
            ("finetune.alpha=2", "finetune.alpha"),
            ("finetune.norm=tensor", "finetune.norm"),
            ("finetune.batch_size=0", "finetune.batch_size"),
            ("select.choose=held-out", "select.choose"),
            ("select.hold_out=0", "select.hold_out"),
            ("select.hold_out=1", "select.hold_out"),
            ("select.tolerance=1.5", "select.tolerance"),
        ];
        for (assignment, key) in cases {
            let given = Given {
                set: vec![assignment.to_owned()],
                ..Given::default()
            };
            let error = Tsbd
                .resolve("cifar10", &given)
                .err()
                .unwrap_or_else(|| panic!("{assignment} is accepted"));
            assert!(
                error.to_string().contains(&format!("`{key}`")),
                "{assignment}: {error}"
            );
        }
    }
}
