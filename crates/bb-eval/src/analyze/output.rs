//! What an analysis found, written whole or not at all.

use std::path::{Path, PathBuf};

use bb_core::artifact::atomic;
use bb_core::cli::Failure;
use serde_json::Value;

use super::AnalyzeError;
use super::svg::Figure;

/// What an analysis found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// Tables: name and CSV.
    pub tables: Vec<(&'static str, String)>,
    /// Figures: name and what they show.
    pub figures: Vec<(&'static str, Figure)>,
    /// What was looked at, see [`super::Study::facts`].
    pub facts: Value,
    /// The result in a few numbers.
    pub found: Value,
}

/// A folder of results on its way: beside its place until it is whole, and gone if it never is.
pub struct Folder {
    out: PathBuf,
    /// Dropped in this order: first the files, then the folders made for them.
    unfinished: Unfinished,
    _parents: Parents,
}

impl Folder {
    /// Makes the folder in which `out` will lie, and one beside it for what is not whole yet.
    ///
    /// # Errors
    /// [`AnalyzeError::Exists`] if `out` is there, [`AnalyzeError::Out`] if nothing can be made there.
    pub fn begin(out: &Path) -> Result<Self, AnalyzeError> {
        check(out)?;
        let wrong = |source| AnalyzeError::Out {
            path: out.to_owned(),
            source,
        };
        let parent = parent(out);
        let parents = Parents::make(parent).map_err(wrong)?;
        Ok(Self {
            out: out.to_owned(),
            unfinished: Unfinished::new(parent).map_err(wrong)?,
            _parents: parents,
        })
    }

    /// Writes all tables and figures, and `summary.json`.
    ///
    /// # Errors
    /// [`AnalyzeError::Exists`] if the folder has come to be meanwhile; what goes wrong while writing leaves no folder.
    pub fn finish(self, findings: &Findings) -> Result<(), Failure> {
        let folder = &self.unfinished.0;
        for (name, text) in &findings.tables {
            atomic::write(folder.join(name), text)?;
        }
        for (name, figure) in &findings.figures {
            atomic::write(folder.join(name), figure.render())?;
        }
        let mut summary = findings.facts.clone();
        summary["found"] = findings.found.clone();
        let mut text = serde_json::to_string_pretty(&summary).expect("numbers and words");
        text.push('\n');
        atomic::write(folder.join("summary.json"), text)?;
        check(&self.out)?;
        Ok(fs_err::rename(folder, &self.out)?)
    }
}

/// Folders that were made for the results; those that stay empty go again.
struct Parents(Vec<PathBuf>);

impl Parents {
    /// Makes a folder and those above it that are missing.
    fn make(folder: &Path) -> std::io::Result<Self> {
        let missing = folder
            .ancestors()
            .take_while(|path| *path != Path::new("") && path.symlink_metadata().is_err());
        let made = Self(missing.map(Path::to_owned).collect());
        fs_err::create_dir_all(folder)?;
        Ok(made)
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        // The innermost first. One with results in it, or that was never made, cannot be removed, as it should be.
        for folder in &self.0 {
            let _ = fs_err::remove_dir(folder);
        }
    }
}

/// Checks that a folder of results is not there yet.
pub fn check(out: &Path) -> Result<(), AnalyzeError> {
    if out.symlink_metadata().is_ok() {
        let path = out.to_owned();
        return Err(AnalyzeError::Exists { path });
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// A folder that vanishes with all its files unless it is renamed.
struct Unfinished(PathBuf);

impl Unfinished {
    fn new(parent: &Path) -> std::io::Result<Self> {
        // Another analysis may be on its way beside this one, and a killed one may have left its folder.
        for number in 0u32.. {
            let path = parent.join(format!(".tmp-analysis-{}-{number}", std::process::id()));
            match fs_err::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("there are more numbers than folders")
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After the renaming it is not there; otherwise its name says that it can go.
        let _ = fs_err::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn findings(table: &'static str) -> Findings {
        Findings {
            tables: vec![
                ("first.csv", "a\n1\n".to_owned()),
                (table, "b\n".to_owned()),
            ],
            figures: Vec::new(),
            facts: json!({ "analysis": "none" }),
            found: json!({ "x": 1.5 }),
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs_err::read_dir(folder).expect("a folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string())
            .collect::<Result<_, _>>()
            .expect("plain names");
        names.sort();
        names
    }

    fn write(out: &Path, findings: &Findings) -> Result<(), Failure> {
        Folder::begin(out)?.finish(findings)
    }

    #[test]
    fn results_appear_whole_and_never_over_others() {
        let place = tempfile::tempdir().expect("a folder");
        let out = place.path().join("new/results");
        write(&out, &findings("second.csv")).expect("written");
        assert_eq!(names(&out), ["first.csv", "second.csv", "summary.json"]);
        assert_eq!(names(&place.path().join("new")), ["results"]);
        let summary = fs_err::read_to_string(out.join("summary.json")).expect("readable");
        let summary: Value = serde_json::from_str(&summary).expect("JSON");
        assert_eq!(
            summary,
            json!({ "analysis": "none", "found": { "x": 1.5 } })
        );

        let again = write(&out, &findings("third.csv")).expect_err("it is there");
        assert!(again.to_string().ends_with("exists already"), "{again}");
        assert_eq!(again.exit_code(), 2);
        assert_eq!(names(&out).len(), 3);
        // A file counts as well.
        fs_err::write(place.path().join("file"), "").expect("written");
        assert!(check(&place.path().join("file")).is_err());
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing() {
        let place = tempfile::tempdir().expect("a folder");
        let out = place.path().join("new/results");
        let error = write(&out, &findings("no/such/folder.csv")).expect_err("no folder");
        assert!(error.to_string().contains("folder.csv"), "{error}");
        assert_eq!(names(place.path()), Vec::<String>::new());
    }

    #[test]
    fn a_place_that_cannot_be_written_to_is_found_first() {
        let place = tempfile::tempdir().expect("a folder");
        fs_err::write(place.path().join("file"), "").expect("written");
        let out = place.path().join("file/new/results");
        let Err(error) = Folder::begin(&out) else {
            panic!("the folder would lie in a file")
        };
        let expected = format!("cannot make the folder `{}` for the results", out.display());
        assert_eq!(error.to_string(), expected);
        assert_eq!(names(place.path()), ["file"]);
        // What was begun and not finished leaves nothing.
        drop(Folder::begin(&place.path().join("a/b/results")).expect("it can be made"));
        assert_eq!(names(place.path()), ["file"]);
    }
}
