//! Several processes on one grid, and cells that fail for good.
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bb_core::cell::{Cell, CellSpec, Failed, Holder, Opened, open};
use bb_eval::grid::Grid;
use bb_eval::prepare::{Places, Prepared};
use tempfile::TempDir;

/// Two attacks with two seeds and one defense, a few seconds in all on one thread.
const GRID: &str = "\
[grid]
name = \"shared\"
dataset = \"synthetic\"
width = 4
seeds = [0, 1]
train_limit = 200
test_limit = 50

[[attack]]
method = \"badnets\"
set = { train = { epochs = 2, batch_size = 20 } }

[[attack]]
method = \"blended\"
set = { train = { epochs = 2, batch_size = 20 } }

[[defense]]
method = \"ft\"
set = { clean.ratio = 0.1, finetune.epochs = 2 }
";

/// One attack with one seed and two defenses.
const SMALL: &str = "\
[grid]
name = \"small\"
dataset = \"synthetic\"
width = 4
seeds = [0]
train_limit = 100
test_limit = 50

[[attack]]
method = \"badnets\"
set = { train = { epochs = 1, batch_size = 20 } }

[[defense]]
method = \"ft\"
set = { clean.ratio = 0.2, finetune.epochs = 1 }

[[defense]]
method = \"clp\"
";

struct Place(TempDir);

impl Place {
    fn new(grid: &str) -> Self {
        let place = Self(tempfile::tempdir().expect("a temporary folder"));
        place.write("grid.toml", grid);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs_err::write(self.path(name), text).expect("written");
    }

    fn read(&self, name: &str) -> String {
        fs_err::read_to_string(self.path(name)).expect("readable")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bb-eval"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// A run of the grid with these options.
    fn run(&self, options: &[&str]) -> Done {
        let args = [&RUN, options].concat();
        Done::of(&self.command(&args).output().expect("it starts"))
    }

    fn plan(&self) -> String {
        let args = ["plan", "grid.toml", "--out", "out"];
        Done::of(&self.command(&args).output().expect("it starts")).stdout
    }

    fn prepared(&self) -> Prepared {
        let grid = Grid::load(&self.path("grid.toml")).expect("a good grid");
        let places = Places {
            out: Some(self.path("out")),
            data: None,
        };
        Prepared::new(grid, &places, &[]).expect("all is there")
    }

    /// What the first attack with seed 0 follows from.
    fn attack(&self) -> CellSpec {
        self.prepared().attack_spec(0, 0).expect("a specification")
    }

    /// All files of this name below `out`, by path.
    fn files(&self, name: &str) -> Vec<PathBuf> {
        files(&self.path("out"))
            .into_iter()
            .filter(|path| path.file_name().is_some_and(|found| found == name))
            .collect()
    }

    /// How many cells were computed to their end, by all processes together, as their logs say.
    fn ends(&self) -> usize {
        let logs = self.files("log.jsonl").into_iter();
        let end = |line: &&str| {
            line.contains("\"event\":\"trained\"") || line.contains("\"event\":\"end\"")
        };
        logs.map(|log| fs_err::read_to_string(log).expect("readable"))
            .map(|log| log.lines().filter(end).count())
            .sum()
    }
}

const RUN: [&str; 6] = ["run", "grid.toml", "--out", "out", "--threads", "1"];

/// How a program ended.
struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Done {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        Self {
            code: output.status.code().expect("an exit code"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// The line that says how many cells went which way.
    fn counts(&self) -> &str {
        let lines = self.stderr.lines();
        lines
            .clone()
            .find(|line| line.contains(" complete before, "))
            .unwrap_or_else(|| panic!("no counts in\n{}", self.stderr))
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A process that runs, whose standard error is read as it comes.
struct Worker {
    child: Child,
    lines: Receiver<String>,
    said: String,
}

impl Worker {
    fn start(place: &Place, options: &[&str]) -> Self {
        let mut command = place.command(&[&RUN, options].concat());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        Self {
            child,
            lines,
            said: String::new(),
        }
    }

    /// Waits until it says a line that has this in it.
    fn says(&mut self, wanted: &str) {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|_| panic!("no `{wanted}` in\n{}", self.said));
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(wanted) {
                return;
            }
        }
    }

    fn done(mut self) -> Done {
        let mut stdout = String::new();
        let mut pipe = self.child.stdout.take().expect("a pipe");
        pipe.read_to_string(&mut stdout).expect("UTF-8");
        let status = self.child.wait().expect("it ends");
        for line in &self.lines {
            self.said.push_str(&line);
            self.said.push('\n');
        }
        Done {
            code: status.code().expect("an exit code"),
            stdout,
            stderr: self.said,
        }
    }
}

/// The last number before `word` in a text.
fn number(text: &str, word: &str) -> usize {
    let Some((before, _)) = text.split_once(word) else {
        return 0;
    };
    let digits = before.trim_end().rsplit([' ', ',']).next();
    digits
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("no number before `{word}` in {text}"))
}

/// Lines of a table file without what the runs took.
fn untimed(name: &str, text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.contains("time: "));
    if name == "table.csv" {
        let header: Vec<&str> = text.lines().next().unwrap_or_default().split(',').collect();
        let spent = ["seconds", "peak_kib"];
        assert!(spent.iter().all(|name| header.contains(name)), "{header:?}");
        let own = |line: &str| {
            let fields = line.split(',').zip(&header);
            let fields = fields.filter(|(_, name)| !spent.contains(name));
            fields.map(|(field, _)| field).collect::<Vec<_>>().join(",")
        };
        return lines.map(own).collect();
    }
    let units = [" s", " min", " MiB", " GiB"];
    lines
        .filter(|line| !line.starts_with("---"))
        .map(|line| {
            // Columns are apart by two spaces, a bar or an ampersand, and rows of LaTeX end with two backslashes.
            let line = line.replace(" | ", "  ").replace(" & ", "  ");
            let line = line.trim_matches(['|', ' ', '\\']).to_owned();
            let fields = line.split("  ").map(str::trim);
            let own =
                fields.filter(|f| !f.is_empty() && !units.iter().any(|unit| f.ends_with(unit)));
            own.collect::<Vec<_>>().join("  ")
        })
        .collect()
}

const TABLES: [&str; 4] = ["table.txt", "table.md", "table.csv", "table.tex"];

#[test]
fn two_workers_share_a_grid_and_both_succeed() {
    let place = Place::new(GRID);
    let workers = [Worker::start(&place, &[]), Worker::start(&place, &[])];
    let done = workers.map(Worker::done);
    let all = format!("{}\n{}", done[0].stderr, done[1].stderr);
    let mut computed = 0;
    for worker in &done {
        assert_eq!(worker.code, 0, "{}", worker.stderr);
        let counts = worker.counts();
        assert!(counts.starts_with("8 cells: "), "{counts}");
        computed += number(counts, " computed");
        let met = [" complete before", " computed by others"].map(|word| number(counts, word));
        assert_eq!(met[0] + number(counts, " computed") + met[1], 8, "{all}");
        assert!(
            !counts.contains("failed") && !counts.contains("busy"),
            "{all}"
        );
        // Both print what is on the disk.
        assert_eq!(
            worker.stdout,
            place.read("out/tables/shared/table.txt"),
            "{all}"
        );
    }
    assert_eq!((computed, place.ends()), (8, 8), "each cell once\n{all}");

    // The same as of one process, but for the times.
    let single = Place::new(GRID);
    assert_eq!(single.run(&["--quiet"]).code, 0);
    for name in TABLES {
        let of = |place: &Place| untimed(name, &place.read(&format!("out/tables/shared/{name}")));
        assert_eq!(of(&place), of(&single), "{name}");
    }
    assert!(
        place
            .read("out/tables/shared/table.txt")
            .contains(", seeds 0, 1\n")
    );
    let again = place.run(&[]);
    assert_eq!(
        (again.code, again.counts()),
        (0, "8 cells: 8 complete before, 0 computed")
    );
}

#[test]
fn a_busy_cell_is_waited_for_or_named() {
    let place = Place::new(SMALL);
    let spec = place.attack();
    let Ok(Opened::Work(held)) = open(&place.path("out"), &spec) else {
        panic!("nobody works on it");
    };
    let holder = Holder::here();
    let done = place.run(&["--no-wait"]);
    assert_eq!(done.code, 75, "{}", done.stderr);
    assert_eq!(
        done.counts(),
        "3 cells: 0 complete before, 0 computed, 1 busy, 2 skipped"
    );
    let expect = format!(
        "error: 1 of the grid's cells is busy\n  BadNets, seed 0: {holder} works on it\n\
         hint: the same command without `--no-wait` waits for them\n"
    );
    assert!(done.stderr.ends_with(&expect), "{}", done.stderr);
    // The heading claims no seed that no row has.
    let heading = done.stdout.lines().next().expect("a table");
    assert!(!heading.contains("seed"), "{heading}");

    // `--wait` is the default, and the last of the two counts.
    for options in [&[][..], &["--no-wait", "--wait"]] {
        let mut waiting = Worker::start(&place, options);
        waiting.says("waiting for cells that others compute:");
        waiting.says(&format!("  BadNets, seed 0: {holder}"));
        let kill = Command::new("kill")
            .args(["-INT", &waiting.child.id().to_string()])
            .status();
        assert!(kill.expect("kill").success());
        let begun = Instant::now();
        let done = waiting.done();
        assert_eq!(done.code, 130, "{}", done.stderr);
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(done.stderr.contains("error: interrupted by Ctrl-C\n"));
    }

    let mut waiting = Worker::start(&place, &[]);
    waiting.says("waiting for cells");
    drop(held);
    let done = waiting.done();
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(done.counts(), "3 cells: 0 complete before, 3 computed");
}

#[test]
fn a_cell_that_another_process_completes_unlocks_its_defenses() {
    let whole = Place::new(SMALL);
    assert_eq!(whole.run(&["--quiet"]).code, 0);
    let place = Place::new(SMALL);
    let spec = place.attack();
    let Ok(Opened::Work(work)) = open(&place.path("out"), &spec) else {
        panic!("nobody works on it");
    };
    let mut waiting = Worker::start(&place, &[]);
    waiting.says("waiting for cells");
    let cell = Cell::load(spec.dir(&whole.path("out"))).expect("complete");
    for name in cell.manifest.files.keys() {
        let bytes = fs_err::read(cell.file(name)).expect("readable");
        work.write(name, &bytes).expect("written");
    }
    work.finish(cell.manifest.results).expect("complete");
    let done = waiting.done();
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(
        done.counts(),
        "3 cells: 0 complete before, 2 computed, 1 computed by others"
    );
    let table = |place: &Place| untimed("table.csv", &place.read("out/tables/small/table.csv"));
    assert_eq!(table(&place), table(&whole));
}

#[test]
fn the_cell_of_a_killed_worker_is_resumed_by_one_that_waits() {
    let grid = SMALL.replace("epochs = 1, batch_size", "epochs = 30, batch_size");
    let place = Place::new(&grid);
    let mut killed = Worker::start(&place, &["--quiet"]);
    let begun = Instant::now();
    while place.files("train.safetensors").is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint");
        assert!(killed.child.try_wait().expect("a state").is_none(), "early");
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut waiting = Worker::start(&place, &[]);
    waiting.says("waiting for cells");
    waiting.says(&format!("process {}", killed.child.id()));
    killed.child.kill().expect("our child");
    killed.child.wait().expect("our child");
    let done = waiting.done();
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("resumed after "), "{}", done.stderr);
    assert_eq!(done.counts(), "3 cells: 0 complete before, 3 computed");
    let whole = Place::new(&grid);
    assert_eq!(whole.run(&["--quiet"]).code, 0);
    let manifests = |place: &Place| -> Vec<Vec<u8>> {
        let paths = place.files("manifest.json").into_iter();
        paths.map(|p| fs_err::read(p).expect("readable")).collect()
    };
    assert_eq!(manifests(&place), manifests(&whole), "the same bits");
}

#[test]
fn a_cell_that_failed_for_good_is_computed_again_only_when_asked_for() {
    let grid = SMALL.replace(
        "epochs = 1, batch_size",
        "lr = 1e30, epochs = 1, batch_size",
    );
    let place = Place::new(&grid);
    let first = place.run(&[]);
    assert_eq!(first.code, 4, "{}", first.stderr);
    assert_eq!(
        first.counts(),
        "3 cells: 0 complete before, 0 computed, 1 failed, 2 skipped"
    );
    let dir = place.attack().dir(&place.path("out"));
    let failed = Failed::read(&dir).expect("valid").expect("a record");
    assert_eq!(failed.exit_code, 4);
    let row = format!("failed: BadNets / No defense: seed 0: {}\n", failed.message);
    assert!(first.stdout.contains(&row), "{}", first.stdout);
    assert!(!first.stdout.contains("missing: BadNets / No defense"));
    let plan = place.plan();
    assert!(
        plan.contains("1  failed    attack   BadNets, seed 0 "),
        "{plan}"
    );
    let reason = format!("     {} (exit code 4, {})\n", failed.message, failed.time);
    assert!(plan.contains(&reason), "{plan}");
    assert!(
        plan.ends_with("3 cells in out: 0 complete, 0 partial, 2 missing, 1 failed\n"),
        "{plan}"
    );

    // Not begun again, but not forgotten either.
    let log = || fs_err::read_to_string(dir.join("log.jsonl")).expect("a log");
    let before = log();
    let second = place.run(&[]);
    assert_eq!(second.code, 4, "{}", second.stderr);
    assert_eq!(second.counts(), first.counts());
    assert_eq!(log(), before);
    let expect = format!(
        "error: 1 of the grid's cells failed\n  BadNets, seed 0: {}\n\
         hint: `--retry` computes failed cells again\n",
        failed.message
    );
    assert!(second.stderr.ends_with(&expect), "{}", second.stderr);
    assert_eq!(second.stdout, first.stdout);
    let quiet = place.run(&["--quiet"]);
    assert_eq!(quiet.stderr, expect);
    let folder = place.command(&["table", "out"]).output().expect("starts");
    let folder = Done::of(&folder);
    assert_eq!(folder.code, 3);
    let listed = "\n  failed: `out/attack/badnets/";
    assert!(folder.stderr.contains(listed), "{}", folder.stderr);

    // A record that was tampered with still says that there was a failure.
    let record = dir.join("failed.json");
    let good = fs_err::read(&record).expect("readable");
    for damage in ["", "{}", "{\"exit_code\": 0}", "not JSON"] {
        fs_err::write(&record, damage).expect("written");
        let done = place.run(&[]);
        assert_eq!(done.code, 3, "{damage}\n{}", done.stderr);
        assert!(
            done.stderr
                .contains("failed.json` is not a valid record of a failure"),
            "{}",
            done.stderr
        );
        assert_eq!(log(), before);
        assert!(place.plan().contains("1  failed    attack"));
    }
    fs_err::write(&record, good).expect("written");

    let again = place.run(&["--retry"]);
    assert_eq!(again.code, 4, "{}", again.stderr);
    assert!(log().len() > before.len(), "it was computed");
    // Two workers that retry compute it once each at most, and both end.
    let workers = [
        Worker::start(&place, &["--retry"]),
        Worker::start(&place, &["--retry"]),
    ];
    for done in workers.map(Worker::done) {
        assert_eq!(done.code, 4, "{}", done.stderr);
        assert_eq!(done.counts(), first.counts());
    }
}

#[test]
fn a_repair_that_diverges_is_kept_and_a_repair_that_succeeds_forgets_it() {
    let grid = SMALL.replace(
        "finetune.epochs = 1",
        "finetune.epochs = 3, finetune.lr = 1e30",
    );
    let place = Place::new(&grid);
    let first = place.run(&[]);
    assert_eq!(first.code, 4, "{}", first.stderr);
    assert_eq!(
        first.counts(),
        "3 cells: 0 complete before, 2 computed, 1 failed"
    );
    let [record] = &place.files("failed.json")[..] else {
        panic!("one failed")
    };
    assert!(first.stdout.contains("failed: BadNets / FT: seed 0: "));
    let second = place.run(&[]);
    assert_eq!(
        (second.code, second.counts()),
        (4, "3 cells: 2 complete before, 0 computed, 1 failed")
    );
    assert_eq!(place.ends(), 2);
    // A failure that came of a bug that was mended since.
    let place = Place::new(SMALL);
    let prepared = place.prepared();
    assert_eq!(place.run(&["--quiet"]).code, 0);
    let attack = Cell::load(place.attack().dir(&prepared.out)).expect("complete");
    let spec = prepared.defense_spec(0, &attack, 0);
    let dir = spec.dir(&prepared.out);
    let manifest = fs_err::read(dir.join("manifest.json")).expect("readable");
    fs_err::remove_dir_all(&dir).expect("removed");
    fs_err::create_dir_all(&dir).expect("made");
    fs_err::copy(record, dir.join("failed.json")).expect("copied");
    assert_eq!(place.run(&[]).code, 4);
    let done = place.run(&["--retry"]);
    assert_eq!(
        (done.code, done.counts()),
        (0, "3 cells: 2 complete before, 1 computed")
    );
    assert!(place.files("failed.json").is_empty());
    assert_eq!(
        fs_err::read(dir.join("manifest.json")).expect("readable"),
        manifest
    );
}
