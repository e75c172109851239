//! The folder of results, which all grids and programs share: where its cells lie, and how one is found by its id.

use std::path::{Path, PathBuf};

use super::{CellError, Kind};

/// Where results go and are looked for, unless another folder is named.
pub const DEFAULT: &str = "runs";

/// Fewest digits of an id that name a cell.
const FEWEST: usize = 4;

/// The folders of cells in a folder of results.
#[derive(Debug, Default)]
pub struct Folders {
    /// Folders at the depth of a cell, by path; whether a cell is there, and complete, is another question.
    pub cells: Vec<PathBuf>,
    /// Links to folders, which could lead anywhere and are not followed.
    pub links: Vec<PathBuf>,
}

impl Folders {
    /// Those of a kind: `<out>/<kind>/<method>/<dataset>-<arch>/<id>`.
    ///
    /// # Errors
    /// If a folder cannot be listed; one that is not there is empty.
    pub fn of(out: &Path, kind: Kind) -> std::io::Result<Self> {
        let mut links = Vec::new();
        let mut cells = vec![out.join(kind.as_str())];
        for _ in 0..3 {
            let mut below = Vec::new();
            for folder in cells {
                subfolders(&folder, &mut below, &mut links)?;
            }
            cells = below;
        }
        Ok(Self { cells, links })
    }
}

fn subfolders(
    folder: &Path,
    below: &mut Vec<PathBuf>,
    links: &mut Vec<PathBuf>,
) -> std::io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    let first = below.len();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            below.push(path);
        } else if kind.is_symlink() && path.is_dir() {
            links.push(path);
        }
    }
    below[first..].sort();
    Ok(())
}

/// The place of a cell that is named by its folder, by its manifest, or by the first digits of its id in the folder of
/// results `out`.
///
/// A name that is neither a path nor the beginning of an id comes back as it is, for the reader's own error.
///
/// # Errors
/// [`CellError::Several`] if several ids begin so, and folders that cannot be listed.
pub fn find(out: &Path, name: &Path) -> Result<PathBuf, CellError> {
    let digits = name.to_str().filter(|text| {
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        (FEWEST..=16).contains(&text.len()) && text.chars().all(hex)
    });
    let Some(digits) = digits.filter(|_| !name.exists()) else {
        return Ok(name.to_owned());
    };
    let mut found = Vec::new();
    for kind in [Kind::Attack, Kind::Defense] {
        let folders = Folders::of(out, kind).map_err(CellError::io(out))?;
        let begins = |path: &PathBuf| {
            let id = path.file_name().and_then(|id| id.to_str());
            id.is_some_and(|id| id.starts_with(digits))
        };
        found.extend(folders.cells.into_iter().filter(begins));
    }
    match found.len() {
        0 => Ok(name.to_owned()),
        1 => Ok(found.remove(0)),
        _ => Err(CellError::Several {
            name: digits.to_owned(),
            found,
        }),
    }
}

/// Checks that no folder from the one below `out` to `dir` is a link: nothing is written outside of `out`.
///
/// # Errors
/// [`CellError::Link`].
pub fn refuse_links(out: &Path, dir: &Path) -> Result<(), CellError> {
    let below = dir.ancestors().take_while(|folder| *folder != out);
    for folder in below {
        match fs_err::symlink_metadata(folder) {
            Ok(found) if found.is_symlink() => {
                let path = folder.to_owned();
                return Err(CellError::Link { path });
            }
            // What is not there yet is made, and what else is wrong shows then.
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_found_by_the_beginning_of_its_id() {
        let out = tempfile::tempdir().expect("a temporary folder");
        let out = out.path();
        let make = |path: &str| {
            let path = out.join(path);
            fs_err::create_dir_all(&path).expect("made");
            path
        };
        let first = make("attack/badnets/synthetic-x-w4/abcd000000000000");
        let second = make("defense/ft/synthetic-x-w4/abcdef0000000000");
        make("attack/badnets/synthetic-x-w4/ab");
        make("analysis/a/b/abc1000000000000");
        let find = |name: &str| find(out, Path::new(name));
        assert_eq!(find("abcd0").expect("one"), first);
        assert_eq!(find("abcde").expect("one"), second);
        assert_eq!(find("abcdef0000000000").expect("one"), second);
        let Err(CellError::Several { name, found }) = find("abcd") else {
            panic!("two");
        };
        assert_eq!(
            (name.as_str(), found),
            ("abcd", vec![first.clone(), second])
        );
        // Too short, no digits, no such cell, and what is there as it is: left to whoever opens it.
        for name in ["abc", "abcx", "ffff", "ABCD0", "abcd00000000000000"] {
            assert_eq!(find(name).expect("as it is"), Path::new(name));
        }
        let own = first.to_str().expect("a plain name");
        assert_eq!(find(own).expect("a folder"), first);
    }

    #[test]
    fn links_are_named_and_not_followed() {
        let out = tempfile::tempdir().expect("a temporary folder");
        let place = out.path().join("attack/badnets/synthetic-x-w4");
        fs_err::create_dir_all(place.join("00")).expect("made");
        std::os::unix::fs::symlink(out.path(), place.join("11")).expect("linked");
        let folders = Folders::of(out.path(), Kind::Attack).expect("listed");
        assert_eq!(folders.cells, [place.join("00")]);
        assert_eq!(folders.links, [place.join("11")]);
        let none = Folders::of(out.path(), Kind::Defense).expect("empty");
        assert!(none.cells.is_empty() && none.links.is_empty());
    }
}
