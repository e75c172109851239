//! What a network is built from.

use crate::arch::ArchSpec;
use crate::graph::Graph;
use crate::model::ModelSpec;

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

    pub(crate) fn graph(&self) -> Graph {
        match self {
            Self::Classifier(spec) => spec.graph(),
            Self::Model(spec) => spec.graph(),
        }
        .finish()
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
