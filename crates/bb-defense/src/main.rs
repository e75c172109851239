//! Repairs backdoored image classifiers; see `bb-defense --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    bb_defense::cli::main_with(&[])
}
