//! Whole files with a few changes.

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;

/// Numbers at which readers go wrong, as they stand in a file.
const NUMBERS: &[&[u8]] = &[
    &[0],
    &[1],
    &[0x7f],
    &[0x80],
    &[0xff],
    &[0xff, 0xff],
    &[0, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0x7f],
    &[0, 0, 0, 0x80],
    &[0xff, 0xff, 0xff, 0xff],
    &[0, 0, 0, 0, 0, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    b"-1",
    b"99999999999999999999",
    b"nan",
    b"1e999",
    b"\"",
    b"../",
];

/// Longest input, in bytes.
const LONGEST: usize = 1 << 20;

/// One of the files with one to eight changes.
///
/// # Panics
/// Without files.
pub(crate) fn changed(seeds: &[Vec<u8>], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = seeds.choose(random).expect("a file").clone();
    for _ in 0..random.random_range(1..=8) {
        change(&mut bytes, seeds, random);
        bytes.truncate(LONGEST);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut ChaCha8Rng) {
    if bytes.is_empty() {
        bytes.push(random.random());
        return;
    }
    let len = bytes.len();
    let at = random.random_range(0..len);
    // Blocks are mostly short.
    let size = 1 << random.random_range(0..=len.ilog2().min(10));
    let end = len.min(at + random.random_range(1..=size));
    match random.random_range(0..9) {
        0 => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes[at] = random.random(),
        2 => bytes[at] = bytes[at].wrapping_add(if random.random() { 1 } else { 255 }),
        3 => {
            let number = NUMBERS.choose(random).expect("some numbers");
            let end = len.min(at + number.len());
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
        4 => {
            let number = NUMBERS.choose(random).expect("some numbers");
            bytes.splice(at..at, number.iter().copied());
        }
        5 => drop(bytes.drain(at..end)),
        6 => {
            let block = bytes[at..end].to_vec();
            let times = random.random_range(1..=4);
            bytes.splice(at..at, block.repeat(times));
        }
        7 => {
            let other = seeds.choose(random).expect("a file");
            if !other.is_empty() {
                let begin = random.random_range(0..other.len());
                let stop = other.len().min(begin + (end - at));
                bytes.splice(at..end, other[begin..stop].iter().copied());
            }
        }
        _ => bytes.truncate(at),
    }
}
