//! What is no file, in the place of each file that is read.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{Base, Case, copy, put};
use crate::inputs::SMALL;

/// A file that a program reads, and all that lies around it.
struct Place {
    name: &'static str,
    command: &'static str,
    /// The file, below the folder of the case.
    file: &'static str,
    /// What is copied of the good inputs, and where to.
    copied: &'static [(&'static str, &'static str)],
}

const fn place(
    name: &'static str,
    command: &'static str,
    file: &'static str,
    copied: &'static [(&'static str, &'static str)],
) -> Place {
    Place {
        name,
        command,
        file,
        copied,
    }
}

const CELL: &[(&str, &str)] = &[("CELL", "cell")];
const RECORD: &[(&str, &str)] = &[("record/e", "record")];
const MODEL: &[(&str, &str)] = &[("badnets-synthetic-w8.safetensors", "m.safetensors")];
const IMAGES: &[(&str, &str)] = &[("images", "images")];
const TREE: &[(&str, &str)] = &[("CELL", "tree/attack/badnets/x/y")];
const REPAIR: &[(&str, &str)] = &[("REPAIR", "repair")];
const IMPORT: &str = "eval zoo import record --dataset synthetic --threads 1 --out out";
const DEFENSE: &str = "defense ft --model cell --threads 1 -q --set clean.ratio=0.2 --set finetune.epochs=1 --out out";
const ON_IMAGES: &str = "attack badnets --dataset folder --data images --width 1 --threads 1 -q --set train.batch_size=8 --out out";
const ON_CIFAR: &str =
    "attack badnets --dataset cifar10 --data data --width 1 --threads 1 -q --out out";
const ON_SIGNS: &str =
    "attack badnets --dataset gtsrb --data data --width 1 --threads 1 -q --out out";

const PLACES: [Place; 42] = [
    place("record", IMPORT, "record/attack_result.pt", RECORD),
    place(
        "network to import",
        "eval zoo import m.safetensors --dataset synthetic --out out",
        "m.safetensors",
        &[],
    ),
    place(
        "checkpoint to import",
        "eval zoo import m.pth --dataset synthetic --out out",
        "m.pth",
        &[],
    ),
    place(
        "what says what a network is",
        "eval zoo import m.safetensors --out out",
        "model.json",
        MODEL,
    ),
    place(
        "rules",
        "eval zoo import m.safetensors --dataset synthetic --rename-file rules.toml --out out",
        "rules.toml",
        MODEL,
    ),
    place("file to scan", "eval zoo scan m.pt", "m.pt", &[]),
    place(
        "network to scan",
        "eval zoo scan m.safetensors",
        "m.safetensors",
        &[],
    ),
    place(
        "index to list",
        "eval zoo list --index index.toml",
        "index.toml",
        &[],
    ),
    place(
        "index to get from",
        "eval zoo get badnets-synthetic-w8 --index index.toml --dir out",
        "index.toml",
        &[],
    ),
    place(
        "model of an index",
        "eval zoo get badnets-synthetic-w8 --index index.toml --dir out",
        "badnets-synthetic-w8.safetensors",
        &[("index.toml", "index.toml")],
    ),
    place(
        "source to get from",
        "eval zoo get badnets-synthetic-w8 --index index.toml --from m --dir out",
        "m",
        &[("index.toml", "index.toml")],
    ),
    place(
        "model to verify",
        "eval zoo verify badnets-synthetic-w8 --index index.toml --dir out --threads 1",
        "badnets-synthetic-w8.safetensors",
        &[("index.toml", "index.toml")],
    ),
    place(
        "settings of an attack",
        "attack badnets --dataset synthetic --width 1 --train-limit 64 --test-limit 20 --threads 1 -q --set train.batch_size=32 --set train.epochs=1 -c s.toml --out out",
        "s.toml",
        &[],
    ),
    place(
        "settings of a defense",
        "defense ft --model cell --threads 1 -q --set clean.ratio=0.2 --set finetune.epochs=1 -c s.toml --out out",
        "s.toml",
        CELL,
    ),
    place(
        "picture of a trigger",
        "attack blended --dataset synthetic --width 1 --train-limit 64 --test-limit 20 --threads 1 -q --set train.batch_size=32 --set train.epochs=1 --set trigger.file=\"t.png\" --out out",
        "t.png",
        &[],
    ),
    place(
        "patch of a trigger",
        "attack badnets --dataset synthetic --width 1 --train-limit 64 --test-limit 20 --threads 1 -q --set train.batch_size=32 --set train.epochs=1 --set trigger.file=\"t.npy\" --out out",
        "t.npy",
        &[],
    ),
    place(
        "array of a trigger",
        "attack lf --dataset synthetic --width 1 --train-limit 64 --test-limit 20 --threads 1 -q --set train.batch_size=32 --set train.epochs=1 --set trigger.source=\"file\" --set trigger.file=\"t.npy\" --out out",
        "t.npy",
        &[],
    ),
    place(
        "mask of a trigger",
        "attack trojan --dataset synthetic --width 1 --train-limit 64 --test-limit 20 --threads 1 -q --set train.batch_size=32 --set train.epochs=1 --set trigger.mask=\"t.png\" --set trigger.model=\"cell\" --out out",
        "t.png",
        CELL,
    ),
    place(
        "network of a trigger",
        "attack trojan --dataset synthetic --width 1 --train-limit 64 --test-limit 20 --threads 1 -q --set train.batch_size=32 --set train.epochs=1 --set trigger.model=\"cell\" --out out",
        "cell/manifest.json",
        CELL,
    ),
    place(
        "grid to run",
        "eval run g.toml --threads 1 -q --out out",
        "g.toml",
        &[],
    ),
    place("grid to plan", "eval plan g.toml --out out", "g.toml", &[]),
    place(
        "grid of a table",
        "eval table g.toml --out out",
        "g.toml",
        &[],
    ),
    place(
        "settings of a grid",
        "eval run g.toml --threads 1 -q --out out",
        "s.toml",
        &[("files.toml", "g.toml")],
    ),
    place(
        "cell of a table",
        "eval table tree",
        "tree/attack/badnets/x/y/manifest.json",
        &[("CELL", "tree/attack/badnets/x/y")],
    ),
    place("manifest of a suspect", DEFENSE, "cell/manifest.json", CELL),
    place(
        "network of a suspect",
        DEFENSE,
        "cell/model.safetensors",
        CELL,
    ),
    place(
        "poisoned images of a suspect",
        DEFENSE,
        "cell/poison_test.safetensors",
        CELL,
    ),
    place("settings of a suspect", DEFENSE, "cell/config.toml", CELL),
    place(
        "manifest to measure",
        "eval metrics cell --threads 1",
        "cell/manifest.json",
        CELL,
    ),
    place(
        "network to measure",
        "eval metrics cell --threads 1",
        "cell/model.safetensors",
        CELL,
    ),
    place(
        "poisoned images to measure",
        "eval metrics cell --threads 1",
        "cell/poison_test.safetensors",
        CELL,
    ),
    place(
        "manifest to export",
        "eval zoo export cell --format state-dict --out out/e",
        "cell/manifest.json",
        CELL,
    ),
    place(
        "network to export",
        "eval zoo export cell --format safetensors --out out/e",
        "cell/model.safetensors",
        CELL,
    ),
    place(
        "poisoned images to export",
        "eval zoo export cell --format backdoorbench --out out/e",
        "cell/poison_train.safetensors",
        CELL,
    ),
    place(
        "manifest to analyze",
        "eval analyze unlearning cell --threads 1 --out out",
        "cell/manifest.json",
        CELL,
    ),
    place(
        "manifest itself",
        "eval metrics cell/manifest.json --threads 1",
        "cell/manifest.json",
        CELL,
    ),
    place(
        "image of a folder",
        ON_IMAGES,
        "images/train/a/3.png",
        IMAGES,
    ),
    place(
        "archive of images",
        ON_CIFAR,
        "data/cifar-10-python.tar.gz",
        &[],
    ),
    place(
        "list of signs",
        ON_SIGNS,
        "data/Test.csv",
        &[
            ("images/train/a", "data/Train/0"),
            ("images/test/a", "data/Test"),
        ],
    ),
    place(
        "record of a table",
        "eval table tree",
        "tree/attack/badnets/x/y/env.json",
        TREE,
    ),
    place(
        "log of a table",
        "eval table tree",
        "tree/attack/badnets/x/y/log.jsonl",
        TREE,
    ),
    place(
        "manifest of a repair",
        "eval metrics repair --threads 1",
        "repair/manifest.json",
        REPAIR,
    ),
];

/// Settings of a grid in a file beside it.
const FILES: &str = "[grid]\nname = \"g\"\ndataset = \"synthetic\"\nwidth = 1\nseeds = [0]\ntrain_limit = 64\ntest_limit = 20\n\n[[attack]]\nmethod = \"badnets\"\nconfig = [\"s.toml\"]\nset = { train.epochs = 1, train.batch_size = 32 }\n";

/// What lies there instead.
const SPECIALS: [&str; 7] = [
    "pipe",
    "link to a device",
    "link to itself",
    "folder",
    "60 GB of nothing",
    "nothing",
    "socket",
];

fn special(what: &str, path: &Path) {
    let _ = fs_err::remove_file(path);
    fs_err::create_dir_all(path.parent().expect("a file has a folder")).expect("a folder");
    match what {
        "pipe" => {
            mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a pipe");
        }
        "link to a device" => symlink("/dev/zero", path).expect("a link"),
        "link to itself" => symlink(path.file_name().expect("a name"), path).expect("a link"),
        "link to a folder" => {
            symlink(path.with_file_name("elsewhere-folder"), path).expect("a link");
        }
        "folder" => fs_err::create_dir(path).expect("a folder"),
        "60 GB of nothing" => {
            let file = fs_err::File::create(path).expect("a file");
            file.set_len(60 << 30).expect("a filesystem with holes");
        }
        "nothing" => put(path, b""),
        // Its file stays when it is closed.
        _ => drop(UnixListener::bind(path).expect("a socket")),
    }
}

pub(super) fn cases(base: &Base) -> Vec<Case> {
    let mut cases = Vec::new();
    for place in &PLACES {
        for what in SPECIALS {
            let base = base.clone();
            let make = move |folder: &Path| {
                for (from, to) in place.copied {
                    let to = folder.join(to);
                    let from = match *from {
                        "CELL" => base.cell.clone(),
                        "REPAIR" => base.repair.clone(),
                        name => base.inputs.join(name),
                    };
                    if from.is_dir() {
                        copy(&from, &to);
                    } else if from.ends_with("files.toml") {
                        put(&to, FILES);
                    } else {
                        fs_err::copy(&from, &to).expect("a copy");
                    }
                }
                special(what, &folder.join(place.file));
            };
            let kind = match what {
                "60 GB of nothing" => "sparse files",
                "nothing" => "empty files",
                _ => "pipes, devices, links, folders, sockets",
            };
            let case = Case::new(
                kind,
                format!("{what} as {}", place.name),
                place.command,
                make,
            );
            // A name that leads to itself is as good as none, a folder may be a store, and empty settings are settings.
            let is_named = match what {
                "link to itself" | "folder" => false,
                "nothing" => !place.file.ends_with("toml"),
                _ => true,
            };
            let named = place.file.rsplit('/').next().expect("a name");
            let named = if is_named { named } else { "" };
            let case = Case { named, ..case };
            // A table leaves out what is no cell, a folder of images what is no file, and a description may be missing.
            let optional = [
                "cell of a table",
                "record of a table",
                "log of a table",
                "image of a folder",
                "what says what a network is",
            ];
            let toml =
                Path::new(place.file).extension() == Some("toml".as_ref()) && what == "nothing";
            let may_pass = optional.contains(&place.name) || toml;
            cases.push(if may_pass { case.harmless() } else { case });
        }
    }
    cases.extend(CELL_FILES.iter().flat_map(|name| linked(base, name)));
    cases.extend(begun(base));
    cases
}

/// Files of a complete cell that are links to files with the very content.
const CELL_FILES: [&str; 4] = [
    "manifest.json",
    "model.safetensors",
    "poison_test.safetensors",
    "config.toml",
];

fn linked(base: &Base, name: &'static str) -> Vec<Case> {
    let commands = [
        DEFENSE,
        "eval metrics cell --threads 1",
        "eval zoo export cell --format state-dict --out out/e",
    ];
    let case = |command: &str| {
        let base = base.clone();
        Case::new(
            "links in cells",
            format!("link as {name}: {command}"),
            command,
            move |folder| {
                copy(&base.cell, &folder.join("cell"));
                let (place, away) = (folder.join("cell").join(name), folder.join("away"));
                fs_err::rename(&place, &away).expect("a file of the cell");
                symlink(&away, &place).expect("a link");
            },
        )
    };
    commands.into_iter().map(case).collect()
}

/// Cells that a run is to begin or to go on with, in which something lies that leads elsewhere.
fn begun(base: &Base) -> Vec<Case> {
    let names = [
        "lock",
        "log.jsonl",
        "metrics.jsonl",
        "env.json",
        "failed.json",
        "config.toml",
        "model.safetensors",
        "manifest.json",
        "ckpt",
        "ckpt/train.safetensors",
        ".tmp-1-0",
        "trigger.png",
    ];
    let whats = [
        "link to a file",
        "link to a folder",
        "link to a device",
        "pipe",
        "folder",
        "60 GB of nothing",
    ];
    let command = format!("attack badnets {SMALL} --set train.epochs=1 --out out");
    let mut cases = Vec::new();
    for name in names {
        for what in whats {
            let base = base.clone();
            let make = move |folder: &Path| {
                let own = base
                    .cell
                    .strip_prefix(base.inputs.join("base"))
                    .expect("a cell of the inputs");
                let place = folder.join("out").join(own).join(name);
                fs_err::create_dir_all(place.parent().expect("a folder")).expect("a folder");
                let away = folder.join("away");
                put(&away.join("victim"), b"precious");
                put(&away.join("train.safetensors"), b"precious");
                match what {
                    "link to a file" => symlink(away.join("victim"), &place).expect("a link"),
                    "link to a folder" => symlink(&away, &place).expect("a link"),
                    _ => special(what, &place),
                }
            };
            cases.push(
                Case::new(
                    "cells on their way",
                    format!("{what} as {name}"),
                    &command,
                    make,
                )
                .harmless(),
            );
        }
    }
    cases
}
