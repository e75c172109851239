//! # TSBD: two-stage backdoor defense
//!
//! ## What it does
//! Lets a copy of the suspect model unlearn clean data, and looks at which neurons' weights moved most: those are the
//! ones that carry the backdoor. Clears the weights of these neurons that moved most, then fine-tunes with a penalty
//! on the gradient norm, which keeps the cleared neurons from becoming backdoor neurons again.
//!
//! ## Threat model
//! The defender has the suspect model and 5 % of the clean training images with their labels. Triggers, poison
//! indices, the target class and the test set stay unseen.
//!
//! ## Algorithm
//! 1. Clean unlearning: SGD that raises the cross-entropy on the clean images, in train mode, until the accuracy on
//!    them is at most `unlearn.stop_accuracy` -> [`unlearn::run`].
//! 2. Neuron weight change: the L1 norm of what an output channel's weights moved, for all convolutions but those
//!    of `layers.exclude`; neurons are ranked by it through all layers -> [`WeightChange::nwc`].
//! 3. Zero reinitialisation of a fresh copy of the suspect model: of the pooled weights of the first `K = int(T n)`
//!    neurons, those with the `M = int(L m)` largest changes become 0 -> [`algorithm::zero_reinitialisation`].
//! 4. Activeness-aware fine-tuning: with `g1` the gradient at the weights and `g2` the one at `w + r g1/||g1||`, SGD
//!    with `(1 - alpha) g1 + alpha g2`, to first order the gradient of `L + alpha r ||grad L||` ->
//!    [`finetune::Tuner`].
//!
//! With `sweep = true` steps 3 and 4 are done for every ratio of `sweep_ratios`, and there are two results:
//! - The defender's choice.
//!   - `select.choose = "fixed"`: `reinit.n`, which is one of the models whether the sweep names it or not.
//!   - `select.choose = "held-out"`: the last `select.hold_out` of the clean images (they are in random order) are held
//!     out, each zeroed model is fine-tuned on the rest, and of all ratios whose held-out accuracy is at most
//!     `select.tolerance` below the best ratio's, the largest is taken -> [`algorithm::choose`]. A larger ratio clears
//!     more of the backdoor, and what it costs is clean accuracy, which is all the defender can see. The comparison is
//!     with the best ratio and not with the suspect model, because the suspect was trained on the held-out images too
//!     and remembers them. The ranking of the neurons has seen the held-out images; no step of a fine-tuning that is
//!     judged on them has.
//!
//!   The model handed back is the one that was fine-tuned on all clean images, bit for bit that of a run without a sweep
//!   and `reinit.n` set to its ratio.
//! - `oracle`: the ratio with the best DER on the test set, found by the harness alone. It says what the method could
//!   reach, not what a defender can have.
//!
//! ## Differences from the authors' code
//! The reference is `tsbd.py` of linweiii/TSBD, whose choices are the defaults here, also where the paper says
//! something else:
//! - The perturbation has length `r` in every parameter tensor (`finetune.norm = "per-tensor"`), which is 7.3 times
//!   the paper's in total; `"global"` is the paper's.
//! - 21 epochs of fine-tuning where the paper says 20 (the reference's loop is inclusive).
//! - Neither stage shuffles; the last batch is smaller than the others.
//! - Neurons are ranked by changes rounded to 4 decimals, as written to a text file and read back; ties keep the order
//!   of layers and channels. `nwc.precision = "exact"` ranks by the changes themselves.
//! - Weights equal to the threshold are cleared too, so there may be more than `M`.
//! - The gradients of fine-tuning are taken on a throw-away copy, so running statistics move only in one more forward
//!   pass after each step. `finetune.refresh_bn = false` spares that pass, and the first gradient's pass moves them.
//! - The stop threshold 0.10 is that of ten classes, and used for every dataset.
//!
//! Deliberately different:
//! - Unlearning also ends when every clean image is given one and the same class. The clean images are not balanced
//!   over the classes, so a network that has forgotten everything and always answers with a frequent class stays above
//!   the threshold (10.9 % was seen on CIFAR-10 at width 16) and would go on to `unlearn.max_epochs` with gradients that
//!   mean nothing. `unlearn.stop_constant = false` is the reference's loop, and the recipes of CIFAR-10, CIFAR-100, GTSRB
//!   and Tiny ImageNet set it.
//! - A tensor without gradient is not perturbed, where the reference divides by zero.
//! - With `M = 0` nothing is cleared, where the reference's index -1 clears all weights of the selected neurons.
//! - A loss that is not finite ends the run with an error.
//! - The reference reports all ratios of a sweep and chooses none, and no settings of the authors name one. The fixed
//!   ratio `reinit.n` is ours, from the middle of its list.
//! - Augmentation draws from streams of our own, so its crops are others than PyTorch's.
//!
//! The paper also names three schemes of reinitialisation. `v3` is the method. `v1` (whole neurons) and `v2` (as many
//! weights as `v3`, wherever in the target layers they moved most) are our reading of their names.
//!
//! ## Settings
//! - `sweep` (false): repair with every ratio of `sweep_ratios`, see above.
//! - `sweep_ratios` (0.01 to 0.9, the reference's 11): neuron ratios of the sweep, ascending.
//! - `record_layer` ("last"): tensor whose gradient norm per neuron in the first epoch of unlearning goes to
//!   `activeness.csv`, by its name; `"last"` is the last target layer, `layer4.1.conv2.weight` in PreActResNet-18 and
//!   `features.49.weight` in VGG19-BN; empty for none.
//! - `probe_every` (10): measure the test set after every n-th epoch of fine-tuning, from the first; 0 only at the end.
//! - `clean.ratio` (0.05): share of the clean training images that the defender has.
//! - `clean.seed` (0): seed of their draw, which is that of Python's `random.sample`.
//! - `clean.index_file` (""): text file with their indices instead.
//! - `layers.exclude` (shortcut): convolutions whose name contains one of these are no target layers. Those of ResNet-18
//!   and 34 that stand in a shortcut are called `downsample` and are, as in the reference.
//! - `unlearn.lr` (0.0001), `unlearn.momentum` (0.9): SGD of the unlearning.
//! - `unlearn.max_epochs` (1000): cap on its epochs.
//! - `unlearn.stop_accuracy` (0.1): accuracy on the clean images that ends it.
//! - `unlearn.stop_constant` (true): end it as well once every clean image is given the same class, see above.
//! - `unlearn.batch_size` (256), `unlearn.shuffle` (false), `unlearn.augment` (true): its batches.
//! - `nwc.precision` ("rounded"): `"rounded"` or `"exact"`.
//! - `nwc.decimals` (4): decimals of the rounded values.
//! - `reinit.n` (0.15): share of the neurons that is selected.
//! - `reinit.m` (0.7): share of their weights that is cleared.
//! - `reinit.scheme` ("v3"): `"v1"`, `"v2"` or `"v3"`, see above.
//! - `finetune.lr` (0.01), `finetune.momentum` (0.9): SGD of the fine-tuning, constant rate.
//! - `finetune.epochs` (21): its epochs.
//! - `finetune.r` (0.05): length of the perturbation.
//! - `finetune.alpha` (0.7): share of the gradient at the perturbed weights; 0 is plain fine-tuning.
//! - `finetune.norm` ("per-tensor"): `"per-tensor"` or `"global"`.
//! - `finetune.batch_size` (256), `finetune.shuffle` (false), `finetune.augment` (true): its batches.
//! - `finetune.refresh_bn` (true): see above.
//! - `select.choose` ("fixed"): `"fixed"` or `"held-out"`, see above.
//! - `select.hold_out` (0.2): share of the clean images held out to choose among the ratios of a sweep.
//! - `select.tolerance` (0.05): held-out accuracy that the choice may lack to the best ratio's.
//!
//! ## Cost
//! Counted in passes over the clean images: each epoch of unlearning costs a forward and backward pass and a forward
//! pass, each epoch of fine-tuning two forward and backward passes and a forward pass. A sweep does the latter for
//! each ratio, and twice where held-out images choose.
//!
//! ## References
//! - Lin, Liu, Wei, Li, Xiong: Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes and
//!   Backdoor Activeness, Advances in Neural Information Processing Systems 2024, arXiv 2405.20291.

pub mod algorithm;
pub mod config;
pub mod finetune;
pub mod unlearn;

use std::fmt::Write as _;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::metrics::Ratio;
use bb_core::settings::Valid;
use bb_nn::{Net, StateDict, eval};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::algorithm::{Zeroing, choose, zero_reinitialisation};
use self::config::{Choose, TsbdConfig};
use self::unlearn::Course;
use crate::context::{At, Ctx};
use crate::data::{CleanBudget, CleanImages, HeldOut};
use crate::error::DefenseError;
use crate::finetuning::begun;
use crate::method::{Candidate, Defense, Repaired, Suspect};
use crate::nwc::{Ranking, WeightChange};
use crate::recipes::{RecipeFile, recipes};
use crate::settings::tried;

/// The defense, for the registry.
pub struct Tsbd;

impl Defense for Tsbd {
    const INFO: MethodInfo = MethodInfo {
        id: "tsbd",
        title: "TSBD",
        paper: "Lin et al., Unlearning Weight Changes and Backdoor Activeness, NeurIPS 2024",
        needs: Needs::CleanFraction,
        status: Status::Matched,
        summary: "clears the weights that clean unlearning moves most, then fine-tunes against gradient norm",
        docs: include_str!("mod.rs"),
    };
    const RECIPES: &'static [RecipeFile] =
        recipes!["tsbd": "cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];
    type Data = CleanImages;
    type Config = TsbdConfig;

    fn budget(cfg: &TsbdConfig) -> CleanBudget {
        cfg.clean.clone()
    }

    fn repair(
        cfg: &Valid<TsbdConfig>,
        suspect: Suspect<'_, CleanImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let held = match cfg.select.choose {
            Choose::Fixed => None,
            Choose::HeldOut => Some(HeldOut::new(suspect.clean(), cfg.select.hold_out)?),
        };
        let unlearned = unlearn::run(cfg, &suspect, ctx)?;
        let ranking = Ranking::new(unlearned.change.nwc(), &cfg.nwc);
        let (ratios, mut chosen) = tried(
            cfg.sweep.then_some(&cfg.sweep_ratios),
            held.is_none().then_some(cfg.reinit.n),
        );
        let zeroing = |n| {
            zero_reinitialisation(
                &unlearned.change,
                &ranking.order,
                n,
                cfg.reinit.m,
                cfg.reinit.scheme,
            )
        };

        let mut candidates = Vec::with_capacity(ratios.len());
        for &n in &ratios {
            candidates.push(candidate(cfg, &suspect, n, &zeroing(n), ctx)?);
        }
        if let Some(held) = held {
            let mut hits = Vec::with_capacity(ratios.len());
            for (&n, candidate) in ratios.iter().zip(&mut candidates) {
                let accuracy = held_out_accuracy(cfg, &suspect, &held, n, &zeroing(n), ctx)?;
                candidate.notes["held_out"] = json!(accuracy);
                hits.push(accuracy.hits);
            }
            chosen = choose(&hits, held.test.len() as u64, cfg.select.tolerance);
            ctx.info(
                "chosen",
                &format!("{} is the defender's choice", candidates[chosen].name),
            )?;
        }
        Ok(Repaired {
            candidates,
            chosen,
            artefacts: artefacts(&unlearned.change, &ranking, &unlearned.course),
            notes: notes(&unlearned.change, &unlearned.course),
        })
    }
}

/// The name of the candidate with neuron ratio `n`.
fn variant(n: f64) -> String {
    format!("n={n}")
}

/// Stages 1c and 2 for one ratio.
fn candidate(
    cfg: &TsbdConfig,
    suspect: &Suspect<'_, CleanImages>,
    n: f64,
    zeroing: &Zeroing,
    ctx: &mut Ctx<'_>,
) -> Result<Candidate, DefenseError> {
    let name = variant(n);
    let done = format!("done-{name}");
    if let Some(saved) = ctx.load::<Value>(&done)? {
        return Ok(Candidate {
            name,
            state: saved.state,
            notes: saved.progress,
        });
    }
    let notes = json!({
        "n": n,
        "neurons": zeroing.neurons,
        "pool": zeroing.pool,
        "requested": zeroing.requested,
        "zeroed": zeroing.zeroed,
        "threshold": zeroing.threshold,
    });
    let mut net = finetune::zeroed(suspect, zeroing)?;
    // A resumed fine-tuning has recorded this before its checkpoint, and its row is kept.
    if !begun(finetune::STAGE, &name, ctx)? {
        let at = At::stage("reinit").variant(&name);
        ctx.record(at, &notes)?;
        let text = format!(
            "{name}: {} weights of {} neurons cleared",
            zeroing.zeroed, zeroing.neurons
        );
        ctx.info("zeroed", &text)?;
        if cfg.probe_every > 0 {
            ctx.probe(at, &mut net);
        }
    }
    let part = (finetune::STAGE, name.as_str(), cfg.probe_every);
    finetune::run(cfg, suspect, suspect.clean(), &mut net, part, ctx)?;
    let state = net.state()?;
    ctx.save(&done, &state, &notes)?;
    Ok(Candidate { name, state, notes })
}

#[derive(Serialize, Deserialize)]
struct Judged {
    accuracy: Ratio,
}

/// Accuracy on the held-out images after fine-tuning on the others.
fn held_out_accuracy(
    cfg: &TsbdConfig,
    suspect: &Suspect<'_, CleanImages>,
    held: &HeldOut,
    n: f64,
    zeroing: &Zeroing,
    ctx: &mut Ctx<'_>,
) -> Result<Ratio, DefenseError> {
    let name = variant(n);
    let done = format!("held-{name}");
    if let Some(saved) = ctx.load::<Judged>(&done)? {
        return Ok(saved.progress.accuracy);
    }
    let mut net: Net = finetune::zeroed(suspect, zeroing)?;
    let part = ("select", name.as_str(), 0);
    finetune::run(cfg, suspect, &held.train, &mut net, part, ctx)?;
    let accuracy = eval::accuracy(&mut net, &held.test, suspect.task())
        .map_err(DefenseError::scores(format!("candidate `{name}`")))?;
    ctx.record(
        At::stage("select").variant(&name),
        &json!({ "held_out_acc": accuracy.value() }),
    )?;
    ctx.save(&done, &StateDict::new(), &Judged { accuracy })?;
    Ok(accuracy)
}

/// What the analyses of the paper read: the ranking, and the gradient norms of the recorded layer.
fn artefacts(change: &WeightChange, ranking: &Ranking, course: &Course) -> Vec<(String, Vec<u8>)> {
    let place = |neuron| {
        let place = change.place(neuron);
        (place.layer, place.channel)
    };
    let mut files = vec![("nwc.csv".to_owned(), ranking.csv(place))];
    if !course.activeness.is_empty() {
        let mut text = "channel,mean,variance\n".to_owned();
        for (channel, (mean, variance)) in course.activeness.iter().enumerate() {
            writeln!(text, "{channel},{mean},{variance}").expect("strings take all");
        }
        files.push(("activeness.csv".to_owned(), text.into_bytes()));
    }
    files
}

fn notes(change: &WeightChange, course: &Course) -> Value {
    json!({
        "target_layers": change.layer_names().count(),
        "target_neurons": change.neurons(),
        "target_weights": change.weights(),
        "unlearn": { "epochs": course.epochs, "reached": course.reached, "constant": course.constant, "accuracy": course.accuracy },
    })
}
