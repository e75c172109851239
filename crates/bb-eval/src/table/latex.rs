//! The table as LaTeX: one `tabular` to be read with `\input`, needs the package `booktabs`.
use super::sheet::{Entry, Sheet};
use super::text::groups;
use super::{Layout, Table, View};

/// Writes the table; the best values are bold, the second best of [`Layout::Paper`] underlined, notes are comments.
///
/// With a caption or a label it is a float, without them a bare `tabular`.
pub fn write(table: &Table, view: &View) -> String {
    let sheet = Sheet::new(table, view);
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    line("% needs \\usepackage{booktabs}");
    if !sheet.title.is_empty() {
        line(&format!("% {}", comment(&sheet.title)));
    }
    let best = sheet
        .has_best
        .then(|| "bold: best of the defended rows of an attack".to_owned());
    let second = sheet
        .has_second
        .then(|| "underlined: second best".to_owned());
    for note in best.iter().chain(&second).chain(&sheet.notes) {
        line(&format!("% {}", comment(note)));
    }
    let floats = view.caption.is_some() || view.label.is_some();
    if floats {
        line("\\begin{table*}");
        line("\\centering");
    }
    if let Some(caption) = &view.caption {
        line(&format!("\\caption{{{}}}", escape(caption)));
    }
    if let Some(label) = &view.label {
        line(&format!("\\label{{{}}}", comment(label)));
    }
    // The last band may be narrower than the others.
    let widest = sheet.bands.iter().max_by_key(|band| band.heads.len());
    let heads = widest.map_or(&[][..], |band| &band.heads);
    let align: String = heads
        .iter()
        .map(|h| if h.number { 'r' } else { 'l' })
        .collect();
    line(&format!("\\begin{{tabular}}{{{align}}}"));
    line("\\toprule");
    for (i, band) in sheet.bands.iter().enumerate() {
        if i > 0 {
            line("\\midrule[\\heavyrulewidth]");
        }
        let groups = groups(&band.heads);
        if !groups.is_empty() {
            let mut cells = Vec::new();
            let mut next = 0;
            for (name, first, last) in &groups {
                cells.extend((next..*first).map(|_| String::new()));
                cells.push(format!(
                    "\\multicolumn{{{}}}{{c}}{{{}}}",
                    last - first + 1,
                    escape(name)
                ));
                next = last + 1;
            }
            cells.extend((next..band.heads.len()).map(|_| String::new()));
            line(&format!("{} \\\\", cells.join(" & ")));
            let rules: Vec<String> = groups
                .iter()
                .map(|(_, first, last)| format!("\\cmidrule(lr){{{}-{}}}", first + 1, last + 1))
                .collect();
            line(&rules.join(" "));
        }
        let heads: Vec<String> = band.heads.iter().map(|h| escape(&h.title)).collect();
        line(&format!("{} \\\\", heads.join(" & ")));
        for block in &band.blocks {
            line("\\midrule");
            let mut name = "";
            for row in block {
                let mut cells: Vec<String> = row.iter().map(cell).collect();
                if view.layout == Layout::Long && row[0].text == name {
                    cells[0].clear();
                }
                name = &row[0].text;
                line(&format!("{} \\\\", cells.join(" & ")));
            }
        }
    }
    line("\\bottomrule");
    line("\\end{tabular}");
    if floats {
        line("\\end{table*}");
    }
    out
}

fn cell(entry: &Entry) -> String {
    let (text, sign) = (escape(&entry.text), escape(&entry.sign));
    if entry.best {
        format!("\\textbf{{{text}}}{sign}")
    } else if entry.second {
        format!("\\underline{{{text}}}{sign}")
    } else {
        format!("{text}{sign}")
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\textbackslash{}"),
            '|' => out.push_str("\\textbar{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            '†' => out.push_str("$\\dagger$"),
            '‡' => out.push_str("$\\ddagger$"),
            '§' => out.push_str("\\S{}"),
            '±' => out.push_str("$\\pm$"),
            '↑' => out.push_str("$\\uparrow$"),
            '↓' => out.push_str("$\\downarrow$"),
            // A hyphen in text is shorter than a minus sign; a lone one is a missing value.
            '-' if !text.starts_with(|c: char| c.is_alphabetic()) && text.len() > 1 => {
                out.push_str("$-$");
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A comment ends with its line.
fn comment(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
