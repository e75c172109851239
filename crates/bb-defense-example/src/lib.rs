//! # Norm pruning: neurons whose weights stand out
//!
//! The worked example of a defense in a crate of its own; `docs/contributing/add-a-defense.md` builds it step by step.
//!
//! ## What it does
//! Clears the neurons whose weights have a much larger norm than those of their layer, as many as the accuracy on clean
//! images bears. The guess behind it is that a trigger, which must win over everything else in an image, needs large
//! weights somewhere.
//!
//! ## Threat model
//! The defender has the suspect model and 5 % of the clean training images with their labels. Triggers, poison
//! indices, the target class and the test set stay unseen.
//!
//! ## Algorithm
//! 1. The L2 norm of each neuron's weights, as deviations from the mean of its layer -> [`excess`].
//! 2. For each threshold of `deviations` a copy of the suspect model in which the weights of all neurons above it are 0.
//! 3. The choice is the last one, hence the one with most neurons pruned, whose accuracy on the clean images lacks at
//!    most `tolerance` to the suspect's; the first one if none does -> [`choose`].
//!
//! ## Differences from the authors' code
//! There is none: it was made up as an example, and nothing is claimed of what it reaches.
//!
//! ## Settings
//! - `deviations` (4 to 1.5): thresholds, descending, each of which makes a model.
//! - `tolerance` (0.02): accuracy on the clean images that the choice may cost.
//! - `clean.ratio` (0.05): share of the training images that the defender has.
//! - `clean.seed` (0): seed of their draw, which is that of Python's `random.sample`.
//! - `clean.index_file` (""): text file with their indices instead.
//! - `layers.exclude` (shortcut, downsample): convolutions whose name contains one of these are left alone.
//!
//! ## Cost
//! One pass without gradient over the clean images for each threshold, and one for the suspect model.
//!
//! ## References
//! None.

pub mod config;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::metrics::Ratio;
use bb_core::settings::Valid;
use bb_defense::DefenseError;
use bb_defense::context::{At, Ctx};
use bb_defense::data::{CleanBudget, CleanImages};
use bb_defense::method::{Candidate, Defense, Repaired, Suspect};
use bb_defense::nwc::target_tensors;
use bb_defense::parts::clear;
use bb_defense::recipes::RecipeFile;
use bb_nn::{Flat, Net, eval};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::NormPruneConfig;

/// The defense, for `main`.
pub struct NormPrune;

impl Defense for NormPrune {
    const INFO: MethodInfo = MethodInfo {
        id: "norm-prune",
        title: "NormPrune",
        paper: "none: the worked example of a new defense",
        needs: Needs::CleanFraction,
        status: Status::Experimental,
        summary: "clears neurons whose weights have an unusually large norm",
        docs: include_str!("lib.rs"),
    };
    const RECIPES: &'static [RecipeFile] = &[RecipeFile {
        dataset: "synthetic",
        path: "crates/bb-defense-example/recipes/synthetic.toml",
        text: include_str!("../recipes/synthetic.toml"),
    }];
    type Data = CleanImages;
    type Config = NormPruneConfig;

    fn budget(cfg: &NormPruneConfig) -> CleanBudget {
        cfg.clean.clone()
    }

    fn repair(
        cfg: &Valid<NormPruneConfig>,
        suspect: Suspect<'_, CleanImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let mut net = suspect.net()?;
        let before = accuracy(&mut net, &suspect, "the suspect model")?;
        let targets: Vec<(usize, Vec<f64>)> = target_tensors(net.params(), &cfg.layers.exclude)
            .into_iter()
            .map(|tensor| (tensor, excess(net.params(), tensor)))
            .collect();
        let (mut candidates, mut hits) = (Vec::new(), Vec::new());
        for &u in &cfg.deviations {
            let (candidate, own) = candidate(&suspect, &targets, u, ctx)?;
            candidates.push(candidate);
            hits.push(own.hits);
        }
        let allowed = cfg.tolerance * before.total as f64;
        Ok(Repaired {
            chosen: choose(before.hits, &hits, allowed),
            candidates,
            artefacts: Vec::new(),
            notes: json!({ "clean_acc": before.value() }),
        })
    }
}

/// Accuracy on the clean images that the defender has.
fn accuracy(
    net: &mut Net,
    suspect: &Suspect<'_, CleanImages>,
    network: &str,
) -> Result<Ratio, DefenseError> {
    eval::accuracy(net, suspect.clean(), suspect.task()).map_err(DefenseError::scores(network))
}

/// How far the L2 norm of each neuron of a convolution lies above the mean of the layer, in standard deviations.
///
/// 0 for all neurons of a layer whose norms are equal.
pub fn excess(params: &Flat, tensor: usize) -> Vec<f64> {
    let weights = params.to_plain(tensor);
    let neurons = params.layout().entries()[tensor].shape[0];
    let norm = |neuron: &[f32]| neuron.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
    let rows = weights.chunks_exact(weights.len() / neurons);
    let norms: Vec<f64> = rows.map(|neuron| norm(neuron).sqrt()).collect();
    let mean = norms.iter().sum::<f64>() / neurons as f64;
    let variance = norms.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / neurons as f64;
    let scale = if variance > 0.0 { variance.sqrt() } else { 1.0 };
    norms.iter().map(|n| (n - mean) / scale).collect()
}

/// What is kept of a finished candidate beside its model.
#[derive(Serialize, Deserialize)]
struct Pruned {
    neurons: usize,
    accuracy: Ratio,
}

/// The suspect model without the neurons that lie more than `u` deviations above their layer.
fn candidate(
    suspect: &Suspect<'_, CleanImages>,
    targets: &[(usize, Vec<f64>)],
    u: f64,
    ctx: &mut Ctx<'_>,
) -> Result<(Candidate, Ratio), DefenseError> {
    let name = format!("u={u}");
    let (state, pruned) = if let Some(saved) = ctx.load::<Pruned>(&name)? {
        (saved.state, saved.progress)
    } else {
        ctx.check()?;
        let mut net = suspect.net()?;
        let mut neurons = 0;
        for (tensor, excess) in targets {
            let above: Vec<bool> = excess.iter().map(|&e| e > u).collect();
            neurons += above.iter().filter(|&&above| above).count();
            let fan_in = net.params().tensor(*tensor).len() / above.len();
            let mask: Vec<bool> = above.iter().flat_map(|&a| vec![a; fan_in]).collect();
            clear(net.params_mut(), *tensor, &mask);
        }
        let at = At::stage("prune").variant(&name);
        ctx.probe(at, &mut net);
        let accuracy = accuracy(&mut net, suspect, &format!("candidate `{name}`"))?;
        let row = json!({ "neurons": neurons, "clean_acc": accuracy.value() });
        ctx.record(at, &row)?;
        let pruned = Pruned { neurons, accuracy };
        let state = net.state()?;
        ctx.save(&name, &state, &pruned)?;
        (state, pruned)
    };
    let notes = json!({ "neurons": pruned.neurons, "clean_acc": pruned.accuracy.value() });
    Ok((Candidate { name, state, notes }, pruned.accuracy))
}

/// The last candidate that has at most `allowed` images less right than the suspect model, else the first one.
pub fn choose(before: u64, hits: &[u64], allowed: f64) -> usize {
    let bearable = |&own: &u64| before as f64 - own as f64 <= allowed;
    hits.iter().rposition(bearable).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_nn::ArchSpec;

    #[test]
    fn excess_is_the_distance_from_the_mean_in_deviations() {
        let arch = ArchSpec::new("preactresnet18", 4, 10).expect("a small network");
        let mut net = Net::new(&arch, 0);
        // The stem has four neurons of 27 weights; their norms become 1, 1, 1 and 5.
        let mut weights = vec![0.0; 4 * 27];
        for (neuron, weight) in [-1.0, 1.0, 1.0, 5.0].into_iter().enumerate() {
            weights[neuron * 27 + neuron] = weight;
        }
        net.params_mut().set_plain(0, &weights);
        // Mean 2, deviations -1, -1, -1, 3, variance 3.
        let root = 3f64.sqrt();
        for (found, expected) in excess(net.params(), 0).iter().zip([-1.0, -1.0, -1.0, 3.0]) {
            assert!((found - expected / root).abs() < 1e-12, "{found}");
        }
        net.params_mut().set_plain(0, &[1.0; 4 * 27]);
        assert_eq!(excess(net.params(), 0), [0.0; 4]);
    }

    #[test]
    fn the_choice_is_the_last_that_the_clean_accuracy_bears() {
        assert_eq!(choose(90, &[90, 89, 88, 70], 2.0), 2);
        assert_eq!(
            choose(90, &[90, 60, 89, 70], 2.0),
            2,
            "whatever lies between"
        );
        assert_eq!(choose(90, &[95, 96], 0.0), 1, "more right is no loss");
        assert_eq!(
            choose(90, &[80, 70], 2.0),
            0,
            "the mildest if none is borne"
        );
    }
}
