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

impl Findings {
    /// Makes the folder `out` with all tables and figures, and `summary.json`.
    ///
    /// # Errors
    /// [`AnalyzeError::Exists`] if it is there; what goes wrong while writing leaves no folder.
    pub fn write(&self, out: &Path) -> Result<(), Failure> {
        check(out)?;
        let parent = parent(out);
        fs_err::create_dir_all(parent)?;
        let unfinished = Unfinished::new(parent)?;
        for (name, text) in &self.tables {
            atomic::write(unfinished.0.join(name), text)?;
        }
        for (name, figure) in &self.figures {
            atomic::write(unfinished.0.join(name), figure.render())?;
        }
        let mut summary = self.facts.clone();
        summary["found"] = self.found.clone();
        let mut text = serde_json::to_string_pretty(&summary).expect("numbers and words");
        text.push('\n');
        atomic::write(unfinished.0.join("summary.json"), text)?;
        check(out)?;
        Ok(fs_err::rename(&unfinished.0, out)?)
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
    fn new(parent: &Path) -> Result<Self, Failure> {
        // Another analysis may be on its way beside this one, and a killed one may have left its folder.
        for number in 0u32.. {
            let path = parent.join(format!(".tmp-analysis-{}-{number}", std::process::id()));
            match fs_err::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
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

    #[test]
    fn results_appear_whole_and_never_over_others() {
        let place = tempfile::tempdir().expect("a folder");
        let out = place.path().join("new/results");
        findings("second.csv").write(&out).expect("written");
        assert_eq!(names(&out), ["first.csv", "second.csv", "summary.json"]);
        assert_eq!(names(&place.path().join("new")), ["results"]);
        let summary = fs_err::read_to_string(out.join("summary.json")).expect("readable");
        let summary: Value = serde_json::from_str(&summary).expect("JSON");
        assert_eq!(
            summary,
            json!({ "analysis": "none", "found": { "x": 1.5 } })
        );

        let again = findings("third.csv").write(&out).expect_err("it is there");
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
        let out = place.path().join("results");
        let error = findings("no/such/folder.csv")
            .write(&out)
            .expect_err("no folder");
        assert!(error.to_string().contains("folder.csv"), "{error}");
        assert_eq!(names(place.path()), Vec::<String>::new());
    }
}
