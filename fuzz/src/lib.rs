//! Broken files for everything that reads files of strangers.
//!
//! The decision this crate embodies: it runs on the stable toolchain, with the workspace, in its tests. The inputs are near
//! to what the readers accept: whole files with a few changes, programs of opcodes that mostly fit together
//! ([`program`]), and whole files in which a few numbers are lies (`made`).
//! Input `n` of a target follows from the target's name, the seed and `n` alone.
//!
//! With the feature `guided` the program `bb-fuzz-guided` gives the same inputs to libFuzzer, which changes them further
//! wherever that reaches new code; `scripts/fuzz.sh` builds and runs it.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use bb_core::events::usage;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

mod datasets;
mod made;
mod mutate;
#[path = "../../crates/bb-eval/tests/programs/hostile/parquet.rs"]
mod parquet;
pub mod program;
mod targets;

pub use targets::TARGETS;

/// Most time of the processor that one input may take.
pub const MOST_TIME: Duration = Duration::from_secs(1);
/// Most memory that one input may take, in KiB, beside what the process has before the first.
pub const MOST_MEMORY: u64 = 256 << 10;

/// A reader, and whole files for it.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Files that it accepts.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// A new input, where changing a seed is not enough.
    pub make: Option<fn(&mut ChaCha8Rng) -> Vec<u8>>,
    /// Reads an input, in whatever way; true if it was accepted.
    pub read: fn(&[u8], &Path) -> bool,
}

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Time for all inputs.
    pub time: Duration,
    /// Number of inputs.
    pub inputs: u64,
}

/// What came out.
#[derive(Debug)]
pub struct Outcome {
    /// Inputs that were read.
    pub inputs: u64,
    /// Those of them that were accepted.
    pub accepted: u64,
    /// The longest time that one took.
    pub slowest: Duration,
    /// The most memory that one took, in KiB.
    pub largest: u64,
    /// Time of all.
    pub time: Duration,
    /// The input that should not have done what it did.
    pub finding: Option<Finding>,
}

/// An input that was too much for its reader.
#[derive(Debug)]
pub struct Finding {
    /// What it did.
    pub what: String,
    /// Its number.
    pub number: u64,
    /// The input.
    pub input: Vec<u8>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} inputs in {:.0} s, {} accepted, the slowest {} ms, the largest {} MiB",
            self.inputs,
            self.time.as_secs_f64(),
            self.accepted,
            self.slowest.as_millis(),
            self.largest >> 10
        )
    }
}

/// What became of one input.
#[derive(Debug)]
pub struct Fed {
    /// Whether the reader accepted it.
    pub accepted: bool,
    /// Time of the processor.
    pub time: Duration,
    /// Memory beside what the process had before, in KiB.
    pub memory: u64,
    panicked: bool,
}

impl Fed {
    /// What the input did that no input may.
    pub fn too_much(&self) -> Option<String> {
        if self.panicked {
            Some("a panic".to_owned())
        } else if self.time > MOST_TIME {
            Some(format!("{} ms", self.time.as_millis()))
        } else if self.memory > MOST_MEMORY {
            Some(format!("{} KiB", self.memory))
        } else {
            None
        }
    }
}

/// Gives one input to the reader, which may write into `folder`.
pub fn feed(target: &Target, input: &[u8], folder: &Path) -> Fed {
    let had = peak_from_here();
    let (begun, before) = (Instant::now(), usage());
    let read = catch_unwind(AssertUnwindSafe(|| (target.read)(input, folder)));
    let after = usage();
    // On a machine that does many things at once the clock says little.
    let time = match (before, after) {
        (Some(before), Some(after)) => after.processor.saturating_sub(before.processor),
        _ => begun.elapsed(),
    };
    Fed {
        panicked: read.is_err(),
        accepted: read.unwrap_or(false),
        time,
        memory: after.map_or(0, |usage| usage.peak_kib.saturating_sub(had)),
    }
}

/// Input `number` of a target: made, or changed from `seeds`.
///
/// # Panics
/// Without seeds, if the target makes no inputs.
pub fn input(target: &Target, seeds: &[Vec<u8>], seed: u64, number: u64) -> Vec<u8> {
    let mut random = bb_core::rng::stream(seed, target.name, 0, number);
    match target.make {
        // Half of the inputs are made, the others changed.
        Some(make) if seeds.is_empty() || random.random_bool(0.5) => make(&mut random),
        _ => mutate::changed(seeds, &mut random),
    }
}

/// Feeds a target with inputs from number `from` on, changed from its seeds and from `more`.
///
/// # Errors
/// If there is no temporary folder.
pub fn run(
    target: &Target,
    more: &[Vec<u8>],
    seed: u64,
    from: u64,
    budget: Budget,
) -> io::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let mut seeds = (target.seeds)();
    seeds.extend_from_slice(more);
    let begun = Instant::now();
    let mut outcome = Outcome {
        inputs: 0,
        accepted: 0,
        slowest: Duration::ZERO,
        largest: 0,
        time: Duration::ZERO,
        finding: None,
    };
    let mut number = from;
    while outcome.inputs < budget.inputs && begun.elapsed() < budget.time {
        let input = input(target, &seeds, seed, number);
        let fed = feed(target, &input, folder.path());
        outcome.inputs += 1;
        outcome.accepted += u64::from(fed.accepted);
        outcome.largest = outcome.largest.max(fed.memory);
        outcome.slowest = outcome.slowest.max(fed.time);
        if let Some(what) = fed.too_much() {
            outcome.finding = Some(Finding {
                what,
                number,
                input,
            });
            break;
        }
        number += 1;
    }
    outcome.time = begun.elapsed();
    Ok(outcome)
}

/// Has the system count the most memory of this process from now on; gives what it has now, in KiB.
fn peak_from_here() -> u64 {
    // Where that cannot be asked for, the peak is that of all inputs so far, which hides nothing.
    let _ = fs_err::write("/proc/self/clear_refs", "5");
    usage().map_or(0, |usage| usage.peak_kib)
}
