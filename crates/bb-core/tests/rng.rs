//! Random streams: our own, and the two that must agree with NumPy and CPython bit for bit.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bb_core::rng::{self, RngCore, numpy::RandomState, python::Random};
use proptest::prelude::*;

/// A sum that changes when two entries change places.
fn weighted_sum(values: &[usize]) -> usize {
    values.iter().zip(1..).map(|(&value, i)| i * value).sum()
}

fn words(name: (u64, &str, u64, u64)) -> [u64; 3] {
    let mut stream = rng::stream(name.0, name.1, name.2, name.3);
    [stream.next_u64(), stream.next_u64(), stream.next_u64()]
}

#[test]
fn streams_keep_their_numbers() {
    // Computed with Python: hashlib's SHA-256 and ChaCha8 written from RFC 8439 with four double rounds.
    for (name, expected) in [
        (
            (0, "", 0, 0),
            [
                2_258_244_552_627_172_072,
                10_216_879_365_214_446_322,
                14_340_645_165_770_254_053,
            ],
        ),
        (
            (7, "loader/shuffle", 3, 1),
            [
                7_253_364_693_177_246_218,
                9_077_352_244_289_571_102,
                8_499_736_113_836_120_613,
            ],
        ),
        (
            (u64::MAX, "größe", u64::MAX, 5),
            [
                13_659_829_706_779_048_298,
                9_768_687_360_177_597_220,
                7_127_311_850_665_233_552,
            ],
        ),
    ] {
        assert_eq!(words(name), expected, "{name:?}");
    }
}

#[test]
fn each_part_of_a_name_makes_another_stream() {
    let names = [
        (0, "a", 0, 0),
        (1, "a", 0, 0),
        (0, "b", 0, 0),
        (0, "ab", 0, 0),
        (0, "", 0, 0),
        (0, "a\0", 0, 0),
        (0, "a", 1, 0),
        (0, "a", 0, 1),
        (0, "a", 256, 0),
        (0, "a\0\0\0\0\0\0\0\0", 0, 0),
    ];
    let streams: BTreeSet<_> = names.into_iter().map(words).collect();
    assert_eq!(streams.len(), names.len());
}

#[test]
fn helpers_keep_their_numbers() {
    let test = |seed| rng::stream(seed, "test", 0, 0);
    assert_eq!(
        rng::permutation(&mut test(0), 12),
        [3, 1, 2, 8, 11, 9, 0, 10, 6, 5, 4, 7]
    );
    let order = rng::permutation(&mut test(1), 50_000);
    assert_eq!(order[..5], [10_088, 35_699, 25_318, 38_122, 6_961]);
    assert_eq!(weighted_sum(&order), 31_273_429_933_201);

    let unit = || rng::stream(0, "unit", 0, 0);
    // Both are exact in binary, so they may be compared as bits.
    assert_eq!(
        rng::unit_f32(&mut unit()).to_bits(),
        0.007_579_982_3_f32.to_bits()
    );
    assert_eq!(
        rng::unit_f64(&mut unit()).to_bits(),
        0.997_890_928_761_935_7_f64.to_bits()
    );
}

#[test]
fn every_order_of_three_is_as_likely() {
    let mut stream = rng::stream(0, "orders", 0, 0);
    let mut counts = [0_u32; 27];
    for _ in 0..60_000 {
        let order = rng::permutation(&mut stream, 3);
        counts[order[0] * 9 + order[1] * 3 + order[2]] += 1;
    }
    let seen: Vec<u32> = counts.into_iter().filter(|&count| count > 0).collect();
    assert_eq!(seen.len(), 6);
    // Five standard deviations of a binomial count with p = 1/6 are 456.
    assert!(seen.iter().all(|count| count.abs_diff(10_000) < 456));
}

#[test]
fn golden_numpy_poison_indices() {
    struct Case {
        samples: usize,
        poisoned: usize,
        first: [usize; 8],
        smallest: [usize; 8],
        sum: usize,
    }
    let cases = [
        Case {
            samples: 50_000,
            poisoned: 5_000,
            first: [11841, 19602, 45519, 25747, 42642, 31902, 30346, 12363],
            smallest: [14, 22, 24, 28, 64, 76, 84, 91],
            sum: 126_459_119,
        },
        Case {
            samples: 50_000,
            poisoned: 500,
            first: [11841, 19602, 45519, 25747, 42642, 31902, 30346, 12363],
            smallest: [166, 212, 271, 338, 786, 913, 949, 1083],
            sum: 12_671_404,
        },
        Case {
            samples: 39_209,
            poisoned: 3_921,
            first: [19138, 21703, 32087, 19762, 13970, 32376, 4487, 9075],
            smallest: [6, 18, 22, 24, 62, 67, 83, 86],
            sum: 77_219_889,
        },
        Case {
            samples: 100_000,
            poisoned: 10_000,
            first: [3582, 60498, 53227, 21333, 3885, 51521, 84261, 10685],
            smallest: [6, 9, 17, 23, 25, 26, 36, 48],
            sum: 499_851_984,
        },
    ];
    for case in cases {
        let all: Vec<usize> = (0..case.samples).collect();
        let mut drawn = RandomState::new(0).choice_without_replacement(&all, case.poisoned);
        assert_eq!(drawn.len(), case.poisoned);
        assert_eq!(drawn[..8], case.first);
        assert_eq!(drawn.iter().sum::<usize>(), case.sum);
        drawn.sort_unstable();
        assert_eq!(drawn[..8], case.smallest);
    }
}

#[test]
fn golden_numpy_clean_label_draw() {
    let target: Vec<usize> = (0..50_000).step_by(10).collect();
    let drawn = RandomState::new(0).choice_without_replacement(&target, 500);
    assert_eq!(drawn.len(), 500);
    assert_eq!(drawn[..5], [3980, 38330, 48360, 45720, 6360]);
}

#[test]
fn golden_python_words_and_first_indices() {
    let mut random = Random::new(0);
    let words: Vec<u32> = (0..4).map(|_| random.next_u32()).collect();
    assert_eq!(
        words,
        [3_626_764_237, 1_654_615_998, 3_255_389_356, 3_823_568_514]
    );
    for (samples, first) in [
        (50_000, [25247, 49673, 27562, 2653, 16968, 33506]),
        (39_209, [25247, 27562, 2653, 16968, 33506, 31845]),
        (100_000, [50494, 99346, 55125, 5306, 33936, 67013]),
    ] {
        let drawn = Random::new(0).sample(samples, samples / 20);
        assert_eq!(drawn[..6], first);
        // A smaller share is a prefix.
        assert_eq!(
            Random::new(0).sample(samples, samples / 100),
            drawn[..samples / 100]
        );
    }
    // FP and MCR train on the second draw of the same generator.
    let mut random = Random::new(0);
    random.sample(50_000, 2_500);
    assert_eq!(random.sample(50_000, 2_500)[..3], [9606, 14403, 49424]);
}

#[test]
#[ignore = "needs BB_SHARED"]
fn golden_python_clean_index_lists() {
    let shared = std::env::var_os("BB_SHARED").expect("BB_SHARED names the folder of the lists");
    let shared = PathBuf::from(shared);
    for (dataset, samples) in [("cifar10", 50_000), ("gtsrb", 39_209), ("tiny", 100_000)] {
        let path = shared.join(format!(
            "reference/tables/clean_index_{dataset}_5pct_seed0.txt"
        ));
        let text = fs_err::read_to_string(path).expect("the shared folder has this list");
        let listed: Vec<usize> = text
            .split_ascii_whitespace()
            .map(|word| word.parse().expect("the list holds numbers"))
            .collect();
        assert_eq!(
            Random::new(0).sample(samples, samples / 20),
            listed,
            "{dataset}"
        );
    }
}

#[test]
fn python_samples_on_both_sides_of_the_border() {
    // CPython 3.11: random.Random(seed).sample(range(n), k); beside it the sum of i * value for i = 1, 2, …
    for (n, k, seed, first, sum) in [
        (0, 0, 0, vec![], 0),
        (10, 0, 0, vec![], 0),
        (1, 1, 0, vec![0], 0),
        (21, 5, 0, vec![12, 13, 1, 8, 16], 153),
        (22, 5, 12_345, vec![13, 0, 9, 11, 6], 114),
        (85, 6, 0, vec![49, 53, 5, 33, 65, 62], 999),
        (86, 6, 12_345, vec![53, 1, 38, 47, 24, 34], 681),
        (277, 22, 0, vec![197, 215, 20, 132, 261, 248], 34_730),
        (278, 22, 0, vec![197, 215, 20, 132, 261, 248], 35_218),
        (277, 22, 12_345, vec![213, 5, 152, 188, 99, 138], 31_694),
        (278, 22, 12_345, vec![213, 5, 152, 188, 99, 138], 36_177),
        (100, 100, 0, vec![49, 97, 53, 5, 33, 65], 237_941),
        (
            50_000,
            2_500,
            12_345,
            vec![27303, 48017, 666],
            77_765_736_694,
        ),
    ] {
        let drawn = Random::new(seed).sample(n, k);
        assert_eq!(drawn.len(), k);
        assert_eq!(
            drawn[..first.len()],
            first,
            "n = {n}, k = {k}, seed = {seed}"
        );
        assert_eq!(weighted_sum(&drawn), sum, "n = {n}, k = {k}, seed = {seed}");
    }
    // A range beyond 32 bits takes two words a number.
    if usize::BITS == 64 {
        assert_eq!(
            Random::new(3).sample(1_000_000_000_000, 3),
            [649_562_111_997, 144_071_367_498, 522_284_859_645]
        );
    }
}

fn is_permutation(values: &[usize], n: usize) -> bool {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted == (0..n).collect::<Vec<_>>()
}

proptest! {
    #[test]
    fn draws_stay_below_their_bound(seed: u64, bound in 1..=u64::MAX) {
        let mut stream = rng::stream(seed, "below", 0, 0);
        for _ in 0..8 {
            prop_assert!(rng::below(&mut stream, bound) < bound);
        }
    }

    #[test]
    fn all_permutations_hold_each_number_once(seed: u32, n in 0_usize..200) {
        let mut stream = rng::stream(seed.into(), "permutation", 0, 0);
        prop_assert!(is_permutation(&rng::permutation(&mut stream, n), n));
        prop_assert!(is_permutation(&RandomState::new(seed).permutation(n), n));
        prop_assert!(is_permutation(&Random::new(seed.into()).sample(n, n), n));
    }

    #[test]
    fn samples_are_distinct_and_in_range(seed: u64, n in 0_usize..2_000, share in 0.0..=1.0_f64) {
        let k = (n as f64 * share) as usize;
        let drawn = Random::new(seed).sample(n, k);
        let distinct: BTreeSet<_> = drawn.iter().copied().collect();
        prop_assert_eq!(distinct.len(), k);
        prop_assert!(drawn.iter().all(|&i| i < n));
    }

    #[test]
    fn a_smaller_numpy_choice_is_a_prefix(seed: u32, n in 1_usize..300, cut in 0.0..=1.0_f64) {
        let pool: Vec<usize> = (0..n).map(|i| 3 * i + 1).collect();
        let all = RandomState::new(seed).choice_without_replacement(&pool, n);
        let k = (n as f64 * cut) as usize;
        prop_assert_eq!(&RandomState::new(seed).choice_without_replacement(&pool, k), &all[..k]);
    }
}
