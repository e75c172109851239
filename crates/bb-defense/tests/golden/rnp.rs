//! RNP against the benchmark's run of it.

use bb_defense::context::Ctx;
use bb_defense::data::CleanImages;
use bb_defense::method::Suspect;
use bb_defense::rnp::Rnp;
use bb_defense::unlearning::{self, UnlearnConfig};

use super::baseline::{Baseline, Stored};

/// As the masks' text file has it.
const THRESHOLD: f64 = 0.7;

/// Three epochs of unlearning with a falling rate, two of masks, and the channels pruned in the suspect model. Some
/// gradients are longer than `unlearn.clip`, so clipping would be seen.
#[test]
fn golden_run() {
    let (baseline, golden) = (Baseline::read(), Stored::read("rnp"));
    let set = [
        "unlearn.max_epochs=3",
        "unlearn.milestones=[2]",
        "unlearn.stop_accuracy=0.0",
        "unlearn.batch_size=4",
        "unlearn.shuffle=false",
        "unlearn.augment=false",
        "recover.epochs=2",
        "recover.lr=6.0",
        "recover.batch_size=4",
        "recover.shuffle=false",
        "recover.augment=false",
        "sweep=false",
    ];
    let repaired = baseline.repaired::<Rnp>(&set);
    let (_, table) = &repaired.artefacts[0];
    let table = std::str::from_utf8(table).expect("text");
    let masks: Vec<f32> = table
        .lines()
        .skip(1)
        .map(|line| line.rsplit(',').next().expect("a field"))
        .map(|mask| mask.parse().expect("a number"))
        .collect();
    golden.check_close("masks", &masks, 1e-3);
    let pruned = |mask: f64| mask <= THRESHOLD;
    let wanted = golden.get("masks").iter().map(|&mask| pruned(mask));
    // The channels are in the same order, and the same ones are pruned.
    assert!(
        masks
            .iter()
            .map(|&mask| pruned(f64::from(mask)))
            .eq(wanted.clone())
    );
    let count = wanted.filter(|pruned| *pruned).count();
    assert!(count > 0 && count < masks.len());
    assert_eq!(repaired.candidates[0].notes["pruned"], count);
    // Nothing but pruning happened to the suspect model.
    golden.check_state(&repaired.candidates[repaired.chosen].state, "after", 1e-7);
}

/// The unlearned network, with its running statistics.
#[test]
fn golden_unlearning() {
    let (baseline, golden) = (Baseline::read(), Stored::read("rnp"));
    let clean = CleanImages::from_split(baseline.clean.clone());
    let suspect = Suspect::new(&baseline.arch, baseline.task, &baseline.state, &clean);
    let cfg = UnlearnConfig {
        max_epochs: 3,
        milestones: vec![2],
        stop_accuracy: 0.0,
        shuffle: false,
        augment: false,
        ..UnlearnConfig::usual(4)
    };
    let (net, course) = unlearning::run(&cfg, None, "rnp", &suspect, &mut Ctx::detached(0))
        .expect("its losses are finite");
    assert_eq!((course.epochs, course.reached), (3, false));
    golden.check_state(&net.state().expect("a state"), "unlearned", 1e-5);
}
