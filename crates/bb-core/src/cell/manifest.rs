//! Complete cells: what a manifest says, and whether it is so.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CellError, CellSpec, Kind, MANIFEST, SCHEMA, canonical_json, sorted, stays_within};
use crate::artifact;

/// No manifest comes near: the longest part is a curve of some hundred epochs.
const LONGEST: u64 = 64 << 20;

/// What `manifest.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the layout, [`SCHEMA`].
    pub schema: u32,
    /// The id of the cell, see [`CellSpec::id`].
    pub id: String,
    /// See [`CellSpec::kind`].
    pub kind: Kind,
    /// See [`CellSpec::method`].
    pub method: String,
    /// See [`CellSpec::dataset`].
    pub dataset: String,
    /// See [`CellSpec::arch`].
    pub arch: String,
    /// See [`CellSpec::settings`].
    pub settings: Value,
    /// See [`CellSpec::inputs`].
    pub inputs: BTreeMap<String, String>,
    /// See [`CellSpec::seed`].
    pub seed: u64,
    /// The files, by their path within the cell with `/` between the parts.
    pub files: BTreeMap<String, FileEntry>,
    /// What the method found: scores, curves, choices.
    pub results: Value,
}

/// A file of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl Manifest {
    pub(super) fn new(spec: &CellSpec, files: BTreeMap<String, FileEntry>, results: Value) -> Self {
        Self {
            schema: SCHEMA,
            id: spec.id(),
            kind: spec.kind,
            method: spec.method.clone(),
            dataset: spec.dataset.clone(),
            arch: spec.arch.clone(),
            // The order of keys is an accident of the program, and must not show in the bits.
            settings: sorted(spec.settings.clone()),
            inputs: spec.inputs.clone(),
            seed: spec.seed,
            files,
            results: sorted(results),
        }
    }

    /// What the cell is a result of.
    pub fn spec(&self) -> CellSpec {
        CellSpec {
            kind: self.kind,
            method: self.method.clone(),
            dataset: self.dataset.clone(),
            arch: self.arch.clone(),
            settings: self.settings.clone(),
            inputs: self.inputs.clone(),
            seed: self.seed,
        }
    }

    /// The content of the file.
    pub(super) fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a manifest is plain data");
        text.push('\n');
        text
    }
}

/// A complete cell whose files have been verified.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Its folder.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Cell {
    /// Opens a cell to read from it, given its folder or its `manifest.json`, and verifies every listed file.
    ///
    /// # Errors
    /// [`CellError::NoCell`] or [`CellError::Incomplete`] if there is none; any other one if the manifest or a file is
    /// not what it should be. A damaged cell stays as it is: to have it computed again, remove its folder.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CellError> {
        let (dir, manifest_path) = locate(path.as_ref())?;
        let manifest = read(&dir, &manifest_path)?;
        let expected = manifest.spec().id();
        if manifest.id != expected {
            return Err(CellError::Id {
                path: manifest_path,
                expected,
                found: manifest.id,
            });
        }
        for (name, entry) in &manifest.files {
            verify(&dir, name, entry)?;
        }
        Ok(Self { dir, manifest })
    }

    /// The path of a file of this cell.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The SHA-256 of the manifest as [`canonical_json`], and through it of every listed file: what a cell that builds
    /// on this one names as its input.
    pub fn digest(&self) -> String {
        let manifest = serde_json::to_value(&self.manifest).expect("a manifest is plain data");
        artifact::sha256_hex(canonical_json(&manifest))
    }
}

/// The folder of a cell and its manifest.
fn locate(path: &Path) -> Result<(PathBuf, PathBuf), CellError> {
    let found = match fs_err::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(CellError::NoCell {
                path: path.to_owned(),
            });
        }
        Err(error) => return Err(CellError::io(path)(error)),
    };
    if found.is_dir() {
        return Ok((path.to_owned(), path.join(MANIFEST)));
    }
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) if name == MANIFEST => {
            // The parent of a bare file name is empty.
            let here = dir.as_os_str().is_empty();
            let dir = if here { Path::new(".") } else { dir };
            Ok((dir.to_owned(), path.to_owned()))
        }
        _ => Err(CellError::NoCell {
            path: path.to_owned(),
        }),
    }
}

fn read(dir: &Path, path: &Path) -> Result<Manifest, CellError> {
    /// What every version has.
    #[derive(Deserialize)]
    struct Head {
        schema: u64,
    }

    let mut bytes = Vec::new();
    match fs_err::File::open(path) {
        Ok(file) => file
            .take(LONGEST + 1)
            .read_to_end(&mut bytes)
            .map_err(CellError::io(path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(CellError::Incomplete {
                path: dir.to_owned(),
            });
        }
        Err(error) => return Err(CellError::io(path)(error)),
    };
    let length = bytes.len() as u64;
    if length > LONGEST {
        return Err(CellError::TooLong {
            path: path.to_owned(),
            bytes: length,
            limit: LONGEST,
        });
    }
    let invalid = |field: String, source| CellError::Manifest {
        path: path.to_owned(),
        field,
        source,
    };
    // Another version may differ in everything else, so this is looked at first.
    let head: Head =
        serde_json::from_slice(&bytes).map_err(|source| invalid(String::new(), source))?;
    if head.schema != u64::from(SCHEMA) {
        return Err(CellError::Schema {
            path: path.to_owned(),
            found: head.schema,
        });
    }
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&bytes))
        .map_err(|error| invalid(error.path().to_string(), error.into_inner()))
}

/// Checks that a listed file is a plain file of the cell with the listed content.
fn verify(dir: &Path, name: &str, entry: &FileEntry) -> Result<(), CellError> {
    if !stays_within(name) {
        return Err(CellError::FileName {
            path: dir.to_owned(),
            name: name.to_owned(),
        });
    }
    let mut path = dir.to_owned();
    let mut parts = name.split('/').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        // A link could lead anywhere, also in the middle of the path.
        let found = match fs_err::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CellError::Missing { path });
            }
            Err(error) => return Err(CellError::io(&path)(error)),
        };
        let fits = if parts.peek().is_some() {
            found.is_dir()
        } else {
            found.is_file()
        };
        if !fits {
            return Err(CellError::NotAFile { path });
        }
    }
    let (length, digest) = artifact::measure(&path)?;
    if length != entry.bytes {
        return Err(CellError::Length {
            path,
            expected: entry.bytes,
            found: length,
        });
    }
    if digest != entry.sha256 {
        return Err(CellError::Digest {
            path,
            expected: entry.sha256.clone(),
            found: digest,
        });
    }
    Ok(())
}
