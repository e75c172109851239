//! # CLP: channel-Lipschitzness pruning
//!
//! ## What it does
//! A trigger moves the channels that react to it far, so these channels have a large Lipschitz constant. CLP bounds the
//! constant of each channel from the weights alone, and prunes those that lie far above their layer's mean.
//!
//! ## Threat model
//! The defender has the suspect model and no image at all. Triggers, poison indices, the target class, clean images
//! and the test set stay unseen.
//!
//! ## Algorithm
//! 1. Each batch normalisation is paired with a convolution -> [`pairs`].
//! 2. The bound of channel `k` is the largest singular value of the convolution's neuron `k`, seen as a matrix of
//!    inputs by taps, times `|gamma_k| / sqrt(running_var_k)` -> [`bb_nn::neurons::spectral_norms`], [`lipschitz`].
//! 3. Channels whose bound is above the layer's mean plus `u` of its deviations (unbiased) are pruned: `gamma` and
//!    `beta` of the batch normalisation become 0 -> [`threshold`].
//!
//! With `sweep = true` the models for all values of `sweep_u` are made too. The choice is still that of `u`, since
//! nothing a defender without data sees says which value is best; the best one on the test set is `oracle`.
//!
//! ## Differences from the authors' code
//! The reference is the benchmark's `defense/clp.py`, whose choices are the defaults here:
//! - A batch normalisation is paired with the convolution seen last in the order of the modules
//!   (`pairing = "last-seen"`). In PreActResNet-18 the first one after a block with a shortcut is therefore paired with
//!   the shortcut's 1x1 convolution. `"main-branch"` takes the block's last convolution instead, and prunes a few other
//!   channels. Neither sees the sum that a batch normalisation behind a residual block really reads.
//! - The running variance is taken without the epsilon that the network adds to it (`eps = 0.0`), so the bound of a
//!   channel with hardly any variance is too large; 0.00001 is the network's.
//!
//! Deliberately different:
//! - A layer with a bound that is no finite number, as a running variance of 0 gives, is left as it is, with a warning;
//!   in the reference comparisons with NaN come to the same without saying so.
//!
//! ## Settings
//! - `u` (3.0): deviations above the mean from which a channel is pruned; the benchmark has 5 for Tiny ImageNet.
//! - `sweep` (false): make the models of `sweep_u` as well, see above.
//! - `sweep_u` (0 to 10 in steps of 0.5, the reference's 21): values of the sweep, ascending.
//! - `pairing` ("last-seen"): `"last-seen"` or `"main-branch"`, see above.
//! - `eps` (0.0): added to the running variance.
//!
//! ## Cost
//! A largest singular value for each channel, by a Gram matrix of 9 by 9; no pass through the network.
//!
//! ## References
//! - Zheng, Tang, Li, Liu: Data-free Backdoor Removal based on Channel Lipschitzness, ECCV 2022, arXiv 2208.03111.

pub mod config;

use std::fmt::Write as _;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::{Flat, Net, neurons};
use serde_json::json;

use self::config::{ClpConfig, Pairing};
use crate::channels::running_variance;
use crate::context::{At, Ctx};
use crate::data::NoImages;
use crate::error::DefenseError;
use crate::method::{Candidate, Defense, Repaired, Suspect};
use crate::parts::{SHORTCUTS, clear};
use crate::recipes::{RecipeFile, recipes};
use crate::settings::tried;

/// The defense, for the registry.
pub struct Clp;

impl Defense for Clp {
    const INFO: MethodInfo = MethodInfo {
        id: "clp",
        title: "CLP",
        paper: "Zheng et al., Data-free Backdoor Removal based on Channel Lipschitzness, ECCV 2022",
        needs: Needs::DataFree,
        status: Status::Matched,
        summary: "prunes channels whose weights allow unusually large changes",
        docs: include_str!("mod.rs"),
    };
    const RECIPES: &'static [RecipeFile] =
        recipes!["clp": "cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];
    const TRAINS: bool = false;
    type Data = NoImages;
    type Config = ClpConfig;

    fn repair(
        cfg: &Valid<ClpConfig>,
        suspect: Suspect<'_, NoImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let net = suspect.net()?;
        let pairs = pairs(&net, cfg.pairing);
        if pairs.is_empty() {
            return Err(DefenseError::NoNorm {
                arch: net.spec().label(),
            });
        }
        let bounds = bounds(cfg, &net, &pairs, ctx)?;
        let (values, chosen) = tried(cfg.sweep.then_some(&cfg.sweep_u), Some(cfg.u));
        let mut candidates = Vec::with_capacity(values.len());
        for &u in &values {
            candidates.push(candidate(&suspect, &pairs, &bounds, u, ctx)?);
        }
        Ok(Repaired {
            candidates,
            chosen,
            artefacts: vec![("lipschitz.csv".to_owned(), table(&net, &pairs, &bounds))],
            notes: json!({
                "norms": pairs.len(),
                "channels": bounds.iter().map(Vec::len).sum::<usize>(),
            }),
        })
    }
}

/// A batch normalisation and the convolution it is scored with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The convolution's weight, a place among the parameters.
    pub conv: usize,
    /// The batch normalisation's weight; its bias is the next parameter.
    pub norm: usize,
    /// Its running variance, a place among the buffers.
    pub variance: usize,
}

/// Pairs each batch normalisation with a convolution, in the order of the parameters.
///
/// One before any convolution has none and is left out.
pub fn pairs(net: &Net, pairing: Pairing) -> Vec<Pair> {
    let params = net.params().layout();
    let shortcut = |name: &str| SHORTCUTS.iter().any(|part| name.contains(part));
    let (mut last, mut main, mut side) = (None, None, None);
    let mut pairs = Vec::new();
    for (i, entry) in params.entries().iter().enumerate() {
        if entry.shape.len() == 4 {
            last = Some(i);
            if shortcut(&entry.name) {
                side = Some(i);
            } else {
                main = Some(i);
            }
            continue;
        }
        let conv = match pairing {
            Pairing::LastSeen => last,
            Pairing::MainBranch if shortcut(&entry.name) => side,
            Pairing::MainBranch => main,
        };
        if let (Some(variance), Some(conv)) = (running_variance(net, i), conv) {
            pairs.push(Pair {
                conv,
                norm: i,
                variance,
            });
        }
    }
    pairs
}

/// The bound of each channel of a batch normalisation. Of a convolution with more channels only as many are looked at.
pub fn lipschitz(net: &Net, pair: &Pair, eps: f64) -> Vec<f64> {
    let norms = neurons::spectral_norms(net.params(), pair.conv);
    let gamma = net.params().to_plain(pair.norm);
    let variance = net.buffers().to_plain(pair.variance);
    norms
        .iter()
        .zip(gamma.iter().zip(&variance))
        .map(|(&norm, (&gamma, &variance))| {
            f64::from(norm) * (f64::from(gamma) / (f64::from(variance) + eps).sqrt()).abs()
        })
        .collect()
}

/// Mean plus `u` unbiased deviations; NaN for a single value, so that nothing is above it.
pub fn threshold(bounds: &[f64], u: f64) -> f64 {
    let count = bounds.len() as f64;
    let mean = bounds.iter().sum::<f64>() / count;
    let spread: f64 = bounds.iter().map(|b| (b - mean).powi(2)).sum();
    mean + u * (spread / (count - 1.0)).sqrt()
}

/// All bounds; those of a layer that has one that is not finite are left out, so that nothing in it is pruned.
fn bounds(
    cfg: &ClpConfig,
    net: &Net,
    pairs: &[Pair],
    ctx: &mut Ctx<'_>,
) -> Result<Vec<Vec<f64>>, DefenseError> {
    let mut all = Vec::with_capacity(pairs.len());
    for pair in pairs {
        ctx.check()?;
        let mut own = lipschitz(net, pair, cfg.eps);
        if !own.iter().all(|bound| bound.is_finite()) {
            let name = &net.params().layout().entries()[pair.norm].name;
            let text = format!("`{name}` has channels without a finite bound and is left as it is");
            ctx.warn("not-bounded", &text)?;
            own.clear();
        }
        all.push(own);
    }
    Ok(all)
}

/// Sets the scale and shift of every channel above its layer's threshold to 0; gives how many.
pub fn prune(params: &mut Flat, pairs: &[Pair], bounds: &[Vec<f64>], u: f64) -> usize {
    let mut pruned = 0;
    for (pair, bounds) in pairs.iter().zip(bounds) {
        let threshold = threshold(bounds, u);
        let mut mask = vec![false; params.tensor(pair.norm).len()];
        for (above, bound) in mask.iter_mut().zip(bounds) {
            *above = *bound > threshold;
        }
        pruned += mask.iter().filter(|&&above| above).count();
        clear(params, pair.norm, &mask);
        clear(params, pair.norm + 1, &mask);
    }
    pruned
}

fn candidate(
    suspect: &Suspect<'_, NoImages>,
    pairs: &[Pair],
    bounds: &[Vec<f64>],
    u: f64,
    ctx: &mut Ctx<'_>,
) -> Result<Candidate, DefenseError> {
    let name = format!("u={u}");
    let mut net = suspect.net()?;
    let pruned = prune(net.params_mut(), pairs, bounds, u);
    let notes = json!({ "u": u, "pruned": pruned });
    ctx.record(At::stage("prune").variant(&name), &notes)?;
    ctx.info("pruned", &format!("{name}: {pruned} channels pruned"))?;
    Ok(Candidate {
        name,
        state: net.state()?,
        notes,
    })
}

/// The table `lipschitz.csv`.
fn table(net: &Net, pairs: &[Pair], bounds: &[Vec<f64>]) -> Vec<u8> {
    let entries = net.params().layout().entries();
    let mut text = "norm,conv,channel,bound\n".to_owned();
    for (pair, bounds) in pairs.iter().zip(bounds) {
        let (norm, conv) = (&entries[pair.norm].name, &entries[pair.conv].name);
        for (channel, bound) in bounds.iter().enumerate() {
            writeln!(text, "{norm},{conv},{channel},{bound}").expect("strings take all");
        }
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_nn::ArchSpec;

    fn names(arch: &str, pairing: Pairing) -> Vec<(String, String)> {
        let net = Net::new(&ArchSpec::new(arch, 4, 10).expect("a small network"), 0);
        let entries = net.params().layout().entries();
        let name = |i: usize| entries[i].name.trim_end_matches(".weight").to_owned();
        pairs(&net, pairing)
            .iter()
            .map(|pair| (name(pair.norm), name(pair.conv)))
            .collect()
    }

    #[test]
    fn norms_are_paired_as_asked() {
        let pair = |norm: &str, conv: &str| (norm.to_owned(), conv.to_owned());
        let last = names("preactresnet18", Pairing::LastSeen);
        assert_eq!(last.len(), 16);
        assert_eq!(last[0], pair("layer1.0.bn1", "conv1"));
        assert!(last.contains(&pair("layer2.1.bn1", "layer2.0.shortcut.0")));
        let main = names("preactresnet18", Pairing::MainBranch);
        assert!(main.contains(&pair("layer2.1.bn1", "layer2.0.conv2")));
        let moved = last.iter().zip(&main).filter(|(a, b)| a != b).count();
        assert_eq!(moved, 3, "one for each shortcut");
        // Where a norm stands behind its convolution there is no question.
        for arch in ["resnet18", "vgg19_bn"] {
            assert_eq!(
                names(arch, Pairing::LastSeen),
                names(arch, Pairing::MainBranch),
                "{arch}"
            );
        }
    }

    #[test]
    fn the_threshold_is_mean_and_unbiased_deviations() {
        assert!((threshold(&[1.0, 2.0, 3.0], 2.0) - 4.0).abs() < 1e-12);
        assert!((threshold(&[5.0; 4], 3.0) - 5.0).abs() < 1e-12);
        assert!(threshold(&[1.0], 0.0).is_nan() && threshold(&[], 1.0).is_nan());
    }

    #[test]
    fn epsilon_is_added_to_the_variance() {
        let arch = ArchSpec::new("preactresnet18", 4, 10).expect("a small network");
        let mut net = Net::new(&arch, 0);
        let pair = &pairs(&net, Pairing::LastSeen)[0];
        net.buffers_mut().tensor_mut(pair.variance).fill(0.5);
        let [plain, damped] = [0.0, 7.5].map(|eps| lipschitz(&net, pair, eps));
        assert_eq!(plain.len(), 4);
        for (plain, damped) in plain.iter().zip(&damped) {
            // The root of (0.5 + 7.5) / 0.5.
            assert!((plain / damped - 4.0).abs() < 1e-12, "{plain} {damped}");
        }
    }

    #[test]
    fn the_table_names_each_channel_with_its_bound() {
        let net = Net::new(
            &ArchSpec::new("preactresnet18", 4, 10).expect("a small network"),
            0,
        );
        let all = &pairs(&net, Pairing::LastSeen)[..2];
        let table = table(&net, all, &[vec![0.5, 2.0], vec![3.25]]);
        let expect = "\
norm,conv,channel,bound
layer1.0.bn1.weight,conv1.weight,0,0.5
layer1.0.bn1.weight,conv1.weight,1,2
layer1.0.bn2.weight,layer1.0.conv1.weight,0,3.25
";
        assert_eq!(String::from_utf8(table).expect("text"), expect);
    }

    #[test]
    fn channels_without_variance_prune_nothing() {
        let arch = ArchSpec::new("preactresnet18", 4, 10).expect("a small network");
        let mut net = Net::new(&arch, 0);
        let all = pairs(&net, Pairing::LastSeen);
        net.buffers_mut().tensor_mut(all[0].variance)[0] = 0.0;
        let cfg = ClpConfig::default();
        let found = bounds(&cfg, &net, &all, &mut Ctx::detached(0)).expect("bounds");
        assert!(found[0].is_empty() && found[1..].iter().all(|own| !own.is_empty()));
        let before = net.params().to_plain(all[0].norm);
        prune(net.params_mut(), &all, &found, 0.0);
        assert_eq!(net.params().to_plain(all[0].norm), before);
    }
}
