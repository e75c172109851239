//! What is in a file of tensors, whatever its format: a record of BackdoorBench, a state dictionary, safetensors.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bb_core::cell::MANIFEST;
use bb_core::cli::Failure;
use bb_nn::StateDict;
use bb_zoo::torch::pickle::Value;
use bb_zoo::torch::{AttackResult, Checkpoint, NamedTensor, attack};

use super::{ATTACK_RESULT, ZooError, tensors};
use crate::network;

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
    /// The tensors.
    pub(super) state: Vec<NamedTensor>,
    /// The poisoned sets of a record; its `state` has moved to the field above.
    pub(super) sets: Option<AttackResult>,
}

/// Reads whatever kind of checkpoint it is, by its first bytes.
pub(super) fn read(path: &Path) -> Result<Found, Failure> {
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
    if is_safetensors(&file)? {
        return read_safetensors(file);
    }
    let checkpoint = Checkpoint::open(&file)?;
    let entries = checkpoint.pickle().dict(&checkpoint.pickle().root);
    let find = |name: &str| {
        let is = |entry: &&(Value, Value)| matches!(&entry.0, Value::Text(t) if &**t == name);
        Some(&entries?.iter().rev().find(is)?.1)
    };
    if find("bd_test").is_some() {
        let mut sets = AttackResult::of(&checkpoint)?;
        return Ok(Found {
            file,
            format: PYTORCH,
            model_name: Some(sets.model_name.clone()),
            dataset: Some(sets.dataset.clone()),
            classes: Some(("num_classes", sets.classes)),
            state: std::mem::take(&mut sets.state),
            sets: Some(sets),
        });
    }
    // What a defense of the bench saves, or a state dictionary alone.
    let text = |value: Option<&Value>| match value {
        Some(Value::Text(text)) => Some(text.to_string()),
        _ => None,
    };
    let number = |value: Option<&Value>| match value {
        Some(Value::Int(n)) => usize::try_from(*n).ok(),
        _ => None,
    };
    let (field, model) = match find("model") {
        Some(model) if checkpoint.pickle().dict(model).is_some() => ("model", model),
        _ => ("", &checkpoint.pickle().root),
    };
    Ok(Found {
        model_name: text(find("model_name")),
        dataset: None,
        classes: number(find("num_classes")).map(|n| ("num_classes", n)),
        state: attack::state(&checkpoint, field, model)?,
        sets: None,
        format: PYTORCH,
        file,
    })
}

/// The word in a cell's settings for PyTorch's two formats.
const PYTORCH: &str = "pytorch";

/// Whether a file begins as safetensors do: with the length of a header, and its brace.
fn is_safetensors(file: &Path) -> std::io::Result<bool> {
    let mut head = Vec::new();
    fs_err::File::open(file)?.take(9).read_to_end(&mut head)?;
    Ok(head.get(8) == Some(&b'{') && !head.starts_with(b"PK"))
}

/// A network as safetensors; a file of ours names its architecture.
fn read_safetensors(file: PathBuf) -> Result<Found, Failure> {
    let bytes = fs_err::read(&file)?;
    let metadata = StateDict::metadata(&bytes, &file)?;
    let state = StateDict::from_bytes(&bytes, &file).map_err(network::in_file(&file))?;
    let mut state = tensors::named(&state).map_err(network::in_file(&file))?;
    for tensor in &mut state {
        if let Some(name) = tensor.name.strip_prefix("module.") {
            tensor.name = name.to_owned();
        }
    }
    Ok(Found {
        format: "safetensors",
        model_name: metadata.get("arch").cloned(),
        dataset: metadata.get("dataset").cloned(),
        classes: metadata
            .get("classes")
            .and_then(|n| n.parse().ok())
            .map(|n| ("classes", n)),
        state,
        sets: None,
        file,
    })
}
