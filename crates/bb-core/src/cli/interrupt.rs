//! Stopping in good order when asked to.
//!
//! The first signal only leaves a note, which the training loop reads at its next batch boundary; the second ends the
//! program at once, so nobody who presses Ctrl-C twice has to wait.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::{CliError, Coded, exit};

/// What to tell whoever interrupted a run.
pub const RESUMES: &str = "the same command again goes on from the last checkpoint";

/// The number of the signal that came last, 0 before any. Empty until signals are caught.
static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// The run was interrupted by a signal, at a point from which it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by {}", if *.signal == SIGTERM { "a termination signal" } else { "Ctrl-C" })]
pub struct Interrupted {
    signal: i32,
}

impl Coded for Interrupted {
    fn exit_code(&self) -> u8 {
        if self.signal == SIGTERM {
            exit::TERMINATED
        } else {
            exit::INTERRUPTED
        }
    }

    fn hint(&self) -> Option<String> {
        Some(RESUMES.to_owned())
    }
}

/// Catches Ctrl-C and the termination signal from here on.
///
/// To be called by what polls [`interrupted`], right before it begins: elsewhere a signal should end the program, as
/// it does by default. Calling it again changes nothing.
pub fn catch_interrupts() -> Result<(), CliError> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if SIGNAL.get().is_some() {
        return Ok(());
    }
    let seen = Arc::new(AtomicBool::new(false));
    let last = Arc::new(AtomicUsize::new(0));
    for (signal, number, code) in [
        (SIGINT, 2, exit::INTERRUPTED),
        (SIGTERM, 15, exit::TERMINATED),
    ] {
        // The actions run in this order: the first signal finds `seen` unset and sets it, the second finds it set.
        flag::register_conditional_shutdown(signal, i32::from(code), Arc::clone(&seen))
            .and_then(|_| flag::register(signal, Arc::clone(&seen)))
            .and_then(|_| flag::register_usize(signal, Arc::clone(&last), number))
            .map_err(|source| CliError::Signals { source })?;
    }
    SIGNAL.get_or_init(|| last);
    Ok(())
}

/// Whether the run was asked to stop. Cheap enough for every batch.
pub fn interrupted() -> bool {
    check_interrupt().is_err()
}

/// [`interrupted`] as an error, for `?`.
pub fn check_interrupt() -> Result<(), Interrupted> {
    match SIGNAL.get().map(|signal| signal.load(Ordering::Relaxed)) {
        None | Some(0) => Ok(()),
        Some(15) => Err(Interrupted { signal: SIGTERM }),
        Some(_) => Err(Interrupted { signal: SIGINT }),
    }
}
