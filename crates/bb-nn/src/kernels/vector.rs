//! Elementwise passes and reductions over long vectors.

use pulp::Arch;
use rayon::prelude::*;

/// Elements of one parallel piece. Fixed, so that reductions do not depend on the number of threads.
const PIECE: usize = 1 << 15;

/// `y += a * x`.
pub fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
    assert_eq!(y.len(), x.len());
    y.par_chunks_mut(PIECE)
        .zip(x.par_chunks(PIECE))
        .for_each(|(y, x)| {
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y += a * x;
                    }
                },
            );
        });
}

/// `y = a * y + b * x`.
pub fn mix(y: &mut [f32], a: f32, x: &[f32], b: f32) {
    assert_eq!(y.len(), x.len());
    y.par_chunks_mut(PIECE)
        .zip(x.par_chunks(PIECE))
        .for_each(|(y, x)| {
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = a * *y + b * x;
                    }
                },
            );
        });
}

/// `y *= a`.
pub fn scale(y: &mut [f32], a: f32) {
    y.par_chunks_mut(PIECE).for_each(|y| {
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for y in y.iter_mut() {
                    *y *= a;
                }
            },
        );
    });
}

/// Sum of squares, in `f64` across pieces.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    reduce(x, |x| {
        let mut lanes = [0f64; 16];
        let (chunks, rest) = x.as_chunks::<16>();
        for chunk in chunks {
            for (sum, v) in lanes.iter_mut().zip(chunk) {
                *sum += f64::from(*v) * f64::from(*v);
            }
        }
        lanes.iter().sum::<f64>()
            + rest
                .iter()
                .map(|v| f64::from(*v) * f64::from(*v))
                .sum::<f64>()
    })
}

/// Whether every element is a finite number.
pub fn all_finite(x: &[f32]) -> bool {
    x.par_chunks(PIECE).all(|x| {
        Arch::new().dispatch(
            #[inline(always)]
            || {
                // x * 0 is 0 for finite numbers and NaN for the others.
                let mut lanes = [0f32; 16];
                let (chunks, rest) = x.as_chunks::<16>();
                for chunk in chunks {
                    for (sum, v) in lanes.iter_mut().zip(chunk) {
                        *sum += v * 0.0;
                    }
                }
                lanes.iter().sum::<f32>() == 0.0 && rest.iter().all(|v| v.is_finite())
            },
        )
    })
}

fn reduce(x: &[f32], piece: impl Fn(&[f32]) -> f64 + Sync) -> f64 {
    let parts: Vec<f64> = x
        .par_chunks(PIECE)
        .map(|x| {
            Arch::new().dispatch(
                #[inline(always)]
                || piece(x),
            )
        })
        .collect();
    parts.iter().sum()
}

/// One step of stochastic gradient descent with momentum over all parameters, as PyTorch's `SGD` with dampening 0:
/// `v = momentum * v + (g + weight_decay * w)`, then `w -= lr * v`, or `w -= lr * (g' + momentum * v)` with Nesterov.
/// On the first step `v` must be zero, which gives PyTorch's start `v = g'` as well.
pub fn sgd_momentum(
    w: &mut [f32],
    v: &mut [f32],
    g: &[f32],
    lr: f32,
    momentum: f32,
    weight_decay: f32,
    nesterov: bool,
) {
    assert!(w.len() == v.len() && w.len() == g.len());
    w.par_chunks_mut(PIECE)
        .zip(v.par_chunks_mut(PIECE))
        .zip(g.par_chunks(PIECE))
        .for_each(|((w, v), g)| {
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    for ((w, v), g) in w.iter_mut().zip(v.iter_mut()).zip(g) {
                        let g = g + weight_decay * *w;
                        *v = momentum * *v + g;
                        let direction = if nesterov { g + momentum * *v } else { *v };
                        *w -= lr * direction;
                    }
                },
            );
        });
}
