//! The arithmetic of TSBD on plain slices: zero reinitialisation, gradient mix, choice, activeness.
//!
//! Nothing here knows a network, a file or a random number, so that each quirk of the reference can be checked on
//! numbers worked out by hand.

use serde::{Deserialize, Serialize};

use crate::nwc::{WeightChange, count_of};

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
    use crate::nwc::tests::change;
    use crate::nwc::{rank_descending, round_decimals};
    use proptest::prelude::*;

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
