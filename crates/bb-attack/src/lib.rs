//! Backdoor attacks on image classifiers.
//!
//! The decision this crate embodies: an attack is a value that turns clean data into poisoned data (and, if it must,
//! joins the training loop through a hook), and everything else, from reading the data to the finished result folder,
//! is one harness. So an attack is a pure function on 8-bit images plus its settings, and what a defense later reads
//! are exactly the pixels that the training read.
//!
//! - [`registry`] lists the attacks, [`method`] is the trait they implement.
//! - [`badnets`], [`blended`], [`lf`], [`sig`], [`ssba`], [`trojan`], [`wanet`], [`inputaware`], and [`clean`] training: one folder per attack.
//! - [`labels`], [`poison_index`], [`static_attack`], [`in_loop`], [`picture`], [`npy`], [`stealth`], [`prep`], [`clean_net`]: what several attacks share.
//! - [`results`]: what the manifest of a cell says was measured.
//! - [`harness`] runs an attack and leaves a complete cell, [`preview`] shows its trigger on a few images; [`cli`] is the
//!   command line around them.

pub mod badnets;
pub mod blended;
pub mod clean;
pub mod clean_net;
pub mod cli;
pub mod error;
#[cfg(test)]
mod golden;
pub mod harness;
pub mod in_loop;
pub mod inputaware;
pub mod labels;
pub mod lf;
pub mod method;
pub mod npy;
pub mod picture;
pub mod poison_index;
pub mod prep;
pub mod preview;
pub mod recipes;
pub mod registry;
pub mod results;
pub mod settings;
pub mod sig;
pub mod ssba;
pub mod static_attack;
pub mod stealth;
pub mod trojan;
pub mod wanet;

pub use error::AttackError;
pub use harness::{AttackRequest, run};
