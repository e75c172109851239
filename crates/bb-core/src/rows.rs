//! Whether poisoned images stand beside the clean images that they were made from.
//!
//! An index says so only as long as the rows of a dataset keep their order. Another copy of it may be sorted or shuffled,
//! and where only rows of one class have changed places, labels do not show it. Pixels do: whatever a trigger adds, a
//! picture resembles its own clean image more than another one of its class.
//!
//! Two images are alike by the square of their correlation, which no change of brightness or contrast touches, nor
//! inversion. It is taken once of the pixels as they are, and once less the mean of all pictures on one side and of all
//! clean images on the other, which removes what a trigger adds to every image, however strong it is: blended pictures,
//! waves, patches.

use rayon::prelude::*;

use crate::data::{Images, Split};
use crate::poison::{PoisonFault, PoisonSet};

/// Most pictures that are looked at, evenly spread over the set.
const PICTURES: usize = 200;
/// Most other images that a picture is compared with.
const OTHERS: usize = 32;
/// A picture that more than this share of the other images resemble better is not of its row. Of the pictures of eight
/// attacks on four datasets none was; where rows have changed places within classes nine in ten are.
const BETTER: f64 = 0.1;
/// Pictures that have nothing to do with their rows are unlike them for more than this share.
const CHANCE: f64 = 0.7;
/// Most pixels that are compared, evenly spread over the image: all of one of 64 x 64.
const PIXELS: usize = 64 * 64;
/// Most values of an image that are compared when one picture is compared with all images of a class.
const VALUES: usize = 1024;
/// Pictures that suffice to find out which pixels the trigger leaves alone.
const FEW: usize = 8;
/// How near the best row of a picture has to be beside the second: the quotient of what each leaves unexplained.
const CLEAR: f32 = 0.9;
/// The same for few pictures, where one that has no row must not find one.
const CLEAR_OF_FEW: f32 = 0.4;
/// Least deviation of an image, in grey levels, that says anything.
const PLAIN: f32 = 0.05;

/// How pictures resemble the rows that they name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resemblance {
    /// Pictures that were looked at.
    pub judged: usize,
    /// Places in the set of those that resemble other images more.
    pub unlike: Vec<usize>,
}

impl Resemblance {
    /// Whether the pictures are surely of these rows: one that is not, or a quarter of them, may be the trigger's doing.
    pub fn fits(&self) -> bool {
        self.unlike.len() < 2 || self.unlike.len() * 4 <= self.judged
    }
}

/// Compares some pictures of a set with the images of a split that they name, and with others.
///
/// One picture, pictures that are all the same and images of one colour say nothing, and so fit.
///
/// # Panics
/// If an index is not in the split, or the images have other sizes.
pub fn resemblance(set: &PoisonSet, split: &Split) -> Resemblance {
    let rows = spread(set.len(), PICTURES);
    if rows.is_empty() {
        return Resemblance::default();
    }
    let indices: Vec<usize> = rows.iter().map(|&row| set.indices[row]).collect();
    let values = some_pixels(set.images.image(0).len(), PIXELS);
    let means = Means {
        pictures: mean(&set.images, &rows, &values),
        clean: mean(&split.images, &indices, &values),
    };
    let zeros = Means::zeros(values.len());
    let others = Others::new(split);
    let unlike = |&row: &usize| {
        let own = set.indices[row];
        let compared = others.of(own, split);
        let better = [&zeros, &means].map(|means| {
            let Some(picture) = unit(set.images.image(row), &values, &means.pictures) else {
                return 0;
            };
            let alike = |i: usize| {
                let image = unit(split.images.image(i), &values, &means.clean)?;
                Some(dot(&picture, &image).powi(2))
            };
            // An own image of one colour is like nothing.
            let Some(own) = alike(own) else { return 0 };
            let better = |&&i: &&usize| alike(i).is_some_and(|other| other > own + 1e-6);
            compared.iter().filter(better).count()
        });
        let least = better.into_iter().min().unwrap_or(0);
        (least as f64 > BETTER * compared.len() as f64).then_some(row)
    };
    Resemblance {
        judged: rows.len(),
        unlike: rows.par_iter().filter_map(unlike).collect(),
    }
}

/// Checks that the pictures of a set are of the images of a split that they name, see [`resemblance`].
///
/// A trigger may hide many pictures so well that they fit no row, as that of a network that was hardly trained does. They
/// are refused only where most of them are found in other rows, or where nearly all fit theirs no better than chance.
///
/// # Errors
/// [`PoisonFault::Rows`].
///
/// # Panics
/// As [`resemblance`].
pub fn check(set: &PoisonSet, split: &Split) -> Result<(), PoisonFault> {
    let found = resemblance(set, split);
    let (unlike, judged) = (found.unlike.len(), found.judged);
    if found.fits() {
        return Ok(());
    }
    let strange = set.select(&found.unlike);
    let rows = find(&strange, split).into_iter().zip(&strange.indices);
    let elsewhere = rows.filter(|(row, index)| row.is_some_and(|row| row != **index));
    if elsewhere.count() * 2 > unlike || unlike as f64 > CHANCE * judged as f64 {
        return Err(PoisonFault::Rows {
            unlike,
            judged,
            index: strange.indices[0],
        });
    }
    Ok(())
}

/// Finds the image of a split that each picture of a set was made from, among those with its true label.
///
/// Indices of the set are not looked at. A picture has a row only if that is far nearer than any other, and if no other
/// picture has it; of images that are there twice each picture gets its own.
///
/// # Panics
/// If the images have other sizes.
pub fn find(set: &PoisonSet, split: &Split) -> Vec<Option<usize>> {
    if set.is_empty() {
        return Vec::new();
    }
    let sample = spread(set.len(), PICTURES);
    let size = set.images.image(0).len();
    let values = some_pixels(size, VALUES / 3);
    let zeros = Means::zeros(values.len());
    // What the clean images of these pictures have in common is known only by their classes yet.
    let means = Means {
        pictures: mean(&set.images, &sample, &values),
        clean: mean_of_classes(set, &sample, split, &values),
    };
    let none_taken = vec![false; split.len()];
    let first = |rows: &[usize]| -> Vec<Best> {
        let plain = best_rows(set, rows, split, (&values, &zeros), &none_taken);
        let less = best_rows(set, rows, split, (&values, &means), &none_taken);
        let pairs = plain.into_iter().zip(less);
        pairs
            .map(|(a, b)| if a.left <= b.left { a } else { b })
            .collect()
    };
    let mut taken = none_taken.clone();
    let mut take = |best: Best, limit: f32| take_free(&mut taken, best, limit);
    let all: Vec<usize> = (0..set.len()).collect();
    if set.len() < FEW {
        let found = first(&all).into_iter();
        return found.map(|best| take(best, CLEAR_OF_FEW)).collect();
    }
    let rough = beside_the_trigger(set, &sample, split, &first(&sample));
    let better = best_rows(set, &sample, split, (&rough.0, &rough.1), &none_taken);
    let (values, means) = beside_the_trigger(set, &sample, split, &better);
    let found = best_rows(set, &all, split, (&values, &means), &none_taken);
    let found = found.into_iter().map(|best| take(best, CLEAR));
    let mut rows: Vec<Option<usize>> = found.collect();
    // A dark picture may be near to several rows, most of which have their pictures now.
    let lost: Vec<usize> = all
        .into_iter()
        .filter(|&place| rows[place].is_none())
        .collect();
    if lost.len() * 10 <= set.len() {
        let again = best_rows(set, &lost, split, (&values, &means), &taken.clone());
        for (place, best) in lost.into_iter().zip(again) {
            rows[place] = take_free(&mut taken, best, CLEAR);
        }
    }
    rows
}

/// The first row with the image that is nearest to a picture, if that is clear and the row is free.
fn take_free(taken: &mut [bool], best: Best, limit: f32) -> Option<usize> {
    let free = best.twins.into_iter().find(|&row| !taken[row]);
    let free = free.filter(|_| best.left <= limit)?;
    taken[free] = true;
    Some(free)
}

/// How rows that were found lie beside the indices that they were looked for with, if that can be said in a few words.
pub fn order(pairs: &[(usize, usize)], labels: &[u32]) -> Option<String> {
    let &(index, row) = pairs.first()?;
    let images = labels.len();
    let shift = (row + images - index % images) % images;
    if pairs.iter().all(|&(i, r)| (i + shift) % images == r) {
        let (places, way) = match shift {
            0 => return Some("the order is right".to_owned()),
            _ if shift * 2 > images => (images - shift, "early"),
            _ => (shift, "late"),
        };
        let s = if places == 1 { "" } else { "s" };
        return Some(format!("all rows are {places} place{s} too {way}"));
    }
    if pairs.iter().all(|&(i, r)| i + r == index + row) {
        return Some("the rows are in reversed order".to_owned());
    }
    let mut sorted = pairs.to_vec();
    sorted.sort_unstable();
    let mut last = std::collections::BTreeMap::new();
    let kept = sorted.iter().all(|&(_, row)| {
        let before = last.insert(labels[row], row);
        before.is_none_or(|before| before < row)
    });
    kept.then(|| {
        "each class is in its right order, as if the rows had been sorted by class".to_owned()
    })
}

/// The row that is nearest to a picture.
#[derive(Clone, Debug)]
struct Best {
    /// It, and rows with the very same image, ascending.
    twins: Vec<usize>,
    /// What it leaves unexplained, as a part of what the second leaves: 0 is a certain match, 1 is none.
    left: f32,
}

/// What is subtracted before images are compared.
struct Means {
    pictures: Vec<f32>,
    clean: Vec<f32>,
}

impl Means {
    fn zeros(values: usize) -> Self {
        Self {
            pictures: vec![0.0; values],
            clean: vec![0.0; values],
        }
    }
}

/// The images that a picture is compared with beside its own.
struct Others {
    /// The rows of each class, ascending.
    classes: Vec<Vec<usize>>,
    /// Some rows of any class.
    any: Vec<usize>,
}

impl Others {
    fn new(split: &Split) -> Self {
        Self {
            classes: classes(split),
            any: spread(split.len(), OTHERS + 1),
        }
    }

    /// Some other images of the class, and of any class where that has few.
    fn of(&self, own: usize, split: &Split) -> Vec<usize> {
        let class = &self.classes[split.labels[own] as usize];
        let places = spread(class.len(), OTHERS + 1);
        let mut rows: Vec<usize> = places.into_iter().map(|place| class[place]).collect();
        let any = self.any.iter().filter(|&row| !class.contains(row));
        rows.extend(any);
        rows.retain(|&row| row != own);
        rows.truncate(OTHERS);
        rows
    }
}

/// The rows of each class, ascending.
fn classes(split: &Split) -> Vec<Vec<usize>> {
    let count = split
        .labels
        .iter()
        .max()
        .map_or(0, |&last| last as usize + 1);
    let mut classes = vec![Vec::new(); count];
    for (row, &label) in split.labels.iter().enumerate() {
        classes[label as usize].push(row);
    }
    classes
}

/// At most `most` of `0..n`, evenly spread.
fn spread(n: usize, most: usize) -> Vec<usize> {
    let count = n.min(most);
    (0..count).map(|i| i * n / count).collect()
}

/// Places of the three values of at most `most` pixels of an image of `size` values.
fn some_pixels(size: usize, most: usize) -> Vec<usize> {
    let pixels = spread(size / 3, most);
    pixels.into_iter().flat_map(|p| 3 * p..3 * p + 3).collect()
}

/// The mean of some images, at some of their values.
fn mean(images: &Images, rows: &[usize], values: &[usize]) -> Vec<f32> {
    let mut sums = vec![0u64; values.len()];
    for &row in rows {
        let image = images.image(row);
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum += u64::from(image[value]);
        }
    }
    let count = rows.len().max(1) as f64;
    sums.into_iter()
        .map(|sum| (sum as f64 / count) as f32)
        .collect()
}

/// The mean over classes of the mean image of each, weighted as the true labels of some pictures are.
fn mean_of_classes(set: &PoisonSet, sample: &[usize], split: &Split, values: &[usize]) -> Vec<f32> {
    let mut sum = vec![0.0; values.len()];
    for (label, rows) in classes(split).iter().enumerate() {
        let here = |&&row: &&usize| set.original_labels[row] as usize == label;
        let share = sample.iter().filter(here).count() as f32 / sample.len() as f32;
        if share > 0.0 {
            let class = mean(&split.images, rows, values);
            for (sum, value) in sum.iter_mut().zip(class) {
                *sum += share * value;
            }
        }
    }
    sum
}

/// The values of an image that the trigger changes least, by the half of the matches that is clearer, and the means there.
fn beside_the_trigger(
    set: &PoisonSet,
    sample: &[usize],
    split: &Split,
    matched: &[Best],
) -> (Vec<usize>, Means) {
    let mut order: Vec<usize> = (0..sample.len()).collect();
    order.sort_by(|&a, &b| matched[a].left.total_cmp(&matched[b].left));
    order.truncate(sample.len().div_ceil(2));
    let pictures: Vec<usize> = order.iter().map(|&i| sample[i]).collect();
    let rows: Vec<usize> = order
        .iter()
        .map(|&i| matched[i].twins.first().copied().unwrap_or(0))
        .collect();
    let all: Vec<usize> = (0..set.images.image(0).len()).collect();
    let means = Means {
        pictures: mean(&set.images, &pictures, &all),
        clean: mean(&split.images, &rows, &all),
    };
    let mut residual = vec![0.0f32; all.len()];
    for (&picture, &row) in pictures.iter().zip(&rows) {
        let (picture, image) = (set.images.image(picture), split.images.image(row));
        let pairs = || {
            let deviations = picture.iter().zip(image).enumerate();
            deviations.map(|(i, (&p, &x))| {
                (
                    f32::from(p) - means.pictures[i],
                    f32::from(x) - means.clean[i],
                )
            })
        };
        let (product, square) = pairs().fold((0.0, 0.0), |(product, square), (p, x)| {
            (product + p * x, square + x * x)
        });
        let slope = if square > 0.0 { product / square } else { 0.0 };
        for (sum, (p, x)) in residual.iter_mut().zip(pairs()) {
            *sum += (p - slope * x).abs();
        }
    }
    let mut by_residual = all;
    by_residual.sort_by(|&a, &b| residual[a].total_cmp(&residual[b]));
    by_residual.truncate(by_residual.len().div_ceil(2));
    by_residual.sort_unstable();
    let places = spread(by_residual.len(), VALUES);
    let values: Vec<usize> = places.into_iter().map(|place| by_residual[place]).collect();
    let at = |mean: &[f32]| values.iter().map(|&value| mean[value]).collect();
    let means = Means {
        pictures: at(&means.pictures),
        clean: at(&means.clean),
    };
    (values, means)
}

/// For each of some pictures the nearest row of its class that is not taken; `values` are compared, less `means`.
fn best_rows(
    set: &PoisonSet,
    pictures: &[usize],
    split: &Split,
    (values, means): (&[usize], &Means),
    taken: &[bool],
) -> Vec<Best> {
    let none = Best {
        twins: Vec::new(),
        left: 1.0,
    };
    let mut found = vec![none; pictures.len()];
    let others = Others::new(split);
    for (label, rows) in classes(split).iter().enumerate() {
        let here: Vec<usize> = (0..pictures.len())
            .filter(|&i| set.original_labels[pictures[i]] as usize == label)
            .collect();
        if here.is_empty() || rows.is_empty() {
            continue;
        }
        let clean =
            |&row: &usize| Some((row, unit(split.images.image(row), values, &means.clean)?));
        let free = rows.par_iter().filter(|&&row| !taken[row]);
        let candidates: Vec<(usize, Vec<f32>)> = free.filter_map(clean).collect();
        // A class with one image would otherwise be sure of every picture.
        let rivals = others.any.iter().filter(|row| !rows.contains(row));
        let rivals: Vec<(usize, Vec<f32>)> = rivals.filter_map(clean).collect();
        let best: Vec<Option<Best>> = here
            .par_iter()
            .map(|&i| {
                let picture = set.images.image(pictures[i]);
                let picture = unit(picture, values, &means.pictures)?;
                nearest(&picture, &candidates, &rivals, &split.images)
            })
            .collect();
        for (i, best) in here.into_iter().zip(best) {
            if let Some(best) = best {
                found[i] = best;
            }
        }
    }
    found
}

/// The candidate nearest to a picture, and how far the next image is behind.
fn nearest(
    picture: &[f32],
    candidates: &[(usize, Vec<f32>)],
    rivals: &[(usize, Vec<f32>)],
    images: &Images,
) -> Option<Best> {
    let alike = |(row, image): &(usize, Vec<f32>)| (*row, dot(picture, image).powi(2));
    let all: Vec<(usize, f32)> = candidates.iter().map(alike).collect();
    let &(row, best) = all
        .iter()
        .reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    let (mut twins, mut second) = (vec![row], 0.0f32);
    for &(other, other_alike) in all.iter().filter(|&&(other, _)| other != row) {
        if other_alike > best - 1e-4 && images.image(other) == images.image(row) {
            twins.push(other);
        } else {
            second = second.max(other_alike);
        }
    }
    for rival in rivals {
        second = second.max(alike(rival).1);
    }
    twins.sort_unstable();
    let left = (1.0 - best).max(0.0) / (1.0 - second).max(1e-6);
    Some(Best { twins, left })
}

/// Some values of an image less a mean, less their own mean, scaled to length 1; nothing if they are all the same.
fn unit(image: &[u8], values: &[usize], mean: &[f32]) -> Option<Vec<f32>> {
    let pairs = values.iter().zip(mean);
    let mut out: Vec<f32> = pairs
        .map(|(&at, mean)| f32::from(image[at]) - mean)
        .collect();
    let middle = out.iter().map(|&v| f64::from(v)).sum::<f64>() / out.len().max(1) as f64;
    let mut square = 0.0;
    for value in &mut out {
        *value -= middle as f32;
        square += f64::from(*value * *value);
    }
    let length = square.sqrt() as f32;
    if length <= PLAIN * (out.len() as f32).sqrt() {
        return None;
    }
    for value in &mut out {
        *value /= length;
    }
    Some(out)
}

/// The inner product, in sixteen sums that a processor adds side by side.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0.0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
