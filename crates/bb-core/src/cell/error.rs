//! Every way in which a cell can fail.

use std::io;
use std::path::{Path, PathBuf};

use super::contract::Wrong;
use super::{CKPT, CONFIG, Holder, LOCK, LOG, SCHEMA};
use crate::artifact::ArtifactError;
use crate::cli::{Coded, exit};
use crate::files::FileError;

/// Why a cell could not be opened, worked on or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CellError {
    /// A name in the specification cannot be part of a path.
    #[error("`{field}` is `{found}`, expected letters, digits, `.`, `_` and `-`")]
    Name {
        /// The field of the specification.
        field: &'static str,
        /// What stands there.
        found: String,
    },
    /// A file or folder could not be used.
    #[error("cannot access `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be written or read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Another process works on the cell.
    #[error("`{}` is locked by {}", path.display(), holder.as_ref().map_or("another process".to_owned(), Holder::to_string))]
    Locked {
        /// The folder of the cell.
        path: PathBuf,
        /// The process, where it could be found out.
        holder: Option<Holder>,
    },
    /// The filesystem cannot say whether another process works on the cell.
    #[error("cannot lock `{}`: its filesystem has no file locks (`flock`)", path.display())]
    NoLocks {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no cell at this place.
    #[error("`{}` is neither the folder of a cell nor its `manifest.json`", path.display())]
    NoCell {
        /// The place.
        path: PathBuf,
    },
    /// Several cells have ids that begin alike.
    #[error("{} cells have ids that begin with `{name}`{}", found.len(), listed(found))]
    Several {
        /// What was given.
        name: String,
        /// Their folders.
        found: Vec<PathBuf>,
    },
    /// The folder has no manifest.
    #[error("`{}` has no `manifest.json`, so it is not a complete cell", path.display())]
    Incomplete {
        /// The folder.
        path: PathBuf,
    },
    /// A file of the cell is none, or longer than any that is written.
    #[error("{0}")]
    File(#[from] FileError),
    /// The manifest is not what a manifest should be.
    #[error("`{}` is not a valid manifest{}", path.display(), at(field))]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The place within it, empty for the whole.
        field: String,
        /// What is wrong there.
        source: serde_json::Error,
    },
    /// A field of the manifest that every cell of its kind has is not what it must be.
    #[error("`{}` is {} in `{}`, expected {}", wrong.field, wrong.found.as_deref().unwrap_or("missing"), path.display(), wrong.expected)]
    Field {
        /// The manifest.
        path: PathBuf,
        /// The field, and what is wrong with it.
        wrong: Wrong,
    },
    /// A manifest does not say what was measured.
    #[error("`{}` has no valid `results.{field}`", path.display())]
    Results {
        /// The manifest.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The record of a failure is not what it should be.
    #[error("`{}` is not a valid record of a failure{}", path.display(), at(field))]
    Record {
        /// The record.
        path: PathBuf,
        /// The place within it, empty for the whole.
        field: String,
        /// What is wrong there.
        source: serde_json::Error,
    },
    /// The manifest has been written by another version.
    #[error("`{}` has schema {found}, expected {SCHEMA}", path.display())]
    Schema {
        /// The manifest.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// The id does not follow from what the cell is a result of.
    #[error("`{}` has id `{found}`, expected `{expected}`", path.display())]
    Id {
        /// The manifest.
        path: PathBuf,
        /// The id that follows.
        expected: String,
        /// The id that stands there.
        found: String,
    },
    /// A file name leads out of the cell, or cannot be one everywhere.
    #[error("`{name}` is not the name of a file within the cell `{}`", path.display())]
    FileName {
        /// The folder of the cell.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A file name that the cell needs for itself.
    #[error("`{name}` is a name that the cell `{}` uses itself", path.display())]
    Reserved {
        /// The folder of the cell.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A line that is more than one.
    #[error("a line for `{}` has a line break within", path.display())]
    LineBreak {
        /// The file it was for.
        path: PathBuf,
    },
    /// A file that is needed is none of the cell's.
    #[error("`{}` does not list `{name}`", path.display())]
    NotListed {
        /// The manifest.
        path: PathBuf,
        /// The file.
        name: &'static str,
    },
    /// A listed file is not there.
    #[error("`{}` is listed in the manifest but missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Something in the cell is neither file nor folder, or one in place of the other.
    #[error("`{}` is not a plain file", path.display())]
    NotAFile {
        /// What it is about.
        path: PathBuf,
    },
    /// A link, which could lead anywhere.
    #[error("`{}` is a link, and nothing is read or written through links below the folder of results", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// A listed file has another length.
    #[error("`{}` has {found} bytes, expected {expected}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// The length in the manifest.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
    /// A listed file has another content.
    #[error("`{}` has sha256 `{found}`, expected `{expected}`", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// The digest in the manifest.
        expected: String,
        /// The digest of the file.
        found: String,
    },
}

impl CellError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.downcast() {
            Ok(fault) => Self::File(fault),
            Err(source) => Self::Io { path, source },
        }
    }
}

impl Coded for CellError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Locked { .. } => exit::TRY_AGAIN,
            Self::Name { .. } | Self::Several { .. } => exit::USAGE,
            Self::Io { source, .. } => source.exit_code(),
            Self::Artifact(error) => error.exit_code(),
            // The program chooses these names and lines itself.
            Self::Reserved { .. } | Self::LineBreak { .. } => exit::BUG,
            _ => exit::INPUT,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Locked { .. } => "wait for that process, or choose another output folder",
            Self::NoLocks { .. } => {
                "give a folder on another filesystem, such as a local disk, with `--store`"
            }
            Self::Link { .. } => {
                "put the folder or the file itself in its place; the folder that `--store` names may be a link"
            }
            Self::Record { .. } => "remove the file to have the cell computed again",
            Self::Several { .. } => "give more digits of the id, or the folder",
            Self::NoCell { path } => return of_others(path).map(str::to_owned),
            Self::Incomplete { path } => match of_others(path) {
                Some(hint) => hint,
                None if BEGUN.iter().any(|name| path.join(name).exists()) => {
                    "run the command that makes this cell again, and it resumes"
                }
                None => {
                    "it was never one: name the folder that holds a `manifest.json`, as in `runs/attack/<method>/<dataset>-<arch>/<id>`"
                }
            },
            Self::NotListed { .. } => {
                "only files with a digest in the manifest are read; name a cell that has it"
            }
            Self::Schema { .. } => "make the cell again with this version",
            Self::File(_)
            | Self::Manifest { .. }
            | Self::Id { .. }
            | Self::Missing { .. }
            | Self::NotAFile { .. }
            | Self::Length { .. }
            | Self::Digest { .. } => {
                "the cell was changed after it was complete; remove its folder to have it made again"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// The files that every cell has once its run has started.
const BEGUN: [&str; 4] = [LOCK, LOG, CKPT, CONFIG];

/// What to do with a file or a folder that another program left.
fn of_others(path: &Path) -> Option<&'static str> {
    let end = path.extension().and_then(|end| end.to_str());
    let is_network = matches!(end, Some("pt" | "pth" | "ckpt" | "safetensors")) && path.is_file();
    (is_network || path.join("attack_result.pt").is_file())
        .then_some("make a cell of it with `bb-eval zoo import`, and name that one")
}

/// The first of some folders, one line each.
fn listed(found: &[PathBuf]) -> String {
    let mut text = String::new();
    for path in found.iter().take(10) {
        text.push_str("\n  ");
        text.push_str(&path.display().to_string());
    }
    text
}

fn at(field: &str) -> String {
    if matches!(field, "" | ".") {
        String::new()
    } else {
        format!(" at `{field}`")
    }
}
