//! Trains image classifiers with a backdoor; see `bb-attack --help`.

use std::process::ExitCode;

use bb_attack::cli::{Args, main as run};
use clap::Parser as _;

fn main() -> ExitCode {
    let args = Args::parse();
    bb_core::cli::main(|| run(&args))
}
