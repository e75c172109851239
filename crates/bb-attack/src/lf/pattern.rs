//! The patterns that LF adds: drawn by rule or read from a file; and the filter that defines "low frequency".

use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::npy::{self, NpyError};
use crate::picture::{Picture, PictureError};

/// A pattern in grey levels, layout `[height, width, 3]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    /// What is added to each value of an image.
    pub values: Vec<f32>,
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
        "pattern `{}` has shape {found:?}, expected [{height}, {width}], [{height}, {width}, 3] or [n, {height}, {width}, 3]",
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
        found: f32,
        /// Its place, last axis fastest.
        position: usize,
    },
    /// All values are equal.
    #[error("pattern `{}` is {value} everywhere, expected a pattern", path.display())]
    Constant {
        /// The file.
        path: PathBuf,
        /// The value.
        value: f32,
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
            values: levels(&values).into_iter().map(f32::from).collect(),
            height,
            width,
        }
    }

    /// Reads a pattern for images of `height` x `width`, and what the user should know of it, if there is anything.
    ///
    /// A `.npy` array must have the size of the images; a picture is resized to it. Fractions of 1 are recognised,
    /// because patterns made for images of 0 to 1 would change nothing in images of 0 to 255.
    pub fn read(
        path: &Path,
        height: usize,
        width: usize,
    ) -> Result<(Self, Option<String>), PatternError> {
        let (values, warning) = if is_npy(path) {
            from_array(npy::read(path)?, path, height, width)?
        } else {
            let picture = Picture::read(path)?.resized(height, width);
            (
                picture.pixels().iter().map(|&v| f32::from(v)).collect(),
                None,
            )
        };
        let (low, high) = extremes(&values);
        if low >= high {
            return Err(PatternError::Constant {
                path: path.to_owned(),
                value: low,
            });
        }
        let pattern = Self {
            values,
            height,
            width,
        };
        Ok((pattern, warning))
    }

    /// The pattern as a picture for people, with values below 0 as black.
    pub fn picture(&self) -> Picture {
        let pixels = self.values.iter().map(|v| v.round() as u8).collect();
        Picture::new(self.height, self.width, pixels)
    }

    /// The pattern as a `.npy` file, exactly.
    ///
    /// Whole levels of 0 to 255 are written as bytes, as in the bench, so that a pattern of no more than one level is not
    /// taken for fractions when it is read again; anything else as floats.
    pub fn to_npy(&self) -> Vec<u8> {
        let shape = [self.height, self.width, 3];
        let byte = |&v: &f32| {
            let level = v as u8;
            (v - f32::from(level) == 0.0).then_some(level)
        };
        match self.values.iter().map(byte).collect::<Option<Vec<u8>>>() {
            Some(levels) => npy::levels_to_bytes(&shape, &levels),
            None => npy::to_bytes(&shape, &self.values),
        }
    }
}

/// Whether a file begins as NumPy's do; whatever its name is.
fn is_npy(path: &Path) -> bool {
    let mut mark = [0; npy::MAGIC.len()];
    // A file that cannot be read is reported by whoever reads it next.
    fs_err::File::open(path).is_ok_and(|mut file| file.read_exact(&mut mark).is_ok())
        && mark == *npy::MAGIC
}

/// The values of an array for images of `height` x `width`.
fn from_array(
    array: npy::Array,
    path: &Path,
    height: usize,
    width: usize,
) -> Result<(Vec<f32>, Option<String>), PatternError> {
    let npy::Array {
        shape,
        mut values,
        is_float,
    } = array;
    match shape[..] {
        [h, w] if (h, w) == (height, width) => {
            values = values.iter().flat_map(|&v| [v; 3]).collect();
        }
        [h, w, 3] if (h, w) == (height, width) => {}
        // As in the bench, the first of several is taken.
        [n, h, w, 3] if n > 0 && (h, w) == (height, width) => values.truncate(h * w * 3),
        _ => {
            return Err(PatternError::Shape {
                path: path.to_owned(),
                found: shape,
                height,
                width,
            });
        }
    }
    if let Some(position) = values.iter().position(|v| !v.is_finite()) {
        return Err(PatternError::NotFinite {
            path: path.to_owned(),
            found: values[position],
            position,
        });
    }
    let (low, high) = extremes(&values);
    if !is_float || low < -1.0 || high > 1.0 {
        return Ok((values, None));
    }
    // To whole levels, because a level that lost its last bit on the way to a fraction would be truncated to the one below.
    for v in &mut values {
        *v = (255.0 * *v).round();
    }
    let warning = format!(
        "pattern `{}` has values of {low} to {high}, so they are taken as fractions, multiplied by 255 and rounded",
        path.display()
    );
    Ok((values, Some(warning)))
}

/// Smallest and largest value.
fn extremes(values: &[f32]) -> (f32, f32) {
    let start = (f32::INFINITY, f32::NEG_INFINITY);
    let wider = |(low, high): (f32, f32), &v: &f32| (low.min(v), high.max(v));
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
        let value = |r: usize, c: usize| f64::from(pattern.values[(r * w + c) * 3 + channel]);
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
            assert_eq!(extremes(&pattern.values), (0.0, f32::from(peak)));
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

    #[test]
    fn arrays_of_the_documented_shapes_are_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let read = |shape: &[usize], value: &dyn Fn(usize) -> f32| {
            let path = array(folder.path(), shape, value);
            let (pattern, warning) = Pattern::read(&path, 2, 3).expect("a pattern");
            assert_eq!(warning, None);
            pattern.values
        };
        let up = |n: u8| (0..n).map(f32::from).collect::<Vec<_>>();
        let count = |i: usize| i as f32;
        assert_eq!(read(&[2, 3, 3], &count), up(18));
        assert_eq!(read(&[1, 2, 3, 3], &count), up(18));
        assert_eq!(read(&[4, 2, 3, 3], &count), up(18), "the first of four");
        let repeated: Vec<f32> = up(6).into_iter().flat_map(|v| [v; 3]).collect();
        assert_eq!(read(&[2, 3], &count), repeated);
        let dark = read(&[2, 3], &|i| i as f32 - 9.0);
        assert_eq!(dark[..3], [-9.0; 3], "a pattern may darken");
    }

    #[test]
    fn fractions_are_recognised_and_told() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = array(
            folder.path(),
            &[1, 2, 3, 3],
            |i| if i == 0 { 0.2 } else { 0.0 },
        );
        let (pattern, warning) = Pattern::read(&path, 2, 3).expect("a pattern");
        assert_eq!(pattern.values[..2], [51.0, 0.0]);
        let warning = warning.expect("something to know");
        assert!(
            warning.contains("values of 0 to 0.2")
                && warning.ends_with("multiplied by 255 and rounded"),
            "{warning}"
        );
        // Bytes are grey levels, however small.
        let mut bytes = b"\x93NUMPY\x01\x00\x3e\x00{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }  \n".to_vec();
        bytes.extend([0, 1, 0, 1, 0, 1]);
        fs_err::write(&path, bytes).expect("a writable folder");
        let (pattern, warning) = Pattern::read(&path, 2, 3).expect("a pattern");
        assert_eq!((pattern.values[3], warning), (1.0, None));
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
                    Pattern::read(path, 32, 32).expect("a pattern"),
                    (pattern.clone(), None)
                );
            }
        }
        for values in [[-9.0, 0.0, 7.0], [0.0, 0.5, 7.0], [0.0, 7.0, 256.0]] {
            let pattern = Pattern {
                values: values.to_vec(),
                height: 1,
                width: 1,
            };
            fs_err::write(&npy, pattern.to_npy()).expect("a writable folder");
            let read = Pattern::read(&npy, 1, 1).expect("a pattern");
            assert_eq!(read, (pattern, None));
        }
        let (larger, _) = Pattern::read(&png, 64, 64).expect("a picture of any size");
        assert_eq!(larger.values.len(), 64 * 64 * 3);
    }

    #[test]
    fn what_is_no_pattern_is_one_clear_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let check = |path: &Path, expect: &str| {
            let error = Pattern::read(path, 2, 3)
                .expect_err("no pattern")
                .to_string();
            assert!(error.contains(expect), "{error}\nlacks {expect}");
        };
        let count = |i: usize| i as f32;
        for shape in [
            &[3, 2][..],
            &[2, 3, 1],
            &[3, 2, 3],
            &[0, 2, 3, 3],
            &[18],
            &[],
        ] {
            let path = array(folder.path(), shape, count);
            let expect = format!("has shape {shape:?}, expected [2, 3], [2, 3, 3] or [n, 2, 3, 3]");
            check(&path, &expect);
        }
        check(
            &array(folder.path(), &[2, 3], |_| 7.0),
            "is 7 everywhere, expected a pattern",
        );
        check(
            &array(folder.path(), &[2, 3], |i| [1.0, f32::NAN][i / 5]),
            "holds NaN at position 15, expected finite numbers",
        );
        let text = folder.path().join("p.txt");
        fs_err::write(&text, "0.1 0.2").expect("a writable folder");
        check(&text, "cannot decode picture");
        check(&folder.path().join("none.npy"), "cannot read picture");
    }
}
