//! Computes again what a cell claims, as far as its files allow, and says whether its manifest tells the truth.
//!
//! A digest says that nothing has changed since the manifest was written; it does not say that the manifest was true then.
use std::fmt::Display;
use std::path::{Path, PathBuf};

use bb_attack::results::AttackResults;
use bb_core::cell::contract::{Input, Network};
use bb_core::cell::env::Env;
use bb_core::cell::{Cell, Kind, METRICS, MODEL, POISON_TEST, POISON_TRAIN};
use bb_core::cli::{Coded, Failure, exit};
use bb_core::data::{self, Dataset, Split};
use bb_core::metrics::{Ratio, Scores, der};
use bb_core::poison::PoisonSet;
use bb_core::rows;
use bb_defense::harness::{ORACLE, open_suspect, options_of};
use bb_defense::results::Results;
use bb_nn::{ArchSpec, Compute, eval};
use serde_json::{Value, json};

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
    /// The attack that the user named has no trigger.
    #[error("the model of `{}` has no poisoned test image, expected the cell of an attack", named.display())]
    NoTrigger {
        /// The cell that was named.
        named: PathBuf,
    },
    /// Two cells are of different data, so one's images say nothing about the other's network.
    #[error("{field} of `{}` is {found}, expected {expected} as in `{}`", path.display(), named.display())]
    NotAlike {
        /// The cell that is measured.
        path: PathBuf,
        /// The cell with the poisoned images.
        named: PathBuf,
        /// What differs.
        field: &'static str,
        /// In the first cell.
        found: String,
        /// In the second cell.
        expected: String,
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
            Self::NoTrigger { .. } => Some(
                "`--attack` names the cell whose poisoned test images are to be used".to_owned(),
            ),
            Self::NotAlike { .. } => None,
        }
    }
}

/// What was measured now, and what the manifest says.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// Measured now.
    pub found: Scores,
    /// In the manifest, and as found where that cannot say it; nothing if it was measured on other images.
    pub expected: Option<Scores>,
    /// Defense effectiveness rating against the model of another attack whose images were used, 0 to 1.
    pub der: Option<f64>,
    /// What else the manifest claims and was computed again.
    pub claims: Vec<Claim>,
    /// What it claims and cannot be computed from the files of the cell.
    pub unchecked: Vec<&'static str>,
}

/// A claim of a manifest beside the scores of its model.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The field of the results.
    pub name: &'static str,
    /// Computed now.
    pub found: String,
    /// In the manifest.
    pub expected: String,
}

impl Claim {
    fn new<T: Display>(name: &'static str, found: T, expected: T) -> Self {
        Self {
            name,
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    fn scores(name: &'static str, found: &Scores, expected: &Scores) -> Self {
        Self::new(name, show(found), show(expected))
    }
}

/// Scores as counts, for people.
fn show(scores: &Scores) -> String {
    let count = |ratio: Ratio| match ratio.total {
        0 => "none".to_owned(),
        _ => ratio.to_string(),
    };
    let Scores { acc, asr, ra } = *scores;
    format!("ACC {}, ASR {}, RA {}", count(acc), count(asr), count(ra))
}

impl Verified {
    /// Whether all is equal to the last image, as far as it can be compared.
    pub fn agree(&self) -> bool {
        self.differences().is_empty()
    }

    /// What the manifest says otherwise than what was found, a claim each.
    pub fn differences(&self) -> Vec<String> {
        let own = self
            .expected
            .map(|expected| Claim::scores("", &self.found, &expected));
        let all = own.iter().chain(&self.claims);
        let wrong = all.filter(|claim| claim.found != claim.expected);
        wrong
            .map(
                |Claim {
                     name,
                     found,
                     expected,
                 }| match *name {
                    "" => format!("says {expected}, found {found}"),
                    name => format!("says {expected} of `{name}`, found {found}"),
                },
            )
            .collect()
    }

    /// One line of JSON: fractions, numerators, denominators (null where no image was measured), whether the manifest
    /// agrees (null where it says nothing of these images), and what else of it was computed again and what was not.
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
        if let Some(der) = self.der {
            line.insert("der".to_owned(), json!(der));
        }
        let agrees = self.expected.map(|_| self.agree());
        line.insert("agrees".to_owned(), json!(agrees));
        let names: Vec<&str> = self.claims.iter().map(|claim| claim.name).collect();
        line.insert("checked".to_owned(), json!(names));
        line.insert("unchecked".to_owned(), json!(self.unchecked));
        format!("{}\n", Value::Object(line))
    }
}

/// Measures the model of an attack's or a defense's cell on the clean and the poisoned test set, computing on `compute`.
///
/// `attack` is the cell that a defense repaired, for when it has been moved; of any other model it is the attack whose
/// test images are to be used, with the trigger and without. `data` is the folder with the datasets.
pub fn verify(
    path: &Path,
    data: Option<&Path>,
    attack: Option<&Path>,
    compute: &Compute,
) -> Result<Verified, Failure> {
    let cell = Cell::load(path)?;
    let attack = match (cell.manifest.kind, attack) {
        (Kind::Attack, Some(named)) => return on_images_of(&cell, named, data, compute),
        (Kind::Attack, None) => cell.clone(),
        (Kind::Defense, named) => find_attack(&cell, named)?,
    };
    // Before the data, which take longer: what names no network is not measured.
    attack.network()?;
    let dataset = open_data(&attack, data)?;
    let poisoned = test_set(&attack, &dataset)?;
    let images = (&dataset, &poisoned);
    // A repair has the network of its attack.
    let found = measure((&cell, MODEL), &attack, images, compute)?;
    let (expected, claims, unchecked) = match cell.manifest.kind {
        Kind::Attack => of_attack(&cell, images)?,
        Kind::Defense => of_defense(&cell, &attack, &found, images, compute)?,
    };
    Ok(Verified {
        found,
        expected: Some(expected),
        der: None,
        claims,
        unchecked,
    })
}

/// The scores of a manifest, what else it claims, and what of that cannot be computed again.
type Claims = (Scores, Vec<Claim>, Vec<&'static str>);

/// What an attack's cell claims beside the scores of its model.
fn of_attack(cell: &Cell, (dataset, poisoned): (&Dataset, &PoisonSet)) -> Result<Claims, Failure> {
    let classes = dataset.spec.classes;
    let mut claims = Vec::new();
    let results = AttackResults::of(cell)?;
    claims.push(Claim::new(
        "poison.test",
        poisoned.len() as u64,
        results.poison.test,
    ));
    if cell.manifest.files.contains_key(POISON_TRAIN) {
        let train = open_set(cell, POISON_TRAIN, &dataset.train, classes)?;
        claims.push(Claim::new(
            "poison.train",
            train.len() as u64,
            results.poison.train,
        ));
    }
    // Of no image there is no class that all of them are to be given.
    if results.target.is_some() && !poisoned.is_empty() {
        claims.push(Claim::new(
            "target",
            json!(dataset.target_of(poisoned)),
            json!(results.target),
        ));
    }
    let unchecked = [
        ("train", results.train.is_some()),
        ("stealth", results.stealth.is_some()),
        (METRICS, cell.manifest.files.contains_key(METRICS)),
    ];
    let unchecked = unchecked
        .iter()
        .filter_map(|(name, there)| there.then_some(*name));
    Ok((results.scores(), claims, unchecked.collect()))
}

/// What a defense's cell claims beside the scores of its model, which are `after`.
fn of_defense(
    cell: &Cell,
    attack: &Cell,
    after: &Scores,
    images: (&Dataset, &PoisonSet),
    compute: &Compute,
) -> Result<Claims, Failure> {
    let results: Results = cell.results()?;
    let before = measure((attack, MODEL), attack, images, compute)?;
    let rating = |value: Option<f64>| json!(value);
    let mut claims = vec![
        Claim::scores("before", &before, &results.before),
        Claim::new("der", rating(der(&before, after)), rating(results.der)),
    ];
    let chosen = results.candidates.iter().find(|c| c.name == results.chosen);
    if let Some(chosen) = chosen {
        claims.push(Claim::scores("chosen", after, &chosen.scores));
    }
    let mut unchecked = Vec::new();
    match &results.oracle {
        Some(oracle) if cell.manifest.files.contains_key(ORACLE) => {
            let found = measure((cell, ORACLE), attack, images, compute)?;
            claims.push(Claim::scores("oracle", &found, &oracle.scores));
        }
        Some(_) => unchecked.push("oracle"),
        None => {}
    }
    // The networks of the other candidates are not kept.
    if results.candidates.len() > 1 || chosen.is_none() {
        unchecked.push("candidates");
    }
    if cell.manifest.files.contains_key(METRICS) {
        unchecked.push(METRICS);
    }
    Ok((results.after, claims, unchecked))
}

/// Measures the model of a cell on the test images of another attack.
fn on_images_of(
    cell: &Cell,
    named: &Path,
    data: Option<&Path>,
    compute: &Compute,
) -> Result<Verified, Failure> {
    let attack = open_suspect(named)?.cell;
    let (ours, theirs) = (&cell.manifest, &attack.manifest);
    let classes = |cell: &Cell| cell.network().ok().and_then(|network| network.classes);
    let number = |n: Option<usize>| n.map_or("unknown".to_owned(), |n| n.to_string());
    for (field, found, expected) in [
        ("the dataset", ours.dataset.clone(), theirs.dataset.clone()),
        (
            "the number of classes",
            number(classes(cell)),
            number(classes(&attack)),
        ),
    ] {
        if found != expected {
            return Err(VerifyError::NotAlike {
                path: cell.dir.clone(),
                named: attack.dir,
                field,
                found,
                expected,
            }
            .into());
        }
    }
    let dataset = open_data(&attack, data)?;
    let poisoned = test_set(&attack, &dataset)?;
    if poisoned.is_empty() {
        return Err(VerifyError::NoTrigger { named: attack.dir }.into());
    }
    let found = measure((cell, MODEL), cell, (&dataset, &poisoned), compute)?;
    let same_data = ours.spec().input(Input::Dataset) == theirs.spec().input(Input::Dataset);
    let expected = same_data.then(|| -> Result<Scores, Failure> {
        Ok(Scores {
            acc: AttackResults::of(cell)?.acc,
            ..found
        })
    });
    Ok(Verified {
        found,
        expected: expected.transpose()?,
        der: der(&AttackResults::of(&attack)?.scores(), &found),
        claims: Vec::new(),
        unchecked: Vec::new(),
    })
}

/// Scores of a model in a cell's file, whose network the settings of `described` describe.
fn measure(
    (cell, file): (&Cell, &'static str),
    described: &Cell,
    (dataset, poisoned): (&Dataset, &PoisonSet),
    compute: &Compute,
) -> Result<Scores, Failure> {
    let Network { arch, width, .. } = described.network()?;
    let arch = ArchSpec::for_dataset(&arch, width, &dataset.spec)?;
    let path = cell.listed(file)?;
    let (_, net) = network::load(&path, &arch)?;
    let mut net = net.on(compute)?;
    eval::scores(&mut net, &dataset.test, poisoned, &dataset.spec)
        .map_err(network::scores_of(&path))
}

/// The poisoned test images of an attack's cell, which are to be taken for what they do not show.
fn test_set(attack: &Cell, dataset: &Dataset) -> Result<PoisonSet, Failure> {
    let set = open_set(attack, POISON_TEST, &dataset.test, dataset.spec.classes)?;
    set.check_attacked()
        .map_err(network::images_in(&attack.file(POISON_TEST)))?;
    Ok(set)
}

/// The poisoned images of an attack's cell in the file `name`, which fit a split of its dataset.
pub(crate) fn open_set(
    attack: &Cell,
    name: &'static str,
    split: &Split,
    classes: usize,
) -> Result<PoisonSet, Failure> {
    let path = attack.listed(name)?;
    let set = PoisonSet::load(&path)?;
    set.check_beside(split, classes)
        .map_err(network::images_in(&path))?;
    // Our own attacks made them of this very data, by whatever trigger.
    if attack.is_imported() {
        rows::check(&set, split).map_err(network::images_in(&path))?;
    }
    Ok(set)
}

/// The dataset that an attack's cell was made with; `data` is the folder with the datasets.
pub(crate) fn open_data(attack: &Cell, data: Option<&Path>) -> Result<Dataset, Failure> {
    let id = &attack.manifest.dataset;
    let dataset = data::open(id, data, &options_of(attack, None)?)?;
    let digest = attack.input(Input::Dataset)?;
    if dataset.digest != digest {
        let (id, expected, found) = (id.clone(), digest.to_owned(), dataset.digest);
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
    let digest = defense.input(Input::Attack)?;
    let not_found = || VerifyError::NoAttack {
        path: defense.dir.clone(),
        digest: digest.to_owned(),
    };
    if let Some(named) = named {
        let cell = Cell::load(named)?;
        let found = cell.digest();
        if found != *digest {
            return Err(VerifyError::OtherAttack {
                named: named.to_owned(),
                path: defense.dir.clone(),
                expected: digest.to_owned(),
                found,
            }
            .into());
        }
        return Ok(cell);
    }
    let mut places: Vec<PathBuf> = Vec::new();
    places.extend(Env::read(defense).and_then(|env| env.attack_cell));
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
    // No link: it could lead anywhere.
    let folders = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut found: Vec<PathBuf> = folders.map(|e| e.path()).collect();
    found.sort();
    found
}
