//! NAD against the benchmark's run of it.

use bb_defense::finetuning::Stepper;
use bb_defense::nad::Nad;
use bb_defense::nad::config::{DistillConfig, NadConfig};
use bb_defense::nad::distill::Distiller;
use bb_nn::data::{Normaliser, plain_input};
use bb_nn::schedule::{Kind, PlateauState, Schedule};
use bb_nn::{Net, StateDict};

use super::baseline::{Baseline, Stored};
use super::ft::PLAIN;

const RATE: &str = "0.001";

fn student() -> DistillConfig {
    DistillConfig {
        lr: RATE.parse().expect("a number"),
        ..NadConfig::default().distill
    }
}

/// Two epochs of three batches for the teacher, and as many for the student.
#[test]
fn golden_run() {
    let (baseline, golden) = (Baseline::read(), Stored::read("nad"));
    let rates = [format!("finetune.lr={RATE}"), format!("distill.lr={RATE}")];
    let student = [
        "finetune.epochs=2",
        "distill.epochs=2",
        "distill.batch_size=4",
        "distill.shuffle=false",
        "distill.augment=false",
        &rates[0],
        &rates[1],
    ];
    let repaired = baseline.repaired::<Nad>(&[&PLAIN[..], &student].concat());
    golden.check_state(&repaired.candidates[0].state, "after", 1e-4);
}

/// The teacher, and the loss of each of the student's steps.
#[test]
fn golden_losses() {
    let (baseline, golden) = (Baseline::read(), Stored::read("nad"));
    let teacher = teacher(&baseline);
    golden.check_state(&teacher, "teacher", 1e-5);
    let cfg = student();
    let mut net = baseline.net();
    let teacher = Net::from_state(&baseline.arch, &teacher).expect("the state fits");
    let mut steps = Distiller::new(&net, teacher, &baseline.arch, &cfg);
    let normaliser = Normaliser::new(baseline.task);
    let mut losses = Vec::new();
    for start in [0, 4, 8, 0, 4, 8] {
        let range = start..(start + 4).min(baseline.clean.len());
        let labels = &baseline.clean.labels[range.clone()];
        let input = plain_input(&baseline.clean.images, range, &normaliser);
        losses.push(steps.step(&mut net, &input, labels, cfg.lr as f32).mean);
    }
    golden.check_close("losses", &losses, 1e-4);
}

/// What the student's rate, written by hand there, is by our milestones.
#[test]
fn golden_rates() {
    let golden = Stored::read("nad");
    let cfg = NadConfig::default().distill;
    let schedule = Schedule {
        kind: Kind::Multistep,
        milestones: cfg.milestones.clone(),
        gamma: cfg.gamma,
        ..Schedule::default()
    };
    let wanted = golden.get("by_hand");
    assert!(wanted.first() > wanted.last(), "it falls");
    for (epoch, wanted) in wanted.iter().enumerate() {
        let found = schedule.rate(cfg.lr, (epoch, 40), (0, 1), &PlateauState::default());
        assert!((found - wanted).abs() <= 1e-12, "epoch {epoch}: {found}");
    }
}

/// The model after plain fine-tuning at the rate of the run.
fn teacher(baseline: &Baseline) -> StateDict {
    let rate = format!("finetune.lr={RATE}");
    let set = [&PLAIN[..], &["finetune.epochs=2", &rate]].concat();
    let repaired = baseline.repaired::<bb_defense::ft::Ft>(&set);
    repaired.candidates[0].state.clone()
}
