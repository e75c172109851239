//! Any folder of images: `train/<class>/*.png` and `test/<class>/*.png` (or `val/`), as torchvision's `ImageFolder`.
//!
//! Classes are the names of the class folders in sorted order.
//! Images below a class folder are taken in sorted order of their paths, at any depth; links to files are followed,
//! links to folders are not.
//! All images get the size of the first one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::decode::Tally;
use super::images::{CHANNELS, Images, Split};
use super::{DataError, DatasetSpec, Decoded, Facts, decode};

/// Names of the test split's folder, the first one that exists counts.
const TEST: [&str; 3] = ["test", "val", "valid"];
/// Formats that are read, by the ending of the name.
const READ: [&str; 10] = [
    "bmp", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm",
];
/// Formats that are images but not read; leaving them out silently would give a smaller dataset than the user has.
const NOT_READ: [&str; 8] = ["avif", "gif", "heic", "jp2", "jxl", "tif", "tiff", "webp"];

/// The files of one split, in order, with their classes.
pub(super) struct Listing {
    pub(super) files: Vec<PathBuf>,
    pub(super) labels: Vec<u32>,
}

/// The files of both splits and what is known of the dataset without decoding it.
pub(super) struct Layout {
    pub(super) train: Listing,
    pub(super) test: Listing,
    /// Names of the class folders in label order.
    pub(super) class_names: Vec<String>,
}

/// Lists the images below `root`.
pub(super) fn list(spec: &DatasetSpec, root: &Path) -> Result<Layout, DataError> {
    if !root.is_dir() {
        return Err(DataError::NoSuchRoot {
            root: root.to_path_buf(),
        });
    }
    let missing = |wanted: &str| DataError::NotFound {
        id: spec.id,
        wanted: wanted.to_owned(),
        looked: vec![root.to_path_buf()],
    };
    let train = root.join("train");
    if !train.is_dir() {
        return Err(missing("folder `train`"));
    }
    let test = TEST.map(|name| root.join(name));
    let test = test.into_iter().find(|folder| folder.is_dir());
    let test = test.ok_or_else(|| missing("folder `test` or `val`"))?;

    let classes = class_folders(&train)?;
    if classes.is_empty() {
        return Err(DataError::NoClasses { path: train });
    }
    let mut train_listing = Listing::empty();
    for (label, class) in classes.iter().enumerate() {
        let folder = train.join(class);
        if train_listing.add(&folder, label)? == 0 {
            return Err(DataError::NoImages { path: folder });
        }
    }
    let mut test_listing = Listing::empty();
    for class in class_folders(&test)? {
        let folder = test.join(&class);
        match classes.binary_search(&class) {
            Ok(label) => {
                test_listing.add(&folder, label)?;
            }
            Err(_) => {
                return Err(DataError::UnknownClass {
                    path: folder,
                    train,
                });
            }
        }
    }
    Ok(Layout {
        train: train_listing,
        test: test_listing,
        class_names: classes
            .iter()
            .map(|name| name.to_string_lossy().into_owned())
            .collect(),
    })
}

/// Height and width of the first image of the train split, from its header.
pub(super) fn size(layout: &Layout) -> Result<(usize, usize), DataError> {
    let first = &layout.train.files[0]; // every class has an image
    decode::size(&read(first)?).map_err(unusable(first))
}

/// Decodes the images of a split, or the first `limit`, resized to `h` by `w`.
pub(super) fn load(
    listing: &Listing,
    h: usize,
    w: usize,
    limit: Option<usize>,
) -> Result<Decoded, DataError> {
    let n = listing.files.len().min(limit.unwrap_or(usize::MAX));
    let image_bytes = h * w * CHANNELS;
    let mut pixels = vec![0; n * image_bytes];
    let tally = Tally::default();
    let fault = pixels
        .par_chunks_exact_mut(image_bytes)
        .zip(&listing.files)
        .map(|(out, path)| {
            decode::rgb_into(&read(path)?, h, w, out, &tally).map_err(unusable(path))
        })
        .find_map_first(Result::err);
    if let Some(fault) = fault {
        return Err(fault);
    }
    Ok(Decoded {
        split: Split {
            images: Images::new(n, h, w, pixels)?,
            labels: listing.labels.iter().take(n).copied().collect(),
        },
        facts: Facts::counted(&tally),
    })
}

impl Listing {
    fn empty() -> Self {
        Self {
            files: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// Adds the images below a class folder and returns their number.
    fn add(&mut self, folder: &Path, label: usize) -> Result<usize, DataError> {
        let before = self.files.len();
        walk(folder, &mut self.files)?;
        self.files[before..].sort();
        self.labels.resize(self.files.len(), label as u32);
        Ok(self.files.len() - before)
    }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    for entry in fs_err::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        let path = entry.path();
        if entry.file_type().map_err(DataError::io(&path))?.is_dir() {
            walk(&path, files)?;
            continue;
        }
        let ending = path.extension().and_then(|ending| ending.to_str());
        let ending = ending.unwrap_or_default().to_ascii_lowercase();
        // Files such as `._cat.png` are what a Mac leaves beside the real ones.
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if hidden {
            continue;
        }
        if NOT_READ.contains(&&*ending) {
            return Err(DataError::UnsupportedImage { path });
        }
        if READ.contains(&&*ending) {
            files.push(path);
        }
    }
    Ok(())
}

/// The names of the folders in a split, sorted.
fn class_folders(split: &Path) -> Result<Vec<OsString>, DataError> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(split).map_err(DataError::io(split))? {
        let entry = entry.map_err(DataError::io(split))?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.path().is_dir() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    fs_err::read(path).map_err(DataError::io(path))
}

fn unusable(path: &Path) -> impl FnOnce(decode::ImageFault) -> DataError {
    let path = path.to_path_buf();
    move |source| DataError::ImageFile { path, source }
}
