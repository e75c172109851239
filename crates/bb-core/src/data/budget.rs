//! What may come of the files of a split, in proportion to the bytes that they really have.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that may come of any files, however small: one image of the most pixels, or 21,845 of CIFAR's.
const FREE: u64 = 64 << 20;
/// Bytes that may come of each byte beyond.
///
/// Flat images as PNG files have 30 to 100 pixels' bytes for each of theirs; a thousand is what a file has that was made
/// for nothing else.
const EACH: u64 = 256;

/// The most bytes that may come of files with `bytes`.
pub(super) fn most(bytes: u64) -> u64 {
    FREE.saturating_add(bytes.saturating_mul(EACH))
}

/// Bytes that came of files, counted on any number of threads.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// Bytes of the files.
    files: AtomicU64,
    spent: AtomicU64,
}

impl Budget {
    /// Takes a file into account.
    pub(super) fn add(&self, bytes: u64) {
        self.files.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that are about to come of the files.
    ///
    /// # Errors
    /// The most that may, if it is more.
    pub(super) fn spend(&self, bytes: u64) -> Result<(), u64> {
        let spent = self.spent.fetch_add(bytes, Ordering::Relaxed);
        let most = most(self.files.load(Ordering::Relaxed));
        match spent.checked_add(bytes) {
            Some(spent) if spent <= most => Ok(()),
            _ => Err(most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_of_files_is_bounded_by_their_bytes() {
        let budget = Budget::default();
        assert_eq!(budget.spend(FREE), Ok(()));
        assert_eq!(budget.spend(1), Err(FREE));
        budget.add(1000);
        assert_eq!(budget.spend(1000 * EACH - 1), Ok(()));
        assert_eq!(budget.spend(1), Err(FREE + 1000 * EACH));
        budget.add(u64::MAX / 2);
        assert_eq!(budget.spend(u64::MAX), Err(u64::MAX));
    }
}
