//! The table as CSV, for programs: long format, unrounded, with numerators and denominators.
//!
//! `kind` says what a line is: `cell` is one run (one seed) with its counts, `mean` the mean over the seeds of an attack
//! with a defense, `average` the mean over the attacks.
//! Metrics are percentages, differences percentage points, times seconds.
//! `seeds` are those that a line is over, with spaces between; empty for an average over attacks with different seeds.
//! `flags` are words with spaces between: `not_planted` (the attack), `at_chance` (the model), `fewer_seeds` (than
//! expected), `seeds_differ` (of an average); see [`Marks`](super::Marks).
//! `target` and `target_name` are the class that poisoned images are to be given, by number and by name.
//! `verdict` is `agrees` or `differs` for a model without a defense in the published setting, `peak_kib` the most main memory
//! of a run in KiB.
//! An empty field means that there is no such number; nothing is ever filled with 0.
use bb_core::metrics::Ratio;

use super::{COLUMNS, N, Row, SeedCell, Table, shown};

/// Writes the tables below one another, under one header.
///
/// Of the digest of the data the first 12 digits are given: enough to see which rows are about the same images.
pub fn write(tables: &[Table]) -> String {
    let mut out = String::new();
    let mut line = |fields: Vec<String>| {
        out.push_str(
            &fields
                .iter()
                .map(|f| quote(f))
                .collect::<Vec<_>>()
                .join(","),
        );
        out.push('\n');
    };
    let mut header: Vec<String> = [
        "kind", "dataset", "arch", "data", "attack", "defense", "role", "seed", "n",
    ]
    .map(str::to_owned)
    .to_vec();
    for name in COLUMNS {
        header.extend([name.to_owned(), format!("{name}_std")]);
        if name != "der" {
            header.extend([format!("{name}_hits"), format!("{name}_total")]);
        }
    }
    header.push("paper".into());
    for prefix in ["paper", "delta"] {
        header.extend(COLUMNS.iter().map(|name| format!("{prefix}_{name}")));
    }
    let last = [
        "seconds",
        "seeds",
        "flags",
        "target",
        "target_name",
        "verdict",
        "peak_kib",
    ];
    header.extend(last.map(str::to_owned));
    line(header);

    for (table, block) in tables
        .iter()
        .flat_map(|t| t.blocks.iter().map(move |b| (t, b)))
    {
        let data: String = table.data.chars().take(12).collect();
        let target = block
            .target
            .as_ref()
            .map_or([String::new(), String::new()], |t| {
                [t.class.to_string(), t.name.clone()]
            });
        for row in &block.rows {
            let names = |kind: &str, seed: String, n: usize| {
                let dataset = table.dataset.clone();
                let arch = block.arch.as_ref().unwrap_or(&table.arch).clone();
                let (attack, defense) = (block.attack.clone(), row.defense.clone());
                vec![
                    kind.to_owned(),
                    dataset,
                    arch,
                    data.clone(),
                    attack,
                    defense,
                    row.role.as_str().to_owned(),
                    seed,
                    n.to_string(),
                ]
            };
            for cell in &row.cells {
                let mut fields = names("cell", cell.seed.to_string(), 1);
                fields.extend(counts(cell));
                fields.extend(vec![String::new(); 1 + 2 * N]);
                fields.push(cell.seconds.map(digits).unwrap_or_default());
                fields.extend([cell.seed.to_string(), cell.marks.words(false).join(" ")]);
                fields.extend(target.clone());
                fields.extend([String::new(), kib(cell.peak_kib)]);
                line(fields);
            }
            let n = row.values[0].map_or(0, |s| s.n);
            let mut fields = names(
                if block.average { "average" } else { "mean" },
                String::new(),
                n,
            );
            fields.extend(means(row));
            fields.extend(paper(row));
            fields.push(row.seconds.map(digits).unwrap_or_default());
            let seeds: Vec<String> = row.seeds.iter().map(u64::to_string).collect();
            fields.extend([seeds.join(" "), block.words(row).join(" ")]);
            fields.extend(target.clone());
            let verdict = row.paper.and_then(|paper| paper.verdict());
            fields.push(verdict.unwrap_or_default().to_owned());
            fields.push(kib(row.peak_kib));
            line(fields);
        }
    }
    out
}

fn counts(cell: &SeedCell) -> Vec<String> {
    let mut fields = Vec::new();
    for (i, name) in COLUMNS.into_iter().enumerate() {
        fields.push(
            cell.value(i)
                .map(|v| digits(shown(i, v)))
                .unwrap_or_default(),
        );
        fields.push(String::new());
        if name != "der" {
            let ratio = cell.ratio(i);
            let count = |part: fn(Ratio) -> u64| ratio.map(part).map(|n| n.to_string());
            fields.extend([count(|r| r.hits), count(|r| r.total)].map(Option::unwrap_or_default));
        }
    }
    fields
}

fn means(row: &Row) -> Vec<String> {
    let mut fields = Vec::new();
    for (i, stat) in row.values.iter().enumerate() {
        fields.push(stat.map(|s| digits(shown(i, s.mean))).unwrap_or_default());
        fields.push(
            stat.and_then(|s| s.std)
                .map(|s| digits(shown(i, s)))
                .unwrap_or_default(),
        );
        if COLUMNS[i] != "der" {
            fields.extend([String::new(), String::new()]);
        }
    }
    fields
}

fn paper(row: &Row) -> Vec<String> {
    let setting = match row.paper {
        None => "",
        Some(p) if p.same_setting => "same setting",
        Some(_) => "other setting",
    };
    let mut fields = vec![setting.to_owned()];
    let values = row.paper.map_or([None; N], |p| p.values);
    for value in values.iter().chain(&row.delta()) {
        fields.push(value.map(digits).unwrap_or_default());
    }
    fields
}

fn kib(peak: Option<u64>) -> String {
    peak.map(|kib| kib.to_string()).unwrap_or_default()
}

/// Six digits after the point: finer than one image in a million, and free of binary dust.
fn digits(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

/// A field that a spreadsheet does not compute: words that begin as a formula does, as no number of ours, are marked as
/// text, and control characters are spaces.
fn inert(field: &str) -> String {
    let text = field.replace(char::is_control, " ");
    let formula = field.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']);
    if formula && field.parse::<f64>().is_err() {
        return format!("'{text}");
    }
    text
}

fn quote(field: &str) -> String {
    let field = inert(field);
    if field.contains(['"', ',']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}
