//! Runs one attack from the data to the finished cell.
//!
//! What lies in the cell of an attack:
//!
//! | file | content |
//! |---|---|
//! | `model.safetensors` | the trained network, PyTorch's names; metadata: architecture, width, classes, dataset, method |
//! | `poison_train.safetensors`, `poison_test.safetensors` | the poisoned images, see [`PoisonSet`]; none after clean training |
//! | `config.toml` | the complete settings |
//! | `metrics.jsonl` | one row per epoch, see [`MetricsRow`] |
//! | `trigger.png` and the like | files of the attack's own |
//! | `env.json`, `log.jsonl` | machine and times; not part of the result |
//!
//! An interrupted run goes on from the checkpoint of its last whole epoch and ends with the same bits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bb_core::artifact;
use bb_core::artifact::checkpoint::{self, Found, Version};
use bb_core::cell::contract::{self, Input};
use bb_core::cell::env::{self, Clock, Env};
use bb_core::cell::{
    self, CKPT, CONFIG, Cell, CellSpec, Kind, LOG, METRICS, MODEL, Opened, POISON_TEST,
    POISON_TRAIN, Work,
};
use bb_core::cli::catch_interrupts;
use bb_core::data::{Dataset, NamedClass, OpenOptions, Split};
use bb_core::events::{LONGEST_ROWS, Log, Progress};
use bb_core::files::{self, Links};
use bb_core::metrics::{Ratio, Scores};
use bb_core::poison::PoisonSet;
use bb_core::precision::Precision;
use bb_core::settings::zero_epochs;
use bb_nn::data::{Batch, batch_count};
use bb_nn::kernels::loss::Loss;
use bb_nn::train::{Checkpoints, EpochRow, Hooks, Recipe, StepAt, TrainError, fit};
use bb_nn::{ArchSpec, Compute, Flat, Mode, Net, NnError, eval};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::AttackError;
use crate::in_loop::Counts;
use crate::labels::LabelMap;
use crate::method::{AnyAttack, Ctx, Finished, Given, Poisoned, Ready, TrainHook};
use crate::poison_index::{self, Oversize};
use crate::prep::Prep;
use crate::results::{self, AttackResults};
use crate::{registry, static_attack, stealth};

/// What to run.
#[derive(Clone, Debug)]
pub struct AttackRequest {
    /// Name of the attack.
    pub method: String,
    /// Name of the dataset.
    pub dataset: String,
    /// Folder with the datasets; not needed for `synthetic`.
    pub data: Option<PathBuf>,
    /// Train on the first images only.
    pub train_limit: Option<usize>,
    /// Measure on the first images only.
    pub test_limit: Option<usize>,
    /// The split to measure on, where it is not the usual one.
    pub test_split: Option<String>,
    /// Name of the architecture.
    pub arch: String,
    /// Channels of its first stage.
    pub width: usize,
    /// How convolutions multiply while it is trained.
    pub precision: Precision,
    /// Where it is trained and measured; no setting, so a cell's name does not depend on it.
    pub compute: Compute,
    /// Settings on top of the defaults and the committed recipe.
    pub given: Given,
    /// Seed of everything random.
    pub seed: u64,
    /// Folder for the results.
    pub out: PathBuf,
    /// No progress and no log lines on standard error.
    pub quiet: bool,
}

/// A row of `metrics.jsonl`. All shares are fractions from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsRow {
    /// Epoch, counted from 1.
    pub epoch: usize,
    /// Learning rate of the epoch's first step.
    pub lr: f64,
    /// Mean training loss.
    pub train_loss: f64,
    /// Share of the training images predicted as labelled, in train mode, before each step.
    pub train_acc: Option<f64>,
    /// Accuracy on the clean test images; absent in an epoch that was not measured, as are the next two.
    pub acc: Option<f64>,
    /// Share of the poisoned test images predicted as the attacker wants; absent without such images, as is the next.
    pub asr: Option<f64>,
    /// Share of the poisoned test images predicted as what they truly show.
    pub ra: Option<f64>,
}

/// Runs an attack of the [`registry`], or finds that its cell is complete already.
///
/// # Errors
/// Whatever is wrong with the request, the data or the machine. An interruption (Ctrl-C, a termination signal) is
/// [`TrainError::Interrupted`]; the same request then goes on from the last checkpoint.
pub fn run(request: &AttackRequest) -> Result<Cell, AttackError> {
    run_with(registry::find(&request.method)?, request)
}

/// Runs the given attack, which need not be in the registry; [`AttackRequest::method`] is not looked at.
///
/// # Errors
/// As [`run`].
pub fn run_with(attack: &dyn AnyAttack, request: &AttackRequest) -> Result<Cell, AttackError> {
    let clock = Clock::start();
    let inputs = Inputs::open(attack, request)?;
    let work = match cell::open(&request.out, &inputs.cell_spec(attack, request)?)? {
        Opened::Complete(cell) => {
            let text = format!("complete already: {}", cell.dir.display());
            Log::new(request.quiet)
                .info("complete", &text, &Value::Null)
                .map_err(AttackError::log(&cell.dir))?;
            return Ok(*cell);
        }
        Opened::Work(work) => work,
    };
    let Inputs {
        ready,
        warnings,
        dataset,
        arch,
    } = &inputs;
    let run = Run {
        attack,
        ready: &**ready,
        warnings,
        request,
        dataset,
        arch,
    };
    work.complete(|work| run.train(work, clock))
}

/// The cell that [`run`] would leave, so that it can be looked for; opens the data, and writes nothing but their cache.
///
/// # Errors
/// As [`run`] for a request that is wrong.
pub fn plan(request: &AttackRequest) -> Result<CellSpec, AttackError> {
    let attack = registry::find(&request.method)?;
    Inputs::open(attack, request)?.cell_spec(attack, request)
}

/// Checks everything in a request that does not need its data, and returns the settings for display, with their origins.
///
/// # Errors
/// Those that [`run`] has for the same request, as far as they do not come from the data.
pub fn show(request: &AttackRequest) -> Result<String, AttackError> {
    let ready = checked(registry::find(&request.method)?, request)?;
    // Files may spell names in their own way, but the official ones always do.
    if let Some(known) = bb_core::data::known_classes(&request.dataset)
        && let Some(error) = ready.unknown_class(known)
    {
        return Err(error);
    }
    // They are part of what names a cell, so a run reads them before it computes.
    for (_, path) in ready.files() {
        artifact::sha256_file(path)?;
    }
    Ok(ready.show())
}

/// What a run and [`show`] check alike, before any data is opened.
fn checked(attack: &dyn AnyAttack, request: &AttackRequest) -> Result<Box<dyn Ready>, AttackError> {
    let spec = bb_core::data::spec(&request.dataset)?;
    let ready = attack.resolve(&request.dataset, &request.given)?;
    request.compute.supports(request.precision)?;
    // The classes of a folder are counted when it is opened; until then any number does.
    let classes = Some(spec.classes).filter(|&classes| classes > 0);
    ArchSpec::new(&request.arch, request.width, classes.unwrap_or(2))?;
    if let Some(classes) = classes {
        LabelMap::of_settings(ready.tree(), classes)?;
    }
    Ok(ready)
}

/// What a run begins from.
struct Inputs {
    ready: Box<dyn Ready>,
    /// What the user should know of how classes were named.
    warnings: Vec<String>,
    dataset: Dataset,
    arch: ArchSpec,
}

impl Inputs {
    fn open(attack: &dyn AnyAttack, request: &AttackRequest) -> Result<Self, AttackError> {
        let mut ready = checked(attack, request)?;
        let options = OpenOptions {
            cache_dir: Some(request.out.join("cache")),
            train_limit: request.train_limit,
            test_limit: request.test_limit,
            test_split: request.test_split.clone(),
            // The synthetic data stay the same whatever the run's seed, as those of any other dataset do.
            seed: 0,
        };
        let dataset = bb_core::data::open(&request.dataset, request.data.as_deref(), &options)?;
        let arch = ArchSpec::for_dataset(&request.arch, request.width, &dataset.spec)?;
        let warnings = ready.bind(&dataset)?;
        ready.check(&dataset, request.seed)?;
        Ok(Self {
            ready,
            warnings,
            dataset,
            arch,
        })
    }

    fn cell_spec(
        &self,
        attack: &dyn AnyAttack,
        request: &AttackRequest,
    ) -> Result<CellSpec, AttackError> {
        let given = GivenData {
            id: &request.dataset,
            train_limit: request.train_limit,
            test_limit: request.test_limit,
            test_split: request.test_split.as_deref(),
            dataset: &self.dataset,
        };
        check_limits(&given)?;
        cell_spec(
            attack,
            &*self.ready,
            &given,
            &self.arch,
            request.precision,
            request.seed,
        )
    }
}

/// The data of a run, as asked for and as opened.
#[derive(Clone, Copy, Debug)]
pub struct GivenData<'a> {
    /// Name of the dataset.
    pub id: &'a str,
    /// Only the first training images.
    pub train_limit: Option<usize>,
    /// Only the first test images.
    pub test_limit: Option<usize>,
    /// The split to measure on, where it is not the usual one.
    pub test_split: Option<&'a str>,
    /// The dataset with these limits.
    pub dataset: &'a Dataset,
}

/// Checks that a limit leaves something out. The images of `synthetic` are made, as many as it says.
///
/// # Errors
/// [`AttackError::WideLimit`].
pub fn check_limits(data: &GivenData<'_>) -> Result<(), AttackError> {
    for (split, limit, images) in [
        ("train", data.train_limit, data.dataset.train.len()),
        ("test", data.test_limit, data.dataset.test.len()),
    ] {
        if let Some(limit) = limit.filter(|&limit| limit > images) {
            return Err(AttackError::WideLimit {
                split,
                limit,
                images,
            });
        }
    }
    Ok(())
}

/// Checks what an attack would find out when it chooses its images: a grid does so before other cells are trained.
///
/// # Errors
/// Those of the choice, and of [`Attack::check`](crate::method::Attack::check).
pub fn check_choice(
    ready: &dyn Ready,
    dataset: &Dataset,
    seeds: &[u64],
) -> Result<(), AttackError> {
    let settings = ready.tree();
    let Some(map) = LabelMap::of_settings(settings, dataset.spec.classes)? else {
        return Ok(());
    };
    poison_index::test(&dataset.test.labels, &map)?;
    for &seed in seeds {
        ready.check(dataset, seed)?;
    }
    let ratio = settings["ratio"].as_f64();
    let Some(ratio) = ratio.filter(|_| !ready.in_loop()) else {
        return Ok(());
    };
    let labels = &dataset.train.labels;
    let oversize = serde_json::from_value::<Oversize>(settings["oversize"].clone());
    let (ratio, _) = poison_index::fitting(labels, &map, ratio, oversize.unwrap_or_default());
    for &seed in seeds {
        poison_index::draw_train(labels, &map, ratio, seed)?;
    }
    Ok(())
}

/// What the cell of a run follows from.
///
/// Beside the attack's own settings it has the tables `data` and `model`: what a reader of the cell needs to open
/// the same data and to build the same network. The table `compute` says in which precision it was trained.
pub fn cell_spec(
    attack: &dyn AnyAttack,
    ready: &dyn Ready,
    data: &GivenData<'_>,
    arch: &ArchSpec,
    precision: Precision,
    seed: u64,
) -> Result<CellSpec, AttackError> {
    let mut inputs = BTreeMap::from([(
        Input::Dataset.name().to_owned(),
        data.dataset.digest.clone(),
    )]);
    for (setting, path) in ready.files() {
        inputs.insert(setting.to_owned(), artifact::sha256_file(path)?);
    }
    let mut settings = ready.tree().clone();
    let limits = contract::Limits {
        dataset: data.id.to_owned(),
        train_limit: data.train_limit,
        test_limit: data.test_limit,
        test_split: data.test_split.map(str::to_owned),
    };
    let compute = contract::Compute {
        precision,
        revision: ready.revision(),
    };
    contract::add_tables(&mut settings, &limits, &arch.in_cell(), compute);
    Ok(CellSpec {
        kind: Kind::Attack,
        method: attack.info().id.to_owned(),
        dataset: data.id.to_owned(),
        arch: arch.label(),
        settings,
        inputs,
        seed,
    })
}

/// A run with all its inputs at hand.
#[derive(Clone, Copy)]
struct Run<'a> {
    attack: &'a dyn AnyAttack,
    ready: &'a dyn Ready,
    /// What the user should know of how the settings were taken.
    warnings: &'a [String],
    request: &'a AttackRequest,
    dataset: &'a Dataset,
    arch: &'a ArchSpec,
}

impl Run<'_> {
    /// Trains the network, writes all files and returns the results.
    fn train(self, work: &Work, clock: Clock) -> Result<Value, AttackError> {
        let dir = work.dir().to_owned();
        let log = Log::open(&dir.join(LOG), self.request.quiet).map_err(AttackError::log(&dir))?;
        work.write(CONFIG, self.ready.to_toml().as_bytes())?;
        self.begin(&log).map_err(AttackError::log(&dir))?;
        let env = Env {
            data: self.request.data.as_deref().map(env::absolute),
            ..self.request.compute.env()
        };
        env.write(work)?;

        let ctx = Ctx {
            dataset: self.dataset,
            arch: self.arch,
            seed: self.request.seed,
            prep: Prep {
                folder: Some(&dir.join(CKPT)),
                compute: Some(&self.request.compute),
                precision: self.request.precision,
                log: Some(&log),
                quiet: self.request.quiet,
            },
        };
        let Poisoned {
            train,
            test,
            artefacts,
            warnings,
            mut hook,
        } = self.ready.prepare(&ctx)?;
        for warning in &warnings {
            log.warn("setting", warning, &Value::Null)
                .map_err(AttackError::log(&dir))?;
        }
        let mut sets = Finished {
            train,
            test,
            artefacts,
        };
        self.check(&sets)?;
        write_sets(work, &sets)?;
        let poisoned = match &hook {
            Some(_) => "images poisoned while training".to_owned(),
            None => format!(
                "{} of {} training images poisoned, {} poisoned test images",
                sets.train.len(),
                self.dataset.train.len(),
                sets.test.len()
            ),
        };
        let say = format!(
            "{} on {}, {}: {poisoned}",
            self.attack.info().title,
            self.dataset.spec.title,
            self.arch.label(),
        );
        log.info("prepared", &say, &Value::Null)
            .map_err(AttackError::log(&dir))?;

        // A hook poisons the batches itself, so that the images it starts from are the clean ones.
        let split = match &hook {
            Some(_) => self.dataset.train.clone(),
            None => static_attack::mixed(&self.dataset.train, &sets.train)?,
        };
        let mut net = Net::new(self.arch, self.request.seed)
            .on(&self.request.compute)?
            .with_precision(self.request.precision)?;
        let (row, measured) = {
            let mut loop_part = LoopPart::new(self, work, &log, &sets.test, hook.as_deref_mut())?;
            self.fit(&mut net, &split, work, &mut loop_part)?;
            if let Some(progress) = loop_part.progress.take() {
                progress.finish();
            }
            (loop_part.last_row, loop_part.measured)
        };
        let counts = hook.as_deref().and_then(TrainHook::counts);
        let finished = match hook {
            None => None,
            Some(mut hook) => hook.finish(&mut net)?,
        };
        let scores = match finished {
            None => measured,
            Some(finished) => {
                sets = finished;
                net.take_failure()?;
                self.check(&sets)?;
                write_sets(work, &sets)?;
                // The sets may have changed after the last epoch was measured.
                None
            }
        };
        let total = self.ready.recipe().epochs;
        let scores = match scores {
            Some(scores) => scores,
            None => measured_on(&mut net, self.dataset, &sets.test, (total, total))?,
        };
        work.write(MODEL, &net.state()?.to_bytes(&self.metadata())?)?;

        env.after(clock).write(work)?;
        let seconds = clock.elapsed().as_secs_f64();
        let say = format!("{}; {seconds:.0} s", percentages(&scores));
        log.info("trained", &say, &json!({ "seconds": seconds }))
            .map_err(AttackError::log(&dir))?;
        Ok(json!(self.results(&scores, row.as_ref(), &sets, counts)))
    }

    /// Says what is attacked, and what of the settings is perhaps not what was meant.
    fn begin(self, log: &Log) -> std::io::Result<()> {
        self.dataset.describe(log)?;
        if let Some(target) = self.target() {
            log.info("target", &format!("target {target}"), &target)?;
        }
        let unusual = zero_epochs(self.ready.origins());
        for warning in self.warnings.iter().chain(&unusual) {
            log.warn("setting", warning, &Value::Null)?;
        }
        Ok(())
    }

    /// The attacker's class, if it is one.
    fn target(self) -> Option<NamedClass> {
        let classes = self.dataset.spec.classes;
        // Settings that do not fit are refused when the images are chosen.
        let map = LabelMap::of_settings(self.ready.tree(), classes).ok()??;
        self.dataset.class(map.target()?)
    }

    fn fit(
        self,
        net: &mut Net,
        split: &Split,
        work: &Work,
        hooks: &mut LoopPart<'_>,
    ) -> Result<(), AttackError> {
        let folder = work.dir().join(CKPT);
        fs_err::create_dir_all(&folder).map_err(|source| AttackError::Checkpoint {
            path: folder.clone(),
            source,
        })?;
        let checkpoints = Checkpoints::at(folder.join("train.safetensors"), 1);
        // From here on a signal ends the run between two batches.
        catch_interrupts()?;
        let recipe = self.ready.recipe();
        fit(
            net,
            split,
            &self.dataset.spec,
            &recipe,
            self.request.seed,
            &checkpoints,
            hooks,
        )
        .map_err(unwrapped)?;
        Ok(net.take_failure()?)
    }

    /// The poisoned images fit the data.
    fn check(self, sets: &Finished) -> Result<(), AttackError> {
        let classes = self.dataset.spec.classes;
        sets.train.check(self.dataset.train.len(), classes)?;
        sets.test.check(self.dataset.test.len(), classes)?;
        Ok(())
    }

    /// What the file of the network says about it.
    fn metadata(self) -> BTreeMap<String, String> {
        [
            ("arch", self.arch.name().to_owned()),
            ("width", self.arch.width().to_string()),
            ("classes", self.arch.classes().to_string()),
            ("dataset", self.request.dataset.clone()),
            ("method", self.attack.info().id.to_owned()),
            ("seed", self.request.seed.to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }

    /// The results in the manifest.
    fn results(
        self,
        scores: &Scores,
        row: Option<&EpochRow>,
        sets: &Finished,
        counts: Option<Counts>,
    ) -> AttackResults {
        let some = |ratio: Ratio| (ratio.total > 0).then_some(ratio);
        AttackResults {
            acc: scores.acc,
            asr: some(scores.asr),
            ra: some(scores.ra),
            train: row.map(|row| results::TrainEnd {
                epochs: row.epoch as u64 + 1,
                loss: row.train_loss,
                acc: train_acc(row),
            }),
            classes: self.dataset.class_names.clone(),
            target: self.target(),
            poison: results::PoisonCounts {
                train: sets.train.len() as u64,
                test: sets.test.len() as u64,
                in_training: counts,
            },
            stealth: (!sets.test.is_empty())
                .then(|| stealth::measure(&self.dataset.test.images, &sets.test)),
            images: None,
            tensors: None,
        }
    }
}

/// The harness's part in the training loop: rows, progress, and the attack's own hook.
struct LoopPart<'a> {
    run: Run<'a>,
    work: &'a Work,
    log: &'a Log,
    test: &'a PoisonSet,
    hook: Option<&'a mut (dyn TrainHook + 'static)>,
    recipe: Recipe,
    /// All rows so far, as they stand in the file.
    rows: String,
    /// The hook's state beside the checkpoint that is gone on from.
    state: Vec<u8>,
    progress: Option<Progress>,
    last_row: Option<EpochRow>,
    /// The scores after the epoch trained last, if they were measured.
    measured: Option<Scores>,
}

impl<'a> LoopPart<'a> {
    fn new(
        run: Run<'a>,
        work: &'a Work,
        log: &'a Log,
        test: &'a PoisonSet,
        hook: Option<&'a mut (dyn TrainHook + 'static)>,
    ) -> Result<Self, AttackError> {
        let path = work.dir().join(METRICS);
        let rows = match files::read(&path, Links::Refuse, LONGEST_ROWS) {
            // Rows that are no text are not those of a checkpoint, whose digest says so.
            Ok(rows) => String::from_utf8_lossy(&rows).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(AttackError::Checkpoint { path, source }),
        };
        let (progress, last_row, measured) = (None, None, None);
        Ok(Self {
            run,
            work,
            log,
            test,
            hook,
            recipe: run.ready.recipe(),
            rows,
            state: Vec::new(),
            progress,
            last_row,
            measured,
        })
    }

    /// Images that an epoch trains on.
    fn images_per_epoch(&self) -> u64 {
        let (len, recipe) = (self.run.dataset.train.len(), &self.recipe);
        let whole = batch_count(len, recipe.batch_size, true) * recipe.batch_size;
        (if recipe.drop_last { whole } else { len }) as u64
    }

    /// The hook's state after `epochs` epochs of the classifier.
    fn hook_state(&self, epochs: usize) -> PathBuf {
        self.checkpoint(&format!("hook-{epochs}.bin"))
    }

    /// The hook's state after `epochs` epochs of its own work before.
    fn before_state(&self, epochs: usize) -> PathBuf {
        self.checkpoint(&format!("before-{epochs}.bin"))
    }

    fn checkpoint(&self, name: &str) -> PathBuf {
        self.work.dir().join(CKPT).join(name)
    }

    /// The content of a checkpoint, or `None` if there is no usable one; a damaged one is logged.
    fn saved(&self, path: &Path) -> Result<Option<Vec<u8>>, AttackError> {
        match checkpoint::read(path, Version::Last)? {
            Found::Whole(state) => Ok(Some(state)),
            Found::Absent => Ok(None),
            Found::Damaged(damage) => {
                self.warn(&damage.to_string())?;
                Ok(None)
            }
        }
    }

    /// Brings the hook back to a state; `path` is where it lies.
    fn load_hook(&mut self, state: &[u8], path: &Path) -> Result<(), AttackError> {
        match self.hook.as_deref_mut() {
            Some(hook) => hook.load(state, path),
            None => Ok(()),
        }
    }

    /// The hook's own work before the first epoch, from where it was left.
    fn before(&mut self) -> Result<(), AttackError> {
        let total = self.hook.as_deref().map_or(0, TrainHook::epochs_before);
        if total == 0 {
            return Ok(());
        }
        let mut first = 0;
        for epochs in (1..=total).rev() {
            let path = self.before_state(epochs);
            if let Some(state) = self.saved(&path)? {
                self.load_hook(&state, &path)?;
                first = epochs;
                break;
            }
        }
        if first > 0 {
            let say = format!("resumed after {first} of {total} epochs before training");
            self.info("resumed", &say, &json!({ "before": first }))?;
        }
        let per_epoch = self.images_per_epoch();
        let quiet = self.run.request.quiet;
        let progress = Progress::new("preparing", "images", total as u64 * per_epoch, quiet)
            .resumed_at(first as u64 * per_epoch);
        for epoch in first..total {
            let hook = self.hook.as_deref_mut().expect("it has work to do");
            let mut done = |images: usize| {
                if bb_core::cli::interrupted() {
                    return Err(TrainError::Interrupted { epoch }.into());
                }
                progress.add(images as u64);
                Ok(())
            };
            let told = hook.epoch_before(epoch, &mut done)?;
            let done = epoch + 1;
            let state = saved(hook, done)?;
            checkpoint::write(&self.before_state(done), &state)?;
            if done > 2 {
                // As in `end_epoch`.
                let _ = fs_err::remove_file(self.before_state(done - 2));
            }
            progress.note(&format!("epoch {done} of {total}, {told}"));
            let say = format!("before training, epoch {done} of {total}: {told}");
            self.info("before", &say, &json!({ "epoch": done }))?;
        }
        progress.finish();
        Ok(())
    }

    /// The rows of the first epochs.
    fn rows_of(&self, epochs: usize) -> &str {
        let rows = self.rows.split_inclusive('\n').take(epochs);
        &self.rows[..rows.map(str::len).sum()]
    }

    /// Whether the rows and the hook's state beside a checkpoint are there.
    fn has_kept(&mut self, epochs: usize, rows: &str) -> Result<bool, AttackError> {
        if artifact::sha256_hex(self.rows_of(epochs)) != rows {
            let say = format!(
                "the checkpoint after {epochs} epochs is not used: `{METRICS}` has not the rows that it had"
            );
            self.warn(&say)?;
            return Ok(false);
        }
        if self.hook.is_none() {
            return Ok(true);
        }
        let state = self.saved(&self.hook_state(epochs))?;
        let found = state.is_some();
        self.state = state.unwrap_or_default();
        Ok(found)
    }

    /// Goes back to the state after `epochs` epochs.
    fn resume(&mut self, epochs: usize) -> Result<(), AttackError> {
        // A row is written before the checkpoint of its epoch, so there may be one too many.
        let kept = self.rows_of(epochs).len();
        self.rows.truncate(kept);
        if epochs > 0 {
            let state = std::mem::take(&mut self.state);
            self.load_hook(&state, &self.hook_state(epochs))?;
            let say = format!("resumed after {epochs} epochs");
            self.info("resumed", &say, &json!({ "epochs": epochs }))?;
        } else {
            self.before()?;
        }
        let (total, quiet) = (self.recipe.epochs as u64, self.run.request.quiet);
        let per_epoch = self.images_per_epoch();
        let progress = Progress::new("training", "images", total * per_epoch, quiet);
        self.progress = Some(progress.resumed_at(epochs as u64 * per_epoch));
        Ok(())
    }

    fn end_epoch(&mut self, net: &mut Net, row: &EpochRow) -> Result<(), AttackError> {
        // Neither a row nor a checkpoint is written of what a failed device computed.
        net.take_failure()?;
        let done = row.epoch + 1;
        let every = self.run.ready.eval_every();
        let due = every > 0 && done.is_multiple_of(every);
        self.measured = None;
        if due || done == self.recipe.epochs {
            self.measured = Some(self.measure(net, done)?);
        }
        self.write_row(row)?;
        if let Some(hook) = self.hook.as_deref_mut() {
            let state = saved(hook, done)?;
            checkpoint::write(&self.hook_state(done), &state)?;
            // The checkpoint of this epoch is not written yet, so the states of the two before are still needed.
            if done >= 3 {
                // A state that stays too long does no harm, and all of them go when the cell is complete.
                let _ = fs_err::remove_file(self.hook_state(done - 3));
            }
        }
        self.last_row = Some(row.clone());
        Ok(())
    }

    fn measure(&mut self, net: &mut Net, done: usize) -> Result<Scores, AttackError> {
        let dataset = self.run.dataset;
        let own = match self.hook.as_deref_mut() {
            Some(hook) => hook.test_set()?,
            None => None,
        };
        let poisoned = own.as_ref().unwrap_or(self.test);
        measured_on(net, dataset, poisoned, (done, self.recipe.epochs))
    }

    fn write_row(&mut self, row: &EpochRow) -> Result<(), AttackError> {
        let share =
            |pick: fn(&Scores) -> Ratio| self.measured.as_ref().and_then(|s| pick(s).value());
        let entry = MetricsRow {
            epoch: row.epoch + 1,
            lr: row.lr,
            train_loss: row.train_loss,
            train_acc: train_acc(row),
            acc: share(|scores| scores.acc),
            asr: share(|scores| scores.asr),
            ra: share(|scores| scores.ra),
        };
        let line = serde_json::to_string(&entry).expect("a row of numbers is valid JSON");
        self.rows.push_str(&line);
        self.rows.push('\n');
        self.work.write(METRICS, self.rows.as_bytes())?;

        let (done, total) = (row.epoch + 1, self.recipe.epochs);
        let mut say = format!("epoch {done} of {total}: loss {:.4}", row.train_loss);
        if let Some(scores) = &self.measured {
            say = format!("{say}, {}", percentages(scores));
        }
        if let Some(progress) = &self.progress {
            progress.note(&format!(
                "epoch {done} of {total}, loss {:.3}",
                row.train_loss
            ));
        }
        self.info("epoch", &say, &entry)
    }

    fn info(&self, event: &str, text: &str, data: &impl Serialize) -> Result<(), AttackError> {
        self.log
            .info(event, text, data)
            .map_err(AttackError::log(self.work.dir()))
    }

    fn warn(&self, text: &str) -> Result<(), AttackError> {
        self.log
            .warn("checkpoint", text, &Value::Null)
            .map_err(AttackError::log(self.work.dir()))
    }
}

impl Hooks for LoopPart<'_> {
    fn mark(&self) -> String {
        artifact::sha256_hex(&self.rows)
    }

    fn fits(&mut self, epochs: usize, mark: &str) -> Result<bool, TrainError> {
        self.has_kept(epochs, mark).map_err(wrapped)
    }

    fn unusable(&mut self, why: &str) -> Result<(), TrainError> {
        self.warn(why).map_err(wrapped)
    }

    fn started(&mut self, epochs: usize) -> Result<(), TrainError> {
        self.resume(epochs).map_err(wrapped)
    }

    fn sees_batches(&self) -> bool {
        self.hook.is_some()
    }

    fn loader_augments(&self) -> bool {
        self.hook.as_deref().is_none_or(TrainHook::loader_augments)
    }

    fn gradients(
        &mut self,
        net: &mut Net,
        at: StepAt,
        batch: &mut Batch,
        grads: &mut Flat,
    ) -> Result<Loss, TrainError> {
        match self.hook.as_deref_mut() {
            Some(hook) => hook.gradients(net, at, batch, grads).map_err(wrapped),
            None => Ok(net.loss_grad(&batch.input, &batch.labels, Mode::Train, grads)),
        }
    }

    fn step(&mut self, images: usize) {
        if let Some(progress) = &self.progress {
            progress.add(images as u64);
        }
    }

    fn epoch(&mut self, net: &mut Net, row: &EpochRow) -> Result<(), TrainError> {
        self.end_epoch(net, row).map_err(wrapped)
    }
}

/// The scores after `done` of `total` epochs.
fn measured_on(
    net: &mut Net,
    dataset: &Dataset,
    poisoned: &PoisonSet,
    (done, total): (usize, usize),
) -> Result<Scores, AttackError> {
    eval::scores(net, &dataset.test, poisoned, &dataset.spec).map_err(|source| match source {
        NnError::Logits(_) => AttackError::Scores {
            done,
            total,
            source,
        },
        other => other.into(),
    })
}

/// The state of a hook after `done` epochs; one that is not finite is a training that diverged.
fn saved(hook: &dyn TrainHook, done: usize) -> Result<Vec<u8>, AttackError> {
    hook.save().map_err(|error| match error {
        AttackError::Nn(NnError::NotFinite { name, .. }) => {
            AttackError::Train(TrainError::NotFinite {
                epoch: done,
                tensor: name,
            })
        }
        other => other,
    })
}

/// Writes the poisoned images and the files of the attack's own.
fn write_sets(work: &Work, sets: &Finished) -> Result<(), AttackError> {
    work.write(POISON_TRAIN, &sets.train.to_bytes())?;
    work.write(POISON_TEST, &sets.test.to_bytes())?;
    for (name, bytes) in &sets.artefacts {
        work.write(name, bytes)?;
    }
    Ok(())
}

/// Our error on its way through the training loop.
pub(crate) fn wrapped(error: AttackError) -> TrainError {
    TrainError::Hook(Box::new(error))
}

/// Our error, back from the training loop.
pub(crate) fn unwrapped(error: TrainError) -> AttackError {
    match error {
        TrainError::Hook(inner) => match inner.downcast() {
            Ok(ours) => *ours,
            Err(other) => AttackError::Train(TrainError::Hook(other)),
        },
        other => AttackError::Train(other),
    }
}

/// Share of the images of an epoch that were predicted as labelled.
fn train_acc(row: &EpochRow) -> Option<f64> {
    Ratio {
        hits: row.train_correct,
        total: row.train_total,
    }
    .value()
}

/// The scores for people.
fn percentages(scores: &Scores) -> String {
    let percent = |ratio: Ratio| {
        ratio
            .percent()
            .map_or_else(|| "none".to_owned(), |percent| format!("{percent:.2} %"))
    };
    format!(
        "ACC {}, ASR {}, RA {}",
        percent(scores.acc),
        percent(scores.asr),
        percent(scores.ra)
    )
}
