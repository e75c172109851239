//! Models that strangers published, as ordinary cells of an attack.
//!
//! A folder that BackdoorBench left (`attack_result.pt` and the pictures beside it) becomes a cell on which every
//! defense works; so does a bare state dictionary, as the cell of a network without a backdoor.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bb_attack::picture::Picture;
use bb_core::artifact::{atomic, sha256_file, sha256_hex};
use bb_core::cell::{
    self, Cell, CellSpec, ENV, Kind, MANIFEST, MODEL, Opened, POISON_TEST, POISON_TRAIN,
};
use bb_core::cli::Failure;
use bb_core::data::{self, Dataset, Images, OpenOptions, Split};
use bb_core::events::{Log, env_facts};
use bb_core::poison::PoisonSet;
use bb_nn::{ArchSpec, Compute, Net, StateDict, eval};
use bb_zoo::torch::pickle::Value;
use bb_zoo::torch::{AttackResult, Checkpoint, DatasetState, NamedTensor, attack};
use serde_json::json;

use super::{ATTACK_RESULT, Report, Rules, ZooError, tensors};
use crate::network;

/// What is to be imported.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// A folder with `attack_result.pt`, that file, or a file with a state dictionary (PyTorch's, or safetensors).
    pub path: PathBuf,
    /// Name of the dataset.
    pub dataset: String,
    /// Folder with the datasets.
    pub data: Option<PathBuf>,
    /// Name of the architecture, for a bare state dictionary.
    pub arch: Option<String>,
    /// Name of the attack that the cell is filed under.
    pub attack: Option<String>,
    /// How its tensors are renamed, if they have other names than the architecture's.
    pub rules: Rules,
    /// A JSON file for the five lists of [`Report`], written also when the tensors do not fit.
    pub report: Option<PathBuf>,
    /// Folder for the results.
    pub out: PathBuf,
}

/// A network and poisoned sets, from whatever kind of file.
pub(super) struct Found {
    file: PathBuf,
    format: &'static str,
    model_name: Option<String>,
    /// Name of the dataset, if the file says it.
    dataset: Option<String>,
    /// The field that says how many classes there are, and what it says.
    classes: Option<(&'static str, usize)>,
    pub(super) state: Vec<NamedTensor>,
    sets: Option<AttackResult>,
}

/// Makes a cell of a published model; one that was made before is verified and returned.
pub fn import(request: &ImportRequest, compute: &Compute) -> Result<(Cell, Report), Failure> {
    let mut found = read(&request.path)?;
    let tensors = std::mem::take(&mut found.state);
    let (kept, ignored) = request.rules.apply(&found.file, tensors)?;
    found.state = kept;
    let named = found.dataset.take();
    if let Some(named) = named.filter(|named| *named != request.dataset) {
        return Err(ZooError::Dataset {
            path: found.file,
            found: named,
            expected: request.dataset.clone(),
        }
        .into());
    }
    let (dataset, limits) = open_data(request, &found)?;
    if let Some((field, classes)) = found.classes
        && classes != dataset.spec.classes
    {
        return Err(ZooError::Fit {
            path: found.file,
            field: field.to_owned(),
            found: classes.to_string(),
            expected: dataset.spec.classes.to_string(),
        }
        .into());
    }
    let spec = arch(request, &found, dataset.spec.classes)?;
    let (state, mut report) = tensors::matched(&found.state, &spec)?;
    report.ignored.splice(..0, ignored);
    if let Some(path) = &request.report {
        atomic::write(path, format!("{:#}\n", report.to_json()))?;
    }
    if !report.is_clean() {
        return Err(ZooError::Tensors {
            path: found.file,
            arch: spec.label(),
            report: report.to_string(),
        }
        .into());
    }
    let net = Net::from_state(&spec, &state).map_err(network::in_file(&found.file))?;
    let (train, test) = sets(&found, &dataset)?;
    for (set, split) in [(&train, &dataset.train), (&test, &dataset.test)] {
        set.check(split.len(), dataset.spec.classes)
            .map_err(network::images_in(&found.file))?;
    }
    let (train_bytes, test_bytes) = (train.to_bytes(), test.to_bytes());

    let default = if found.sets.is_some() {
        "imported"
    } else {
        "clean"
    };
    let method = request.attack.as_deref().unwrap_or(default);
    let mut imported = json!({ "format": found.format, "model_name": found.model_name });
    // Only where there are some, so that the name of a cell does not depend on what was not asked for.
    let Rules { rename, ignore } = &request.rules;
    if !rename.is_empty() {
        imported["rename"] = json!(rename);
    }
    if !ignore.is_empty() {
        imported["ignore"] = json!(ignore);
    }
    let cell = CellSpec {
        kind: Kind::Attack,
        method: method.to_owned(),
        dataset: request.dataset.clone(),
        arch: spec.label(),
        settings: json!({
            "imported": imported,
            "data": {
                "dataset": request.dataset, "train_limit": limits.0, "test_limit": limits.1,
            },
            "model": { "arch": spec.name(), "width": spec.width(), "classes": spec.classes() },
            "compute": { "precision": "f32" },
        }),
        inputs: BTreeMap::from([
            ("dataset".to_owned(), dataset.digest.clone()),
            ("checkpoint".to_owned(), sha256_file(&found.file)?),
            ("poison_train".to_owned(), sha256_hex(&train_bytes)),
            ("poison_test".to_owned(), sha256_hex(&test_bytes)),
        ]),
        seed: 0,
    };
    let work = match cell::open(&request.out, &cell)? {
        Opened::Complete(cell) => return Ok((*cell, report)),
        Opened::Work(work) => work,
    };
    let metadata = [
        ("arch", spec.name().to_owned()),
        ("width", spec.width().to_string()),
        ("classes", spec.classes().to_string()),
        ("dataset", request.dataset.clone()),
        ("method", method.to_owned()),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    // Before anything is measured, because NaN is refused here.
    let model = state
        .to_bytes(&metadata)
        .map_err(network::in_file(&found.file))?;
    let mut net = net.on(compute)?;
    let scores = eval::scores(&mut net, &dataset.test, &test, &dataset.spec);
    net.take_failure()?;
    let mut facts = env_facts();
    facts["device"] = json!(compute.name());
    facts["imported_from"] = json!(std::path::absolute(&found.file)?);
    work.write(ENV, facts.to_string().as_bytes())?;
    work.write(MODEL, &model)?;
    work.write(POISON_TRAIN, &train_bytes)?;
    work.write(POISON_TEST, &test_bytes)?;
    let some = |ratio| (!test.is_empty()).then_some(ratio);
    let cell = work.finish(json!({
        "acc": scores.acc,
        "asr": some(scores.asr),
        "ra": some(scores.ra),
        "poison": { "train": train.len(), "test": test.len() },
        "tensors": {
            "loaded": report.loaded.len(), "ignored": report.ignored.len(),
        },
    }))?;
    Ok((cell, report))
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

/// Limits on the first images of the two splits.
type Limits = (Option<usize>, Option<usize>);

/// The dataset, cut to the images that the checkpoint was made from.
fn open_data(request: &ImportRequest, found: &Found) -> Result<(Dataset, Limits), Failure> {
    let open = |train_limit, test_limit| {
        let options = OpenOptions {
            cache_dir: Some(request.out.join("cache")),
            train_limit,
            test_limit,
            test_split: None,
            seed: 0,
        };
        data::open(&request.dataset, request.data.as_deref(), &options)
    };
    let whole = open(None, None)?;
    whole.describe(&Log::new(false))?;
    let Some(sets) = &found.sets else {
        return Ok((whole, (None, None)));
    };
    let fit = |field: &str, found_there: String, expected: String| ZooError::Fit {
        path: found.file.clone(),
        field: field.to_owned(),
        found: found_there,
        expected,
    };
    let spec = &whole.spec;
    if sets.image != (spec.height, spec.width) {
        let size = |(h, w): (usize, usize)| format!("{h} x {w}");
        let expected = size((spec.height, spec.width));
        return Err(fit("img_size", size(sets.image), expected).into());
    }
    let limit = |field, state: Option<&DatasetState>, split: &Split| match state {
        Some(state) if state.images > split.len() => {
            let (found, expected) = (format!("{} images", state.images), split.len().to_string());
            Err(fit(field, found, expected))
        }
        Some(state) if state.images < split.len() => Ok(Some(state.images)),
        _ => Ok(None),
    };
    let train = limit("bd_train", sets.train.as_ref(), &whole.train)?;
    let test = limit("bd_test", Some(&sets.test), &whole.test)?;
    if (train, test) == (None, None) {
        return Ok((whole, (None, None)));
    }
    Ok((open(train, test)?, (train, test)))
}

/// The architecture by name, with its width read off the first convolution.
fn arch(request: &ImportRequest, found: &Found, classes: usize) -> Result<ArchSpec, Failure> {
    let name = request.arch.as_ref().or(found.model_name.as_ref());
    let Some(name) = name else {
        return Err(ZooError::NoArch {
            path: found.file.clone(),
        }
        .into());
    };
    if !bb_nn::arch::NAMES.contains(&name.as_str()) {
        return Err(ZooError::Arch {
            path: found.file.clone(),
            found: name.clone(),
            known: bb_nn::arch::NAMES.join(", "),
        }
        .into());
    }
    Ok(tensors::spec(name, classes, &found.state)?)
}

/// The poisoned training and test images.
fn sets(found: &Found, dataset: &Dataset) -> Result<(PoisonSet, PoisonSet), Failure> {
    let empty = |split: &Split| {
        let images = Images::new(0, split.images.height(), split.images.width(), Vec::new())?;
        Ok::<_, Failure>(PoisonSet::new(Vec::new(), images, Vec::new(), Vec::new())?)
    };
    let Some(sets) = &found.sets else {
        return Ok((empty(&dataset.train)?, empty(&dataset.test)?));
    };
    let train = match &sets.train {
        Some(state) => poison_set(found, "bd_train", state, &dataset.train)?,
        None => empty(&dataset.train)?,
    };
    let test = poison_set(found, "bd_test", &sets.test, &dataset.test)?;
    // The attack success rate is defined over the other classes; the benchmark leaves these images out, too.
    let mut labels = test.labels.iter().zip(&test.original_labels);
    if let Some(row) = labels.position(|(attacked, is)| attacked == is) {
        return Err(ZooError::Target {
            path: found.file.clone(),
            index: test.indices[row],
            label: test.labels[row],
        }
        .into());
    }
    Ok((train, test))
}

fn poison_set(
    found: &Found,
    field: &str,
    state: &DatasetState,
    split: &Split,
) -> Result<PoisonSet, Failure> {
    let folder = found.file.parent().unwrap_or(Path::new("."));
    let (height, width) = (split.images.height(), split.images.width());
    let mut pixels = Vec::with_capacity(state.records.len() * height * width * 3);
    for record in &state.records {
        let (said, is) = (record.original, split.labels[record.index]);
        if said != is {
            return Err(ZooError::Fit {
                path: found.file.clone(),
                field: format!("{field}: label of image {}", record.index),
                found: said.to_string(),
                expected: is.to_string(),
            }
            .into());
        }
        let path = folder.join(record.file());
        let picture = Picture::read_sized(&path, height, width).map_err(ZooError::from)?;
        pixels.extend_from_slice(picture.pixels());
    }
    let records = &state.records;
    Ok(PoisonSet::new(
        records.iter().map(|r| r.index).collect(),
        Images::new(records.len(), height, width, pixels)?,
        records.iter().map(|r| r.label).collect(),
        records.iter().map(|r| r.original).collect(),
    )?)
}
