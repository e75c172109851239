//! Gradient norms of the neurons of the last target layer while clean images are unlearned, in a backdoored and in a
//! clean network.
//!
//! Observation 2 of TSBD (Lin et al., 2024): neurons of a backdoored network are more active. As in the authors'
//! code a neuron's norm is the L1 norm of the loss's gradient by its weights, taken at every step of the first epoch of
//! clean unlearning while the weights move, and its activeness is the mean over the steps. Both networks unlearn the
//! same images with the same settings.

use std::fmt::Write as _;
use std::path::Path;

use bb_core::cli::Failure;
use bb_core::metrics::Summary;
use bb_defense::tsbd::config::TsbdConfig;
use serde_json::{Value, json};

use super::output::Findings;
use super::subject::{Lesson, Subject};
use super::svg::{Figure, Series, Style};
use super::{Study, finite};

/// Compares the study's model with the one of the cell `clean`.
pub fn run(study: &Study, clean: &Path, data: Option<&Path>) -> Result<Findings, Failure> {
    let subject = &study.subject;
    subject.needs_backdoor("the comparison with a clean model")?;
    let twin = Subject::open(clean, data)?;
    twin.needs_clean_twin_of(subject)?;

    let (_, layer) = subject.last_target(&study.cfg)?;
    let mut cfg: TsbdConfig = study.cfg.clone().into_inner();
    cfg.record_layer.clone_from(&layer);
    cfg.unlearn.max_epochs = 1;
    let activeness = |name: &str, subject: &Subject| -> Result<Vec<(f64, f64)>, Failure> {
        study.say(&format!("one epoch of clean unlearning, {name} model"));
        let run = (study.seed, &study.compute);
        let unlearned = Lesson::Clean.unlearn(subject, &cfg, run, &mut |_, _| Ok(()))?;
        let means: Vec<f64> = means(&unlearned.course.activeness);
        finite(
            &format!("the gradient norm of the {name} model"),
            &layer,
            &means,
        )?;
        Ok(unlearned.course.activeness)
    };
    let backdoored = activeness("backdoored", subject)?;
    let clean = activeness("clean", &twin)?;

    let series = |name: &str, own: &[(f64, f64)]| Series {
        name: name.to_owned(),
        style: Style::Points,
        points: means(own)
            .into_iter()
            .enumerate()
            .map(|(channel, mean)| (channel as f64, mean))
            .collect(),
    };
    let figure = Figure {
        title: format!("Gradient norm, {}", layer.trim_end_matches(".weight")),
        x: "neuron".to_owned(),
        y: "mean L1 norm of the gradient".to_owned(),
        series: vec![
            series("backdoored model", &backdoored),
            series("clean model", &clean),
        ],
    };
    let (own, other) = (
        Summary::of(&means(&backdoored)),
        Summary::of(&means(&clean)),
    );
    let larger = |part: fn(&Summary) -> Option<f64>| {
        let (own, other) = (own.as_ref().and_then(part), other.as_ref().and_then(part));
        own.zip(other).map(|(own, other)| own > other)
    };
    let mut facts = study.facts("activeness", &["clean", "layers", "unlearn"]);
    facts["settings"]["unlearn"]["max_epochs"] = json!(cfg.unlearn.max_epochs);
    facts["clean_cell"] = json!({
        "method": twin.cell.manifest.method,
        "id": twin.cell.manifest.id,
        "digest": twin.cell.digest(),
    });
    Ok(Findings {
        tables: vec![("activeness.csv", table(&backdoored, &clean))],
        figures: vec![("activeness.svg", figure)],
        facts,
        found: json!({
            "layer": layer,
            "backdoored": summary_json(own.as_ref()),
            "clean": summary_json(other.as_ref()),
            "backdoored_has_larger_mean": larger(|summary| Some(summary.mean)),
            "backdoored_has_larger_spread": larger(|summary| summary.std),
        }),
    })
}

fn means(activeness: &[(f64, f64)]) -> Vec<f64> {
    activeness.iter().map(|(mean, _)| *mean).collect()
}

fn summary_json(summary: Option<&Summary>) -> Value {
    json!({
        "neurons": summary.map(|summary| summary.n),
        "mean": summary.map(|summary| summary.mean),
        "std": summary.and_then(|summary| summary.std),
    })
}

fn table(backdoored: &[(f64, f64)], clean: &[(f64, f64)]) -> String {
    let mut text =
        "channel,backdoored_mean,backdoored_variance,clean_mean,clean_variance\n".to_owned();
    for (channel, (own, other)) in backdoored.iter().zip(clean).enumerate() {
        writeln!(
            text,
            "{channel},{},{},{},{}",
            own.0, own.1, other.0, other.1
        )
        .expect("strings take all");
    }
    text
}
