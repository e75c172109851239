//! `bb-eval` with one more defense; see `bb-defense-example --help`.

use std::process::ExitCode;

use bb_defense_example::NormPrune;

fn main() -> ExitCode {
    bb_eval::main_with(&[&NormPrune])
}
