//! Runs what a grid asks for: all attacks, then all defenses, one after the other in this process.
//!
//! A cell that fails does not stop the others; the program then ends with the exit code of the worst failure.
//! A cell that is complete is verified and left alone, so running a grid again only does what is missing.
//!
//! Several processes may run the same grid. A cell that another one works on is *busy*: this one goes on with the other
//! cells, comes back to it, and takes over what the other one has completed, or goes on where it was killed.
//! A cell whose last run failed for good is *failed*: it would fail again, so it is computed only when asked for.
use std::collections::BTreeSet;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bb_attack::{AttackError, AttackRequest};
use bb_core::artifact::atomic;
use bb_core::cell::{self, Cell, CellError, Holder, Lock, MANIFEST, Opened, store};
use bb_core::cli::{Failure, catch_interrupts, check_interrupt, exit};
use bb_core::events::{Log, rfc3339};
use bb_defense::{DefenseError, DefenseRequest};
use bb_nn::Compute;
use serde_json::Value;

use crate::collect;
use crate::part::Part;
use crate::plan::{Left, State, Step, attack_of, look_again, plan};
use crate::prepare::{Prepared, Source, Trained, cache};
use crate::table::{Selection, Table, View, csv, html, json, latex, markdown, text};
use crate::zoo;

/// First pause before busy cells are looked at again; each pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause: nothing against the minutes of a cell, and no load on a shared disk.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The file in the folder of results that is locked while the tables are written.
const TABLE_LOCK: &str = "table.lock";

/// How a grid is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// No progress and no log lines, only warnings.
    pub quiet: bool,
    /// Wait for cells that other processes work on.
    pub wait: bool,
    /// Compute cells again whose last run failed for good.
    pub retry: bool,
    /// What follows on a cell that failed.
    pub on_failure: OnFailure,
    /// Which cells are computed; an attack is, too, where one of its defenses needs it.
    pub part: Part,
}

/// What follows on a cell that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The others are computed.
    GoOn,
    /// None is begun any more.
    Stop,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            quiet: false,
            wait: true,
            retry: false,
            on_failure: OnFailure::GoOn,
            part: Part::default(),
        }
    }
}

/// What became of a grid.
pub struct Outcome {
    /// The table of everything that is complete.
    pub table: Table,
    /// How many cells went which way.
    pub counts: Counts,
    /// The failed cells, each with its title.
    pub failures: Vec<(String, Failure)>,
    /// The cells that other processes still work on, each with its title.
    pub busy: Vec<(String, Option<Holder>)>,
    /// How many of the failed cells were not computed, since an earlier run had failed.
    pub not_retried: usize,
}

/// How many cells went which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Complete before.
    pub found: usize,
    /// Computed now, in whole or from a checkpoint on.
    pub computed: usize,
    /// Completed by another process while this one ran.
    pub others: usize,
    /// Failed, now or before.
    pub failed: usize,
    /// Left to another process, which still works on it.
    pub busy: usize,
    /// Not begun because their attack failed or is busy, or because another cell failed.
    pub skipped: usize,
    /// Not asked for, and not complete.
    pub left: usize,
}

impl Counts {
    /// `4 cells: 1 complete before, 2 computed, 1 failed`: what happened to no cell is left out behind the first two.
    fn say(&self) -> String {
        let Self {
            found,
            computed,
            others,
            failed,
            busy,
            skipped,
            left,
        } = *self;
        let all = found + computed + others + failed + busy + skipped + left;
        let mut say = format!("{all} cells: {found} complete before, {computed} computed");
        for (count, what) in [
            (others, "computed by others"),
            (failed, "failed"),
            (busy, "busy"),
            (skipped, "skipped"),
            (left, "not asked for"),
        ] {
            if count > 0 {
                let _ = write!(say, ", {count} {what}");
            }
        }
        say
    }
}

/// Runs a grid on `compute` and writes its table into its folder, in all formats.
///
/// # Errors
/// An interruption ends the run at once; everything that goes wrong with a single cell is in the [`Outcome`].
pub fn run(prepared: &Prepared, compute: &Compute, options: Options) -> Result<Outcome, Failure> {
    let mut runner = Runner::new(prepared, compute, options)?;
    runner.run()?;
    let Runner {
        log,
        mut steps,
        asked,
        ends,
        failures,
        not_retried,
        ..
    } = runner;
    let mut counts = Counts::default();
    let mut busy = Vec::new();
    for ((step, end), asked) in steps.iter().zip(ends).zip(asked) {
        *match end {
            End::Open if !asked => &mut counts.left,
            End::Found => &mut counts.found,
            End::Computed => &mut counts.computed,
            End::ByOthers => &mut counts.others,
            End::Failed => &mut counts.failed,
            End::Busy(holder) => {
                busy.push((step.title(prepared), holder));
                &mut counts.busy
            }
            End::Open | End::Skipped => &mut counts.skipped,
        } += 1;
    }
    // Said first, since a full disk has room for no table.
    log.info("done", &counts.say(), &Value::Null)?;
    let table = write_tables(prepared, &mut steps, &log)?;
    Ok(Outcome {
        table,
        counts,
        failures,
        busy,
        not_retried,
    })
}

/// What came of a cell so far.
#[derive(Debug, Clone, PartialEq)]
enum End {
    /// Not tried yet, or its attack is not complete yet.
    Open,
    /// Another process works on it.
    Busy(Option<Holder>),
    /// Complete before.
    Found,
    /// Computed here.
    Computed,
    /// Completed by another process while this one ran.
    ByOthers,
    /// Failed, now or before.
    Failed,
    /// Its attack failed.
    Skipped,
}

impl End {
    /// Whether there is nothing left to do.
    fn is_settled(&self) -> bool {
        !matches!(self, Self::Open | Self::Busy(_))
    }
}

/// Why a cell was not computed.
enum Trouble {
    Busy(Option<Holder>),
    Failed(Failure),
}

impl Trouble {
    /// What a failure is that may come of a cell that another process works on.
    fn of(failure: Failure) -> Self {
        match failure.error().downcast_ref() {
            Some(CellError::Locked { holder, .. }) => Self::Busy(holder.clone()),
            _ => Self::Failed(failure),
        }
    }
}

impl From<AttackError> for Trouble {
    fn from(error: AttackError) -> Self {
        match error {
            AttackError::Cell(CellError::Locked { holder, .. }) => Self::Busy(holder),
            error => Self::Failed(error.into()),
        }
    }
}

impl From<DefenseError> for Trouble {
    fn from(error: DefenseError) -> Self {
        match error {
            DefenseError::Cell(CellError::Locked { holder, .. }) => Self::Busy(holder),
            error => Self::Failed(error.into()),
        }
    }
}

struct Runner<'a> {
    prepared: &'a Prepared,
    compute: &'a Compute,
    options: Options,
    log: Log,
    began: SystemTime,
    steps: Vec<Step>,
    /// Which of them are to be computed.
    asked: Vec<bool>,
    /// What came of each step.
    ends: Vec<End>,
    /// The folders of the cells that were computed here.
    computed: BTreeSet<PathBuf>,
    failures: Vec<(String, Failure)>,
    not_retried: usize,
}

impl<'a> Runner<'a> {
    fn new(
        prepared: &'a Prepared,
        compute: &'a Compute,
        options: Options,
    ) -> Result<Self, Failure> {
        let steps = plan(prepared)?;
        let asked = options.part.of(prepared, &steps)?;
        let end = |step: &Step| match step.cell() {
            Some(cell) => {
                cell.clear_up();
                End::Found
            }
            None => End::Open,
        };
        let ends = steps.iter().map(end).collect();
        // What is complete needs no training, so that any machine prints the table of a grid that has run.
        let idle = |step: &Step| match step.state {
            State::Complete(_) => true,
            State::Failed { .. } => !options.retry,
            _ => false,
        };
        let needs_training = |step: &Step| {
            let attack = attack_of(&steps, step).map(|attack| &steps[attack]);
            let waits = step.defense.is_some()
                && attack.is_some_and(|attack| attack.cell().is_none() && idle(attack));
            !idle(step) && !waits
        };
        let mut wanted = steps.iter().zip(&asked);
        if wanted.any(|(step, asked)| *asked && needs_training(step)) {
            compute.supports(prepared.grid.precision)?;
        }
        Ok(Self {
            prepared,
            compute,
            log: Log::new(options.quiet),
            options,
            began: SystemTime::now(),
            steps,
            asked,
            ends,
            computed: BTreeSet::new(),
            failures: Vec::new(),
            not_retried: 0,
        })
    }

    /// Goes over the cells until all are settled, or until only busy ones are left and it is not to wait for them.
    fn run(&mut self) -> Result<(), Failure> {
        let mut pause = FIRST_PAUSE;
        let mut told = String::new();
        loop {
            let settled = |ends: &[End]| ends.iter().filter(|end| end.is_settled()).count();
            let before = settled(&self.ends);
            for i in 0..self.steps.len() {
                let stop = self.options.on_failure == OnFailure::Stop;
                if stop && !self.failures.is_empty() {
                    return Ok(());
                }
                if self.asked[i] {
                    self.settle(i)?;
                }
            }
            let after = settled(&self.ends);
            let mut asked = self.ends.iter().zip(&self.asked);
            if asked.all(|(end, asked)| end.is_settled() || !asked) {
                return Ok(());
            }
            if after > before {
                // That took its time, and what was busy may be complete.
                pause = FIRST_PAUSE;
                continue;
            }
            if !self.options.wait {
                return Ok(());
            }
            // Before it is said, so that whoever reads it can interrupt a program that answers.
            catch_interrupts()?;
            let say = self.waiting();
            if say != told {
                self.log.info("waiting", &say, &Value::Null)?;
                told = say;
            }
            sleep(pause)?;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// What the run waits for, and who computes it.
    fn waiting(&self) -> String {
        let mut say = String::from("waiting for cells that others compute:");
        for (step, end) in self.steps.iter().zip(&self.ends) {
            if let End::Busy(holder) = end {
                let title = step.title(self.prepared);
                let _ = write!(say, "\n  {title}: {}", holder_name(holder.as_ref()));
            }
        }
        say
    }

    /// Does what can be done about a step now; for a defense, about its attack first.
    fn settle(&mut self, i: usize) -> Result<(), Failure> {
        if !self.ends[i].is_settled() {
            check_interrupt()?;
            self.ends[i] = self.attempt(i)?;
        }
        Ok(())
    }

    fn attempt(&mut self, i: usize) -> Result<End, Failure> {
        let (prepared, step) = (self.prepared, self.steps[i].clone());
        let (spec, attack) = match step.defense {
            None => match prepared.attack_spec(step.attack, step.seed) {
                Ok(spec) => (spec, None),
                Err(failure) => return self.failed(i, failure),
            },
            Some(defense) => {
                let own =
                    attack_of(&self.steps, &step).expect("a plan has the attack of a defense");
                self.settle(own)?;
                match &self.ends[own] {
                    End::Open | End::Busy(_) => return Ok(End::Open),
                    End::Failed | End::Skipped => return Ok(End::Skipped),
                    End::Found | End::Computed | End::ByOthers => {}
                }
                let cell = self.steps[own].cell().expect("it is complete").clone();
                let spec = prepared.defense_spec(defense, &cell, step.seed);
                (spec, Some(cell))
            }
        };
        match cell::open(&prepared.out, &spec) {
            Ok(Opened::Complete(cell)) => {
                let end = self.whose(&cell);
                self.complete(i, *cell);
                return Ok(end);
            }
            Err(CellError::Locked { holder, .. }) => return Ok(End::Busy(holder)),
            Err(error) => return self.failed(i, error.into()),
            Ok(Opened::Work(work)) => {
                if let Some(end) = self.failed_before(i, work.dir())? {
                    return Ok(end);
                }
                // The method's own harness opens it again.
            }
        }
        self.say_left()?;
        let number = format!("[{}/{}] ", i + 1, self.steps.len());
        let say = number + &step.title(prepared);
        self.log.info("cell", &say, &Value::Null)?;
        match one(
            prepared,
            &step,
            attack.as_ref(),
            self.compute,
            self.options.quiet,
        ) {
            Ok(cell) => {
                self.computed.insert(spec.dir(&prepared.out));
                self.complete(i, cell);
                Ok(End::Computed)
            }
            Err(Trouble::Busy(holder)) => Ok(End::Busy(holder)),
            Err(Trouble::Failed(failure)) => self.failed(i, failure),
        }
    }

    /// Says how long the cells that are asked for will take.
    fn say_left(&self) -> Result<(), Failure> {
        let steps = self.steps.iter().zip(&self.asked);
        let asked = steps.filter(|(_, asked)| **asked).map(|(step, _)| step);
        match Left::of(asked).say() {
            Some(say) => Ok(self
                .log
                .info("left", &format!("left: {say}"), &Value::Null)?),
            None => Ok(()),
        }
    }

    fn complete(&mut self, i: usize, cell: Cell) {
        self.steps[i].place = Some((cell.manifest.id.clone(), cell.dir.clone()));
        self.steps[i].state = State::Complete(Box::new(cell));
    }

    /// Whether a cell that is complete was so before, or came meanwhile.
    fn whose(&self, cell: &Cell) -> End {
        let written = fs_err::metadata(cell.file(MANIFEST)).and_then(|found| found.modified());
        let before = written.is_ok_and(|time| time < self.began);
        // Two entries of the grid with the same settings have the same cell.
        if before || self.computed.contains(&cell.dir) {
            End::Found
        } else {
            End::ByOthers
        }
    }

    /// What an earlier run of the cell in this folder ended with, if it failed for good and is not to be repeated.
    fn failed_before(&mut self, i: usize, dir: &Path) -> Result<Option<End>, Failure> {
        let Some(State::Failed { code, reason, time }) = State::failed(dir) else {
            return Ok(None);
        };
        // One that another process met while this one ran was tried again already.
        let now = time
            .as_ref()
            .is_some_and(|time| *time > rfc3339(self.began));
        if self.options.retry && !now {
            return Ok(None);
        }
        let title = self.steps[i].title(self.prepared);
        let when = time.map_or_else(String::new, |time| format!(" at {time}"));
        let why = if self.options.retry {
            "while this run went on"
        } else {
            "left alone without `--retry`"
        };
        let say = format!("{title} failed{when}, {why}: {reason}");
        self.log.info("failed", &say, &Value::Null)?;
        self.failures.push((title, Failure::new(code, reason)));
        self.not_retried += usize::from(!now);
        Ok(Some(End::Failed))
    }

    /// Notes that a cell has failed; an interruption is passed on.
    fn failed(&mut self, i: usize, failure: Failure) -> Result<End, Failure> {
        if matches!(failure.exit_code(), exit::INTERRUPTED | exit::TERMINATED) {
            return Err(failure);
        }
        let title = self.steps[i].title(self.prepared);
        let report = failure.report(false);
        let others = match self.options.on_failure {
            OnFailure::GoOn => "the others go on",
            OnFailure::Stop => "no other is begun",
        };
        let say = format!("{title} failed, {others}\n{}", report.trim_end());
        self.log.warn("failed", &say, &Value::Null)?;
        self.failures.push((title, failure));
        Ok(End::Failed)
    }
}

/// Who works on a cell, for people.
fn holder_name(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another process".to_owned(), Holder::to_string)
}

/// Waits, but not longer than until an interruption.
fn sleep(pause: Duration) -> Result<(), Failure> {
    const SLICE: Duration = Duration::from_millis(50);
    let mut left = pause;
    while !left.is_zero() {
        let slice = left.min(SLICE);
        std::thread::sleep(slice);
        left -= slice;
        check_interrupt()?;
    }
    Ok(())
}

/// Runs one cell. What a cell before it has left on the device is not asked for.
///
/// A panic is a bug of one method, and no reason to lose the rest of a grid.
fn one(
    prepared: &Prepared,
    step: &Step,
    attack: Option<&Cell>,
    compute: &Compute,
    quiet: bool,
) -> Result<Cell, Trouble> {
    let body = || match (step.defense, attack) {
        (None, _) => match &prepared.attacks[step.attack].source {
            Source::Trained(trained) => Ok(bb_attack::run(&attack_request(
                prepared, trained, step, compute, quiet,
            ))?),
            Source::Imported(imported) => {
                let (cell, _) = zoo::import(&imported.request, compute).map_err(Trouble::of)?;
                Ok(cell)
            }
        },
        (Some(defense), Some(attack)) => Ok(bb_defense::run(&defense_request(
            prepared, step, defense, attack, compute, quiet,
        ))?),
        (Some(_), None) => Err(Trouble::Failed(Failure::new(
            exit::BUG,
            "a defense was begun before its attack",
        ))),
    };
    // The failure behind a panic, or behind an error of another kind, was that cell's and not this one's.
    let _ = compute.take_failure();
    catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|panic| Err(Trouble::Failed(Failure::panicked(&*panic))))
}

fn attack_request(
    prepared: &Prepared,
    attack: &Trained,
    step: &Step,
    compute: &Compute,
    quiet: bool,
) -> AttackRequest {
    let grid = &prepared.grid;
    AttackRequest {
        method: attack.attack.info().id.to_owned(),
        dataset: grid.dataset.clone(),
        data: prepared.data.clone(),
        train_limit: grid.train_limit,
        test_limit: grid.test_limit,
        test_split: grid.test_split.clone(),
        arch: grid.arch.clone(),
        width: grid.width,
        precision: grid.precision,
        compute: compute.clone(),
        given: attack.given.clone(),
        seed: step.seed,
        out: prepared.out.clone(),
        quiet,
    }
}

fn defense_request(
    prepared: &Prepared,
    step: &Step,
    defense: usize,
    attack: &Cell,
    compute: &Compute,
    quiet: bool,
) -> DefenseRequest {
    let defense = &prepared.defenses[defense];
    DefenseRequest {
        defense: defense.defense,
        model: attack.dir.clone(),
        data: prepared.data.clone(),
        given: defense.given.clone(),
        precision: prepared.grid.precision,
        compute: compute.clone(),
        seed: step.seed,
        out: prepared.out.clone(),
        cache: Some(cache(&prepared.out)),
        quiet,
    }
}

/// Writes the table of what is complete now in all formats, each file whole or not at all.
///
/// Under a lock, because of two processes that end together the one that saw less must not write last.
fn write_tables(prepared: &Prepared, steps: &mut [Step], log: &Log) -> Result<Table, Failure> {
    let out = &prepared.tables();
    store::refuse_links(&prepared.out, out)?;
    fs_err::create_dir_all(out)?;
    let mut waited = false;
    let _lock = loop {
        match Lock::take(out, TABLE_LOCK) {
            Ok(lock) => break lock,
            Err(CellError::Locked { holder, .. }) => {
                catch_interrupts()?;
                if !waited {
                    let holder = holder_name(holder.as_ref());
                    let say = format!("waiting for {holder}, which writes the tables");
                    log.info("waiting", &say, &Value::Null)?;
                }
                waited = true;
                sleep(FIRST_PAUSE)?;
            }
            Err(error) => return Err(error.into()),
        }
    };
    // Whoever wrote tables here and was killed held the same lock.
    atomic::clear_abandoned(out);
    look_again(prepared, steps)?;
    let table = collect::from_steps(prepared, steps, &prepared.paper, &Selection::default())?;
    let (view, all) = (View::default(), std::slice::from_ref(&table));
    let files = [
        ("table.txt", text::write(&table, &view)),
        ("table.md", markdown::write(&table, &view)),
        ("table.csv", csv::write(all)),
        ("table.json", json::write(all)),
        ("table.tex", latex::write(&table, &view)),
        ("table.html", html::write(all, &view)),
    ];
    for (name, text) in files {
        atomic::write(out.join(name), text.as_bytes())?;
    }
    Ok(table)
}

impl Outcome {
    /// `Ok` if every cell is complete; otherwise one failure with the exit code of the worst one, or
    /// [`exit::TRY_AGAIN`] if cells are only busy.
    pub fn into_result(self) -> Result<(), Failure> {
        // What another attempt may cure is the least evil, a bug the greatest.
        let rank = |code: u8| match code {
            exit::TRY_AGAIN => 0,
            exit::BUG => 255,
            code => code,
        };
        let codes = self.failures.iter().map(|(_, f)| f.exit_code());
        let Some(code) = codes.max_by_key(|code| rank(*code)).or_else(|| {
            let busy = !self.busy.is_empty();
            busy.then_some(exit::TRY_AGAIN)
        }) else {
            return Ok(());
        };
        let mut message = String::new();
        if !self.failures.is_empty() {
            let _ = write!(
                message,
                "{} of the grid's cells failed",
                self.failures.len()
            );
        }
        for (title, failure) in &self.failures {
            let _ = write!(message, "\n  {title}: {failure}");
        }
        if !self.busy.is_empty() {
            let line = if message.is_empty() { "" } else { "\n" };
            let (busy, be) = match self.busy.len() {
                1 => (1, "is"),
                busy => (busy, "are"),
            };
            let _ = write!(message, "{line}{busy} of the grid's cells {be} busy");
        }
        for (title, holder) in &self.busy {
            let holder = holder_name(holder.as_ref());
            let _ = write!(message, "\n  {title}: {holder} works on it");
        }
        let hint = if self.not_retried > 0 {
            "`--retry` computes failed cells again"
        } else if self.failures.is_empty() {
            "the same command without `--no-wait` waits for them"
        } else {
            "the same command again does only what is missing, with `--retry` also what failed for good"
        };
        Err(Failure::new(code, message).hint(hint))
    }
}
