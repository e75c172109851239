//! Trigger-activated change: what a trigger changes in each channel of a layer, and how well the methods' rankings of
//! channels, which know no trigger, find those that change most.
//!
//! The layer is the last convolution that a batch normalisation stands right behind: `layer4.1.conv1` and `layer4.1.bn2`
//! of PreActResNet-18, whose very last convolution has none, so that pruning methods have no score there. All methods
//! rank these same channels:
//!
//! | method | score of a channel | most suspicious |
//! |---|---|---|
//! | NWC (TSBD, Lin et al., 2024) | weight change of clean unlearning | highest |
//! | CLP (Zheng et al., ECCV 2022) | bound of its Lipschitz constant | highest |
//! | FP (Liu et al., RAID 2018) | mean activation on clean images, behind the rectifier | lowest |
//! | ANP, RNP, if given ([`super::masks`]) | the mask that the repair learned | lowest |
//!
//! FP itself ranks the pooled features that the classifier reads. These are other channels than the layer's, so its rule
//! is applied to the layer's here. Masks take a training of their own, so they are read from a finished repair.

use std::fmt::Write as _;
use std::path::PathBuf;

use bb_core::cli::Failure;
use bb_core::data::{DatasetSpec, Images};
use bb_defense::DefenseError;
use bb_defense::clp::config::{ClpConfig, Pairing};
use bb_defense::clp::{Clp, Pair, lipschitz, pairs};
use bb_defense::fp::Fp;
use bb_defense::fp::ascending;
use bb_defense::fp::config::FpConfig;
use bb_defense::method::{Defense, Given, settings};
use bb_defense::nwc::{count_of, rank_descending};
use bb_nn::data::{LoaderOptions, Normaliser, batches, plain_input};
use bb_nn::net::EPS;
use bb_nn::{Mode, Net};
use serde_json::json;

use super::masks;
use super::nwc::tell_unless_reached;
use super::output::Findings;
use super::subject::Lesson;
use super::svg::{Figure, Series, Style};
use super::{AnalyzeError, Study, finite};

/// Trigger-activated change of each channel of the convolution called `feature`.
///
/// `TAC_k` is the sum over the map's places of the mean over the images of `|F_k(with trigger) - F_k(without)|`, in eval
/// mode with the test transform, as in BackdoorBench (`analysis/visual_tac.py`); `F` is what the convolution gives,
/// before normalisation and rectifier. Image `i` of `poisoned` is image `i` of `clean` with the trigger.
///
/// # Panics
/// If there are not as many images of each kind.
pub fn tac(
    net: &mut Net,
    feature: &str,
    (clean, poisoned): (&Images, &Images),
    spec: &DatasetSpec,
) -> Result<Vec<f64>, Failure> {
    assert_eq!(clean.len(), poisoned.len(), "images of each kind");
    let normaliser = Normaliser::new(spec);
    let mut sums: Vec<f64> = Vec::new();
    for first in (0..clean.len()).step_by(PART) {
        let part = first..(first + PART).min(clean.len());
        bb_core::cli::check_interrupt()?;
        let without = maps(net, feature, &plain_input(clean, part.clone(), &normaliser));
        let with = maps(net, feature, &plain_input(poisoned, part, &normaliser));
        let channels = without.0;
        sums.resize(channels, 0.0);
        let pixels = without.1.chunks_exact(channels);
        for (without, with) in pixels.zip(with.1.chunks_exact(channels)) {
            for (sum, (without, with)) in sums.iter_mut().zip(without.iter().zip(with)) {
                *sum += (f64::from(*with) - f64::from(*without)).abs();
            }
        }
    }
    net.take_failure()?;
    Ok(sums.iter().map(|sum| sum / clean.len() as f64).collect())
}

/// Images of one pass, which no result depends on.
const PART: usize = 250;

/// Channels and values, pixel by pixel, of what a convolution gives.
fn maps(net: &mut Net, feature: &str, input: &bb_nn::data::Input) -> (usize, Vec<f32>) {
    let (_, mut features) = net.forward_with(input, Mode::Eval, &[feature]);
    // A GPU that failed gives none, and its failure is asked for afterwards.
    features
        .pop()
        .map_or((1, Vec::new()), |map| (map.shape.c, map.data))
}

/// The layer that all methods rank.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its parameters.
    pub pair: Pair,
    /// Name of the convolution, which is also that of what it gives.
    pub conv: String,
    /// Name of the batch normalisation behind it.
    pub norm: String,
}

impl Layer {
    /// The last convolution that a batch normalisation stands right behind.
    pub fn last(net: &Net) -> Result<Self, DefenseError> {
        // The last one of the main branch: the classifiers end their blocks so.
        let pair = pairs(net, Pairing::MainBranch).pop();
        let pair = pair.ok_or_else(|| DefenseError::NoNorm {
            arch: net.spec().label(),
        })?;
        let name = |tensor: usize| {
            let name = &net.params().layout().entries()[tensor].name;
            name.trim_end_matches(".weight").to_owned()
        };
        Ok(Self {
            conv: name(pair.conv),
            norm: name(pair.norm),
            pair,
        })
    }

    /// Name of the convolution's weights.
    pub fn tensor(&self) -> String {
        format!("{}.weight", self.conv)
    }

    /// What the batch normalisation multiplies each channel by and adds to it in eval mode.
    pub fn affine(&self, net: &Net) -> Vec<(f64, f64)> {
        let (gamma, beta) = (
            net.params().to_plain(self.pair.norm),
            net.params().to_plain(self.pair.norm + 1),
        );
        // The running mean stands right before the variance.
        let mean = net.buffers().to_plain(self.pair.variance - 1);
        let variance = net.buffers().to_plain(self.pair.variance);
        let channels = gamma.iter().zip(&beta).zip(mean.iter().zip(&variance));
        channels
            .map(|((&gamma, &beta), (&mean, &variance))| {
                let scale = f64::from(gamma) / (f64::from(variance) + f64::from(EPS)).sqrt();
                (scale, f64::from(beta) - scale * f64::from(mean))
            })
            .collect()
    }
}

/// A method that ranks channels.
pub struct Method {
    /// Its name in tables.
    pub id: &'static str,
    /// Its name in figures.
    pub title: &'static str,
    /// Which channels it finds the most suspicious.
    pub suspicious: End,
    /// Scores the channels of a layer, knowing no trigger.
    pub score: fn(&Study, &Layer) -> Result<Vec<f64>, Failure>,
}

/// An end of a row of scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The highest score comes first.
    Highest,
    /// The lowest score comes first.
    Lowest,
}

impl End {
    /// Channels in the order of suspicion; equal scores keep their order.
    pub fn order(self, scores: &[f64]) -> Vec<usize> {
        match self {
            Self::Highest => rank_descending(scores),
            Self::Lowest => ascending(scores),
        }
    }
}

/// What a method thinks of each channel of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// The method's name in tables, another one for each ranking.
    pub id: String,
    /// The method's name in figures.
    pub title: String,
    /// Which channels it finds the most suspicious.
    pub suspicious: End,
    /// One score a channel.
    pub scores: Vec<f64>,
}

/// The methods that score channels here, in the order of tables and figures.
pub static METHODS: &[Method] = &[
    Method {
        id: "nwc",
        title: "NWC",
        suspicious: End::Highest,
        score: weight_change,
    },
    Method {
        id: "clp",
        title: Clp::INFO.title,
        suspicious: End::Highest,
        score: bound,
    },
    Method {
        id: "fp",
        title: Fp::INFO.title,
        suspicious: End::Lowest,
        score: activation,
    },
];

fn weight_change(study: &Study, layer: &Layer) -> Result<Vec<f64>, Failure> {
    let run = (study.seed, &study.compute);
    let lesson = Lesson::Clean;
    let unlearned = lesson.unlearn(&study.subject, &study.cfg, run, &mut |epoch, _| {
        let right = epoch.accuracy.percent().unwrap_or(0.0);
        study.say(&format!(
            "clean unlearning, epoch {}: {right:.2} % right",
            epoch.number + 1
        ));
        Ok(())
    })?;
    tell_unless_reached(study, lesson, &unlearned);
    let change = &unlearned.change;
    let tensor = layer.tensor();
    let own = change.nwc().into_iter().enumerate();
    let own = own.filter(|(neuron, _)| change.place(*neuron).layer == tensor);
    Ok(own.map(|(_, value)| f64::from(value)).collect())
}

fn bound(study: &Study, layer: &Layer) -> Result<Vec<f64>, Failure> {
    let dataset = &study.subject.cell.manifest.dataset;
    let cfg: ClpConfig = settings::<Clp>(dataset, &Given::default())?
        .value
        .into_inner();
    let net = study.subject.net(&study.compute)?;
    Ok(lipschitz(&net, &layer.pair, cfg.eps))
}

fn activation(study: &Study, layer: &Layer) -> Result<Vec<f64>, Failure> {
    let subject = &study.subject;
    let cfg: FpConfig = settings::<Fp>(&subject.cell.manifest.dataset, &Given::default())?
        .value
        .into_inner();
    let mut net = subject.net(&study.compute)?;
    let affine = layer.affine(&net);
    let clean = subject.defenders_images(&study.cfg)?;
    let options = LoaderOptions {
        batch_size: cfg.prune.batch_size,
        shuffle: false,
        drop_last: false,
        augment: cfg.prune.augment,
        seed: study.seed,
        purpose: "fp/activation",
    };
    let (mut sums, mut pixels) = (vec![0.0; affine.len()], 0.0);
    for batch in batches(&clean, &subject.dataset.spec, options, 0) {
        let (channels, values) = maps(&mut net, &layer.conv, &batch.input);
        for pixel in values.chunks_exact(channels) {
            for (sum, (value, (scale, shift))) in sums.iter_mut().zip(pixel.iter().zip(&affine)) {
                *sum += (scale * f64::from(*value) + shift).max(0.0);
            }
            pixels += 1.0;
        }
    }
    net.take_failure()?;
    Ok(sums.iter().map(|sum| sum / pixels).collect())
}

/// Of the first `share` of the channels by `truth`, how many are among as many by `order`, and how many that are.
pub fn coverage(truth: &[usize], order: &[usize], share: f64) -> (usize, usize) {
    let count = count_of(truth.len(), share);
    let found = truth[..count].iter().filter(|k| order[..count].contains(k));
    (found.count(), count)
}

/// Shares of the channels for which the coverage is counted.
fn shares() -> impl Iterator<Item = f64> {
    (1..=20).map(|twentieth| f64::from(twentieth) / 20.0)
}

/// Scores the channels by every method, the masks of the repairs `repairs` included, and compares these rankings with
/// the trigger-activated change.
pub fn run(study: &Study, repairs: &[PathBuf]) -> Result<Findings, Failure> {
    let subject = &study.subject;
    subject.needs_backdoor("trigger-activated change")?;
    let mut net = subject.net(&study.compute)?;
    let layer = Layer::last(&net)?;
    // What the settings or a wrong cell leave without a score is said before anything is computed.
    let tensor = layer.tensor();
    if !subject
        .targets(&study.cfg)?
        .iter()
        .any(|(_, name)| *name == tensor)
    {
        return Err(AnalyzeError::NotTarget { layer: tensor }.into());
    }
    let affine = layer.affine(&net);
    let (learned, repairs) = masks::rankings(repairs, subject, (&layer, affine.len()))?;
    study.say(&format!("trigger-activated change of `{}`", layer.conv));
    let clean = subject
        .dataset
        .test
        .images
        .select(&subject.poisoned.indices);
    let images = (&clean, &subject.poisoned.images);
    let conv = tac(&mut net, &layer.conv, images, &subject.dataset.spec)?;
    // In eval mode the batch normalisation only scales and shifts, and the shift is the same on both sides.
    let norm: Vec<f64> = conv
        .iter()
        .zip(&affine)
        .map(|(change, (scale, _))| change * scale.abs())
        .collect();
    let truths = [(layer.conv.as_str(), conv), (layer.norm.as_str(), norm)];
    for (name, values) in &truths {
        finite("trigger-activated change", name, values)?;
    }

    let mut rankings = Vec::with_capacity(METHODS.len() + learned.len());
    for method in METHODS {
        study.say(&format!("ranking by {}", method.title));
        rankings.push(Ranking {
            id: method.id.to_owned(),
            title: method.title.to_owned(),
            suspicious: method.suspicious,
            scores: (method.score)(study, &layer)?,
        });
    }
    rankings.extend(learned);
    for ranking in &rankings {
        let what = format!("the score of {}", ranking.title);
        finite(&what, &layer.norm, &ranking.scores)?;
    }
    let mut rows = Vec::new();
    for (name, values) in &truths {
        let truth = rank_descending(values);
        for ranking in &rankings {
            let order = ranking.suspicious.order(&ranking.scores);
            for share in shares() {
                let (found, count) = coverage(&truth, &order, share);
                // Of no channel there is no share.
                if count > 0 {
                    rows.push(Row {
                        truth: (*name).to_owned(),
                        ranking,
                        share,
                        found,
                        count,
                    });
                }
            }
        }
    }
    let tenth = |row: &&Row<'_>| row.share.total_cmp(&0.1).is_eq();
    let found: Vec<_> = rows
        .iter()
        .filter(tenth)
        .map(|row| {
            json!({
                "tac": row.truth,
                "method": row.ranking.id,
                "channels": row.count,
                "found": row.found,
                "coverage": row.value(),
            })
        })
        .collect();
    let figure = figure(&layer, &rankings, &rows);
    let mut facts = study.facts("tac", &["clean", "unlearn"]);
    facts["images"] = json!(clean.len());
    facts["masks"] = json!(repairs);
    Ok(Findings {
        tables: vec![
            ("channels.csv", channels(&truths, &rankings)),
            ("coverage.csv", table(&rows)),
        ],
        figures: vec![("coverage.svg", figure)],
        facts,
        found: json!({ "conv": layer.conv, "norm": layer.norm, "coverage_of_a_tenth": found }),
    })
}

/// How much of what the trigger changes a method finds.
struct Row<'a> {
    /// The layer whose change is looked for.
    truth: String,
    ranking: &'a Ranking,
    share: f64,
    found: usize,
    count: usize,
}

impl Row<'_> {
    fn value(&self) -> f64 {
        self.found as f64 / self.count as f64
    }
}

fn channels(truths: &[(&str, Vec<f64>); 2], rankings: &[Ranking]) -> String {
    let mut text = "channel,tac_conv,tac_norm".to_owned();
    for ranking in rankings {
        write!(text, ",{}", ranking.id).expect("strings take all");
    }
    text.push('\n');
    for channel in 0..truths[0].1.len() {
        write!(text, "{channel}").expect("strings take all");
        let truths = truths.iter().map(|(_, values)| values);
        for values in truths.chain(rankings.iter().map(|ranking| &ranking.scores)) {
            write!(text, ",{}", values[channel]).expect("strings take all");
        }
        text.push('\n');
    }
    text
}

fn table(rows: &[Row]) -> String {
    let mut text = "tac,method,share,channels,found,coverage\n".to_owned();
    for row in rows {
        writeln!(
            text,
            "{},{},{},{},{},{}",
            row.truth,
            row.ranking.id,
            row.share,
            row.count,
            row.found,
            row.value()
        )
        .expect("strings take all");
    }
    text
}

/// The coverage of what changes behind the batch normalisation, and that of an order by chance.
fn figure(layer: &Layer, rankings: &[Ranking], rows: &[Row<'_>]) -> Figure {
    let mut series: Vec<Series> = rankings
        .iter()
        .map(|ranking| {
            let own = rows
                .iter()
                .filter(|row| row.truth == layer.norm && row.ranking.id == ranking.id);
            Series {
                name: ranking.title.clone(),
                style: Style::Line,
                points: own
                    .map(|row| (100.0 * row.share, 100.0 * row.value()))
                    .collect(),
            }
        })
        .collect();
    series.push(Series {
        name: "by chance".to_owned(),
        style: Style::Guide,
        points: vec![(0.0, 0.0), (100.0, 100.0)],
    });
    Figure {
        title: format!(
            "Coverage of the channels with the largest TAC, {}",
            layer.norm
        ),
        x: "% of the channels".to_owned(),
        y: "% of them ranked first".to_owned(),
        series,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_counts_what_both_rank_first() {
        let truth = [3, 1, 0, 2, 4, 7, 5, 6];
        let order = [1, 2, 3, 0, 4, 5, 6, 7];
        assert_eq!(coverage(&truth, &order, 0.125), (0, 1));
        assert_eq!(coverage(&truth, &order, 0.25), (1, 2));
        assert_eq!(coverage(&truth, &order, 0.5), (4, 4));
        assert_eq!(coverage(&truth, &order, 0.8), (5, 6), "7 and 5 of 7 and 5");
        assert_eq!(coverage(&truth, &order, 1.0), (8, 8));
        assert_eq!(
            coverage(&truth, &order, 0.1),
            (0, 0),
            "a tenth of eight is none"
        );
    }

    #[test]
    fn the_end_says_who_is_first() {
        let scores = [0.5, 2.0, 0.5, -1.0];
        assert_eq!(End::Highest.order(&scores), [1, 0, 2, 3]);
        assert_eq!(End::Lowest.order(&scores), [3, 0, 2, 1]);
    }

    #[test]
    fn the_layer_is_the_last_with_a_norm_right_behind_it() {
        for (arch, conv, norm) in [
            ("preactresnet18", "layer4.1.conv1", "layer4.1.bn2"),
            ("resnet18", "layer4.1.conv2", "layer4.1.bn2"),
            ("resnet34", "layer4.2.conv2", "layer4.2.bn2"),
            ("vgg19_bn", "features.49", "features.50"),
        ] {
            let spec = bb_nn::ArchSpec::new(arch, 2, 10).expect("a small network");
            let mut net = Net::new(&spec, 0);
            let layer = Layer::last(&net).expect("it has one");
            assert_eq!((layer.conv.as_str(), layer.norm.as_str()), (conv, norm));
            // The network knows what this convolution gives by its name.
            let input = bb_nn::data::Input {
                n: 1,
                h: 32,
                w: 32,
                data: vec![0.1; 32 * 32 * 3],
            };
            let (channels, values) = maps(&mut net, &layer.conv, &input);
            assert_eq!(channels, layer.affine(&net).len(), "{arch}");
            assert!(!values.is_empty(), "{arch}");
        }
    }
}
