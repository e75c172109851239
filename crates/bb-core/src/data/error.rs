//! Every way in which opening a dataset can fail.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::DATASETS;
use super::decode::ImageFault;
use crate::cli::{Coded, exit};

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
    /// The data folder does not exist, or is no folder.
    #[error("the data folder `{}` does not exist", root.display())]
    NoSuchRoot {
        /// The folder that was given.
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
    /// None of the places holds the dataset.
    #[error("no {wanted} of `{id}` in {}", list(looked))]
    NotFound {
        /// The dataset.
        id: &'static str,
        /// The names that were looked for.
        wanted: String,
        /// The folders looked at, in order.
        looked: Vec<PathBuf>,
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
    #[error("`{}` has no column {expected}, found {}", path.display(), literals(found))]
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
        found: String,
        /// Its name in the dataset.
        expected: String,
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
        name_a: String,
        /// Its name in the other.
        name_b: String,
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
    #[error("class folder `{}` has no image (png, jpg or jpeg)", path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
    /// An image has a format that is not read.
    #[error("`{}` has an image format that is not read, expected png, jpg or jpeg", path.display())]
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
            Self::NotFound { id, .. } => {
                format!("`--data` names the folder that holds `{id}`, or that folder itself")
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
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
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

fn list(paths: &[PathBuf]) -> String {
    literals(paths.iter().map(|path| path.display()))
}
