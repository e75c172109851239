//! What a method may tell the harness, and the little that comes back.
//!
//! The decision this module embodies: knowledge flows one way. [`Ctx::probe`] has a model measured on the test set and
//! returns `()`, so no method can choose anything on accuracy or attack success there. All that a method gets back are
//! its own checkpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bb_core::artifact;
use bb_core::artifact::checkpoint::{self, Found, Version};
use bb_core::cell::{CKPT, METRICS, Work};
use bb_core::cli::check_interrupt;
use bb_core::data::{DatasetSpec, Split};
use bb_core::events::{LONGEST_ROWS, Log, Progress};
use bb_core::files::{self, Links};
use bb_core::metrics::Scores;
use bb_core::poison::PoisonSet;
use bb_nn::optim::Sgd;
use bb_nn::{Compute, Flat, Net, NnError, StateDict, eval};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::DefenseError;

/// Where in its work a method is; the first fields of a row in `metrics.jsonl`.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The stage, such as `finetune`.
    pub stage: &'a str,
    /// The name of the [`Candidate`](crate::method::Candidate) being made; empty if it is not about one.
    pub variant: &'a str,
    /// The epoch, counted from 0 here and from 1 in the row, if the stage has epochs.
    pub epoch: Option<usize>,
}

impl<'a> At<'a> {
    /// A stage as a whole.
    pub fn stage(stage: &'a str) -> Self {
        Self {
            stage,
            variant: "",
            epoch: None,
        }
    }

    /// The same for one candidate.
    #[must_use]
    pub fn variant(self, variant: &'a str) -> Self {
        Self { variant, ..self }
    }

    /// The same in an epoch.
    #[must_use]
    pub fn epoch(self, epoch: usize) -> Self {
        Self {
            epoch: Some(epoch),
            ..self
        }
    }

    /// The network that is there, for people.
    fn network(self) -> String {
        let mut text = format!("the network of stage `{}`", self.stage);
        if !self.variant.is_empty() {
            text = format!("{text}, candidate `{}`,", self.variant);
        }
        if let Some(epoch) = self.epoch {
            text = format!("{text} after epoch {}", epoch + 1);
        }
        text
    }

    fn row(self) -> Map<String, Value> {
        let mut row = Map::new();
        row.insert("stage".to_owned(), self.stage.into());
        if !self.variant.is_empty() {
            row.insert("variant".to_owned(), self.variant.into());
        }
        if let Some(epoch) = self.epoch {
            row.insert("epoch".to_owned(), (epoch + 1).into());
        }
        row
    }
}

/// The run that a method is part of.
pub struct Ctx<'a> {
    seed: u64,
    quiet: bool,
    host: Option<Host<'a>>,
    /// What went wrong where nothing could be returned; the next call that can fail returns it.
    failure: Option<DefenseError>,
}

impl<'a> Ctx<'a> {
    /// A run that keeps and measures nothing, for tests and for use without a harness.
    pub fn detached(seed: u64) -> Self {
        Self {
            seed,
            quiet: true,
            host: None,
            failure: None,
        }
    }

    pub(crate) fn new(seed: u64, quiet: bool, host: Host<'a>) -> Self {
        Self {
            seed,
            quiet,
            host: Some(host),
            failure: None,
        }
    }

    pub(crate) fn into_host(self) -> Option<Host<'a>> {
        self.host
    }

    /// The seed of the run, for [`bb_core::rng::stream`] and for loaders.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Measures ACC, ASR and RA of a model for the record. Nothing of it comes back.
    pub fn probe(&mut self, at: At<'_>, net: &mut Net) {
        if let (Some(host), None) = (&mut self.host, &self.failure) {
            self.failure = host.probe(at, net).err();
        }
    }

    /// Keeps a row of the method's own numbers in `metrics.jsonl`.
    ///
    /// # Panics
    /// If `fields` does not serialise to an object.
    pub fn record(&mut self, at: At<'_>, fields: &impl Serialize) -> Result<(), DefenseError> {
        self.check()?;
        match &mut self.host {
            Some(host) => host.append(at, fields),
            None => Ok(()),
        }
    }

    /// Fails if the run was asked to stop; to be called at every batch.
    pub fn check(&mut self) -> Result<(), DefenseError> {
        check_interrupt()?;
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Tells what was found, in one line for people; `event` is a fixed word to search the log for.
    pub fn info(&mut self, event: &str, text: &str) -> Result<(), DefenseError> {
        self.tell(|host| host.log.info(event, text, &Value::Null))
    }

    /// Tells what the user should know of, even when quiet.
    pub fn warn(&mut self, event: &str, text: &str) -> Result<(), DefenseError> {
        self.tell(|host| host.log.warn(event, text, &Value::Null))
    }

    fn tell(
        &mut self,
        line: impl FnOnce(&Host<'a>) -> std::io::Result<()>,
    ) -> Result<(), DefenseError> {
        self.check()?;
        match &self.host {
            Some(host) => line(host).map_err(DefenseError::log(host.work.dir())),
            None => Ok(()),
        }
    }

    /// A progress bar on a terminal, else a line now and then.
    pub fn progress(&self, label: &str, unit: &'static str, total: u64) -> Progress {
        Progress::new(label, unit, total, self.quiet)
    }

    /// The checkpoint of this name, if an earlier run left one.
    ///
    /// `name` is a file name without ending, of letters, digits and `.`, `=`, `-`, `_`.
    pub fn load<P: DeserializeOwned>(
        &mut self,
        name: &str,
    ) -> Result<Option<Saved<P>>, DefenseError> {
        self.check()?;
        match &self.host {
            Some(host) => host.load(name),
            None => Ok(None),
        }
    }

    /// Writes a checkpoint over the one of the same name.
    ///
    /// A method must read its checkpoints in such an order that it goes on from the one written last: rows recorded
    /// after that one are dropped when a run resumes, because they will be recorded again.
    pub fn save(
        &mut self,
        name: &str,
        state: &StateDict,
        progress: &impl Serialize,
    ) -> Result<(), DefenseError> {
        self.check()?;
        match &mut self.host {
            Some(host) => host.save(name, state, progress),
            None => Ok(()),
        }
    }
}

/// A checkpoint.
#[derive(Clone, Debug)]
pub struct Saved<P> {
    /// Tensors.
    pub state: StateDict,
    /// Whatever else the method needs to go on.
    pub progress: P,
    path: PathBuf,
}

const VELOCITY: &str = "velocity.";

/// A network and the optimiser that trains it, as one dictionary; see [`Saved::restore_training`].
pub fn training_state(net: &Net, sgd: &Sgd) -> Result<StateDict, DefenseError> {
    let mut state = net.state()?;
    state.insert_flat(VELOCITY, sgd.velocity())?;
    Ok(state)
}

impl<P> Saved<P> {
    /// Fills a vector with the tensors that [`StateDict::insert_flat`] wrote behind `prefix`.
    ///
    /// # Errors
    /// [`DefenseError::Checkpoint`] if one of its tensors is missing or of another shape, or there is one more.
    pub fn read_flat(&self, prefix: &str, flat: &mut Flat) -> Result<(), DefenseError> {
        let (inside, _) = self.state.clone().split(prefix);
        inside
            .read_flat(flat)
            .map_err(|error| DefenseError::Checkpoint {
                path: self.path.clone(),
                reason: format!("`{prefix}`: {error}"),
            })
    }

    /// Brings a network and its optimiser back to where [`training_state`] took them.
    pub fn restore_training(&self, net: &mut Net, sgd: &mut Sgd) -> Result<(), DefenseError> {
        self.restore(net, &mut [(VELOCITY, sgd.velocity_mut())])
    }

    /// Brings a network back to where [`Net::state`] took it, and vectors that
    /// [`StateDict::insert_flat`] put beside it, each behind its prefix.
    ///
    /// # Errors
    /// [`DefenseError::Checkpoint`] if a tensor is missing, unknown or of another shape or type.
    pub fn restore(
        &self,
        net: &mut Net,
        vectors: &mut [(&str, &mut Flat)],
    ) -> Result<(), DefenseError> {
        let wrong = |error: NnError| DefenseError::Checkpoint {
            path: self.path.clone(),
            reason: error.to_string(),
        };
        let mut rest = self.state.clone();
        for (prefix, vector) in vectors {
            let (own, others) = rest.split(prefix);
            own.read_flat(vector).map_err(wrong)?;
            rest = others;
        }
        net.set_state(&rest).map_err(wrong)
    }
}

/// The harness's side: the test data and the cell, which methods never see.
pub(crate) struct Host<'a> {
    work: &'a Work,
    log: &'a Log,
    test: &'a Split,
    poisoned: &'a PoisonSet,
    task: &'a DatasetSpec,
    compute: &'a Compute,
    folder: PathBuf,
    /// The rows in the metrics file.
    rows: Rows,
    /// Number of the next checkpoint.
    sequence: u64,
}

/// Why a run cannot go on from its checkpoints.
struct Unusable {
    /// The checkpoint that says so.
    path: PathBuf,
    /// For people.
    why: String,
}

/// Rows of the metrics file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Rows {
    /// Their number.
    count: usize,
    /// A digest of the last one and of the digest before it.
    digest: String,
}

impl Rows {
    /// The first `count` rows in the file of a cell, as far as they are there.
    fn of(work: &Work, count: usize) -> Result<Self, DefenseError> {
        let path = work.dir().join(METRICS);
        let mut rows = Self::default();
        let bytes = match files::read(&path, Links::Refuse, LONGEST_ROWS) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(rows),
            Err(error) => {
                let reason = error.to_string();
                return Err(DefenseError::Checkpoint { path, reason });
            }
        };
        for line in bytes.split_inclusive(|&byte| byte == b'\n').take(count) {
            rows.add(line);
        }
        Ok(rows)
    }

    /// `line` has its end.
    fn add(&mut self, line: &[u8]) {
        self.count += 1;
        self.digest = artifact::sha256_hex([self.digest.as_bytes(), line].concat());
    }
}

const PROGRESS_KEY: &str = "progress";
const ROWS_KEY: &str = "rows";
const SEQUENCE_KEY: &str = "sequence";

impl<'a> Host<'a> {
    /// Goes on where the last checkpoint in the folder stands: rows that came after it are dropped.
    ///
    /// The checkpoints of a method build on one another, so one that cannot be used takes all others with it.
    pub(crate) fn resume(
        work: &'a Work,
        log: &'a Log,
        test: &'a Split,
        poisoned: &'a PoisonSet,
        task: &'a DatasetSpec,
        compute: &'a Compute,
    ) -> Result<Self, DefenseError> {
        let mut host = Self {
            work,
            log,
            test,
            poisoned,
            task,
            compute,
            folder: work.dir().join(CKPT),
            rows: Rows::default(),
            sequence: 0,
        };
        let told = match host.last()? {
            Ok(None) => Ok(()),
            Ok(Some((rows, sequence))) => {
                (host.rows, host.sequence) = (rows, sequence);
                let text = format!("resumed after {} rows of `{METRICS}`", host.rows.count);
                log.info("resumed", &text, &Value::Null)
            }
            Err(unusable) => {
                host.forget(&unusable.path)?;
                let text = format!("{}; the run begins anew", unusable.why);
                log.warn("checkpoint", &text, &Value::Null)
            }
        };
        told.map_err(DefenseError::log(work.dir()))?;
        let (kept, mut seen) = (host.rows.count, 0);
        work.truncate_lines(METRICS, |_| {
            seen += 1;
            seen <= kept
        })?;
        Ok(host)
    }

    /// The rows and the number behind the last checkpoint; or why none can be used.
    fn last(&self) -> Result<Result<Option<(Rows, u64)>, Unusable>, DefenseError> {
        let mut last: Option<(Rows, u64, PathBuf)> = None;
        for path in checkpoint_files(&self.folder)? {
            let bytes = match checkpoint::read(&path, Version::Last)? {
                Found::Whole(bytes) => bytes,
                Found::Absent => continue,
                Found::Damaged(damage) => {
                    let why = damage.to_string();
                    return Ok(Err(Unusable { path, why }));
                }
            };
            let metadata = StateDict::metadata(&bytes, &path)?;
            let sequence = field::<u64>(&metadata, SEQUENCE_KEY, &path)? + 1;
            if last.as_ref().is_none_or(|(_, last, _)| sequence > *last) {
                last = Some((field(&metadata, ROWS_KEY, &path)?, sequence, path));
            }
        }
        let Some((rows, sequence, path)) = last else {
            return Ok(Ok(None));
        };
        if rows != Rows::of(self.work, rows.count)? {
            let why = format!(
                "`{METRICS}` has not the {} rows that it had at the last checkpoint",
                rows.count
            );
            return Ok(Err(Unusable { path, why }));
        }
        Ok(Ok(Some((rows, sequence))))
    }

    /// Removes all checkpoints, `last` at the end, so that a run that is killed meanwhile does not go on from the others.
    fn forget(&self, last: &Path) -> Result<(), DefenseError> {
        let others = checkpoint_files(&self.folder)?.into_iter();
        for path in others.filter(|path| path != last).chain([last.to_owned()]) {
            fs_err::remove_file(&path).map_err(|source| write_error(&path, source))?;
        }
        Ok(())
    }

    /// ACC, ASR and RA of a model; `network` is what it is called in an error.
    pub(crate) fn scores(&self, net: &mut Net, network: &str) -> Result<Scores, DefenseError> {
        eval::scores(net, self.test, self.poisoned, self.task)
            .map_err(DefenseError::scores(network))
    }

    fn probe(&mut self, at: At<'_>, net: &mut Net) -> Result<(), DefenseError> {
        let scores = self.scores(net, &at.network())?;
        self.append_scores(at, &scores)
    }

    /// Adds a row of scores, as fractions.
    pub(crate) fn append_scores(
        &mut self,
        at: At<'_>,
        scores: &Scores,
    ) -> Result<(), DefenseError> {
        let Scores { acc, asr, ra } = scores;
        self.append(
            at,
            &json!({ "acc": acc.value(), "asr": asr.value(), "ra": ra.value() }),
        )
    }

    /// Adds a row.
    pub(crate) fn append(
        &mut self,
        at: At<'_>,
        fields: &impl Serialize,
    ) -> Result<(), DefenseError> {
        let mut row = at.row();
        match serde_json::to_value(fields) {
            Ok(Value::Object(fields)) => row.extend(fields),
            other => panic!("a row of measurements serialises to an object, not to {other:?}"),
        }
        let line = Value::Object(row).to_string();
        self.work.append_line(METRICS, &line)?;
        self.rows.add(format!("{line}\n").as_bytes());
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".=-_".contains(c);
        assert!(
            !name.is_empty() && name.chars().all(plain),
            "checkpoint name `{name}`"
        );
        self.folder.join(format!("{name}.safetensors"))
    }

    /// Reads a checkpoint.
    pub(crate) fn load<P: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<Saved<P>>, DefenseError> {
        let path = self.path(name);
        let bytes = match checkpoint::read(&path, Version::Last)? {
            Found::Whole(bytes) => bytes,
            Found::Absent => return Ok(None),
            // All of them were whole when the run began.
            Found::Damaged(damage) => {
                let reason = damage.to_string();
                return Err(DefenseError::Checkpoint { path, reason });
            }
        };
        let progress = field(&StateDict::metadata(&bytes, &path)?, PROGRESS_KEY, &path)?;
        Ok(Some(Saved {
            state: StateDict::from_bytes(&bytes, &path)?,
            progress,
            path,
        }))
    }

    /// Writes a checkpoint.
    pub(crate) fn save(
        &mut self,
        name: &str,
        state: &StateDict,
        progress: &impl Serialize,
    ) -> Result<(), DefenseError> {
        // What a failed device computed would be gone on from for ever after.
        self.compute.take_failure()?;
        let path = self.path(name);
        fs_err::create_dir_all(&self.folder).map_err(|source| write_error(&path, source))?;
        let text =
            serde_json::to_string(progress).map_err(|source| write_error(&path, source.into()))?;
        let metadata = BTreeMap::from([
            (PROGRESS_KEY.to_owned(), text),
            (ROWS_KEY.to_owned(), json!(self.rows).to_string()),
            (SEQUENCE_KEY.to_owned(), self.sequence.to_string()),
        ]);
        let bytes = state
            .to_bytes(&metadata)
            .map_err(|error| not_finite(name, error))?;
        // A checkpoint that outlives the rows that it counts cannot be gone on from.
        self.work.sync_lines(METRICS)?;
        checkpoint::write(&path, &bytes)?;
        self.sequence += 1;
        Ok(())
    }
}

/// A model that is no longer finite is a failure of the method's numbers, not of a file.
pub(crate) fn not_finite(stage: &str, error: NnError) -> DefenseError {
    match error {
        NnError::NotFinite { name, .. } => DefenseError::NotFinite {
            stage: stage.to_owned(),
            tensor: name,
        },
        other => other.into(),
    }
}

fn write_error(path: &Path, source: std::io::Error) -> DefenseError {
    bb_core::artifact::ArtifactError::Write {
        path: path.to_owned(),
        source,
    }
    .into()
}

fn field<P: DeserializeOwned>(
    metadata: &BTreeMap<String, String>,
    key: &str,
    path: &Path,
) -> Result<P, DefenseError> {
    let wrong = |reason: String| DefenseError::Checkpoint {
        path: path.to_owned(),
        reason,
    };
    let text = metadata
        .get(key)
        .ok_or_else(|| wrong(format!("`{key}` is missing")))?;
    serde_json::from_str(text).map_err(|error| wrong(format!("`{key}`: {error}")))
}

/// The whole checkpoints of a folder, which need not exist. What a killed process left half written is not among them.
fn checkpoint_files(folder: &Path) -> Result<Vec<PathBuf>, DefenseError> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let wrong = |error: std::io::Error| DefenseError::Checkpoint {
        path: folder.to_owned(),
        reason: error.to_string(),
    };
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let whole = path
            .extension()
            .is_some_and(|ending| ending == "safetensors");
        if whole {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
