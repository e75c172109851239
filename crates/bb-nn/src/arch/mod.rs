//! Architectures, with the benchmark's tensor names.

mod preactresnet;
mod resnet;
mod vgg;

use crate::error::NnError;
use crate::graph::Graph;
use bb_core::cell::contract::Network;
use bb_core::cli::MOST_WIDTH;
use bb_core::data::DatasetSpec;
use serde::{Deserialize, Serialize};

/// The known architectures.
pub const NAMES: &[&str] = &["preactresnet18", "resnet18", "resnet34", "vgg19_bn"];

/// Name that every classifier gives to what its last linear layer reads.
pub const PENULTIMATE: &str = "penultimate";

/// A network's family and sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct ArchSpec {
    name: String,
    width: usize,
    classes: usize,
}

/// An [`ArchSpec`] as it is read, before its name and sizes are checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    name: String,
    width: usize,
    classes: usize,
}

impl TryFrom<Unchecked> for ArchSpec {
    type Error = NnError;

    fn try_from(spec: Unchecked) -> Result<Self, NnError> {
        Self::new(&spec.name, spec.width, spec.classes)
    }
}

impl ArchSpec {
    /// What a cell says of it.
    pub fn in_cell(&self) -> Network {
        Network {
            arch: self.name().to_owned(),
            width: self.width(),
            classes: Some(self.classes()),
        }
    }

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
        size("width", width, MOST_WIDTH, "1 to 512")?;
        size("classes", classes, 65_536, "1 to 65536")?;
        Ok(Self {
            name: name.to_owned(),
            width,
            classes,
        })
    }

    /// [`ArchSpec::new`] for the classes of a dataset, whose images it must be able to take.
    ///
    /// # Errors
    /// [`NnError::ImageSize`] if they are too small, and as [`ArchSpec::new`].
    pub fn for_dataset(name: &str, width: usize, spec: &DatasetSpec) -> Result<Self, NnError> {
        let arch = Self::new(name, width, spec.classes)?;
        arch.check_images(spec)?;
        Ok(arch)
    }

    /// Refuses images that are smaller than its layers can take.
    ///
    /// # Errors
    /// [`NnError::ImageSize`].
    pub fn check_images(&self, spec: &DatasetSpec) -> Result<(), NnError> {
        let least = self.least_side();
        if spec.height.min(spec.width) >= least {
            return Ok(());
        }
        Err(NnError::ImageSize {
            arch: self.name.clone(),
            least,
            height: spec.height,
            width: spec.width,
        })
    }

    /// The least height and width, in pixels, of an image that its layers can take.
    pub fn least_side(&self) -> usize {
        match self.name.as_str() {
            // Five poolings halve the image.
            "vgg19_bn" => 32,
            // Every layer that shrinks the image pads it, so that one pixel stays one.
            _ => 1,
        }
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
        let (width, classes) = (self.width, self.classes);
        match self.name.as_str() {
            "preactresnet18" => preactresnet::preactresnet18(width, classes),
            "resnet18" => resnet::resnet([2, 2, 2, 2], width, classes),
            "resnet34" => resnet::resnet([3, 4, 6, 3], width, classes),
            "vgg19_bn" => vgg::vgg19_bn(width, classes),
            other => unreachable!("`{other}` is not in the list of architectures"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ArchSpec;

    #[test]
    fn what_is_read_is_checked() {
        let read = |json: &str| serde_json::from_str::<ArchSpec>(json);
        let good = read(r#"{"name": "resnet18", "width": 64, "classes": 10}"#);
        assert_eq!(good.expect("a known name").label(), "resnet18-w64");
        let bad = read(r#"{"name": "resnet19", "width": 64, "classes": 10}"#);
        let message = bad.expect_err("an unknown name").to_string();
        assert!(message.contains("resnet18, resnet34"), "{message}");
    }

    #[test]
    fn vgg_has_as_many_parameters_as_published() {
        // Counted in the layout: the network itself would fill half a gigabyte.
        let graph = ArchSpec::new("vgg19_bn", 64, 10)
            .expect("the usual sizes")
            .graph();
        let entries = graph.params.entries();
        let parameters: usize = entries.iter().map(|e| e.range.len()).sum();
        assert_eq!(parameters, 139_622_218);
        let first = entries.iter().find(|e| e.name == "classifier.0.weight");
        assert_eq!(first.expect("it has one").shape, [4096, 25088]);
    }
}
