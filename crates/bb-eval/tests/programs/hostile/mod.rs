//! Files made to harm whoever reads them, given to the programs: each ends in one error, within a second of the processor
//! and 256 MiB, and changes nothing outside `out`.
//!
//! All of them are made here. `BB_HOSTILE=WORD` takes those with the word in their kind or name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::inputs::{Inputs, call, words};
use crate::run::{Call, Done, End};

mod cells;
mod parquet;
mod pictures;
mod places;
mod tables;
mod tensors;
mod texts;
mod torch;

/// Most time of the processor.
const MOST_TIME: Duration = Duration::from_secs(1);
/// Most memory, in KiB.
const MOST_MEMORY: u64 = 256 << 10;
/// When a program that waits is killed, in seconds of the clock.
const WAIT: u32 = 10;
/// Addresses that a program gets, in MiB, so that a fault harms nobody else.
const ADDRESSES: u64 = 4 << 10;

/// It must be refused.
const REFUSED: &[i32] = &[2, 3];
/// It says nothing that is wrong, or nothing that this program needs.
const HARMLESS: &[i32] = &[0, 2, 3];

/// One input, and the program that gets it.
struct Case {
    kind: &'static str,
    name: String,
    program: &'static str,
    /// Relative to the folder that `make` fills; results go to `out`.
    args: Vec<String>,
    make: Box<dyn Fn(&Path) + Send + Sync>,
    /// The only folder that may change.
    out: &'static str,
    /// What an error must name.
    named: &'static str,
    ends: &'static [i32],
}

impl Case {
    fn new(
        kind: &'static str,
        name: impl Into<String>,
        command: &str,
        make: impl Fn(&Path) + Send + Sync + 'static,
    ) -> Self {
        let mut args = words(command);
        let program = match args.remove(0).as_str() {
            "attack" => "bb-attack",
            "defense" => "bb-defense",
            _ => "bb-eval",
        };
        Self {
            kind,
            name: name.into(),
            program,
            args,
            make: Box::new(make),
            out: "out",
            named: "",
            ends: REFUSED,
        }
    }

    /// The same, with its results in another folder than `out`.
    fn inside(self, out: &'static str) -> Self {
        Self { out, ..self }
    }

    /// The same, but it may also be accepted.
    fn harmless(self) -> Self {
        Self {
            ends: HARMLESS,
            ..self
        }
    }
}

/// Everything below a folder but in `out`: what it is, how long, when it was changed last.
fn surroundings(folder: &Path, out: &str) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs_err::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            let facts = fs_err::symlink_metadata(&path).expect("it is there");
            if facts.is_dir() && path != folder.join(out) {
                left.push(path.clone());
            }
            if path != folder.join(out) {
                let changed = facts.modified().expect("a time");
                let said = format!("{:?} {} {changed:?}", facts.file_type(), facts.len());
                // A folder changes its time when the program looks at it, too.
                let said = if facts.is_dir() { String::new() } else { said };
                found.insert(path, said);
            }
        }
    }
    found
}

/// Runs a case; gives what it cost and what was wrong.
fn tried(case: &Case) -> (Done, Vec<String>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    (case.make)(folder.path());
    let before = surroundings(folder.path(), case.out);
    let done = Call {
        seconds: WAIT,
        mib: ADDRESSES,
        ..call(case.program, &case.args, folder.path(), &[])
    }
    .run();
    let mut wrong = Vec::new();
    match done.end {
        End::Exit(code) if case.ends.contains(&code) => {
            let errors = done
                .stderr
                .lines()
                .filter(|line| line.starts_with("error:"));
            let count = errors.count();
            if count != usize::from(code != 0) {
                wrong.push(format!("{count} errors with exit {code}"));
            }
        }
        End::Exit(code) => wrong.push(format!("exit {code}")),
        End::Signal(signal) => wrong.push(format!("signal {signal}")),
    }
    if done.end != End::Exit(0) && !done.stderr.contains(case.named) {
        wrong.push(format!("`{}` is not named", case.named));
    }
    if done.stderr.chars().any(|c| c.is_control() && c != '\n') {
        wrong.push("a control character in a message".to_owned());
    }
    if done.time > MOST_TIME {
        wrong.push(format!("{:.1} s", done.time.as_secs_f64()));
    }
    if done.peak_kib > MOST_MEMORY {
        wrong.push(format!("{} MiB", done.peak_kib >> 10));
    }
    if surroundings(folder.path(), case.out) != before {
        wrong.push("something outside of `out` was changed".to_owned());
    }
    (done, wrong)
}

fn all(inputs: &Inputs) -> Vec<Case> {
    let base = Base {
        cell: inputs.cell("base").into(),
        repair: inputs.cell("repair").into(),
        inputs: inputs.0.path().to_owned(),
    };
    [
        places::cases(&base),
        tensors::cases(),
        cells::cases(&base),
        tables::cases(),
        pictures::cases(&base),
        texts::cases(&base),
        torch::cases(&base),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What the inputs are made of.
#[derive(Clone)]
struct Base {
    /// A good attack's cell.
    cell: PathBuf,
    /// What a defense made of it, which does not know where it is.
    repair: PathBuf,
    /// Other good inputs.
    inputs: PathBuf,
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).expect("a folder");
    for entry in fs_err::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let place = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &place);
        } else {
            fs_err::copy(&path, &place).expect("a copy");
        }
    }
}

/// Writes a file, with its folder.
fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs_err::create_dir_all(path.parent().expect("a file has a folder")).expect("a folder");
    fs_err::write(path, bytes).expect("written");
}

#[test]
#[ignore = "slow"]
#[expect(clippy::print_stdout, reason = "how much was tried is a result, too")]
fn every_hostile_input_ends_soon_in_one_error() {
    let inputs = Inputs::new();
    let mut cases = all(&inputs);
    let wanted = std::env::var("BB_HOSTILE").ok();
    if let Some(word) = &wanted {
        cases.retain(|case| case.kind.contains(word) || case.name.contains(word));
    }
    assert!(
        wanted.is_some() || cases.len() >= 300,
        "{} inputs",
        cases.len()
    );
    let next = Mutex::new(cases.iter());
    let take = || next.lock().expect("nothing panics with it").next();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let done: Vec<(&Case, Done, Vec<String>)> = std::thread::scope(|scope| {
        let worker = || {
            let each = |case| {
                let (done, wrong) = tried(case);
                (case, done, wrong)
            };
            std::iter::from_fn(take).map(each).collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        let done = workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"));
        done.flatten().collect()
    });
    println!("{}", summary(&done));
    let mut findings = String::new();
    for (case, done, wrong) in done.iter().filter(|(.., wrong)| !wrong.is_empty()) {
        let (kind, name, words) = (case.kind, &case.name, done.last_words());
        let command = case.args.join(" ");
        let _ = writeln!(
            findings,
            "{kind}: {name}: {}\n    {command}\n    {words}",
            wrong.join(", ")
        );
    }
    assert!(findings.is_empty(), "{findings}");
}

/// A row for each kind.
fn summary(done: &[(&Case, Done, Vec<String>)]) -> String {
    let mut kinds: BTreeMap<&str, (usize, usize, Duration, u64)> = BTreeMap::new();
    for (case, done, wrong) in done {
        let (count, bad, slowest, largest) = kinds.entry(case.kind).or_default();
        *count += 1;
        *bad += usize::from(!wrong.is_empty());
        *slowest = (*slowest).max(done.time);
        *largest = (*largest).max(done.peak_kib);
    }
    let mut text = format!(
        "{} inputs\n| kind | inputs | slowest | largest | wrong |\n|---|---|---|---|---|\n",
        done.len()
    );
    for (kind, (count, bad, slowest, largest)) in kinds {
        let (ms, mib) = (slowest.as_millis(), largest >> 10);
        let _ = writeln!(text, "| {kind} | {count} | {ms} ms | {mib} MiB | {bad} |");
    }
    text
}
