//! The numerical kernels of the CPU path: plain functions on `f32` slices in the engine's layout.
//!
//! Images are `[n, h, w, c]` (NHWC), convolution weights `[k, k, cin, cout]` (HWIO).
//! Every kernel checks its lengths before it computes, cuts its work by shape alone, and adds partial results in a
//! fixed order: the same input gives the same bits on any number of threads.

pub mod conv;
pub mod dropout;
pub mod image;
pub mod linear;
pub mod loss;
pub mod map;
pub mod norm;
pub mod pool;
pub mod precision;
mod scratch;
pub mod vector;
pub mod warp;
