//! PyTorch's checkpoint files, read as data.
//!
//! [`pickle`] builds inert values from the opcodes, [`mod@file`] finds pickle and storages in the two file formats and
//! gives tensors, [`attack`] knows what BackdoorBench puts into `attack_result.pt`.

pub mod attack;
pub mod file;
pub mod pickle;

pub use attack::{AttackResult, DatasetState, Record};
pub use file::{Checkpoint, TensorData, TorchError};
