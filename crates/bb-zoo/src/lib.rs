//! What comes from strangers: the zoo's index and PyTorch's checkpoints.
//!
//! The decision this crate embodies: a file that somebody else wrote is data to be checked, never instructions.
//! Everything is read by a strict reader that names the line and the field it refuses, every size is capped before it
//! is believed, and nothing read here chooses a path or runs code.
//!
//! [`index`] is the list of known checkpoints (`model_zoo/index.toml`), [`mod@fetch`] brings one here; [`strict`] is the
//! TOML reader the index is built on, shared with the grid files of `bb-eval`; [`torch`] reads checkpoints without
//! running anything in them, and writes them; [`safetensors`] reads that format in all types that networks come in.
pub mod fetch;
pub mod index;
pub mod safetensors;
mod sniff;
pub mod strict;
pub mod torch;

pub use index::{Entry, Index, IndexError};
