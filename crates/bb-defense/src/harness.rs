//! From an attack's cell to a defense's cell.
//!
//! Everything that is not the method's own idea is here, once for all methods: reading and checking the suspect model,
//! its test set and the dataset, handing out what the threat model allows, checkpoints, and measuring.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bb_core::cell::contract::{Input, Network};
use bb_core::cell::env::{self, Clock, Env};
use bb_core::cell::{
    self, CONFIG, Cell, CellError, CellSpec, Kind, LOG, MODEL, Opened, POISON_TEST, Work, open,
};
use bb_core::cli::catch_interrupts;
use bb_core::data::{self, Dataset, OpenOptions};
use bb_core::events::Log;
use bb_core::metrics::{Ratio, Scores};
use bb_core::poison::{PoisonError, PoisonSet};
use bb_core::precision::Precision;
use bb_core::rows;
use bb_core::settings::zero_epochs;
use bb_nn::{ArchSpec, Compute, Net, StateDict};
use serde_json::{Value, json};

use crate::context::{At, Ctx, Host, not_finite};
use crate::data::Granted;
use crate::error::DefenseError;
use crate::method::{AnyDefense, Armed, Given, Ready, Repaired};
use crate::results::{Oracle, Results, SUSPECT};

/// The best candidate in a defense's cell, if there were several.
pub const ORACLE: &str = "oracle.safetensors";
/// Checkpoint of the harness itself.
const BEFORE: &str = "suspect";

/// What to repair, and how.
#[derive(Clone)]
pub struct DefenseRequest {
    /// The method.
    pub defense: &'static dyn AnyDefense,
    /// Folder or manifest of the attack's cell.
    pub model: PathBuf,
    /// Folder with the dataset; `synthetic` needs none.
    pub data: Option<PathBuf>,
    /// Settings over the recipe.
    pub given: Given,
    /// How convolutions multiply while networks are trained, whatever the attack was trained in.
    pub precision: Precision,
    /// Where networks are trained and measured; no setting, so a cell's name does not depend on it.
    pub compute: Compute,
    /// Seed of everything random but the choice of the clean images, which is a setting.
    pub seed: u64,
    /// Folder for the results.
    pub out: PathBuf,
    /// Folder for decoded images; without one they are decoded at each run.
    pub cache: Option<PathBuf>,
    /// No progress and no log lines.
    pub quiet: bool,
}

/// An attack's cell, opened and understood, without its larger files.
pub struct SuspectCell {
    /// The cell.
    pub cell: Cell,
    /// Its network.
    pub network: Network,
}

/// Opens an attack's cell and checks that it is one.
pub fn open_suspect(model: &Path) -> Result<SuspectCell, DefenseError> {
    let cell = Cell::load(model)?;
    if cell.manifest.kind != Kind::Attack {
        return Err(DefenseError::NotAnAttack { path: cell.dir });
    }
    for name in [MODEL, POISON_TEST] {
        if !cell.manifest.files.contains_key(name) {
            return Err(DefenseError::NoFile {
                path: cell.dir,
                name,
            });
        }
    }
    let network = cell.network()?;
    Ok(SuspectCell { cell, network })
}

/// How the dataset is opened that an attack's manifest names; `cache` is the folder of decoded images.
///
/// # Errors
/// [`CellError::Field`].
pub fn options_of(attack: &Cell, cache: Option<&Path>) -> Result<OpenOptions, CellError> {
    let limits = attack.limits()?;
    Ok(OpenOptions {
        cache_dir: cache.map(Path::to_owned),
        train_limit: limits.train_limit,
        test_limit: limits.test_limit,
        test_split: limits.test_split,
        // The synthetic data are the same in every run, as those of any other dataset are.
        seed: 0,
    })
}

/// Checks everything in a request that does not need its data, and returns the settings for display, with their origins.
///
/// # Errors
/// Those that [`run`] has for the same request, as far as they do not come from the data.
pub fn show(req: &DefenseRequest) -> Result<String, DefenseError> {
    Ok(checked(req)?.1.render())
}

/// What [`run`] and [`show`] check alike, before any data is opened: the model, and the settings of the defense.
fn checked(req: &DefenseRequest) -> Result<(SuspectCell, Box<dyn Ready>), DefenseError> {
    let suspect = open_suspect(&req.model)?;
    let manifest = &suspect.cell.manifest;
    let spec = data::spec(&manifest.dataset)?;
    let ready = req.defense.resolve(&manifest.dataset, &req.given)?;
    req.compute.supports(req.precision)?;
    // The classes of a folder are counted when it is opened; until then any number does.
    let classes = Some(spec.classes).filter(|&classes| classes > 0);
    let Network { arch, width, .. } = &suspect.network;
    ArchSpec::new(arch, *width, classes.unwrap_or(2))?;
    Ok((suspect, ready))
}

/// Repairs the model of an attack's cell; gives the complete cell, at once if it is complete already.
///
/// An interrupted run goes on from its last checkpoint, and ends with the same bits as one that was not interrupted.
pub fn run(req: &DefenseRequest) -> Result<Cell, DefenseError> {
    let clock = Clock::start();
    let (suspect, ready) = checked(req)?;
    let SuspectCell {
        cell: attack,
        network: Network { arch, width, .. },
    } = suspect;
    let (dataset, poisoned) = open_data(&attack, req.data.as_deref(), req.cache.as_deref())?;
    let arch = ArchSpec::for_dataset(&arch, width, &dataset.spec)?;
    let path = attack.listed(MODEL)?;
    let (state, suspect) = Net::load(&arch, &path).map_err(DefenseError::in_file(&path))?;

    let armed = ready.grant(&dataset)?;
    let clean_indices = armed.granted().map(|g| g.indices_sha256.as_str());
    let spec = cell_spec(
        req.defense,
        &*ready,
        &attack,
        &dataset,
        clean_indices,
        req.precision,
        req.seed,
    );
    let work = match open(&req.out, &spec)? {
        Opened::Complete(cell) => {
            let text = format!("complete already: {}", cell.dir.display());
            Log::new(req.quiet)
                .info("complete", &text, &Value::Null)
                .map_err(DefenseError::log(&cell.dir))?;
            return Ok(*cell);
        }
        Opened::Work(work) => work,
    };
    let task = Task {
        req,
        attack: &attack,
        arch: &arch,
        state: &state,
        ready: &*ready,
        armed: &*armed,
        dataset: &dataset,
        poisoned: &poisoned,
        clock,
    };
    work.complete(|work| repair(work, &task, suspect))
}

/// A repair with all its inputs at hand.
struct Task<'a> {
    req: &'a DefenseRequest,
    attack: &'a Cell,
    arch: &'a ArchSpec,
    state: &'a StateDict,
    ready: &'a dyn Ready,
    armed: &'a dyn Armed,
    dataset: &'a Dataset,
    poisoned: &'a PoisonSet,
    clock: Clock,
}

/// Repairs and measures the model, and writes all files; gives the results.
fn repair(work: &Work, task: &Task<'_>, suspect: Net) -> Result<Value, DefenseError> {
    let &Task {
        req,
        attack,
        arch,
        state,
        ready,
        armed,
        dataset,
        poisoned,
        clock,
    } = task;
    catch_interrupts()?;
    let log = Log::open(&work.dir().join(LOG), req.quiet).map_err(DefenseError::log(work.dir()))?;
    let text = format!(
        "{} repairs {}",
        req.defense.info().title,
        attack.dir.display()
    );
    log.info("begin", &text, &json!({ "cell": work.dir() }))
        .and_then(|()| describe(&log, dataset, poisoned, ready))
        .map_err(DefenseError::log(work.dir()))?;
    work.write(CONFIG, ready.to_toml().as_bytes())?;
    write_env(work, attack, req, None)?;

    let mut host = Host::resume(
        work,
        &log,
        &dataset.test,
        poisoned,
        &dataset.spec,
        &req.compute,
    )?;
    let before = if let Some(saved) = host.load::<Scores>(BEFORE)? {
        saved.progress
    } else {
        let before = host.scores(
            &mut suspect.on(&req.compute)?,
            &format!("the suspect model `{}`", attack.file(MODEL).display()),
        )?;
        host.append_scores(At::stage("suspect"), &before)?;
        host.save(BEFORE, &StateDict::new(), &before)?;
        before
    };
    let mut ctx = Ctx::new(req.seed, req.quiet, host);
    let repaired = armed.repair(
        arch,
        &dataset.spec,
        state,
        req.precision,
        &req.compute,
        &mut ctx,
    );
    // A method need not ask, and what it says of NaN is explained by a failed device.
    req.compute.take_failure()?;
    let repaired = repaired?;
    ctx.check()?;
    let mut host = ctx.into_host().expect("it was made with one");
    let granted = armed.granted().cloned();
    let oracle = armed.oracle();
    let results = measure(
        &mut host,
        arch,
        &req.compute,
        before,
        (&repaired, oracle),
        granted,
    )?;

    for (name, bytes) in &repaired.artefacts {
        work.write(name, bytes)?;
    }
    let metadata = |name: &str| {
        let fields = [
            ("arch", arch.name().to_owned()),
            ("width", arch.width().to_string()),
            ("classes", arch.classes().to_string()),
            ("dataset", dataset.spec.id.to_owned()),
            ("method", req.defense.info().id.to_owned()),
            ("seed", req.seed.to_string()),
            ("candidate", name.to_owned()),
        ];
        fields
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect::<BTreeMap<_, _>>()
    };
    let mut keep = vec![(MODEL, &results.chosen)];
    keep.extend(results.oracle.as_ref().map(|oracle| (ORACLE, &oracle.name)));
    for (file, name) in keep {
        let candidate = repaired
            .candidates
            .iter()
            .find(|candidate| candidate.name == *name);
        // An oracle that is no candidate is the suspect model.
        let state = candidate.map_or(state, |candidate| &candidate.state);
        work.write(
            file,
            &state
                .to_bytes(&metadata(name))
                .map_err(|error| not_finite(name, error))?,
        )?;
    }
    write_env(work, attack, req, Some(clock))?;
    let percent = |scores: &Scores| {
        // A model that was trained without a backdoor has no poisoned images, and so no ASR.
        let part = |ratio: Ratio| {
            let percent = ratio.percent().map(|percent| format!("{percent:.2} %"));
            percent.unwrap_or_else(|| "none".to_owned())
        };
        format!("ACC {}, ASR {}", part(scores.acc), part(scores.asr))
    };
    let text = format!(
        "{}, before {}",
        percent(&results.after),
        percent(&results.before)
    );
    log.info("end", &text, &Value::Null)
        .map_err(DefenseError::log(work.dir()))?;
    Ok(json!(results))
}

/// Says what the data are, what the trigger aims at, and what of the settings is perhaps not what was meant.
fn describe(
    log: &Log,
    dataset: &Dataset,
    poisoned: &PoisonSet,
    ready: &dyn Ready,
) -> std::io::Result<()> {
    dataset.describe(log)?;
    if let Some(target) = dataset.target_of(poisoned) {
        log.info("target", &format!("target {target}"), &target)?;
    }
    for warning in zero_epochs(ready.origins()) {
        log.warn("setting", &warning, &Value::Null)?;
    }
    Ok(())
}

/// The dataset that an attack used and the poisoned test images made from it, which fit each other.
///
/// `data` is the folder with the datasets and `cache` that of decoded images. This is for those who measure: no defense
/// has a cell to call it with.
///
/// # Errors
/// [`DefenseError::OtherDataset`], [`DefenseError::OtherTestSet`] and [`DefenseError::ImageSize`] if they do not fit, and
/// [`DefenseError::Poison`] if the pictures of a record are not of these images.
pub fn open_data(
    attack: &Cell,
    data: Option<&Path>,
    cache: Option<&Path>,
) -> Result<(Dataset, PoisonSet), DefenseError> {
    let manifest = &attack.manifest;
    let expected = attack.input(Input::Dataset)?;
    let dataset = data::open(&manifest.dataset, data, &options_of(attack, cache)?)?;
    if dataset.digest != *expected {
        return Err(DefenseError::OtherDataset {
            id: manifest.dataset.clone(),
            expected: expected.to_owned(),
            found: dataset.digest,
        });
    }
    let path = attack.listed(POISON_TEST)?;
    let poisoned = PoisonSet::load(&path)?;
    let classes = dataset.spec.classes;
    poisoned
        .check(dataset.test.len(), classes)
        .and_then(|()| poisoned.check_attacked())
        .map_err(|source| PoisonError::Invalid {
            path: path.clone(),
            source,
        })?;
    let size = |images: &data::Images| (images.height(), images.width());
    let (expected, found) = (size(&dataset.test.images), size(&poisoned.images));
    if expected != found {
        return Err(DefenseError::ImageSize {
            path,
            expected,
            found,
        });
    }
    for (number, (&index, &label)) in poisoned
        .indices
        .iter()
        .zip(&poisoned.original_labels)
        .enumerate()
    {
        let own = dataset.test.labels[index];
        if own != label {
            let reason = format!("its true label is {label}, but test image {index} has {own}");
            return Err(DefenseError::OtherTestSet {
                path,
                number,
                reason,
            });
        }
    }
    // Our own attacks made the pictures of this very data, by whatever trigger.
    if attack.is_imported() {
        rows::check(&poisoned, &dataset.test)
            .map_err(|source| PoisonError::Invalid { path, source })?;
    }
    Ok((dataset, poisoned))
}

/// What the cell of a defense follows from; `clean_indices` is the digest of the clean images' indices, if it has any.
///
/// Beside the defense's own settings it has the table [`compute`](cell::contract::Compute).
pub fn cell_spec(
    defense: &dyn AnyDefense,
    ready: &dyn Ready,
    attack: &Cell,
    dataset: &Dataset,
    clean_indices: Option<&str>,
    precision: Precision,
    seed: u64,
) -> CellSpec {
    let mut inputs = BTreeMap::from([
        (Input::Attack.name().to_owned(), attack.digest()),
        (Input::Dataset.name().to_owned(), dataset.digest.clone()),
    ]);
    if let Some(digest) = clean_indices {
        inputs.insert(Input::CleanIndices.name().to_owned(), digest.to_owned());
    }
    let mut settings = ready.tree().clone();
    let arch = Network::arch_of(&attack.manifest.settings);
    settings["compute"] = json!(cell::contract::Compute {
        precision,
        revision: ready.revision(arch.unwrap_or_default()),
    });
    CellSpec {
        kind: Kind::Defense,
        method: defense.info().id.to_owned(),
        dataset: attack.manifest.dataset.clone(),
        arch: attack.manifest.arch.clone(),
        settings,
        inputs,
        seed,
    }
}

/// Scores every candidate.
fn measure(
    host: &mut Host<'_>,
    arch: &ArchSpec,
    compute: &Compute,
    before: Scores,
    (repaired, oracle): (&Repaired, Oracle),
    granted: Option<Granted>,
) -> Result<Results, DefenseError> {
    let mut measured: Vec<(String, Scores, Value)> = Vec::with_capacity(repaired.candidates.len());
    for candidate in &repaired.candidates {
        let name = &candidate.name;
        if name == SUSPECT || measured.iter().any(|(earlier, ..)| earlier == name) {
            return Err(DefenseError::SameName { name: name.clone() });
        }
        let net =
            Net::from_state(arch, &candidate.state).map_err(|error| not_finite(name, error))?;
        let network = format!("candidate `{name}`");
        let scores = host.scores(&mut net.on(compute)?, &network)?;
        host.append_scores(At::stage("final").variant(name), &scores)?;
        measured.push((name.clone(), scores, candidate.notes.clone()));
    }
    let notes = repaired.notes.clone();
    Ok(Results::new(
        before,
        measured,
        (repaired.chosen, oracle),
        granted,
        notes,
    ))
}

/// What differs from run to run and machine to machine. Written at the start and, with the time taken, at the end.
fn write_env(
    work: &Work,
    attack: &Cell,
    req: &DefenseRequest,
    clock: Option<Clock>,
) -> Result<(), DefenseError> {
    let env = Env {
        attack_cell: Some(env::absolute(&attack.dir)),
        data: req.data.as_deref().map(env::absolute),
        ..req.compute.env()
    };
    let env = match clock {
        Some(clock) => env.after(clock),
        None => env,
    };
    Ok(env.write(work)?)
}
