//! The poisoned images of a cell, pixel for pixel, so that every defense and every importer sees the same ones.
//!
//! An attack keeps two such files: `poison_train.safetensors`, the images it replaced in the training split, and
//! `poison_test.safetensors`, the triggered test images on which the attack success rate is measured.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::artifact::{self, Header, HeaderError, Listed};
use crate::cli::{Coded, exit};
use crate::data::{Images, Split};
use crate::files::Links;
use crate::pickle::short;

/// The value of `format` in the metadata of a file.
const FORMAT: &str = "bb-poison-1";
const INDEX: &str = "index";
const IMAGE: &str = "image";
const LABEL: &str = "label";
const ORIGINAL_LABEL: &str = "original_label";
const TENSORS: [&str; 4] = [IMAGE, INDEX, LABEL, ORIGINAL_LABEL];

/// Poisoned images with what they were before; all parts have the same length and order.
#[derive(Clone, Debug, PartialEq)]
pub struct PoisonSet {
    /// Where each image stands in the original split, from 0, each at most once.
    pub indices: Vec<usize>,
    /// The images with their trigger, `[n, h, w, 3]`.
    pub images: Images,
    /// The label that the attacker gives.
    pub labels: Vec<u32>,
    /// The true label.
    pub original_labels: Vec<u32>,
}

/// Why a poison set could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoisonError {
    /// The file could not be read.
    #[error("cannot read the poisoned images `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not hold a poison set.
    #[error("`{}` holds no valid set of poisoned images", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PoisonFault,
    },
}

/// What can be wrong with a poison set. Rows are counted from 0.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoisonFault {
    /// The bytes are no safetensors file.
    #[error("not a safetensors file")]
    Safetensors {
        /// What the reader said.
        #[from]
        source: HeaderError,
    },
    /// The metadata do not say that this is a poison set of the known format.
    #[error("metadata `format` is {}, expected `{FORMAT}`", found.as_ref().map_or("absent".to_owned(), |found| format!("`{found}`")))]
    Format {
        /// What stands there.
        found: Option<String>,
    },
    /// A tensor is not there.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// The tensor.
        name: &'static str,
    },
    /// There is a tensor that does not belong there.
    #[error(
        "tensor `{name}` is unknown, expected `image`, `index`, `label` and `original_label` only"
    )]
    Unknown {
        /// The tensor.
        name: String,
    },
    /// A tensor holds another type of number.
    #[error("tensor `{name}` has type `{found}`, expected `{expected}`")]
    Dtype {
        /// The tensor.
        name: &'static str,
        /// The type it must have.
        expected: Dtype,
        /// The type it has.
        found: Dtype,
    },
    /// A tensor has another shape.
    #[error("tensor `{name}` has shape {found:?}, expected {expected}")]
    Shape {
        /// The tensor.
        name: &'static str,
        /// The shape it must have.
        expected: String,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// An index is negative, or not in the split.
    #[error("index {found} in row {row} is not in a split of {} images", samples.map_or("any number of".to_owned(), |samples| samples.to_string()))]
    Index {
        /// The row.
        row: usize,
        /// The index found there.
        found: i64,
        /// Images in the split, where that is known.
        samples: Option<usize>,
    },
    /// Two rows have the same index.
    #[error("index {index} in row {row} has come before")]
    DuplicateIndex {
        /// The later row.
        row: usize,
        /// The index.
        index: usize,
    },
    /// A label is no class.
    #[error("`{name}` {found} in row {row} is not a class, expected 0 to {last}")]
    Label {
        /// The tensor.
        name: &'static str,
        /// The row.
        row: usize,
        /// The label found there.
        found: i64,
        /// The last class.
        last: u32,
    },
    /// A true label is not that of the image of its index.
    #[error(
        "`original_label` {found} in row {row} is not that of image {index}, which is {expected}"
    )]
    TrueLabel {
        /// The row.
        row: usize,
        /// The index found there.
        index: usize,
        /// The label found there.
        found: u32,
        /// The label of the image.
        expected: u32,
    },
    /// A test image is to be taken for what it shows, so that a good network would count as backdoored.
    #[error(
        "image {index} in row {row} has the true label {label}, which is the attacked one, too"
    )]
    NotAttacked {
        /// The row.
        row: usize,
        /// The index found there.
        index: usize,
        /// Both labels.
        label: u32,
    },
    /// The pictures are not of the images that stand in the rows of their indices.
    #[error(
        "{unlike} of {judged} pictures resemble other images more than the one of their index, such as that of image {index}"
    )]
    Rows {
        /// Pictures that do not resemble their rows.
        unlike: usize,
        /// Pictures that were looked at.
        judged: usize,
        /// The index of the first one.
        index: usize,
    },
}

impl Coded for PoisonFault {
    fn exit_code(&self) -> u8 {
        exit::INPUT
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Rows { .. } => Some(
                "the rows of the dataset stand in another order than those the pictures were made from; `bb-eval zoo import` says which order fits"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

impl Coded for PoisonError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Read { source, .. } => source.exit_code(),
            Self::Invalid { source, .. } => source.exit_code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => None,
            Self::Invalid { source, .. } => source.hint(),
        }
    }
}

impl PoisonSet {
    /// Puts a poison set together and checks that its parts have one length and that no index comes twice.
    pub fn new(
        indices: Vec<usize>,
        images: Images,
        labels: Vec<u32>,
        original_labels: Vec<u32>,
    ) -> Result<Self, PoisonFault> {
        let set = Self {
            indices,
            images,
            labels,
            original_labels,
        };
        set.check_parts()?;
        Ok(set)
    }

    /// Number of poisoned images.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether no image is poisoned.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// A copy of the pictures at `rows`, with what they were.
    ///
    /// # Panics
    /// If a row is not below [`len`](Self::len), or comes twice.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        Self::new(
            rows.iter().map(|&row| self.indices[row]).collect(),
            self.images.select(rows),
            rows.iter().map(|&row| self.labels[row]).collect(),
            rows.iter().map(|&row| self.original_labels[row]).collect(),
        )
        .expect("parts of a set, each once, are a set")
    }

    /// Checks that this set fits a split of `samples` images with labels in `0..classes`.
    pub fn check(&self, samples: usize, classes: usize) -> Result<(), PoisonFault> {
        self.check_parts()?;
        if let Some(row) = self.indices.iter().position(|&index| index >= samples) {
            return Err(PoisonFault::Index {
                row,
                found: signed(self.indices[row]),
                samples: Some(samples),
            });
        }
        for (name, labels) in [
            (LABEL, &self.labels),
            (ORIGINAL_LABEL, &self.original_labels),
        ] {
            if let Some(row) = labels.iter().position(|&label| label as usize >= classes) {
                return Err(PoisonFault::Label {
                    name,
                    row,
                    found: labels[row].into(),
                    last: classes.saturating_sub(1) as u32,
                });
            }
        }
        Ok(())
    }

    /// Checks that this set fits a split with labels in `0..classes`: indices, labels and the size of the images.
    ///
    /// Whether the pictures show what stands at their indices, [`crate::rows::check`] says.
    pub fn check_beside(&self, split: &Split, classes: usize) -> Result<(), PoisonFault> {
        self.check(split.len(), classes)?;
        let (h, w) = (split.images.height(), split.images.width());
        let found = [self.len(), self.images.height(), self.images.width(), 3];
        if (found[1], found[2]) != (h, w) {
            return Err(PoisonFault::Shape {
                name: IMAGE,
                expected: format!("[n, {h}, {w}, 3]"),
                found: found.into(),
            });
        }
        let mut labels = self.indices.iter().zip(&self.original_labels).enumerate();
        match labels.find(|&(_, (&index, &label))| split.labels[index] != label) {
            Some((row, (&index, &found))) => Err(PoisonFault::TrueLabel {
                row,
                index,
                found,
                expected: split.labels[index],
            }),
            None => Ok(()),
        }
    }

    /// Checks that every image is to be taken for what it does not show, as ASR and RA of test images need it.
    pub fn check_attacked(&self) -> Result<(), PoisonFault> {
        let mut pairs = self.labels.iter().zip(&self.original_labels);
        match pairs.position(|(attacked, own)| attacked == own) {
            Some(row) => Err(PoisonFault::NotAttacked {
                row,
                index: self.indices[row],
                label: self.labels[row],
            }),
            None => Ok(()),
        }
    }

    /// The content of a file: safetensors with `index`, `label` and `original_label` (`i64`, `[n]`) and `image` (`u8`,
    /// `[n, h, w, 3]`). Equal sets give equal bytes.
    ///
    /// # Panics
    /// If the parts have different lengths or an index comes twice; [`PoisonSet::new`] refuses that.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.check_parts()
            .expect("a poison set is made by `PoisonSet::new`");
        let (n, h, w) = (self.len(), self.images.height(), self.images.width());
        let indices: Vec<u8> = le_bytes(self.indices.iter().map(|&index| signed(index)));
        let labels: Vec<u8> = le_bytes(self.labels.iter().map(|&label| label.into()));
        let original_labels: Vec<u8> =
            le_bytes(self.original_labels.iter().map(|&label| label.into()));
        let tensors = [
            (INDEX, Dtype::I64, vec![n], &indices[..]),
            (LABEL, Dtype::I64, vec![n], &labels),
            (ORIGINAL_LABEL, Dtype::I64, vec![n], &original_labels),
            (IMAGE, Dtype::U8, vec![n, h, w, 3], self.images.as_bytes()),
        ]
        .map(|(name, dtype, shape, data)| {
            let view = TensorView::new(dtype, shape, data).expect("the parts have one length");
            (name, view)
        });
        let metadata = BTreeMap::from([("format".to_owned(), FORMAT.to_owned())]);
        artifact::to_safetensors(tensors, &metadata).expect("four tensors make a small header")
    }

    /// Reads what [`to_bytes`](Self::to_bytes) has written.
    ///
    /// # Errors
    /// Anything that is not exactly such a file is refused: other tensors, types or shapes, negative numbers, an index
    /// that comes twice. Whether the numbers fit a dataset is for [`check`](Self::check) to say.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PoisonFault> {
        let header = Header::of(bytes)?;
        let data = header.tensors().first().map_or(0, |it| it.place.start);
        Self::read(&header, &mut &bytes[data..])
    }

    /// Reads a file that holds what [`to_bytes`](Self::to_bytes) has written.
    ///
    /// # Errors
    /// [`PoisonError::Read`], or [`PoisonError::Invalid`] for what [`from_bytes`](Self::from_bytes) refuses.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, PoisonError> {
        let path = path.as_ref();
        let read = || {
            let (header, mut file) = Header::open(path, Links::Follow)?;
            Self::read(&header, &mut file)
        };
        read().map_err(|fault| {
            let path = path.to_owned();
            match fault {
                PoisonFault::Safetensors {
                    source: HeaderError::Read(source),
                } => PoisonError::Read { path, source },
                source => PoisonError::Invalid { path, source },
            }
        })
    }

    /// Reads the tensors of a file that stands at the first of them, if the header lists those of a set.
    fn read(header: &Header, reader: &mut impl Read) -> Result<Self, PoisonFault> {
        let [n, h, w] = listed_sizes(header)?;
        let mut content = BTreeMap::new();
        for listed in header.tensors() {
            content.insert(listed.name.as_str(), listed.read(reader)?);
        }
        let mut bytes = |name| content.remove(name).expect("it is listed");
        let images = Images::new(n, h, w, bytes(IMAGE)).expect("as many bytes as listed");
        let mut indices = Vec::with_capacity(n);
        for (row, found) in numbers(&bytes(INDEX)).enumerate() {
            indices.push(usize::try_from(found).map_err(|_| PoisonFault::Index {
                row,
                found,
                samples: None,
            })?);
        }
        let labels = labels(LABEL, &bytes(LABEL))?;
        let original_labels = self::labels(ORIGINAL_LABEL, &bytes(ORIGINAL_LABEL))?;
        Self::new(indices, images, labels, original_labels)
    }

    fn check_parts(&self) -> Result<(), PoisonFault> {
        let n = self.images.len();
        for (name, length) in [
            (INDEX, self.indices.len()),
            (LABEL, self.labels.len()),
            (ORIGINAL_LABEL, self.original_labels.len()),
        ] {
            if length != n {
                return Err(PoisonFault::Shape {
                    name,
                    expected: format!("[{n}]"),
                    found: vec![length],
                });
            }
        }
        let mut seen = BTreeSet::new();
        match self.indices.iter().position(|&index| !seen.insert(index)) {
            Some(row) => Err(PoisonFault::DuplicateIndex {
                row,
                index: self.indices[row],
            }),
            None => Ok(()),
        }
    }
}

/// An index as the file holds it.
fn signed(index: usize) -> i64 {
    i64::try_from(index).expect("no split has 2^63 images")
}

fn le_bytes(numbers: impl Iterator<Item = i64>) -> Vec<u8> {
    numbers.flat_map(i64::to_le_bytes).collect()
}

/// Images, height and width of the set that a header lists: of the known format, with the tensors of a set, all of them
/// of the right type and of one length.
fn listed_sizes(header: &Header) -> Result<[usize; 3], PoisonFault> {
    let format = header.metadata().get("format");
    if format.is_none_or(|format| format != FORMAT) {
        return Err(PoisonFault::Format {
            found: format.map(|format| short(format)),
        });
    }
    let mut names = header.tensors().iter().map(|listed| listed.name.as_str());
    if let Some(name) = names.find(|name| !TENSORS.contains(name)) {
        return Err(PoisonFault::Unknown { name: short(name) });
    }
    let image = listed(header, IMAGE, Dtype::U8)?;
    let &[n, h, w, 3] = image.shape.as_slice() else {
        return Err(shape(IMAGE, "[n, h, w, 3]", image));
    };
    // Without images the other two sizes are bounded by nothing.
    if h.checked_mul(w)
        .is_none_or(|area| area == 0 || area > 1 << 32)
    {
        return Err(shape(IMAGE, "[n, h, w, 3] with pixels", image));
    }
    for name in [INDEX, LABEL, ORIGINAL_LABEL] {
        let found = listed(header, name, Dtype::I64)?;
        if found.shape != [n] {
            return Err(shape(name, &format!("[{n}]"), found));
        }
    }
    Ok([n, h, w])
}

fn listed<'a>(
    header: &'a Header,
    name: &'static str,
    expected: Dtype,
) -> Result<&'a Listed, PoisonFault> {
    let mut tensors = header.tensors().iter();
    let listed = tensors
        .find(|listed| listed.name == name)
        .ok_or(PoisonFault::Missing { name })?;
    let found = listed.dtype;
    if found != expected {
        return Err(PoisonFault::Dtype {
            name,
            expected,
            found,
        });
    }
    Ok(listed)
}

/// The entries of a tensor of type `i64`.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = i64> {
    let (entries, _) = bytes.as_chunks();
    entries.iter().map(|&bytes| i64::from_le_bytes(bytes))
}

fn labels(name: &'static str, bytes: &[u8]) -> Result<Vec<u32>, PoisonFault> {
    numbers(bytes)
        .enumerate()
        .map(|(row, found)| {
            u32::try_from(found).map_err(|_| PoisonFault::Label {
                name,
                row,
                found,
                last: u32::MAX,
            })
        })
        .collect()
}

fn shape(name: &'static str, expected: &str, found: &Listed) -> PoisonFault {
    PoisonFault::Shape {
        name,
        expected: expected.to_owned(),
        found: found.shape.clone(),
    }
}
