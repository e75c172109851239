//! Searching the picture that drives chosen neurons of a clean network.

use bb_core::cli::check_interrupt;
use bb_core::data::DatasetSpec;
use bb_core::events::Progress;
use bb_core::rng;
use bb_nn::arch::PENULTIMATE;
use bb_nn::data::Input;
use bb_nn::{ArchSpec, Mode, Net, Spec};

use super::config::{Head, Iterate, TriggerConfig};
use crate::error::AttackError;
use crate::picture::Picture;

/// Classes of the layer that the bench puts on the network, with random weights.
const RANDOM_CLASSES: usize = 1000;

/// What a search gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The trigger, `[height, width, 3]`.
    pub pixels: Vec<u8>,
    /// The neurons that were chosen.
    pub neurons: Vec<usize>,
    /// Their mean value for the mask and for the trigger before it is rounded.
    pub before: f32,
    /// See [`Found::before`].
    pub after: f32,
}

/// Projected gradient descent from the mask: `sum (feature_j - target_value)^2` over the chosen neurons j.
///
/// A step goes by `step` against the sign of the gradient and stays within `radius` of the mask and in 0 to 1; where
/// the mask is 0 nothing moves.
pub fn search(
    cfg: &TriggerConfig,
    net: &mut Net,
    mask: &Picture,
    spec: &DatasetSpec,
    (seed, quiet): (u64, bool),
) -> Result<Found, AttackError> {
    let weights = head(cfg.head, net, seed)?;
    let chosen = strongest(&weights, cfg.neurons);
    let mask: Vec<f32> = mask
        .pixels()
        .iter()
        .map(|&v| f32::from(v) / 255.0)
        .collect();
    let (step, radius) = (cfg.step as f32, cfg.radius as f32);
    let target = cfg.target_value as f32;
    let seen = |x: &[f32]| Input {
        n: 1,
        h: spec.height,
        w: spec.width,
        data: x
            .iter()
            .enumerate()
            .map(|(i, v)| {
                if cfg.normalised {
                    (v - spec.mean[i % 3]) / spec.std[i % 3]
                } else {
                    *v
                }
            })
            .collect(),
    };
    let progress = Progress::new(
        "searching the trigger",
        "steps",
        cfg.iterations as u64,
        quiet,
    );
    let mut x = mask.clone();
    let (mut best, mut before, mut after) = ((f32::INFINITY, x.clone()), 0.0, 0.0);
    for iteration in 0..=cfg.iterations {
        check_interrupt()?;
        let input = seen(&x);
        let tape = net.record(&input, Mode::Eval);
        let feature = tape.feature(PENULTIMATE).expect("every classifier has it");
        let mut gradient = vec![0.0; feature.data.len()];
        let (mut cost, mut mean) = (0.0, 0.0);
        for &j in &chosen {
            let off = feature.data[j] - target;
            gradient[j] = 2.0 * off;
            cost += off * off;
            mean += feature.data[j] / chosen.len() as f32;
        }
        if !cost.is_finite() {
            return Err(AttackError::OwnNetwork {
                network: "clean network",
                what: "features of the trigger".to_owned(),
            });
        }
        if iteration == 0 {
            before = mean;
        }
        if cfg.iterate == Iterate::Last || cost < best.0 {
            best = (cost, x.clone());
            after = mean;
        }
        // The bench's threshold; a tenth of a percent of the value is close enough for 8 bits.
        if iteration == cfg.iterations || cost < 1e-3 {
            net.discard(tape);
            break;
        }
        let gradient = net.input_gradient(tape, &[(PENULTIMATE, &gradient)])?;
        for ((x, &m), g) in x.iter_mut().zip(&mask).zip(gradient) {
            // Normalising divides by a positive number, which changes no sign.
            if m > 0.0 && g != 0.0 {
                let moved = (*x - step * g.signum() - m).clamp(-radius, radius);
                *x = (m + moved).clamp(0.0, 1.0);
            }
        }
        progress.add(1);
    }
    progress.finish();
    Ok(Found {
        pixels: best.1.iter().map(|v| (255.0 * v) as u8).collect(),
        neurons: chosen,
        before,
        after,
    })
}

/// Refuses more neurons than an architecture has features before its last layer.
pub fn check_neurons(count: usize, arch: &ArchSpec) -> Result<(), AttackError> {
    let slots = Spec::from(arch).tensors();
    let last = slots.iter().rev().find(|slot| slot.shape.len() == 2);
    let features = last.expect("every classifier ends so").shape[1];
    if count > features {
        return Err(AttackError::Neurons {
            found: count,
            features,
        });
    }
    Ok(())
}

/// The weights `[classes][features]` by which neurons are chosen.
fn head(head: Head, net: &Net, seed: u64) -> Result<Vec<Vec<f32>>, AttackError> {
    let state = net.state()?;
    let linear = state.iter().filter(|(_, tensor)| tensor.rank() == 2);
    let (name, tensor) = linear.last().expect("every classifier ends so");
    let features = tensor.dims()[1];
    let values = match head {
        Head::Own => state.floats(name).expect("it is there")?,
        Head::Random => {
            let bound = 1.0 / (features as f64).sqrt();
            let mut stream = rng::stream(seed, "trojan/head", 0, 0);
            let draw = |_| ((2.0 * rng::unit_f64(&mut stream) - 1.0) * bound) as f32;
            (0..RANDOM_CLASSES * features).map(draw).collect()
        }
    };
    Ok(values.chunks_exact(features).map(<[f32]>::to_vec).collect())
}

/// The `count` features with the largest sum of absolute weights, the first of equals first.
fn strongest(weights: &[Vec<f32>], count: usize) -> Vec<usize> {
    let features = weights[0].len();
    let score = |j: usize| -> f64 { weights.iter().map(|row| f64::from(row[j].abs())).sum() };
    let scores: Vec<f64> = (0..features).map(score).collect();
    let mut order: Vec<usize> = (0..features).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{Golden, classifier, spec};
    use crate::trojan::config::TrojanConfig;
    use crate::trojan::trigger::drop_mask;
    use bb_nn::ArchSpec;

    #[test]
    fn the_features_with_most_weight_are_chosen() {
        let rows = [vec![1.0, -3.0, 0.0, 2.0], vec![1.0, 0.5, 0.0, -1.5]];
        assert_eq!(strongest(&rows, 2), [1, 3]);
    }

    #[test]
    fn more_neurons_than_features_are_refused_for_every_architecture() {
        for (name, features) in [
            ("preactresnet18", 32),
            ("resnet18", 32),
            ("resnet34", 32),
            ("vgg19_bn", 256),
        ] {
            let arch = ArchSpec::new(name, 4, 10).expect("a small network");
            check_neurons(features, &arch).expect("all of them");
            let error = check_neurons(features + 1, &arch).expect_err("one more");
            assert_eq!(
                error.to_string(),
                format!(
                    "`trigger.neurons` is {}, expected at most {features}, the features of the network",
                    features + 1
                )
            );
        }
    }

    /// Four steps of the benchmark's search, and the numbers that it searches by, which are the defaults.
    #[test]
    fn golden_search() {
        let golden = Golden::load("trojan");
        let shape = golden.shape("mask");
        let mask = Picture::new(shape[0], shape[1], golden.bytes("mask"));
        let mut cfg = TrojanConfig::default().trigger;
        let known = [
            cfg.radius,
            cfg.step,
            cfg.iterations as f64,
            cfg.neurons as f64,
            cfg.target_value,
        ];
        assert_eq!(known.to_vec(), golden.doubles("settings"));
        (cfg.normalised, cfg.iterate) = (false, Iterate::Last);
        cfg.iterations = golden.indices("steps")[0];
        let spec = spec(shape[0]);
        let found = search(&cfg, &mut classifier(), &mask, &spec, (0, true)).expect("a search");
        assert_eq!(found.neurons, golden.indices("neurons"));
        assert_eq!(found.pixels, golden.bytes("picture"));
        assert_ne!(found.pixels, mask.pixels());
    }

    #[test]
    fn the_search_drives_its_neurons_and_stays_in_its_bounds() {
        let arch = ArchSpec::new("preactresnet18", 4, 10).expect("a small network");
        let spec = bb_core::data::spec("synthetic").expect("a known set");
        let mask = drop_mask(32, 32);
        let find = |change: &dyn Fn(&mut TriggerConfig)| {
            let mut cfg = TrojanConfig::default().trigger;
            cfg.iterations = 20;
            change(&mut cfg);
            let mut net = Net::new(&arch, 3);
            search(&cfg, &mut net, &mask, spec, (5, true)).expect("a search")
        };
        let found = find(&|_| ());
        assert!(found.after > found.before, "{found:?}");
        assert_eq!(found, find(&|_| ()));
        for (&t, &m) in found.pixels.iter().zip(mask.pixels()) {
            let moved = f32::from(t) - f32::from(m);
            assert!(m > 0 || t == 0);
            assert!(moved.abs() <= 0.3 * 255.0 + 1.0, "{m} became {t}");
        }
        let last = find(&|cfg| cfg.iterate = Iterate::Last);
        assert!(last.after <= found.after);
        assert_ne!(find(&|cfg| cfg.normalised = false).pixels, found.pixels);
        let random = find(&|cfg| cfg.head = Head::Random);
        assert_ne!(random.neurons, found.neurons);
        // No step leaves the mask.
        let still = find(&|cfg| cfg.iterations = 0);
        assert_eq!(still.pixels, mask.pixels());
        assert!((still.before - still.after).abs() < f32::EPSILON);
    }

    /// As PyTorch draws the weights of a linear layer.
    #[test]
    fn a_random_head_is_even_about_zero() {
        let rows = head(Head::Random, &crate::golden::classifier(), 0).expect("a head");
        assert_eq!(rows.len(), RANDOM_CLASSES);
        let bound = 1.0 / (rows[0].len() as f32).sqrt();
        let all = rows.concat();
        let mean = all.iter().sum::<f32>() / all.len() as f32;
        assert!(mean.abs() < 0.02 * bound, "{mean}");
        let (low, high) = all.iter().fold((0.0_f32, 0.0_f32), |(low, high), &v| {
            (low.min(v), high.max(v))
        });
        for side in [-low, high] {
            assert!((0.99 * bound..=bound).contains(&side), "{low} to {high}");
        }
    }
}
