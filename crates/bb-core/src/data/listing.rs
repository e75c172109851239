//! Image files and their labels: what class folders and tables of file names come down to.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::batches::read_at_most;
use super::decode::{self, Tally};
use super::images::{CHANNELS, Images, Split, byte_count};
use super::{DataError, Decoded, Facts, Note, budget};

/// Formats that are read, by the ending of the name.
const READ: [&str; 10] = [
    "bmp", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm",
];
/// Formats that are images but not read; leaving them out silently would give a smaller dataset than the user has.
const NOT_READ: [&str; 8] = ["avif", "gif", "heic", "jp2", "jxl", "tif", "tiff", "webp"];
/// Folders of other programs that do not begin with a dot, in lower case.
const FOREIGN: [&str; 5] = ["__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin"];
/// Most bytes of an image file; one with the most pixels that are read has fewer, however badly it is compressed.
const MOST_BYTES: u64 = 128 << 20;

/// The files of one split, in order, with their classes.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: Vec<PathBuf>,
    pub(super) labels: Vec<u32>,
}

/// What lies among the images and is none.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    hidden: usize,
    /// Files by the ending of their name.
    others: BTreeMap<String, usize>,
}

impl Listing {
    pub(super) fn push(&mut self, file: PathBuf, label: u32) {
        self.files.push(file);
        self.labels.push(label);
    }

    /// Adds the images below a class folder, in the order of their paths, and returns their number.
    ///
    /// Links to files are followed, links to folders are not.
    pub(super) fn add(
        &mut self,
        folder: &Path,
        label: u32,
        left_out: &mut LeftOut,
    ) -> Result<usize, DataError> {
        let before = self.files.len();
        walk(folder, &mut self.files, left_out)?;
        self.files[before..].sort();
        self.labels.resize(self.files.len(), label);
        Ok(self.files.len() - before)
    }

    /// Height and width of the first image, from its header; nothing without one.
    pub(super) fn size(&self) -> Option<Result<(usize, usize), DataError>> {
        let first = self.files.first()?;
        Some(read(first).and_then(|bytes| decode::size(&bytes).map_err(unusable(first))))
    }

    /// Decodes the images, or the first `limit`, resized to `h` by `w`.
    pub(super) fn load(
        &self,
        h: usize,
        w: usize,
        limit: Option<usize>,
    ) -> Result<Decoded, DataError> {
        let n = self.files.len().min(limit.unwrap_or(usize::MAX));
        let image_bytes = h * w * CHANNELS;
        self.check_proportion(n, h, w)?;
        let mut pixels = zeros(n, h, w)?;
        let tally = Tally::default();
        let fault = pixels
            .par_chunks_exact_mut(image_bytes)
            .zip(&self.files)
            .map(|(out, path)| {
                let bytes = read(path)?;
                tally.files(bytes.len() as u64);
                decode::rgb_into(&bytes, h, w, out, &tally).map_err(unusable(path))
            })
            .find_map_first(Result::err);
        if let Some(fault) = fault {
            return Err(fault);
        }
        Ok(Decoded {
            split: Split {
                images: Images::new(n, h, w, pixels)?,
                labels: self.labels.iter().take(n).copied().collect(),
            },
            facts: Facts::counted(&tally),
        })
    }
}

/// Memory for `n` images, or an error where a plain allocation would end the program.
pub(super) fn zeros(n: usize, h: usize, w: usize) -> Result<Vec<u8>, DataError> {
    let too_large = || DataError::TooLarge { n, h, w };
    let bytes = byte_count(n, h, w).ok_or_else(too_large)?;
    let mut pixels = Vec::new();
    pixels.try_reserve_exact(bytes).map_err(|_| too_large())?;
    pixels.resize(bytes, 0);
    Ok(pixels)
}

impl Listing {
    /// Refuses the first `n` images where a large one in front makes more of small ones than their files are worth.
    fn check_proportion(&self, n: usize, h: usize, w: usize) -> Result<(), DataError> {
        let image = (h * w * CHANNELS) as u64;
        let needed = (n as u64).saturating_mul(image);
        if needed <= budget::most(0) {
            return Ok(());
        }
        let length = |path: &PathBuf| fs_err::metadata(path).map_or(0, |facts| facts.len());
        let most = budget::most(self.files[..n].par_iter().map(length).sum());
        if needed <= most {
            return Ok(());
        }
        Err(DataError::Proportion {
            path: self.files[0].parent().unwrap_or(Path::new("")).to_owned(),
            found: n as u64,
            most: most / image,
            h,
            w,
        })
    }
}

impl LeftOut {
    /// A line that counts it, if there is something.
    pub(super) fn note(&self) -> Option<Note> {
        let count = |n: usize, what: &str| match n {
            1 => format!("1 {what}"),
            _ => format!("{n} {what}s"),
        };
        let mut parts = Vec::new();
        let files = self.others.values().sum();
        if files > 0 {
            let kinds = self.others.iter().map(|(ending, n)| match &**ending {
                "" => format!("{n} without an ending"),
                ending => format!("{n} `.{ending}`"),
            });
            let kinds = kinds.collect::<Vec<_>>().join(", ");
            let what = match files {
                1 => "that is no image",
                _ => "that are no images",
            };
            parts.push(format!("{} {what} ({kinds})", count(files, "file")));
        }
        if self.hidden > 0 {
            parts.push(
                count(self.hidden, "hidden file or folder")
                    .replace("file or folders", "files or folders"),
            );
        }
        (!parts.is_empty()).then(|| Note::Info(format!("left out {}", parts.join(" and "))))
    }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>, left_out: &mut LeftOut) -> Result<(), DataError> {
    for entry in fs_err::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        let path = entry.path();
        if is_hidden(&entry.file_name()) {
            left_out.hidden += 1;
            continue;
        }
        if entry.file_type().map_err(DataError::io(&path))?.is_dir() {
            walk(&path, files, left_out)?;
            continue;
        }
        let ending = path.extension().and_then(OsStr::to_str);
        let ending = ending.unwrap_or_default().to_ascii_lowercase();
        if NOT_READ.contains(&&*ending) {
            return Err(DataError::UnsupportedImage { path });
        }
        // A link into nowhere is kept, so that reading it names it; a pipe would never end.
        let special = fs_err::metadata(&path).is_ok_and(|facts| !facts.is_file());
        if READ.contains(&&*ending) && !special {
            files.push(path);
        } else {
            *left_out.others.entry(ending).or_default() += 1;
        }
    }
    Ok(())
}

/// Whether a name is what programs leave beside people's files: `.ipynb_checkpoints`, `._cat.png`, `@eaDir`.
pub(super) fn is_hidden(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes.starts_with(b".")
        || FOREIGN
            .iter()
            .any(|foreign| bytes.eq_ignore_ascii_case(foreign.as_bytes()))
}

/// The names of the folders in a folder, sorted as text, without hidden ones.
pub(super) fn folders(folder: &Path) -> Result<Vec<OsString>, DataError> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        if !is_hidden(&entry.file_name()) && entry.path().is_dir() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    Ok(names)
}

/// What lies in a folder, for people: names in order, those of folders with a slash.
pub(super) fn entries(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        if !is_hidden(&entry.file_name()) {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
        }
    }
    names.sort();
    Ok(names)
}

/// The folder in `parent` with one of these names in lower case, in their order; the exact spelling goes first.
pub(super) fn named(parent: &Path, names: &[&str]) -> Option<PathBuf> {
    let found = folders(parent).ok()?;
    let found = |fits: &dyn Fn(&OsStr) -> bool| {
        let name = found.iter().find(|name| fits(name))?;
        Some(parent.join(name))
    };
    names.iter().find_map(|wanted| {
        found(&|name| name == *wanted).or_else(|| found(&|name| name.eq_ignore_ascii_case(wanted)))
    })
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    read_at_most(path, MOST_BYTES)
}

fn unusable(path: &Path) -> impl FnOnce(decode::ImageFault) -> DataError {
    let path = path.to_path_buf();
    move |source| DataError::ImageFile { path, source }
}
