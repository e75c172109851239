//! Tables of file names and classes beside the images, as GTSRB has them.

use std::path::{Component, Path, PathBuf};

use super::DataError;
use super::batches::read_at_most;

/// Most bytes of a table: GTSRB's largest has 3 MB.
const MOST_BYTES: u64 = 64 << 20;

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
    let mut rows = Vec::new();
    for (number, line) in lines
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let fields: Vec<&str> = line.split(between).map(plain).collect();
        let row = fields.get(file).zip(fields.get(class));
        rows.push(checked(
            path,
            number + 2,
            line,
            row.map(|(file, class)| (*file, *class)),
        )?);
    }
    Ok(rows)
}

/// The rows of a file without a header whose columns, between tabs, begin with file and class.
pub(super) fn tabs(path: &Path) -> Result<Vec<Row>, DataError> {
    let text = text(path)?;
    let mut rows = Vec::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let mut fields = line.split('\t').map(str::trim);
        let row = fields.next().zip(fields.next());
        rows.push(checked(path, number + 1, line, row)?);
    }
    Ok(rows)
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
