//! Networks that others repaired, as cells of a defense.
//!
//! BackdoorBench's `defense_result.pt` holds the network alone; the poisoned test images are those of the attack that it
//! was made from, whose cell is named. Both networks are measured anew, on the same images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bb_core::artifact::sha256_file;
use bb_core::cell::contract::{self, Input, Network};
use bb_core::cell::env::{self, Clock, Env};
use bb_core::cell::{self, Cell, CellSpec, Kind, MODEL, Opened};
use bb_core::cli::{Coded, Failure, exit};
use bb_defense::harness::{SuspectCell, open_data, open_suspect};
use bb_defense::results::Results;
use bb_nn::{ArchSpec, Compute, eval};
use serde_json::json;

use super::import::{fitted, origin, renamed};
use super::source::Wanted;
use super::{Report, Rules};
use crate::network;

/// Name of a defense that is not named.
pub const UNNAMED: &str = "imported";

/// What is to be imported.
#[derive(Clone, Debug, Default)]
pub struct RepairedRequest {
    /// A file with a state dictionary (PyTorch's, or safetensors), such as `defense_result.pt`.
    pub path: PathBuf,
    /// Folder or manifest of the attack that was repaired.
    pub attack: PathBuf,
    /// Name of the defense that the cell is filed under; [`UNNAMED`] without one.
    pub defense: Option<String>,
    /// Name of the dataset, if it is to be compared with the attack's.
    pub dataset: Option<String>,
    /// Folder with the datasets.
    pub data: Option<PathBuf>,
    /// Dotted keys that lead to the network in a file with more than one.
    pub key: Option<String>,
    /// How its tensors are renamed, if they have other names than the architecture's.
    pub rules: Rules,
    /// A JSON file for the five lists of [`Report`], written also when the tensors do not fit.
    pub report: Option<PathBuf>,
    /// Folder for the results.
    pub out: PathBuf,
}

/// Why a file cannot become the cell of a defense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairedError {
    /// The file is an attack's.
    #[error("`{}` is the record of an attack, expected the network that a defense made of it", path.display())]
    Attack {
        /// The file.
        path: PathBuf,
    },
    /// The cell has no trigger.
    #[error("the model of `{}` has no poisoned test image, expected the cell of an attack", path.display())]
    NoTrigger {
        /// The cell.
        path: PathBuf,
    },
    /// File and cell are of different kinds.
    #[error("`{}`: `{field}` is {found}, the attack of `{}` has {expected}", path.display(), attack.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// The cell of the attack.
        attack: PathBuf,
        /// What differs.
        field: &'static str,
        /// What the file, or the command line, says.
        found: String,
        /// What the attack has.
        expected: String,
    },
    /// Another repair of the attack has the name, and a table would show only one of them.
    #[error("another repair of this attack was imported as `{name}` before: `{}`", path.display())]
    Taken {
        /// The name.
        name: String,
        /// The cell that has it.
        path: PathBuf,
    },
}

impl Coded for RepairedError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Attack { .. } | Self::NoTrigger { .. } | Self::Other { .. } => exit::INPUT,
            Self::Taken { .. } => exit::USAGE,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Attack { .. } => Some("import it without `--attack-cell`".to_owned()),
            Self::NoTrigger { .. } => Some(
                "give the cell that `bb-attack` or `bb-eval zoo import` made of the attack"
                    .to_owned(),
            ),
            Self::Other { .. } => None,
            Self::Taken { .. } => Some("name this one with `--defense NAME`".to_owned()),
        }
    }
}

/// Makes a defense's cell of a repaired network; one that was made before is verified and returned.
///
/// # Errors
/// A file that is no network like the attack's, and an attack without a trigger.
pub fn import_repaired(
    request: &RepairedRequest,
    compute: &Compute,
) -> Result<(Cell, Report), Failure> {
    let clock = Clock::start();
    let SuspectCell {
        cell: attack,
        network: Network { arch, width, .. },
    } = open_suspect(&request.attack)?;
    let wanted = Wanted {
        key: request.key.as_deref(),
        arch: Some(&arch),
        rules: Some(&request.rules),
    };
    let (found, ignored) = renamed(&request.path, wanted)?;
    if found.sets.is_some() {
        return Err(RepairedError::Attack { path: found.file }.into());
    }
    let manifest = &attack.manifest;
    let other = |field, found_there: &str, expected: &str| RepairedError::Other {
        path: found.file.clone(),
        attack: attack.dir.clone(),
        field,
        found: found_there.to_owned(),
        expected: expected.to_owned(),
    };
    for (field, said, expected) in [
        ("--dataset", &request.dataset, &manifest.dataset),
        ("dataset", &found.dataset, &manifest.dataset),
        ("model_name", &found.model_name, &arch),
    ] {
        if let Some(said) = said.as_ref().filter(|said| *said != expected) {
            return Err(other(field, said, expected).into());
        }
    }
    let cache = request.out.join("cache");
    let (dataset, poisoned) = open_data(&attack, request.data.as_deref(), Some(&cache))?;
    if poisoned.is_empty() {
        return Err(RepairedError::NoTrigger { path: attack.dir }.into());
    }
    let classes = dataset.spec.classes;
    if let Some((field, said)) = found.classes.filter(|(_, said)| *said != classes) {
        return Err(other(field, &said.to_string(), &classes.to_string()).into());
    }
    let spec = ArchSpec::new(&arch, width, classes)?;
    let (state, net, report) = fitted(
        &found,
        &spec,
        (&request.rules, ignored),
        request.report.as_deref(),
    )?;

    let method = request.defense.as_deref().unwrap_or(UNNAMED);
    let cell = CellSpec {
        kind: Kind::Defense,
        method: method.to_owned(),
        dataset: manifest.dataset.clone(),
        arch: manifest.arch.clone(),
        settings: json!({
            "imported": origin(&found, wanted),
            "compute": contract::Compute::default(),
        }),
        inputs: BTreeMap::from([
            (Input::Attack.name().to_owned(), attack.digest()),
            (Input::Dataset.name().to_owned(), dataset.digest.clone()),
            ("checkpoint".to_owned(), sha256_file(&found.file)?),
        ]),
        seed: 0,
    };
    free(&cell, request)?;
    let work = match cell::open(&request.out, &cell)? {
        Opened::Complete(cell) => return Ok((*cell, report)),
        Opened::Work(work) => work,
    };
    let metadata = [
        ("arch", spec.name().to_owned()),
        ("width", spec.width().to_string()),
        ("classes", classes.to_string()),
        ("dataset", manifest.dataset.clone()),
        ("method", method.to_owned()),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    // Before anything is measured, because NaN is refused here.
    let model = state
        .to_bytes(&metadata)
        .map_err(network::in_file(&found.file))?;
    let path = attack.listed(MODEL)?;
    let (_, suspect) = network::load(&path, &spec)?;
    let measure = |net: bb_nn::Net, file: &Path| {
        let mut net = net.on(compute)?;
        eval::scores(&mut net, &dataset.test, &poisoned, &dataset.spec)
            .map_err(network::scores_of(file))
    };
    let before = measure(suspect, &path)?;
    let after = measure(net, &found.file)?;
    let env = Env {
        imported_from: Some(env::absolute(&found.file)),
        attack_cell: Some(env::absolute(&attack.dir)),
        ..compute.env()
    };
    env.after(clock).write(&work)?;
    work.write(MODEL, &model)?;
    let cell = work.finish(json!(Results::of_another(before, after, method)))?;
    Ok((cell, report))
}

/// Checks that no other repair of the same attack was imported under the name: a table would show one of the two.
fn free(spec: &CellSpec, request: &RepairedRequest) -> Result<(), Failure> {
    let own = spec.dir(&request.out);
    let Some(folder) = own.parent().filter(|folder| folder.is_dir()) else {
        return Ok(());
    };
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        // One that is damaged is in no table.
        let Some(other) = Cell::load(&path).ok().filter(|_| path != own) else {
            continue;
        };
        if other.manifest.settings == spec.settings
            && other.manifest.spec().input(Input::Attack) == spec.input(Input::Attack)
        {
            let name = spec.method.clone();
            return Err(RepairedError::Taken { name, path }.into());
        }
    }
    Ok(())
}
