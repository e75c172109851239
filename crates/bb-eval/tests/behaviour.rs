//! What defenses are for: on models whose backdoor works, their repair lowers the attack success rate.
//!
//! Each repairs BadNets on the synthetic set by its committed recipe. That is minutes of training, so the test is
//! ignored unless it is requested.

use std::path::Path;

use bb_attack::AttackRequest;
use bb_core::cell::Cell;
use bb_core::metrics::Scores;
use bb_defense::harness::DefenseRequest;
use bb_nn::{Compute, Precision};

/// The backdoored model, as `bb-attack badnets --dataset synthetic --width 8` trains it.
fn attacked(out: &Path) -> Cell {
    let request = AttackRequest {
        method: "badnets".to_owned(),
        dataset: "synthetic".to_owned(),
        data: None,
        train_limit: None,
        test_limit: None,
        test_split: None,
        arch: "preactresnet18".to_owned(),
        width: 8,
        precision: Precision::F32,
        compute: Compute::Cpu,
        given: bb_attack::method::Given::default(),
        seed: 0,
        out: out.to_owned(),
        quiet: true,
    };
    bb_attack::harness::run(&request).expect("a model")
}

fn scores(cell: &Cell, of: &str) -> Scores {
    serde_json::from_value(cell.manifest.results[of].clone()).expect("scores")
}

#[test]
#[ignore = "slow"]
fn defenses_lower_the_attack_success_rate() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let attack = attacked(out.path());
    // Method, settings, highest ASR and lowest ACC in percent. Above each are ASR and ACC of the models of seeds 0, 1 and 2;
    // processors that round otherwise train other models, so the bounds are wide. CLP is not among them: at this width no
    // channel alone carries the backdoor, and it leaves the model as it is.
    for (id, set, asr, acc) in [
        // ASR 86, 32, 78; ACC 97, 95, 89.
        ("ft", "", 96.0, 80.0),
        // 67, 46, 78; 99, 93, 99.
        ("fp", "", 92.0, 80.0),
        // 73, 6, 53; 98, 93, 87.
        ("nad", "", 90.0, 75.0),
        // 0, 1, 0; 99, 96, 99. The set's classes are so easy that the target's mask, the smallest one, is no outlier by 2.
        ("nc", "detect.threshold=0.8", 30.0, 85.0),
        // 31, 14, 16; 73, 57, 83.
        ("anp", "", 60.0, 40.0),
        // 69, 66, 81; 98, 94, 93.
        ("ibau", "", 93.0, 80.0),
        // 6, 24, 30; 81, 88, 42.
        ("rnp", "", 60.0, 25.0),
        // 11, 6, 4; 99, 95, 100.
        ("tsbd", "", 40.0, 85.0),
        // 53, 52, 85; 93, 87, 73.
        ("otbr", "", 95.0, 55.0),
        // 0, 63, 0; 91, 98, 100.
        ("ulrl", "", 85.0, 75.0),
    ] {
        let defense = bb_defense::registry::find(id, &[]).expect("a defense");
        let request = DefenseRequest {
            defense,
            model: attack.dir.clone(),
            data: None,
            given: bb_defense::method::Given {
                files: Vec::new(),
                set: set.split_terminator(' ').map(str::to_owned).collect(),
            },
            precision: Precision::F32,
            compute: Compute::Cpu,
            seed: 0,
            out: out.path().to_owned(),
            cache: None,
            quiet: true,
        };
        let cell = bb_defense::harness::run(&request).expect("a repaired model");
        let (before, after) = (scores(&cell, "before"), scores(&cell, "after"));
        let percent = |ratio: bb_core::metrics::Ratio| ratio.percent().expect("test images");
        assert!(percent(before.asr) > 95.0 && percent(before.acc) > 95.0);
        let found = (percent(after.asr), percent(after.acc));
        assert!(found.0 < asr && found.1 > acc, "{id}: {found:?}");
    }
}
