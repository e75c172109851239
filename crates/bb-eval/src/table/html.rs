//! The table as a page of HTML that needs nothing else: no script, no font, no file beside it.
use std::fmt::Write;

use super::sheet::{Band, Entry, Sheet};
use super::text::groups;
use super::{Layout, Table, View};
use crate::markup::escaped;

/// How the page looks, in light and in dark.
const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; margin: 0 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: left; white-space: nowrap; }
th.n, td.n { text-align: right; }
th.g { text-align: center; border-bottom: 1px solid; }
thead { border-bottom: 2px solid; border-top: 2px solid; }
tbody { border-bottom: 1px solid; }
ul { padding-left: 1.2rem; }
";

/// Writes the tables on one page; the best values are bold, the second best of [`Layout::Paper`] underlined.
pub fn write(tables: &[Table], view: &View) -> String {
    let sheets: Vec<Sheet> = tables.iter().map(|table| Sheet::new(table, view)).collect();
    let titles: Vec<String> = sheets.iter().map(|sheet| escaped(&sheet.title)).collect();
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
        titles.join("; ")
    );
    for (sheet, title) in sheets.iter().zip(&titles) {
        let _ = writeln!(out, "<h1>{title}</h1>");
        for band in &sheet.bands {
            write_band(&mut out, band, view.layout);
        }
        let unit = "all numbers in percent".to_owned();
        let best = sheet
            .has_best
            .then(|| "bold: best of the defended rows of an attack".to_owned());
        let second = sheet
            .has_second
            .then(|| "underlined: second best".to_owned());
        out.push_str("<ul>\n");
        for note in [unit]
            .iter()
            .chain(&best)
            .chain(&second)
            .chain(&sheet.notes)
        {
            let _ = writeln!(out, "<li>{}</li>", escaped(note));
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</body>\n</html>\n");
    out
}

fn write_band(out: &mut String, band: &Band, layout: Layout) {
    let class = |number: bool| if number { " class=\"n\"" } else { "" };
    out.push_str("<table>\n<thead>\n");
    let groups = groups(&band.heads);
    if !groups.is_empty() {
        out.push_str("<tr>");
        let mut next = 0;
        for (name, first, last) in &groups {
            out.push_str(&"<th></th>".repeat(first - next));
            let (span, name) = (last - first + 1, escaped(name));
            let _ = write!(out, "<th class=\"g\" colspan=\"{span}\">{name}</th>");
            next = last + 1;
        }
        out.push_str(&"<th></th>".repeat(band.heads.len() - next));
        out.push_str("</tr>\n");
    }
    out.push_str("<tr>");
    for head in &band.heads {
        let (class, title) = (class(head.number), escaped(&head.title));
        let _ = write!(out, "<th{class}>{title}</th>");
    }
    out.push_str("</tr>\n</thead>\n");
    for block in &band.blocks {
        out.push_str("<tbody>\n");
        let mut name = "";
        for row in block {
            out.push_str("<tr>");
            for (i, (entry, head)) in row.iter().zip(&band.heads).enumerate() {
                // The attack is named once per block.
                let again = i == 0 && layout == Layout::Long && entry.text == name;
                let text = if again { String::new() } else { cell(entry) };
                let class = class(head.number);
                let _ = write!(out, "<td{class}>{text}</td>");
            }
            name = &row[0].text;
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n");
    }
    out.push_str("</table>\n");
}

fn cell(entry: &Entry) -> String {
    let (text, sign) = (escaped(&entry.text), escaped(&entry.sign));
    if entry.best {
        format!("<b>{text}</b>{sign}")
    } else if entry.second {
        format!("<u>{text}</u>{sign}")
    } else {
        format!("{text}{sign}")
    }
}
