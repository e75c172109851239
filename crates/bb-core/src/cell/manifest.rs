//! Complete cells: what a manifest says, and whether it is so.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CellError, CellSpec, Kind, MANIFEST, SCHEMA, canonical_json, sorted, stays_within};
use crate::artifact::{self, LARGEST_FILE};
use crate::files::{self, FileError, Links};
use crate::json;

/// Most bytes of a manifest. Those of the benchmark's full grid have up to 20 thousand; the longest part is a list of
/// candidates, each with its scores and notes.
const LONGEST: u64 = 4 << 20;
/// The field of [`Manifest::digest`].
const DIGEST: &str = "digest";

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
    /// The SHA-256 of all of this but itself as [`canonical_json`], so that no number changes unseen; the manifests of
    /// earlier versions lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
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
        let mut manifest = Self {
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
            digest: None,
        };
        manifest.digest = Some(manifest.content());
        manifest
    }

    /// The digest that the content has, whatever stands in the field for it: the manifests of earlier versions have the
    /// same.
    fn content(&self) -> String {
        let mut manifest = serde_json::to_value(self).expect("a manifest is plain data");
        if let Value::Object(fields) = &mut manifest {
            fields.shift_remove(DIGEST);
        }
        artifact::sha256_hex(canonical_json(&manifest))
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
        let spec = manifest.spec();
        // Names that no cell is made with could be formulas, or say to a terminal what it obeys.
        spec.check_names()?;
        let expected = spec.id();
        if manifest.id != expected {
            return Err(CellError::Id {
                path: manifest_path,
                expected,
                found: manifest.id,
            });
        }
        if let Some(expected) = &manifest.digest {
            let found = manifest.content();
            if *expected != found {
                return Err(CellError::Digest {
                    path: manifest_path,
                    expected: expected.clone(),
                    found,
                });
            }
        }
        for (name, entry) in &manifest.files {
            verify(&dir, name, entry)?;
        }
        Ok(Self { dir, manifest })
    }

    /// The path of a file of this cell, listed or not; what is read as a result has to be [listed](Self::listed).
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The path of a file that the manifest lists, which was verified when the cell was loaded.
    ///
    /// # Errors
    /// [`CellError::NotListed`]: what lies there may be anybody's.
    pub fn listed(&self, name: &'static str) -> Result<PathBuf, CellError> {
        if self.manifest.files.contains_key(name) {
            return Ok(self.file(name));
        }
        Err(CellError::NotListed {
            path: self.file(MANIFEST),
            name,
        })
    }

    /// The SHA-256 of what the manifest says as [`canonical_json`], and through it of every listed file: what a cell
    /// that builds on this one names as its input. See [`Manifest::digest`].
    pub fn digest(&self) -> String {
        self.manifest.content()
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

    let bytes = match files::read(path, Links::Refuse, LONGEST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(CellError::Incomplete {
                path: dir.to_owned(),
            });
        }
        Err(error) => return Err(CellError::io(path)(error)),
    };
    let invalid = |field: String, source| CellError::Manifest {
        path: path.to_owned(),
        field,
        source,
    };
    // Another version may differ in everything else, so this is looked at first.
    let head: Head = json::from_slice(&bytes, json::MOST_VALUES)
        .map_err(|source| invalid(String::new(), source))?;
    if head.schema != u64::from(SCHEMA) {
        return Err(CellError::Schema {
            path: path.to_owned(),
            found: head.schema,
        });
    }
    json::parse(&bytes, json::MOST_VALUES)
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
    // A file can have a hole of any size, so its length is looked at before its content.
    let length = fs_err::symlink_metadata(&path)
        .map_err(CellError::io(&path))?
        .len();
    if length > LARGEST_FILE {
        let limit = LARGEST_FILE;
        return Err(FileError::TooLong { path, limit }.into());
    }
    if length != entry.bytes {
        return Err(CellError::Length {
            path,
            expected: entry.bytes,
            found: length,
        });
    }
    let (_, digest) = artifact::measure(&path, Links::Refuse)?;
    if digest != entry.sha256 {
        return Err(CellError::Digest {
            path,
            expected: entry.sha256.clone(),
            found: digest,
        });
    }
    Ok(())
}
