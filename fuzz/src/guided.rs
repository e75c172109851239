//! Feeds a target with what libFuzzer finds by the code it reaches; `scripts/fuzz.sh` builds and runs it.
//!
//! `BB_FUZZ_TARGET` names the target. The corpus begins with its seeds and with some inputs that `bb-fuzz` makes, and one
//! change in eight is such an input: random changes alone get through no checksum, and rarely through a length.

#![no_main]

use std::sync::OnceLock;

use bb_fuzz::{TARGETS, Target, feed, input};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use tempfile::TempDir;

struct State {
    target: &'static Target,
    seeds: Vec<Vec<u8>>,
    folder: TempDir,
}

fn state() -> &'static State {
    static STATE: OnceLock<State> = OnceLock::new();
    STATE.get_or_init(|| {
        // libFuzzer's hook ends the process at every panic, also where a reader makes one of another crate an error.
        drop(std::panic::take_hook());
        let name = std::env::var("BB_FUZZ_TARGET").unwrap_or_default();
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        let target = TARGETS.iter().find(|target| target.name == name);
        let target = target.unwrap_or_else(|| {
            panic!("BB_FUZZ_TARGET is {name:?}, expected one of {names:?}");
        });
        State {
            target,
            seeds: (target.seeds)(),
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    })
}

fuzz_target!(|bytes: &[u8]| {
    let State { target, folder, .. } = state();
    if let Some(what) = feed(target, bytes, folder.path()).too_much() {
        panic!("{}: {what}", target.name);
    }
});

fuzz_mutator!(|bytes: &mut [u8], size: usize, most: usize, seed: u32| {
    let State { target, seeds, .. } = state();
    if seed % 8 != 0 {
        return fuzzer_mutate(bytes, size, most);
    }
    let made = input(target, seeds, u64::from(seed), 0);
    let length = made.len().min(most);
    bytes[..length].copy_from_slice(&made[..length]);
    length
});
