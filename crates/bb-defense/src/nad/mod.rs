//! # NAD: neural attention distillation
//!
//! ## What it does
//! Fine-tunes a copy of the suspect model for a few epochs, which weakens the backdoor. This teacher then shows the
//! suspect model where to look: the student learns the labels and to have the teacher's attention maps, in which the
//! trigger draws less attention.
//!
//! ## Threat model
//! The defender has the suspect model and 5 % of the clean training images with their labels. Triggers, poison
//! indices, the target class and the test set stay unseen.
//!
//! ## Algorithm
//! 1. The teacher: plain fine-tuning of a copy -> [`crate::finetuning::run`].
//! 2. The attention of a feature is, for each pixel, the sum over channels of `|F|^p`, divided by the L2 norm of these
//!    sums over the image -> [`attention::Attention::of`].
//! 3. The student, another copy, is trained with SGD on the cross-entropy plus `beta` times the mean squared distance
//!    of its attention from the teacher's at each of three layers: `beta1` at `layer3`, `beta2` at `layer4`, `beta3` at
//!    `avgpool` -> [`distill::Distiller`]. The teacher is in eval mode, the student in train mode. The result is the
//!    student after the last epoch.
//!
//! ## Differences from the authors' code
//! The reference is the benchmark's `defense/nad.py`, whose choices are the defaults here:
//! - Only PreActResNet-18 is compared at three layers; any other architecture at `avgpool` alone, what its classifier
//!   reads (`distill.layers = "reference"`). A map of one pixel is 1 whatever the feature, so the distance at `avgpool`
//!   vanishes in PreActResNet-18 and leaves `resnet18` and `resnet34` with the cross-entropy alone; so it is in
//!   `vgg19_bn` for 32x32 images, whose one pixel is repeated. A run of which all distances vanish says so. With
//!   `distill.layers = "stages"` these ResNet models are compared at `layer3` and `layer4` too.
//! - The feature of each layer is computed by a forward pass of its own through the student in train mode, so that
//!   running statistics move up to four times in a step. Here there is one pass, and the statistics are moved as often
//!   by arithmetic (`distill.repeat_bn = true`); with `false` they move once. `num_batches_tracked` counts steps.
//! - The student is trained for as many epochs as the teacher, 10; what its settings call `epochs` is not read. Here
//!   these are `finetune.epochs` and `distill.epochs`.
//! - The student's rate is written by hand: the base rate in the first two epochs, 0.01 up to the 20th, 0.0001 later.
//!   With the base rate 0.01 this is `distill.milestones = [20]` and `distill.gamma = 0.01`.
//! - The teacher is trained in mixed precision, the student in `f32`; here both are in `f32` unless another precision is
//!   asked for.
//! - A file with a teacher can be given there. Here the teacher is always trained.
//!
//! Deliberately different:
//! - Orders and crops are drawn from streams of our own, so they are others than PyTorch's.
//! - Sums, norms and distances of attention maps are computed in `f64`.
//! - A loss that is not finite ends the run with an error.
//!
//! ## Settings
//! - `probe_every` (10): measure the model of a stage after every n-th epoch, counted from the first; 0 measures only at
//!   the end.
//! - `clean.ratio` (0.05): share of the training images that the defender has.
//! - `clean.seed` (0): seed of their draw, which is that of Python's `random.sample`.
//! - `clean.index_file` (""): text file with their indices instead.
//! - `finetune.epochs` (10): epochs of the teacher; 0 takes the suspect model for it.
//! - `finetune.batch_size` (256), `finetune.shuffle` (true), `finetune.augment` (true): its batches; 128 images on Tiny
//!   ImageNet.
//! - `finetune.lr` (0.01), `finetune.momentum` (0.9), `finetune.weight_decay` (0.0005): its SGD.
//! - `finetune.schedule.kind` ("cosine"): `"constant"`, `"cosine"` or `"plateau"`, which is the benchmark's for Tiny
//!   ImageNet.
//! - `finetune.schedule.t_max` (100): half period of the cosine, in epochs.
//! - `finetune.schedule.gamma` (0.1): factor of the plateau.
//! - `finetune.schedule.patience` (10): epochs without improvement that the plateau bears.
//! - `distill.epochs` (10): epochs of the student; 0 leaves the suspect model as it is.
//! - `distill.batch_size` (256), `distill.shuffle` (true), `distill.augment` (true): its batches; 128 images on Tiny
//!   ImageNet.
//! - `distill.lr` (0.01), `distill.momentum` (0.9), `distill.weight_decay` (0.0005): its SGD.
//! - `distill.milestones` (20), `distill.gamma` (0.01): epochs at which its rate falls, and the factor.
//! - `distill.beta1` (500.0), `distill.beta2` (1000.0), `distill.beta3` (1000.0): weights of the distances, see above.
//! - `distill.power` (2.0): the exponent `p`.
//! - `distill.layers` ("reference"): `"reference"` or `"stages"`, see above.
//! - `distill.repeat_bn` (true): see above.
//!
//! ## Cost
//! 10 passes over the clean images for the teacher and 10 for the student, each of these with a forward pass of the
//! teacher besides. On a GPU the student's passes are computed on the CPU, as every loss that is not plain
//! cross-entropy is.
//!
//! ## References
//! - Li, Lyu, Koren, Lyu, Li, Ma: Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks,
//!   ICLR 2021, arXiv 2101.05930.
//! - Zagoruyko, Komodakis: Paying More Attention to Attention: Improving the Performance of Convolutional Neural
//!   Networks via Attention Transfer, ICLR 2017, arXiv 1612.03928.

pub mod attention;
pub mod config;
pub mod distill;

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::Net;
use bb_nn::data::{LoaderOptions, Normaliser, plain_input};
use bb_nn::schedule::{Kind, Schedule};
use serde_json::{Value, json};

use self::config::NadConfig;
use self::distill::Distiller;
use crate::context::{At, Ctx};
use crate::data::{CleanBudget, CleanImages};
use crate::error::DefenseError;
use crate::finetuning::{self, Part, Plain};
use crate::method::{Defense, Repaired, Suspect};
use crate::recipes::{RecipeFile, recipes};

/// The defense, for the registry.
pub struct Nad;

impl Defense for Nad {
    const INFO: MethodInfo = MethodInfo {
        id: "nad",
        title: "NAD",
        paper: "Li et al., Neural Attention Distillation, ICLR 2021",
        needs: Needs::CleanFraction,
        status: Status::Matched,
        summary: "lets a fine-tuned copy teach the model where to look",
        docs: include_str!("mod.rs"),
    };
    const RECIPES: &'static [RecipeFile] =
        recipes!["nad": "cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];
    type Data = CleanImages;
    type Config = NadConfig;

    fn budget(cfg: &NadConfig) -> CleanBudget {
        cfg.clean.clone()
    }

    fn repair(
        cfg: &Valid<NadConfig>,
        suspect: Suspect<'_, CleanImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let teacher = teacher(cfg, &suspect, ctx)?;
        let mut net = suspect.net()?;
        let distill = &cfg.distill;
        let mut steps = Distiller::new(&net, teacher, suspect.arch(), distill);
        let (clean, task) = (suspect.clean(), suspect.task());
        let one = plain_input(&clean.images, 0..1, &Normaliser::new(task));
        let blind = steps.is_blind(&one);
        net.take_failure()?;
        if blind {
            let layers: Vec<&str> = steps.terms().iter().map(|term| term.layer).collect();
            let text = format!(
                "the attention at `{}` of {} is the same for every image, so the student is merely fine-tuned",
                layers.join("`, `"),
                suspect.arch().label(),
            );
            ctx.warn("no-attention", &text)?;
        }
        let schedule = Schedule {
            kind: Kind::Multistep,
            milestones: distill.milestones.clone(),
            gamma: distill.gamma,
            ..Schedule::default()
        };
        let part = Part {
            stage: "distill",
            variant: "repaired",
            epochs: distill.epochs,
            loader: LoaderOptions {
                batch_size: distill.batch_size,
                shuffle: distill.shuffle,
                drop_last: false,
                augment: distill.augment,
                seed: ctx.seed(),
                purpose: "nad/distill",
            },
            lr: distill.lr,
            schedule: &schedule,
            probe_every: cfg.probe_every,
        };
        finetuning::run(&part, (clean, task), &mut net, &mut steps, ctx)?;
        let mut repaired = Repaired::single(net.state()?);
        repaired.notes = json!({ "compared": steps.terms(), "attention": !blind });
        Ok(repaired)
    }
}

/// The checkpoint of the whole teacher.
const TAUGHT: &str = "done-teacher";

/// A copy of the suspect model that was fine-tuned.
fn teacher(
    cfg: &NadConfig,
    suspect: &Suspect<'_, CleanImages>,
    ctx: &mut Ctx<'_>,
) -> Result<Net, DefenseError> {
    let mut net = suspect.net()?;
    if let Some(saved) = ctx.load::<Value>(TAUGHT)? {
        net.set_state(&saved.state)?;
        return Ok(net);
    }
    let part = Part {
        stage: "teacher",
        variant: "teacher",
        epochs: cfg.finetune.epochs,
        loader: cfg.finetune.loader(ctx.seed(), "nad/teacher"),
        lr: cfg.finetune.lr,
        schedule: &cfg.finetune.schedule(),
        probe_every: cfg.probe_every,
    };
    let mut steps = Plain::new(&net, &cfg.finetune);
    let data = (suspect.clean(), suspect.task());
    finetuning::run(&part, data, &mut net, &mut steps, ctx)?;
    if cfg.probe_every > 0 {
        ctx.probe(At::stage("teacher").variant("teacher"), &mut net);
    }
    ctx.save(TAUGHT, &net.state()?, &json!({}))?;
    Ok(net)
}
