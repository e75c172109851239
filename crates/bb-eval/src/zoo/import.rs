//! Models that strangers published, as ordinary cells of an attack.
//!
//! A folder that BackdoorBench left (`attack_result.pt` and the pictures beside it) becomes a cell on which every
//! defense works; so does a bare state dictionary, as the cell of a network without a backdoor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bb_attack::results::{AttackResults, PoisonCounts, Tensors};
use bb_core::artifact::{atomic, sha256_file, sha256_hex};
use bb_core::cell::contract::{self, Input};
use bb_core::cell::env::{self, Clock, Env};
use bb_core::cell::{self, Cell, CellSpec, Kind, MODEL, Opened, POISON_TEST, POISON_TRAIN};
use bb_core::cli::Failure;
use bb_core::poison::PoisonSet;
use bb_nn::{ArchSpec, Compute, Net, StateDict, eval};
use serde_json::{Value, json};

use super::attacks::UNKNOWN;
use super::source::{self, Found, Wanted};
use super::{Report, Rules, ZooError, names, record, tensors};
use crate::network;

/// What is to be imported.
#[derive(Clone, Debug, Default)]
pub struct ImportRequest {
    /// A folder with `attack_result.pt`, that file, or a file with a state dictionary (PyTorch's, or safetensors).
    pub path: PathBuf,
    /// Name of the dataset; empty for the one that the file, or the `model.json` of an export beside it, names.
    pub dataset: String,
    /// Folder with the datasets.
    pub data: Option<PathBuf>,
    /// Name of the architecture, for a bare state dictionary.
    pub arch: Option<String>,
    /// Name of the attack that the cell is filed under; see [`super::attack_name`].
    pub attack: Option<String>,
    /// Dotted keys that lead to the network in a file with more than one; of a record it is read alone then.
    pub key: Option<String>,
    /// How its tensors are renamed, if they have other names than the architecture's.
    pub rules: Rules,
    /// A JSON file for the five lists of [`Report`], written also when the tensors do not fit.
    pub report: Option<PathBuf>,
    /// The split to measure on, where it is not the usual one.
    pub test_split: Option<String>,
    /// Measure on the first images of the test split only.
    pub test_limit: Option<usize>,
    /// Look for the row of each picture of a record, because the dataset stands in another order.
    pub match_rows: bool,
    /// No line that describes the dataset.
    pub quiet: bool,
    /// Folder for the results.
    pub out: PathBuf,
}

/// A published model that was read and checked, of which nothing was measured yet.
pub struct Importable {
    /// What its cell follows from.
    pub spec: CellSpec,
    report: Report,
    out: PathBuf,
    file: PathBuf,
    arch: ArchSpec,
    data: record::Data,
    state: StateDict,
    net: Net,
    train: PoisonSet,
    test: PoisonSet,
}

/// Makes a cell of a published model; one that was made before is verified and returned.
pub fn import(request: &ImportRequest, compute: &Compute) -> Result<(Cell, Report), Failure> {
    check(request)?.complete(compute)
}

/// Reads a published model and compares it with its dataset.
pub fn check(request: &ImportRequest) -> Result<Importable, Failure> {
    let wanted = Wanted {
        key: request.key.as_deref(),
        arch: request.arch.as_deref(),
        rules: Some(&request.rules),
    };
    let (mut found, ignored) = renamed(&request.path, wanted)?;
    let described = found.described.take().unwrap_or_default();
    let named = found.dataset.take();
    let request = &ImportRequest {
        dataset: match named.as_ref().or(described.dataset.as_ref()) {
            _ if !request.dataset.is_empty() => request.dataset.clone(),
            Some(named) => named.clone(),
            None => return Err(ZooError::NoDataset { path: found.file }.into()),
        },
        arch: request.arch.clone().or(described.arch),
        ..request.clone()
    };
    if let Some(named) = named.filter(|named| *named != request.dataset) {
        return Err(ZooError::Dataset {
            path: found.file,
            found: named,
            expected: request.dataset.clone(),
        }
        .into());
    }
    let data = record::open(request, &found)?;
    let (dataset, limits) = (&data.dataset, data.limits);
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
    spec.check_images(&dataset.spec)?;
    let (state, net, report) = fitted(
        &found,
        &spec,
        (&request.rules, ignored),
        request.report.as_deref(),
    )?;
    let (train, test) = record::sets(request, &found, &data)?;

    let default = match &described.attack {
        _ if found.sets.is_some() => UNKNOWN,
        Some(attack) => attack,
        None => "clean",
    };
    let method = request.attack.as_deref().unwrap_or(default);
    let mut imported = origin(&found, wanted);
    if request.match_rows {
        imported["rows"] = json!("matched");
    }
    let limits = contract::Limits {
        dataset: request.dataset.clone(),
        train_limit: limits.0,
        test_limit: limits.1,
        test_split: request.test_split.clone(),
    };
    let mut settings = json!({ "imported": imported });
    let compute = contract::Compute::default();
    contract::add_tables(&mut settings, &limits, &spec.in_cell(), compute);
    let cell = CellSpec {
        kind: Kind::Attack,
        method: method.to_owned(),
        dataset: request.dataset.clone(),
        arch: spec.label(),
        settings,
        inputs: BTreeMap::from([
            (Input::Dataset.name().to_owned(), dataset.digest.clone()),
            ("checkpoint".to_owned(), sha256_file(&found.file)?),
            ("poison_train".to_owned(), sha256_hex(train.to_bytes())),
            ("poison_test".to_owned(), sha256_hex(test.to_bytes())),
        ]),
        seed: 0,
    };
    Ok(Importable {
        spec: cell,
        report,
        out: request.out.clone(),
        file: found.file,
        arch: spec,
        data,
        state,
        net,
        train,
        test,
    })
}

impl Importable {
    /// Measures the network and writes the cell; one that is complete is verified and returned.
    pub fn complete(self, compute: &Compute) -> Result<(Cell, Report), Failure> {
        let clock = Clock::start();
        let Self {
            spec,
            report,
            out,
            file,
            arch,
            data,
            state,
            net,
            train,
            test,
        } = self;
        let dataset = &data.dataset;
        let work = match cell::open(&out, &spec)? {
            Opened::Complete(cell) => return Ok((*cell, report)),
            Opened::Work(work) => work,
        };
        let metadata = [
            ("arch", arch.name().to_owned()),
            ("width", arch.width().to_string()),
            ("classes", arch.classes().to_string()),
            ("dataset", spec.dataset.clone()),
            ("method", spec.method.clone()),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
        // Before anything is measured, because NaN is refused here.
        let model = state.to_bytes(&metadata).map_err(network::in_file(&file))?;
        let mut net = net.on(compute)?;
        let scores = eval::scores(&mut net, &dataset.test, &test, &dataset.spec)
            .map_err(network::scores_of(&file))?;
        let env = Env {
            imported_from: Some(env::absolute(&file)),
            ..compute.env()
        };
        env.after(clock).write(&work)?;
        work.write(MODEL, &model)?;
        work.write(POISON_TRAIN, &train.to_bytes())?;
        work.write(POISON_TEST, &test.to_bytes())?;
        let some = |ratio| (!test.is_empty()).then_some(ratio);
        let results = AttackResults {
            acc: scores.acc,
            asr: some(scores.asr),
            ra: some(scores.ra),
            train: None,
            classes: dataset.class_names.clone(),
            target: dataset.target_of(&test),
            poison: PoisonCounts {
                train: train.len() as u64,
                test: test.len() as u64,
                in_training: None,
            },
            stealth: None,
            images: Some(record::counts(&data, &test)),
            tensors: Some(Tensors {
                loaded: report.loaded.len() as u64,
                ignored: report.ignored.len() as u64,
            }),
        };
        let cell = work.finish(json!(results))?;
        Ok((cell, report))
    }
}

/// Reads a file, and renames its tensors; gives the names of those that are left out as well.
pub(super) fn renamed(path: &Path, wanted: Wanted<'_>) -> Result<(Found, Vec<String>), Failure> {
    let mut found = source::read(path, wanted)?;
    let tensors = std::mem::take(&mut found.state);
    found.names = tensors.iter().map(|tensor| tensor.name.clone()).collect();
    let rules = wanted.rules.cloned().unwrap_or_default();
    let (kept, ignored) = rules.apply(&found.file, tensors)?;
    found.state = kept;
    Ok((found, ignored))
}

/// The network of an architecture with the tensors of a file, and what became of each; `report` is a file for that.
pub(super) fn fitted(
    found: &Found,
    spec: &ArchSpec,
    (rules, ignored): (&Rules, Vec<String>),
    report: Option<&Path>,
) -> Result<(StateDict, Net, Report), Failure> {
    let (state, mut lists) = tensors::matched(&found.state, spec)?;
    // What was left out on request is missing besides, where it is not needed.
    let is_listed = |name: &String| {
        let prefix = lists.prefix.as_ref().map_or("", |(prefix, _)| prefix);
        let rest = |old: &String| old.strip_prefix(prefix) == Some(name);
        ignored.iter().any(|old| rest(old) || old == name)
    };
    let mut others = std::mem::take(&mut lists.ignored);
    others.retain(|name| !is_listed(name));
    lists.ignored = ignored;
    lists.ignored.append(&mut others);
    if let Some(path) = report {
        atomic::write(path, format!("{:#}\n", lists.to_json()))?;
    }
    if !lists.is_clean() {
        return Err(ZooError::Tensors {
            path: found.file.clone(),
            arch: spec.label(),
            report: lists.to_string(),
            help: help(found, spec, rules)?,
        }
        .into());
    }
    let net = Net::from_state(spec, &state).map_err(network::in_file(&found.file))?;
    Ok((state, net, lists))
}

/// What would make the names of a file fit.
fn help(found: &Found, spec: &ArchSpec, rules: &Rules) -> Result<Option<String>, Failure> {
    let others = found.archs()?;
    if let Some(other) = others.into_iter().find(|other| *other != spec.name()) {
        return Ok(Some(format!(
            "its tensors are those of {other}: `--arch {other}`"
        )));
    }
    let own = tensors::names_of(spec.name())?;
    let known = own.iter().map(String::as_str).collect();
    let names: Vec<&str> = found.names.iter().map(String::as_str).collect();
    let help = names::help(&names, rules, &known, tensors::is_optional);
    Ok(help.map(|help| help.hint()))
}

/// What the settings of a cell say of the file that it was made from.
pub(super) fn origin(found: &Found, wanted: Wanted<'_>) -> Value {
    let mut imported = json!({ "format": found.format, "model_name": found.model_name });
    // Only where there are some, so that the name of a cell does not depend on what was not asked for.
    if let Some(key) = wanted.key {
        imported["key"] = json!(key);
    }
    let Some(Rules { rename, ignore }) = wanted.rules else {
        return imported;
    };
    if !rename.is_empty() {
        imported["rename"] = json!(rename);
    }
    if !ignore.is_empty() {
        imported["ignore"] = json!(ignore);
    }
    imported
}

/// The architecture by name, with its width read off the first convolution.
fn arch(request: &ImportRequest, found: &Found, classes: usize) -> Result<ArchSpec, Failure> {
    let name = request.arch.as_ref().or(found.model_name.as_ref());
    let Some(name) = name else {
        return Err(ZooError::NoArch {
            path: found.file.clone(),
            fitting: found.archs()?.into_iter().next(),
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
