//! The engine of the workspace: kernels, models with PyTorch's tensor names, optimisers and the one training loop.
//!
//! The decision this crate embodies: a network is trained by explicit forward and backward passes over one list of
//! operations ([`net::Net`]), because candle's own training path costs an order of magnitude more time; the same
//! kernels are offered as candle operations ([`ops`]) to methods that want autograd.
//! Inside, images are NHWC and convolution weights HWIO; everything that leaves the crate is a candle tensor in
//! PyTorch's layout under PyTorch's name ([`state::StateDict`]).
//! This is the only crate with `unsafe` code: in the kernels, each block with its reason.

// Index loops over channels are what the vectoriser understands best, and const-generic tiles need them.
#![allow(clippy::needless_range_loop)]

pub mod arch;
pub mod compute;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod data;
pub mod error;
pub mod eval;
pub mod flat;
mod graph;
pub mod kernels;
pub mod model;
pub mod net;
pub mod neurons;
pub mod ops;
pub mod optim;
mod pass;
pub mod profile;
pub mod schedule;
pub mod spec;
pub mod state;
pub mod train;

pub use arch::ArchSpec;
pub use bb_core::precision::Precision;
pub use compute::Compute;
pub use error::NnError;
pub use flat::{Flat, NormScope};
pub use net::{Mode, Net};
pub use spec::{Slot, Spec};
pub use state::StateDict;
