//! What is in a file of tensors, whatever its format: a record of BackdoorBench, a state dictionary, safetensors.
//!
//! People save a network by itself, or below a key of their choice beside counters and optimizers. It is found by itself
//! where one dictionary of tensors alone can be meant; else the keys are listed, and the user names one.

use std::path::{Path, PathBuf};

use bb_core::cell::MANIFEST;
use bb_core::cli::Failure;
use bb_core::files::{self, Links};
use bb_core::json;
use bb_nn::StateDict;
use bb_zoo::safetensors::{Safetensors, is_safetensors};
use bb_zoo::torch::pickle::{Object, Value, short};
use bb_zoo::torch::{AttackResult, Checkpoint, NamedTensor, Place, attack, nested};

use super::export::MODEL_JSON;
use super::{ATTACK_RESULT, Rules, ZooError, tensors};

/// Which network of a file is meant.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted<'a> {
    /// Dotted keys that lead to it.
    pub(super) key: Option<&'a str>,
    /// Its architecture.
    pub(super) arch: Option<&'a str>,
    /// How its names become the architecture's.
    pub(super) rules: Option<&'a Rules>,
}

/// A network and poisoned sets, from whatever kind of file.
pub(super) struct Found {
    /// The file that was read.
    pub(super) file: PathBuf,
    /// The word for its format in a cell's settings.
    pub(super) format: &'static str,
    /// Name of the architecture, if the file says it.
    pub(super) model_name: Option<String>,
    /// Name of the dataset, if the file says it.
    pub(super) dataset: Option<String>,
    /// The field that says how many classes there are, and what it says.
    pub(super) classes: Option<(&'static str, usize)>,
    /// The tensors, under the names that they have in the file.
    pub(super) state: Vec<NamedTensor>,
    /// Names of all tensors, before any rule.
    pub(super) names: Vec<String>,
    /// The poisoned sets of a record; its `state` has moved to the field above.
    pub(super) sets: Option<AttackResult>,
    /// What the `model.json` beside it says of it, for what nobody else says.
    pub(super) described: Option<Described>,
}

impl Found {
    /// The architectures whose tensors have the names of the file's.
    pub(super) fn archs(&self) -> Result<Vec<&'static str>, Failure> {
        let mut fitting = Vec::new();
        for &arch in bb_nn::arch::NAMES {
            let names = self.state.iter().map(|tensor| tensor.name.as_str());
            if tensors::are_names(names, &tensors::names_of(arch)?) {
                fitting.push(arch);
            }
        }
        Ok(fitting)
    }
}

/// The word in a cell's settings for PyTorch's two formats.
const PYTORCH: &str = "pytorch";

/// Reads whatever kind of checkpoint it is, by its first bytes.
pub(super) fn read(path: &Path, wanted: Wanted<'_>) -> Result<Found, Failure> {
    let file = file_of(path)?;
    if is_safetensors(&file)? {
        return read_safetensors(file, wanted);
    }
    let checkpoint = Checkpoint::open(&file)?;
    let find = |name: &str| entry(&checkpoint, name);
    if wanted.key.is_none() && find("bd_test").is_some() {
        let mut sets = AttackResult::of(&checkpoint)?;
        return Ok(Found {
            file,
            format: PYTORCH,
            model_name: Some(sets.model_name.clone()),
            dataset: Some(sets.dataset.clone()),
            classes: Some(("num_classes", sets.classes)),
            state: std::mem::take(&mut sets.state),
            names: Vec::new(),
            sets: Some(sets),
            described: None,
        });
    }
    // What a defense of the bench saves, or whatever people save.
    let text = |value: Option<&Value>| match value {
        Some(Value::Text(text)) => Some(text.to_string()),
        _ => None,
    };
    let number = |value: Option<&Value>| match value {
        Some(Value::Int(n)) => usize::try_from(*n).ok(),
        _ => None,
    };
    let described = Described::beside(&file);
    let model_name = text(find("model_name"));
    let said = [
        wanted.arch,
        model_name.as_deref(),
        described.as_ref().and_then(|it| it.arch.as_deref()),
    ];
    let wanted = Wanted {
        arch: said.into_iter().flatten().next(),
        ..wanted
    };
    let (field, network) = network(&checkpoint, wanted)?.ok_or_else(|| no_network(&checkpoint))?;
    Ok(Found {
        model_name,
        dataset: None,
        classes: number(find("num_classes")).map(|n| ("num_classes", n)),
        state: attack::state(&checkpoint, &field, network)?,
        names: Vec::new(),
        sets: None,
        format: PYTORCH,
        described,
        file,
    })
}

/// The file of tensors that is meant by a path.
pub(super) fn file_of(path: &Path) -> Result<PathBuf, Failure> {
    let mut file = path.to_owned();
    if path.is_dir() {
        file.push(ATTACK_RESULT);
        if !file.exists() {
            return Err(ZooError::NoResult {
                path: path.to_owned(),
                cell: path.join(MANIFEST).exists(),
            }
            .into());
        }
    }
    Ok(file)
}

/// The value under a key at the top; of several the last one, as in Python.
pub(super) fn entry<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<&'a Value> {
    let entries = checkpoint.pickle().dict(&checkpoint.pickle().root)?;
    let is = |entry: &&(Value, Value)| matches!(&entry.0, Value::Text(t) if &**t == name);
    Some(&entries.iter().rev().find(is)?.1)
}

/// The network that is meant, with its dotted key; nothing where there is no dictionary of tensors alone.
///
/// # Errors
/// A key that leads to none, and several dictionaries that may be meant.
pub(super) fn network<'a>(
    checkpoint: &'a Checkpoint,
    wanted: Wanted<'_>,
) -> Result<Option<(String, &'a Value)>, Failure> {
    let pickle = checkpoint.pickle();
    let places = nested::places(checkpoint);
    let keys = |places: &[&Place<'_>]| -> Vec<String> {
        places.iter().map(|place| place.key.clone()).collect()
    };
    let path = || checkpoint.path().to_owned();
    if let Some(key) = wanted.key {
        let found = nested::at(checkpoint, key).filter(|value| pickle.dict(value).is_some());
        let Some(found) = found else {
            return Err(ZooError::Key {
                path: path(),
                key: short(key),
                keys: keys(&places.iter().collect::<Vec<_>>()),
            }
            .into());
        };
        return Ok(Some((key.to_owned(), found)));
    }
    let take = |place: &Place<'a>| Ok(Some((place.key.clone(), place.value)));
    if let [one] = &places[..] {
        return take(one);
    }
    if places.is_empty() {
        return Ok(None);
    }
    let archs = match wanted.arch {
        Some(arch) if bb_nn::arch::NAMES.contains(&arch) => vec![arch],
        _ => bb_nn::arch::NAMES.to_vec(),
    };
    let archs: Vec<Vec<String>> = archs
        .into_iter()
        .map(tensors::names_of)
        .collect::<Result<_, _>>()?;
    let rules = wanted.rules.cloned().unwrap_or_default();
    let fits = |place: &&Place<'_>| {
        let names = place.tensors.iter();
        let names: Vec<String> = names.filter_map(|(name, _)| rules.rename(name)).collect();
        let are = |arch: &Vec<String>| tensors::are_names(names.iter().map(String::as_str), arch);
        archs.iter().any(are)
    };
    let fitting: Vec<&Place<'_>> = places.iter().filter(fits).collect();
    match &fitting[..] {
        [one] => take(one),
        [] => Err(ZooError::Keys {
            path: path(),
            fit: false,
            keys: keys(&places.iter().collect::<Vec<_>>()),
        }
        .into()),
        several => Err(ZooError::Keys {
            path: path(),
            fit: true,
            keys: keys(several),
        }
        .into()),
    }
}

/// Why a file without a dictionary of tensors alone is refused.
pub(super) fn no_network(checkpoint: &Checkpoint) -> Failure {
    let pickle = checkpoint.pickle();
    let entries = pickle.dict(&pickle.root).unwrap_or_default();
    let has_tensors = entries
        .iter()
        .any(|(_, value)| matches!(pickle.object(value), Some(Object::Tensor(_))));
    // Among tensors, or instead of a dictionary, is something else.
    if (has_tensors || pickle.dict(&pickle.root).is_none())
        && let Err(error) = nested::place(checkpoint, "", &pickle.root)
    {
        return error.into();
    }
    let inner = entries.iter().filter_map(|(key, value)| match key {
        Value::Text(key) if pickle.dict(value).is_some() => Some(short(key)),
        _ => None,
    });
    ZooError::NoTensors {
        path: checkpoint.path().to_owned(),
        keys: inner.collect(),
    }
    .into()
}

/// A network as safetensors; a file of ours names its architecture.
fn read_safetensors(path: PathBuf, wanted: Wanted<'_>) -> Result<Found, Failure> {
    let file = Safetensors::open(&path)?;
    if let Some(key) = wanted.key {
        return Err(ZooError::Key {
            path,
            key: short(key),
            keys: Vec::new(),
        }
        .into());
    }
    let metadata = StateDict::metadata(file.bytes(), &path)?;
    Ok(Found {
        format: "safetensors",
        model_name: metadata.get("arch").cloned(),
        dataset: metadata.get("dataset").cloned(),
        classes: metadata
            .get("classes")
            .and_then(|n| n.parse().ok())
            .map(|n| ("classes", n)),
        state: file.tensors()?,
        names: Vec::new(),
        sets: None,
        described: Described::beside(&path),
        file: path,
    })
}

/// What the `model.json` of an export says.
#[derive(Clone, Debug, Default)]
pub(super) struct Described {
    /// Name of the architecture.
    pub(super) arch: Option<String>,
    /// Name of the dataset.
    pub(super) dataset: Option<String>,
    /// Name of the attack, if it was an attack's network.
    pub(super) attack: Option<String>,
}

impl Described {
    /// Largest description, in bytes.
    const LARGEST: u64 = 1 << 20;

    /// What lies beside a file and is said of it.
    pub(super) fn beside(file: &Path) -> Option<Self> {
        let path = file.with_file_name(MODEL_JSON);
        let bytes = files::read(path, Links::Follow, Self::LARGEST).ok()?;
        let json: serde_json::Value = json::from_slice(&bytes, json::MOST_VALUES).ok()?;
        let name = file.file_name()?.to_str()?;
        if json["format"] != "bb-model-1" || json["tensors"] != name {
            return None;
        }
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let cell = &json["cell"];
        Some(Self {
            arch: text(&json["arch"]),
            dataset: text(&cell["dataset"]),
            attack: text(&cell["method"]).filter(|_| cell["kind"] == "attack"),
        })
    }
}
