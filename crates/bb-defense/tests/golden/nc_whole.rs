//! NC against the benchmark's run of it.

use bb_defense::nc::Nc;
use bb_defense::nc::config::Stamping;
use bb_defense::nc::invert::Trigger;
use bb_defense::nc::stamp::{Stamp, unlearning_set};
use bb_nn::StateDict;

use super::baseline::{Baseline, Stored};
use super::ft::PLAIN;

const INVERT: [&str; 8] = [
    "invert.batch_size=4",
    "invert.shuffle=false",
    "invert.augment=false",
    "invert.max_epochs=8",
    "invert.success=0.6",
    "invert.cost=0.02",
    "invert.patience=1",
    "invert.stop_patience=1",
];

/// Trigger, norm and number of epochs of each class.
fn check_triggers(golden: &Stored, artefacts: &[(String, Vec<u8>)]) {
    let artefact = |name: &str| {
        let found = artefacts.iter().find(|(own, _)| own == name);
        &found.expect("it is kept").1
    };
    let path = std::path::Path::new("triggers.safetensors");
    let triggers = StateDict::from_bytes(artefact("triggers.safetensors"), path);
    let triggers = triggers.expect("a state dictionary");
    let table = std::str::from_utf8(artefact("triggers.csv")).expect("text");
    let mut norms = Vec::new();
    for (class, line) in table.lines().skip(1).enumerate() {
        let fields: Vec<&str> = line.split(',').collect();
        norms.push(fields[1].parse().expect("a number"));
        let epochs: usize = fields[6].parse().expect("a count");
        assert_eq!(epochs, golden.counts("epochs")[class], "class {class}");
        for part in ["mask", "pattern"] {
            let found = triggers.floats(&format!("{class}.{part}"));
            let found = found.expect("a tensor").expect("floats");
            let name = format!("{part}.{class}");
            let stride = found.len().div_ceil(golden.get(&name).len());
            let found: Vec<f32> = found.into_iter().step_by(stride).collect();
            // Adam makes whole steps of gradients that are next to nothing.
            golden.check_close(&name, &found, 0.05);
        }
    }
    golden.check_close("norm", &norms, 2e-3);
    // The last epoch is not the one whose trigger is kept, and the cost moved both ways.
    let kept = golden.counts("kept");
    let other = kept.iter().zip(golden.counts("epochs"));
    assert!(other.filter(|(kept, all)| **kept < *all).count() > 2);
}

/// Triggers, flagged classes, and the model after two epochs of unlearning them.
#[test]
fn golden_run() {
    let (baseline, golden) = (Baseline::read(), Stored::read("nc"));
    let bench = ["invert.normalise=rows", "finetune.epochs=2"];
    let repaired = baseline.repaired::<Nc>(&[&PLAIN[..], &INVERT, &bench].concat());
    check_triggers(&golden, &repaired.artefacts);
    let flagged = serde_json::json!(golden.counts("flagged"));
    assert_eq!(repaired.notes["detect"]["flagged"], flagged);
    assert!(golden.counts("flagged").len() > 1);
    golden.check_state(&repaired.candidates[0].state, "after", 1e-3);
}

/// The default normalisation, which the benchmark means and does not do.
#[test]
fn golden_triggers_by_channel() {
    let (baseline, golden) = (Baseline::read(), Stored::read("nc_by_channel"));
    let set = ["finetune.epochs=0"];
    let repaired = baseline.repaired::<Nc>(&[&PLAIN[..], &INVERT, &set].concat());
    check_triggers(&golden, &repaired.artefacts);
}

/// The images that the backdoor is unlearned with, for the triggers of the run.
#[test]
fn golden_unlearning_set() {
    let (baseline, golden) = (Baseline::read(), Stored::read("nc"));
    let stamp = |class: &usize| {
        let part = |name: &str| golden.floats(&format!("{name}.{class}"));
        let size = (baseline.task.height, baseline.task.width);
        let trigger = Trigger::from_parts(size, &part("mask"), &part("pattern"));
        Stamp::new(&trigger, Stamping::Normalised)
    };
    let stamps: Vec<Stamp> = golden.counts("flagged").iter().map(stamp).collect();
    let set = unlearning_set(&baseline.clean, &stamps, 0.2).expect("small");
    let labels: Vec<usize> = set.labels.iter().map(|&label| label as usize).collect();
    assert_eq!(labels, golden.counts("labels"));
    let found = set.images.as_bytes();
    assert_eq!(found, golden.bytes("images"));
    let stamped = baseline.clean.images.as_bytes();
    let start = 8 * 32 * 32 * 3;
    assert_ne!(found[start..stamped.len()], stamped[start..]);
}
