//! A table as a sheet of strings: what the text, Markdown and LaTeX writers print.
use std::fmt::Write;

use bb_core::metrics::Summary;

use super::{
    AT_CHANCE, Block, COLUMNS, Marks, N, NOT_PLANTED, Role, Row, SEEDS_DIFFER, Table, hundredths,
    metric, shown,
};

/// How a table is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// One row per attack and defense, with the paper's numbers beside ours.
    #[default]
    Long,
    /// One row per attack, the defenses side by side; ours only.
    Wide,
    /// The same with some defenses at a time, one band of them below the other, as papers print it; the oracles in bands of
    /// their own.
    Paper,
}

/// What is shown of a table, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// How it is laid out.
    pub layout: Layout,
    /// Which metrics are shown, as places among [`COLUMNS`].
    pub metrics: Vec<usize>,
    /// What stands above a LaTeX table, if it is to float.
    pub caption: Option<String>,
    /// What refers to a LaTeX table.
    pub label: Option<String>,
}

impl From<Layout> for View {
    fn from(layout: Layout) -> Self {
        let metrics = match layout {
            Layout::Long | Layout::Wide => (0..N).collect(),
            Layout::Paper => (0..N).filter(|i| COLUMNS[*i] != "ra").collect(),
        };
        Self {
            layout,
            metrics,
            caption: None,
            label: None,
        }
    }
}

impl Default for View {
    fn default() -> Self {
        Layout::default().into()
    }
}

/// Defenses in a band of [`Layout::Paper`]: with three metrics each they fill a page across.
const BAND: usize = 5;

/// One column of a sheet.
#[derive(Debug, Clone)]
pub(super) struct Head {
    /// The title above several neighbouring columns with the same group; may be empty.
    pub(super) group: String,
    /// The title of this column.
    pub(super) title: String,
    /// Whether it holds numbers, which are aligned to the right.
    pub(super) number: bool,
}

/// One cell of a sheet.
#[derive(Debug, Clone, Default)]
pub(super) struct Entry {
    /// What is printed; `-` where nothing was measured, empty where nothing could be.
    pub(super) text: String,
    /// Whether it is the best of its kind.
    pub(super) best: bool,
    /// Whether it is the best after that, where the layout shows it.
    pub(super) second: bool,
    /// What is printed behind it: signs that notes explain, and how many seeds it has if some are absent.
    pub(super) sign: String,
}

/// A whole sheet.
#[derive(Debug, Clone)]
pub(super) struct Sheet {
    pub(super) title: String,
    /// One below the other.
    pub(super) bands: Vec<Band>,
    /// Notes, missing cells and what is not shown, one line each.
    pub(super) notes: Vec<String>,
    /// Whether anything is marked as best.
    pub(super) has_best: bool,
    /// Whether anything is marked as the best after that.
    pub(super) has_second: bool,
}

/// Some columns of a sheet, with all its rows.
#[derive(Debug, Clone)]
pub(super) struct Band {
    pub(super) heads: Vec<Head>,
    /// Groups of rows, divided by a rule.
    pub(super) blocks: Vec<Vec<Vec<Entry>>>,
}

/// Where nothing was measured.
pub(super) const ABSENT: &str = "-";

impl Sheet {
    pub(super) fn new(table: &Table, view: &View) -> Self {
        let rows = table.blocks.first().map_or(&[][..], |block| &block.rows);
        let places: Vec<usize> = (0..rows.len()).collect();
        let bands = match view.layout {
            Layout::Long => vec![long(table, view)],
            Layout::Wide => vec![wide(table, view, &places)],
            Layout::Paper => {
                let is_oracle = |place: &usize| rows[*place].role == Role::Oracle;
                let (oracles, others): (Vec<usize>, Vec<usize>) =
                    places.iter().partition(|place| is_oracle(place));
                let bands = others.chunks(BAND).chain(oracles.chunks(BAND));
                bands.map(|places| wide(table, view, places)).collect()
            }
        };
        let entries = || {
            bands
                .iter()
                .flat_map(|b| b.blocks.iter().flatten().flatten())
        };
        let has_best = entries().any(|e| e.best);
        let has_second = entries().any(|e| e.second);
        let mut notes: Vec<String> = table.notes.clone();
        if view.layout == Layout::Long {
            notes.extend_from_slice(&table.paper_notes);
        }
        notes.extend(table.missing.iter().map(|m| format!("missing: {m}")));
        notes.extend_from_slice(&table.left_out);
        Self {
            title: table.title.clone(),
            bands,
            notes,
            has_best,
            has_second,
        }
    }
}

fn head(group: &str, title: impl Into<String>) -> Head {
    Head {
        group: group.to_owned(),
        title: title.into(),
        number: true,
    }
}

fn label(title: &str) -> Head {
    Head {
        group: String::new(),
        title: title.to_owned(),
        number: false,
    }
}

/// `ACC ↑`: the title and which way is better.
fn titled(i: usize) -> String {
    let metric = metric(i);
    format!("{} {}", metric.title, metric.arrow())
}

fn long(table: &Table, view: &View) -> Band {
    let paper = table.has_paper();
    // The paper's RA column would be empty.
    let has = |i: &usize| rows(table).any(|r| r.paper.is_some_and(|p| p.values[*i].is_some()));
    let printed: Vec<usize> = view.metrics.iter().copied().filter(has).collect();
    let timed = rows(table).any(|r| r.seconds.is_some());
    let sized = rows(table).any(|r| r.peak_kib.is_some());
    let mut heads = vec![label("attack"), label("defense")];
    let ours_head = |i: &usize| head(&format!("ours ({})", metric(*i).unit.symbol()), titled(*i));
    heads.extend(view.metrics.iter().map(ours_head));
    if paper {
        heads.extend(printed.iter().map(|i| head("paper", metric(*i).title)));
        heads.extend(printed.iter().map(|i| head("delta", metric(*i).title)));
    }
    if timed {
        heads.push(head("", "time"));
    }
    if sized {
        heads.push(head("", "memory"));
    }
    let blocks = table.blocks.iter().map(|block| {
        block
            .rows
            .iter()
            .map(|row| {
                let mut cells = vec![attack(block), plain(&row.defense)];
                cells[1].sign = sign(row);
                cells.extend(view.metrics.iter().map(|i| ours(row, *i)));
                if paper {
                    cells.extend(
                        printed
                            .iter()
                            .map(|i| theirs(row, row.paper.and_then(|p| p.values[*i]), false)),
                    );
                    let delta = row.delta();
                    cells.extend(printed.iter().map(|i| theirs(row, delta[*i], true)));
                }
                if timed {
                    cells.push(plain(
                        &row.seconds.map_or_else(|| ABSENT.to_owned(), duration),
                    ));
                }
                if sized {
                    cells.push(plain(
                        &row.peak_kib.map_or_else(|| ABSENT.to_owned(), memory),
                    ));
                }
                cells
            })
            .collect()
    });
    let blocks = blocks.collect();
    Band { heads, blocks }
}

/// The rows of each block with these places, side by side.
fn wide(table: &Table, view: &View, places: &[usize]) -> Band {
    let mut heads = vec![label("attack")];
    let first = table.blocks.first().map_or(&[][..], |b| &b.rows);
    // An undefended model has no DER.
    let columns = |row: &Row| {
        let undefended = row.role == Role::Undefended;
        let of = move |i: &usize| !(undefended && COLUMNS[*i] == "der");
        view.metrics.iter().copied().filter(of)
    };
    for row in places.iter().filter_map(|place| first.get(*place)) {
        heads.extend(columns(row).map(|i| head(&row.defense, titled(i))));
    }
    let line = |block: &Block| {
        let mut cells = vec![attack(block)];
        for row in places.iter().map(|place| &block.rows[*place]) {
            let first = cells.len();
            cells.extend(columns(row).map(|i| Entry {
                second: view.layout == Layout::Paper && row.second[i],
                ..ours(row, i)
            }));
            // There is no place of its own for the row's sign, so the first of its numbers has it.
            if let Some(entry) = cells.get_mut(first) {
                entry.sign = sign(row);
            }
        }
        cells
    };
    let (average, attacks): (Vec<&Block>, Vec<&Block>) =
        table.blocks.iter().partition(|b| b.average);
    let blocks = [attacks, average];
    let blocks = blocks
        .iter()
        .filter(|b| !b.is_empty())
        .map(|b| b.iter().map(|b| line(b)).collect())
        .collect();
    Band { heads, blocks }
}

fn rows(table: &Table) -> impl Iterator<Item = &Row> {
    table.blocks.iter().flat_map(|b| &b.rows)
}

fn plain(text: &str) -> Entry {
    Entry {
        text: text.to_owned(),
        ..Entry::default()
    }
}

fn attack(block: &Block) -> Entry {
    let mut entry = plain(&block.attack);
    if block.marks.not_planted {
        entry.sign = format!(" {NOT_PLANTED}");
    }
    entry
}

/// The signs of a row, and `(n=2 of 3)` if seeds are absent.
fn sign(row: &Row) -> String {
    let Marks {
        at_chance,
        seeds_differ,
        // The attack has it.
        not_planted: _,
    } = row.marks;
    let mut sign = String::new();
    for (has, one) in [(at_chance, AT_CHANCE), (seeds_differ, SEEDS_DIFFER)] {
        if has {
            sign.push(' ');
            sign.push_str(one);
        }
    }
    if let Some(expected) = row.expected {
        let _ = write!(sign, " (n={} of {expected})", row.cells.len());
    }
    sign
}

fn ours(row: &Row, i: usize) -> Entry {
    let text = match row.values[i] {
        Some(summary) => number(i, &summary),
        None if COLUMNS[i] == "der" && row.role == Role::Undefended => String::new(),
        None => ABSENT.to_owned(),
    };
    Entry {
        text,
        best: row.best[i],
        ..Entry::default()
    }
}

/// A number of the paper or a difference from it, in parentheses if the settings differ.
fn theirs(row: &Row, value: Option<f64>, signed: bool) -> Entry {
    let Some(value) = value else {
        return Entry::default();
    };
    let text = if signed {
        signed_percent(value)
    } else {
        percent(value)
    };
    let same = row.paper.is_none_or(|p| p.same_setting);
    plain(&if same { text } else { format!("({text})") })
}

/// `91.32` or `91.32 ± 0.20`.
fn number(i: usize, summary: &Summary) -> String {
    let mean = percent(shown(i, summary.mean));
    match summary.std {
        None => mean,
        Some(std) => format!("{mean} ± {}", percent(shown(i, std))),
    }
}

/// Two digits, as papers print; never a negative zero.
pub(super) fn percent(value: f64) -> String {
    let hundredths = hundredths(value);
    let sign = if hundredths < 0 { "-" } else { "" };
    format!(
        "{sign}{}.{:02}",
        hundredths.abs() / 100,
        hundredths.abs() % 100
    )
}

fn signed_percent(value: f64) -> String {
    let text = percent(value);
    if text.starts_with('-') || text == "0.00" {
        text
    } else {
        format!("+{text}")
    }
}

/// `512 MiB`, `1.2 GiB`.
fn memory(kib: u64) -> String {
    let mib = kib as f64 / 1024.0;
    if mib < 1000.0 {
        format!("{mib:.0} MiB")
    } else {
        format!("{:.1} GiB", mib / 1024.0)
    }
}

/// `47 s`, `3 min 05 s`, `2 h 05 min`.
pub(crate) fn duration(seconds: f64) -> String {
    // Rounded first, so that 59.7 s is a minute and not 60 s.
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}
