//! CPython's generator, because it fixes which clean images BackdoorBench gives to a defender.

use std::collections::HashSet;

use super::mt19937::Mt19937;

/// `random.Random`, bit for bit for the functions that are here (CPython 3.2 and later).
#[derive(Clone)]
pub struct Random {
    words: Mt19937,
}

impl Random {
    /// `random.Random(seed)` for an integer, or the global generator after `random.seed(seed)`.
    pub fn new(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        // CPython hands over the 32-bit digits of the number without leading zeros, and one digit for 0.
        let key: &[u32] = if high == 0 { &[low] } else { &[low, high] };
        Self {
            words: Mt19937::from_key(key),
        }
    }

    /// The next 32 bits, as all other functions take them.
    pub fn next_u32(&mut self) -> u32 {
        self.words.next_u32()
    }

    /// `sample(range(n), k)`: `k` different numbers of `0..n`, in the order they were drawn.
    ///
    /// # Panics
    /// If `k` is above `n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "cannot sample {k} of {n} without replacement");
        if n <= set_size(k) {
            self.sample_from_pool(n, k)
        } else {
            self.sample_with_set(n, k)
        }
    }

    /// Takes items out of a list; the last one fills the gap.
    fn sample_from_pool(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut pool: Vec<usize> = (0..n).collect();
        (0..k)
            .map(|i| {
                let j = self.below(n - i);
                let drawn = pool[j];
                pool[j] = pool[n - i - 1];
                drawn
            })
            .collect()
    }

    /// Draws again whatever has been drawn before.
    fn sample_with_set(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut seen = HashSet::with_capacity(k);
        let mut drawn = Vec::with_capacity(k);
        while drawn.len() < k {
            let j = self.below(n);
            if seen.insert(j) {
                drawn.push(j);
            }
        }
        drawn
    }

    /// `_randbelow(bound)`: as many bits as `bound` itself has, drawn again when too large.
    fn below(&mut self, bound: usize) -> usize {
        let bits = usize::BITS - bound.leading_zeros();
        loop {
            let value = self.bits(bits);
            if value < bound {
                return value;
            }
        }
    }

    /// `getrandbits(bits)` for 1 to 64 bits: the lowest 32-bit digit first, and the high bits of the last word.
    fn bits(&mut self, bits: u32) -> usize {
        let mut value = 0_u64;
        for shift in (0..bits).step_by(32) {
            let wanted = (bits - shift).min(32);
            value |= u64::from(self.next_u32() >> (32 - wanted)) << shift;
        }
        value as usize
    }
}

/// The largest range that CPython copies into a list rather than remember `k` drawn numbers in a set: about the size of
/// the table of that set. It is the smallest power of 4 that holds `3 k`, plus the constant for small sets.
fn set_size(k: usize) -> usize {
    const SMALL: usize = 21;
    if k <= 5 {
        return SMALL;
    }
    let wanted = k.saturating_mul(3);
    let mut table = 1_usize;
    while table < wanted {
        table = table.saturating_mul(4);
    }
    table.saturating_add(SMALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_between_the_branches_is_that_of_cpython() {
        // 21 + 4 ** ceil(log(3 k, 4)) for k > 5.
        for (k, size) in [
            (0, 21),
            (5, 21),
            (6, 21 + 64),
            (21, 21 + 64),
            (22, 21 + 256),
            (85, 21 + 256),
            (86, 21 + 1024),
            (2500, 21 + 16_384),
            (5000, 21 + 16_384),
        ] {
            assert_eq!(set_size(k), size, "k = {k}");
        }
    }

    #[test]
    fn numbers_of_more_than_32_bits_take_two_words() {
        // getrandbits(40) and getrandbits(64) of CPython after seed(0) and seed(2**40 + 7).
        let mut random = Random::new(0);
        assert_eq!(random.bits(40), 424_533_559_245);
        assert_eq!(random.bits(64), 16_422_101_724_900_707_500);
        let mut random = Random::new((1 << 40) + 7);
        assert_eq!(random.bits(32), 2_635_837_658);
    }
}
