//! # ULRL: unlearn and relearn
//!
//! ## What it does
//! Lets a copy of the suspect model unlearn a few clean images and looks at the classifier: the row of a class that a
//! backdoor leads to changes unlike the others. The suspicious rows are drawn anew, and the model relearns from the
//! clean images with a penalty that turns these rows away from what they were.
//!
//! ## Threat model
//! The defender has the suspect model and 1 % of the clean training images with their labels. Triggers, poison
//! indices, the target class and the test set stay unseen.
//!
//! ## Algorithm
//! 1. Clean unlearning: SGD that raises the cross-entropy, with the gradient's norm clipped, until the share of images
//!    that were right during an epoch is at most `unlearn.stop_accuracy` -> [`unlearning::run`].
//! 2. The change of each class is the L1 norm of what its row of the classifier moved. With the lower median and the
//!    median absolute deviation from it, classes more than `detect.threshold` robust deviations above the median are
//!    suspicious -> [`detect::outliers`].
//! 3. The suspect model with new rows for at most `detect.max` suspicious classes, uniform within
//!    `sqrt(relearn.gain / features)` and with a bias of 0 -> [`relearn::Rows`], is trained on the clean images with
//!    the loss `CE + alpha * sum of cos(row, old row)` -> [`relearn::Relearner`]. Without a suspicious class this is
//!    plain fine-tuning.
//!
//! ## Differences from the authors' code
//! The reference is the authors' `defense/ulrl.py`, whose choices are the defaults here:
//! - Of more suspicious classes than `detect.max` the first ones by number are kept (`detect.keep = "first"`), which may
//!   not be the right ones; `"largest"` keeps those that changed most.
//! - New weights come from an interval that is called He's but is narrower by a factor of `sqrt(3)`: `relearn.gain` is 2,
//!   and He's is 6.
//! - Each step of relearning is followed by one more forward pass in train mode, made there to count hits, so that
//!   running statistics move twice (`relearn.refresh_bn = true`); `false` spares it.
//! - It computes in mixed precision; here it is `f32` unless another precision is asked for.
//!
//! Deliberately different:
//! - The last linear layer is acted on, whatever it is called; the reference knows only `linear`.
//! - Orders, crops and new rows are drawn from streams of our own, so they are others than PyTorch's.
//! - A loss that is not finite ends the run with an error.
//!
//! ## Settings
//! - `probe_every` (10): measure the model after every n-th epoch of relearning, counted from the first; 0 measures only
//!   at the end.
//! - `clean.ratio` (0.01): share of the training images that the defender has.
//! - `clean.seed` (0): seed of their draw, which is that of Python's `random.sample`.
//! - `clean.index_file` (""): text file with their indices instead.
//! - `unlearn.max_epochs` (20): cap on the epochs of unlearning.
//! - `unlearn.lr` (0.01), `unlearn.momentum` (0.9), `unlearn.weight_decay` (0.0005): its SGD.
//! - `unlearn.milestones` (10, 20), `unlearn.gamma` (0.1): epochs at which its rate falls, and the factor.
//! - `unlearn.clip` (20.0): largest L2 norm of its gradients.
//! - `unlearn.stop_accuracy` (0.2): share of right images during an epoch that ends it.
//! - `unlearn.batch_size` (128), `unlearn.shuffle` (true), `unlearn.augment` (true): its batches.
//! - `detect.threshold` (3.5): robust deviations above the median from which a class is suspicious.
//! - `detect.scale` (1.4826): standard deviations of a normal distribution to its median absolute deviation.
//! - `detect.max` (2): most classes that are kept.
//! - `detect.keep` ("first"): `"first"` or `"largest"`, see above.
//! - `relearn.init` (true): draw the suspicious rows anew; otherwise only the penalty acts on them.
//! - `relearn.gain` (2.0): how wide new rows are, see above.
//! - `relearn.epochs` (20): epochs of relearning; 0 leaves the model with its new rows.
//! - `relearn.lr` (0.005), `relearn.momentum` (0.9): its SGD; the rate falls to 0 along a cosine. 0.001 on CIFAR-100,
//!   GTSRB and Tiny ImageNet.
//! - `relearn.alpha` (0.7): weight of the penalty. 0.001 on CIFAR-100, GTSRB and Tiny ImageNet.
//! - `relearn.batch_size` (128), `relearn.shuffle` (true), `relearn.augment` (true): its batches.
//! - `relearn.refresh_bn` (true): see above.
//!
//! ## Cost
//! At most 20 passes over 1 % of the training images, and then 20 with an additional forward pass.
//!
//! ## References
//! - Min, Pham, Sun: Unified Neural Backdoor Removal with Only Few Clean Samples through Unlearning and Relearning,
//!   arXiv 2405.14781.

pub mod config;
pub mod detect;
pub mod relearn;

use std::fmt::Write as _;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::Net;
use bb_nn::data::LoaderOptions;
use bb_nn::schedule::{Kind, Schedule};
use serde_json::json;

use self::config::UlrlConfig;
use self::detect::{Outliers, outliers, row_changes};
use self::relearn::{Relearner, Rows};
use crate::context::Ctx;
use crate::data::{CleanBudget, CleanImages};
use crate::error::DefenseError;
use crate::finetuning::{self, Part};
use crate::method::{Defense, Repaired, Suspect};
use crate::parts::head;
use crate::recipes::{RecipeFile, recipes};
use crate::robust::deviation;
use crate::unlearning;

/// The defense, for the registry.
pub struct Ulrl;

impl Defense for Ulrl {
    const INFO: MethodInfo = MethodInfo {
        id: "ulrl",
        title: "ULRL",
        paper: "Min et al., Unlearning and Relearning, arXiv 2405.14781",
        needs: Needs::CleanFraction,
        status: Status::Matched,
        summary: "draws the rows of classes anew that unlearning changes most, then relearns away from them",
        docs: include_str!("mod.rs"),
    };
    const RECIPES: &'static [RecipeFile] =
        recipes!["ulrl": "cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];
    type Data = CleanImages;
    type Config = UlrlConfig;

    fn budget(cfg: &UlrlConfig) -> CleanBudget {
        cfg.clean.clone()
    }

    fn repair(
        cfg: &Valid<UlrlConfig>,
        suspect: Suspect<'_, CleanImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let mut net = suspect.net()?;
        let head = head(&net)?;
        let clip = Some(cfg.unlearn.clip);
        let (unlearned, course) =
            unlearning::run(&cfg.unlearn, clip, "ulrl/unlearn", &suspect, ctx)?;
        let row_of = |net: &Net| net.params().to_plain(head.weight);
        let changes = &row_changes(&row_of(&net), &row_of(&unlearned), head.features);
        drop(unlearned);
        let found = outliers(changes, &cfg.detect);
        let rows = Rows::of(&net, head, &found.kept);
        if cfg.relearn.init {
            let drawn = rows.draw(cfg.relearn.gain, ctx.seed());
            rows.replace(&mut net, &drawn);
        }
        let relearn = &cfg.relearn;
        let schedule = Schedule {
            kind: Kind::Cosine,
            t_max: relearn.epochs.max(1),
            ..Schedule::default()
        };
        let part = Part {
            stage: "relearn",
            variant: "repaired",
            epochs: relearn.epochs,
            loader: LoaderOptions {
                batch_size: relearn.batch_size,
                shuffle: relearn.shuffle,
                drop_last: false,
                augment: relearn.augment,
                seed: ctx.seed(),
                purpose: "ulrl/relearn",
            },
            lr: relearn.lr,
            schedule: &schedule,
            probe_every: cfg.probe_every,
        };
        let mut steps = Relearner::new(&net, relearn, &rows);
        let data = (suspect.clean(), suspect.task());
        finetuning::run(&part, data, &mut net, &mut steps, ctx)?;
        let mut repaired = Repaired::single(net.state()?);
        repaired.artefacts = vec![("rows.csv".to_owned(), table(changes, &found, cfg))];
        repaired.notes = json!({
            "unlearn": { "epochs": course.epochs, "reached": course.reached, "accuracy": course.accuracy },
            "detect": found,
        });
        Ok(repaired)
    }
}

/// The table `rows.csv`.
fn table(changes: &[f64], found: &Outliers, cfg: &UlrlConfig) -> Vec<u8> {
    let mut text = "class,change,deviations,suspicious,kept\n".to_owned();
    for (class, &change) in changes.iter().enumerate() {
        let deviations = deviation(change, found.median, found.mad, cfg.detect.scale);
        let (suspicious, kept) = (found.found.contains(&class), found.kept.contains(&class));
        writeln!(text, "{class},{change},{deviations},{suspicious},{kept}")
            .expect("strings take all");
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finetuning::Stepper as _;
    use crate::testing::{check_alike, suspect};
    use bb_nn::data::batches;
    use std::f64::consts::PI;

    #[test]
    fn the_table_says_of_each_class_how_far_it_moved() {
        let found = Outliers {
            median: 2.0,
            mad: 0.5,
            found: vec![1, 2],
            kept: vec![2],
        };
        let mut cfg = UlrlConfig::default();
        cfg.detect.scale = 2.0;
        let table = table(&[2.0, 6.0, 8.5], &found, &cfg);
        let expect = "\
class,change,deviations,suspicious,kept
0,2,0,false,false
1,6,4,true,false
2,8.5,6.5,true,true
";
        assert_eq!(String::from_utf8(table).expect("text"), expect);
    }

    /// The whole of relearning, written out: the rate goes along half a cosine that ends with the last epoch.
    #[test]
    fn relearning_goes_over_all_images_at_a_rate_that_falls_to_zero() {
        let (arch, task, state, clean) = suspect(10);
        let suspect = || Suspect::new(&arch, task, &state, &clean);
        let mut cfg = UlrlConfig::default();
        (cfg.unlearn.batch_size, cfg.unlearn.max_epochs) = (4, 2);
        (cfg.relearn.batch_size, cfg.relearn.epochs) = (4, 3);
        cfg.unlearn.stop_accuracy = 0.0;
        // The network has learned nothing, and no class stands out.
        cfg.detect.threshold = 0.5;
        let cfg = Valid::new(cfg).expect("valid settings");
        let repaired = Ulrl::repair(&cfg, suspect(), &mut Ctx::detached(0)).expect("repaired");
        let kept = repaired.notes["detect"]["kept"].clone();
        let kept: Vec<usize> = serde_json::from_value(kept).expect("classes");
        assert!(!kept.is_empty());

        let suspect = suspect();
        let mut net = suspect.net().expect("the state fits");
        let rows = Rows::of(&net, head(&net).expect("a classifier"), &kept);
        let drawn = rows.draw(2.0, 0);
        rows.replace(&mut net, &drawn);
        let mut steps = Relearner::new(&net, &cfg.relearn, &rows);
        let options = LoaderOptions {
            batch_size: 4,
            shuffle: true,
            drop_last: false,
            augment: true,
            seed: 0,
            purpose: "ulrl/relearn",
        };
        for epoch in 0..3u8 {
            let lr = 0.005 * (1.0 + (PI * f64::from(epoch) / 3.0).cos()) / 2.0;
            for batch in batches(suspect.clean(), task, options, u64::from(epoch)) {
                steps.step(&mut net, &batch.input, &batch.labels, lr as f32);
            }
        }
        let own = net.state().expect("a state");
        check_alike(&repaired.candidates[0].state, &own);
    }
}
