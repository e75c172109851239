//! Reusable buffers, one stack of them per thread.
//!
//! Kernels need temporary floats (packed weights, padded images, partial sums) whose sizes repeat at every step.
//! A buffer goes back to its thread's stack when its user is done, so a training step allocates nothing once warm.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers a thread keeps at most; kernels nest at most three deep.
const KEPT: usize = 8;

/// Runs `f` with `len` floats of unspecified (but initialised) content.
pub(crate) fn with<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut buffer = FREE.with_borrow_mut(|free| {
        // The smallest buffer that is large enough, else the largest one to grow.
        let best = free
            .iter()
            .enumerate()
            .min_by_key(|(_, b)| {
                if b.len() >= len {
                    (false, b.len())
                } else {
                    (true, usize::MAX - b.len())
                }
            })
            .map(|(i, _)| i);
        best.map(|i| free.swap_remove(i)).unwrap_or_default()
    });
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = f(&mut buffer[..len]);
    FREE.with_borrow_mut(|free| {
        if free.len() < KEPT {
            free.push(buffer);
        }
    });
    result
}
