//! The official files of CIFAR-10 and CIFAR-100, binary or Python's, unpacked or in the archives they come in.
//!
//! Read here and not through candle-datasets, whose reader goes through f32 tensors, does not say which file is short
//! and knows the binary files only; with the feature `hub` a test holds the two to the same result.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::images::{CHANNELS, Images, Split};
use super::{DataError, DatasetSpec, Decoded, Facts, classes, pickled};
use crate::files::{self, Links};

const PLANE: usize = 32 * 32;
const PIXELS: usize = PLANE * CHANNELS;
/// Most bytes of a file with names.
const MOST_NAMES: u64 = 1 << 20;
/// Most bytes that an archive may unpack to: the largest one has 178 MiB, and more if Python 3 has written it.
const MOST_UNPACKED: u64 = 512 << 20;

/// One form in which a dataset is published.
#[derive(Debug)]
pub(super) struct Form {
    /// The dataset.
    id: &'static str,
    /// The folder that the archive makes.
    pub(super) folder: &'static str,
    pub(super) archive: &'static str,
    /// The files of each split, in the order of their images.
    train: &'static [&'static str],
    test: &'static [&'static str],
    /// Rows of each file of the train split; those of the test split have 10,000.
    train_rows: usize,
    kind: Kind,
    /// The file with the names of the classes.
    names: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Rows of some bytes of labels, the last of which counts, and three planes.
    Binary { labels: usize },
    /// Pickled dictionaries with an array `data` and these labels and names.
    Python {
        labels: &'static str,
        names: &'static str,
    },
}

const TEST_ROWS: usize = 10_000;

/// All forms; of those that lie in one folder the first counts.
pub(super) static FORMS: [Form; 4] = [
    Form {
        id: "cifar10",
        folder: "cifar-10-batches-bin",
        archive: "cifar-10-binary.tar.gz",
        train: &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        test: &["test_batch.bin"],
        train_rows: 10_000,
        kind: Kind::Binary { labels: 1 },
        names: "batches.meta.txt",
    },
    Form {
        id: "cifar10",
        folder: "cifar-10-batches-py",
        archive: "cifar-10-python.tar.gz",
        train: &[
            "data_batch_1",
            "data_batch_2",
            "data_batch_3",
            "data_batch_4",
            "data_batch_5",
        ],
        test: &["test_batch"],
        train_rows: 10_000,
        kind: Kind::Python {
            labels: "labels",
            names: "label_names",
        },
        names: "batches.meta",
    },
    Form {
        id: "cifar100",
        folder: "cifar-100-binary",
        archive: "cifar-100-binary.tar.gz",
        train: &["train.bin"],
        test: &["test.bin"],
        train_rows: 50_000,
        kind: Kind::Binary { labels: 2 },
        names: "fine_label_names.txt",
    },
    Form {
        id: "cifar100",
        folder: "cifar-100-python",
        archive: "cifar-100-python.tar.gz",
        train: &["train"],
        test: &["test"],
        train_rows: 50_000,
        kind: Kind::Python {
            labels: "fine_labels",
            names: "fine_label_names",
        },
        names: "meta",
    },
];

impl Form {
    /// The forms of a dataset.
    pub(super) fn of(id: &str) -> impl Iterator<Item = &'static Form> {
        FORMS.iter().filter(move |form| form.id == id)
    }

    /// Both splits in a folder that has a file of this form; the others may be missing, which reading tells.
    pub(super) fn in_folder(&'static self, folder: &Path) -> Option<(Batches, Batches)> {
        let mut names = self.train.iter().chain(self.test);
        names.any(|name| folder.join(name).is_file()).then(|| {
            let split = |names: &'static [&'static str], rows| Batches {
                form: self,
                names,
                rows,
                archive: false,
                files: names.iter().map(|name| folder.join(name)).collect(),
            };
            (
                split(self.train, self.train_rows),
                split(self.test, TEST_ROWS),
            )
        })
    }

    /// Both splits from the archive in a folder, if it is there.
    pub(super) fn in_archive(&'static self, folder: &Path) -> Option<(Batches, Batches)> {
        let path = folder.join(self.archive);
        path.is_file().then(|| {
            let split = |names, rows| Batches {
                form: self,
                names,
                rows,
                archive: true,
                files: vec![path.clone()],
            };
            (
                split(self.train, self.train_rows),
                split(self.test, TEST_ROWS),
            )
        })
    }

    fn is_binary(&self) -> bool {
        matches!(self.kind, Kind::Binary { .. })
    }

    /// Most bytes of a file with `rows` rows. What Python 3 writes for Python 2 has two bytes for most pixels.
    fn most_bytes(&self, rows: usize) -> u64 {
        let bytes = match self.kind {
            Kind::Binary { labels } => rows * (labels + PIXELS),
            Kind::Python { .. } => rows * (2 * PIXELS + 256) + (1 << 16),
        };
        bytes as u64
    }
}

/// The files of one split.
#[derive(Debug)]
pub(super) struct Batches {
    form: &'static Form,
    names: &'static [&'static str],
    /// Rows of each file, at most.
    rows: usize,
    archive: bool,
    /// The files themselves, or the archive alone.
    pub(super) files: Vec<PathBuf>,
}

/// What a split needs of an archive.
struct Unpacked {
    /// The files of the split, in their order.
    files: Vec<Vec<u8>>,
    /// The file with the names of the classes, if it is there.
    names: Option<Vec<u8>>,
}

impl Batches {
    /// Reads all rows, or the first `limit`.
    pub(super) fn read(
        &self,
        spec: &DatasetSpec,
        limit: Option<usize>,
    ) -> Result<Decoded, DataError> {
        let limit = limit.unwrap_or(usize::MAX);
        let mut rows = Rows {
            spec,
            limit,
            labels: Vec::new(),
            pixels: Vec::new(),
        };
        let class_names = if self.archive {
            let archive = &self.files[0];
            let Unpacked { files, names } = self.unpacked(archive)?;
            for (name, bytes) in self.names.iter().zip(&files) {
                // Inside an archive the member is what a message has to name.
                rows.add(self.form, &archive.join(name), bytes)?;
            }
            names.map(|bytes| self.class_names(&archive.join(self.form.names), &bytes))
        } else {
            self.check_lengths()?;
            for path in &self.files {
                if rows.labels.len() < limit {
                    let bytes = self.load(path)?;
                    rows.add(self.form, path, &bytes)?;
                }
            }
            let path = self.files[0].with_file_name(self.form.names);
            let there = path.is_file();
            there.then(|| self.class_names(&path, &read_at_most(&path, MOST_NAMES)?))
        };
        Ok(Decoded {
            split: Split {
                images: Images::new(rows.labels.len(), spec.height, spec.width, rows.pixels)?,
                labels: rows.labels.into(),
            },
            facts: Facts {
                class_names: class_names.transpose()?,
                ..Facts::default()
            },
        })
    }

    /// Checks all files before one of them is read, so that a huge file costs no memory and a missing one no time.
    fn check_lengths(&self) -> Result<(), DataError> {
        let most = self.form.most_bytes(self.rows);
        for path in &self.files {
            let found = fs_err::metadata(path).map_err(DataError::io(path))?.len();
            if found > most || (self.form.is_binary() && found != most) {
                return Err(self.wrong_length(path, found));
            }
        }
        Ok(())
    }

    fn wrong_length(&self, path: &Path, found: u64) -> DataError {
        let (path, expected) = (path.to_path_buf(), self.form.most_bytes(self.rows));
        if self.form.is_binary() {
            DataError::BinaryLength {
                path,
                expected,
                found,
            }
        } else {
            DataError::FileSize {
                path,
                limit: expected,
                found,
            }
        }
    }

    fn load(&self, path: &Path) -> Result<Vec<u8>, DataError> {
        let bytes = read_at_most(path, self.form.most_bytes(self.rows))?;
        if self.form.is_binary() && bytes.len() as u64 != self.form.most_bytes(self.rows) {
            return Err(self.wrong_length(path, bytes.len() as u64)); // it has changed in between
        }
        Ok(bytes)
    }

    /// The files of the split in an archive, in their order, and the file with names if it is there.
    fn unpacked(&self, archive: &Path) -> Result<Unpacked, DataError> {
        let failed = |source| DataError::Archive {
            path: archive.to_path_buf(),
            source,
        };
        let file = files::open(archive, Links::Follow).map_err(DataError::io(archive))?;
        let unpacked = GzDecoder::new(file).take(MOST_UNPACKED);
        let mut files: Vec<Option<Vec<u8>>> = self.names.iter().map(|_| None).collect();
        let mut names = None;
        // Raw, since a name as long as the archive would be kept whole; those of CIFAR need no extension.
        let mut archive_files = tar::Archive::new(unpacked);
        for entry in archive_files.entries().map_err(failed)?.raw(true) {
            let mut entry = entry.map_err(failed)?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path().map_err(failed)?.into_owned();
            let mut parts = path.components().rev().filter_map(|part| match part {
                std::path::Component::Normal(name) => name.to_str(),
                _ => None,
            });
            let (Some(name), Some(folder)) = (parts.next(), parts.next()) else {
                continue;
            };
            if folder != self.form.folder {
                continue;
            }
            let wanted = self.names.iter().position(|wanted| *wanted == name);
            let (place, most) = match wanted {
                Some(i) => (&mut files[i], self.form.most_bytes(self.rows)),
                None if name == self.form.names => (&mut names, MOST_NAMES),
                None => continue,
            };
            let found = entry.size();
            if found > most || (wanted.is_some() && self.form.is_binary() && found != most) {
                return Err(self.wrong_length(&archive.join(name), found));
            }
            let mut bytes = Vec::new();
            (&mut entry)
                .take(most)
                .read_to_end(&mut bytes)
                .map_err(failed)?;
            if bytes.len() as u64 != found {
                return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
            }
            *place = Some(bytes);
            if names.is_some() && files.iter().all(Option::is_some) {
                break;
            }
        }
        let missing = |name: &str| DataError::NoMember {
            path: archive.to_path_buf(),
            name: format!("{}/{name}", self.form.folder),
        };
        let files = files.into_iter().zip(self.names);
        let files = files.map(|(file, name)| file.ok_or_else(|| missing(name)));
        Ok(Unpacked {
            files: files.collect::<Result<_, _>>()?,
            names,
        })
    }

    fn class_names(&self, path: &Path, bytes: &[u8]) -> Result<Vec<String>, DataError> {
        let names = match self.form.kind {
            Kind::Binary { .. } => {
                let text = String::from_utf8_lossy(bytes);
                let lines = text.lines().map(str::trim);
                lines
                    .filter(|line| !line.is_empty())
                    .map(str::to_owned)
                    .collect()
            }
            Kind::Python { names, .. } => {
                pickled::names(bytes, names).map_err(|source| DataError::Pickle {
                    path: path.to_path_buf(),
                    source,
                })?
            }
        };
        classes::check_count(path, &names, super::spec(self.form.id)?.classes)?;
        classes::check_order(self.form.id, path, &names)?;
        Ok(names)
    }
}

/// What has been read so far.
struct Rows<'a> {
    spec: &'a DatasetSpec,
    limit: usize,
    labels: Vec<u32>,
    pixels: Vec<u8>,
}

impl Rows<'_> {
    /// Adds the rows of a file until there are enough.
    fn add(&mut self, form: &Form, path: &Path, bytes: &[u8]) -> Result<(), DataError> {
        match form.kind {
            Kind::Binary { labels } => {
                for (row, record) in bytes.chunks_exact(labels + PIXELS).enumerate() {
                    self.push(path, row, i64::from(record[labels - 1]), &record[labels..])?;
                }
            }
            Kind::Python { labels, .. } => {
                let fault = |source| DataError::Pickle {
                    path: path.to_path_buf(),
                    source,
                };
                let batch = pickled::batch(bytes, labels).map_err(fault)?;
                let planes = batch.pixels.chunks_exact(PIXELS);
                for (row, (label, planes)) in batch.labels.iter().zip(planes).enumerate() {
                    self.push(path, row, *label, planes)?;
                }
            }
        }
        Ok(())
    }

    /// Adds a row of three planes, unless there are enough.
    fn push(
        &mut self,
        path: &Path,
        row: usize,
        label: i64,
        planes: &[u8],
    ) -> Result<(), DataError> {
        if self.labels.len() >= self.limit {
            return Ok(());
        }
        let classes = self.spec.classes;
        let known = u32::try_from(label)
            .ok()
            .filter(|l| (*l as usize) < classes);
        self.labels.push(known.ok_or_else(|| DataError::Label {
            path: path.to_path_buf(),
            row,
            found: label,
            classes,
        })?);
        let (red, rest) = planes.split_at(PLANE);
        let (green, blue) = rest.split_at(PLANE);
        for ((r, g), b) in red.iter().zip(green).zip(blue) {
            self.pixels.extend([*r, *g, *b]);
        }
        Ok(())
    }
}

/// The bytes of a file that has at most `most`.
pub(super) fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let file = files::open(path, Links::Follow).map_err(DataError::io(path))?;
    let found = file.metadata().map_err(DataError::io(path))?.len();
    if found > most {
        return Err(DataError::FileSize {
            path: path.to_path_buf(),
            limit: most,
            found,
        });
    }
    file.take(most)
        .read_to_end(&mut bytes)
        .map_err(DataError::io(path))?;
    Ok(bytes)
}
