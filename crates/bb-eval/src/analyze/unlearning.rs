//! Accuracy and attack success from epoch to epoch while a model unlearns.
//!
//! Clean unlearning loses the accuracy and keeps the backdoor, poison unlearning the other way round; what is unlearned
//! and when it ends is [`Lesson`]'s.

use std::fmt::Write as _;

use bb_core::cell::MODEL;
use bb_core::cli::Failure;
use bb_core::metrics::{Ratio, Scores};
use bb_defense::DefenseError;
use bb_defense::tsbd::unlearn::Epoch;
use bb_nn::{Net, eval};
use serde_json::{Value, json};

use super::Study;
use super::nwc::{course, tell_unless_reached};
use super::output::Findings;
use super::subject::Lesson;
use super::svg::{Figure, Series, Style};

/// A row of the curves.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    lesson: Lesson,
    /// Epochs done.
    epochs: usize,
    /// The last of them.
    epoch: Option<Epoch>,
    scores: Scores,
}

/// Unlearns each lesson, once, from the model as it is.
pub fn run(study: &Study, lessons: &[Lesson]) -> Result<Findings, Failure> {
    let subject = &study.subject;
    let mut order: Vec<Lesson> = Vec::new();
    for &lesson in lessons {
        if !order.contains(&lesson) {
            order.push(lesson);
        }
    }
    let lessons = order;
    // What cannot be unlearned is known before anything is.
    for lesson in &lessons {
        lesson.images(subject, &study.cfg)?;
    }
    let scores = |net: &mut Net, network: &str| {
        let spec = &subject.dataset.spec;
        eval::scores(net, &subject.dataset.test, &subject.poisoned, spec)
            .map_err(DefenseError::scores(network))
    };
    let path = subject.cell.listed(MODEL)?;
    let network = format!("the network in `{}`", path.display());
    let before = scores(&mut subject.net(&study.compute)?, &network)?;
    let mut rows = Vec::new();
    let mut courses = serde_json::Map::new();
    for lesson in lessons {
        rows.push(Row {
            lesson,
            epochs: 0,
            epoch: None,
            scores: before,
        });
        let run = (study.seed, &study.compute);
        let unlearned = lesson.unlearn(subject, &study.cfg, run, &mut |epoch, net| {
            let row = Row {
                lesson,
                epochs: epoch.number + 1,
                epoch: Some(*epoch),
                scores: scores(
                    net,
                    &format!(
                        "the model of {} unlearning after epoch {}",
                        lesson.id(),
                        epoch.number + 1
                    ),
                )?,
            };
            study.say(&said(&row));
            rows.push(row);
            Ok(())
        })?;
        tell_unless_reached(study, lesson, &unlearned);
        let mut found = course(&unlearned);
        let last = rows.last().expect("the model before it, at least");
        found["after"] = scores_json(&last.scores);
        courses.insert(lesson.id().to_owned(), found);
    }
    Ok(Findings {
        tables: vec![("unlearning.csv", table(&rows))],
        figures: vec![("unlearning.svg", figure(&rows))],
        facts: study.facts("unlearning", &["clean", "unlearn"]),
        found: json!({ "before": scores_json(&before), "unlearning": courses }),
    })
}

fn said(row: &Row) -> String {
    let percent = |ratio: Ratio| {
        ratio
            .percent()
            .map_or_else(|| "none".to_owned(), |percent| format!("{percent:.2} %"))
    };
    format!(
        "{} unlearning, epoch {}: ACC {}, ASR {}",
        row.lesson.id(),
        row.epochs,
        percent(row.scores.acc),
        percent(row.scores.asr)
    )
}

fn scores_json(scores: &Scores) -> Value {
    json!({ "acc": scores.acc.value(), "asr": scores.asr.value(), "ra": scores.ra.value() })
}

/// Fractions; empty where there is nothing to measure.
fn table(rows: &[Row]) -> String {
    let mut text = "lesson,epochs,train_loss,train_acc,lesson_acc,acc,asr,ra\n".to_owned();
    for row in rows {
        let epoch = row.epoch.as_ref();
        let numbers = [
            epoch.map(|epoch| epoch.train_loss),
            epoch.and_then(|epoch| epoch.train_acc.value()),
            epoch.and_then(|epoch| epoch.accuracy.value()),
            row.scores.acc.value(),
            row.scores.asr.value(),
            row.scores.ra.value(),
        ];
        write!(text, "{},{}", row.lesson.id(), row.epochs).expect("strings take all");
        for number in numbers {
            let number = number.map(|number| number.to_string()).unwrap_or_default();
            write!(text, ",{number}").expect("strings take all");
        }
        text.push('\n');
    }
    text
}

fn figure(rows: &[Row]) -> Figure {
    let mut lessons: Vec<Lesson> = rows.iter().map(|row| row.lesson).collect();
    lessons.dedup();
    let kinds = [("ACC", Style::Line), ("ASR", Style::Dashed)];
    let mut series = Vec::new();
    for lesson in lessons {
        for (name, style) in kinds {
            let own = rows.iter().filter(|row| row.lesson == lesson);
            let point = |row: &Row| {
                let Scores { acc, asr, .. } = row.scores;
                let ratio = if name == "ACC" { acc } else { asr };
                Some((row.epochs as f64, ratio.percent()?))
            };
            let points: Vec<(f64, f64)> = own.filter_map(point).collect();
            // A model without a backdoor has no ASR.
            if !points.is_empty() {
                series.push(Series {
                    name: format!("{name}, {} unlearning", lesson.id()),
                    style,
                    points,
                });
            }
        }
    }
    Figure {
        title: "Unlearning".to_owned(),
        x: "epochs".to_owned(),
        y: "%".to_owned(),
        series,
    }
}
