//! The programs as processes, where everything around them goes wrong: calls of the system fail, the power does, memory
//! is short, files are made to harm.
//!
//! Needs a C compiler, for what measures a process and what breaks its calls, and the programs of all crates.

mod faults;
mod hostile;
mod inputs;
mod run;
