//! The analyses on small cells: their numbers beside those of the defenses and of computations of the test's own, and
//! what they say of wrong cells.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bb_core::artifact::sha256_hex;
use bb_core::cell::{Cell, Kind};
use bb_core::data::{self, Dataset, OpenOptions};
use bb_core::poison::PoisonSet;
use bb_nn::data::{Input, LoaderOptions, Normaliser, batches, plain_input};
use bb_nn::{ArchSpec, Mode, Net, StateDict, eval, neurons};
use serde_json::Value;
use tempfile::TempDir;

const TRAIN: usize = 200;
const TEST: usize = 50;

/// A backdoored and a clean model, and the defenses whose files say what the analyses must find.
const GRID: &str = "\
[grid]
name = \"tiny\"
dataset = \"synthetic\"
width = 4
seeds = [0]
train_limit = 200
test_limit = 50

[[attack]]
method = \"badnets\"
set = { train = { epochs = 2, batch_size = 20 } }

[[attack]]
method = \"clean\"
set = { train = { epochs = 1, batch_size = 20 } }

[[defense]]
method = \"tsbd\"
set = { clean.ratio = 0.2, unlearn = { max_epochs = 2, batch_size = 8, lr = 0.003, stop_accuracy = 0.0, stop_constant = false }, finetune.epochs = 0 }

[[defense]]
method = \"otbr\"

[[defense]]
method = \"clp\"
set = { pairing = \"main-branch\" }

[[defense]]
method = \"anp\"
set = { sweep = false, probe_every = 0, clean.ratio = 0.2, mask = { iterations = 8, round = 4, batch_size = 20, lr = 0.3 } }
";

/// The settings of the grid's TSBD.
const SET: [&str; 12] = [
    "--set",
    "clean.ratio=0.2",
    "--set",
    "unlearn.max_epochs=2",
    "--set",
    "unlearn.batch_size=8",
    "--set",
    "unlearn.lr=0.003",
    "--set",
    "unlearn.stop_accuracy=0.0",
    "--set",
    "unlearn.stop_constant=false",
];

struct Place {
    dir: TempDir,
}

impl Place {
    /// A folder in which a grid has run.
    fn new(grid: &str) -> Self {
        let place = Self {
            dir: tempfile::tempdir().expect("a folder"),
        };
        place.run_grid(grid, "runs");
        place
    }

    fn run_grid(&self, grid: &str, out: &str) {
        fs_err::write(self.path("grid.toml"), grid).expect("written");
        self.ok(&["run", "grid.toml", "--quiet", "--out", out]);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn output(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_bb-eval"))
            .args(words)
            .current_dir(self.dir.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .expect("it starts")
    }

    fn ok(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}\n{said}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// `analyze WHAT CELL --out WHAT` with the settings of the grid; gives the line of JSON.
    fn analyze(&self, what: &str, cell: &Cell, more: &[&str]) -> Value {
        let cell = cell.dir.to_str().expect("a plain path");
        let words = [&["analyze", what, cell, "--quiet"], &SET[..], more].concat();
        let line = self.ok(&words);
        assert_eq!(line.lines().count(), 1, "{line}");
        serde_json::from_str(&line).expect("JSON")
    }

    /// The complete cell of a method, which repaired `attack` if it is a defense.
    fn cell(&self, out: &str, method: &str, attack: Option<&Cell>) -> Cell {
        let mut folders = vec![
            self.path(out).join("attack"),
            self.path(out).join("defense"),
        ];
        while let Some(folder) = folders.pop() {
            if folder.join("manifest.json").is_file() {
                let cell = Cell::load(&folder).expect("complete");
                let own = cell.manifest.method == method;
                let of = attack.map(Cell::digest);
                if own && cell.manifest.inputs.get("attack") == of.as_ref() {
                    assert_eq!(cell.manifest.kind == Kind::Defense, attack.is_some());
                    return cell;
                }
            } else if folder.is_dir() {
                let entries = fs_err::read_dir(&folder).expect("a folder");
                folders.extend(entries.map(|entry| entry.expect("an entry").path()));
            }
        }
        panic!("no cell of {method}");
    }

    fn read(&self, name: &str) -> String {
        fs_err::read_to_string(self.path(name)).expect("readable")
    }

    /// A table by columns.
    fn table(&self, name: &str) -> BTreeMap<String, Vec<String>> {
        columns(&self.read(name))
    }

    /// Name and digest of every file in a folder.
    fn digests(&self, folder: &str) -> BTreeMap<String, String> {
        let entries = fs_err::read_dir(self.path(folder)).expect("a folder");
        let file = |path: PathBuf| {
            let name = path.file_name().expect("a file").to_str().expect("plain");
            (
                name.to_owned(),
                sha256_hex(fs_err::read(&path).expect("readable")),
            )
        };
        entries
            .map(|entry| file(entry.expect("an entry").path()))
            .collect()
    }
}

fn columns(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().expect("a head").split(',').collect();
    let mut columns: Vec<Vec<String>> = vec![Vec::new(); names.len()];
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields.len(), names.len(), "{line}");
        for (column, field) in columns.iter_mut().zip(fields) {
            column.push(field.to_owned());
        }
    }
    names.into_iter().map(str::to_owned).zip(columns).collect()
}

/// The same by rows.
fn rows(table: &BTreeMap<String, Vec<String>>) -> Vec<BTreeMap<&str, &str>> {
    let count = table.values().next().expect("a column").len();
    let row = |i: usize| {
        let fields = table.iter();
        fields
            .map(|(name, column)| (name.as_str(), column[i].as_str()))
            .collect()
    };
    (0..count).map(row).collect()
}

fn numbers(column: &[String]) -> Vec<f64> {
    column
        .iter()
        .map(|word| word.parse().expect("a number"))
        .collect()
}

fn file(cell: &Cell, name: &str) -> BTreeMap<String, Vec<String>> {
    columns(&fs_err::read_to_string(cell.file(name)).expect("readable"))
}

fn dataset() -> Dataset {
    let options = OpenOptions {
        train_limit: Some(TRAIN),
        test_limit: Some(TEST),
        ..OpenOptions::default()
    };
    data::open("synthetic", None, &options).expect("the synthetic data need no file")
}

fn state(cell: &Cell) -> StateDict {
    StateDict::load(&cell.file("model.safetensors")).expect("a model")
}

fn net(cell: &Cell) -> Net {
    let arch = ArchSpec::new("preactresnet18", 4, 10).expect("a small network");
    Net::from_state(&arch, &state(cell)).expect("its tensors")
}

fn poisoned(cell: &Cell) -> PoisonSet {
    PoisonSet::load(cell.file("poison_test.safetensors")).expect("poisoned images")
}

#[track_caller]
fn is_a_figure(text: &str, words: &[&str]) {
    assert!(
        text.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""),
        "{text}"
    );
    assert!(text.ends_with("</svg>\n") && !text.contains("NaN") && !text.contains("inf"));
    assert!(text.len() < 100_000, "{} bytes", text.len());
    for word in words {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}

/// Weight change of every target neuron after poison unlearning by steps written out here.
fn poison_unlearning(cell: &Cell) -> Vec<f32> {
    let spec = dataset().spec;
    let poisoned = poisoned(cell);
    let normaliser = Normaliser::new(&spec);
    let mut net = net(cell);
    let before = net.params().clone();
    let mut velocity = vec![0f32; before.data().len()];
    let mut grads = net.zeros();
    for _ in 0..2 {
        for first in (0..poisoned.len()).step_by(8) {
            let part = first..(first + 8).min(poisoned.len());
            let input = plain_input(&poisoned.images, part.clone(), &normaliser);
            net.loss_grad(&input, &poisoned.labels[part], Mode::Train, &mut grads);
            // SGD with momentum 0.9 on the negative loss, as PyTorch defines it.
            let weights = net.params_mut().data_mut();
            for ((weight, gradient), v) in weights.iter_mut().zip(grads.data()).zip(&mut velocity) {
                *v = 0.9 * *v - gradient;
                *weight -= 0.003 * *v;
            }
        }
        let predictions = eval::predict(&mut net, &poisoned.images, &spec).expect("finite logits");
        let asr = eval::agreement(&predictions, &poisoned.labels);
        if asr.hits as f64 <= 0.05 * asr.total as f64 {
            break;
        }
    }
    let entries = before.layout().entries().iter().enumerate();
    entries
        .filter(|(_, entry)| entry.shape.len() == 4 && !entry.name.contains("shortcut"))
        .flat_map(|(tensor, _)| neurons::weight_change(&before, net.params(), tensor))
        .collect()
}

/// Pearson's correlation from raw sums.
fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len() as f64;
    let sum = |f: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(&x, &y)| f(x, y)).sum::<f64>();
    let (sx, sy, sxy) = (sum(&|x, _| x), sum(&|_, y| y), sum(&|x, y| x * y));
    let (sxx, syy) = (sum(&|x, _| x * x), sum(&|_, y| y * y));
    (n * sxy - sx * sy) / ((n * sxx - sx * sx) * (n * syy - sy * sy)).sqrt()
}

/// Spearman's correlation: that of the ranks, each counted by itself.
fn spearman(x: &[f64], y: &[f64]) -> f64 {
    let ranks = |values: &[f64]| -> Vec<f64> {
        let less = |v: f64| values.iter().filter(|&&other| other < v).count() as f64;
        let more = |v: f64| values.iter().filter(|&&other| other > v).count() as f64;
        values.iter().map(|&v| less(v) - more(v)).collect()
    };
    pearson(&ranks(x), &ranks(y))
}

#[test]
fn weight_changes_are_those_of_the_defenses_and_correlate_as_computed_otherwise() {
    let place = Place::new(GRID);
    let attack = place.cell("runs", "badnets", None);
    let found = place.analyze("nwc", &attack, &["--out", "nwc"]);
    assert_eq!(found["layer"], "layer4.1.conv2.weight");
    assert_eq!(found["clean_unlearning"]["epochs"], 2);

    let table = place.table("nwc/nwc.csv");
    let tsbd = file(&place.cell("runs", "tsbd", Some(&attack)), "nwc.csv");
    let otbr = file(&place.cell("runs", "otbr", Some(&attack)), "nwc.csv");
    assert_eq!(table["layer"].len(), 3904 / 16);
    assert_eq!(
        (&table["layer"], &table["channel"]),
        (&tsbd["layer"], &tsbd["channel"])
    );
    assert_eq!(table["clean"], tsbd["nwc"]);
    assert_eq!(table["random"], otbr["nwc"]);
    let poison = poison_unlearning(&attack);
    for (found, own) in numbers(&table["poison"]).into_iter().zip(&poison) {
        assert!(
            (found - f64::from(*own)).abs() <= 1e-5 * found,
            "{found}, not {own}"
        );
    }

    let correlations = place.table("nwc/correlations.csv");
    let last = table["layer"]
        .iter()
        .position(|layer| layer == "layer4.1.conv2.weight")
        .expect("the last layer");
    assert_eq!(table["layer"].len() - last, 32);
    let mut pairs = Vec::new();
    for row in rows(&correlations) {
        let (one, other) = (row["one"], row["other"]);
        let whole = row["scope"] == "all";
        let first = if whole { 0 } else { last };
        // The table has single numbers in their shortest form.
        let column = |name: &str| -> Vec<f64> {
            let values = numbers(&table[name]).into_iter().skip(first);
            values.map(|value| f64::from(value as f32)).collect()
        };
        let (x, y) = (column(one), column(other));
        assert_eq!(row["neurons"], x.len().to_string());
        for (name, own) in [("pearson", pearson(&x, &y)), ("spearman", spearman(&x, &y))] {
            let found: f64 = row[name].parse().expect("a number");
            assert!(
                (found - own).abs() < 1e-9,
                "{name} of {one} and {other}: {found}, not {own}"
            );
        }
        pairs.push(format!("{one} {other} {whole}"));
    }
    assert_eq!(
        pairs,
        [
            "clean poison false",
            "random poison false",
            "clean random false",
            "clean poison true",
            "random poison true",
            "clean random true"
        ]
    );
    for name in ["clean", "random"] {
        is_a_figure(
            &place.read(&format!("nwc/{name}.svg")),
            &[
                "Neuron weight change, layer4.1.conv2",
                &format!(">{name} unlearning</text>"),
                "Pearson ",
            ],
        );
    }
    let summary: Value = serde_json::from_str(&place.read("nwc/summary.json")).expect("JSON");
    assert_eq!(summary["cell"]["digest"], attack.digest());
    assert_eq!(summary["settings"]["unlearn"]["lr"], 0.003);
    assert_eq!(summary["random"]["steps"], 20);

    // Again, on one thread: the same bytes.
    place.analyze("nwc", &attack, &["--out", "again", "--threads", "1"]);
    assert_eq!(place.digests("again"), place.digests("nwc"));
    assert_eq!(place.digests("nwc").len(), 5);
    // Another seed crops other images.
    place.analyze("nwc", &attack, &["--out", "other", "--seed", "1"]);
    assert_ne!(place.digests("other"), place.digests("nwc"));
}

#[test]
fn activeness_is_what_a_repair_of_each_model_records() {
    let place = Place::new(GRID);
    let (attack, clean) = (
        place.cell("runs", "badnets", None),
        place.cell("runs", "clean", None),
    );
    let twin = clean.dir.to_str().expect("a plain path");
    let found = place.analyze("activeness", &attack, &["--clean", twin, "--out", "act"]);

    let table = place.table("act/activeness.csv");
    for (name, cell) in [("backdoored", &attack), ("clean", &clean)] {
        let own = file(&place.cell("runs", "tsbd", Some(cell)), "activeness.csv");
        assert_eq!(own["channel"].len(), 32);
        assert_eq!(table["channel"], own["channel"]);
        assert_eq!(table[&format!("{name}_mean")], own["mean"], "{name}");
        assert_eq!(
            table[&format!("{name}_variance")],
            own["variance"],
            "{name}"
        );
        let means = numbers(&own["mean"]);
        let mean = means.iter().sum::<f64>() / 32.0;
        let squares: f64 = means.iter().map(|m| m * m).sum();
        let std = ((squares - 32.0 * mean * mean) / 31.0).sqrt();
        for (part, own) in [("mean", mean), ("std", std)] {
            let found = found[name][part].as_f64().expect("a number");
            assert!(
                (found - own).abs() < 1e-9 * own,
                "{name} {part}: {found}, not {own}"
            );
        }
    }
    assert_ne!(table["backdoored_mean"], table["clean_mean"]);
    let mean = |name: &str| found[name]["mean"].as_f64().expect("a number");
    assert_eq!(
        found["backdoored_has_larger_mean"],
        mean("backdoored") > mean("clean")
    );
    is_a_figure(
        &place.read("act/activeness.svg"),
        &[
            "backdoored model",
            "clean model",
            "mean L1 norm of the gradient",
        ],
    );
    place.analyze(
        "activeness",
        &attack,
        &["--clean", twin, "--out", "again", "--threads", "1"],
    );
    assert_eq!(place.digests("again"), place.digests("act"));
}

#[test]
fn curves_begin_with_the_model_and_measure_what_is_unlearned() {
    let place = Place::new(GRID);
    let attack = place.cell("runs", "badnets", None);
    let on = ["--on", "clean,poison,test,clean", "--out", "curves"];
    place.analyze("unlearning", &attack, &on);
    let table = place.table("curves/unlearning.csv");
    let results = &attack.manifest.results;
    let share = |name: &str| {
        let part = |key: &str| results[name][key].as_f64().expect("a count");
        part("hits") / part("total")
    };
    let mut lessons: Vec<&str> = Vec::new();
    for row in rows(&table) {
        let number = |name: &str| row[name].parse::<f64>().ok();
        let lesson = row["lesson"];
        if row["epochs"] == "0" {
            lessons.push(lesson);
            for name in ["acc", "asr", "ra"] {
                assert_eq!(number(name), Some(share(name)), "{lesson}");
            }
            assert_eq!(row["train_loss"], "");
            continue;
        }
        // Two of the lessons are the very images that a score is taken on.
        match lesson {
            "test" => assert_eq!(number("lesson_acc"), number("acc")),
            "poison" => assert_eq!(number("lesson_acc"), number("asr")),
            _ => {}
        }
    }
    assert_eq!(lessons, ["clean", "poison", "test"], "each once");

    // Clean unlearning is that of a repair.
    let tsbd = place.cell("runs", "tsbd", Some(&attack));
    let metrics = fs_err::read_to_string(tsbd.file("metrics.jsonl")).expect("readable");
    let recorded = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a row"))
        .filter(|row| row["stage"] == "unlearn");
    let mut seen = 0;
    for (epoch, row) in recorded.enumerate() {
        for (own, name) in [
            ("train_loss", "train_loss"),
            ("train_acc", "train_acc"),
            ("lesson_acc", "clean_acc"),
        ] {
            assert_eq!(
                table[own][epoch + 1].parse::<f64>().ok(),
                row[name].as_f64()
            );
        }
        seen += 1;
    }
    assert_eq!(seen, 2);
    is_a_figure(
        &place.read("curves/unlearning.svg"),
        &[
            "ACC, clean unlearning",
            "ASR, poison unlearning",
            "stroke-dasharray",
        ],
    );

    // A clean model has curves too, but no ASR.
    let clean = place.cell("runs", "clean", None);
    place.analyze("unlearning", &clean, &["--on", "clean", "--out", "clean"]);
    let table = place.table("clean/unlearning.csv");
    assert!(table["asr"].iter().all(String::is_empty));
    assert!(table["acc"].iter().all(|acc| acc.parse::<f64>().is_ok()));
    let figure = place.read("clean/unlearning.svg");
    assert!(!figure.contains("ASR"), "{figure}");
}

/// A map of channels, `[c, h, w]`.
struct Map {
    c: usize,
    h: usize,
    w: usize,
    data: Vec<f64>,
}

/// PreActResNet-18 in eval mode by loops in double precision, up to what `layer4.1.conv1` gives.
struct Plain(BTreeMap<String, (Vec<usize>, Vec<f64>)>);

impl Plain {
    fn new(state: &StateDict) -> Self {
        let tensors = state.iter().filter(|(_, tensor)| tensor.rank() > 0);
        let read = |name: &str| state.floats(name).expect("a tensor").expect("floats");
        let double = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
        Self(
            tensors
                .map(|(name, tensor)| {
                    (
                        name.to_owned(),
                        (tensor.dims().to_vec(), double(read(name))),
                    )
                })
                .collect(),
        )
    }

    fn conv(&self, name: &str, x: &Map, stride: usize) -> Map {
        let (shape, weight) = &self.0[&format!("{name}.weight")];
        let (out, k) = (shape[0], shape[2]);
        let pad = k / 2;
        let (h, w) = (x.h.div_ceil(stride), x.w.div_ceil(stride));
        let mut data = vec![0.0; out * h * w];
        for (i, value) in data.iter_mut().enumerate() {
            let (o, row, column) = (i / (h * w), i / w % h, i % w);
            for c in 0..x.c {
                for tap in 0..k * k {
                    let (y, z) = (row * stride + tap / k, column * stride + tap % k);
                    if (pad..x.h + pad).contains(&y) && (pad..x.w + pad).contains(&z) {
                        let pixel = x.data[(c * x.h + y - pad) * x.w + z - pad];
                        *value += weight[(o * x.c + c) * k * k + tap] * pixel;
                    }
                }
            }
        }
        Map { c: out, h, w, data }
    }

    fn norm_relu(&self, name: &str, x: &Map) -> Map {
        let part = |part: &str| &self.0[&format!("{name}.{part}")].1;
        let (gamma, beta) = (part("weight"), part("bias"));
        let (mean, variance) = (part("running_mean"), part("running_var"));
        let normal = |(i, value): (usize, &f64)| {
            let c = i / (x.h * x.w);
            ((value - mean[c]) / (variance[c] + 1e-5).sqrt() * gamma[c] + beta[c]).max(0.0)
        };
        Map {
            data: x.data.iter().enumerate().map(normal).collect(),
            ..*x
        }
    }

    fn last_conv1(&self, image: &Map) -> Map {
        let mut x = self.conv("conv1", image, 1);
        for stage in 1..=4 {
            for block in 0..2 {
                let name = format!("layer{stage}.{block}");
                let stride = if stage > 1 && block == 0 { 2 } else { 1 };
                let a = self.norm_relu(&format!("{name}.bn1"), &x);
                let h = self.conv(&format!("{name}.conv1"), &a, stride);
                if (stage, block) == (4, 1) {
                    return h;
                }
                let h = self.norm_relu(&format!("{name}.bn2"), &h);
                let mut h = self.conv(&format!("{name}.conv2"), &h, 1);
                let shortcut = format!("{name}.shortcut.0");
                if self.0.contains_key(&format!("{shortcut}.weight")) {
                    x = self.conv(&shortcut, &a, stride);
                }
                h.data.iter_mut().zip(&x.data).for_each(|(h, x)| *h += x);
                x = h;
            }
        }
        unreachable!("the last block returns")
    }
}

/// The images of a batch.
fn images(input: &Input) -> impl Iterator<Item = Map> {
    let (h, w) = (input.h, input.w);
    input.data.chunks_exact(h * w * 3).map(move |image| Map {
        c: 3,
        h,
        w,
        data: (0..3 * h * w)
            .map(|i| f64::from(image[i % (h * w) * 3 + i / (h * w)]))
            .collect(),
    })
}

#[track_caller]
fn near(name: &str, found: &[f64], own: &[f64]) {
    assert_eq!(found.len(), own.len());
    let largest = own.iter().fold(0f64, |largest, v| largest.max(v.abs()));
    assert!(largest > 0.0, "{name} is 0 everywhere");
    for (channel, (found, own)) in found.iter().zip(own).enumerate() {
        let wrong = (found - own).abs() > 1e-4 * largest;
        assert!(!wrong, "{name}, channel {channel}: {found}, not {own}");
    }
}

#[test]
fn tac_and_scores_are_those_of_a_network_written_out() {
    let place = Place::new(GRID);
    let attack = place.cell("runs", "badnets", None);
    let repair = |method: &str| place.cell("runs", method, Some(&attack));
    let anp = repair("anp");
    let masks = ["--masks", anp.dir.to_str().expect("a plain path")];
    let found = place.analyze("tac", &attack, &[&masks[..], &["--out", "tac"]].concat());
    assert_eq!(
        (&found["conv"], &found["norm"]),
        (&"layer4.1.conv1".into(), &"layer4.1.bn2".into())
    );
    let table = place.table("tac/channels.csv");
    let column = |name: &str| numbers(&table[name]);

    let dataset = dataset();
    let poisoned = poisoned(&attack);
    let normaliser = Normaliser::new(&dataset.spec);
    let network = Plain::new(&state(&attack));
    let mut change = vec![0.0; 32];
    for (row, &index) in poisoned.indices.iter().enumerate() {
        let map = |images_of: &data::Images, i: usize| {
            let input = plain_input(images_of, i..i + 1, &normaliser);
            network.last_conv1(&images(&input).next().expect("an image"))
        };
        let (with, without) = (map(&poisoned.images, row), map(&dataset.test.images, index));
        let place = with.h * with.w;
        for (i, (a, b)) in with.data.iter().zip(&without.data).enumerate() {
            change[i / place] += (a - b).abs() / poisoned.len() as f64;
        }
    }
    near("tac_conv", &column("tac_conv"), &change);
    let norm = |part: &str| &network.0[&format!("layer4.1.bn2.{part}")].1;
    let scale = |c: usize| norm("weight")[c].abs() / (norm("running_var")[c] + 1e-5).sqrt();
    let scaled: Vec<f64> = (0..32).map(|c| change[c] * scale(c)).collect();
    near("tac_norm", &column("tac_norm"), &scaled);

    // NWC is TSBD's and CLP's bound that of its cell, for these channels.
    let tsbd = file(&repair("tsbd"), "nwc.csv");
    let of_layer = |table: &BTreeMap<String, Vec<String>>, layer: &str, value: &str| -> Vec<f64> {
        let own = table[layer].iter().zip(numbers(&table[value]));
        own.filter(|(name, _)| {
            name.starts_with("layer4.1.conv1") || name.starts_with("layer4.1.bn2")
        })
        .map(|(_, value)| value)
        .collect()
    };
    let single = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect::<Vec<_>>();
    assert_eq!(
        single(column("nwc")),
        single(of_layer(&tsbd, "layer", "nwc"))
    );
    let clp = file(&repair("clp"), "lipschitz.csv");
    assert_eq!(column("clp"), of_layer(&clp, "norm", "bound"));
    let learned = of_layer(&file(&anp, "masks.csv"), "norm", "mask");
    assert!(
        learned
            .iter()
            .any(|mask| mask.total_cmp(&learned[0]).is_ne()),
        "{learned:?}"
    );
    assert_eq!(column("anp"), learned);

    // FP's score over the first fifth of the training images by the benchmark's draw, with its own crops.
    let mut generator = bb_core::rng::python::Random::new(0);
    let clean = dataset.train.select(&generator.sample(TRAIN, TRAIN / 5));
    let options = LoaderOptions {
        batch_size: 256,
        shuffle: false,
        drop_last: false,
        augment: true,
        seed: 0,
        purpose: "fp/activation",
    };
    let mut activation = vec![0.0; 32];
    for batch in batches(&clean, &dataset.spec, options, 0) {
        for image in images(&batch.input) {
            let map = network.norm_relu("layer4.1.bn2", &network.last_conv1(&image));
            for (i, value) in map.data.iter().enumerate() {
                activation[i / (map.h * map.w)] += value / (map.h * map.w * clean.len()) as f64;
            }
        }
    }
    near("fp", &column("fp"), &activation);

    // Coverage, counted with sets.
    let coverage = place.table("tac/coverage.csv");
    let first = |name: &str, lowest: bool, count: usize| {
        let values = column(name);
        let mut order: Vec<usize> = (0..32).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        if lowest {
            order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
        }
        order
            .into_iter()
            .take(count)
            .collect::<std::collections::BTreeSet<_>>()
    };
    for row in rows(&coverage) {
        let truth = match row["tac"] {
            "layer4.1.conv1" => "tac_conv",
            _ => "tac_norm",
        };
        let share: f64 = row["share"].parse().expect("a share");
        let count = (32.0 * share) as usize;
        let method = row["method"];
        let both = first(truth, false, count)
            .intersection(&first(method, ["fp", "anp"].contains(&method), count))
            .count();
        assert_eq!(row["channels"], count.to_string());
        assert_eq!(row["found"], both.to_string(), "{truth} {method} {share}");
        let found: f64 = row["coverage"].parse().expect("a share");
        assert!((found - both as f64 / count as f64).abs() < 1e-12);
    }
    assert_eq!(
        coverage["tac"].len(),
        2 * 4 * 20,
        "a twentieth of 32 is one"
    );
    is_a_figure(
        &place.read("tac/coverage.svg"),
        &["layer4.1.bn2", "NWC", "CLP", "FP", "ANP", "by chance"],
    );
    let summary: Value = serde_json::from_str(&place.read("tac/summary.json")).expect("JSON");
    assert_eq!(summary["masks"][0]["digest"], anp.digest());
    // A repair that is named twice counts once.
    let again = [&masks[..], &masks, &["--out", "again", "--threads", "1"]].concat();
    place.analyze("tac", &attack, &again);
    assert_eq!(place.digests("again"), place.digests("tac"));

    // A repair without masks, the attack itself, and the repair of another model.
    let other = place.cell("runs", "clean", None);
    for (of, masks, expected) in [
        (
            &attack,
            &repair("tsbd"),
            "has no `masks.csv`, expected one by a method that learns masks",
        ),
        (
            &attack,
            &attack,
            "repaired no model, expected the model of digest ",
        ),
        (
            &attack,
            &place.cell("runs", "anp", Some(&other)),
            "repaired the model of digest ",
        ),
    ] {
        let path = |cell: &Cell| cell.dir.to_str().expect("a plain path").to_owned();
        let words = [
            "analyze",
            "tac",
            &path(of),
            "--masks",
            &path(masks),
            "--out",
            "x",
        ];
        let output = place.output(&words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(
            said.contains(expected) && !place.path("x").exists(),
            "{said}"
        );
    }
}

#[test]
fn wrong_cells_are_one_clear_error_and_leave_nothing() {
    let end = GRID.find("[[defense]]").expect("a defense");
    let place = Place::new(&GRID[..end]);
    let (attack, clean) = (
        place.cell("runs", "badnets", None),
        place.cell("runs", "clean", None),
    );
    let other = GRID[..end].replace("width = 4", "width = 8");
    let other = other.replacen("method = \"badnets\"", "method = \"blended\"", 1);
    place.run_grid(&other, "wide");
    let wide = place.cell("wide", "clean", None);
    place.run_grid(
        &other
            .replace("width = 8", "width = 4")
            .replace("= 200", "= 180"),
        "less",
    );
    let less = place.cell("less", "clean", None);
    let path = |cell: &Cell| cell.dir.to_str().expect("a plain path").to_owned();
    let (attack, clean) = (path(&attack), path(&clean));
    let (wide, less) = (path(&wide), path(&less));
    let none = "has no poisoned test image, but";
    fs_err::create_dir(place.path("there")).expect("made");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["nwc", &clean, "--out", "x"], 3, none),
        (&["tac", &clean, "--out", "x"], 3, none),
        (&["unlearning", &clean, "--out", "x"], 3, none),
        (
            &["activeness", &clean, "--clean", &clean, "--out", "x"],
            3,
            none,
        ),
        (
            &["activeness", &attack, "--clean", &attack, "--out", "x"],
            3,
            "poisoned test images, expected one trained without a backdoor",
        ),
        (
            &["activeness", &attack, "--clean", &wide, "--out", "x"],
            3,
            "is preactresnet18-w8, expected preactresnet18-w4 as in the other cell",
        ),
        (
            &["activeness", &attack, "--clean", &less, "--out", "x"],
            3,
            "error: the digest of the data of `",
        ),
        (
            &["nwc", "no/cell", "--out", "x"],
            3,
            "is neither the folder of a cell",
        ),
        (
            &["nwc", &attack, "--out", "there"],
            2,
            "error: `there` exists already",
        ),
        (
            &["nwc", &attack, "--out", "x", "--set", "unlearn.lrr=1"],
            2,
            "unknown setting `unlearn.lrr`",
        ),
        (
            &["nwc", &attack, "--out", "x", "--set", "unlearn.lr=1e30"],
            4,
            "unlearn diverged",
        ),
        (
            &[
                "tac",
                &attack,
                "--out",
                "x",
                "--set",
                "layers.exclude=[\"layer4\"]",
                "--set",
                "unlearn.max_epochs=1",
            ],
            2,
            "`layer4.1.conv1.weight` is no target layer",
        ),
        (
            // Nothing is unlearned, so this is not found by diverging.
            &[
                "unlearning",
                &attack,
                "--out",
                "x",
                "--set",
                "layers.exclude=[\"conv\", \"shortcut\"]",
                "--set",
                "unlearn.lr=1e30",
            ],
            2,
            "error: `layers.exclude` is [\"conv\", \"shortcut\"], which leaves no target layer of preactresnet18-w4, expected at least one\n",
        ),
        (
            &[
                "unlearning",
                &attack,
                "--out",
                "grid.toml/x",
                "--set",
                "unlearn.lr=1e30",
            ],
            3,
            "error: cannot make the folder `grid.toml/x` for the results\n",
        ),
        (&["nwc", &clean, "--out", "new/folder/x"], 3, none),
        (
            &["nwc", &attack, "--out", "x", "--set", "clean.ratio=0.001"],
            2,
            "gives no clean image",
        ),
        (
            &["unlearning", &attack, "--out", "x", "--on", "all"],
            2,
            "invalid value 'all'",
        ),
        (&["activeness", &attack, "--out", "x"], 2, "--clean <CELL>"),
        (&["nwc", &attack], 2, "--out <DIR>"),
    ];
    for (words, code, expected) in cases {
        let output = place.output(&[&["analyze"], *words].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{words:?}\n{said}");
        assert!(said.contains(expected), "`{expected}` is not in\n{said}");
        assert_eq!(said.matches("error:").count(), 1, "{said}");
        assert!(output.stdout.is_empty(), "{words:?}");
    }
    let mut left: Vec<String> = fs_err::read_dir(place.dir.path())
        .expect("a folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("plain")
        })
        .collect();
    left.sort();
    assert_eq!(left, ["grid.toml", "less", "runs", "there", "wide"]);
    assert_eq!(
        fs_err::read_dir(place.path("there"))
            .expect("a folder")
            .count(),
        0
    );
    assert!(Path::new(&attack).join("manifest.json").is_file());
}
