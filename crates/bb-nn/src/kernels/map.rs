//! Functions of single elements, and the sum of two tensors, each with its backward pass.
//!
//! The backward passes read the result of the forward pass, so its argument need not be kept.

use pulp::Arch;
use rayon::prelude::*;

/// Elements of one parallel piece.
const PIECE: usize = 1 << 15;

/// A function that is applied to each element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// `max(x, 0)`; its gradient at exactly 0 is 0, as in PyTorch.
    Relu,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `scale * x + shift`.
    Affine {
        /// The factor.
        scale: f32,
        /// The summand.
        shift: f32,
    },
}

impl Function {
    /// Its name in profiles and messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Relu => "ReLU",
            Self::Tanh => "tanh",
            Self::Sigmoid => "sigmoid",
            Self::Affine { .. } => "scaling",
        }
    }
}

/// `y = function(x)`.
pub fn apply(function: Function, x: &[f32], y: &mut [f32]) {
    match function {
        Function::Relu => elementwise(x, y, relu),
        Function::Tanh => elementwise(x, y, f32::tanh),
        Function::Sigmoid => elementwise(x, y, |x| 1.0 / (1.0 + (-x).exp())),
        Function::Affine { scale, shift } => elementwise(x, y, |x| scale * x + shift),
    }
}

/// Gradient of [`apply`] in place: `dy` is multiplied by the derivative, which `y = function(x)` gives.
pub fn gradient_in_place(function: Function, y: &[f32], dy: &mut [f32]) {
    match function {
        Function::Relu => combine(y, dy, |y, d| if y <= 0.0 { 0.0 } else { d }),
        Function::Tanh => combine(y, dy, |y, d| d * (1.0 - y * y)),
        Function::Sigmoid => combine(y, dy, |y, d| d * ((1.0 - y) * y)),
        Function::Affine { scale, .. } => super::vector::scale(dy, scale),
    }
}

/// `y = a + b`, then ReLU if `relu`.
pub fn add(a: &[f32], b: &[f32], relu: bool, y: &mut [f32]) {
    assert!(a.len() == b.len() && a.len() == y.len());
    y.par_chunks_mut(PIECE)
        .zip(a.par_chunks(PIECE))
        .zip(b.par_chunks(PIECE))
        .for_each(|((y, a), b)| {
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
                    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                        let sum = a + b;
                        // Written as a comparison so that NaN stays NaN.
                        *y = if sum < floor { floor } else { sum };
                    }
                },
            );
        });
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    // Written as a comparison so that NaN stays NaN.
    if x < 0.0 { 0.0 } else { x }
}

fn elementwise(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32 + Sync) {
    combine(x, y, |x, _| f(x));
}

/// `y = f(x, y)`.
fn combine(x: &[f32], y: &mut [f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    assert_eq!(x.len(), y.len());
    y.par_chunks_mut(PIECE)
        .zip(x.par_chunks(PIECE))
        .for_each(|(y, x)| {
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = f(*x, *y);
                    }
                },
            );
        });
}
