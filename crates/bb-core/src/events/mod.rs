//! What a run tells while it goes on: progress and log lines to standard error, rows to JSONL files.
//!
//! The decision this module embodies: people and programs are told separately.
//! A person sees a bar on a terminal, or few plain lines where there is none; a program reads `metrics.jsonl` and
//! `log.jsonl`, one JSON object a line. Nothing here writes to standard output, which is for data.

mod facts;
mod log;
mod progress;

pub use facts::{Usage, clear_peak, kernel, processor, rfc3339, started, usage};
pub use log::{JsonLines, LONGEST_ROWS, Log};
pub use progress::Progress;
