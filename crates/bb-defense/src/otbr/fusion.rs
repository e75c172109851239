//! Stage 2 on plain slices: aligning, transporting and mixing the neurons of one layer after the other.
//!
//! Weights come in PyTorch's order, `[outputs, inputs, height, width]`, row-major.

use super::transport::Plan;

/// A layer's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Neurons.
    pub outputs: usize,
    /// Neurons of the layer before.
    pub inputs: usize,
    /// Weights between two neurons.
    pub taps: usize,
}

/// The plan of a layer divided by its target masses: column `k` says of which pruned neurons neuron `k` is the mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// For each target neuron: source neurons and their shares, which add up to 1.
    columns: Vec<Vec<(usize, f32)>>,
}

/// NWC as masses of the target neurons: where one is 0, all are at least `floor`, since nothing can be divided by a mass
/// of 0. Gives the shares, which add up to 1.
pub fn target_masses(scores: &[f64], floor: f64) -> Vec<f64> {
    let least = if scores.contains(&0.0) { floor } else { 0.0 };
    let raised: Vec<f64> = scores.iter().map(|s| s.max(least)).collect();
    let sum: f64 = raised.iter().sum();
    raised.into_iter().map(|s| s / sum).collect()
}

impl Map {
    /// The map of a plan to neurons of masses `target`.
    ///
    /// # Panics
    /// If a mass is not above 0.
    pub fn new(plan: &Plan, target: &[f64]) -> Self {
        assert!(target.iter().all(|&mass| mass > 0.0), "masses above 0");
        let mut columns = vec![Vec::new(); target.len()];
        for &(j, k, mass) in &plan.moves {
            columns[k].push((j, (mass / target[k]) as f32));
        }
        Self { columns }
    }

    /// The weights `P [out, in, taps]` with their inputs brought to those of the whole network:
    /// `P_al[:, k] = sum_i P[:, i] map[i, k]`.
    ///
    /// # Panics
    /// If the map is not over the layer's inputs.
    pub fn align(&self, pruned: &[f32], sizes: Sizes) -> Vec<f32> {
        assert_eq!(
            self.columns.len(),
            sizes.inputs,
            "neurons of the layer before"
        );
        let row = sizes.inputs * sizes.taps;
        let mut aligned = vec![0f32; pruned.len()];
        for (out, own) in aligned.chunks_exact_mut(row).zip(pruned.chunks_exact(row)) {
            for (out, column) in out.chunks_exact_mut(sizes.taps).zip(&self.columns) {
                for &(i, share) in column {
                    let own = &own[i * sizes.taps..][..sizes.taps];
                    for (out, own) in out.iter_mut().zip(own) {
                        *out += share * own;
                    }
                }
            }
        }
        aligned
    }

    /// `share * P_tr + (1 - share) * Q`, where `P_tr[k]` is the mean of the aligned neurons that came to `k`.
    pub fn mix(&self, aligned: &[f32], whole: &[f32], share: f64) -> Vec<f32> {
        let row = whole.len() / self.columns.len();
        let (take, keep) = (share as f32, (1.0 - share) as f32);
        let mut mixed = Vec::with_capacity(whole.len());
        let mut moved = vec![0f32; row];
        for (own, column) in whole.chunks_exact(row).zip(&self.columns) {
            moved.fill(0.0);
            for &(j, part) in column {
                for (out, value) in moved.iter_mut().zip(&aligned[j * row..][..row]) {
                    *out += part * value;
                }
            }
            mixed.extend(moved.iter().zip(own).map(|(m, o)| take * m + keep * o));
        }
        mixed
    }
}

/// The data-free choice among ascending ratios: the last one up to which every agreement is at least the share `least` of
/// the first one's; the first one if that is not positive.
///
/// # Panics
/// If there is no ratio.
pub fn choose(agreements: &[f64], least: f64) -> usize {
    let first = *agreements.first().expect("at least one ratio");
    let enough = |&&agreement: &&f64| first > 0.0 && agreement >= least * first;
    let good = agreements.iter().take_while(enough).count();
    good.saturating_sub(1)
}

/// How alike two sets of logits `[images, classes]` are, -1 to 1: the mean over the images of the correlation over the
/// classes. Images whose logits are all equal in one of the sets say nothing and count as 0.
pub fn agreement(a: &[f32], b: &[f32], classes: usize) -> f64 {
    let images = a.len() / classes;
    let total: f64 = a
        .chunks_exact(classes)
        .zip(b.chunks_exact(classes))
        .map(|(a, b)| correlation(a, b))
        .sum();
    total / images as f64
}

fn correlation(a: &[f32], b: &[f32]) -> f64 {
    let mean = |v: &[f32]| v.iter().map(|&v| f64::from(v)).sum::<f64>() / v.len() as f64;
    let (ma, mb) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (f64::from(x) - ma, f64::from(y) - mb);
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    if aa > 0.0 && bb > 0.0 {
        ab / (aa * bb).sqrt()
    } else {
        0.0
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values are the point")]
mod tests {
    use super::super::transport::solve;
    use super::*;
    use proptest::prelude::*;

    fn plan(rows: usize, moves: &[(usize, usize, f64)]) -> Plan {
        let mut table = vec![0f32; rows * rows];
        for &(i, j, mass) in moves {
            table[i * rows + j] = mass as f32;
        }
        Plan::from_dense(rows, rows, &table)
    }

    /// Two neurons of one weight: P = (0, 1), Q = (2, 1), weight changes 3 and 1. Both optimal plans.
    #[test]
    fn two_neurons_by_hand() {
        let (pruned, whole) = ([0.0, 1.0], [2.0, 1.0]);
        let target = target_masses(&[3.0, 1.0], 1e-6);
        assert_eq!(target, [0.75, 0.25]);
        let close = |found: &[f32], wanted: [f32; 2]| {
            for (f, w) in found.iter().zip(wanted) {
                assert!((f - w).abs() < 1e-6, "{found:?} against {wanted:?}");
            }
        };
        let first = Map::new(
            &plan(2, &[(0, 0, 0.5), (1, 0, 0.25), (1, 1, 0.25)]),
            &target,
        );
        close(&first.mix(&pruned, &whole, 1.0), [1.0 / 3.0, 1.0]);
        close(&first.mix(&pruned, &whole, 0.5), [1.0 + 1.0 / 6.0, 1.0]);
        let second = Map::new(
            &plan(2, &[(0, 0, 0.25), (0, 1, 0.25), (1, 0, 0.5)]),
            &target,
        );
        close(&second.mix(&pruned, &whole, 1.0), [2.0 / 3.0, 0.0]);
        close(&second.mix(&pruned, &whole, 0.5), [4.0 / 3.0, 0.5]);
        assert_eq!(first.mix(&pruned, &whole, 0.0), whole, "nothing is taken");
    }

    #[test]
    fn a_mass_of_zero_is_raised() {
        assert_eq!(target_masses(&[1.0, 3.0], 0.5), [0.25, 0.75]);
        let raised = target_masses(&[0.0, 1.0, 1e-9], 1e-6);
        assert!(
            raised.iter().all(|&m| m > 0.0) && (raised.iter().sum::<f64>() - 1.0).abs() < 1e-15
        );
        assert_eq!(raised[0], raised[2], "all are at least the floor");
        assert_eq!(target_masses(&[0.0; 4], 1e-6), [0.25; 4]);
    }

    #[test]
    fn inputs_are_aligned_tap_by_tap() {
        let sizes = Sizes {
            outputs: 1,
            inputs: 2,
            taps: 2,
        };
        // Input 0 of the whole network is the pruned one's input 1, and input 1 the mean of both.
        let moves = plan(2, &[(1, 0, 0.5), (0, 1, 0.25), (1, 1, 0.25)]);
        let map = Map::new(&moves, &[0.5, 0.5]);
        let aligned = map.align(&[1.0, 2.0, 3.0, 5.0], sizes);
        assert_eq!(aligned, [3.0, 5.0, 2.0, 3.5]);
    }

    #[test]
    fn the_choice_ends_at_the_first_ratio_that_says_something_else() {
        assert_eq!(choose(&[0.99, 0.95, 0.7, 0.96], 0.9), 1);
        assert_eq!(choose(&[0.99, 0.95], 0.9), 1);
        assert_eq!(
            choose(&[0.5, 0.46, 0.44], 0.9),
            1,
            "the first one measures the network"
        );
        assert_eq!(
            choose(&[-0.5, 0.95], 0.9),
            0,
            "there is nothing to compare with"
        );
    }

    #[test]
    fn agreement_knows_no_scale_and_no_offset() {
        let a = [1.0, 2.0, 4.0, 0.0, 1.0, 0.0];
        let scaled: Vec<f32> = a.iter().map(|v| 0.5 * v - 3.0).collect();
        assert!((agreement(&a, &scaled, 3) - 1.0).abs() < 1e-7);
        let turned: Vec<f32> = a.iter().map(|v| -v).collect();
        assert!((agreement(&a, &turned, 3) + 1.0).abs() < 1e-12);
        assert_eq!(agreement(&a, &[7.0; 6], 3), 0.0);
    }

    proptest! {
        /// Where nothing was pruned and all neurons moved alike, fusion changes nothing.
        #[test]
        fn an_unpruned_layer_stays(weights in prop::collection::vec(-1.0f32..1.0, 36), share in 0.0f64..=1.0) {
            let sizes = Sizes { outputs: 4, inputs: 3, taps: 3 };
            let row = sizes.inputs * sizes.taps;
            let costs: Vec<f64> = (0..16)
                .map(|at| {
                    let (a, b) = (&weights[at / 4 * row..][..row], &weights[at % 4 * row..][..row]);
                    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
                })
                .collect();
            let target = target_masses(&[0.5; 4], 1e-6);
            let plan = solve(&[0.25; 4], &target, &costs).expect("a problem");
            prop_assert!(plan.cost(&costs) < 1e-12);
            let mixed = Map::new(&plan, &target).mix(&weights, &weights, share);
            for (found, wanted) in mixed.iter().zip(&weights) {
                prop_assert!((found - wanted).abs() < 1e-6);
            }
        }

        /// Shares add up to 1, so a neuron never leaves what its sources span.
        #[test]
        fn a_map_takes_means(masses in prop::collection::vec(0.0f64..1.0, 6), costs in prop::collection::vec(0.0f64..1.0, 36)) {
            let target = target_masses(&masses, 1e-6);
            let plan = solve(&[1.0; 6], &target, &costs).expect("a problem");
            let map = Map::new(&plan, &target);
            for column in &map.columns {
                let sum: f32 = column.iter().map(|(_, share)| share).sum();
                prop_assert!((sum - 1.0).abs() < 1e-5, "{sum}");
            }
        }
    }
}
