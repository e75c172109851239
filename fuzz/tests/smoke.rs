//! Every target runs, accepts its own seeds, and survives some inputs.

use std::sync::Mutex;
use std::time::Duration;

use bb_fuzz::{Budget, TARGETS, run};

/// What a process has used is that of all its threads, so one test runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn seeds_are_accepted() {
    let _alone = ALONE.lock().expect("no test before has failed");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for target in TARGETS {
        for (i, seed) in (target.seeds)().iter().enumerate() {
            // A picture of another size is there to be refused.
            let refused = target.name == "picture" && i == 1;
            let accepted = (target.read)(seed, folder.path());
            assert_eq!(accepted, !refused, "{} {i}", target.name);
        }
    }
}

#[test]
fn a_few_hundred_inputs_of_each_kind_do_no_harm() {
    let _alone = ALONE.lock().expect("no test before has failed");
    let budget = Budget {
        time: Duration::from_secs(20),
        inputs: 300,
    };
    for target in TARGETS {
        let outcome = run(target, &[], 1, 0, budget).expect("a temporary folder");
        assert!(outcome.finding.is_none(), "{}: {outcome:?}", target.name);
    }
}

#[test]
fn an_input_follows_from_its_number() {
    let target = TARGETS.iter().find(|target| target.name == "program");
    let make = target
        .and_then(|target| target.make)
        .expect("it makes programs");
    let input = |number| make(&mut bb_core::rng::stream(3, "program", 0, number));
    assert_eq!(input(5), input(5));
    assert_ne!(input(5), input(6));
}
