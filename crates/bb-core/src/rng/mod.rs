//! Every random number of the workspace: named streams of our own, and the two generators of other people that fix
//! which images are poisoned or given to a defender.
//!
//! A stream is named by what it is for, not by when it is used: two loaders, or one more evaluation between two epochs,
//! cannot shift the numbers that anyone else draws.
//! The helpers below ([`below`], [`shuffle`], …) belong to the contract: they are written out here, so that no release of
//! the `rand` crate can change a result.
//!
//! ```
//! use bb_core::rng;
//!
//! let mut stream = rng::stream(0, "loader/shuffle", 3, 0);
//! let order = rng::permutation(&mut stream, 5);
//! assert_eq!(order, rng::permutation(&mut rng::stream(0, "loader/shuffle", 3, 0), 5));
//! ```
mod mt19937;
pub mod numpy;
pub mod python;

pub use rand::RngCore;
use rand::SeedableRng;
pub use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The stream named by `(seed, purpose, epoch, index)`, always from its beginning.
///
/// `purpose` says what the numbers are for (`"loader/shuffle"`), `epoch` and `index` are 0 where they mean nothing.
/// Different names give independent streams: the `ChaCha8` key is the SHA-256 of the name.
pub fn stream(seed: u64, purpose: &str, epoch: u64, index: u64) -> ChaCha8Rng {
    // Every part has a fixed width or is preceded by its length, so that no two names are encoded alike.
    let mut name = Sha256::new();
    name.update(b"bb-core stream 1\0");
    name.update(seed.to_le_bytes());
    name.update((purpose.len() as u64).to_le_bytes());
    name.update(purpose.as_bytes());
    name.update(epoch.to_le_bytes());
    name.update(index.to_le_bytes());
    ChaCha8Rng::from_seed(name.finalize().into())
}

/// A number uniform on `0..bound`, without bias: takes 64 bits at a time, keeps as many low bits as `bound - 1` has, and
/// draws again when the result is too large (less than two draws on average).
///
/// # Panics
/// If `bound` is 0.
pub fn below(rng: &mut (impl RngCore + ?Sized), bound: u64) -> u64 {
    assert!(bound > 0, "there is no number below 0");
    let mask = low_bits(bound - 1);
    loop {
        let value = rng.next_u64() & mask;
        if value < bound {
            return value;
        }
    }
}

/// A number uniform on the 2^24 multiples of 2^-24 in `[0, 1)`.
pub fn unit_f32(rng: &mut (impl RngCore + ?Sized)) -> f32 {
    (rng.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// A number uniform on the 2^53 multiples of 2^-53 in `[0, 1)`.
pub fn unit_f64(rng: &mut (impl RngCore + ?Sized)) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Puts `items` into an order uniform over all orders (Fisher-Yates from the end).
pub fn shuffle<T>(rng: &mut (impl RngCore + ?Sized), items: &mut [T]) {
    for i in (1..items.len()).rev() {
        let j = below(rng, i as u64 + 1);
        items.swap(i, j as usize);
    }
}

/// The numbers `0..n` in an order uniform over all orders.
pub fn permutation(rng: &mut (impl RngCore + ?Sized), n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    shuffle(rng, &mut order);
    order
}

/// The smallest number of the form `2^k - 1` that is at least `max`.
fn low_bits(max: u64) -> u64 {
    u64::MAX.checked_shr(max.leading_zeros()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::low_bits;

    #[test]
    fn a_mask_covers_its_number_and_no_more_bits() {
        for (max, mask) in [
            (0, 0),
            (1, 1),
            (2, 3),
            (3, 3),
            (4, 7),
            (0xffff_ffff, 0xffff_ffff),
            (0x1_0000_0000, 0x1_ffff_ffff),
            (u64::MAX, u64::MAX),
        ] {
            assert_eq!(low_bits(max), mask, "{max}");
        }
    }
}
