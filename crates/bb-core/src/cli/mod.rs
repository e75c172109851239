//! What the binaries have in common: options, threads, interruption, and how a failure is told.
//!
//! The decision this module embodies: a binary's `main` is one line, `cli::main(run)`, and everything that can go wrong
//! comes back from `run` as a [`Failure`], so a message is printed once, in one form, with one exit code:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done, or the reader of standard output went away |
//! | 1 | a check said no |
//! | 2 | usage or settings |
//! | 3 | input rejected |
//! | 4 | numerical failure |
//! | 75 | try again: locked by another process, or the machine is short of something |
//! | 101 | a bug |
//! | 130, 143 | interrupted by Ctrl-C or a termination signal, after a clean checkpoint |
//!
//! Data goes to standard output through [`print()`], everything else to standard error.

mod args;
mod device;
mod failure;
mod interrupt;

use std::cell::Cell;
use std::ffi::OsStr;
use std::io::{self, IsTerminal as _, Write};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

pub use args::{
    DATA_ENV, DEFAULT_ARCH, DEFAULT_DATASET, DEFAULT_WIDTH, HostArgs, MOST_IMAGES, MOST_WIDTH,
    RunArgs, SHOWN_OPTIONS, limit, seed, threads, whole, width,
};
pub use device::{Backend, Device, ParseDeviceError};
pub use failure::{Coded, Failure, shorten};
pub(crate) use failure::{causes, visible};
pub use interrupt::{Interrupted, RESUMES, catch_interrupts, check_interrupt, interrupted};

/// The exit codes; see the module's head.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// A check said no.
    pub const NO: u8 = 1;
    /// Usage or settings.
    pub const USAGE: u8 = 2;
    /// Input rejected.
    pub const INPUT: u8 = 3;
    /// Numerical failure: something became infinite or not a number.
    pub const NUMERICAL: u8 = 4;
    /// Try again later.
    pub const TRY_AGAIN: u8 = 75;
    /// A bug; a panic ends with this code too.
    pub const BUG: u8 = 101;
    /// Interrupted by Ctrl-C.
    pub const INTERRUPTED: u8 = 130;
    /// Interrupted by a termination signal.
    pub const TERMINATED: u8 = 143;
}

/// What the machine could not give.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The program was built without CUDA.
    #[error("device `cuda:{index}` is not available: this build runs on the CPU only")]
    NoCuda {
        /// The device that was asked for.
        index: usize,
    },
    /// The machine has fewer CUDA devices.
    #[error(
        "device `cuda:{index}` is not available: this machine has {count} CUDA devices, counted from 0"
    )]
    NoSuchCuda {
        /// The device that was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The threads could not be started.
    #[error("cannot start {threads} threads")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the thread pool says.
        source: rayon::ThreadPoolBuildError,
    },
    /// The handlers of the signals could not be installed.
    #[error("cannot catch interruptions")]
    Signals {
        /// What the system says.
        source: io::Error,
    },
}

impl Coded for CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoCuda { .. } | Self::NoSuchCuda { .. } => exit::USAGE,
            Self::Threads { .. } | Self::Signals { .. } => exit::TRY_AGAIN,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoCuda { .. } | Self::NoSuchCuda { count: 0, .. } => {
                Some("run with `--device cpu`".to_owned())
            }
            _ => None,
        }
    }
}

/// Runs a program: the whole body of a binary's `main`.
pub fn main(run: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    crate::events::started();
    explain_panics();
    let terminal = io::stderr().is_terminal();
    let colour = colour_wanted(
        terminal,
        std::env::var_os("NO_COLOR").as_deref(),
        std::env::var_os("TERM").as_deref(),
    );
    ExitCode::from(finish(run(), &mut io::stderr().lock(), colour))
}

/// Tells how a run ended to `stderr` and gives the exit code.
///
/// Nothing is said when it succeeded, and nothing when it only lost the reader of its output.
pub fn finish(result: Result<(), Failure>, stderr: &mut dyn Write, colour: bool) -> u8 {
    match result {
        Ok(()) => exit::DONE,
        Err(failure) if failure.is_broken_pipe() => exit::DONE,
        Err(failure) => {
            // Without a standard error there is nobody left to tell.
            let _ = stderr.write_all(failure.report(colour).as_bytes());
            failure.exit_code()
        }
    }
}

/// Writes data to standard output, without what a terminal would obey: names and labels may be a stranger's.
///
/// Unlike `print!` it does not panic when the reader went away: the failure ends the program quietly.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(visible(text).as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Starts the one pool of threads that everything runs on, and returns how many there are.
///
/// Without a number all available cores are used. Results do not depend on it.
pub fn init_threads(threads: Option<NonZeroUsize>) -> Result<usize, CliError> {
    let threads = threads
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get);
    let built = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("worker-{index}"))
        .build_global();
    match built {
        // A second call, as tests make it, is harmless when it asks for the same.
        Err(source) if rayon::current_num_threads() != threads => {
            Err(CliError::Threads { threads, source })
        }
        _ => Ok(threads),
    }
}

/// Whether to write in colour: on a terminal that can, unless `NO_COLOR` is set to something.
fn colour_wanted(terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty) && term != Some(OsStr::new("dumb"))
}

thread_local! {
    /// Whether a panic of this thread is a foreign reader's way to refuse its input.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a reader of another crate whose panic the caller turns into an error, so that no panic is told.
///
/// # Errors
/// What the reader panicked with.
pub fn expecting_panics<T>(read: impl FnOnce() -> T) -> std::thread::Result<T> {
    let before = EXPECTED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(read));
    EXPECTED.set(before);
    done
}

/// Adds to the message of a panic that it is not the user's fault.
fn explain_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if EXPECTED.get() {
            return;
        }
        default(info);
        let _ =
            io::stderr().write_all(b"hint: this is a bug; please report it with the lines above\n");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_expected_within_and_not_after() {
        let inside = expecting_panics(|| EXPECTED.get());
        assert!(inside.is_ok_and(|expected| expected));
        let panicked = expecting_panics(|| panic!("as a reader does"));
        assert!(panicked.is_err());
        assert!(!EXPECTED.get());
    }

    #[test]
    fn colour_needs_a_terminal_and_nobody_against_it() {
        let cases = [
            (true, None, None, true),
            (true, None, Some("xterm"), true),
            (true, Some(""), Some("xterm"), true),
            (true, Some("1"), Some("xterm"), false),
            (true, Some("0"), Some("xterm"), false),
            (true, None, Some("dumb"), false),
            (false, None, Some("xterm"), false),
        ];
        for (terminal, no_color, term, expected) in cases {
            let found = colour_wanted(terminal, no_color.map(OsStr::new), term.map(OsStr::new));
            assert_eq!(
                found, expected,
                "terminal {terminal}, NO_COLOR {no_color:?}, TERM {term:?}"
            );
        }
    }
}
