//! Every call by which a run changes files fails, or ends the process, or the power does; then the same run again must end
//! as if nothing had been.
//!
//! The tests take a sample. `BB_FAULTS=all` takes every call of every run, `BB_FAULTS=NAME` those of one, which
//! `scripts/crashpoints.sh` does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bb_core::rng;
use tempfile::TempDir;

use crate::inputs::{Inputs, SMALL, call, files, text, words};
use crate::run::{Call, Done, End, KILLED};

/// What happens at a call, as the shim is told.
struct Fault {
    name: &'static str,
    told: &'static [(&'static str, &'static str)],
    /// How the run may end.
    ends: &'static [End],
}

/// Not reached, or nothing that the result needs.
const DONE: End = End::Exit(0);
const REJECTED: End = End::Exit(3);
const TRY_AGAIN: End = End::Exit(75);
const DEAD: End = End::Signal(KILLED);

const FAULTS: [Fault; 14] = [
    fault("kill", &[("BB_FAULT_DO", "kill")], &[DEAD, DONE]),
    fault("data lost", &[("BB_FAULT_POWER", "data")], &[DEAD, DONE]),
    fault("names lost", &[("BB_FAULT_POWER", "names")], &[DEAD, DONE]),
    fault("power lost", &[("BB_FAULT_POWER", "both")], &[DEAD, DONE]),
    fault("short", &[("BB_FAULT_DO", "short")], &[DONE]),
    fault("EIO", &[("BB_FAULT_DO", "5")], &[DONE, REJECTED]),
    fault("EIO on", &[("BB_FAULT_DO", "5"), ON], &[DONE, REJECTED]),
    fault("EACCES", &[("BB_FAULT_DO", "13")], &[DONE, REJECTED]),
    fault("EINTR", &[("BB_FAULT_DO", "4")], &[DONE, REJECTED]),
    fault("EMFILE", &[("BB_FAULT_DO", "24")], &[DONE, TRY_AGAIN]),
    fault("ENOSPC", &[("BB_FAULT_DO", "28")], &[DONE, TRY_AGAIN]),
    fault(
        "ENOSPC on",
        &[("BB_FAULT_DO", "28"), ON],
        &[DONE, TRY_AGAIN],
    ),
    fault("EROFS on", &[("BB_FAULT_DO", "30"), ON], &[DONE, TRY_AGAIN]),
    fault(
        "EDQUOT on",
        &[("BB_FAULT_DO", "122"), ON],
        &[DONE, TRY_AGAIN],
    ),
];
const ON: (&str, &str) = ("BB_FAULT_ON", "1");

const fn fault(
    name: &'static str,
    told: &'static [(&'static str, &'static str)],
    ends: &'static [End],
) -> Fault {
    Fault { name, told, ends }
}

/// A run of a program, in a folder of its own, where its results lie in `out`.
struct Scenario {
    name: &'static str,
    program: &'static str,
    args: Vec<String>,
}

/// How a scenario ends when nothing is in its way.
struct Reference {
    /// Its calls, kind and path, from the first.
    calls: Vec<String>,
    files: BTreeMap<String, String>,
}

impl Inputs {
    fn scenarios(&self) -> Vec<Scenario> {
        let cell = self.cell("base");
        let [grid, index, images, record, model] = [
            "grid.toml",
            "index.toml",
            "images",
            "record/e",
            "badnets-synthetic-w8.safetensors",
        ]
        .map(|name| text(&self.place(name)));
        let own = "--dataset folder --width 1 --threads 1 -q --set train.batch_size=8";
        let two = "--set train.epochs=2";
        let on_cell = format!("--model {cell} --threads 1 -q --set clean.ratio=0.2 --out out");
        let attack = |name, args: String| (name, "bb-attack", args + " --out out");
        let defense = |name, args: &str| (name, "bb-defense", format!("{args} {on_cell}"));
        let eval = |name, args: String| (name, "bb-eval", args);
        let short = "--set recover.epochs=2 --set unlearn.max_epochs=2";
        [
            attack("attack", format!("badnets {SMALL} {two}")),
            attack("attack with state", format!("inputaware {SMALL} {two}")),
            attack("attack on images", format!("badnets {own} --data {images} --set train.epochs=1")),
            defense("defense", "ft --set finetune.epochs=2"),
            defense("defense with state", &format!("rnp {short}")),
            eval("grid", format!("run {grid} --threads 1 -q --out out")),
            eval(
                "import",
                format!("zoo import {record} --dataset synthetic --threads 1 --report out/report.json --out out"),
            ),
            eval(
                "import of a network",
                format!("zoo import {model} --dataset synthetic --test-limit 50 --threads 1 --out out"),
            ),
            eval("export", format!("zoo export {cell} --format state-dict --out out/e")),
            eval("record", format!("zoo export {cell} --format backdoorbench --out out/e")),
            eval("get", format!("zoo get badnets-synthetic-w8 -q --index {index} --dir out")),
        ]
        .into_iter()
        .map(|(name, program, args)| Scenario {
            name,
            program,
            args: words(&args),
        })
        .collect()
    }
}

/// What a run gives: files that must be the same bits each time, and the names of those that have times in them.
fn results(folder: &Path) -> BTreeMap<String, String> {
    let mut found = files(folder);
    found.retain(|name, _| !is_passing(name) && !name.starts_with("cache/"));
    for (name, digest) in &mut found {
        let last = name.rsplit('/').next().unwrap_or_default();
        if ["env.json", "log.jsonl", "lock"].contains(&last) || last.starts_with("table.") {
            digest.clear();
        }
    }
    found
}

/// Whether a file is there during a run only.
fn is_passing(name: &str) -> bool {
    let parts = |part: &str| {
        part.starts_with(".tmp-")
            || part == "ckpt"
            || Path::new(part).extension() == Some("part".as_ref())
    };
    name.split('/').any(parts) || name.ends_with("/failed.json")
}

/// What was on its way to an export or to the cache goes after a day.
fn goes_later(name: &str) -> bool {
    name.starts_with(".tmp-") || name.starts_with("cache/.tmp-")
}

/// Cells with a manifest that are not what they should be.
fn wrong_cells(found: &BTreeMap<String, String>, reference: &Reference) -> Vec<String> {
    let manifests = found
        .keys()
        .filter_map(|name| name.strip_suffix("manifest.json"));
    let differs = |cell: &&str| {
        let mut own = reference
            .files
            .iter()
            .filter(|(name, _)| name.starts_with(*cell));
        // A log that could not be written is no part of the result.
        own.any(|(name, digest)| found.get(name) != Some(digest) && !digest.is_empty())
    };
    manifests.filter(differs).map(str::to_owned).collect()
}

/// A folder in which scenarios run, one after the other.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        // In memory, where there is such a place: a real disk takes its time to be sure of what it has.
        let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self(made.expect("a temporary folder"))
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("out")
    }

    fn clear(&self) {
        for name in ["out", "side"] {
            let _ = fs_err::remove_dir_all(self.0.path().join(name));
            fs_err::create_dir(self.0.path().join(name)).expect("a folder");
        }
    }

    fn run(&self, scenario: &Scenario, shim: &[(&str, String)], mib: u64) -> Done {
        Call {
            mib,
            ..call(scenario.program, &scenario.args, self.0.path(), shim)
        }
        .run()
    }

    fn reference(&self, scenario: &Scenario) -> Reference {
        self.clear();
        let log = self.0.path().join("side/log");
        let done = self.run(scenario, &[("BB_FAULT_LOG", text(&log))], 0);
        assert_eq!(done.end, DONE, "{}: {}", scenario.name, done.stderr);
        let calls = fs_err::read_to_string(&log).expect("a log");
        Reference {
            calls: calls.lines().map(str::to_owned).collect(),
            files: results(&self.out()),
        }
    }

    /// What is wrong after a run that ended so, and after the same run again.
    fn findings(&self, scenario: &Scenario, reference: &Reference, done: &Done) -> Vec<String> {
        let mut said = Vec::new();
        let found = results(&self.out());
        for cell in wrong_cells(&found, reference) {
            said.push(format!("`{cell}` looks complete and is not"));
        }
        let is_result = |(name, digest): &(&String, &String)| {
            found.get(*name) == Some(*digest) || digest.is_empty()
        };
        let is_whole = reference.files.iter().all(|file| is_result(&file));
        if done.end == DONE && !is_whole {
            said.push("exit 0 without the result".to_owned());
        }
        let again = self.run(scenario, &[], 0);
        // An export does not write over what is there.
        let is_there = is_whole && again.end == End::Exit(2) && scenario.args[1] == "export";
        if again.end != DONE && !is_there {
            said.push(format!("again: {:?}, {}", again.end, again.last_words()));
        }
        let found = results(&self.out());
        let names: BTreeSet<&String> = found.keys().chain(reference.files.keys()).collect();
        for name in names {
            if found.get(name) != reference.files.get(name) {
                said.push(format!("again: `{name}` is not as it should be"));
            }
        }
        let left = files(&self.out());
        let stays = |name: &&String| is_passing(name) && !goes_later(name);
        let left: Vec<&String> = left.keys().filter(stays).collect();
        if let Some(name) = left.first() {
            said.push(format!(
                "{} files are left for good, such as `{name}`",
                left.len()
            ));
        }
        said
    }

    /// Breaks call `at` of a scenario.
    fn broken(
        &self,
        scenario: &Scenario,
        reference: &Reference,
        fault: &Fault,
        at: usize,
    ) -> Vec<String> {
        self.clear();
        let side = self.0.path().join("side");
        let mut shim = vec![
            ("BB_FAULT_AT", at.to_string()),
            ("BB_FAULT_SIDE", text(&side)),
        ];
        shim.extend(
            fault
                .told
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let done = self.run(scenario, &shim, 0);
        let mut said = self.findings(scenario, reference, &done);
        if !fault.ends.contains(&done.end) {
            said.insert(0, format!("{:?}, {}", done.end, done.last_words()));
        }
        let call = &reference.calls[at - 1];
        let place = format!("{}: {} at call {at}, {call}", scenario.name, fault.name);
        said.into_iter()
            .map(|said| format!("{place}: {said}"))
            .collect()
    }
}

/// Does `work` for each of the numbers below `count` on all cores, each with a bench of its own; gives what it said.
fn on_all_cores(count: usize, work: impl Fn(&Bench, usize) -> Vec<String> + Sync) -> Vec<String> {
    let next = Mutex::new(0..count);
    let take = || next.lock().expect("nothing panics with it").next();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let worker = || {
            let bench = Bench::new();
            std::iter::from_fn(take)
                .flat_map(|i| work(&bench, i))
                .collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        let said = workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"));
        said.flatten().collect()
    })
}

/// Calls of each fault that a sample takes from a scenario.
const SAMPLE: usize = 2;

#[test]
#[ignore = "slow"]
#[expect(clippy::print_stdout, reason = "how much was tried is a result, too")]
fn a_broken_call_costs_a_run_and_nothing_else() {
    let wanted = std::env::var("BB_FAULTS").ok();
    let inputs = Inputs::new();
    let before = files(inputs.0.path());
    let bench = Bench::new();
    let mut scenarios = inputs.scenarios();
    if let Some(name) = wanted.as_deref().filter(|name| *name != "all") {
        scenarios.retain(|scenario| scenario.name == name);
        assert!(!scenarios.is_empty(), "no run is called `{name}`");
    }
    let mut cases = Vec::new();
    let mut references = Vec::new();
    for (s, scenario) in scenarios.iter().enumerate() {
        let reference = bench.reference(scenario);
        let calls = reference.calls.len();
        let mut own = 0;
        for (f, fault) in FAULTS.iter().enumerate() {
            let purpose = format!("faults/{}/{}", scenario.name, fault.name);
            let mut order = rng::permutation(&mut rng::stream(17, &purpose, 0, 0), calls);
            if wanted.is_none() {
                order.truncate(SAMPLE);
            }
            own += order.len();
            cases.extend(order.into_iter().map(|call| (s, f, call + 1)));
        }
        println!("{}: {calls} calls, {own} broken", scenario.name);
        references.push(reference);
    }
    let said = on_all_cores(cases.len(), |bench, i| {
        let (s, f, at) = cases[i];
        bench.broken(&scenarios[s], &references[s], &FAULTS[f], at)
    });
    assert!(
        said.is_empty(),
        "{} of {}:\n{}",
        said.len(),
        cases.len(),
        said.join("\n")
    );
    assert_eq!(
        files(inputs.0.path()),
        before,
        "a run has changed what it reads"
    );
}

/// Addresses that a run gets, in MiB, from too few for the program itself to what it needs.
const LEVELS: [u64; 24] = [
    2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 64, 72, 80, 88, 96, 112, 128, 160, 192,
    256,
];

/// How a run may end that gets too little memory: in words, or by the abort of whoever wanted some.
const SHORT_ENDS: [End; 5] = [DONE, REJECTED, TRY_AGAIN, End::Signal(6), End::Exit(127)];
/// With as many MiB or fewer the program's own threads do not get their stacks, and it ends in other ways too.
const TOO_FEW: u64 = 32;

#[test]
#[ignore = "slow"]
fn a_run_without_memory_leaves_nothing_that_looks_complete() {
    let inputs = Inputs::new();
    let scenarios = inputs.scenarios();
    let bench = Bench::new();
    let references: Vec<Reference> = scenarios.iter().map(|s| bench.reference(s)).collect();
    let said = on_all_cores(scenarios.len() * LEVELS.len(), |bench, i| {
        let (scenario, reference) = (&scenarios[i / LEVELS.len()], &references[i / LEVELS.len()]);
        let mib = LEVELS[i % LEVELS.len()];
        bench.clear();
        let done = bench.run(scenario, &[], mib);
        let mut said = bench.findings(scenario, reference, &done);
        if mib > TOO_FEW && !SHORT_ENDS.contains(&done.end) {
            said.insert(0, format!("{:?}, {}", done.end, done.last_words()));
        }
        let place = format!("{} with {mib} MiB", scenario.name);
        said.into_iter()
            .map(|said| format!("{place}: {said}"))
            .collect()
    });
    assert!(said.is_empty(), "{}:\n{}", said.len(), said.join("\n"));
}
