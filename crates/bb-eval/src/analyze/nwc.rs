//! Neuron weight change of clean, random and poison unlearning, and how they correlate.
//!
//! Observation 1 of TSBD (Lin et al., 2024): the neurons that clean unlearning moves most are those that poison
//! unlearning moves most, so that a defender finds them without a trigger. OTBR (Lin et al., AAAI 2025) says the same of
//! unlearning on noise. Clean unlearning is TSBD's and random unlearning OTBR's, bit for bit those of a repair with the
//! same seed; poison unlearning is TSBD's on the poisoned test images, see [`Lesson::Poison`].

use std::fmt::Write as _;

use bb_core::cli::Failure;
use bb_core::metrics::Ratio;
use bb_defense::context::Ctx;
use bb_defense::method::{Given, settings};
use bb_defense::nwc::WeightChange;
use bb_defense::otbr::unlearn::Targets;
use bb_defense::otbr::{Otbr, unlearn as random};
use bb_defense::tsbd::unlearn::Unlearned;
use serde_json::{Value, json};

use super::output::Findings;
use super::statistics::{pearson, spearman};
use super::subject::Lesson;
use super::svg::{Figure, Series, Style};
use super::{AnalyzeError, Study};

/// Correlation of two unlearnings over some neurons.
#[derive(Clone, Debug, PartialEq)]
pub struct Correlation {
    /// The two unlearnings.
    pub pair: [&'static str; 2],
    /// The layer, or `all`.
    pub scope: String,
    /// Neurons.
    pub neurons: usize,
    /// Pearson's, if both have a spread.
    pub pearson: Option<f64>,
    /// Spearman's, if both have a spread.
    pub spearman: Option<f64>,
}

/// Unlearns three times, each time from the model as it is.
pub fn run(study: &Study) -> Result<Findings, Failure> {
    let subject = &study.subject;
    subject.needs_backdoor("the comparison with poison unlearning")?;
    let clean = unlearn(study, Lesson::Clean)?;
    let poison = unlearn(study, Lesson::Poison)?;

    study.say("random unlearning");
    let images = subject.no_images()?;
    let suspect = subject.suspect(&images, &study.compute);
    let otbr = settings::<Otbr>(&subject.cell.manifest.dataset, &Given::default())?;
    let targets = Targets::new(suspect.net()?.params(), &study.cfg.layers.exclude)?;
    let mut ctx = Ctx::detached(study.seed);
    let random = random::run(&otbr.value, &suspect, &targets, &mut ctx)?.nwc;

    let change = &clean.change;
    let changes: [(&'static str, Vec<f64>); 3] = [
        ("clean", doubled(&change.nwc())),
        ("random", doubled(&random)),
        ("poison", doubled(&poison.change.nwc())),
    ];
    for (lesson, values) in &changes {
        if let Some(neuron) = values.iter().position(|value| !value.is_finite()) {
            let place = change.place(neuron);
            return Err(AnalyzeError::NotFinite {
                what: format!("the weight change of {lesson} unlearning"),
                layer: place.layer.to_owned(),
                channel: place.channel,
            }
            .into());
        }
    }
    let last = (0..change.neurons())
        .filter(|&neuron| change.place(neuron).layer_number + 1 == change.layer_names().count());
    let last: Vec<usize> = last.collect();
    let layer = change.place(last[0]).layer.to_owned();

    let mut correlations = Vec::new();
    for (scope, neurons) in [
        (layer.as_str(), last.clone()),
        ("all", (0..change.neurons()).collect()),
    ] {
        for (one, other) in [(0, 2), (1, 2), (0, 1)] {
            let of = |i: usize| -> Vec<f64> { neurons.iter().map(|&n| changes[i].1[n]).collect() };
            let (x, y) = (of(one), of(other));
            correlations.push(Correlation {
                pair: [changes[one].0, changes[other].0],
                scope: scope.to_owned(),
                neurons: neurons.len(),
                pearson: pearson(&x, &y),
                spearman: spearman(&x, &y),
            });
        }
    }

    let figure = |i: usize| figure(&layer, &last, &changes[i], &changes[2].1, &correlations);
    let mut facts = study.facts("nwc", &["clean", "layers", "unlearn"]);
    facts["random"] = otbr.tree["unlearn"].clone();
    Ok(Findings {
        tables: vec![
            ("nwc.csv", table(change, &changes)),
            ("correlations.csv", correlation_table(&correlations)),
        ],
        figures: vec![("clean.svg", figure(0)), ("random.svg", figure(1))],
        facts,
        found: json!({
            "layer": layer,
            "clean_unlearning": course(&clean),
            "poison_unlearning": course(&poison),
            "correlations": correlations.iter().map(correlation_json).collect::<Vec<_>>(),
        }),
    })
}

fn unlearn(study: &Study, lesson: Lesson) -> Result<Unlearned, Failure> {
    let run = (study.seed, &study.compute);
    let unlearned = lesson.unlearn(&study.subject, &study.cfg, run, &mut |epoch, _| {
        let right = epoch.accuracy.percent().unwrap_or(0.0);
        study.say(&format!(
            "{} unlearning, epoch {}: {right:.2} % right",
            lesson.id(),
            epoch.number + 1
        ));
        Ok(())
    })?;
    tell_unless_reached(study, lesson, &unlearned);
    Ok(unlearned)
}

/// Warns of an unlearning that the cap on its epochs ended.
pub(super) fn tell_unless_reached(study: &Study, lesson: Lesson, unlearned: &Unlearned) {
    let course = &unlearned.course;
    if !course.reached && !course.constant {
        study.warn(&format!(
            "{} unlearning ended after {} epochs, the most that `unlearn.max_epochs` allows",
            lesson.id(),
            course.epochs
        ));
    }
}

/// How an unlearning went.
pub(super) fn course(unlearned: &Unlearned) -> Value {
    let course = &unlearned.course;
    json!({
        "epochs": course.epochs,
        "reached": course.reached,
        "constant": course.constant,
        "right": course.accuracy.and_then(Ratio::value),
    })
}

fn doubled(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn table(change: &WeightChange, changes: &[(&str, Vec<f64>)]) -> String {
    let mut text = "layer,channel".to_owned();
    for (name, _) in changes {
        write!(text, ",{name}").expect("strings take all");
    }
    text.push('\n');
    for neuron in 0..change.neurons() {
        let place = change.place(neuron);
        write!(text, "{},{}", place.layer, place.channel).expect("strings take all");
        for (_, values) in changes {
            // The changes are single numbers, whose shortest form is theirs and not that of a double one.
            write!(text, ",{}", values[neuron] as f32).expect("strings take all");
        }
        text.push('\n');
    }
    text
}

fn correlation_table(correlations: &[Correlation]) -> String {
    let mut text = "one,other,scope,neurons,pearson,spearman\n".to_owned();
    let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    for c in correlations {
        writeln!(
            text,
            "{},{},{},{},{},{}",
            c.pair[0],
            c.pair[1],
            c.scope,
            c.neurons,
            number(c.pearson),
            number(c.spearman)
        )
        .expect("strings take all");
    }
    text
}

fn correlation_json(c: &Correlation) -> Value {
    json!({
        "pair": c.pair,
        "scope": c.scope,
        "neurons": c.neurons,
        "pearson": c.pearson,
        "spearman": c.spearman,
    })
}

/// The last layer as OTBR's paper shows it, poison unlearning across and another one up.
///
/// Each has a figure of its own, because unlearning images and noise moves the weights by quite different lengths.
fn figure(
    layer: &str,
    neurons: &[usize],
    (name, values): &(&'static str, Vec<f64>),
    poison: &[f64],
    correlations: &[Correlation],
) -> Figure {
    let own = correlations
        .iter()
        .find(|c| c.pair == [*name, "poison"] && c.scope == layer);
    let number = |r: Option<f64>| r.map_or_else(|| "none".to_owned(), |r| format!("{r:.3}"));
    let note = |name: &str, r: Option<f64>| Series {
        name: format!("{name} {}", number(r)),
        style: Style::Note,
        points: Vec::new(),
    };
    Figure {
        title: format!(
            "Neuron weight change, {}",
            layer.trim_end_matches(".weight")
        ),
        x: "poison unlearning".to_owned(),
        y: format!("{name} unlearning"),
        series: vec![
            Series {
                name: "neurons".to_owned(),
                style: Style::Points,
                points: neurons.iter().map(|&n| (poison[n], values[n])).collect(),
            },
            note("Pearson", own.and_then(|c| c.pearson)),
            note("Spearman", own.and_then(|c| c.spearman)),
        ],
    }
}
