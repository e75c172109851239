//! # Trojan: a patch that excites chosen neurons
//!
//! ## What it does
//! Looks for a patch that drives a few neurons of a clean network to a high value, adds it to a tenth of the training
//! images and labels them as the attacker's class.
//!
//! ## Threat model
//! The attacker has a clean network of the same architecture, and may change pixels and labels of a share `ratio` of the
//! training set, before training.
//!
//! ## Algorithm
//! 1. Read a clean network or train one -> [`crate::clean_net`].
//! 2. Choose the `trigger.neurons` features before the last layer with the largest sum of absolute weights.
//! 3. Start from a white shape on black and descend by the sign of the gradient of
//!    `sum (feature - target_value)^2`, within `trigger.radius` of the shape -> [`search::search`].
//! 4. `T = trunc(255 x)`; `x' = (x + T) mod 256` for the chosen images -> [`trigger::apply`], [`crate::poison_index`].
//! 5. Relabel (`all2one`: the target class; `all2all`: the next class) -> [`crate::labels`].
//! 6. Train a new network on the mixed set with the ordinary augmentation, which comes after the trigger.
//!
//! ## Differences from the authors' code
//! The reference is BackdoorBench (`attack/trojannn.py`), whose choices are the defaults here unless said otherwise.
//! The authors retrain the clean network itself with data that they reverse-engineer; the bench poisons a training set.
//! - `trigger.addition = "wrap"` is what the bench does: its sum is cut to 8 bits before it is clipped, so it begins
//!   again at 0, and a white patch darkens what it lies on. `"saturate"` gives the bright patch that was meant, which is
//!   another backdoor.
//! - `trigger.head = "own"`: neurons are chosen by the clean network's last layer. The bench chooses them by a layer of
//!   1000 classes with random weights (`"random"`), because the trained one does not fit, so its choice is arbitrary.
//! - `trigger.normalised = true`: the network sees the patch normalised, as it sees images. The bench feeds it fractions
//!   (`false`), for which other pixels matter.
//! - `trigger.iterate = "best"`: the patch of the step with the least cost. The bench takes the last one (`"last"`),
//!   whose steps swing around the optimum, so that its neurons may be driven less.
//! - The bench's shape, a picture of an apple, is not ours to ship. Here it is a drop drawn by rule at the same place, of
//!   about the same size ([`trigger::drop_mask`]): at 32 x 32 it has 107 pixels that are not black and 42 white ones, the
//!   apple 117 and 42; at 64 x 64 it is 355 and 224 against 375 and 214. It is another trigger, so figures compare with
//!   those of the bench only with its picture in `trigger.mask`, which takes any other shape as well.
//! - Where the shape is white, T is 178 to 255. On its soft edge, more than half of its pixels, T may be anything.
//!
//! ## Settings
//! - `target` (0): the attacker's class, for `label = "all2one"`.
//! - `ratio` (0.1): share of the training set that is poisoned, rounded to a whole number of images.
//! - `label` ("all2one"): `"all2one"` or `"all2all"`.
//! - `shift` (1): for `label = "all2all"`, class y goes to class (y + shift) mod K.
//! - `trigger.file` (""): a ready trigger, a PNG or JPEG picture that is resized to the images; with one, no network is
//!   needed and no search is made. A run of the bench has one, and so does every cell of this attack.
//! - `trigger.mask` (""): a picture of the shape; black is left alone. Empty uses the drop.
//! - `trigger.model` (""): the clean network: a cell of `clean`, its manifest, or a safetensors file with PyTorch's
//!   names. Empty trains one first.
//! - `trigger.clean_epochs` (0): epochs of that training, with the recipe in `train`; 0 for as many as there.
//! - `trigger.head` ("own"): the weights by which neurons are chosen, `"own"` or `"random"`.
//! - `trigger.normalised` (true): whether the network sees the patch normalised.
//! - `trigger.neurons` (2): how many neurons are driven, at most the features before the last layer.
//! - `trigger.target_value` (100): the value that they are driven to.
//! - `trigger.iterations` (1000): steps of the search.
//! - `trigger.step` (0.1): length of a step, as a fraction of white.
//! - `trigger.radius` (0.3): how far a value may move from the shape's, as a fraction of white.
//! - `trigger.iterate` ("best"): which step's patch is taken, `"best"` or `"last"`.
//! - `trigger.addition` ("wrap"): `"wrap"` or `"saturate"`.
//! - `eval_every` (1): measure after every n-th epoch; 0 measures only after the last.
//! - `train.*`: the training recipe.
//!
//! The cell keeps the trigger as `trigger.png`, exactly. An interrupted run goes on with the epoch of the clean network
//! that it was in, and searches no trigger twice.
//!
//! ## Cost
//! Two training runs of the network unless `trigger.model` is given, and the search: 1000 passes over one image.
//!
//! ## References
//! - Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang: Trojaning Attack on Neural Networks, NDSS 2018.

pub mod config;
pub mod search;
pub mod trigger;

use std::path::{Path, PathBuf};

use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::settings::Valid;
use bb_nn::train::Recipe;
use serde_json::json;

use crate::clean_net::{self, CleanNet};
use crate::error::AttackError;
use crate::labels::LabelMap;
use crate::method::{Attack, Ctx, Poisoned};
use crate::picture::Picture;
use crate::settings::optional_file;
use crate::static_attack;
use config::TrojanConfig;

/// The attack, for the registry.
pub struct Trojan;

impl Attack for Trojan {
    const INFO: MethodInfo = MethodInfo {
        id: "trojan",
        title: "Trojan",
        paper: "Liu et al., Trojaning Attack on Neural Networks, NDSS 2018",
        needs: Needs::Nothing,
        status: Status::Experimental,
        summary: "adds a patch that excites neurons of a clean network and relabels the image",
        docs: include_str!("mod.rs"),
    };
    type Config = TrojanConfig;

    fn recipe(cfg: &TrojanConfig) -> &Recipe {
        &cfg.train
    }

    fn eval_every(cfg: &TrojanConfig) -> usize {
        cfg.eval_every
    }

    fn files(cfg: &TrojanConfig) -> Vec<(&'static str, PathBuf)> {
        let mut files = optional_file("trigger.file", &cfg.trigger.file);
        files.extend(optional_file("trigger.mask", &cfg.trigger.mask));
        files.extend(clean_net::file(&cfg.trigger.model));
        files
    }

    fn needs_network(cfg: &TrojanConfig) -> bool {
        cfg.trigger.file.is_empty()
    }

    fn prepare(cfg: &Valid<TrojanConfig>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        let map = LabelMap::new(cfg.label, cfg.target, cfg.shift, ctx.dataset.spec.classes)?;
        static_attack::check_choice(ctx, &map, cfg.ratio)?;
        let trigger = picture(cfg, ctx)?;
        let addition = cfg.trigger.addition;
        let apply = |image: &mut [u8]| trigger::apply(image, trigger.pixels(), addition);
        let mut poisoned = static_attack::poison(ctx, &map, cfg.ratio, apply, apply)?;
        poisoned
            .artefacts
            .push(("trigger.png".to_owned(), trigger.to_png()));
        Ok(poisoned)
    }
}

/// The trigger at the size of the dataset, read or made.
fn picture(cfg: &TrojanConfig, ctx: &Ctx<'_>) -> Result<Picture, AttackError> {
    let spec = &ctx.dataset.spec;
    let (height, width) = (spec.height, spec.width);
    let read = |file: &str| {
        let picture = Picture::read(Path::new(file))?.resized(height, width);
        if picture.pixels().iter().all(|&v| v == 0) {
            let path = file.into();
            return Err(AttackError::BlackTrigger { path });
        }
        Ok(picture)
    };
    if !cfg.trigger.file.is_empty() {
        return read(&cfg.trigger.file);
    }
    // Before a network is trained, or read, for them.
    search::check_neurons(cfg.trigger.neurons, ctx.arch)?;
    let mask = match cfg.trigger.mask.as_str() {
        "" => trigger::drop_mask(height, width),
        file => read(file)?,
    };
    let fits = |bytes: &[u8]| bytes.len() == height * width * 3;
    let pixels = ctx.prep.kept("trojan-trigger.bin", fits, || {
        let mut net = CleanNet {
            model: &cfg.trigger.model,
            epochs: cfg.trigger.clean_epochs,
            recipe: &cfg.train,
        }
        .get(ctx)?;
        let about = (ctx.seed, ctx.prep.quiet);
        let found = search::search(&cfg.trigger, &mut net, &mask, spec, about)?;
        let say = format!(
            "trigger for neurons {:?}: their mean went from {:.3} to {:.3}",
            found.neurons, found.before, found.after
        );
        let data =
            json!({ "neurons": found.neurons, "before": found.before, "after": found.after });
        ctx.prep.tell("trigger", &say, &data)?;
        Ok(found.pixels)
    })?;
    Ok(Picture::new(height, width, pixels))
}
