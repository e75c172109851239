//! Runs grids of attacks and defenses and prints the tables; see `bb-eval --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    bb_eval::main_with(&[])
}
