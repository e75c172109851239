//! The table as Markdown, for a README or a pull request.
use super::sheet::{Entry, Sheet};
use super::{Layout, Table, View};

/// Writes the table; every row names its attack, the best values are bold.
pub fn write(table: &Table, view: &View) -> String {
    let sheet = Sheet::new(table, view);
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    if !sheet.title.is_empty() {
        line(&format!("**{}**", escape(&sheet.title)));
        line("");
    }
    for (i, band) in sheet.bands.iter().enumerate() {
        if i > 0 {
            line("");
        }
        // Markdown has no cells over several columns, so each title carries its group, but for our own numbers.
        let heads: Vec<String> = band
            .heads
            .iter()
            .map(|h| match (view.layout, h.group.as_str()) {
                (_, "") => h.title.clone(),
                (Layout::Long, group) if group.starts_with("ours") => h.title.clone(),
                (_, group) => format!("{group} {}", h.title),
            })
            .map(|title| escape(&title))
            .collect();
        line(&format!("| {} |", heads.join(" | ")));
        let rules: Vec<&str> = band
            .heads
            .iter()
            .map(|h| if h.number { "---:" } else { "---" })
            .collect();
        line(&format!("| {} |", rules.join(" | ")));
        for row in band.blocks.iter().flatten() {
            let cells: Vec<String> = row.iter().map(cell).collect();
            line(&format!("| {} |", cells.join(" | ")));
        }
    }
    let unit = "all numbers in percent".to_owned();
    let best = sheet
        .has_best
        .then(|| "bold: best of the defended rows of an attack".to_owned());
    let second = sheet.has_second.then(|| "italic: second best".to_owned());
    line("");
    for note in [unit]
        .iter()
        .chain(&best)
        .chain(&second)
        .chain(&sheet.notes)
    {
        line(&format!("- {}", escape(note)));
    }
    out
}

fn cell(entry: &Entry) -> String {
    let (text, sign) = (escape(&entry.text), escape(&entry.sign));
    if entry.best {
        format!("**{text}**{sign}")
    } else if entry.second {
        format!("*{text}*{sign}")
    } else {
        format!("{text}{sign}")
    }
}

/// Keeps a label from being read as markup.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(
            c,
            '|' | '*' | '_' | '`' | '[' | ']' | '<' | '>' | '\\' | '#'
        ) {
            out.push('\\');
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}
