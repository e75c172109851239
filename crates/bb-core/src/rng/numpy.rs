//! NumPy's legacy generator, because it fixes which images BackdoorBench poisons.

use super::low_bits;
use super::mt19937::Mt19937;

/// `numpy.random.RandomState`, bit for bit for the functions that are here.
///
/// NumPy has frozen this generator, so the numbers are the same for every release.
#[derive(Clone)]
pub struct RandomState {
    words: Mt19937,
}

impl RandomState {
    /// `numpy.random.RandomState(seed)`, or the global generator after `numpy.random.seed(seed)`.
    pub fn new(seed: u32) -> Self {
        Self {
            words: Mt19937::from_seed(seed),
        }
    }

    /// The next 32 bits, as all other functions take them.
    pub fn next_u32(&mut self) -> u32 {
        self.words.next_u32()
    }

    /// `permutation(n)`: the numbers `0..n` in random order.
    ///
    /// # Panics
    /// If `n` is above 2^32; NumPy draws differently there.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            let max = u32::try_from(i).expect("a permutation has at most 2^32 entries");
            order.swap(i, self.up_to(max) as usize);
        }
        order
    }

    /// `choice(pool, n, replace=False)`: the first `n` of the shuffled pool.
    ///
    /// The whole pool is shuffled for any `n`, so with the same seed a smaller choice is a prefix of a larger one.
    ///
    /// # Panics
    /// If `n` is above the length of `pool`.
    pub fn choice_without_replacement(&mut self, pool: &[usize], n: usize) -> Vec<usize> {
        assert!(
            n <= pool.len(),
            "cannot choose {n} of {} without replacement",
            pool.len()
        );
        self.permutation(pool.len())
            .into_iter()
            .take(n)
            .map(|i| pool[i])
            .collect()
    }

    /// A number uniform on `0..=max`; takes no bits when `max` is 0.
    fn up_to(&mut self, max: u32) -> u32 {
        if max == 0 {
            return 0;
        }
        let mask = low_bits(max.into()) as u32;
        loop {
            let value = self.next_u32() & mask;
            if value <= max {
                return value;
            }
        }
    }
}
