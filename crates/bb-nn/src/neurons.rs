//! Measures of neurons: the output channels of a network's convolutions.
//!
//! What pruning and repairing defenses rank neurons by. Each function works where its vectors are: on the GPU if they
//! are up to date there, otherwise on the CPU, which is the reference. Sums run in `f64` on both, so the two agree but
//! for the last bit.

#[cfg(feature = "cuda")]
use crate::cuda::neurons as cuda;
use crate::flat::Flat;
use rayon::prelude::*;

/// Some neurons of one convolution.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// Index of the convolution's weight among the parameters.
    pub tensor: usize,
    /// Whether each output channel belongs to the choice.
    pub channels: &'a [bool],
}

/// Output channels of tensor `i` and weights of each.
fn sizes(weights: &Flat, i: usize) -> (usize, usize) {
    let entry = &weights.layout().entries()[i];
    let channels = entry.shape.first().copied().unwrap_or(1);
    (channels, entry.range.len() / channels)
}

/// The L1 norm of the change of each neuron of tensor `i` between two states of a network, `[out]`.
///
/// The neuron weight change of TSBD and OTBR (Lin et al., NeurIPS 2024) before its rounding to four decimals.
/// Differences are `f32`, as in the authors' code; their sum is `f64`, rounded once.
pub fn weight_change(before: &Flat, after: &Flat, i: usize) -> Vec<f32> {
    #[cfg(feature = "cuda")]
    if let Some(device) = after.held().current_device() {
        let found = cuda::weight_change(&device, before, after, i);
        let (channels, _) = sizes(before, i);
        return device
            .keep(found)
            .unwrap_or_else(|| vec![f32::NAN; channels]);
    }
    let (_, fan_in) = sizes(before, i);
    let (before, after) = (before.to_plain(i), after.to_plain(i));
    before
        .chunks_exact(fan_in)
        .zip(after.chunks_exact(fan_in))
        .map(|(b, a)| {
            let changes = b.iter().zip(a).map(|(b, a)| f64::from((a - b).abs()));
            changes.sum::<f64>() as f32
        })
        .collect()
}

/// The `k`-th largest change (1 is the largest) of a weight among the chosen neurons, as an absolute value.
///
/// # Panics
/// If `k` is 0 or the chosen neurons have fewer weights.
pub fn kth_largest_change(before: &Flat, after: &Flat, chosen: &[Chosen<'_>], k: usize) -> f32 {
    let weights: usize = chosen
        .iter()
        .map(|c| {
            let picked = c.channels.iter().filter(|&&c| c).count();
            picked * sizes(before, c.tensor).1
        })
        .sum();
    assert!((1..=weights).contains(&k), "change {k} of {weights}");
    #[cfg(feature = "cuda")]
    if let Some(device) = after.held().current_device() {
        let found = cuda::kth_largest_change(&device, before, after, chosen, k);
        return device.keep(found).unwrap_or(f32::NAN);
    }
    let mut changes = Vec::with_capacity(weights);
    for c in chosen {
        let (_, fan_in) = sizes(before, c.tensor);
        let (before, after) = (before.to_plain(c.tensor), after.to_plain(c.tensor));
        let rows = before
            .chunks_exact(fan_in)
            .zip(after.chunks_exact(fan_in))
            .zip(c.channels);
        for ((b, a), _) in rows.filter(|(_, chosen)| **chosen) {
            changes.extend(b.iter().zip(a).map(|(b, a)| (a - b).abs()));
        }
    }
    let (_, value, _) = changes.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    *value
}

/// Sets the weights of chosen neurons to 0 whose change to `after` is at least `threshold`; gives how many.
///
/// TSBD's zero reinitialisation (Lin et al., NeurIPS 2024), with [`kth_largest_change`] as threshold.
pub fn clear_changed(
    weights: &mut Flat,
    after: &Flat,
    chosen: &[Chosen<'_>],
    threshold: f32,
) -> usize {
    #[cfg(feature = "cuda")]
    if let Some(device) = after.held().current_device() {
        let cleared = cuda::clear_changed(&device, weights, after, chosen, threshold);
        return device.keep(cleared).unwrap_or(0);
    }
    let mut cleared = 0;
    for c in chosen {
        let (_, fan_in) = sizes(weights, c.tensor);
        let mut plain = weights.to_plain(c.tensor);
        let after = after.to_plain(c.tensor);
        let rows = plain
            .chunks_exact_mut(fan_in)
            .zip(after.chunks_exact(fan_in))
            .zip(c.channels);
        for ((row, after), _) in rows.filter(|(_, chosen)| **chosen) {
            for (w, a) in row.iter_mut().zip(after) {
                if (a - *w).abs() >= threshold {
                    *w = 0.0;
                    cleared += 1;
                }
            }
        }
        weights.set_plain(c.tensor, &plain);
    }
    cleared
}

/// Euclidean distances between the neurons of tensor `i` of two networks, `[out of a, out of b]` row-major.
///
/// The cost matrix of fusion by optimal transport (OTBR). Differences are formed, not products, so the distance of
/// equal neurons is exactly 0.
pub fn distances(a: &Flat, b: &Flat, i: usize) -> Vec<f32> {
    let (channels, fan_in) = sizes(a, i);
    #[cfg(feature = "cuda")]
    if let Some(device) = a.held().current_device() {
        let found = cuda::distances(&device, a, b, i);
        return device
            .keep(found)
            .unwrap_or_else(|| vec![f32::NAN; channels * channels]);
    }
    let (a, b) = (a.to_plain(i), b.to_plain(i));
    let mut out = vec![0f32; channels * channels];
    out.par_chunks_exact_mut(channels)
        .zip(a.par_chunks_exact(fan_in))
        .for_each(|(out, a)| {
            for (out, b) in out.iter_mut().zip(b.chunks_exact(fan_in)) {
                let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
                *out = squares.sum::<f64>().sqrt() as f32;
            }
        });
    out
}

/// The largest singular value of each neuron of tensor `i`, seen as a matrix `[in, kh * kw]`; `[out]`.
///
/// Times the factor of the batch normalisation behind it, this bounds the channel's Lipschitz constant (CLP: Zheng et
/// al., ECCV 2022).
pub fn spectral_norms(weights: &Flat, i: usize) -> Vec<f32> {
    let entry = &weights.layout().entries()[i];
    let &[_, inputs, kh, kw] = entry.shape.as_slice() else {
        panic!("`{}` is no convolution's weight", entry.name);
    };
    let taps = kh * kw;
    grams_of(weights, i, inputs, taps)
        .par_chunks_exact(taps * taps)
        .map(|gram| largest_eigenvalue(gram, taps).max(0.0).sqrt() as f32)
        .collect()
}

/// [`grams`] of tensor `i`, wherever it is.
fn grams_of(weights: &Flat, i: usize, inputs: usize, taps: usize) -> Vec<f64> {
    #[cfg(feature = "cuda")]
    if let Some(device) = weights.held().current_device() {
        let (channels, _) = sizes(weights, i);
        let found = device.keep(cuda::grams(&device, weights, i));
        return found.unwrap_or_else(|| vec![f64::NAN; channels * taps * taps]);
    }
    grams(&weights.to_plain(i), inputs, taps)
}

/// `W^T W` of each neuron `W [inputs, taps]`: `[out, taps, taps]`.
fn grams(plain: &[f32], inputs: usize, taps: usize) -> Vec<f64> {
    plain
        .par_chunks_exact(inputs * taps)
        .flat_map_iter(|neuron| {
            let mut gram = vec![0f64; taps * taps];
            for row in neuron.chunks_exact(taps) {
                for (p, gram) in row.iter().zip(gram.chunks_exact_mut(taps)) {
                    for (q, sum) in row.iter().zip(gram) {
                        *sum += f64::from(*p) * f64::from(*q);
                    }
                }
            }
            gram
        })
        .collect()
}

/// The largest eigenvalue of a symmetric matrix `[n, n]`, by Jacobi's rotations; NaN if an element is.
fn largest_eigenvalue(matrix: &[f64], n: usize) -> f64 {
    const SWEEPS: usize = 50;
    let mut m = matrix.to_vec();
    let total: f64 = m.iter().map(|v| v * v).sum();
    if total.is_nan() {
        return f64::NAN;
    }
    for _ in 0..SWEEPS {
        let off: f64 = (0..n * n)
            .filter(|i| i / n != i % n)
            .map(|i| m[i] * m[i])
            .sum();
        if off <= 1e-30 * total {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut m, n, p, q);
            }
        }
    }
    (0..n).map(|i| m[i * n + i]).fold(f64::MIN, f64::max)
}

/// One rotation of Jacobi's, which clears the elements (p, q) and (q, p).
fn rotate(m: &mut [f64], n: usize, p: usize, q: usize) {
    let pq = m[p * n + q];
    if pq == 0.0 {
        return;
    }
    let theta = (m[q * n + q] - m[p * n + p]) / (2.0 * pq);
    let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let c = 1.0 / t.hypot(1.0);
    let s = t * c;
    for k in 0..n {
        let (kp, kq) = (m[k * n + p], m[k * n + q]);
        m[k * n + p] = c * kp - s * kq;
        m[k * n + q] = s * kp + c * kq;
    }
    for k in 0..n {
        let (pk, qk) = (m[p * n + k], m[q * n + k]);
        m[p * n + k] = c * pk - s * qk;
        m[q * n + k] = s * pk + c * qk;
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values are the point")]
mod tests {
    use super::*;
    use crate::flat::{Layout, Order};
    use proptest::prelude::*;
    use std::sync::Arc;

    /// One convolution `[2, 1, 1, 2]` with these weights in PyTorch's order.
    fn conv(weights: [f32; 4]) -> Flat {
        let mut layout = Layout::default();
        layout.push("conv.weight", &[2, 1, 1, 2], Order::Hwio);
        let mut flat = Flat::zeros(&Arc::new(layout));
        flat.set_plain(0, &weights);
        flat
    }

    #[test]
    fn change_threshold_and_clearing_by_hand() {
        let before = conv([1.0, 2.0, 3.0, 4.0]);
        let after = conv([1.5, 2.0, 2.0, 4.25]);
        assert_eq!(weight_change(&before, &after, 0), [0.5, 1.25]);
        let all = [Chosen {
            tensor: 0,
            channels: &[true, true],
        }];
        let changes: Vec<f32> = (1..=4)
            .map(|k| kth_largest_change(&before, &after, &all, k))
            .collect();
        assert_eq!(changes, [1.0, 0.5, 0.25, 0.0]);
        let second = [Chosen {
            tensor: 0,
            channels: &[false, true],
        }];
        assert_eq!(kth_largest_change(&before, &after, &second, 2), 0.25);
        let mut cleared = before.clone();
        assert_eq!(clear_changed(&mut cleared, &after, &second, 0.25), 2);
        assert_eq!(cleared.to_plain(0), [1.0, 2.0, 0.0, 0.0]);
        let mut cleared = before.clone();
        assert_eq!(clear_changed(&mut cleared, &after, &all, 0.5), 2);
        assert_eq!(cleared.to_plain(0), [0.0, 2.0, 0.0, 4.0]);
    }

    #[test]
    fn distances_and_singular_values_by_hand() {
        let (a, b) = (conv([0.0, 3.0, 1.0, 1.0]), conv([4.0, 0.0, 1.0, 1.0]));
        let expected = [5.0, 5f32.sqrt(), 10f32.sqrt(), 0.0];
        assert_eq!(distances(&a, &b, 0), expected);
        // One input: the only singular value is the length.
        assert_eq!(spectral_norms(&a, 0), [3.0, 2f32.sqrt()]);
    }

    proptest! {
        /// `x^T A x` never exceeds the largest eigenvalue of a Gram matrix, and power iteration reaches it.
        #[test]
        fn the_largest_eigenvalue_bounds_every_direction(
            values in prop::collection::vec(-1.0f32..1.0, 36), direction in prop::collection::vec(-1.0f64..1.0, 4),
        ) {
            let gram = grams(&values, 9, 4);
            let largest = largest_eigenvalue(&gram, 4);
            let apply = |x: &[f64]| -> Vec<f64> {
                gram.chunks_exact(4).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
            };
            let norm = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt();
            prop_assume!(norm(&direction) > 1e-3);
            let mut x = direction;
            for _ in 0..500 {
                let length = norm(&x);
                x.iter_mut().for_each(|v| *v /= length);
                let next = apply(&x);
                prop_assert!(norm(&next) <= largest * (1.0 + 1e-12));
                x = next;
            }
            // Convergence is slow where two eigenvalues are close; then the bound is nearly reached all the same.
            prop_assert!(norm(&x) > largest * 0.98, "{} of {largest}", norm(&x));
        }
    }
}
