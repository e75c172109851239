//! What the manifest of an attack's cell says under `results`.

use bb_core::cell::contract::Wrong;
use bb_core::cell::{Cell, CellError};
use bb_core::data::NamedClass;
use bb_core::metrics::{Ratio, Scores};
use serde::{Deserialize, Serialize};

use crate::in_loop::Counts;
use crate::stealth::Stealth;

/// The results of an attack, or of a model that was trained elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AttackResults {
    /// Clean test images that are classified rightly.
    pub acc: Ratio,
    /// Poisoned test images that are given the attacked label; without such images there is no score, which is not a
    /// score of 0.
    pub asr: Option<Ratio>,
    /// Poisoned test images that are given their true label.
    pub ra: Option<Ratio>,
    /// The end of the training; nothing is known of that of an imported model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<TrainEnd>,
    /// Names of the classes.
    #[serde(default)]
    pub classes: Vec<String>,
    /// The class that poisoned images are meant to be taken for, if it is one.
    #[serde(default)]
    pub target: Option<NamedClass>,
    /// How many images are poisoned.
    #[serde(default)]
    pub poison: PoisonCounts,
    /// How visible the trigger is on the test images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stealth: Option<Stealth>,
    /// Of an imported model: how many images its scores are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Images>,
    /// Of an imported model: what became of the tensors of its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Tensors>,
}

impl AttackResults {
    /// What an attack's cell says.
    ///
    /// # Errors
    /// [`CellError::Results`] if a field is wrong, [`CellError::Field`] if images are poisoned and have no scores.
    pub fn of(cell: &Cell) -> Result<Self, CellError> {
        let results: Self = cell.results()?;
        let scores = [("results.asr", results.asr), ("results.ra", results.ra)];
        let missing = scores.iter().find(|(_, ratio)| ratio.is_none());
        if let Some(&(field, _)) = missing.filter(|_| results.poison.test > 0) {
            return Err(cell.refuse(Wrong {
                field,
                found: None,
                expected: "how many of how many images".to_owned(),
            }));
        }
        Ok(results)
    }

    /// The three scores; ASR and RA are of no image where nothing is poisoned.
    pub fn scores(&self) -> Scores {
        Scores {
            acc: self.acc,
            asr: self.asr.unwrap_or_default(),
            ra: self.ra.unwrap_or_default(),
        }
    }
}

/// What the last epoch of a training was like.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainEnd {
    /// Epochs trained.
    pub epochs: u64,
    /// Mean loss of the last epoch.
    pub loss: f64,
    /// Share of the images of the last epoch that were classified rightly, 0 to 1.
    pub acc: Option<f64>,
}

/// How many images are poisoned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoisonCounts {
    /// Training images in the cell.
    pub train: u64,
    /// Test images in the cell.
    pub test: u64,
    /// What an attack inside the training loop did to the batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_training: Option<Counts>,
}

/// How many images the scores of an imported model are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    /// Training images of the grid or of the record.
    pub train: u64,
    /// Training images of the dataset.
    pub train_all: u64,
    /// Clean test images that were measured.
    pub test: u64,
    /// Test images of the dataset.
    pub test_all: u64,
    /// Poisoned test images.
    pub test_poisoned: u64,
    /// Test images that could be poisoned.
    pub test_possible: u64,
    /// Poisoned pictures that were compared with their originals.
    pub test_compared: u64,
    /// Those of them that are unlike.
    pub test_unlike: u64,
}

/// What became of the tensors of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensors {
    /// Those of the network.
    pub loaded: u64,
    /// Those that were left out.
    pub ignored: u64,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bb_core::cell::{CellSpec, Kind, Opened, open};
    use serde_json::{Value, json};

    use super::*;

    fn cell(results: Value) -> Result<AttackResults, String> {
        let out = tempfile::tempdir().expect("a temporary folder");
        let spec = CellSpec {
            kind: Kind::Attack,
            method: "badnets".to_owned(),
            dataset: "synthetic".to_owned(),
            arch: "x".to_owned(),
            settings: json!({}),
            inputs: BTreeMap::new(),
            seed: 0,
        };
        let Ok(Opened::Work(work)) = open(out.path(), &spec) else {
            panic!("nobody works on it");
        };
        let cell = work.finish(results).expect("complete");
        AttackResults::of(&cell).map_err(|error| {
            let text = error.to_string();
            text.replace(&out.path().display().to_string(), "OUT")
        })
    }

    #[test]
    fn scores_of_poisoned_images_are_there_or_missed() {
        let ratio = json!({ "hits": 3, "total": 4 });
        let clean = cell(json!({ "acc": ratio, "asr": null, "ra": null })).expect("no images");
        assert_eq!(clean.scores().acc.hits, 3);
        assert_eq!(clean.scores().asr, Ratio::default());
        let poison = json!({ "train": 1, "test": 4 });
        let whole = json!({ "acc": ratio, "asr": ratio, "ra": ratio, "poison": poison });
        assert_eq!(cell(whole.clone()).expect("whole").scores().ra.total, 4);
        for name in ["asr", "ra"] {
            let mut lacking = whole.clone();
            lacking[name] = Value::Null;
            let error = cell(lacking).expect_err(name);
            assert!(
                error.starts_with(&format!("`results.{name}` is missing in `OUT/attack/")),
                "{error}"
            );
            let mut wrong = whole.clone();
            wrong[name] = json!({ "hits": -1, "total": 4 });
            let error = cell(wrong).expect_err(name);
            assert!(
                error.ends_with(&format!("has no valid `results.{name}.hits`")),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let none = json!(AttackResults::default());
        let keys: Vec<&String> = none.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["acc", "asr", "ra", "classes", "target", "poison"]);
        assert_eq!(none["poison"], json!({ "train": 0, "test": 0 }));
    }
}
