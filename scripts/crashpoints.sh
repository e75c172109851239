#!/usr/bin/env bash
# Breaks every call by which the programs change files, one after the other: hours, where the tests take a sample.
#
#     scripts/crashpoints.sh            all runs
#     scripts/crashpoints.sh NAME       one of them, such as attack, grid or "defense with state"
#
# What is done at a call, and what must come of it, says crates/bb-eval/tests/programs/faults.rs. Needs a C compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --workspace --bins --locked
BB_FAULTS=${1:-all} cargo test -p bb-eval --test programs --locked -- --ignored --nocapture broken_call
