//! The table as aligned text, for a terminal.
use std::fmt::Write;

use super::sheet::{Band, Entry, Head, Sheet};
use super::{Layout, Table, View};

/// Writes the table. The best values carry a `*`, so that nothing depends on colour.
pub fn write(table: &Table, view: &View) -> String {
    let sheet = Sheet::new(table, view);
    let mut out = String::new();
    if !sheet.title.is_empty() {
        line(&mut out, &sheet.title);
        line(&mut out, "");
    }
    for (i, band) in sheet.bands.iter().enumerate() {
        if i > 0 {
            line(&mut out, "");
        }
        write_band(&mut out, band, view.layout);
    }
    let best = sheet
        .has_best
        .then(|| "*: best of the defended rows of an attack".to_owned());
    let notes: Vec<&String> = best.iter().chain(&sheet.notes).collect();
    if !notes.is_empty() {
        line(&mut out, "");
    }
    for note in notes {
        line(&mut out, note);
    }
    out
}

/// A stranger's label is one line, and nothing that a terminal obeys.
fn line(out: &mut String, text: &str) {
    let text = text.replace(char::is_control, " ");
    out.push_str(text.trim_end());
    out.push('\n');
}

fn write_band(out: &mut String, sheet: &Band, layout: Layout) {
    let columns = sheet.heads.len();
    let rows: Vec<&Vec<Entry>> = sheet.blocks.iter().flatten().collect();
    let marks = |e: &Entry| format!("{}{}", if e.best { "*" } else { "" }, e.sign);
    // A column of numbers with marks keeps their place in every row, so that the digits stay aligned.
    let room: Vec<usize> = (0..columns)
        .map(|c| {
            let marked = rows.iter().map(|r| width(&marks(&r[c])));
            marked.max().filter(|_| sheet.heads[c].number).unwrap_or(0)
        })
        .collect();
    let shown = |c: usize, e: &Entry| format!("{}{}", e.text, pad(&marks(e), room[c], false));
    let mut widths: Vec<usize> = (0..columns)
        .map(|c| {
            let cells = rows.iter().map(|r| width(&shown(c, &r[c])));
            cells
                .chain([width(&sheet.heads[c].title) + room[c]])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let groups = groups(&sheet.heads);
    for (name, first, last) in &groups {
        // A group title wider than its columns widens the last one.
        let room = widths[*first..=*last].iter().sum::<usize>() + GAP * (last - first);
        widths[*last] += width(name).saturating_sub(room);
    }
    let total = widths.iter().sum::<usize>() + GAP * columns.saturating_sub(1);

    let mut line = |text: &str| line(out, text);
    if !groups.is_empty() {
        line(&group_line(&groups, &widths));
    }
    let join = |cells: Vec<String>| {
        let cells: Vec<String> = cells
            .iter()
            .enumerate()
            .map(|(c, t)| pad(t, widths[c], sheet.heads[c].number))
            .collect();
        cells.join(&" ".repeat(GAP))
    };
    line(&join(
        sheet
            .heads
            .iter()
            .zip(&room)
            .map(|(h, room)| format!("{}{}", h.title, " ".repeat(*room)))
            .collect(),
    ));
    for block in &sheet.blocks {
        line(&"-".repeat(total));
        let mut name = "";
        for row in block {
            let mut cells: Vec<String> = row.iter().enumerate().map(|(c, e)| shown(c, e)).collect();
            // The attack is named once per block.
            if layout == Layout::Long && row[0].text == name {
                cells[0].clear();
            }
            name = &row[0].text;
            line(&join(cells));
        }
    }
}

/// Spaces between two columns.
const GAP: usize = 2;

/// Name, first and last column of each group.
pub(super) fn groups(heads: &[Head]) -> Vec<(String, usize, usize)> {
    let mut groups: Vec<(String, usize, usize)> = Vec::new();
    for (c, head) in heads.iter().enumerate() {
        match groups.last_mut() {
            Some((name, _, last)) if *name == head.group && *last + 1 == c => *last = c,
            _ if head.group.is_empty() => {}
            _ => groups.push((head.group.clone(), c, c)),
        }
    }
    groups
}

/// The titles above the columns, each between dashes as wide as its columns.
fn group_line(groups: &[(String, usize, usize)], widths: &[usize]) -> String {
    let mut text = String::new();
    for (name, first, last) in groups {
        let start = widths[..*first].iter().map(|w| w + GAP).sum::<usize>();
        let room = widths[*first..=*last].iter().sum::<usize>() + GAP * (last - first);
        let before = start.saturating_sub(width(&text));
        let _ = write!(text, "{:before$}{:-^room$}", "", fitted(name, room));
    }
    text
}

/// The name with a space on either side where there is room for it.
fn fitted(name: &str, room: usize) -> String {
    if width(name) + 2 <= room {
        format!(" {name} ")
    } else {
        name.to_owned()
    }
}

fn pad(text: &str, room: usize, right: bool) -> String {
    if right {
        format!("{text:>room$}")
    } else {
        format!("{text:<room$}")
    }
}

/// Characters, which is what the terminal shows for the few that are not ASCII here.
fn width(text: &str) -> usize {
    text.chars().count()
}
