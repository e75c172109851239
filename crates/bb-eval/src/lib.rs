//! Grids of attacks and defenses, and the tables that compare them.
//!
//! The decision this crate embodies: a table is a function of result folders and of nothing else. `run` fills the
//! folders that a grid asks for, and everything that is printed afterwards is read back from their manifests, so
//! whoever has the folders has the table.
//!
//! - [`grid`] reads the file, [`prepare`] finds methods, settings and data, [`plan`] says what is to be done,
//!   [`run`] does it, all of it or a [`part`].
//! - [`collect`] reads complete cells, [`table`] compares them, [`paper`] has the published numbers.
//! - [`verify`] measures the model of a cell again; [`zoo`] makes cells of models that others published.
//! - [`analyze`] looks into backdoored models, for studies and not for repairs.
//! - [`cli`] is the program around it; a crate with a defense of its own calls [`main_with`].
pub mod analyze;
pub mod cells;
pub mod cli;
pub mod collect;
pub mod explain;
pub mod grid;
mod leaves;
mod markup;
mod network;
pub mod paper;
pub mod part;
pub mod plan;
pub mod prepare;
pub mod run;
pub mod table;
pub mod verify;
pub mod zoo;

pub use cli::main_with;
