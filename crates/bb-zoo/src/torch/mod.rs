//! PyTorch's checkpoint files, read as data, and written.
//!
//! [`pickle`] builds inert values from the opcodes, [`mod@file`] finds pickle and storages in the two file formats and
//! gives tensors, [`nested`] finds the state dictionaries among what else is saved, [`attack`] knows what BackdoorBench
//! puts into `attack_result.pt`, [`mod@write`] writes the zip format, [`mod@scan`] shows what is inside.

pub mod attack;
pub mod file;
mod layout;
pub mod nested;
pub mod scan;
pub mod write;

pub use bb_core::pickle;

pub use attack::{AttackResult, DatasetState, NamedTensor, Record};
pub use file::{Checkpoint, TensorData, TorchError};
pub use nested::{Place, places};
pub use scan::{Detail, scan};
pub use write::Item;
