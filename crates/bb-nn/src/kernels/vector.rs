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

/// Numbers of one step of [`adam`].
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// Learning rate divided by `1 - beta1^t`.
    pub step: f32,
    /// `1 - beta1`: share of the gradient in the new mean.
    pub share1: f32,
    /// Share of the old mean square in the new one.
    pub beta2: f32,
    /// `1 - beta2`, which is not what the rounded `beta2` leaves: for 0.999 that is wrong by 5e-5 of it.
    pub share2: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f32,
    /// Square root of `1 - beta2^t`.
    pub bias2_sqrt: f32,
}

/// One step of Adam over all parameters, as PyTorch's: with `g' = g + weight_decay * w`,
/// `m += (1 - beta1) * (g' - m)`, `v = beta2 * v + (1 - beta2) * g' * g'`, `w -= step * m / (sqrt(v) / bias2_sqrt + eps)`.
pub fn adam(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], by: AdamStep) {
    assert!(w.len() == m.len() && w.len() == v.len() && w.len() == g.len());
    w.par_chunks_mut(PIECE)
        .zip(m.par_chunks_mut(PIECE))
        .zip(v.par_chunks_mut(PIECE))
        .zip(g.par_chunks(PIECE))
        .for_each(|(((w, m), v), g)| {
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    for (((w, m), v), g) in w.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()).zip(g)
                    {
                        adam_moments(*w, (m, v), *g, by);
                        adam_move(w, (*m, *v), by);
                    }
                },
            );
        });
}

/// One step of AMSGrad, Adam with the largest mean square so far, `top = max(top, v)`, in the place of `v` (Reddi et al.,
/// ICLR 2018), as PyTorch's.
pub fn amsgrad(
    w: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    top: &mut [f32],
    g: &[f32],
    by: AdamStep,
) {
    let all = [m.len(), v.len(), top.len(), g.len()];
    assert!(all.iter().all(|&len| len == w.len()));
    w.par_chunks_mut(PIECE)
        .zip(m.par_chunks_mut(PIECE))
        .zip(v.par_chunks_mut(PIECE))
        .zip(top.par_chunks_mut(PIECE))
        .zip(g.par_chunks(PIECE))
        .for_each(|((((w, m), v), top), g)| {
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    let moments = m.iter_mut().zip(v.iter_mut());
                    let rest = top.iter_mut().zip(g);
                    for ((w, (m, v)), (top, g)) in w.iter_mut().zip(moments).zip(rest) {
                        adam_moments(*w, (m, v), *g, by);
                        *top = top.max(*v);
                        adam_move(w, (*m, *top), by);
                    }
                },
            );
        });
}

/// The moments of a step of [`adam`] or [`amsgrad`].
#[inline(always)]
fn adam_moments(w: f32, (m, v): (&mut f32, &mut f32), g: f32, by: AdamStep) {
    let g = g + by.weight_decay * w;
    *m += by.share1 * (g - *m);
    *v = by.beta2 * *v + by.share2 * g * g;
}

/// The move of a step of [`adam`] or [`amsgrad`].
#[inline(always)]
fn adam_move(w: &mut f32, (m, v): (f32, f32), by: AdamStep) {
    *w -= by.step * m / (v.sqrt() / by.bias2_sqrt + by.eps);
}
