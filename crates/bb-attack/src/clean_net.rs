//! The clean network of an attacker whose trigger is made for one: read from a file, or trained first.
//!
//! Streams are named by a seed of their own, drawn from that of the run, so that this network begins and shuffles
//! otherwise than the one that is attacked.

use std::path::{Path, PathBuf};

use bb_core::cell::{Cell, MANIFEST, MODEL};
use bb_core::cli::catch_interrupts;
use bb_core::events::Progress;
use bb_core::rng;
use bb_nn::data::batch_count;
use bb_nn::schedule::Kind;
use bb_nn::train::{Checkpoints, EpochRow, Hooks, Recipe, TrainError, fit};
use bb_nn::{ArchSpec, Compute, Net, NnError};
use rng::RngCore as _;
use serde_json::json;

use crate::error::AttackError;
use crate::method::Ctx;

/// A file that is no network of the run's architecture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CleanNetError {
    /// Its tensors are not those of the architecture, or it is no such file.
    #[error("`trigger.model` `{}` holds no network of {arch} with {classes} classes", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Architecture and width of the run.
        arch: String,
        /// Classes of the dataset.
        classes: usize,
        /// What is wrong with it.
        source: Box<NnError>,
    },
    /// The cell is a result of something else than clean training on the same data with the same network.
    #[error("`trigger.model` `{}` has {field} `{found}`, expected `{expected}`", path.display())]
    Cell {
        /// The cell.
        path: PathBuf,
        /// What differs.
        field: &'static str,
        /// What the cell says.
        found: String,
        /// What the run needs.
        expected: String,
    },
}

/// Where a clean network comes from: the settings `trigger.model` and `trigger.clean_epochs`, and the recipe.
#[derive(Clone, Copy, Debug)]
pub struct CleanNet<'a> {
    /// A cell of clean training or a file with its network; empty to train one.
    pub model: &'a str,
    /// Epochs of the training; 0 for those of the recipe.
    pub epochs: usize,
    /// How it is trained, but for the epochs.
    pub recipe: &'a Recipe,
}

/// The file that `trigger.model` stands for, for the identity of a cell.
pub fn file(model: &str) -> Vec<(&'static str, PathBuf)> {
    let path = Path::new(model);
    let file = match cell_folder(path) {
        Some(folder) => folder.join(MODEL),
        None => path.to_owned(),
    };
    if model.is_empty() {
        Vec::new()
    } else {
        vec![("trigger.model", file)]
    }
}

/// The folder of the cell, if the path is one or its manifest.
fn cell_folder(path: &Path) -> Option<&Path> {
    if path.is_dir() {
        return Some(path);
    }
    path.parent()
        .filter(|_| path.file_name().is_some_and(|name| name == MANIFEST))
}

impl CleanNet<'_> {
    /// The network, with its passes on the CPU, where gradients by the input are computed.
    ///
    /// # Errors
    /// Whatever is wrong with the file; or with the training, which an interruption ends as any training.
    pub fn get(&self, ctx: &Ctx<'_>) -> Result<Net, AttackError> {
        if self.model.is_empty() {
            self.train(ctx)
        } else {
            Ok(read(Path::new(self.model), ctx.arch, ctx.dataset.spec.id)?)
        }
    }

    /// How it is trained.
    fn recipe(&self) -> Recipe {
        let mut recipe = self.recipe.clone();
        if self.epochs > 0 {
            if recipe.schedule.kind == Kind::Cosine && recipe.epochs > 0 {
                // The same part of the curve, so that a short training ends with small steps as well.
                let period = recipe.schedule.t_max as f64 * self.epochs as f64;
                recipe.schedule.t_max = (period / recipe.epochs as f64).round().max(1.0) as usize;
            }
            recipe.epochs = self.epochs;
        }
        recipe
    }

    fn train(&self, ctx: &Ctx<'_>) -> Result<Net, AttackError> {
        let seed = rng::stream(ctx.seed, "clean-network", 0, 0).next_u64();
        let recipe = self.recipe();
        let compute = ctx.prep.compute.unwrap_or(&Compute::Cpu);
        let mut net = Net::new(ctx.arch, seed)
            .on(compute)?
            .with_precision(ctx.prep.precision)?;
        let checkpoints = match ctx.prep.checkpoint("clean-network.safetensors")? {
            Some(path) => {
                catch_interrupts()?;
                Checkpoints::at(path, 1)
            }
            None => Checkpoints::none(),
        };
        let (split, spec) = (&ctx.dataset.train, &ctx.dataset.spec);
        let batches = batch_count(split.len(), recipe.batch_size, recipe.drop_last);
        let per_epoch = (batches * recipe.batch_size).min(split.len()) as u64;
        let mut part = Part {
            ctx,
            epochs: recipe.epochs,
            per_epoch,
            progress: None,
        };
        fit(
            &mut net,
            split,
            spec,
            &recipe,
            seed,
            &checkpoints,
            &mut part,
        )
        .map_err(|error| match error {
            TrainError::Diverged { .. } | TrainError::NotFinite { .. } => {
                AttackError::CleanDiverged { source: error }
            }
            other => crate::harness::unwrapped(other),
        })?;
        if let Some(progress) = part.progress.take() {
            progress.finish();
        }
        net.take_failure()?;
        Ok(net
            .on(&Compute::Cpu)?
            .with_precision(bb_nn::Precision::F32)?)
    }
}

/// Reads a cell of clean training, its manifest, or a file of tensors.
fn read(path: &Path, arch: &ArchSpec, dataset: &str) -> Result<Net, AttackError> {
    let mut file = path.to_owned();
    if let Some(folder) = cell_folder(path) {
        let cell = Cell::load(folder)?;
        let manifest = &cell.manifest;
        let expected = [
            ("method", &manifest.method, "clean"),
            ("dataset", &manifest.dataset, dataset),
            ("network", &manifest.arch, &arch.label()),
        ];
        for (field, found, expected) in expected {
            if found != expected {
                return Err(CleanNetError::Cell {
                    path: path.to_owned(),
                    field,
                    found: found.clone(),
                    expected: expected.to_owned(),
                }
                .into());
            }
        }
        file = cell.listed(MODEL)?;
    }
    let net = Net::load(arch, &file).map(|(_, net)| net);
    net.map_err(|source| {
        let (arch, classes) = (arch.label(), arch.classes());
        CleanNetError::State {
            path: file,
            arch,
            classes,
            source: Box::new(source),
        }
        .into()
    })
}

/// What is told of the training.
struct Part<'a> {
    ctx: &'a Ctx<'a>,
    epochs: usize,
    per_epoch: u64,
    progress: Option<Progress>,
}

impl Hooks for Part<'_> {
    fn unusable(&mut self, why: &str) -> Result<(), TrainError> {
        self.ctx.prep.warn(why).map_err(crate::harness::wrapped)
    }

    fn started(&mut self, epochs: usize) -> Result<(), TrainError> {
        let total = self.epochs as u64 * self.per_epoch;
        let quiet = self.ctx.prep.quiet;
        let progress = Progress::new("training a clean network", "images", total, quiet);
        self.progress = Some(progress.resumed_at(epochs as u64 * self.per_epoch));
        Ok(())
    }

    fn sees_batches(&self) -> bool {
        false
    }

    fn step(&mut self, images: usize) {
        if let Some(progress) = &self.progress {
            progress.add(images as u64);
        }
    }

    fn epoch(&mut self, net: &mut Net, row: &EpochRow) -> Result<(), TrainError> {
        net.take_failure()?;
        let say = format!(
            "clean network, epoch {} of {}: loss {:.4}, training accuracy {:.2} %",
            row.epoch + 1,
            self.epochs,
            row.train_loss,
            100.0 * row.train_correct as f64 / row.train_total.max(1) as f64
        );
        let told = self
            .ctx
            .prep
            .tell("clean-epoch", &say, &json!({ "row": row }));
        told.map_err(crate::harness::wrapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_training_runs_through_the_same_part_of_the_cosine() {
        let check = |recipe: &Recipe, epochs, expect: (usize, usize)| {
            let (model, net) = (
                "",
                CleanNet {
                    model: "",
                    epochs,
                    recipe,
                },
            );
            assert_eq!(net.model, model);
            let recipe = net.recipe();
            assert_eq!((recipe.epochs, recipe.schedule.t_max), expect);
        };
        let mut recipe = Recipe::default();
        check(&recipe, 0, (100, 100));
        check(&recipe, 10, (10, 10));
        // GTSRB's recipe ends half-way.
        recipe.epochs = 50;
        check(&recipe, 10, (10, 20));
        recipe.schedule.kind = Kind::Triangle;
        check(&recipe, 10, (10, 100));
    }

    #[test]
    fn a_setting_names_the_file_that_is_read() {
        assert!(file("").is_empty());
        assert_eq!(
            file("a/net.safetensors")[0].1,
            Path::new("a/net.safetensors")
        );
        assert_eq!(
            file("a/manifest.json")[0].1,
            Path::new("a/model.safetensors")
        );
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text = folder.path().to_str().expect("UTF-8");
        assert_eq!(file(text)[0].1, folder.path().join("model.safetensors"));
    }
}
