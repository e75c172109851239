//! Architectures, with the benchmark's tensor names.

mod preactresnet;

use crate::error::NnError;
use crate::graph::Graph;
use serde::{Deserialize, Serialize};

/// The known architectures.
pub const NAMES: &[&str] = &["preactresnet18"];

/// A network's family and sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchSpec {
    name: String,
    width: usize,
    classes: usize,
}

impl ArchSpec {
    /// `name` is one of [`NAMES`], `width` the channels of the first stage (64 is the standard network).
    pub fn new(name: &str, width: usize, classes: usize) -> Result<Self, NnError> {
        if !NAMES.contains(&name) {
            return Err(NnError::UnknownArch {
                name: name.to_owned(),
                known: NAMES.join(", "),
            });
        }
        let size = |field, found, max, expected| {
            if (1..=max).contains(&found) {
                Ok(())
            } else {
                Err(NnError::ArchSize {
                    arch: name.to_owned(),
                    field,
                    found,
                    expected,
                })
            }
        };
        size("width", width, 512, "1 to 512")?;
        size("classes", classes, 65_536, "1 to 65536")?;
        Ok(Self {
            name: name.to_owned(),
            width,
            classes,
        })
    }

    /// The family's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Channels of the first stage.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Name and width, as in `preactresnet18-w16`.
    pub fn label(&self) -> String {
        format!("{}-w{}", self.name, self.width)
    }

    pub(crate) fn graph(&self) -> Graph {
        preactresnet::preactresnet18(self.width, self.classes).finish()
    }
}
