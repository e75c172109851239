//! Pictures beside the rows that they were made from: every kind of trigger fits its own, and other orders do not.

use bb_core::data::{self, Images, OpenOptions, Split};
use bb_core::poison::PoisonSet;
use bb_core::rows::{self, find, order, resemblance};

const SIDE: usize = 32;

/// The first test images of the synthetic set.
fn split(images: usize) -> Split {
    let options = OpenOptions {
        train_limit: Some(1),
        test_limit: Some(images),
        ..OpenOptions::default()
    };
    let dataset = data::open("synthetic", None, &options);
    dataset.expect("it is made by the program").test
}

/// What a trigger makes of the value of image `i` at this row, column and channel.
type Trigger = fn(image: &[u8], i: usize, (usize, usize, usize)) -> f64;

/// A number from 0 to 1 that depends on all of these.
fn noise(i: usize, (r, c, ch): (usize, usize, usize)) -> f64 {
    let mut x = (i * 7919 + r * 1_048_583 + c * 65_537 + ch * 31 + 12_345) as u64;
    for _ in 0..3 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    (x % 100_003) as f64 / 100_003.0
}

fn value(image: &[u8], (r, c, ch): (usize, usize, usize)) -> f64 {
    f64::from(image[(r * SIDE + c) * 3 + ch])
}

/// As the attacks do, and stronger ones.
const TRIGGERS: &[(&str, Trigger)] = &[
    ("patch of 3 pixels", |x, _, at| {
        if at.0 > 27 && at.1 > 27 {
            255.0
        } else {
            value(x, at)
        }
    }),
    ("patch of half the side", |x, _, at| {
        if at.0 > 15 && at.1 > 15 {
            255.0 * noise(0, at)
        } else {
            value(x, at)
        }
    }),
    ("blended 0.2", |x, _, at| {
        0.8 * value(x, at) + 51.0 * noise(0, at)
    }),
    ("blended 0.8", |x, _, at| {
        0.2 * value(x, at) + 204.0 * noise(0, at)
    }),
    ("wave", |x, _, at| {
        value(x, at) + 40.0 * (at.1 as f64 * 1.18).sin()
    }),
    ("pattern on a tenth of the pixels", |x, i, at| {
        if noise(i, (at.0, at.1, 9)) < 0.1 {
            255.0 * noise(i, at)
        } else {
            value(x, at)
        }
    }),
    ("faint noise", |x, i, at| {
        value(x, at) + 12.0 * (noise(i, at) - 0.5)
    }),
    ("warp", |x, _, (r, c, ch)| {
        let (r, c) = ((r + r / 22) % SIDE, (c + c / 19) % SIDE);
        value(x, (r, c, ch))
    }),
    ("inverted", |x, _, at| 255.0 - value(x, at)),
];

/// Pictures of some rows of a split.
fn poisoned(split: &Split, indices: &[usize], trigger: Trigger) -> PoisonSet {
    let mut pixels = Vec::new();
    for &i in indices {
        for r in 0..SIDE {
            for c in 0..SIDE {
                for ch in 0..3 {
                    let value = trigger(split.images.image(i), i, (r, c, ch));
                    pixels.push(value.clamp(0.0, 255.0) as u8);
                }
            }
        }
    }
    let labels = indices.iter().map(|&i| split.labels[i]).collect();
    let images = Images::new(indices.len(), SIDE, SIDE, pixels).expect("the length fits");
    PoisonSet::new(indices.to_vec(), images, vec![0; indices.len()], labels).expect("a set")
}

/// For each row where its image stands in another order, by name.
fn orders(split: &Split) -> Vec<(&'static str, Vec<usize>)> {
    let n = split.len();
    let mut within: Vec<usize> = (0..n).collect();
    let mut sorted: Vec<usize> = (0..n).collect();
    sorted.sort_by_key(|&i| split.labels[i]);
    for class in 0..10 {
        let rows: Vec<usize> = (0..n).filter(|&i| split.labels[i] == class).collect();
        for (place, &row) in rows.iter().enumerate() {
            within[row] = rows[(place * 7 + 3) % rows.len()];
        }
    }
    vec![
        ("within classes", within),
        ("by class", sorted),
        ("shifted", (0..n).map(|i| (i + n - 1) % n).collect()),
        ("reversed", (0..n).rev().collect()),
    ]
}

#[test]
fn pictures_of_every_trigger_fit_their_rows_and_no_other_order() {
    let split = split(300);
    let indices: Vec<usize> = (0..300).filter(|i| i % 3 != 1).collect();
    for (name, trigger) in TRIGGERS {
        let set = poisoned(&split, &indices, *trigger);
        let found = resemblance(&set, &split);
        assert_eq!(found.judged, 200, "{name}");
        assert!(found.unlike.len() <= 4, "{name}: {:?}", found.unlike);
        assert!(rows::check(&set, &split).is_ok(), "{name}");
        for (which, order) in orders(&split) {
            let other = split.select(&order);
            let found = resemblance(&set, &other);
            assert!(
                found.unlike.len() >= 120,
                "{name}, {which}: {}",
                found.unlike.len()
            );
            let error = rows::check(&set, &other)
                .expect_err("another order")
                .to_string();
            assert!(
                error.contains(
                    "of 200 pictures resemble other images more than the one of their index"
                ),
                "{error}"
            );
        }
    }
}

#[test]
fn every_picture_finds_its_row_in_another_order() {
    let split = split(300);
    let indices: Vec<usize> = (0..300).filter(|i| i % 3 != 1).collect();
    for (name, trigger) in TRIGGERS {
        let set = poisoned(&split, &indices, *trigger);
        for (which, moved) in orders(&split).into_iter().step_by(2) {
            let other = split.select(&moved);
            let found = find(&set, &other);
            let right = found.iter().zip(&indices);
            let right = right.filter(|(row, index)| row.is_some_and(|row| moved[row] == **index));
            assert_eq!(right.count(), indices.len(), "{name}, {which}");
        }
    }
    // Pictures of images that are not there find nothing.
    let set = poisoned(&split, &indices, TRIGGERS[0].1);
    let absent: Vec<usize> = (0..300).filter(|i| i % 3 == 1).collect();
    let found = find(&set, &split.select(&absent));
    assert!(found.iter().filter(|row| row.is_some()).count() < 40);
}

#[test]
fn a_trigger_that_hides_most_pictures_is_borne_and_a_part_in_disorder_is_not() {
    let split = split(300);
    let indices: Vec<usize> = (0..200).collect();
    // Half of the pictures show nothing of their images.
    let hidden = poisoned(&split, &indices, |x, i, at| {
        if i % 2 == 0 {
            255.0 * noise(i, at)
        } else {
            value(x, at)
        }
    });
    let found = resemblance(&hidden, &split);
    assert!(!found.fits(), "{}", found.unlike.len());
    assert!(rows::check(&hidden, &split).is_ok());
    // As many pictures whose images stand elsewhere in their classes.
    let shown = poisoned(&split, &indices, TRIGGERS[0].1);
    let mut order: Vec<usize> = (0..300).collect();
    for class in 0..10 {
        let rows: Vec<usize> = (0..120).filter(|&i| split.labels[i] == class).collect();
        for (place, &row) in rows.iter().enumerate() {
            order[row] = rows[(place + 1) % rows.len()];
        }
    }
    let other = split.select(&order);
    let found = resemblance(&shown, &other).unlike.len();
    assert!((60..140).contains(&found), "{found}");
    assert!(rows::check(&shown, &other).is_err());
}

#[test]
fn orders_have_names() {
    let labels = [0, 1, 0, 1, 0, 1];
    let check = |pairs: &[(usize, usize)], expect: Option<&str>| {
        assert_eq!(order(pairs, &labels).as_deref(), expect, "{pairs:?}");
    };
    check(&[(0, 0), (3, 3)], Some("the order is right"));
    check(&[(0, 1), (5, 0)], Some("all rows are 1 place too late"));
    check(&[(1, 0), (3, 2)], Some("all rows are 1 place too early"));
    check(&[(0, 5), (4, 1)], Some("the rows are in reversed order"));
    check(
        &[(4, 2), (2, 0), (1, 1)],
        Some("each class is in its right order, as if the rows had been sorted by class"),
    );
    check(&[(0, 2), (2, 0), (4, 4)], None);
    check(&[], None);
}

#[test]
fn what_says_nothing_is_not_refused() {
    let split = split(60);
    let patch = TRIGGERS[0].1;
    // One picture beside a wrong row, and none.
    let mut one = poisoned(&split, &[7], patch);
    one.indices = vec![8];
    assert!(rows::check(&one, &split).is_ok());
    assert!(rows::check(&poisoned(&split, &[], patch), &split).is_ok());
    assert!(find(&poisoned(&split, &[], patch), &split).is_empty());
    // Pictures that are all the same, and pictures of one colour.
    let all: Vec<usize> = (0..60).collect();
    for trigger in [
        (|_, _, at| 255.0 * noise(0, at)) as Trigger,
        |_, _, _| 7.0,
        |_, i, _| i as f64,
    ] {
        let set = poisoned(&split, &all, trigger);
        assert!(rows::check(&set, &split).is_ok());
        assert!(find(&set, &split).iter().all(Option::is_none));
    }
    // Clean images of one colour, and clean images that are all the same.
    for clean in [(|_, i, _| (4 * i) as f64) as Trigger, |_, _, at| {
        255.0 * noise(3, at)
    }] {
        let images = poisoned(&split, &all, clean).images;
        let plain = Split {
            images,
            labels: split.labels.clone(),
        };
        let set = poisoned(&plain, &all, patch);
        assert!(rows::check(&set, &plain).is_ok());
    }
    // Few pictures beside their own rows: two, and one of each class.
    for indices in [vec![3, 50], (0..10).collect()] {
        for (name, trigger) in TRIGGERS {
            let set = poisoned(&split, &indices, *trigger);
            assert!(rows::check(&set, &split).is_ok(), "{name}");
        }
    }
}

#[test]
fn images_of_one_pixel_and_classes_of_one_image_are_no_obstacle() {
    let images = |n: usize, side: usize| {
        let pixels = (0..n * side * side * 3)
            .map(|i| (i * 37 % 251) as u8)
            .collect();
        Images::new(n, side, side, pixels).expect("the length fits")
    };
    for side in [1, 2] {
        let split = Split {
            images: images(5, side),
            labels: (0..5).collect(),
        };
        let set = PoisonSet::new(
            (0..5).collect(),
            images(5, side),
            vec![0; 5],
            (0..5).collect(),
        );
        let set = set.expect("a set");
        assert!(rows::check(&set, &split).is_ok());
        assert_eq!(find(&set, &split).len(), 5);
    }
    // Images that are there twice: each picture has one of the two.
    let split = split(40);
    let twice = split.select(&(0..80).map(|i| i / 2).collect::<Vec<_>>());
    let all: Vec<usize> = (0..80).collect();
    let set = poisoned(&twice, &all, TRIGGERS[0].1);
    assert!(rows::check(&set, &twice).is_ok());
    let mut found: Vec<usize> = find(&set, &twice).into_iter().flatten().collect();
    found.sort_unstable();
    assert_eq!(found, all);
    // A label that no image has.
    let mut strange = poisoned(&split, &[0, 1, 2], TRIGGERS[0].1);
    strange.original_labels = vec![77; 3];
    assert_eq!(find(&strange, &split), [None; 3]);
}
