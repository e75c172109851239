//! The patterns that LF adds: drawn by rule or read from a file; and the filter that defines "low frequency".

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bb_core::files::{self, Links};

use super::config::Scale;
use super::trigger;
use crate::npy::{self, Kind, NpyError};
use crate::picture::{Picture, PictureError};

/// A pattern in grey levels, layout `[height, width, 3]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    /// What is added to each value of an image, fractions of a level included.
    pub values: Vec<f64>,
    /// Whether it is added in `f64`, and not in `f32`.
    pub double: bool,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

/// A file that is no pattern.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// It begins like an array and is none.
    #[error(transparent)]
    Npy(#[from] NpyError),
    /// It is neither an array nor a picture.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// The array does not fit the images.
    #[error(
        "pattern `{}` has shape {found:?}, expected [{height}, {width}], [{height}, {width}, 3], [3, {height}, {width}] or \
         several of these as [n, ..]",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its shape.
        found: Vec<usize>,
        /// Height of the images.
        height: usize,
        /// Width of the images.
        width: usize,
    },
    /// A value is infinite or not a number.
    #[error("pattern `{}` holds {found} at position {position}, expected finite numbers", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The value.
        found: f64,
        /// Its place, last axis fastest.
        position: usize,
    },
    /// All values are equal.
    #[error("pattern `{}` is {value} everywhere, expected a pattern", path.display())]
    Constant {
        /// The file.
        path: PathBuf,
        /// The value.
        value: f64,
    },
    /// A picture is bytes, whatever the setting says.
    #[error("pattern `{}` is a picture, which has grey levels, but `trigger.scale` is `fractions`", path.display())]
    PictureScale {
        /// The file.
        path: PathBuf,
    },
}

/// Largest value of what [`normalise`] makes, 0.2 of the scale.
pub const PEAK: f32 = 0.2;
/// Strength of the built-in pattern in red, green and blue.
///
/// The patterns that the bench made by attacking trained networks have such gains, a strong and two weaker channels.
const GAINS: [f32; 3] = [0.45, 0.2, 1.0];

impl Pattern {
    /// The built-in pattern: a smooth bump in the middle, of different strength in each channel, 0 to `peak`.
    ///
    /// `g(r) + g(c)` with `g(t) = 16 t^2 (1 - t)^2`, which is a cosine of one period but for a hundredth of its energy.
    /// Only `+ - * /` are used, so that the same pattern comes out on every machine.
    pub fn rule(height: usize, width: usize, peak: u8) -> Self {
        let bump = |i: usize, side: usize| {
            let t = (i as f32 + 0.5) / side as f32;
            16.0 * (t * t) * ((1.0 - t) * (1.0 - t))
        };
        let mut values = Vec::with_capacity(height * width * 3);
        for r in 0..height {
            for c in 0..width {
                let level = bump(r, height) + bump(c, width);
                values.extend(GAINS.map(|gain| gain * level));
            }
        }
        let values = normalise(&values, f32::from(peak) / 255.0)
            .expect("the channels of a bump have different strength");
        Self {
            values: levels(&values).into_iter().map(f64::from).collect(),
            double: false,
            height,
            width,
        }
    }

    /// Reads a pattern for images of `height` x `width`, and what the user should know of it, one line each.
    ///
    /// A `.npy` array must have the size of the images; a picture is resized to it. Nothing is rounded to whole levels, so
    /// that an array makes the same images as in the bench. `scale` says whether numbers are levels or fractions.
    pub fn read(
        path: &Path,
        scale: Scale,
        height: usize,
        width: usize,
    ) -> Result<(Self, Vec<String>), PatternError> {
        let mut warnings = Vec::new();
        let (values, double) = if is_npy(path) {
            let array = npy::read(path)?;
            let double = array.kind == Kind::Double;
            let values = from_array(array, scale, path, (height, width), &mut warnings)?;
            (values, double)
        } else if scale == Scale::Fractions {
            return Err(PatternError::PictureScale {
                path: path.to_owned(),
            });
        } else {
            let picture = Picture::read(path)?.resized(height, width);
            let levels = picture.pixels().iter().map(|&v| f64::from(v));
            (levels.collect(), false)
        };
        let (low, high) = extremes(&values);
        if low >= high {
            return Err(PatternError::Constant {
                path: path.to_owned(),
                value: low,
            });
        }
        // Sums are cut off to whole levels, so less than one level changes something only where it darkens.
        if low >= 0.0 && high < 1.0 {
            warnings.push(format!(
                "pattern `{}` adds {low} to {high} grey levels, which changes no image, since sums are cut off to whole levels",
                path.display()
            ));
        }
        let pattern = Self {
            values,
            double,
            height,
            width,
        };
        Ok((pattern, warnings))
    }

    /// Adds the pattern to an image of its size, in the precision of its file, as NumPy does.
    pub fn apply(&self, image: &mut [u8]) {
        trigger::add(image, &self.values, self.double);
    }

    /// The pattern as a picture for people, with values below 0 as black.
    pub fn picture(&self) -> Picture {
        let pixels = self.values.iter().map(|v| v.round() as u8).collect();
        Picture::new(self.height, self.width, pixels)
    }

    /// The pattern as a `.npy` file, exactly.
    ///
    /// Whole levels are written as integers (0 to 255 as bytes, as in the bench), so that a pattern of no more than one
    /// level is not taken for fractions when it is read again; anything else as floats.
    pub fn to_npy(&self) -> Vec<u8> {
        npy::smallest_to_bytes(&[self.height, self.width, 3], &self.values, self.double)
    }
}

/// Whether a file begins as NumPy's do; whatever its name is.
fn is_npy(path: &Path) -> bool {
    let mut mark = [0; npy::MAGIC.len()];
    // A file that cannot be read is reported by whoever reads it next.
    files::open(path, Links::Follow).is_ok_and(|mut file| file.read_exact(&mut mark).is_ok())
        && mark == *npy::MAGIC
}

/// How far a fraction times 255 may be from a whole level and still stand for it: more than any level loses on its way to
/// a fraction in `f32`, which would otherwise be cut off to the level below.
const LOST: f64 = 1e-4;

/// The values of an array in grey levels, for images of (height, width).
fn from_array(
    array: npy::Array,
    scale: Scale,
    path: &Path,
    (height, width): (usize, usize),
    warnings: &mut Vec<String>,
) -> Result<Vec<f64>, PatternError> {
    let npy::Array {
        shape,
        mut values,
        kind,
    } = array;
    let name = path.display();
    // As in the bench, the first of several is taken. A square of 3 pixels is read as one with its channels last.
    let (count, axes) = match shape[..] {
        [h, w] if (h, w) == (height, width) => (1, 2),
        [h, w, 3] if (h, w) == (height, width) => (1, 3),
        [3, h, w] if (h, w) == (height, width) => (1, 4),
        [h, w, 1] | [1, h, w] if (h, w) == (height, width) => (1, 2),
        [n, h, w, 3] if n > 0 && (h, w) == (height, width) => (n, 3),
        [n, 3, h, w] if n > 0 && (h, w) == (height, width) => (n, 4),
        [n, h, w, 1] | [n, 1, h, w] if n > 0 && (h, w) == (height, width) => (n, 2),
        _ => {
            return Err(PatternError::Shape {
                path: path.to_owned(),
                found: shape,
                height,
                width,
            });
        }
    };
    let area = height * width;
    if count > 1 {
        warnings.push(format!(
            "pattern `{name}` holds {count} patterns, of which the first is taken"
        ));
    }
    if let Some(position) = values.iter().position(|v| !v.is_finite()) {
        return Err(PatternError::NotFinite {
            path: path.to_owned(),
            found: values[position],
            position,
        });
    }
    match axes {
        2 => values = values[..area].iter().flat_map(|&v| [v; 3]).collect(),
        3 => values.truncate(3 * area),
        _ => {
            warnings.push(format!(
                "pattern `{name}` has its channels first, and was turned to have them last"
            ));
            values = (0..3 * area)
                .map(|i| values[i % 3 * area + i / 3])
                .collect();
        }
    }
    let (low, high) = extremes(&values);
    let fractions = match scale {
        Scale::Levels => false,
        Scale::Fractions => true,
        Scale::Auto => kind != Kind::Integer && low >= -1.0 && high <= 1.0,
    };
    if !fractions {
        return Ok(values);
    }
    if scale == Scale::Auto && low < high {
        let whole = values.iter().all(|v| v.fract() == 0.0);
        let doubt = if whole {
            ", though as whole numbers they may be grey levels"
        } else {
            ""
        };
        warnings.push(format!(
            "pattern `{name}` has values of {} to {}, so they are taken as fractions{doubt} and multiplied by 255; \
             `trigger.scale` says it for certain",
            // Doubles would show what singles are nearest to.
            low as f32,
            high as f32
        ));
    }
    for v in &mut values {
        let level = if kind == Kind::Single {
            f64::from(255.0 * *v as f32)
        } else {
            255.0 * *v
        };
        let near = level.round();
        *v = if (level - near).abs() <= LOST {
            near
        } else {
            level
        };
    }
    Ok(values)
}

/// Smallest and largest value.
pub(super) fn extremes<T: Copy + Into<f64>>(values: &[T]) -> (f64, f64) {
    let start = (f64::INFINITY, f64::NEG_INFINITY);
    let wider = |(low, high): (f64, f64), &v: &T| (low.min(v.into()), high.max(v.into()));
    values.iter().fold(start, wider)
}

/// Taps of [`low_pass`].
const TAPS: usize = 30;
/// Zeros that stand before the first pixel; one more stands behind the last.
const BEFORE: usize = 14;
/// Width of the bell of [`low_pass`] in pixels.
const SIGMA: f64 = 6.0;

/// The low-pass filter of the paper, on `[height, width, 3]`: a bell of 30 x 30 taps, with zeros around the image.
///
/// The number of taps is even, so the result is shifted by half a pixel up and to the left.
///
/// # Panics
/// If the number of values is not `height * width * 3`.
#[must_use]
pub fn low_pass(image: &[f32], height: usize, width: usize) -> Vec<f32> {
    assert_eq!(image.len(), height * width * 3, "length of an RGB image");
    let taps = bell();
    // Along the rows, then along the columns; `at` is a place in a line, `step` the distance to the next.
    let pass = |from: &[f64], length: usize, step: usize, start: &dyn Fn(usize) -> usize| {
        let mut to = vec![0.0; from.len()];
        for line in 0..from.len() / length {
            let start = start(line);
            for at in 0..length {
                let mut sum = 0.0;
                for (j, tap) in taps.iter().enumerate() {
                    if let Some(i) = (at + j).checked_sub(BEFORE).filter(|&i| i < length) {
                        sum += tap * from[start + i * step];
                    }
                }
                to[start + at * step] = sum;
            }
        }
        to
    };
    let wide: Vec<f64> = image.iter().map(|&v| f64::from(v)).collect();
    let across = pass(&wide, width, 3, &|line| line / 3 * width * 3 + line % 3);
    let down = pass(&across, height, width * 3, &|line| line);
    down.into_iter().map(|v| v as f32).collect()
}

/// The taps of the filter, of sum 1.
fn bell() -> [f64; TAPS] {
    let middle = (TAPS - 1) as f64 / 2.0;
    let taps: [f64; TAPS] =
        std::array::from_fn(|j| (-0.5 * ((j as f64 - middle) / (SIGMA)).powi(2)).exp());
    let sum: f64 = taps.iter().sum();
    taps.map(|tap| tap / sum)
}

/// Stretches the values to 0 to `peak`, all channels together, so that one channel may keep little; `None` if all are
/// equal, for then there is nothing to stretch.
///
/// The paper's and the bench's `peak` is [`PEAK`].
#[must_use]
pub fn normalise(values: &[f32], peak: f32) -> Option<Vec<f32>> {
    let (low, high) = extremes(values);
    let (low, high) = (low as f32, high as f32);
    let stretch = |v: &f32| peak * (v - low) / (high - low);
    (low < high).then(|| values.iter().map(stretch).collect())
}

/// Fractions of 0 to 1 as grey levels, rounded to nearest.
pub fn levels(fractions: &[f32]) -> Vec<u8> {
    fractions
        .iter()
        .map(|v| (255.0 * v).round() as u8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    /// Share of the energy without the mean that lies at frequencies of at most 1 period over the image, per channel
    /// and in any direction: (0, 1) and (1, 0).
    fn low_share(pattern: &Pattern, channel: usize) -> f64 {
        let (h, w) = (pattern.height, pattern.width);
        let value = |r: usize, c: usize| pattern.values[(r * w + c) * 3 + channel];
        let power = |u: usize, v: usize| {
            let (mut re, mut im) = (0.0, 0.0);
            for r in 0..h {
                for c in 0..w {
                    let angle = TAU * ((u * r) as f64 / h as f64 + (v * c) as f64 / w as f64);
                    re += value(r, c) * angle.cos();
                    im += value(r, c) * angle.sin();
                }
            }
            (re * re + im * im) / (h * w) as f64
        };
        let all: f64 = (0..h * w).map(|i| value(i / w, i % w).powi(2)).sum();
        // Frequencies 1 and -1 have the same power.
        2.0 * (power(0, 1) + power(1, 0)) / (all - power(0, 0))
    }

    #[test]
    fn the_built_in_pattern_is_smooth_and_has_the_peak_asked_for() {
        for (side, peak, share) in [(32, 51, 0.98), (64, 51, 0.98), (32, 20, 0.92)] {
            let pattern = Pattern::rule(side, side, peak);
            assert_eq!(extremes(&pattern.values), (0.0, f64::from(peak)));
            for channel in 0..3 {
                // What is missing is rounding, which weighs more in a faint pattern.
                let found = low_share(&pattern, channel);
                assert!(
                    found > share,
                    "channel {channel} at {side}, {peak}: {found}"
                );
            }
        }
        let wide = Pattern::rule(20, 40, 51);
        assert_eq!((wide.height, wide.width, wide.values.len()), (20, 40, 2400));
    }

    #[test]
    fn the_built_in_pattern_is_the_same_on_every_machine() {
        let pattern = Pattern::rule(32, 32, 51);
        let digest = bb_core::artifact::sha256_hex(pattern.picture().pixels());
        assert_eq!(
            digest,
            "47bc4630cc7bd9b86758af8a566a357a2be42108688d6a5a62d9176839dac776"
        );
    }

    #[test]
    fn the_filter_is_the_papers() {
        let taps = bell();
        assert!((taps.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        // The written form of the paper's weights: exp(-((j - 14.5) * 5 / 30)^2 / 2), not yet divided by the sum.
        let ratio = |j: usize| (-0.5 * ((j as f64 - 14.5) * 5.0 / 30.0).powi(2)).exp();
        for j in 0..TAPS {
            assert!((taps[j] / taps[14] - ratio(j) / ratio(14)).abs() < 1e-12);
            assert!((taps[j] - taps[TAPS - 1 - j]).abs() < 1e-15);
        }
        // A point spreads over the taps, which reach 15 pixels up and 14 down.
        let (h, w, r, c) = (40, 36, 20, 17);
        let mut image = vec![0.0; h * w * 3];
        image[(r * w + c) * 3 + 1] = 1.0;
        let out = low_pass(&image, h, w);
        for (i, &v) in out.iter().enumerate() {
            let (row, column, channel) = (i / 3 / w, i / 3 % w, i % 3);
            let tap = |from: usize, to: usize| {
                let j = (from + BEFORE).checked_sub(to);
                j.and_then(|j| taps.get(j)).copied().unwrap_or(0.0)
            };
            let expect = if channel == 1 {
                tap(r, row) * tap(c, column)
            } else {
                0.0
            };
            assert!(
                (f64::from(v) - expect).abs() < 1e-8,
                "{row} {column} {channel}: {v}"
            );
        }
        assert!(out[((r + 14) * w + c) * 3 + 1] > 0.0);
        assert!(out[((r - 15) * w + c) * 3 + 1] > 0.0);
        let reach = out.iter().filter(|&&v| v > 0.0).count();
        assert_eq!(reach, 30 * 30);
    }

    /// Computed with NumPy from the definition: zeros around the image, one sum over 30 x 30 taps for each pixel.
    #[test]
    fn golden_values_of_the_filter() {
        let (h, w) = (20, 24);
        let mut image = Vec::new();
        for r in 0..h {
            for c in 0..w {
                image.extend((0..3).map(|k| ((7 * r + 13 * c + 31 * k + r * c) % 256) as f32));
            }
        }
        let out = low_pass(&image, h, w);
        for (r, c, channel, expect) in [
            (0, 0, 0, 31.575_466_24),
            (7, 13, 1, 108.909_898_06),
            (19, 23, 2, 30.847_797_15),
            (10, 0, 2, 71.541_967_03),
        ] {
            let found = f64::from(out[(r * w + c) * 3 + channel]);
            assert!((found - expect).abs() < 1e-4, "{found} is not {expect}");
        }
    }

    #[test]
    fn the_filter_keeps_what_is_flat_and_loses_what_is_fine() {
        let flat = low_pass(&vec![1.0; 64 * 64 * 3], 64, 64);
        for (r, c) in [(32, 32), (15, 15), (48, 48)] {
            assert!((flat[(r * 64 + c) * 3] - 1.0).abs() < 1e-6);
        }
        // Beyond the edge there are zeros: 14 before and 15 behind.
        assert!(
            (0.3..0.4).contains(&flat[0]),
            "about half times half of the bell: {}",
            flat[0]
        );
        let fine: Vec<f32> = (0..64 * 64 * 3)
            .map(|i| if i / 3 % 2 == 0 { 1.0 } else { -1.0 })
            .collect();
        let out = low_pass(&fine, 64, 64);
        assert!(out[(32 * 64 + 32) * 3].abs() < 0.01);
    }

    #[test]
    fn values_are_stretched_together() {
        let stretched = normalise(&[-1.0, 0.0, 3.0], PEAK).expect("three values");
        for (found, expect) in stretched.iter().zip([0.0, 0.05, 0.2]) {
            assert!((found - expect).abs() < 1e-7);
        }
        assert_eq!(normalise(&[2.0, 2.0], PEAK), None);
        assert_eq!(normalise(&[], PEAK), None);
        assert_eq!(levels(&[0.0, 0.001, 0.002, 0.2, 1.0]), [0, 0, 1, 51, 255]);
    }

    fn array(folder: &Path, shape: &[usize], value: impl Fn(usize) -> f32) -> PathBuf {
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        let path = folder.join("p.npy");
        fs_err::write(&path, npy::to_bytes(shape, &values)).expect("a writable folder");
        path
    }

    fn read(path: &Path, scale: Scale) -> (Vec<f64>, Vec<String>) {
        let (pattern, warnings) = Pattern::read(path, scale, 2, 3).expect("a pattern");
        (pattern.values, warnings)
    }

    #[test]
    fn arrays_of_the_documented_shapes_are_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let read = |shape: &[usize], value: &dyn Fn(usize) -> f32| {
            read(&array(folder.path(), shape, value), Scale::Auto)
        };
        let up = |n: u8| (0..n).map(f64::from).collect::<Vec<_>>();
        let count = |i: usize| i as f32;
        for shape in [&[2, 3, 3][..], &[1, 2, 3, 3]] {
            assert_eq!(read(shape, &count), (up(18), Vec::new()));
        }
        let (first, warnings) = read(&[4, 2, 3, 3], &count);
        assert_eq!(first, up(18), "the first of four");
        assert!(warnings[0].ends_with("holds 4 patterns, of which the first is taken"));
        let repeated: Vec<f64> = up(6).into_iter().flat_map(|v| [v; 3]).collect();
        for shape in [
            &[2, 3][..],
            &[2, 3, 1],
            &[1, 2, 3],
            &[1, 2, 3, 1],
            &[1, 1, 2, 3],
        ] {
            assert_eq!(
                read(shape, &count),
                (repeated.clone(), Vec::new()),
                "{shape:?}"
            );
        }
        // The first plane is 0 to 5, the second 6 to 11, the third 12 to 17.
        let turned: Vec<f64> = up(6)
            .into_iter()
            .flat_map(|v| [v, v + 6.0, v + 12.0])
            .collect();
        for shape in [&[3, 2, 3][..], &[1, 3, 2, 3]] {
            let (values, warnings) = read(shape, &count);
            assert_eq!(values, turned, "{shape:?}");
            assert!(warnings[0].contains("channels first"), "{warnings:?}");
        }
        let (dark, _) = read(&[2, 3], &|i| i as f32 - 9.0);
        assert_eq!(dark[..3], [-9.0; 3], "a pattern may darken");
    }

    /// Worked out by hand: `trunc(clip(x + v, 0, 255))`, with fractions of a level kept until the sum is cut off.
    #[test]
    fn fractions_of_a_level_are_added_before_the_sum_is_cut_off() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let levels: [f64; 6] = [-22.4, 27.2, -0.5, 0.5, 7.0, -3.75];
        let image = [100, 100, 100, 100, 250, 3];
        let expected = [77, 127, 99, 100, 255, 0];
        let path = folder.path().join("p.npy");
        let check = |bytes: Vec<u8>, scale, told: usize| {
            fs_err::write(&path, bytes).expect("a writable folder");
            let (pattern, warnings) = Pattern::read(&path, scale, 1, 2).expect("a pattern");
            assert_eq!(warnings.len(), told, "{warnings:?}");
            let mut found = image;
            pattern.apply(&mut found);
            assert_eq!(found, expected, "{scale:?}");
        };
        let single = |scale: f32| {
            let values: Vec<f32> = levels.iter().map(|&v| v as f32 / scale).collect();
            npy::to_bytes(&[1, 2, 3], &values)
        };
        let double =
            |scale: f64| npy::smallest_to_bytes(&[1, 2, 3], &levels.map(|v| v / scale), true);
        for (bytes, fractions) in [(single(1.0), single(255.0)), (double(1.0), double(255.0))] {
            check(bytes.clone(), Scale::Auto, 0);
            check(bytes, Scale::Levels, 0);
            check(fractions.clone(), Scale::Auto, 1);
            check(fractions, Scale::Fractions, 0);
        }
    }

    #[test]
    fn sums_are_computed_in_the_precision_of_the_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("p.npy");
        // Just below 1: 200 and this are 201 in `f32`, and 200.99999994 in `f64`.
        let below = f32::from_bits(1.0f32.to_bits() - 1);
        let shown = |bytes: Vec<u8>| {
            fs_err::write(&path, bytes).expect("a writable folder");
            let (pattern, _) = Pattern::read(&path, Scale::Levels, 1, 1).expect("a pattern");
            let mut image = [200; 3];
            pattern.apply(&mut image);
            image
        };
        let single = npy::to_bytes(&[1, 1, 3], &[below, 0.0, 3.0]);
        assert_eq!(shown(single), [201, 200, 203]);
        let double = npy::smallest_to_bytes(&[1, 1, 3], &[f64::from(below), 0.0, 3.0], true);
        assert_eq!(shown(double), [200, 200, 203]);
    }

    #[test]
    fn fractions_are_recognised_and_told() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = array(
            folder.path(),
            &[1, 2, 3, 3],
            |i| if i == 0 { 0.2 } else { 0.0 },
        );
        let (values, warnings) = read(&path, Scale::Auto);
        assert_eq!(values[..2], [51.0, 0.0]);
        assert!(
            warnings[0].contains("values of 0 to 0.2")
                && warnings[0].contains("taken as fractions and multiplied by 255"),
            "{warnings:?}"
        );
        assert_eq!(read(&path, Scale::Fractions), (values, Vec::new()));
        let (values, warnings) = read(&path, Scale::Levels);
        assert!((values[0] - 0.2).abs() < 1e-7);
        assert!(warnings[0].contains("changes no image"), "{warnings:?}");
        // Every level that went to a fraction and back is itself.
        for level in 0..=255u8 {
            let path = array(folder.path(), &[2, 3], |i| {
                if i == 0 {
                    0.0
                } else {
                    f32::from(level) / 255.0
                }
            });
            if level > 0 {
                let (values, _) = read(&path, Scale::Fractions);
                assert_eq!(values[3..4], [f64::from(level)]);
            }
        }
        // Whole numbers of no more than one may be either; integers are levels, however small.
        let path = array(folder.path(), &[2, 3], |i| i as f32 % 3.0 - 1.0);
        let (values, warnings) = read(&path, Scale::Auto);
        assert_eq!(values[..4], [-255.0, -255.0, -255.0, 0.0]);
        assert!(warnings[0].contains("may be grey levels"), "{warnings:?}");
        assert_eq!(read(&path, Scale::Levels).0[..4], [-1.0, -1.0, -1.0, 0.0]);
        let signed = npy::smallest_to_bytes(&[2, 3], &[-1.0, 0.0, 1.0, -1.0, 0.0, 1.0], false);
        fs_err::write(&path, signed).expect("a writable folder");
        let (values, warnings) = read(&path, Scale::Auto);
        assert_eq!((values[0], warnings.len()), (-1.0, 0), "{warnings:?}");
        let mut bytes = b"\x93NUMPY\x01\x00\x3e\x00{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }  \n".to_vec();
        bytes.extend([0, 1, 0, 1, 0, 1]);
        fs_err::write(&path, bytes).expect("a writable folder");
        let (values, warnings) = read(&path, Scale::Auto);
        assert_eq!((values[3], warnings.len()), (1.0, 0), "{warnings:?}");
        assert_eq!(
            read(&path, Scale::Fractions).0[3..4],
            [255.0],
            "if they say so"
        );
    }

    #[test]
    fn a_picture_is_resized_and_what_is_kept_is_read_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (png, npy) = (folder.path().join("p.png"), folder.path().join("p.dat"));
        // A peak of 1 is not taken for fractions.
        for peak in [1, 2, 51, 255] {
            let pattern = Pattern::rule(32, 32, peak);
            fs_err::write(&png, pattern.picture().to_png()).expect("a writable folder");
            fs_err::write(&npy, pattern.to_npy()).expect("a writable folder");
            for path in [&png, &npy] {
                assert_eq!(
                    Pattern::read(path, Scale::Auto, 32, 32).expect("a pattern"),
                    (pattern.clone(), Vec::new())
                );
            }
        }
        for values in [
            [-1.0, 0.0, 1.0],
            [-9.0, 0.0, 7.0],
            [0.0, 0.5, 7.0],
            [0.0, 7.0, 256.0],
        ] {
            let pattern = Pattern {
                values: values.to_vec(),
                double: false,
                height: 1,
                width: 1,
            };
            fs_err::write(&npy, pattern.to_npy()).expect("a writable folder");
            let read = Pattern::read(&npy, Scale::Auto, 1, 1).expect("a pattern");
            assert_eq!(read, (pattern, Vec::new()));
        }
        let (larger, _) =
            Pattern::read(&png, Scale::Levels, 64, 64).expect("a picture of any size");
        assert_eq!(larger.values.len(), 64 * 64 * 3);
        let error = Pattern::read(&png, Scale::Fractions, 32, 32).expect_err("levels");
        assert!(
            error
                .to_string()
                .contains("is a picture, which has grey levels"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_pattern_is_one_clear_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let check = |path: &Path, expect: &str| {
            let error = Pattern::read(path, Scale::Auto, 2, 3)
                .expect_err("no pattern")
                .to_string();
            assert!(error.contains(expect), "{error}\nlacks {expect}");
        };
        let count = |i: usize| i as f32;
        for shape in [
            &[3, 2][..],
            &[2, 3, 2],
            &[2, 3, 4],
            &[3, 3, 2],
            &[0, 2, 3, 3],
            &[0, 3, 2, 3],
            &[1, 1, 2, 3, 3],
            &[18],
            &[],
        ] {
            let path = array(folder.path(), shape, count);
            let expect =
                format!("has shape {shape:?}, expected [2, 3], [2, 3, 3], [3, 2, 3] or several");
            check(&path, &expect);
        }
        check(
            &array(folder.path(), &[2, 3], |_| 7.0),
            "is 7 everywhere, expected a pattern",
        );
        check(
            &array(folder.path(), &[2, 3], |_| 0.0),
            "is 0 everywhere, expected a pattern",
        );
        check(
            &array(folder.path(), &[2, 3], |i| [1.0, f32::NAN][i / 5]),
            "holds NaN at position 5, expected finite numbers",
        );
        check(
            &array(folder.path(), &[2, 3], |i| [1.0, f32::INFINITY][i / 5]),
            "holds inf at position 5, expected finite numbers",
        );
        let text = folder.path().join("p.txt");
        fs_err::write(&text, "0.1 0.2").expect("a writable folder");
        check(&text, "cannot decode picture");
        check(&folder.path().join("none.npy"), "cannot read picture");
    }
}
