//! What a network is built from.

use crate::arch::ArchSpec;
use crate::error::NnError;
use crate::flat::Entry;
use crate::graph::{Graph, StateName};
use crate::model::ModelSpec;
use bb_core::pickle::short;
use std::collections::BTreeMap;

/// What a network is built from: one of the classifiers that users choose from, or a model that a method brings along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// A classifier.
    Classifier(ArchSpec),
    /// A model that is no classifier.
    Model(ModelSpec),
}

impl Spec {
    /// Name and width, as in `preactresnet18-w16`.
    pub fn label(&self) -> String {
        match self {
            Self::Classifier(spec) => spec.label(),
            Self::Model(spec) => spec.label(),
        }
    }

    /// Channels of the last value: the classes of a classifier.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Classifier(spec) => spec.classes(),
            Self::Model(spec) => spec.outputs(),
        }
    }

    /// Names, shapes and kinds of all tensors in PyTorch's order; none of them is made.
    pub fn tensors(&self) -> Vec<Slot> {
        let graph = self.graph();
        let slot = |name: &StateName| match name {
            StateName::Param(i) => Slot::of(&graph.params.entries()[*i]),
            StateName::Buffer(i) => Slot::of(&graph.buffers.entries()[*i]),
            StateName::Tracked(_, name) => Slot {
                name: name.clone(),
                shape: Vec::new(),
                counts: true,
            },
        };
        graph.order.iter().map(slot).collect()
    }

    /// Compares names and shapes with those of the network.
    ///
    /// Counters of batches may be missing and may have any shape: only momentum-free averaging would read them.
    ///
    /// # Errors
    /// A tensor that is missing, unknown or of another shape.
    pub(crate) fn check_tensors<'a>(
        &self,
        found: impl Iterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<(), NnError> {
        let mut found: BTreeMap<&str, &[usize]> = found.collect();
        for Slot {
            name,
            shape,
            counts,
        } in self.tensors()
        {
            match found.remove(name.as_str()) {
                _ if counts => {}
                Some(dims) if dims == shape => {}
                None => {
                    let expected = shape;
                    return Err(NnError::MissingTensor { name, expected });
                }
                Some(dims) => {
                    return Err(NnError::Shape {
                        name,
                        expected: shape,
                        found: dims.to_vec(),
                    });
                }
            }
        }
        match found.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(NnError::UnusedTensor {
                name: short(name),
                arch: self.label(),
            }),
        }
    }

    pub(crate) fn graph(&self) -> Graph {
        match self {
            Self::Classifier(spec) => spec.graph(),
            Self::Model(spec) => spec.graph(),
        }
        .finish()
    }
}

/// A tensor that belongs to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// PyTorch's name.
    pub name: String,
    /// PyTorch's shape.
    pub shape: Vec<usize>,
    /// Whether it counts batches, in `i64`; all others are `f32`.
    pub counts: bool,
}

impl Slot {
    fn of(entry: &Entry) -> Self {
        Self {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            counts: false,
        }
    }
}

impl From<&ArchSpec> for Spec {
    fn from(spec: &ArchSpec) -> Self {
        Self::Classifier(spec.clone())
    }
}

impl From<&ModelSpec> for Spec {
    fn from(spec: &ModelSpec) -> Self {
        Self::Model(*spec)
    }
}

impl From<&Spec> for Spec {
    fn from(spec: &Spec) -> Self {
        spec.clone()
    }
}
