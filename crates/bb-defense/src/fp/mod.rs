//! # FP: fine-pruning
//!
//! ## What it does
//! Backdoor neurons sleep while the inputs are clean. FP cuts the features that clean images activate least off from
//! the linear layers, as many as clean accuracy allows, and then fine-tunes with these kept cut.
//!
//! ## Threat model
//! The defender has the suspect model and 5 % of the clean training images with their labels. Triggers, poison
//! indices, the target class and the test set stay unseen.
//!
//! ## Algorithm
//! 1. The mean of each feature that the convolutions give the linear layers, over the clean images in eval mode
//!    -> [`activations`]; the features in ascending order of it. The layer that reads them is the classifier, but in
//!    `vgg19_bn` the first of three -> [`reader`]. `prune.order = "nwc"` is TSBD's other order: descending by how far clean
//!    unlearning moves the weights of the neuron that gives the feature ([`crate::tsbd`]).
//! 2. The first `0, s, 2s, ...` features are masked, with `s` the share `prune.step` of all, until the accuracy on the
//!    clean images is a share `prune.tolerance` or more below that of the suspect model -> [`search`].
//! 3. Fine-tuning on the clean images with the mask kept: masked weights stay 0 -> [`Masked`].
//!
//! The accuracy in step 2 is that on the clean images the defender has, as they are: no label has been used to order
//! the features, so nothing needs to be held out. With `sweep = true` models with each share of `sweep_ratios` pruned
//! are made too. The choice stays that of step 2, and the best one on the test set is `oracle`.
//!
//! ## Differences from the authors' code
//! The reference is the benchmark's `defense/fp.py`:
//! - It measures the accuracy of step 2 on the clean test set, which no defender has. It does not look at attacks, so it
//!   has no oracle; the row of this name is the sweep's model with the best DER.
//! - It goes on with the last mask tried, which broke the tolerance (`prune.keep = "last-tried"`); the default
//!   `"within"` is the one before.
//! - It masks one feature less than it counts (`prune.one_less = true`); the default masks as many as it says.
//! - It draws the clean images twice, logs the first draw and uses the second. Here all defenses get the first one;
//!   `clean.index_file` can name any other.
//! - It computes in mixed precision; here it is `f32` unless another precision is asked for.
//!
//! Deliberately different:
//! - The last feature stays even if all could go, since nothing would be left to classify with.
//! - A loss that is not finite ends the run with an error.
//!
//! ## Settings
//! - `sweep` (false): prune the shares of `sweep_ratios` as well, see above.
//! - `sweep_ratios` (0.1 to 0.95): shares of the features that a sweep prunes, ascending.
//! - `probe_every` (10): measure the model after every n-th epoch, counted from the first; 0 measures only at the end.
//! - `clean.ratio` (0.05): share of the training images that the defender has.
//! - `clean.seed` (0): seed of their draw, which is that of Python's `random.sample`.
//! - `clean.index_file` (""): text file with their indices instead.
//! - `prune.order` ("activation"): `"activation"` or `"nwc"`, see above. The latter needs a network whose last
//!   convolution has as many neurons as there are features, as those of PreActResNet and ResNet have.
//! - `prune.step` (0.01): share of the features pruned in one step.
//! - `prune.tolerance` (0.1): relative loss of accuracy that ends the pruning.
//! - `prune.keep` ("within"): `"within"` or `"last-tried"`, see above.
//! - `prune.one_less` (false): mask one feature less, see above.
//! - `prune.augment` (true), `prune.batch_size` (256): the images whose activations are averaged.
//! - `unlearn.lr` (0.0001), `unlearn.momentum` (0.9), `unlearn.max_epochs` (1000), `unlearn.stop_accuracy` (0.1),
//!   `unlearn.stop_constant` (true), `unlearn.batch_size` (256), `unlearn.shuffle` (false), `unlearn.augment` (true):
//!   clean unlearning for `"nwc"`, as TSBD has it.
//! - `finetune.epochs` (100): epochs; 0 leaves the pruned model as it is.
//! - `finetune.batch_size` (256), `finetune.shuffle` (true), `finetune.augment` (true): its batches.
//! - `finetune.lr` (0.01), `finetune.momentum` (0.9), `finetune.weight_decay` (0.0005): SGD.
//! - `finetune.schedule.kind` ("cosine"): `"constant"`, `"cosine"` or `"plateau"`, which is the benchmark's for Tiny
//!   ImageNet.
//! - `finetune.schedule.t_max` (100): half period of the cosine, in epochs.
//! - `finetune.schedule.gamma` (0.1): factor of the plateau.
//! - `finetune.schedule.patience` (10): epochs without improvement that the plateau bears.
//!
//! ## Cost
//! One pass without gradient over the clean images for each step of pruning, and 100 passes of training.
//!
//! ## References
//! - Liu, Dolan-Gavitt, Garg: Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks, RAID 2018,
//!   arXiv 1805.12185.

pub mod config;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::metrics::Ratio;
use bb_core::settings::Valid;
use bb_nn::data::{Input, LoaderOptions, batches};
use bb_nn::kernels::loss::Loss;
use bb_nn::optim::Sgd;
use bb_nn::{Mode, Net, Precision, StateDict, eval};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::config::{FpConfig, Keep, Order, PruneConfig};
use crate::context::{At, Ctx};
use crate::data::{CleanBudget, CleanImages};
use crate::error::DefenseError;
use crate::finetuning::{self, Part, Plain, Stepper};
use crate::method::{Candidate, Defense, Repaired, Suspect};
use crate::nwc::{Ranking, count_of};
use crate::parts::{Head, clear, reader};
use crate::recipes::{RecipeFile, recipes};
use crate::tsbd::{self, config::TsbdConfig};

/// The defense, for the registry.
pub struct Fp;

impl Defense for Fp {
    const INFO: MethodInfo = MethodInfo {
        id: "fp",
        title: "FP",
        paper: "Liu et al., Fine-Pruning, RAID 2018",
        needs: Needs::CleanFraction,
        status: Status::Matched,
        summary: "cuts features off that clean images leave asleep, then fine-tunes",
        docs: include_str!("mod.rs"),
    };
    const RECIPES: &'static [RecipeFile] =
        recipes!["fp": "cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];
    type Data = CleanImages;
    type Config = FpConfig;

    fn budget(cfg: &FpConfig) -> CleanBudget {
        cfg.clean.clone()
    }

    fn revision(_: &FpConfig, arch: &str) -> u32 {
        // It acted on the last of three linear layers.
        u32::from(arch == "vgg19_bn")
    }

    fn repair(
        cfg: &Valid<FpConfig>,
        suspect: Suspect<'_, CleanImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let mut net = suspect.net()?;
        let head = reader(&net)?;
        let order = if let Some(saved) = ctx.load::<Found>(SEARCH)? {
            saved.progress
        } else {
            let order = match cfg.prune.order {
                Order::Activation => by_activation(&cfg.prune, &suspect, head, ctx)?,
                Order::Nwc => by_weight_change(cfg, &suspect, head, ctx)?,
            };
            let found = search(&cfg.prune, order, &suspect, &mut net, head, ctx)?;
            ctx.save(SEARCH, &StateDict::new(), &found)?;
            found
        };
        let Found { order, masked } = order;
        let mut counts = vec![masked];
        if cfg.sweep {
            let of = |&ratio: &f64| count_of(head.features, ratio).min(head.features - 1);
            counts.extend(cfg.sweep_ratios.iter().map(of));
            counts.sort_unstable();
            counts.dedup();
        }
        let mut candidates = Vec::with_capacity(counts.len());
        for &count in &counts {
            candidates.push(candidate(cfg, &suspect, head, &order[..count], ctx)?);
        }
        let chosen = counts.iter().position(|&count| count == masked);
        Ok(Repaired {
            candidates,
            chosen: chosen.expect("it is one of them"),
            artefacts: Vec::new(),
            notes: json!({ "features": head.features, "masked": masked }),
        })
    }
}

const SEARCH: &str = "prune";

/// What the search for a mask found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Features, in the order of pruning.
    pub order: Vec<usize>,
    /// How many of them are masked.
    pub masked: usize,
}

/// Mean of each feature that `head`, the [`reader`], reads, over some batches in eval mode, in the order of its columns.
pub fn activations<'a>(
    net: &mut Net,
    head: Head,
    inputs: impl Iterator<Item = std::borrow::Cow<'a, Input>>,
) -> Vec<f64> {
    let (mut sums, mut images) = (vec![0.0; head.features], 0.0);
    for input in inputs {
        let (_, features) = net.forward_with(&input, Mode::Eval, &["avgpool"]);
        for feature in features {
            let (pixels, channels) = (feature.shape.h * feature.shape.w, feature.shape.c);
            for image in feature.data.chunks_exact(head.features) {
                for (i, value) in image.iter().enumerate() {
                    // The layer reads channel by channel, and here the channels of a pixel stand together.
                    sums[i % channels * pixels + i / channels] += f64::from(*value);
                }
                images += 1.0;
            }
        }
    }
    sums.iter().map(|sum| sum / images).collect()
}

/// Positions in ascending order of activation; equal ones keep their order.
pub fn ascending(activations: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..activations.len()).collect();
    order.sort_by(|&a, &b| activations[a].total_cmp(&activations[b]));
    order
}

/// Sets the columns of a linear layer's weight to 0 that belong to some features.
pub fn mask(net: &mut Net, head: Head, features: &[usize]) {
    let mut mask = vec![false; head.classes * head.features];
    for row in mask.chunks_exact_mut(head.features) {
        for &feature in features {
            row[feature] = true;
        }
    }
    clear(net.params_mut(), head.weight, &mask);
}

/// How many features can be masked: `accuracy(n)` is the accuracy with the first `n` of `features` masked.
fn tolerated(
    cfg: &PruneConfig,
    features: usize,
    mut accuracy: impl FnMut(usize) -> Result<Ratio, DefenseError>,
) -> Result<usize, DefenseError> {
    let step = ((features as f64 * cfg.step).ceil() as usize).max(1);
    let count = |tried: usize| {
        tried
            .saturating_sub(usize::from(cfg.one_less))
            .min(features - 1)
    };
    let before = accuracy(0)?.hits as f64;
    let mut kept = 0;
    for tried in (step..features).step_by(step) {
        let own = count(tried);
        let hits = accuracy(own)?.hits as f64;
        let broken = (hits - before).abs() >= cfg.tolerance * before;
        if !broken || cfg.keep == Keep::LastTried {
            kept = own;
        }
        if broken {
            break;
        }
    }
    Ok(kept)
}

/// Step 1: the features, the least active first.
fn by_activation(
    cfg: &PruneConfig,
    suspect: &Suspect<'_, CleanImages>,
    head: Head,
    ctx: &Ctx<'_>,
) -> Result<Vec<usize>, DefenseError> {
    let (clean, task) = (suspect.clean(), suspect.task());
    let options = LoaderOptions {
        batch_size: cfg.batch_size,
        shuffle: false,
        drop_last: false,
        augment: cfg.augment,
        seed: ctx.seed(),
        purpose: "fp/activation",
    };
    let inputs = batches(clean, task, options, 0).map(|batch| std::borrow::Cow::Owned(batch.input));
    // What is measured is computed in `f32`.
    let mut plain = Net::from_state(suspect.arch(), suspect.state())?
        .on(suspect.compute())?
        .with_precision(Precision::F32)?;
    let order = ascending(&activations(&mut plain, head, inputs));
    plain.take_failure()?;
    Ok(order)
}

/// Step 1 in the order of weight changes: feature `k` is the mean of what neuron `k` of the last convolution gives, so
/// it has that neuron's place in TSBD's ranking.
fn by_weight_change(
    cfg: &FpConfig,
    suspect: &Suspect<'_, CleanImages>,
    head: Head,
    ctx: &mut Ctx<'_>,
) -> Result<Vec<usize>, DefenseError> {
    let lesson = TsbdConfig {
        record_layer: String::new(),
        unlearn: cfg.unlearn.clone(),
        ..TsbdConfig::default()
    };
    let change = tsbd::unlearn::run(&lesson, suspect, ctx)?.change;
    let neurons = change.place(change.neurons() - 1).channel + 1;
    if neurons != head.features {
        return Err(DefenseError::Features {
            arch: suspect.arch().label(),
            features: head.features,
            neurons,
        });
    }
    let nwc = change.nwc().split_off(change.neurons() - neurons);
    Ok(Ranking::new(nwc, &lesson.nwc).order)
}

/// Step 2; `net` is used and left masked.
pub fn search(
    cfg: &PruneConfig,
    order: Vec<usize>,
    suspect: &Suspect<'_, CleanImages>,
    net: &mut Net,
    head: Head,
    ctx: &mut Ctx<'_>,
) -> Result<Found, DefenseError> {
    let (clean, task) = (suspect.clean(), suspect.task());
    let whole = net.params().to_plain(head.weight);
    let masked = tolerated(cfg, head.features, |count| {
        ctx.check()?;
        net.params_mut().set_plain(head.weight, &whole);
        mask(net, head, &order[..count]);
        let network = format!("the model with {count} features masked");
        let accuracy = eval::accuracy(net, clean, task).map_err(DefenseError::scores(network))?;
        let row = json!({ "masked": count, "clean_acc": accuracy.value() });
        ctx.record(At::stage(SEARCH), &row)?;
        Ok(accuracy)
    })?;
    let text = format!("{masked} of {} features masked", head.features);
    ctx.info("masked", &text)?;
    Ok(Found { order, masked })
}

/// Plain steps after which the masked features are cut off again.
#[derive(Debug)]
pub struct Masked<'a> {
    /// The step.
    pub plain: Plain,
    /// The layer that reads the features.
    pub head: Head,
    /// What stays masked.
    pub features: &'a [usize],
}

impl Stepper for Masked<'_> {
    /// The reference multiplies the weight by the mask in the network, so that its gradient is masked too. Clearing the
    /// masked weights after the step has the same effect: nothing else depends on what they were in between.
    fn step(&mut self, net: &mut Net, input: &Input, labels: &[u32], lr: f32) -> Loss {
        let loss = self.plain.step(net, input, labels, lr);
        mask(net, self.head, self.features);
        loss
    }

    fn sgd(&self) -> &Sgd {
        self.plain.sgd()
    }

    fn sgd_mut(&mut self) -> &mut Sgd {
        self.plain.sgd_mut()
    }
}

/// Step 3 for one mask.
fn candidate(
    cfg: &FpConfig,
    suspect: &Suspect<'_, CleanImages>,
    head: Head,
    features: &[usize],
    ctx: &mut Ctx<'_>,
) -> Result<Candidate, DefenseError> {
    let name = format!("masked={}", features.len());
    let done = format!("done-{name}");
    let notes = json!({ "masked": features.len() });
    if let Some(saved) = ctx.load::<Value>(&done)? {
        return Ok(Candidate {
            name,
            state: saved.state,
            notes,
        });
    }
    let mut net = suspect.net()?;
    mask(&mut net, head, features);
    let mut steps = Masked {
        plain: Plain::new(&net, &cfg.finetune),
        head,
        features,
    };
    let part = Part {
        stage: "finetune",
        variant: &name,
        epochs: cfg.finetune.epochs,
        loader: cfg.finetune.loader(ctx.seed(), "fp/finetune"),
        lr: cfg.finetune.lr,
        schedule: &cfg.finetune.schedule(),
        probe_every: cfg.probe_every,
    };
    let data = (suspect.clean(), suspect.task());
    finetuning::run(&part, data, &mut net, &mut steps, ctx)?;
    let state = net.state()?;
    ctx.save(&done, &state, &notes)?;
    Ok(Candidate { name, state, notes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fp::config::FpConfig;

    /// Accuracies out of 100 after each number of masked features.
    fn kept(set: impl Fn(&mut PruneConfig), hits: impl Fn(usize) -> u64) -> (usize, Vec<usize>) {
        let mut cfg = FpConfig::default().prune;
        set(&mut cfg);
        let mut tried = Vec::new();
        let found = tolerated(&cfg, 512, |count| {
            tried.push(count);
            Ok(Ratio {
                hits: hits(count),
                total: 100,
            })
        });
        (found.expect("no failure"), tried)
    }

    #[test]
    fn pruning_goes_as_far_as_the_accuracy_bears() {
        let falling = |count: usize| if count < 20 { 90 } else { 70 };
        let (found, tried) = kept(|_| {}, falling);
        assert_eq!((found, tried), (18, vec![0, 6, 12, 18, 24]));
        let (found, _) = kept(|cfg| cfg.keep = Keep::LastTried, falling);
        assert_eq!(found, 24, "the mask that broke it");
        let (found, tried) = kept(|cfg| cfg.one_less = true, falling);
        assert_eq!((found, tried), (17, vec![0, 5, 11, 17, 23]));
        // Nine of ninety are a tenth, which is no longer less.
        let (found, _) = kept(|_| {}, |count| if count < 7 { 90 } else { 81 });
        assert_eq!(found, 6);
        let (found, _) = kept(|_| {}, |_| 90);
        assert_eq!(found, 510, "the last step below 512");
        let (found, _) = kept(|_| {}, |count| if count == 0 { 90 } else { 0 });
        assert_eq!(found, 0);
    }

    /// What the first linear layer gives is, with all other features masked, that of one feature alone.
    #[test]
    fn a_feature_is_the_input_of_its_column() {
        let arch = bb_nn::ArchSpec::new("vgg19_bn", 4, 3).expect("a small network");
        let net = Net::new(&arch, 1);
        let head = reader(&net).expect("it has one");
        // With 2 x 2 pixels of the last convolution there are several values of a channel.
        let (n, h, w) = (1, 64, 64);
        let mut stream = bb_core::rng::stream(0, "fp test", 0, 0);
        let draw = || 2.0 * bb_core::rng::unit_f32(&mut stream) - 1.0;
        let data = std::iter::repeat_with(draw).take(n * h * w * 3).collect();
        let input = Input { n, h, w, data };
        let inputs = std::iter::once(std::borrow::Cow::Borrowed(&input));
        let activations = activations(&mut net.clone(), head, inputs);
        let (weight, bias) = (
            net.params().to_plain(head.weight),
            net.params().to_plain(head.bias),
        );
        let mut distinct: Vec<f64> = activations.iter().copied().filter(|a| *a > 0.0).collect();
        distinct.sort_by(f64::total_cmp);
        distinct.dedup();
        assert!(distinct.len() > head.features / 49, "more than a channel's");
        for kept in (0..head.features).step_by(101) {
            let others: Vec<usize> = (0..head.features).filter(|&i| i != kept).collect();
            let mut masked = net.clone();
            mask(&mut masked, head, &others);
            let (_, hidden) = masked.forward_with(&input, Mode::Eval, &["classifier.2"]);
            for (row, found) in hidden[0].data.iter().enumerate() {
                let product = f64::from(weight[row * head.features + kept]) * activations[kept];
                let wanted = (product + f64::from(bias[row])).max(0.0);
                assert!(
                    (f64::from(*found) - wanted).abs() <= 1e-6,
                    "{kept} {row}: {found} {wanted}"
                );
            }
        }
    }

    #[test]
    fn the_order_is_ascending_and_stable() {
        assert_eq!(ascending(&[0.5, -1.0, 0.5, 0.0]), [1, 3, 0, 2]);
    }
}
