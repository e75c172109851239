//! # OTBR: optimal-transport-based backdoor repairing
//!
//! ## What it does
//! Lets a copy of the suspect model unlearn random images with random labels, prunes the neurons whose weights moved
//! most, and fuses the pruned model with the suspect one: each neuron of the result is half itself and half the mean
//! of those pruned neurons that optimal transport brings to it. Neurons that carry the backdoor receive the most from
//! pruned ones, so they are weakened most, and nothing is trained.
//!
//! ## Threat model
//! The defender has the suspect model and no image at all. Triggers, poison indices, the target class, clean images
//! and the test set stay unseen.
//!
//! ## Algorithm
//! 1. Random unlearning: `unlearn.steps` steps of SGD that raise the cross-entropy on fresh noise, in train mode ->
//!    [`unlearn::run`].
//! 2. Neuron weight change (NWC): the L1 norm of what an output channel's weights moved, for all convolutions but the
//!    shortcuts -> [`bb_nn::neurons::weight_change`]; the first `K = int(T gamma)` of `T` neurons by it are set to 0.
//! 3. Fusion, layer by layer from the first one with a pruned neuron through all later target layers -> [`fuse`]:
//!    the pruned weights' inputs are brought to the suspect model's by the map of the layer before
//!    -> [`fusion::Map::align`]; the exact plan of least Euclidean distance from the pruned neurons, all of one mass,
//!    to the suspect's, which have their NWC as mass, is found -> [`transport::solve`]; each neuron becomes
//!    `lambda` times the mean of what came to it plus `1 - lambda` times itself -> [`fusion::Map::mix`].
//!    Shortcuts, batch normalisations with their statistics, and the classifier stay the suspect's.
//!
//! With `sweep = true` steps 2 and 3 are done for every ratio of `sweep_ratios`, and there are two results:
//! - The defender's choice, made without data.
//!   - `select.choose = "fixed"`: `prune.gamma`, which is one of the models whether the sweep names it or not.
//!   - `select.choose = "agreement"` -> [`fusion::choose`]: the repaired models and the suspect one are given the same
//!     `select.images` random images, others than the unlearning saw, and the logits of each are compared with the
//!     suspect's by their correlation over the classes, which the loss of scale that fusion brings does not touch. The
//!     choice is the largest ratio up to which this agreement is at least the share `select.agreement` of the smallest
//!     ratio's, which hardly repairs and so tells how much noise says about this network at all. Repairing weakens more
//!     neurons the larger the ratio is, and what it costs is that the network computes something else; on inputs without
//!     a trigger it should not, and noise is all of these a defender without data has.
//! - `oracle`: the ratio with the best DER on the test set, found by the harness alone. It says what the method could
//!   reach, not what a defender can have.
//!
//! ## Differences from the authors' code
//! The reference is `otbr.py` of linweiii/OTBR, whose choices are the defaults here:
//! - Noise is given to the network as it is, un-normalised (`unlearn.noise = "raw"`); `"normalised"` takes it for
//!   colours. Either moves other weights.
//! - The last class is never a random label, because its bound is exclusive (`unlearn.labels = "all-but-last"`);
//!   `"all"` draws it too. NWC changes slightly.
//! - Neurons are ranked by changes rounded to 4 decimals, and these are the masses too; ties keep the order of layers
//!   and channels. `nwc.precision = "exact"` takes the changes themselves.
//! - Distances are between the suspect's neurons and the pruned ones before their inputs are aligned
//!   (`fusion.cost = "unaligned"`); the fusion that the method builds on aligns them first (`"aligned"`), which gives
//!   other plans from the second layer on.
//! - The map of a block's last convolution goes to the next block, although what it reads also comes through the
//!   shortcut.
//!
//! Deliberately different:
//! - The `downsample` convolutions of ResNet-18 and 34 are no target layers. The reference takes them for such, and its
//!   fusion ends with an error there, since what they read is not what the layer before gives.
//! - Random images have the dataset's size, where the reference's have 32 by 32 pixels.
//! - A neuron with an NWC of 0 makes the reference divide by 0 and the result NaN. Here all masses of its layer are at
//!   least `fusion.floor`.
//! - Distances come from differences, the reference's above 25 neurons from products, which loses half the digits of
//!   small ones.
//! - Pruned neurons are alike, so there are many optimal plans, and the next layer depends on which. Here it is always
//!   the same one; the reference's solver may find another.
//! - The reference reports all ratios and chooses none. The fixed ratio `prune.gamma` is ours, the middle of its list.
//! - A loss that is not finite ends the run with an error.
//!
//! ## Settings
//! - `sweep` (false): repair with every ratio of `sweep_ratios`, see above.
//! - `sweep_ratios` (0.01 to 0.3, the reference's 7): pruning ratios of the sweep, ascending.
//! - `layers.exclude` (shortcut, downsample): convolutions whose name contains one of these are no target layers.
//! - `unlearn.lr` (0.0001), `unlearn.momentum` (0.9): SGD of the unlearning.
//! - `unlearn.steps` (20): its steps.
//! - `unlearn.batch_size` (256): random images in a step.
//! - `unlearn.labels` ("all-but-last"): `"all-but-last"` or `"all"`, see above.
//! - `unlearn.noise` ("raw"): `"raw"` or `"normalised"`, see above.
//! - `nwc.precision` ("rounded"): `"rounded"` or `"exact"`.
//! - `nwc.decimals` (4): decimals of the rounded values.
//! - `prune.gamma` (0.15): share of the neurons that is pruned.
//! - `fusion.lambda` (0.5): share of the transported weights.
//! - `fusion.cost` ("unaligned"): `"unaligned"` or `"aligned"`, see above.
//! - `fusion.floor` (0.000001): least mass of a neuron in a layer where some NWC is 0.
//! - `select.choose` ("fixed"): `"fixed"` or `"agreement"`, see above.
//! - `select.images` (256): random images on which the models of a sweep are compared.
//! - `select.agreement` (0.98): share of the smallest ratio's agreement that the choice must keep. Set by four CIFAR-10
//!   models of width 16 (`docs/benchmarks/defenses-cifar10-small.md`).
//!
//! ## Cost
//! 20 steps of 256 images, and for each ratio one transport problem a layer, of 512 by 512 neurons at most, each well
//! under a second.
//!
//! ## References
//! - Lin, Liu, Li, Xiong: Fusing Pruned and Backdoored Models: Optimal Transport-based Data-free Backdoor Mitigation,
//!   AAAI Conference on Artificial Intelligence 2025, arXiv 2408.15861.

pub mod config;
pub mod fusion;
pub mod transport;
pub mod unlearn;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::{Flat, Mode, Net, StateDict, eval, neurons};
use serde_json::{Value, json};

use self::config::{Choose, CostKind, FusionConfig, OtbrConfig};
use self::fusion::{Map, Sizes, agreement, choose, target_masses};
use self::transport::{Plan, TransportError};
use self::unlearn::{Targets, noise};
use crate::context::{At, Ctx};
use crate::data::NoImages;
use crate::error::DefenseError;
use crate::method::{Candidate, Defense, Repaired, Suspect};
use crate::nwc::{Ranking, count_of};
use crate::parts::clear;
use crate::recipes::{RecipeFile, recipes};
use crate::settings::tried;

/// The defense, for the registry.
pub struct Otbr;

impl Defense for Otbr {
    const INFO: MethodInfo = MethodInfo {
        id: "otbr",
        title: "OTBR",
        paper: "Lin et al., Fusing Pruned and Backdoored Models, AAAI 2025",
        needs: Needs::DataFree,
        status: Status::Matched,
        summary: "prunes what random unlearning moves most and fuses with the suspect by optimal transport",
        docs: include_str!("mod.rs"),
    };
    const RECIPES: &'static [RecipeFile] =
        recipes!["otbr": "cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];
    type Data = NoImages;
    type Config = OtbrConfig;

    fn repair(
        cfg: &Valid<OtbrConfig>,
        suspect: Suspect<'_, NoImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let net = suspect.net()?;
        let targets = Targets::new(net.params(), &cfg.layers.exclude)?;
        check_chain(net.params(), &targets)?;
        let ranking = unlearn::run(cfg, &suspect, &targets, ctx)?;
        let fixed = cfg.select.choose == Choose::Fixed;
        let (ratios, mut chosen) = tried(
            cfg.sweep.then_some(&cfg.sweep_ratios),
            fixed.then_some(cfg.prune.gamma),
        );
        let mut candidates = Vec::with_capacity(ratios.len());
        for &gamma in &ratios {
            candidates.push(candidate(cfg, &suspect, &targets, &ranking, gamma, ctx)?);
        }
        if !fixed {
            let agreements = agreements(cfg, &suspect, &candidates, ctx)?;
            for (candidate, agreement) in candidates.iter_mut().zip(&agreements) {
                candidate.notes["agreement"] = json!(agreement);
            }
            chosen = choose(&agreements, cfg.select.agreement);
            let text = format!("{} is the defender's choice", candidates[chosen].name);
            ctx.info("chosen", &text)?;
        }
        Ok(Repaired {
            candidates,
            chosen,
            artefacts: vec![(
                "nwc.csv".to_owned(),
                ranking.csv(|neuron| targets.place(neuron)),
            )],
            notes: json!({
                "target_layers": targets.tensors.len(),
                "target_neurons": targets.neurons(),
            }),
        })
    }
}

/// Every target layer must read what the one before it gives.
fn check_chain(params: &Flat, targets: &Targets) -> Result<(), DefenseError> {
    let entries = params.layout().entries();
    for pair in targets.tensors.windows(2) {
        let (before, own) = (&entries[pair[0]], &entries[pair[1]]);
        if before.shape[0] != own.shape[1] {
            return Err(DefenseError::Chain {
                layer: own.name.clone(),
                found: own.shape[1],
                expected: before.shape[0],
            });
        }
    }
    Ok(())
}

/// Stages 1b and 2 for one ratio.
fn candidate(
    cfg: &OtbrConfig,
    suspect: &Suspect<'_, NoImages>,
    targets: &Targets,
    ranking: &Ranking,
    gamma: f64,
    ctx: &mut Ctx<'_>,
) -> Result<Candidate, DefenseError> {
    let name = format!("gamma={gamma}");
    let done = format!("done-{name}");
    if let Some(saved) = ctx.load::<Value>(&done)? {
        return Ok(Candidate {
            name,
            state: saved.state,
            notes: saved.progress,
        });
    }
    let mut net = suspect.net()?;
    let mut pruned = suspect.net()?;
    let selected = &ranking.order[..count_of(targets.neurons(), gamma)];
    prune(pruned.params_mut(), targets, selected);
    ctx.probe(At::stage("prune").variant(&name), &mut pruned);
    let suspects = net.params().clone();
    let mut solve = |problem: &Problem<'_>| {
        ctx.check()?;
        let source = vec![1.0; problem.target.len()];
        transport::solve(&source, problem.target, problem.costs)
            .map_err(|error| unsolvable(problem.layer, &error))
    };
    let fused = fuse(
        &cfg.fusion,
        (&suspects, pruned.params()),
        targets,
        (&ranking.scores, selected),
        net.params_mut(),
        &mut solve,
    )?;
    let notes = json!({
        "gamma": gamma,
        "neurons": selected.len(),
        "layers": fused.layers,
        "raised": fused.raised,
        "transport": fused.cost,
    });
    ctx.record(At::stage("fuse").variant(&name), &notes)?;
    let text = format!(
        "{name}: {} neurons pruned, {} layers fused",
        selected.len(),
        fused.layers
    );
    ctx.info("fused", &text)?;
    let state = net.state()?;
    ctx.save(&done, &state, &notes)?;
    Ok(Candidate { name, state, notes })
}

/// Weights that are no longer finite make distances that are no costs.
fn unsolvable(layer: &str, error: &TransportError) -> DefenseError {
    DefenseError::NotFinite {
        stage: format!("fusion ({error})"),
        tensor: layer.to_owned(),
    }
}

/// Sets the weights of some neurons to 0.
pub fn prune(params: &mut Flat, targets: &Targets, neurons: &[usize]) {
    for (layer, &tensor) in targets.tensors.iter().enumerate() {
        let own = targets.of(layer);
        let channels: Vec<usize> = neurons
            .iter()
            .filter(|neuron| own.contains(neuron))
            .map(|neuron| neuron - own.start)
            .collect();
        if channels.is_empty() {
            continue;
        }
        let row = params.layout().entries()[tensor].range.len() / own.len();
        let mut mask = vec![false; own.len() * row];
        for channel in channels {
            mask[channel * row..(channel + 1) * row].fill(true);
        }
        clear(params, tensor, &mask);
    }
}

/// A layer's transport problem; the masses of the pruned neurons are equal.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// Name of the layer's weight.
    pub layer: &'a str,
    /// Masses of the suspect model's neurons, which add up to 1.
    pub target: &'a [f64],
    /// Distances `[pruned, suspect]`.
    pub costs: &'a [f64],
}

/// What fusion did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fused {
    /// Layers that were fused.
    pub layers: usize,
    /// Layers in which some NWC was 0.
    pub raised: usize,
    /// Sum of what the plans cost.
    pub cost: f64,
}

/// Stage 2: fuses the target layers of `suspect` and `pruned` into `fused`, which holds the suspect's parameters.
///
/// `scores` are the NWC of all target neurons and `selected` those that were pruned; `solve` finds the plan of a layer.
pub fn fuse(
    cfg: &FusionConfig,
    (suspect, pruned): (&Flat, &Flat),
    targets: &Targets,
    (scores, selected): (&[f64], &[usize]),
    fused: &mut Flat,
    solve: &mut dyn FnMut(&Problem<'_>) -> Result<Plan, DefenseError>,
) -> Result<Fused, DefenseError> {
    let mut found = Fused::default();
    let touched = |layer: usize| {
        selected
            .iter()
            .any(|neuron| targets.of(layer).contains(neuron))
    };
    let Some(first) = (0..targets.tensors.len()).find(|&layer| touched(layer)) else {
        return Ok(found);
    };
    // Weights before and after their inputs are aligned, for distances that are taken wherever the weights are.
    let mut moved = pruned.clone();
    let mut before: Option<Map> = None;
    for layer in first..targets.tensors.len() {
        let tensor = targets.tensors[layer];
        let entry = &suspect.layout().entries()[tensor];
        let sizes = Sizes {
            outputs: entry.shape[0],
            inputs: entry.shape[1],
            taps: entry.shape[2] * entry.shape[3],
        };
        let own = pruned.to_plain(tensor);
        let aligned = before
            .as_ref()
            .map_or_else(|| own.clone(), |map| map.align(&own, sizes));
        let costs = match cfg.cost {
            CostKind::Unaligned => neurons::distances(pruned, suspect, tensor),
            CostKind::Aligned => {
                moved.set_plain(tensor, &aligned);
                neurons::distances(&moved, suspect, tensor)
            }
        };
        let costs: Vec<f64> = costs.into_iter().map(f64::from).collect();
        let scores = &scores[targets.of(layer)];
        let target = target_masses(scores, cfg.floor);
        let plan = solve(&Problem {
            layer: &entry.name,
            target: &target,
            costs: &costs,
        })?;
        let map = Map::new(&plan, &target);
        fused.set_plain(
            tensor,
            &map.mix(&aligned, &suspect.to_plain(tensor), cfg.lambda),
        );
        found.layers += 1;
        found.raised += usize::from(scores.contains(&0.0));
        found.cost += plan.cost(&costs);
        before = Some(map);
    }
    Ok(found)
}

/// How far each candidate's logits on noise agree with the suspect's.
fn agreements(
    cfg: &OtbrConfig,
    suspect: &Suspect<'_, NoImages>,
    candidates: &[Candidate],
    ctx: &mut Ctx<'_>,
) -> Result<Vec<f64>, DefenseError> {
    let name = (ctx.seed(), "otbr/select", 0);
    let (input, _) = noise(&cfg.unlearn, suspect.task(), cfg.select.images, name);
    // These are measurements, so they are computed in `f32`.
    let classes = suspect.task().classes;
    let logits = |state: &StateDict, network: String| -> Result<Vec<f32>, DefenseError> {
        let mut net = Net::from_state(suspect.arch(), state)?.on(suspect.compute())?;
        let logits = net.forward(&input, Mode::Eval);
        net.take_failure()?;
        eval::classes(&logits, classes)
            .map_err(|error| DefenseError::scores(network)(error.into()))?;
        Ok(logits)
    };
    let own = logits(suspect.state(), "the suspect model".to_owned())?;
    let mut found = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        ctx.check()?;
        let agreement = agreement(
            &own,
            &logits(&candidate.state, format!("candidate `{}`", candidate.name))?,
            classes,
        );
        let row = json!({ "agreement": agreement });
        ctx.record(At::stage("select").variant(&candidate.name), &row)?;
        found.push(agreement);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_nn::ArchSpec;

    /// The parameters of a small network after fusion with what pruning some neurons leaves of it.
    fn fused(lambda: f64, pruned: &[usize]) -> (Flat, Flat, usize) {
        let arch = ArchSpec::new("preactresnet18", 4, 10).expect("a small network");
        let net = Net::new(&arch, 1);
        let suspect = net.params();
        let cfg = OtbrConfig::default();
        let targets = Targets::new(suspect, &cfg.layers.exclude).expect("target layers");
        let mut own = suspect.clone();
        prune(&mut own, &targets, pruned);
        let mut out = suspect.clone();
        let mut solve = |problem: &Problem<'_>| {
            let source = vec![1.0; problem.target.len()];
            Ok(transport::solve(&source, problem.target, problem.costs).expect("a problem"))
        };
        let fusion = FusionConfig {
            lambda,
            ..cfg.fusion.clone()
        };
        let scores = vec![0.5; targets.neurons()];
        let parts = (suspect, &own);
        let found = fuse(
            &fusion,
            parts,
            &targets,
            (&scores, &[0]),
            &mut out,
            &mut solve,
        );
        let layers = found.expect("fused").layers;
        (suspect.clone(), out, layers)
    }

    fn largest_change(a: &Flat, b: &Flat) -> f32 {
        let tensors = 0..a.layout().entries().len();
        let pairs = tensors.flat_map(|i| a.to_plain(i).into_iter().zip(b.to_plain(i)));
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn a_network_fused_with_itself_stays_in_every_layer() {
        let (suspect, out, layers) = fused(0.5, &[]);
        assert_eq!(layers, 17);
        assert!(largest_change(&suspect, &out) < 1e-6);
    }

    #[test]
    fn without_a_share_nothing_is_transported() {
        let (suspect, out, layers) = fused(0.0, &[0, 1, 100]);
        assert_eq!(layers, 17);
        assert!(suspect.data() == out.data());
        let (suspect, out, _) = fused(0.5, &[0, 1, 100]);
        assert!(largest_change(&suspect, &out) > 1e-3);
    }
}
