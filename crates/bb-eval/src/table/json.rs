//! The table as JSON, for programs: everything that the other formats show, unrounded.
//!
//! ```text
//! { "schema": 1, "tables": [ {
//!   "title", "dataset", "arch", "data": digest, "paper": name or null,
//!   "attacks": [ {
//!     "attack", "average", "clean", "arch", "target": { "class", "name" } or null,
//!     "rows": [ {
//!       "defense", "role": "undefended", "defended" or "oracle",
//!       "seeds": [ ... ], "flags": [ words ], "expected_seeds": number or null,
//!       "acc", "asr", "ra", "der": { "mean", "std", "n", "best", "paper", "paper_is_broken", "delta" } or null,
//!       "same_setting": true, false or null, "verdict": "agrees", "differs" or null, "seconds", "peak_kib",
//!       "cells": [ { "seed", "acc", "asr", "ra": { "hits", "total" }, "der", "seconds", "peak_kib", "flags" } ]
//!     } ]
//!   } ],
//!   "notes", "missing", "left_out": [ lines ]
//! } ] }
//! ```
//!
//! Metrics are percentages, differences percentage points, times seconds. What is not known is `null`.
use serde_json::{Map, Value, json};

use super::{Block, COLUMNS, Row, SeedCell, Table, shown};

/// The version of this form.
const SCHEMA: u32 = 1;

/// Writes the tables as one object.
pub fn write(tables: &[Table]) -> String {
    let tables: Vec<Value> = tables.iter().map(table).collect();
    let mut text = format!("{:#}", json!({ "schema": SCHEMA, "tables": tables }));
    text.push('\n');
    text
}

fn table(table: &Table) -> Value {
    let notes: Vec<&String> = table.notes.iter().chain(&table.paper_notes).collect();
    json!({
        "title": table.title,
        "dataset": table.dataset,
        "arch": table.arch,
        "data": table.data,
        "paper": table.paper,
        "attacks": table.blocks.iter().map(|b| block(table, b)).collect::<Vec<_>>(),
        "notes": notes,
        "missing": table.missing,
        "left_out": table.left_out,
    })
}

fn block(table: &Table, block: &Block) -> Value {
    json!({
        "attack": block.attack,
        "average": block.average,
        "clean": block.clean,
        "arch": block.arch.as_ref().unwrap_or(&table.arch),
        "target": block.target,
        "rows": block.rows.iter().map(|r| row(block, r)).collect::<Vec<_>>(),
    })
}

fn row(block: &Block, row: &Row) -> Value {
    let mut object = Map::from_iter([
        ("defense".to_owned(), json!(row.defense)),
        ("role".to_owned(), json!(row.role.as_str())),
        ("seeds".to_owned(), json!(row.seeds)),
        ("flags".to_owned(), json!(block.words(row))),
        ("expected_seeds".to_owned(), json!(row.expected)),
    ]);
    let delta = row.delta();
    for (i, name) in COLUMNS.into_iter().enumerate() {
        let value = row.values[i].map(|summary| {
            json!({
                "mean": shown(i, summary.mean),
                "std": summary.std.map(|std| shown(i, std)),
                "n": summary.n,
                "best": row.best[i],
                "paper": row.paper.and_then(|paper| paper.values[i]),
                "paper_is_broken": row.paper.is_some_and(|paper| paper.broken[i]),
                "delta": delta[i],
            })
        });
        object.insert(name.to_owned(), json!(value));
    }
    object.extend([
        (
            "same_setting".to_owned(),
            json!(row.paper.map(|paper| paper.same_setting)),
        ),
        (
            "verdict".to_owned(),
            json!(row.paper.and_then(|paper| paper.verdict())),
        ),
        ("seconds".to_owned(), json!(row.seconds)),
        ("peak_kib".to_owned(), json!(row.peak_kib)),
        ("cells".to_owned(), row.cells.iter().map(cell).collect()),
    ]);
    Value::Object(object)
}

fn cell(cell: &SeedCell) -> Value {
    let der = COLUMNS.iter().position(|name| *name == "der");
    json!({
        "seed": cell.seed,
        "acc": cell.ratio(0),
        "asr": cell.ratio(1),
        "ra": cell.ratio(2),
        "der": der.and_then(|i| Some(shown(i, cell.value(i)?))),
        "seconds": cell.seconds,
        "peak_kib": cell.peak_kib,
        "flags": cell.marks.words(false),
    })
}
