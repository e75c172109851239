//! Tables of file names and classes beside the images, as GTSRB has them.

use std::path::{Component, Path, PathBuf};

use super::DataError;
use super::batches::read_at_most;

/// Most bytes of a table: GTSRB's largest has 3 MB.
const MOST_BYTES: u64 = 32 << 20;
/// Most rows of a table, one for each image.
const MOST_ROWS: usize = 500_000;

/// One image of a table.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    /// The file, relative to the folder that the table is about.
    pub(super) file: PathBuf,
    /// The class as it stands there.
    pub(super) class: String,
}

/// The text of a table, which need not be clean UTF-8 in what is not used.
fn text(path: &Path) -> Result<String, DataError> {
    let bytes = read_at_most(path, MOST_BYTES)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// The lines that are not empty, with their number in the file, where `first` is that of the first one.
fn rows<'a>(
    path: &Path,
    lines: impl Iterator<Item = &'a str>,
    first: usize,
) -> impl Iterator<Item = Result<(usize, &'a str), DataError>> {
    let filled = (first..)
        .zip(lines)
        .filter(|(_, line)| !line.trim().is_empty());
    filled.enumerate().map(move |(row, (number, line))| {
        if row < MOST_ROWS {
            return Ok((number, line));
        }
        Err(DataError::Table {
            path: path.to_path_buf(),
            line: number,
            expected: "at most 500000 images",
            found: line.chars().take(80).collect(),
        })
    })
}

/// The rows of a CSV file with a header that has a column `file` and one `ClassId`, between semicolons or commas.
pub(super) fn csv(path: &Path, file: &'static str) -> Result<Vec<Row>, DataError> {
    let text = text(path)?;
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let between = if header.contains(';') { ';' } else { ',' };
    let column = |name: &'static str| {
        let mut names = header.split(between).map(plain);
        let place = names.position(|found| found.eq_ignore_ascii_case(name));
        place.ok_or_else(|| DataError::Table {
            path: path.to_path_buf(),
            line: 1,
            expected: name,
            found: header.chars().take(80).collect(),
        })
    };
    let (file, class) = (column(file)?, column("ClassId")?);
    let rows = rows(path, lines, 2).map(|row| {
        let (number, line) = row?;
        let field = |place| line.split(between).map(plain).nth(place);
        checked(path, number, line, field(file).zip(field(class)))
    });
    rows.collect()
}

/// The rows of a file without a header whose columns, between tabs, begin with file and class.
pub(super) fn tabs(path: &Path) -> Result<Vec<Row>, DataError> {
    let text = text(path)?;
    let rows = rows(path, text.lines(), 1).map(|row| {
        let (number, line) = row?;
        let mut fields = line.split('\t').map(str::trim);
        checked(path, number, line, fields.next().zip(fields.next()))
    });
    rows.collect()
}

fn plain(field: &str) -> &str {
    field.trim().trim_matches('"')
}

/// A row whose file stays below the folder.
fn checked(
    path: &Path,
    line: usize,
    text: &str,
    row: Option<(&str, &str)>,
) -> Result<Row, DataError> {
    row.map(|(file, class)| Row {
        file: PathBuf::from(file),
        class: class.to_owned(),
    })
    .filter(|row| {
        let mut parts = row.file.components();
        !row.file.as_os_str().is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
    })
    .ok_or_else(|| DataError::Table {
        path: path.to_path_buf(),
        line,
        expected: "a file below this folder and its class",
        found: text.chars().take(80).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_as_many_rows_as_datasets_have_images() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("t.csv");
        let lines = |n| "a;1\n\n".repeat(n);
        fs_err::write(&path, format!("Filename;ClassId\n{}", lines(MOST_ROWS))).expect("writes");
        assert_eq!(csv(&path, "Filename").expect("a table").len(), MOST_ROWS);
        fs_err::write(&path, format!("Filename;ClassId\n{}", lines(MOST_ROWS + 1)))
            .expect("writes");
        let text = csv(&path, "Filename").expect_err("one more").to_string();
        assert!(text.starts_with("line 1000002 of"), "{text}");
        assert!(
            text.ends_with("has `a;1`, expected at most 500000 images"),
            "{text}"
        );
        let lines = "a\t1\n".repeat(MOST_ROWS + 1);
        fs_err::write(&path, lines).expect("writes");
        let text = tabs(&path).expect_err("one more").to_string();
        assert!(text.starts_with("line 500001 of"), "{text}");
    }
}
