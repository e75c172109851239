//! How the numbers of a cell came about, and how two cells differ.
use std::collections::BTreeMap;
use std::fmt::Write;

use bb_attack::results::AttackResults;
use bb_core::cell::contract::Input;
use bb_core::cell::env::Env;
use bb_core::cell::{Cell, Kind, MANIFEST};
use bb_core::cli::Failure;
use bb_core::metrics::{Ratio, Scores, der};
use bb_defense::method::AnyDefense;
use bb_defense::results::Results;
use serde_json::json;

use crate::leaves::leaves;

/// What a cell is, how each of its numbers was counted, which setting came from where, and what the run took.
///
/// # Errors
/// If the manifest does not say what was measured.
pub fn explain(cell: &Cell, extra: &[&'static dyn AnyDefense]) -> Result<String, Failure> {
    let manifest = &cell.manifest;
    let mut text = String::new();
    let out = &mut text;
    section(out, &format!("{} `{}`", manifest.kind, manifest.method));
    field(out, "dataset", &manifest.dataset);
    field(out, "network", &manifest.arch);
    field(out, "seed", &manifest.seed.to_string());
    field(out, "id", &manifest.id);
    field(out, "folder", &cell.dir.display().to_string());
    match manifest.kind {
        Kind::Attack => of_attack(out, cell)?,
        Kind::Defense => of_defense(out, cell)?,
    }
    settings(out, cell, extra);
    section(out, "inputs, by SHA-256");
    for (name, digest) in &manifest.inputs {
        field(out, name, digest);
    }
    if let Some(env) = Env::read(cell) {
        of_run(out, &env);
    }
    Ok(plain(&text))
}

/// A stranger's words are no commands for a terminal.
fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', " ")
}

fn section(out: &mut String, title: &str) {
    if !out.is_empty() {
        out.push('\n');
    }
    let _ = writeln!(out, "{title}");
}

fn field(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "  {name:<24}  {value}");
}

/// `79.64 % = 7964 of 10000 clean test images that are classified rightly`.
fn counted(ratio: Ratio, what: &str) -> String {
    let percent = ratio.percent();
    percent.map_or_else(
        || "none: nothing was measured".to_owned(),
        |percent| {
            let Ratio { hits, total } = ratio;
            format!("{percent:.2} % = {hits} of {total} {what}")
        },
    )
}

fn scores(out: &mut String, scores: &Scores) {
    let Scores { acc, asr, ra } = *scores;
    field(
        out,
        "ACC",
        &counted(acc, "clean test images get their true label"),
    );
    field(
        out,
        "ASR",
        &counted(asr, "poisoned test images get the attacked label"),
    );
    field(
        out,
        "RA",
        &counted(ra, "poisoned test images get their true label"),
    );
}

fn of_attack(out: &mut String, cell: &Cell) -> Result<(), Failure> {
    let results = AttackResults::of(cell)?;
    section(out, "scores of the trained model");
    scores(out, &results.scores());
    section(out, "what it was trained on");
    let limits = cell.limits()?;
    let limit = |limit: Option<usize>| limit.map_or("all".to_owned(), |n| format!("the first {n}"));
    field(out, "training images", &limit(limits.train_limit));
    field(out, "test images", &limit(limits.test_limit));
    if let Some(split) = &limits.test_split {
        field(out, "measured on the split", split);
    }
    field(
        out,
        "poisoned for training",
        &results.poison.train.to_string(),
    );
    field(
        out,
        "poisoned for the test",
        &results.poison.test.to_string(),
    );
    if let Some(counts) = results.poison.in_training {
        let say = format!(
            "{} images with the trigger and {} with a disturbed one, in {} batches",
            counts.backdoored, counts.cross, counts.batches
        );
        field(out, "while training", &say);
    }
    if let Some(target) = &results.target {
        field(out, "target class", &target.to_string());
    }
    if let Some(train) = results.train {
        let acc = train
            .acc
            .map_or_else(String::new, |acc| format!(", {:.2} % right", 100.0 * acc));
        let say = format!("after {} epochs: loss {:.4}{acc}", train.epochs, train.loss);
        field(out, "training", &say);
    }
    if let Some(stealth) = results.stealth {
        let number = |value: Option<f64>| value.map_or("none".to_owned(), |v| v.to_string());
        let say = format!(
            "PSNR {} dB, SSIM {}, largest change {} of 255, over {} images, {} of them unchanged",
            number(stealth.psnr),
            number(stealth.ssim),
            stealth.l_inf,
            stealth.images,
            stealth.unchanged
        );
        field(out, "trigger", &say);
    }
    Ok(())
}

fn of_defense(out: &mut String, cell: &Cell) -> Result<(), Failure> {
    let results: Results = cell.results()?;
    section(out, "scores of the attacked model");
    scores(out, &results.before);
    section(
        out,
        &format!("scores of the repaired model, `{}`", results.chosen),
    );
    scores(out, &results.after);
    rating(out, &results.before, &results.after);
    if results.candidates.len() > 1 {
        section(
            out,
            "what the method made; it chose without the poisoned test set",
        );
        for candidate in &results.candidates {
            let name = if candidate.name == results.chosen {
                format!("{} (chosen)", candidate.name)
            } else {
                candidate.name.clone()
            };
            field(out, &name, &short(&candidate.scores));
        }
    }
    if let Some(oracle) = &results.oracle {
        section(
            out,
            "oracle: chosen on the poisoned test set, which no defender has",
        );
        field(out, &oracle.name, &short(&oracle.scores));
    }
    section(out, "what the defender was given");
    match &results.clean {
        Some(clean) => {
            let say = format!("{} of {} training images", clean.images, clean.of);
            field(out, "clean images", &say);
        }
        None => field(out, "clean images", "none"),
    }
    if let Ok(attack) = cell.input(Input::Attack) {
        field(out, "attack, by digest", attack);
    }
    let env = Env::read(cell);
    if let Some(dir) = env.and_then(|env| env.attack_cell) {
        field(out, "attack, as it was named", &dir.display().to_string());
    }
    Ok(())
}

/// The defense effectiveness rating with its parts.
fn rating(out: &mut String, before: &Scores, after: &Scores) {
    let Some((rating, old, new)) =
        der(before, after).and_then(|rating| Some((rating, before.rates()?, after.rates()?)))
    else {
        return field(out, "DER", "none: nothing was attacked");
    };
    let points = |old: f64, new: f64| 100.0 * (old - new).max(0.0);
    let (asr, acc) = (points(old.asr, new.asr), points(old.acc, new.acc));
    let say = format!(
        "{:.2} % = (100 + {asr:.2} points of ASR gone - {acc:.2} points of ACC lost) / 2",
        100.0 * rating
    );
    field(out, "DER", &say);
}

fn short(scores: &Scores) -> String {
    let part = |name: &str, ratio: Ratio| {
        ratio.percent().map_or_else(
            || format!("{name} none"),
            |percent| format!("{name} {percent:.2} %"),
        )
    };
    [("ACC", scores.acc), ("ASR", scores.asr), ("RA", scores.ra)]
        .map(|(name, ratio)| part(name, ratio))
        .join(", ")
}

/// Tables that every cell has beside the method's own settings.
const SHARED: [&str; 4] = ["compute.", "data.", "model.", "imported"];

/// Each setting with its value, and whether that is the recipe's.
fn settings(out: &mut String, cell: &Cell, extra: &[&'static dyn AnyDefense]) {
    section(out, "settings");
    let recipe = recipe(cell, extra);
    for (name, value) in leaves(&cell.manifest.settings) {
        let shared = SHARED.iter().any(|table| name.starts_with(table));
        let origin = match recipe.get(&name) {
            _ if shared => "",
            Some((usual, origin)) if *usual == value => &format!("  # {origin}"),
            Some((usual, origin)) => &format!("  # set for this run; {origin} has {usual}"),
            None => "  # set for this run",
        };
        let value = if value.is_empty() { "\"\"" } else { &value };
        field(out, &name, &format!("{value}{origin}"));
    }
}

/// What the method's recipe for the dataset says, with the file or `default`; empty for a method that is not known.
fn recipe(cell: &Cell, extra: &[&'static dyn AnyDefense]) -> BTreeMap<String, (String, String)> {
    let (method, dataset) = (&cell.manifest.method, &cell.manifest.dataset);
    if cell.is_imported() {
        return BTreeMap::new();
    }
    let found = match cell.manifest.kind {
        Kind::Attack => bb_attack::registry::find(method).ok().and_then(|attack| {
            let given = bb_attack::method::Given::default();
            let ready = attack.resolve(dataset, &given).ok()?;
            Some((ready.tree().clone(), ready.origins().to_vec()))
        }),
        Kind::Defense => bb_defense::registry::find(method, extra)
            .ok()
            .and_then(|defense| {
                let given = bb_defense::method::Given::default();
                let ready = defense.resolve(dataset, &given).ok()?;
                Some((ready.tree().clone(), ready.origins().to_vec()))
            }),
    };
    let Some((tree, origins)) = found else {
        return BTreeMap::new();
    };
    let origins: BTreeMap<String, String> = origins
        .into_iter()
        .map(|(name, _, origin)| (name, origin.to_string()))
        .collect();
    let of = |(name, value): (String, String)| {
        let origin = origins
            .get(&name)
            .cloned()
            .unwrap_or_else(|| "the default".to_owned());
        (name, (value, origin))
    };
    leaves(&tree).into_iter().map(of).collect()
}

fn of_run(out: &mut String, env: &Env) {
    section(out, "the run that completed it");
    let commit = env
        .commit
        .as_ref()
        .map_or_else(String::new, |commit| format!(", commit {commit}"));
    field(
        out,
        "program",
        &format!("{}{commit}, {}", env.version, env.build),
    );
    field(out, "command", &env.command);
    field(out, "started", &env.started);
    field(
        out,
        "machine",
        &format!(
            "{}, {} of {} cores, device {}",
            env.cpu, env.threads, env.cores, env.device
        ),
    );
    field(out, "host", &env.host);
    if let Some(seconds) = env.seconds {
        let processor = env.processor_seconds;
        let processor =
            processor.map_or_else(String::new, |s| format!(", {s:.0} s of the processor"));
        field(out, "took", &format!("{seconds:.1} s{processor}"));
    }
    if let Some(kib) = env.peak_kib {
        field(out, "memory at most", &format!("{} MiB", kib / 1024));
    }
}

/// What differs between two cells: what they are, their settings, inputs, results and files.
pub fn diff(a: &Cell, b: &Cell) -> String {
    let parts = |cell: &Cell| {
        let manifest = &cell.manifest;
        let head = json!({
            "kind": manifest.kind,
            "method": manifest.method,
            "dataset": manifest.dataset,
            "arch": manifest.arch,
            "seed": manifest.seed,
        });
        let files: BTreeMap<&String, &String> = manifest
            .files
            .iter()
            .map(|(name, entry)| (name, &entry.sha256))
            .collect();
        [
            ("what it is", leaves(&head)),
            ("settings", leaves(&manifest.settings)),
            ("inputs", leaves(&json!(manifest.inputs))),
            ("results", leaves(&manifest.results)),
            ("files", leaves(&json!(files))),
        ]
    };
    let mut text = String::new();
    for ((title, a), (_, b)) in parts(a).into_iter().zip(parts(b)) {
        let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        let differing: Vec<&String> = names
            .into_iter()
            .filter(|name| a.get(*name) != b.get(*name))
            .collect();
        if differing.is_empty() {
            continue;
        }
        section(&mut text, title);
        for name in differing {
            let value = |of: &BTreeMap<String, String>| {
                of.get(name).cloned().unwrap_or_else(|| "-".to_owned())
            };
            field(&mut text, name, &format!("{}  |  {}", value(&a), value(&b)));
        }
    }
    if text.is_empty() {
        let _ = writeln!(text, "nothing differs in `{MANIFEST}`");
    }
    plain(&text)
}
