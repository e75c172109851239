//! The arithmetic of TSBD on plain slices: neuron weight change, ranking, zero reinitialisation, gradient mix.
//!
//! Nothing here knows a network, a file or a random number, so that each quirk of the reference can be checked on
//! numbers worked out by hand. Weights come in PyTorch's order, `[outputs, inputs, height, width]`, row-major: a
//! neuron (one output channel) is then one contiguous run of values.

use serde::{Deserialize, Serialize};

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
    layers: Vec<LayerChange>,
    neurons: usize,
}

#[derive(Clone, Debug)]
struct LayerChange {
    name: String,
    fan_in: usize,
    first_neuron: usize,
    change: Vec<f32>,
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
    fn change_of(&self, neuron: usize) -> &[f32] {
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

/// Which weights are cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Whole neurons: every weight of the selected neurons (`m` counts as 1).
    V1,
    /// Weights alone: as many weights as `V3` asks for, taken anywhere in the target layers.
    V2,
    /// The method: of the selected neurons' weights, those that moved most.
    V3,
}

/// The outcome of zero reinitialisation, one mask per target layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Zeroing {
    /// Per layer: its name and, for every weight in PyTorch's order, whether it is cleared.
    pub masks: Vec<(String, Vec<bool>)>,
    /// Neurons selected, `K`.
    pub neurons: usize,
    /// Weights of the selected neurons, `L`.
    pub pool: usize,
    /// Weights asked for, `M`.
    pub requested: usize,
    /// Weights cleared: at least `M`, as ties with the threshold are cleared too.
    pub zeroed: usize,
    /// The `M`-th largest change, or none when `M` is 0 and nothing is cleared.
    pub threshold: Option<f32>,
}

/// Chooses the weights to clear: the first `K = int(T n)` neurons of `order`, then the `M = int(L m)` of their pooled
/// weights that moved most. One threshold holds for the whole pool, so a neuron may lose all weights or hardly any.
///
/// # Panics
/// If `order` does not hold as many entries as there are neurons.
pub fn zero_reinitialisation(
    change: &WeightChange,
    order: &[usize],
    n: f64,
    m: f64,
    scheme: Scheme,
) -> Zeroing {
    assert_eq!(order.len(), change.neurons(), "one rank per neuron");
    let neurons = count_of(change.neurons(), n).min(change.neurons());
    let selected = &order[..neurons];
    let pool: usize = selected
        .iter()
        .map(|&neuron| change.change_of(neuron).len())
        .sum();
    let requested = match scheme {
        Scheme::V1 => pool,
        Scheme::V2 | Scheme::V3 => count_of(pool, m).min(pool),
    };
    let mut values: Vec<f32> = match scheme {
        Scheme::V2 => change
            .layers
            .iter()
            .flat_map(|layer| layer.change.iter().copied())
            .collect(),
        Scheme::V1 | Scheme::V3 => selected
            .iter()
            .flat_map(|&neuron| change.change_of(neuron).iter().copied())
            .collect(),
    };
    let threshold = (requested > 0).then(|| {
        let (_, value, _) = values.select_nth_unstable_by(requested - 1, |a, b| b.total_cmp(a));
        *value
    });

    let mut masks: Vec<(String, Vec<bool>)> = change
        .layers
        .iter()
        .map(|layer| (layer.name.clone(), vec![false; layer.change.len()]))
        .collect();
    if let Some(threshold) = threshold {
        let everywhere: Vec<usize>;
        let touched = if scheme == Scheme::V2 {
            everywhere = (0..change.neurons()).collect();
            everywhere.as_slice()
        } else {
            selected
        };
        for &neuron in touched {
            let place = change.place(neuron);
            let values = change.change_of(neuron);
            let start = place.channel * values.len();
            let mask = &mut masks[place.layer_number].1[start..start + values.len()];
            for (cleared, value) in mask.iter_mut().zip(values) {
                *cleared = *value >= threshold;
            }
        }
    }
    let zeroed = masks
        .iter()
        .map(|(_, mask)| mask.iter().filter(|&&cleared| cleared).count())
        .sum();
    Zeroing {
        masks,
        neurons,
        pool,
        requested,
        zeroed,
        threshold,
    }
}

/// The shares of the first and the second gradient in a step, `(1 - alpha, alpha)`.
///
/// With the second gradient taken at `w + r g / ||g||` the mix is, to first order, the gradient of
/// `L + alpha r ||grad L||`: the penalty of the paper with `lambda = alpha r`.
pub fn gradient_shares(alpha: f64) -> (f32, f32) {
    ((1.0 - alpha) as f32, alpha as f32)
}

/// The defender's choice among ascending neuron ratios: the last one whose held-out accuracy lacks at most `tolerance`
/// to the best one's. `hits[i]` of `images` held-out images are right with ratio `i`.
///
/// # Panics
/// If there is no ratio.
pub fn choose(hits: &[u64], images: u64, tolerance: f64) -> usize {
    let best = hits.iter().max().copied().expect("at least one ratio");
    let allowed = tolerance * images as f64;
    // The best one itself qualifies, so there always is a last one.
    hits.iter()
        .rposition(|&own| (best - own) as f64 <= allowed)
        .expect("the best qualifies")
}

/// Mean and unbiased variance over steps of the per-neuron gradient norms (Observation 2 of the paper).
#[derive(Clone, Debug, Default)]
pub struct NormRecord {
    steps: Vec<Vec<f32>>,
}

impl NormRecord {
    /// Adds the norms of one step, one value per neuron.
    pub fn push(&mut self, norms: Vec<f32>) {
        self.steps.push(norms);
    }

    /// Number of steps recorded.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// `(mean, variance)` per neuron; the variance divides by `steps - 1` and is 0 for a single step.
    pub fn summary(&self) -> Vec<(f64, f64)> {
        let count = self.steps.len() as f64;
        let neurons = self.steps.first().map_or(0, Vec::len);
        (0..neurons)
            .map(|neuron| {
                let values = || self.steps.iter().map(|step| f64::from(step[neuron]));
                let mean = values().sum::<f64>() / count;
                let spread = values().map(|v| (v - mean).powi(2)).sum::<f64>();
                (
                    mean,
                    if self.steps.len() > 1 {
                        spread / (count - 1.0)
                    } else {
                        0.0
                    },
                )
            })
            .collect()
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values are the point")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layer<'a>(name: &'a str, outputs: usize, weights: &'a [f32]) -> Layer<'a> {
        Layer {
            name,
            outputs,
            weights,
        }
    }

    /// Changes as the difference to a model of zeros: `unlearned` is the change itself.
    fn change(layers: &[(&str, usize, Vec<f32>)]) -> WeightChange {
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

    #[test]
    fn ties_with_the_threshold_are_cleared_too() {
        let change = change(&[("a", 1, vec![0.5, 0.2, 0.2, 0.1])]);
        let zeroing = zero_reinitialisation(&change, &[0], 1.0, 0.7, Scheme::V3);
        assert_eq!(
            (
                zeroing.neurons,
                zeroing.pool,
                zeroing.requested,
                zeroing.zeroed
            ),
            (1, 4, 2, 3)
        );
        assert_eq!(zeroing.threshold, Some(0.2));
        assert_eq!(
            zeroing.masks,
            vec![("a".to_owned(), vec![true, true, true, false])]
        );
    }

    #[test]
    fn schemes_differ_in_what_they_clear() {
        let two = change(&[("a", 2, vec![0.9, 0.1, 0.8, 0.3]), ("b", 1, vec![0.7, 0.6])]);
        let order = rank_descending(&two.nwc().iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
        assert_eq!(order, [2, 1, 0], "changes 1.3, 1.1 and 1.0");
        let cleared = |scheme, n, m| {
            let zeroing = zero_reinitialisation(&two, &order, n, m, scheme);
            let flat: Vec<u8> = zeroing
                .masks
                .iter()
                .flat_map(|(_, m)| m.iter().map(|&c| u8::from(c)))
                .collect();
            (zeroing.requested, flat)
        };
        assert_eq!(cleared(Scheme::V3, 0.7, 0.5), (2, vec![0, 0, 1, 0, 1, 0]));
        assert_eq!(cleared(Scheme::V1, 0.7, 0.5), (4, vec![0, 0, 1, 1, 1, 1]));
        assert_eq!(cleared(Scheme::V2, 0.7, 0.5), (2, vec![1, 0, 1, 0, 0, 0]));
    }

    #[test]
    fn nothing_selected_clears_nothing() {
        let change = change(&[("a", 2, vec![0.5, 0.2, 0.2, 0.1])]);
        for (n, m) in [(0.4, 0.7), (1.0, 0.1)] {
            let zeroing = zero_reinitialisation(&change, &[0, 1], n, m, Scheme::V3);
            assert_eq!(
                (zeroing.requested, zeroing.zeroed, zeroing.threshold),
                (0, 0, None),
                "n {n}, m {m}"
            );
        }
    }

    #[test]
    fn the_choice_is_the_largest_ratio_within_tolerance() {
        let hits = [95, 96, 93, 91, 90, 40, 92];
        assert_eq!(choose(&hits[..6], 100, 0.05), 3);
        assert_eq!(choose(&hits[..6], 100, 0.0), 1);
        assert_eq!(choose(&hits[..6], 100, 1.0), 5);
        assert_eq!(
            choose(&hits, 100, 0.05),
            6,
            "accuracy need not fall steadily"
        );
        assert_eq!(choose(&[7, 7], 10, 0.0), 1, "of equals the larger ratio");
    }

    #[test]
    fn norm_record_is_mean_and_unbiased_variance() {
        let mut record = NormRecord::default();
        assert!(record.summary().is_empty());
        record.push(vec![1.0, 2.0]);
        assert_eq!(record.summary(), [(1.0, 0.0), (2.0, 0.0)]);
        record.push(vec![3.0, 2.0]);
        assert_eq!(
            (record.steps(), record.summary()),
            (2, vec![(2.0, 2.0), (2.0, 0.0)])
        );
    }

    proptest! {
        /// On the loss `w'Aw/2` the mix is the gradient of `L + alpha r ||grad L||` (defenses page, check 9).
        #[test]
        fn mix_penalises_the_gradient_norm(
            diagonal in prop::collection::vec(0.1f32..3.0, 2..6),
            seed in prop::collection::vec(-2.0f32..2.0, 6),
            off in -0.3f32..0.3, r in 0.01f64..0.2, alpha in 0.0f64..1.0,
        ) {
            let size = diagonal.len();
            let apply = |w: &[f32]| -> Vec<f32> {
                (0..size)
                    .map(|i| diagonal[i] * w[i] + (0..size).filter(|&j| j != i).map(|j| off * w[j]).sum::<f32>())
                    .collect()
            };
            let w = &seed[..size];
            let first = apply(w);
            let norm = first.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            prop_assume!(norm > 0.03);
            let factor = (r / norm) as f32;
            let moved: Vec<f32> = w.iter().zip(&first).map(|(w, g)| w + factor * g).collect();
            let second = apply(&moved);
            let (keep, take) = gradient_shares(alpha);
            let unit: Vec<f32> = first.iter().map(|g| g / norm as f32).collect();
            for ((g1, g2), penalty) in first.iter().zip(&second).zip(apply(&unit)) {
                let (mix, exact) = (keep * g1 + take * g2, g1 + (alpha * r) as f32 * penalty);
                prop_assert!((mix - exact).abs() < 1e-4, "{mix} against {exact}");
            }
        }

        #[test]
        fn zeroing_keeps_its_promises(
            weights in prop::collection::vec(-1.0f32..1.0, 24), n in 0.0f64..=1.0, m in 0.0f64..=1.0,
        ) {
            let change = change(&[("a", 4, weights[..12].to_vec()), ("b", 3, weights[12..].to_vec())]);
            let scores: Vec<f64> = change.nwc().iter().map(|&v| round_decimals(v, 4)).collect();
            let order = rank_descending(&scores);
            prop_assert!(order.windows(2).all(|w| scores[w[0]] > scores[w[1]] || (scores[w[0]] == scores[w[1]] && w[0] < w[1])));
            let zeroing = zero_reinitialisation(&change, &order, n, m, Scheme::V3);
            prop_assert_eq!(zeroing.neurons, count_of(7, n));
            prop_assert!(zeroing.zeroed >= zeroing.requested && zeroing.zeroed <= zeroing.pool);
            // Every neuron outside the selection is untouched.
            for &neuron in &order[zeroing.neurons..] {
                let place = change.place(neuron);
                let fan_in = if place.layer == "a" { 3 } else { 4 };
                let mask = &zeroing.masks[place.layer_number].1[place.channel * fan_in..(place.channel + 1) * fan_in];
                prop_assert!(mask.iter().all(|&cleared| !cleared));
            }
        }
    }
}
