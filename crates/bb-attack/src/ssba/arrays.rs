//! Encoded images of other programs: one NumPy array for each split, of which only the rows that are needed are read.

use std::path::{Path, PathBuf};

use bb_core::data::Split;

use super::config::TriggerConfig;
use crate::npy::{ByteArray, NpyError};

/// An array that does not hold the images of a split.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArrayError {
    /// It cannot be read.
    #[error(transparent)]
    Npy(#[from] NpyError),
    /// Its shape is another one.
    #[error(
        "encoded images `{}` have shape {found:?}, expected [{images}, {height}, {width}, 3], the {split} images in their order",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its shape.
        found: Vec<usize>,
        /// Images of the split.
        images: usize,
        /// Height of the images.
        height: usize,
        /// Width of the images.
        width: usize,
        /// `training` or `test`.
        split: &'static str,
    },
}

/// The two arrays: those of the settings, or the only ones in the folder whose names have `train` and `test` in them.
pub fn files(cfg: &TriggerConfig) -> [PathBuf; 2] {
    if cfg.folder.is_empty() {
        return [cfg.train_file.as_str(), cfg.test_file.as_str()].map(PathBuf::from);
    }
    let folder = Path::new(&cfg.folder);
    ["train", "test"].map(|split| {
        // Where there is none or more than one, the usual name is asked for and its absence is what is reported.
        only(folder, split).unwrap_or_else(|| folder.join(format!("{split}.npy")))
    })
}

fn only(folder: &Path, split: &str) -> Option<PathBuf> {
    let entries = fs_err::read_dir(folder).ok()?.filter_map(Result::ok);
    let mut found = entries.map(|entry| entry.path()).filter(|path| {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let array = path.extension().is_some_and(|end| end == "npy");
        array && stem.is_some_and(|stem| stem.contains(split))
    });
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

/// Opens the array of a split.
///
/// It may hold more images than the split, whose first ones it then must begin with: that is how a limit is meant.
pub fn open(path: &Path, split: &Split, name: &'static str) -> Result<ByteArray, ArrayError> {
    let array = ByteArray::open(path)?;
    let (height, width) = (split.images.height(), split.images.width());
    match array.shape()[..] {
        [n, h, w, 3] if n >= split.len() && (h, w) == (height, width) => Ok(array),
        _ => Err(ArrayError::Shape {
            path: path.to_owned(),
            found: array.shape().to_vec(),
            images: split.len(),
            height,
            width,
            split: name,
        }),
    }
}
