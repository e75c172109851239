//! # NC: neural cleanse
//!
//! ## What it does
//! Looks for the smallest patch that sends clean images to a class, for every class. The class that a backdoor leads to
//! needs an unusually small one. If there is such a class, the model is fine-tuned on clean images of which some carry
//! the patch that was found and keep their true label; otherwise it is handed back as it is.
//!
//! ## Threat model
//! The defender has the suspect model and 5 % of the clean training images with their labels. Triggers, poison
//! indices, the target class and the test set stay unseen.
//!
//! ## Algorithm
//! 1. For each class, a mask and a pattern within 0 to 1 that give the image `(1 - mask) * x + mask * pattern`. They are
//!    `tanh(v) / 2 + 1 / 2` of variables that start at 1 and that Adam changes, down the cross-entropy towards the class
//!    plus `cost` times the L1 norm of the mask. The network is frozen and in eval mode -> [`invert::Inverter`].
//! 2. After each epoch: the trigger with the smallest mean norm among those that send at least `invert.success` of the
//!    images to the class is kept; five such epochs in a row double `cost`, five others divide it by `2^1.5`; the class
//!    ends once the norm no longer falls -> [`search::Search::epoch`].
//! 3. The classes whose mask's norm lies more than `detect.threshold` robust deviations below the median are flagged;
//!    the anomaly index of the model is that distance for the smallest norm -> [`detect::outliers`].
//! 4. If there are any: fine-tuning on the clean images, of which the last `unlearn.share` are replaced by copies with
//!    the trigger of each flagged class and the true label -> [`stamp::unlearning_set`], [`crate::finetuning::run`].
//!
//! The cell keeps all masks and patterns in `triggers.safetensors` (`<class>.mask`, `[1, h, w]`, and `<class>.pattern`,
//! `[3, h, w]`, within 0 to 1) and what was found of them in `triggers.csv`.
//!
//! ## Differences from the authors' code
//! The reference is the benchmark's `defense/nc.py`, whose choices are the defaults here:
//! - The variables start at 1, so that the first mask covers 88 % of every pixel.
//! - Success and norm of an epoch are means over its batches, also where the last one is smaller, and the trigger that
//!   is kept is the one after its last step. If no epoch has success, the trigger of the first epoch stands for the
//!   class.
//! - Medians are the lower ones of two.
//! - Triggers are stamped as they are read back from pictures, which were stretched to the whole range when they were
//!   written: the mask to 0 to 1, and the product of mask and pattern to 0 to 255 (`unlearn.stamp = "normalised"`).
//!   `"raw"` stamps what was found.
//! - Its `cost` is set anew where it is 0, which it never is; this case is left out. So is the 1e-7 that it adds to the
//!   2 by which the hyperbolic tangent is divided, which single precision cannot hold.
//! - Fine-tuning is computed in mixed precision; here it is `f32` unless another precision is asked for. Triggers are
//!   always searched in `f32`.
//!
//! Deliberately different:
//! - The pattern is meant to be normalised channel by channel, as images are, and is here
//!   (`invert.normalise = "channels"`). The reference takes its rows for its channels (`"rows"`): the first three rows
//!   are normalised by the three means and deviations, and the rest is put on the normalised image as it is, so that it
//!   reaches from the mean grey to one deviation above it and is another trigger than the one that is stamped later.
//! - What it saves is not the model that was fine-tuned, but the suspect model once more. Here the repaired model is the
//!   one that was fine-tuned.
//! - It draws clean images once more for fine-tuning, so that it sees nearly twice as many. Here all defenses get the
//!   first draw, and the last of the images that triggers were searched with are stamped; `clean.index_file` can name
//!   any others.
//! - Sums above 255 begin anew at 0 when it stamps an image. Here they stay at 255.
//! - Orders and crops are drawn from streams of our own, so they are others than PyTorch's; no class shares those of
//!   another.
//! - A loss that is not finite ends the run with an error.
//!
//! ## Settings
//! - `probe_every` (10): measure the model after every n-th epoch of fine-tuning, counted from the first; 0 measures only
//!   at the end.
//! - `clean.ratio` (0.05): share of the training images that the defender has.
//! - `clean.seed` (0): seed of their draw, which is that of Python's `random.sample`.
//! - `clean.index_file` (""): text file with their indices instead.
//! - `invert.max_epochs` (80): most epochs for a class.
//! - `invert.batch_size` (256), `invert.shuffle` (true), `invert.augment` (true): its batches.
//! - `invert.lr` (0.1), `invert.beta1` (0.5), `invert.beta2` (0.9): Adam.
//! - `invert.normalise` ("channels"): `"channels"` or `"rows"`, see above.
//! - `invert.cost` (0.001): weight of the mask's norm at first.
//! - `invert.cost_factor` (2.0): factor by which it rises; it falls by this to the power 1.5.
//! - `invert.success` (0.98): share of the images that must go to the class.
//! - `invert.patience` (5): epochs in a row with or without success after which the weight changes.
//! - `invert.early_stop` (true): end a class once its norm no longer falls and the weight has both risen and fallen.
//! - `invert.stop_ratio` (0.99), `invert.stop_patience` (25): a best norm of at least this share of the one an epoch
//!   before is no progress, and as many epochs of that in a row end the class.
//! - `detect.threshold` (2.0): robust deviations below the median from which a class is flagged.
//! - `detect.scale` (1.4826): standard deviations of a normal distribution to its median absolute deviation.
//! - `unlearn.share` (0.2): share of the clean images that are stamped.
//! - `unlearn.stamp` ("normalised"): `"normalised"` or `"raw"`, see above.
//! - `finetune.epochs` (100): epochs of fine-tuning; 0 leaves the model as it is.
//! - `finetune.batch_size` (256), `finetune.shuffle` (true), `finetune.augment` (true): its batches.
//! - `finetune.lr` (0.01), `finetune.momentum` (0.9), `finetune.weight_decay` (0.0005): SGD.
//! - `finetune.schedule.kind` ("cosine"): `"constant"`, `"cosine"` or `"plateau"`, which is the benchmark's for Tiny
//!   ImageNet.
//! - `finetune.schedule.t_max` (100): half period of the cosine, in epochs.
//! - `finetune.schedule.gamma` (0.1): factor of the plateau.
//! - `finetune.schedule.patience` (10): epochs without improvement that the plateau bears.
//!
//! ## Cost
//! For each class at most 80 passes over the clean images, forwards and back to the images but not to the parameters;
//! then 100 passes of training if a class is flagged. It grows with the number of classes: 800 passes for 10 of them,
//! 16,000 for 200. `configs/defense/nc/short.toml` takes fewer steps.
//!
//! ## References
//! - Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao: Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural
//!   Networks, IEEE Symposium on Security and Privacy 2019.

pub mod config;
pub mod detect;
pub mod invert;
pub mod search;
pub mod stamp;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::StateDict;
use serde_json::json;

use self::config::NcConfig;
use self::detect::{Outliers, outliers};
use self::invert::Inverted;
use self::stamp::{Stamp, unlearning_set};
use crate::context::{At, Ctx};
use crate::data::{CleanBudget, CleanImages};
use crate::error::DefenseError;
use crate::finetuning::{self, Part, Plain};
use crate::method::{Defense, Repaired, Suspect};
use crate::recipes::{RecipeFile, recipes};

/// The defense, for the registry.
pub struct Nc;

impl Defense for Nc {
    const INFO: MethodInfo = MethodInfo {
        id: "nc",
        title: "NC",
        paper: "Wang et al., Neural Cleanse, IEEE S&P 2019",
        needs: Needs::CleanFraction,
        status: Status::Matched,
        summary: "searches the smallest trigger of each class, then unlearns those that are too small",
        docs: include_str!("mod.rs"),
    };
    const RECIPES: &'static [RecipeFile] =
        recipes!["nc": "cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];
    type Data = CleanImages;
    type Config = NcConfig;

    fn budget(cfg: &NcConfig) -> CleanBudget {
        cfg.clean.clone()
    }

    fn repair(
        cfg: &Valid<NcConfig>,
        suspect: Suspect<'_, CleanImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let inverted = invert::all(cfg, &suspect, ctx)?;
        let norms: Vec<f64> = inverted.iter().map(|found| found.trigger.norm()).collect();
        let found = detected(cfg, &norms, ctx)?;
        let mut repaired = if found.flagged.is_empty() {
            Repaired::single(suspect.state().clone())
        } else {
            Repaired::single(unlearned(cfg, &suspect, &inverted, &found, ctx)?)
        };
        repaired.artefacts = vec![
            ("triggers.csv".to_owned(), table(&inverted, &found)),
            ("triggers.safetensors".to_owned(), triggers(&inverted)?),
        ];
        repaired.notes = json!({ "norms": norms, "detect": found });
        Ok(repaired)
    }
}

const DETECT: &str = "detect";

/// Step 3, told and recorded once.
fn detected(cfg: &NcConfig, norms: &[f64], ctx: &mut Ctx<'_>) -> Result<Outliers, DefenseError> {
    if let Some(saved) = ctx.load::<Outliers>(DETECT)? {
        return Ok(saved.progress);
    }
    let found = outliers(norms, &cfg.detect);
    let index = found.anomaly.map_or_else(
        || "without spread".to_owned(),
        |index| format!("anomaly index {index:.2}"),
    );
    let classes: Vec<String> = found.flagged.iter().map(usize::to_string).collect();
    let text = if classes.is_empty() {
        format!("{index}, no class is flagged and the model stays as it is")
    } else {
        format!("{index}, flagged: {}", classes.join(", "))
    };
    ctx.info("detected", &text)?;
    ctx.record(At::stage(DETECT), &found)?;
    ctx.save(DETECT, &StateDict::new(), &found)?;
    Ok(found)
}

/// Step 4: the suspect model after fine-tuning on clean images of which some are stamped.
fn unlearned(
    cfg: &NcConfig,
    suspect: &Suspect<'_, CleanImages>,
    inverted: &[Inverted],
    found: &Outliers,
    ctx: &mut Ctx<'_>,
) -> Result<StateDict, DefenseError> {
    let stamp = |&class: &usize| Stamp::new(&inverted[class].trigger, cfg.unlearn.stamp);
    let stamps: Vec<Stamp> = found.flagged.iter().map(stamp).collect();
    let images = unlearning_set(suspect.clean(), &stamps, cfg.unlearn.share)?;
    let mut net = suspect.net()?;
    let mut steps = Plain::new(&net, &cfg.finetune);
    let part = Part {
        stage: "unlearn",
        variant: "repaired",
        epochs: cfg.finetune.epochs,
        loader: cfg.finetune.loader(ctx.seed(), "nc/unlearn"),
        lr: cfg.finetune.lr,
        schedule: &cfg.finetune.schedule(),
        probe_every: cfg.probe_every,
    };
    finetuning::run(&part, (&images, suspect.task()), &mut net, &mut steps, ctx)?;
    Ok(net.state()?)
}

/// The file `triggers.safetensors`.
fn triggers(inverted: &[Inverted]) -> Result<Vec<u8>, DefenseError> {
    let mut state = StateDict::new();
    for (class, found) in inverted.iter().enumerate() {
        found
            .trigger
            .insert_into(&mut state, &format!("{class}."))?;
    }
    Ok(state.to_bytes(&BTreeMap::new())?)
}

/// The table `triggers.csv`.
fn table(inverted: &[Inverted], found: &Outliers) -> Vec<u8> {
    let mut text = "class,norm,deviations,flagged,success,reached,epochs\n".to_owned();
    for (class, Inverted { trigger, course }) in inverted.iter().enumerate() {
        let norm = trigger.norm();
        let deviations = (norm - found.median).abs() / found.deviation;
        let (search, success) = (&course.search, course.success);
        let (flagged, reached) = (found.flagged.contains(&class), search.best.is_some());
        let epochs = search.epochs;
        writeln!(
            text,
            "{class},{norm},{deviations},{flagged},{success},{reached},{epochs}"
        )
        .expect("strings take all");
    }
    text.into_bytes()
}
