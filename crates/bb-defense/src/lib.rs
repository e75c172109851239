//! Post-training defenses against backdoors in image classifiers.
//!
//! The decision this crate embodies: what a method may see is a matter of types. A [`method::Defense`] names its data
//! as a type, the harness hands over that and the suspect model and nothing else, and measurements on the test set go
//! into the record without coming back. So no defense here can be good because it looked where a defender cannot.
//!
//! - [`registry`] lists the defenses, [`method`] is the trait they implement, [`data`] what they may be given and
//!   [`context`] what they may tell.
//! - [`ft`], [`fp`], [`nad`], [`nc`], [`anp`], [`clp`], [`ibau`], [`rnp`], [`tsbd`], [`otbr`], [`ulrl`]: one folder
//!   per defense. [`channels`], [`nwc`], [`unlearning`], [`finetuning`], [`parts`] and [`robust`] hold what they share.
//! - [`harness`] runs a defense on an attack's cell and leaves a complete cell of its own; [`cli`] is the program
//!   around it, also for crates that bring defenses of their own.

pub mod anp;
pub mod channels;
pub mod cli;
pub mod clp;
pub mod context;
pub mod data;
pub mod error;
pub mod finetuning;
pub mod fp;
pub mod ft;
pub mod harness;
pub mod ibau;
pub mod method;
pub mod nad;
pub mod nc;
pub mod nwc;
pub mod otbr;
pub mod parts;
pub mod recipes;
pub mod registry;
pub mod results;
pub mod rnp;
pub mod robust;
pub mod settings;
#[cfg(test)]
mod testing;
pub mod tsbd;
pub mod ulrl;
pub mod unlearning;

pub use error::DefenseError;
pub use harness::{DefenseRequest, run};
