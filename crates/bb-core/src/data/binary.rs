//! The official binary batches of CIFAR-10: 10,000 times one byte of label and three planes of 32x32 bytes.
//!
//! Read here and not through candle-datasets, whose reader goes through f32 tensors and does not say which file
//! is short; with the feature `hub` a test holds the two to the same result.

use std::path::PathBuf;

use super::images::{CHANNELS, Images, Split};
use super::{DataError, DatasetSpec, Decoded, Facts};

/// The files in the order of their images.
pub(super) const TRAIN: [&str; 5] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
];
/// The file of the test split.
pub(super) const TEST: [&str; 1] = ["test_batch.bin"];

const PLANE: usize = 32 * 32;
const ROW: usize = 1 + PLANE * CHANNELS;
const ROWS: usize = 10_000;

/// Reads all rows of `files`, one after the other, or the first `limit`.
pub(super) fn read(
    files: &[PathBuf],
    spec: &DatasetSpec,
    limit: Option<usize>,
) -> Result<Decoded, DataError> {
    let wrong_length = |path: &PathBuf, found: u64| DataError::BinaryLength {
        path: path.clone(),
        expected: (ROWS * ROW) as u64,
        found,
    };
    // Checked before anything is read, so that a huge file costs no memory.
    for path in files {
        let length = fs_err::metadata(path).map_err(DataError::io(path))?.len();
        if length != (ROWS * ROW) as u64 {
            return Err(wrong_length(path, length));
        }
    }
    let wanted = limit.unwrap_or(usize::MAX).min(files.len() * ROWS);
    let mut labels = Vec::with_capacity(wanted);
    let mut pixels = Vec::with_capacity(wanted * PLANE * CHANNELS);
    for path in files.iter().take(wanted.div_ceil(ROWS)) {
        let bytes = fs_err::read(path).map_err(DataError::io(path))?;
        if bytes.len() != ROWS * ROW {
            return Err(wrong_length(path, bytes.len() as u64)); // it has changed in between
        }
        let rows = bytes.chunks_exact(ROW).take(wanted - labels.len());
        for (row, record) in rows.enumerate() {
            let (label, planes) = (record[0], &record[1..]);
            if usize::from(label) >= spec.classes {
                return Err(DataError::Label {
                    path: path.clone(),
                    row,
                    found: i64::from(label),
                    classes: spec.classes,
                });
            }
            labels.push(u32::from(label));
            let (red, rest) = planes.split_at(PLANE);
            let (green, blue) = rest.split_at(PLANE);
            for ((r, g), b) in red.iter().zip(green).zip(blue) {
                pixels.extend([*r, *g, *b]);
            }
        }
    }
    Ok(Decoded {
        split: Split {
            images: Images::new(labels.len(), spec.height, spec.width, pixels)?,
            labels: labels.into(),
        },
        facts: Facts::default(),
    })
}
