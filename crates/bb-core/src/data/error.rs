//! Every way in which opening a dataset can fail.

use std::path::{Path, PathBuf};

use super::DATASETS;
use super::decode::ImageFault;
use super::locate::layouts;
use super::pickled::PickleFault;
use crate::cli::{Coded, exit, expecting_panics};

/// Why a dataset could not be opened.
///
/// Rows are counted from 0 within their file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// No dataset has this id.
    #[error("unknown dataset `{id}`, known are {}", known())]
    UnknownDataset {
        /// What was asked for.
        id: String,
        /// The known id nearest to it.
        nearest: Option<&'static str>,
    },
    /// The dataset lies in files, and no place was given.
    #[error("dataset `{id}` is read from files, but no data folder was given")]
    NoRoot {
        /// The dataset.
        id: &'static str,
    },
    /// The data folder does not exist.
    #[error("the data folder `{}` does not exist", root.display())]
    NoSuchRoot {
        /// The folder that was given.
        root: PathBuf,
    },
    /// The data folder is a file, and none that is read.
    #[error("`{}` is a file, expected the folder that holds the dataset", root.display())]
    RootIsFile {
        /// The file that was given.
        root: PathBuf,
    },
    /// A file or folder could not be read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder does not hold the dataset, or not in a way that is read.
    #[error("no `{id}` in `{}` in a layout that is read, {}", place.display(), found_there(found))]
    NotFound {
        /// The dataset.
        id: &'static str,
        /// The folder that was named.
        place: PathBuf,
        /// What is in it.
        found: Vec<String>,
        /// What to do about what lies there.
        advice: Option<String>,
    },
    /// A split is absent.
    #[error("no split `{wanted}` in `{}`, {}", place.display(), found_there(found))]
    NoSplit {
        /// The split.
        wanted: Box<str>,
        /// The folder that holds the splits.
        place: PathBuf,
        /// The splits or folders that are there.
        found: Vec<String>,
        /// What to do about them.
        advice: Option<String>,
    },
    /// Test images have no table with their classes.
    #[error("the images in `{}` have no table with their classes, expected `GT-final_test.csv` or `Test.csv`", path.display())]
    NoTable {
        /// The folder with the images.
        path: PathBuf,
    },
    /// A table of images and classes cannot be used.
    #[error("line {line} of `{}` has `{found}`, expected {expected}", path.display())]
    Table {
        /// The table.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A folder among the class folders that is not a class.
    #[error("`{}` is no class folder, expected a number from 0 to {}", path.display(), classes - 1)]
    ClassFolder {
        /// The folder.
        path: PathBuf,
        /// Classes of the dataset.
        classes: usize,
    },
    /// A file is larger than one of its kind can be.
    #[error("`{}` has {found} bytes, expected at most {limit}", path.display())]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Most bytes of such a file.
        limit: u64,
        /// Bytes found.
        found: u64,
    },
    /// A Python batch is damaged, or is something else.
    #[error("`{}` is no readable CIFAR batch", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PickleFault,
    },
    /// An archive cannot be unpacked.
    #[error("`{}` is not a readable `.tar.gz` archive", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What the unpacker said.
        source: std::io::Error,
    },
    /// An archive lacks a file.
    #[error("`{}` has no file `{name}`", path.display())]
    NoMember {
        /// The archive.
        path: PathBuf,
        /// The file in it.
        name: String,
    },
    /// `synthetic` is asked for more images than it makes.
    #[error("{asked} {split} images of `synthetic`, expected at most {most}")]
    TooMany {
        /// The split.
        split: &'static str,
        /// Images that were asked for.
        asked: usize,
        /// The most that are made.
        most: usize,
    },
    /// The images do not fit into memory.
    #[error("{n} images of {h}x{w} need more memory than there is")]
    TooLarge {
        /// Images.
        n: usize,
        /// Height.
        h: usize,
        /// Width.
        w: usize,
    },
    /// The images are out of proportion to the files that they come of.
    #[error("`{}` has {found} images that become {h}x{w}, expected at most {most} in files of its size", path.display())]
    Proportion {
        /// The file, or the folder of the first image.
        path: PathBuf,
        /// Images.
        found: u64,
        /// The most images of this size.
        most: u64,
        /// Height.
        h: usize,
        /// Width.
        w: usize,
    },
    /// A shard of a numbered set is absent.
    #[error("`{}` is missing, the set has {total} files and {found} are there", path.display())]
    MissingShard {
        /// The absent file.
        path: PathBuf,
        /// Files that the names promise.
        total: usize,
        /// Files that are there.
        found: usize,
    },
    /// The shards of a split do not form one set.
    #[error("`{}` and `{}` do not belong to one set of shards", a.display(), b.display())]
    MixedShards {
        /// One file.
        a: PathBuf,
        /// A file that cannot be of the same set.
        b: PathBuf,
    },
    /// The file stands for another one that was never downloaded.
    #[error("`{}` is a Git LFS pointer, not the data", path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// The file is no Parquet file, is truncated, or is damaged inside.
    #[error("`{}` is not a readable Parquet file", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        source: parquet::errors::ParquetError,
    },
    /// The file is damaged in a way that makes its reader panic.
    #[error("`{}` is damaged: its reader broke down with `{message}`", path.display())]
    Damaged {
        /// The file, or `hub`.
        path: PathBuf,
        /// What the panic said.
        message: String,
    },
    /// A column is absent.
    #[error("`{}` has no column {expected}, {}", path.display(), found_there(found))]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The names that would have been accepted.
        expected: &'static str,
        /// The columns of the file.
        found: Vec<String>,
    },
    /// A column has another type than expected.
    #[error("column `{column}` of `{}` is {found}, expected {expected}", path.display())]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The type expected.
        expected: &'static str,
        /// The type found.
        found: String,
    },
    /// A file has no row where the first one is needed.
    #[error("`{}` has no rows", path.display())]
    EmptyTable {
        /// The file.
        path: PathBuf,
    },
    /// A value is absent.
    #[error("row {row} of `{}` has no value in column `{column}`", path.display())]
    Null {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The row.
        row: usize,
    },
    /// A column has another number of rows than the file says.
    #[error("column `{column}` of `{}` ends at row {found}, expected {expected}", path.display())]
    RowCount {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Rows that the file announces.
        expected: usize,
        /// Rows that are there.
        found: usize,
    },
    /// An image in a Parquet file cannot be used.
    #[error("row {row} of `{}` has an unusable image", path.display())]
    ImageRow {
        /// The file.
        path: PathBuf,
        /// The row.
        row: usize,
        /// What is wrong with it.
        source: ImageFault,
    },
    /// An image file cannot be used.
    #[error("`{}` is not a usable image", path.display())]
    ImageFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageFault,
    },
    /// A label is outside the classes of the dataset.
    #[error("row {row} of `{}` has label {found}, expected 0 to {}", path.display(), classes - 1)]
    Label {
        /// The file.
        path: PathBuf,
        /// The row.
        row: usize,
        /// The label.
        found: i64,
        /// Classes of the dataset.
        classes: usize,
    },
    /// The file says that it holds another dataset.
    #[error("`{}` holds a dataset of {found} classes, expected {expected}", path.display())]
    ClassCount {
        /// The file.
        path: PathBuf,
        /// Classes of the dataset asked for.
        expected: usize,
        /// Classes that the file names.
        found: usize,
    },
    /// The file numbers the classes of a known dataset otherwise.
    #[error(
        "`{}` numbers the classes of `{id}` otherwise: class {class} is `{found}`, expected `{expected}`",
        path.display()
    )]
    ClassOrder {
        /// The file.
        path: PathBuf,
        /// The dataset.
        id: &'static str,
        /// The class.
        class: usize,
        /// Its name in the file.
        found: Box<str>,
        /// Its name in the dataset.
        expected: Box<str>,
    },
    /// Two files of one dataset name a class differently.
    #[error(
        "class {class} is `{name_a}` in `{}` and `{name_b}` in `{}`", a.display(), b.display()
    )]
    ClassNames {
        /// One file.
        a: PathBuf,
        /// Another file.
        b: PathBuf,
        /// The class.
        class: usize,
        /// Its name in the one.
        name_a: Box<str>,
        /// Its name in the other.
        name_b: Box<str>,
    },
    /// A split has no image.
    #[error("the {split} split of `{id}` has no image")]
    EmptySplit {
        /// The dataset.
        id: &'static str,
        /// `train` or `test`.
        split: &'static str,
    },
    /// A binary batch has the wrong length.
    #[error("`{}` has {found} bytes, expected {expected}", path.display())]
    BinaryLength {
        /// The file.
        path: PathBuf,
        /// Bytes of a whole batch.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// The hub could not deliver the dataset.
    #[cfg(feature = "hub")]
    #[error("cannot get `{id}` from the Hugging Face hub")]
    Hub {
        /// The dataset.
        id: &'static str,
        /// What the downloader said.
        source: Box<candle_core::Error>,
    },
    /// Only CIFAR-10 comes from the hub.
    #[error("dataset `{id}` cannot be fetched from the hub, only `cifar10` can")]
    NotOnHub {
        /// The dataset.
        id: &'static str,
    },
    /// The build cannot reach the hub.
    #[error("a download from the hub needs a build with the feature `hub`")]
    FeatureOff,
    /// The hub's images have not the shape of the dataset.
    #[error("the images of `{id}` have shape {found:?}, expected {expected:?}")]
    Shape {
        /// The dataset.
        id: &'static str,
        /// The shape expected.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A folder has no class folders.
    #[error("`{}` has no class folders", path.display())]
    NoClasses {
        /// The folder.
        path: PathBuf,
    },
    /// A class folder has no images.
    #[error("class folder `{}` has no image (png, jpg, ppm, pgm, pbm or bmp)", path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
    /// An image has a format that is not read.
    #[error("`{}` has an image format that is not read, expected png, jpg, ppm, pgm, pbm or bmp", path.display())]
    UnsupportedImage {
        /// The file.
        path: PathBuf,
    },
    /// A class of the test split does not exist in the train split.
    #[error("class folder `{}` has no counterpart in `{}`", path.display(), train.display())]
    UnknownClass {
        /// The folder in the test split.
        path: PathBuf,
        /// The train split.
        train: PathBuf,
    },
    /// A pixel buffer does not fit its shape.
    #[error("{found} bytes of pixels, expected {n} images of {h}x{w}x3")]
    PixelCount {
        /// Images.
        n: usize,
        /// Height.
        h: usize,
        /// Width.
        w: usize,
        /// Bytes found.
        found: usize,
    },
}

impl Coded for DataError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownDataset { .. }
            | Self::NoRoot { .. }
            | Self::NotOnHub { .. }
            | Self::FeatureOff => exit::USAGE,
            Self::Io { source, .. } => source.exit_code(),
            // The network, which may come back.
            #[cfg(feature = "hub")]
            Self::Hub { .. } => exit::TRY_AGAIN,
            _ => exit::INPUT,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownDataset { nearest, .. } => format!("did you mean `{}`?", (*nearest)?),
            Self::NoRoot { .. } => {
                "give the folder with `--data DIR`; only the dataset `synthetic` needs no files".to_owned()
            }
            Self::NotFound { advice: Some(advice), .. } | Self::NoSplit { advice: Some(advice), .. } => {
                advice.clone()
            }
            Self::NotFound { id, .. } => format!("read are {}", layouts(id)),
            Self::NoSplit { wanted, found, .. } if &**wanted == "train" && found.is_empty() => {
                "the images of class `cat` lie in `train/cat/` and `test/cat/`".to_owned()
            }
            Self::NoSplit { wanted, .. } if &**wanted == "train" => {
                "the images of a class lie in `train/CLASS/` and `test/CLASS/`; split them into these two".to_owned()
            }
            Self::NoSplit { wanted, .. } if &**wanted == "test" => {
                "the test split is called `test`, `val`, `valid` or `validation`; `--test-split NAME` takes another one".to_owned()
            }
            Self::Label { found, .. } if *found < 0 => {
                "negative labels stand for unknown ones; `--test-split NAME` takes another split".to_owned()
            }
            Self::ColumnType { found, expected, .. } if found == "text" && expected.contains("integers") => {
                "number the classes from 0, as `ClassLabel` does".to_owned()
            }
            Self::ClassOrder { .. } => {
                "`--dataset folder` takes the classes as the file numbers them".to_owned()
            }
            Self::LfsPointer { .. } => "fetch the data with `git lfs pull`".to_owned(),
            Self::UnsupportedImage { .. } => "convert it to png".to_owned(),
            #[cfg(feature = "hub")]
            Self::Hub { .. } => {
                "without network, download the Parquet files elsewhere and name their folder with `--data`".to_owned()
            }
            Self::MissingShard { .. }
            | Self::BinaryLength { .. }
            | Self::Parquet { .. }
            | Self::Archive { .. }
            | Self::NoMember { .. }
            | Self::Damaged { .. } => {
                "download the file again".to_owned()
            }
            _ => return None,
        })
    }
}

impl DataError {
    /// Runs a reader of untrusted bytes and turns its panic into an error.
    ///
    /// The Parquet reader asserts what it should check: one byte changed in a file's table of contents can end in an
    /// assertion or an overflow. What the reader has left half done is dropped with the error.
    pub(super) fn guard<T>(path: &Path, read: impl FnOnce() -> Result<T, Self>) -> Result<T, Self> {
        expecting_panics(read).unwrap_or_else(|panic| {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(Self::Damaged {
                path: path.to_path_buf(),
                message: message.unwrap_or("no reason given").to_owned(),
            })
        })
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

fn known() -> String {
    literals(DATASETS.iter().map(|spec| spec.id))
}

fn literals<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let quoted: Vec<String> = items.into_iter().map(|item| format!("`{item}`")).collect();
    quoted.join(", ")
}

/// What lies in a folder or a file, of much only the beginning.
fn found_there(names: &[String]) -> String {
    const SHOWN: usize = 8;
    match names.len() {
        0 => "found nothing".to_owned(),
        n if n > SHOWN + 1 => format!("found {} and {} more", literals(&names[..SHOWN]), n - SHOWN),
        _ => format!("found {}", literals(names)),
    }
}
