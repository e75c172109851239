//! Vocabulary of the workspace: everything the other crates say to each other, and nothing that knows a model or a method.
//!
//! The decision this crate embodies: attack and defense meet only in a folder ([`cell`]), so the types here describe
//! what lies in such a folder and how it comes to be complete, and the datasets, settings and metrics that name it.
pub mod artifact;
pub mod cell;
pub mod cli;
pub mod data;
pub mod events;
pub mod files;
pub mod json;
pub mod method;
pub mod metrics;
pub mod pickle;
pub mod poison;
pub mod precision;
pub mod rng;
pub mod rows;
pub mod settings;
