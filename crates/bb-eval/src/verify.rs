//! Measures the model of a cell again, and says whether its manifest tells the truth.
use std::path::{Path, PathBuf};

use bb_core::cell::{Cell, ENV, Kind, MODEL, POISON_TEST};
use bb_core::cli::{Coded, Failure, exit};
use bb_core::data::{self, Dataset, OpenOptions};
use bb_core::metrics::Scores;
use bb_core::poison::PoisonSet;
use bb_nn::{ArchSpec, Compute, eval};
use serde_json::{Value, json};

use crate::collect::{attack_scores, defense_results};
use crate::network;

/// Why a cell cannot be measured again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The attack that a defense repaired is not where it was, nor in the same folder of results.
    #[error("the attack that `{}` repairs was not found, expected a cell with digest {digest}", path.display())]
    NoAttack {
        /// The defense's cell.
        path: PathBuf,
        /// Digest of the attack's cell.
        digest: String,
    },
    /// The attack that the user named is another one.
    #[error("`{}` is not the attack that `{}` repairs: digest {found}, expected {expected}", named.display(), path.display())]
    OtherAttack {
        /// The cell that was named.
        named: PathBuf,
        /// The defense's cell.
        path: PathBuf,
        /// Digest in the defense's manifest.
        expected: String,
        /// Digest of the cell that was named.
        found: String,
    },
    /// A manifest lacks what is needed to open the model or the data.
    #[error("the manifest of `{}` has no `{field}`", path.display())]
    NoField {
        /// The cell.
        path: PathBuf,
        /// The field.
        field: &'static str,
    },
    /// The dataset's content is not what the cell was made with.
    #[error("dataset `{id}` is not the one of the cell: digest {found}, expected {expected}")]
    OtherDataset {
        /// The dataset.
        id: String,
        /// Digest in the manifest.
        expected: String,
        /// Digest of the dataset that was opened.
        found: String,
    },
}

impl Coded for VerifyError {
    fn exit_code(&self) -> u8 {
        exit::INPUT
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoAttack { .. } => Some("name it with `--attack CELL`".to_owned()),
            Self::OtherDataset { .. } => {
                Some("give the `--data` that the cell was made with".to_owned())
            }
            Self::OtherAttack { .. } => Some(
                "without `--attack` it is looked for where the repair found it, and in the same folder of results"
                    .to_owned(),
            ),
            Self::NoField { .. } => None,
        }
    }
}

/// What was measured now, and what the manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Measured now.
    pub found: Scores,
    /// In the manifest.
    pub expected: Scores,
}

impl Verified {
    /// Whether both are equal to the last image.
    pub fn agree(&self) -> bool {
        self.found == self.expected
    }

    /// One line of JSON: fractions, numerators, denominators (null where no image was measured), and whether the
    /// manifest agrees.
    pub fn to_json(&self) -> String {
        let mut line = serde_json::Map::new();
        let parts = |scores: &Scores| [("acc", scores.acc), ("asr", scores.asr), ("ra", scores.ra)];
        for (name, ratio) in parts(&self.found) {
            line.insert(name.to_owned(), json!(ratio.value()));
        }
        for (name, ratio) in parts(&self.found) {
            // Of no image there is no count either.
            let some = |count: u64| (ratio.total > 0).then_some(count);
            line.insert(format!("{name}_hits"), json!(some(ratio.hits)));
            line.insert(format!("{name}_total"), json!(some(ratio.total)));
        }
        line.insert("agrees".to_owned(), json!(self.agree()));
        format!("{}\n", Value::Object(line))
    }
}

/// Measures the model of an attack's or a defense's cell on the clean and the poisoned test set, computing on `compute`.
///
/// `attack` is the cell that a defense repaired, for when it has been moved; `data` the folder with the datasets.
pub fn verify(
    path: &Path,
    data: Option<&Path>,
    attack: Option<&Path>,
    compute: &Compute,
) -> Result<Verified, Failure> {
    let cell = Cell::load(path)?;
    let (attack, expected) = match cell.manifest.kind {
        Kind::Attack => (cell.clone(), attack_scores(&cell)?),
        Kind::Defense => (find_attack(&cell, attack)?, defense_results(&cell)?.after),
    };
    let dataset = open_data(&attack, data)?;
    let no_field = |field| VerifyError::NoField {
        path: attack.dir.clone(),
        field,
    };
    let model = &attack.manifest.settings["model"];
    let name = model["arch"]
        .as_str()
        .ok_or_else(|| no_field("settings.model.arch"))?;
    let width = model["width"]
        .as_u64()
        .ok_or_else(|| no_field("settings.model.width"))?;
    let arch = ArchSpec::new(name, width as usize, dataset.spec.classes)?;
    let (_, net) = network::load(&cell.file(MODEL), &arch)?;
    let mut net = net.on(compute)?;
    let path = attack.file(POISON_TEST);
    let poisoned = PoisonSet::load(&path)?;
    poisoned
        .check(dataset.test.len(), dataset.spec.classes)
        .map_err(network::images_in(&path))?;
    let found = eval::scores(&mut net, &dataset.test, &poisoned, &dataset.spec);
    net.take_failure()?;
    Ok(Verified { found, expected })
}

/// The dataset that an attack's cell was made with; `data` is the folder with the datasets.
pub(crate) fn open_data(attack: &Cell, data: Option<&Path>) -> Result<Dataset, Failure> {
    let settings = &attack.manifest.settings;
    let options = OpenOptions {
        cache_dir: None,
        train_limit: settings["data"]["train_limit"].as_u64().map(|n| n as usize),
        test_limit: settings["data"]["test_limit"].as_u64().map(|n| n as usize),
        test_split: settings["data"]["test_split"].as_str().map(str::to_owned),
        seed: 0,
    };
    let id = &attack.manifest.dataset;
    let dataset = data::open(id, data, &options)?;
    let digest = attack
        .manifest
        .inputs
        .get("dataset")
        .ok_or_else(|| VerifyError::NoField {
            path: attack.dir.clone(),
            field: "inputs.dataset",
        })?;
    if dataset.digest != *digest {
        let (id, expected, found) = (id.clone(), digest.clone(), dataset.digest);
        return Err(VerifyError::OtherDataset {
            id,
            expected,
            found,
        }
        .into());
    }
    Ok(dataset)
}

/// The attack's cell of a defense: where the user says, where the run found it, or in the same folder of results.
fn find_attack(defense: &Cell, named: Option<&Path>) -> Result<Cell, Failure> {
    let no_field = VerifyError::NoField {
        path: defense.dir.clone(),
        field: "inputs.attack",
    };
    let digest = defense.manifest.inputs.get("attack").ok_or(no_field)?;
    let not_found = || VerifyError::NoAttack {
        path: defense.dir.clone(),
        digest: digest.clone(),
    };
    if let Some(named) = named {
        let cell = Cell::load(named)?;
        let found = cell.digest();
        if found != *digest {
            return Err(VerifyError::OtherAttack {
                named: named.to_owned(),
                path: defense.dir.clone(),
                expected: digest.clone(),
                found,
            }
            .into());
        }
        return Ok(cell);
    }
    let mut places: Vec<PathBuf> = Vec::new();
    let env = fs_err::read_to_string(defense.file(ENV)).ok();
    if let Some(place) = env.and_then(|text| {
        Some(
            serde_json::from_str::<Value>(&text).ok()?["attack_cell"]
                .as_str()?
                .into(),
        )
    }) {
        places.push(place);
    }
    // <out>/defense/<method>/<dataset>-<arch>/<id> and <out>/attack/<method>/<dataset>-<arch>/<id>
    let dir = std::path::absolute(&defense.dir)?;
    if let (Some(out), Some(task)) = (
        dir.ancestors().nth(4),
        dir.parent().and_then(Path::file_name),
    ) {
        for method in folders(&out.join(Kind::Attack.as_str())) {
            places.extend(folders(&method.join(task)));
        }
    }
    let cell = places
        .iter()
        .filter_map(|place| Cell::load(place).ok())
        .find(|cell| cell.digest() == *digest);
    Ok(cell.ok_or_else(not_found)?)
}

/// The folders in a folder, by name; none if it cannot be read.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
    found.sort();
    found
}
