//! Models that strangers published, as ordinary cells of an attack.
//!
//! A folder that BackdoorBench left (`attack_result.pt` and the pictures beside it) becomes a cell on which every
//! defense works; so does a bare state dictionary, as the cell of a network without a backdoor.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bb_attack::picture::{Picture, PictureError};
use bb_core::artifact::{sha256_file, sha256_hex};
use bb_core::cell::{self, Cell, CellSpec, ENV, Kind, MODEL, Opened, POISON_TEST, POISON_TRAIN};
use bb_core::cli::{Coded, Failure, exit};
use bb_core::data::{self, Dataset, Images, OpenOptions, Split};
use bb_core::events::env_facts;
use bb_core::poison::PoisonSet;
use bb_nn::{ArchSpec, Compute, Net, StateDict, eval};
use bb_zoo::torch::pickle::{Object, Value};
use bb_zoo::torch::{AttackResult, Checkpoint, DatasetState, TensorData, attack};
use candle_core::{Device, Tensor};
use serde_json::json;

/// Name of BackdoorBench's checkpoint in its folder.
pub const ATTACK_RESULT: &str = "attack_result.pt";

/// What is to be imported.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// A folder with `attack_result.pt`, that file, or a file with a state dictionary.
    pub path: PathBuf,
    /// Name of the dataset.
    pub dataset: String,
    /// Folder with the datasets.
    pub data: Option<PathBuf>,
    /// Name of the architecture, for a bare state dictionary.
    pub arch: Option<String>,
    /// Name of the attack that the cell is filed under.
    pub attack: Option<String>,
    /// Folder for the results.
    pub out: PathBuf,
}

/// Why a model cannot be imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZooError {
    /// The checkpoint is of another dataset.
    #[error("`{}` is a model for `{found}`, expected `{expected}`", path.display())]
    Dataset {
        /// The checkpoint.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// The checkpoint's numbers do not fit the dataset.
    #[error("`{}`: `{field}` is {found}, the dataset has {expected}", path.display())]
    Fit {
        /// The checkpoint.
        path: PathBuf,
        /// The field.
        field: String,
        /// What it says.
        found: String,
        /// What the dataset has.
        expected: String,
    },
    /// The architecture of a bare state dictionary is not known.
    #[error("`{}` does not say what network it belongs to", path.display())]
    NoArch {
        /// The file.
        path: PathBuf,
    },
    /// No architecture of that name.
    #[error("`{}` is a `{found}`, expected one of {known}", path.display())]
    Arch {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// The known names.
        known: String,
    },
    /// The tensors are not those of the architecture.
    #[error("the tensors of `{}` are not those of {arch}: {report}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// The architecture.
        arch: String,
        /// What differs.
        report: String,
    },
    /// A picture is missing or has other sizes.
    #[error(transparent)]
    Picture(#[from] PictureError),
}

impl Coded for ZooError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoArch { .. } => exit::USAGE,
            _ => exit::INPUT,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoArch { .. } => Some("name it with `--arch`".to_owned()),
            Self::Dataset { found, .. } => Some(format!("import it with `--dataset {found}`")),
            _ => None,
        }
    }
}

/// How the tensors of a file meet those of an architecture, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Taken over.
    pub loaded: Vec<String>,
    /// The architecture has them, the file does not.
    pub missing: Vec<String>,
    /// The file has them, the architecture does not.
    pub unused: Vec<String>,
    /// Both have them, with these sizes in file and architecture.
    pub mismatched: Vec<String>,
    /// Not needed and not there: counters of batches.
    pub ignored: Vec<String>,
}

impl Report {
    fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unused.is_empty() && self.mismatched.is_empty()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} loaded", self.loaded.len())?;
        for (word, names) in [
            ("missing", &self.missing),
            ("unused", &self.unused),
            ("of another shape", &self.mismatched),
            ("ignored", &self.ignored),
        ] {
            if let Some(first) = names.first() {
                write!(f, ", {} {word} (`{}`", names.len(), first.escape_debug())?;
                f.write_str(if names.len() > 1 { ", ...)" } else { ")" })?;
            }
        }
        Ok(())
    }
}

/// A network and poisoned sets, from whatever kind of file.
struct Found {
    file: PathBuf,
    model_name: Option<String>,
    classes: Option<usize>,
    state: Vec<attack::NamedTensor>,
    sets: Option<AttackResult>,
}

/// Makes a cell of a published model; one that was made before is verified and returned.
pub fn import(request: &ImportRequest, compute: &Compute) -> Result<(Cell, Report), Failure> {
    let found = read(&request.path)?;
    let dataset_named = found.sets.as_ref().map(|sets| &sets.dataset);
    if let Some(named) = dataset_named.filter(|named| **named != request.dataset) {
        return Err(ZooError::Dataset {
            path: found.file,
            found: named.clone(),
            expected: request.dataset.clone(),
        }
        .into());
    }
    let (dataset, limits) = open_data(request, &found)?;
    let spec = arch(request, &found, dataset.spec.classes)?;
    let (state, report) = match_tensors(&found, &spec)?;
    let net = Net::from_state(&spec, &state)?;
    let (train, test) = sets(&found, &dataset)?;
    train.check(dataset.train.len(), dataset.spec.classes)?;
    test.check(dataset.test.len(), dataset.spec.classes)?;
    let (train_bytes, test_bytes) = (train.to_bytes(), test.to_bytes());

    let default = if found.sets.is_some() {
        "imported"
    } else {
        "clean"
    };
    let method = request.attack.as_deref().unwrap_or(default);
    let cell = CellSpec {
        kind: Kind::Attack,
        method: method.to_owned(),
        dataset: request.dataset.clone(),
        arch: spec.label(),
        settings: json!({
            "imported": { "format": "pytorch", "model_name": found.model_name },
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
    let mut net = net.on(compute)?;
    let scores = eval::scores(&mut net, &dataset.test, &test, &dataset.spec);
    net.take_failure()?;
    let mut facts = env_facts();
    facts["device"] = json!(compute.name());
    facts["imported_from"] = json!(std::path::absolute(&found.file)?);
    work.write(ENV, facts.to_string().as_bytes())?;
    let metadata = [
        ("arch", spec.name().to_owned()),
        ("width", spec.width().to_string()),
        ("classes", spec.classes().to_string()),
        ("dataset", request.dataset.clone()),
        ("method", method.to_owned()),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    work.write(MODEL, &state.to_bytes(&metadata)?)?;
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

fn read(path: &Path) -> Result<Found, Failure> {
    let file = if path.is_dir() {
        path.join(ATTACK_RESULT)
    } else {
        path.to_owned()
    };
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
            model_name: Some(sets.model_name.clone()),
            classes: Some(sets.classes),
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
        classes: number(find("num_classes")),
        state: attack::state(&checkpoint, field, model)?,
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
            seed: 0,
        };
        data::open(&request.dataset, request.data.as_deref(), &options)
    };
    let whole = open(None, None)?;
    let Some(sets) = &found.sets else {
        return Ok((whole, (None, None)));
    };
    let fit = |field: &str, found_there: String, expected: String| ZooError::Fit {
        path: found.file.clone(),
        field: field.to_owned(),
        found: found_there,
        expected,
    };
    let (spec, classes) = (&whole.spec, sets.classes);
    if classes != spec.classes {
        return Err(fit("num_classes", classes.to_string(), spec.classes.to_string()).into());
    }
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
    let first = found.state.iter().find(|tensor| tensor.shape.len() == 4);
    let width = first.map_or(0, |tensor| tensor.shape[0]);
    Ok(ArchSpec::new(
        name,
        width,
        found.classes.unwrap_or(classes),
    )?)
}

/// The file's tensors as a state of the architecture.
fn match_tensors(found: &Found, spec: &ArchSpec) -> Result<(StateDict, Report), Failure> {
    let blank = Net::new(spec, 0).state()?;
    let mut state = StateDict::new();
    let mut report = Report::default();
    for (name, expected) in blank.iter() {
        let Some(tensor) = found.state.iter().find(|tensor| tensor.name == name) else {
            if name.ends_with("num_batches_tracked") {
                report.ignored.push(name.to_owned());
                state.insert(name, expected.clone());
            } else {
                report.missing.push(name.to_owned());
            }
            continue;
        };
        if tensor.shape != expected.dims() {
            report.mismatched.push(format!(
                "{name} {:?} for {:?}",
                tensor.shape,
                expected.dims()
            ));
            continue;
        }
        let shape = tensor.shape.as_slice();
        let values = match &tensor.data {
            TensorData::Float(values) => Tensor::from_slice(values, shape, &Device::Cpu),
            TensorData::Int(values) => Tensor::from_slice(values, shape, &Device::Cpu),
        };
        state.insert(name, values.map_err(bb_nn::NnError::from)?);
        report.loaded.push(name.to_owned());
    }
    report.unused = found
        .state
        .iter()
        .filter(|tensor| blank.get(&tensor.name).is_none())
        .map(|tensor| tensor.name.clone())
        .collect();
    if report.is_clean() {
        return Ok((state, report));
    }
    Err(ZooError::Tensors {
        path: found.file.clone(),
        arch: spec.label(),
        report: report.to_string(),
    }
    .into())
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
        let picture = Picture::read(&path).map_err(ZooError::from)?;
        if (picture.height(), picture.width()) != (height, width) {
            return Err(ZooError::Fit {
                field: "size".to_owned(),
                found: format!("{} x {}", picture.height(), picture.width()),
                expected: format!("{height} x {width}"),
                path,
            }
            .into());
        }
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

/// What is inside a checkpoint, in lines for people; nothing in it is run.
pub fn scan(path: &Path) -> Result<String, Failure> {
    let checkpoint = Checkpoint::open(path)?;
    let mut text = String::new();
    describe(&checkpoint, &checkpoint.pickle().root, "", 0, &mut text);
    Ok(text)
}

/// Deepest level and most entries of a level that [`scan`] shows.
const LEVELS: usize = 4;
const ENTRIES: usize = 200;

fn describe(checkpoint: &Checkpoint, value: &Value, name: &str, level: usize, text: &mut String) {
    let pickle = checkpoint.pickle();
    let indent = "  ".repeat(level);
    let what = match (value, pickle.object(value)) {
        (Value::Text(text), _) => format!("{:?}", text.chars().take(80).collect::<String>()),
        (Value::Int(n), _) => n.to_string(),
        (Value::Float(x), _) => x.to_string(),
        (Value::Bool(b), _) => b.to_string(),
        (_, Some(Object::Tensor(tensor))) => {
            format!("tensor {:?} {:?}", tensor.storage.element, tensor.shape)
        }
        (_, Some(Object::Array(Some(array)))) => {
            format!("array {:?} {:?}", array.element, array.shape)
        }
        (_, Some(Object::Dict(entries))) => format!("dictionary of {}", entries.len()),
        (_, Some(Object::List(items) | Object::Tuple(items))) => {
            format!("{} of {}", pickle.kind(value), items.len())
        }
        _ => pickle.kind(value).to_owned(),
    };
    let name = name.escape_debug();
    let separator = if level == 0 { "" } else { ": " };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{indent}{name}{separator}{what}");
    if level >= LEVELS {
        return;
    }
    if let Some(entries) = pickle.dict(value) {
        for (key, value) in entries.iter().take(ENTRIES) {
            let name = match key {
                Value::Text(text) => text.to_string(),
                Value::Int(n) => n.to_string(),
                other => pickle.kind(other).to_owned(),
            };
            describe(checkpoint, value, &name, level + 1, text);
        }
        if entries.len() > ENTRIES {
            let _ = writeln!(text, "{indent}  and {} more", entries.len() - ENTRIES);
        }
    }
}
