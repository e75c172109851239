//! The Mersenne Twister MT19937 of Matsumoto and Nishimura (1998), with the two ways to seed it that NumPy and CPython use.

const N: usize = 624;
const M: usize = 397;

/// The state of the generator.
#[derive(Clone)]
pub(super) struct Mt19937 {
    state: [u32; N],
    /// Words of `state` already given out.
    used: usize,
}

impl Mt19937 {
    /// Knuth's rule, `init_genrand` of the authors' code of 2002.
    pub(super) fn from_seed(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = (previous ^ (previous >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self { state, used: N }
    }

    /// `init_by_array` of the authors' code of 2002.
    pub(super) fn from_key(key: &[u32]) -> Self {
        let mut state = Self::from_seed(19_650_218).state;
        let mut i = 1;
        for j in (0..key.len()).cycle().take(N.max(key.len())) {
            let previous = state[i - 1];
            state[i] = (state[i] ^ (previous ^ (previous >> 30)).wrapping_mul(1_664_525))
                .wrapping_add(key[j])
                .wrapping_add(j as u32);
            i = next_index(i, &mut state);
        }
        for _ in 1..N {
            let previous = state[i - 1];
            state[i] = (state[i] ^ (previous ^ (previous >> 30)).wrapping_mul(1_566_083_941))
                .wrapping_sub(i as u32);
            i = next_index(i, &mut state);
        }
        state[0] = 0x8000_0000;
        Self { state, used: N }
    }

    /// The next 32 bits.
    pub(super) fn next_u32(&mut self) -> u32 {
        if self.used == N {
            self.twist();
        }
        let mut y = self.state[self.used];
        self.used += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.used = 0;
    }
}

/// Walks `1..N` in a circle; word 0 takes over the last word at the turn.
fn next_index(i: usize, state: &mut [u32; N]) -> usize {
    if i + 1 < N {
        return i + 1;
    }
    state[0] = state[N - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::Mt19937;

    #[test]
    fn the_first_words_are_those_of_the_authors_code() {
        // The key and the first words are those of the file `mt19937ar.out` beside the authors' code.
        let mut by_key = Mt19937::from_key(&[0x123, 0x234, 0x345, 0x456]);
        let words: Vec<u32> = (0..5).map(|_| by_key.next_u32()).collect();
        assert_eq!(
            words,
            [
                1_067_595_299,
                955_945_823,
                477_289_528,
                4_107_218_783,
                4_228_976_476
            ]
        );
        // The default seed, known from C++ `std::mt19937`, whose standard names the 10000th word.
        let mut by_seed = Mt19937::from_seed(5489);
        assert_eq!(by_seed.next_u32(), 3_499_211_612);
        let last = (1..10_000).map(|_| by_seed.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
