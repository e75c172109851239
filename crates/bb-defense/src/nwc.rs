//! Neuron weight change and the ranking by it, which several defenses share (TSBD and OTBR: Lin et al.).
//!
//! A neuron is one output channel of one target layer, and target layers are the convolutions but for the shortcuts.
//! The first part knows no network, file or random number, so that each quirk of the reference can be checked on
//! numbers worked out by hand. Weights come in PyTorch's order, `[outputs, inputs, height, width]`, row-major: a
//! neuron is then one contiguous run of values.

use std::fmt::Write as _;

use bb_core::settings::{SettingsError, check};
use bb_nn::Flat;
use serde::{Deserialize, Serialize};

use crate::parts::SHORTCUTS;

/// The weights of one target layer, `[outputs, ...]` row-major.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Name of the tensor, such as `layer4.1.conv2.weight`.
    pub name: &'a str,
    /// Number of neurons, that is, of output channels.
    pub outputs: usize,
    /// All weights of the layer; the length is a multiple of `outputs`.
    pub weights: &'a [f32],
}

/// Two sets of layers that cannot be compared.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MismatchError {
    /// There is no target layer at all, so nothing can be ranked.
    #[error("the model has no target layer")]
    NoLayers,
    /// One model has more target layers than the other.
    #[error("the unlearned model has {found} target layers, expected {expected}")]
    Count {
        /// Target layers of the original model.
        expected: usize,
        /// Target layers of the unlearned model.
        found: usize,
    },
    /// Two layers at the same place differ in name, neurons or weights.
    #[error("target layer `{expected}` is compared with `{found}`")]
    Layer {
        /// Name, neurons and weights in the original model.
        expected: String,
        /// Name, neurons and weights in the unlearned model.
        found: String,
    },
    /// The weights do not divide into the neurons.
    #[error("layer `{name}` has {weights} weights, which {outputs} neurons do not divide")]
    Ragged {
        /// Name of the tensor.
        name: String,
        /// Number of neurons.
        outputs: usize,
        /// Number of weights.
        weights: usize,
    },
}

/// How far each weight of the target layers moved, with the neurons numbered through all layers in layer order.
#[derive(Clone, Debug)]
pub struct WeightChange {
    pub(crate) layers: Vec<LayerChange>,
    neurons: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct LayerChange {
    pub(crate) name: String,
    fan_in: usize,
    first_neuron: usize,
    pub(crate) change: Vec<f32>,
}

/// Where a neuron sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Name of the layer's weight tensor.
    pub layer: &'a str,
    /// Number of the layer among the target layers.
    pub layer_number: usize,
    /// Output channel within the layer.
    pub channel: usize,
}

impl WeightChange {
    /// Takes `|unlearned - original|` weight by weight, in single precision as the reference does.
    pub fn new(original: &[Layer<'_>], unlearned: &[Layer<'_>]) -> Result<Self, MismatchError> {
        if original.is_empty() {
            return Err(MismatchError::NoLayers);
        }
        if original.len() != unlearned.len() {
            return Err(MismatchError::Count {
                expected: original.len(),
                found: unlearned.len(),
            });
        }
        let mut layers = Vec::with_capacity(original.len());
        let mut neurons = 0;
        for (before, after) in original.iter().zip(unlearned) {
            let same = before.name == after.name
                && before.outputs == after.outputs
                && before.weights.len() == after.weights.len();
            if !same {
                return Err(MismatchError::Layer {
                    expected: describe(before),
                    found: describe(after),
                });
            }
            if before.outputs == 0 || before.weights.len() % before.outputs != 0 {
                return Err(MismatchError::Ragged {
                    name: before.name.to_owned(),
                    outputs: before.outputs,
                    weights: before.weights.len(),
                });
            }
            layers.push(LayerChange {
                name: before.name.to_owned(),
                fan_in: before.weights.len() / before.outputs,
                first_neuron: neurons,
                change: before
                    .weights
                    .iter()
                    .zip(after.weights)
                    .map(|(b, a)| (a - b).abs())
                    .collect(),
            });
            neurons += before.outputs;
        }
        Ok(Self { layers, neurons })
    }

    /// Number of neurons in all target layers, `T` in the reference.
    pub fn neurons(&self) -> usize {
        self.neurons
    }

    /// Number of weights in all target layers.
    pub fn weights(&self) -> usize {
        self.layers.iter().map(|layer| layer.change.len()).sum()
    }

    /// Names of the target layers, in order.
    pub fn layer_names(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().map(|layer| layer.name.as_str())
    }

    /// The place of a neuron.
    ///
    /// # Panics
    /// If `neuron` is not below [`neurons`](Self::neurons).
    pub fn place(&self, neuron: usize) -> Place<'_> {
        let (layer_number, layer) = self.layer_of(neuron);
        Place {
            layer: &layer.name,
            layer_number,
            channel: neuron - layer.first_neuron,
        }
    }

    /// Neuron weight change: the L1 norm of each neuron's weight change, not divided by the fan-in.
    ///
    /// The sum runs in double precision and is rounded once, so it is the nearest `f32` to the true sum; the
    /// reference's single-precision sum lies within a few units in the last place of it.
    pub fn nwc(&self) -> Vec<f32> {
        self.layers
            .iter()
            .flat_map(|layer| layer.change.chunks_exact(layer.fan_in))
            .map(|change| change.iter().map(|&c| f64::from(c)).sum::<f64>() as f32)
            .collect()
    }

    fn layer_of(&self, neuron: usize) -> (usize, &LayerChange) {
        assert!(neuron < self.neurons, "neuron {neuron} of {}", self.neurons);
        let number = self
            .layers
            .partition_point(|layer| layer.first_neuron <= neuron)
            - 1;
        (number, &self.layers[number])
    }

    /// The change vector of one neuron, one value per weight.
    pub(crate) fn change_of(&self, neuron: usize) -> &[f32] {
        let (_, layer) = self.layer_of(neuron);
        let start = (neuron - layer.first_neuron) * layer.fan_in;
        &layer.change[start..start + layer.fan_in]
    }
}

fn describe(layer: &Layer<'_>) -> String {
    format!(
        "{} ({} neurons, {} weights)",
        layer.name,
        layer.outputs,
        layer.weights.len()
    )
}

/// Rounds to `decimals` places the way a text file written with `"{:.4f}"` and read back does.
///
/// The exact binary value is rounded half to even, so `0.03125` becomes `0.0312` and `0.09375` becomes `0.0938`.
pub fn round_decimals(value: f32, decimals: usize) -> f64 {
    let text = format!("{:.decimals$}", f64::from(value));
    text.parse().expect("a formatted float is a float")
}

/// Positions in descending order of score; equal scores keep their order.
pub fn rank_descending(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

/// `int(total * ratio)` as Python computes it: the product in double precision, cut towards zero.
pub fn count_of(total: usize, ratio: f64) -> usize {
    (total as f64 * ratio) as usize
}
/// Table `[layers]`: the target layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerConfig {
    /// A convolution whose tensor name contains one of these is not a target layer.
    pub exclude: Vec<String>,
}

impl Default for LayerConfig {
    fn default() -> Self {
        Self {
            exclude: SHORTCUTS.map(str::to_owned).to_vec(),
        }
    }
}

impl LayerConfig {
    /// Checks the settings, which stand in the table `layers`.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let blank = self.exclude.iter().any(String::is_empty);
        check(
            "layers.exclude",
            format!("{:?}", self.exclude),
            "parts of names, none empty",
            !blank,
        )
    }
}

/// How precisely neurons are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// By the change rounded to `nwc.decimals` places, as written to and read from a text file.
    Rounded,
    /// By the change as computed.
    Exact,
}

/// Table `[nwc]`: the ranking by neuron weight change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NwcConfig {
    /// Rank by rounded or by exact values.
    pub precision: Precision,
    /// Decimal places of the rounded values, 1 to 30.
    pub decimals: usize,
}

impl Default for NwcConfig {
    fn default() -> Self {
        Self {
            precision: Precision::Rounded,
            decimals: 4,
        }
    }
}

impl NwcConfig {
    /// Checks the settings, which stand in the table `nwc`.
    pub fn validate(&self) -> Result<(), SettingsError> {
        // Thirty places show any single-precision value that a sum of weight changes can reach.
        let decimals = self.decimals;
        check(
            "nwc.decimals",
            decimals,
            "1 to 30",
            (1..=30).contains(&decimals),
        )
    }
}

/// Target neurons in the order of suspicion.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// Weight change of each neuron.
    pub nwc: Vec<f32>,
    /// What it is ranked by.
    pub scores: Vec<f64>,
    /// Neurons, the most suspicious first.
    pub order: Vec<usize>,
}

impl Ranking {
    /// Ranks all target neurons by the weight change of each.
    pub fn new(nwc: Vec<f32>, cfg: &NwcConfig) -> Self {
        let score = |&value: &f32| match cfg.precision {
            Precision::Rounded => round_decimals(value, cfg.decimals),
            Precision::Exact => f64::from(value),
        };
        let scores: Vec<f64> = nwc.iter().map(score).collect();
        let order = rank_descending(&scores);
        Self { nwc, scores, order }
    }

    /// The table `nwc.csv`: one line for each neuron, with the layer and channel that `place` gives for it.
    pub fn csv<'a>(&self, place: impl Fn(usize) -> (&'a str, usize)) -> Vec<u8> {
        let mut rank = vec![0; self.order.len()];
        for (position, &neuron) in self.order.iter().enumerate() {
            rank[neuron] = position;
        }
        let mut text = "layer,channel,nwc,score,rank\n".to_owned();
        for (neuron, (nwc, score)) in self.nwc.iter().zip(&self.scores).enumerate() {
            let (layer, channel) = place(neuron);
            writeln!(text, "{layer},{channel},{nwc},{score},{}", rank[neuron])
                .expect("strings take all");
        }
        text.into_bytes()
    }
}

/// The target layers' places among the parameters: the weights of convolutions whose name contains none of `exclude`.
pub fn target_tensors(params: &Flat, exclude: &[String]) -> Vec<usize> {
    let entries = params.layout().entries().iter().enumerate();
    entries
        .filter(|(_, entry)| {
            entry.shape.len() == 4 && !exclude.iter().any(|part| entry.name.contains(part))
        })
        .map(|(i, _)| i)
        .collect()
}

/// Name, number of output channels and weights in PyTorch's order of some tensors.
pub fn plain_tensors(params: &Flat, tensors: &[usize]) -> Vec<(String, usize, Vec<f32>)> {
    let entries = params.layout().entries();
    tensors
        .iter()
        .map(|&i| {
            (
                entries[i].name.clone(),
                entries[i].shape[0],
                params.to_plain(i),
            )
        })
        .collect()
}

/// The same as layers to compare.
pub fn layers(tensors: &[(String, usize, Vec<f32>)]) -> Vec<Layer<'_>> {
    tensors
        .iter()
        .map(|(name, outputs, weights)| Layer {
            name,
            outputs: *outputs,
            weights,
        })
        .collect()
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values are the point")]
pub(crate) mod tests {
    use super::*;

    fn layer<'a>(name: &'a str, outputs: usize, weights: &'a [f32]) -> Layer<'a> {
        Layer {
            name,
            outputs,
            weights,
        }
    }

    /// Changes as the difference to a model of zeros: `unlearned` is the change itself.
    pub(crate) fn change(layers: &[(&str, usize, Vec<f32>)]) -> WeightChange {
        let zeros: Vec<Vec<f32>> = layers.iter().map(|(_, _, w)| vec![0.0; w.len()]).collect();
        let before: Vec<Layer<'_>> = layers
            .iter()
            .zip(&zeros)
            .map(|((n, o, _), z)| layer(n, *o, z))
            .collect();
        let after: Vec<Layer<'_>> = layers.iter().map(|(n, o, w)| layer(n, *o, w)).collect();
        WeightChange::new(&before, &after).expect("the same layers")
    }

    #[test]
    fn neurons_are_numbered_through_the_layers() {
        let change = change(&[
            ("a", 2, vec![1.0, -2.0, 3.0, 4.0]),
            ("b", 3, vec![0.5, 0.25, -0.125]),
        ]);
        assert_eq!(change.neurons(), 5);
        assert_eq!(change.weights(), 7);
        assert_eq!(change.nwc(), vec![3.0, 7.0, 0.5, 0.25, 0.125]);
        assert_eq!(
            change.place(1),
            Place {
                layer: "a",
                layer_number: 0,
                channel: 1
            }
        );
        assert_eq!(
            change.place(2),
            Place {
                layer: "b",
                layer_number: 1,
                channel: 0
            }
        );
        assert_eq!(
            change.place(4),
            Place {
                layer: "b",
                layer_number: 1,
                channel: 2
            }
        );
        assert_eq!(change.layer_names().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn layers_that_do_not_match_are_named() {
        let (four, two, three) = ([0.0; 4], [0.0; 2], [0.0; 3]);
        let compare = |before: &[Layer<'_>], after: &[Layer<'_>]| {
            WeightChange::new(before, after)
                .map(|_| ())
                .expect_err("a mismatch")
                .to_string()
        };
        assert_eq!(compare(&[], &[]), "the model has no target layer");
        assert_eq!(
            compare(&[layer("a", 2, &four)], &[]),
            "the unlearned model has 0 target layers, expected 1"
        );
        assert_eq!(
            compare(&[layer("a", 2, &four)], &[layer("b", 2, &two)]),
            "target layer `a (2 neurons, 4 weights)` is compared with `b (2 neurons, 2 weights)`"
        );
        assert_eq!(
            compare(&[layer("a", 2, &three)], &[layer("a", 2, &three)]),
            "layer `a` has 3 weights, which 2 neurons do not divide"
        );
    }

    #[test]
    fn rounding_is_that_of_a_text_file() {
        // Ties of the exact binary value go to the even digit; 0.00005 is not a tie in binary.
        let cases: [(f32, f64); 8] = [
            (0.03125, 0.0312),
            (0.09375, 0.0938),
            (0.000_049_9, 0.0),
            (0.00005, 0.0),    // nearest f32 is 0.0000499999987...
            (0.00015, 0.0002), // nearest f32 is 0.000150000007...
            (1.0, 1.0),
            (7.849_51, 7.8495),
            (0.0, 0.0),
        ];
        for (value, expected) in cases {
            assert_eq!(round_decimals(value, 4), expected, "{value}");
        }
        assert_eq!(round_decimals(0.25, 1), 0.2);
        assert_eq!(round_decimals(2.5, 0), 2.0);
    }

    #[test]
    fn ranking_is_stable_and_descending() {
        assert_eq!(rank_descending(&[1.0, 0.5, 0.5, 2.0]), [3, 0, 1, 2]);
        assert_eq!(rank_descending(&[]), Vec::<usize>::new());
        assert_eq!(rank_descending(&[0.0; 4]), [0, 1, 2, 3]);
    }

    #[test]
    fn every_network_has_its_target_neurons() {
        use bb_nn::{ArchSpec, Net};
        // A sixteenth of the published widths, so of 3904 and 5504 neurons.
        for (arch, layers, neurons, last) in [
            ("preactresnet18", 17, 244, "layer4.1.conv2.weight"),
            ("resnet18", 17, 244, "layer4.1.conv2.weight"),
            ("vgg19_bn", 16, 344, "features.49.weight"),
        ] {
            let net = Net::new(&ArchSpec::new(arch, 4, 10).expect("a small network"), 0);
            let targets = target_tensors(net.params(), &LayerConfig::default().exclude);
            let entries = net.params().layout().entries();
            let count: usize = targets.iter().map(|&i| entries[i].shape[0]).sum();
            assert_eq!((targets.len(), count), (layers, neurons), "{arch}");
            assert_eq!(entries[*targets.last().expect("layers")].name, last);
        }
    }

    #[test]
    fn counts_are_those_of_the_reference() {
        let ratios = [0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9];
        let preact = [39, 195, 390, 585, 780, 976, 1171, 1561, 1952, 2732, 3513];
        let vgg = [55, 275, 550, 825, 1100, 1376, 1651, 2201, 2752, 3852, 4953];
        for (i, &ratio) in ratios.iter().enumerate() {
            assert_eq!(
                count_of(3904, ratio),
                preact[i],
                "preactresnet18 at {ratio}"
            );
            assert_eq!(count_of(5504, ratio), vgg[i], "vgg19_bn at {ratio}");
        }
        assert_eq!(
            count_of(100, 0.29),
            28,
            "100 * 0.29 is 28.999999999999996 in double precision"
        );
    }
}
