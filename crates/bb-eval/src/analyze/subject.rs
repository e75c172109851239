//! The model that an analysis looks at, with all that an attacker knows: poisoned images and the test set.

use std::path::Path;

use bb_core::cell::contract::Network;
use bb_core::cell::{Cell, MODEL};
use bb_core::cli::Failure;
use bb_core::data::{Dataset, Split};
use bb_core::poison::PoisonSet;
use bb_defense::DefenseError;
use bb_defense::context::Ctx;
use bb_defense::data::{CleanImages, FromNeeds as _, NoImages};
use bb_defense::harness::{SuspectCell, open_data, open_suspect};
use bb_defense::method::Suspect;
use bb_defense::nwc::target_tensors;
use bb_defense::tsbd::config::TsbdConfig;
use bb_defense::tsbd::unlearn::{Epoch, Unlearned, watched};
use bb_nn::{ArchSpec, Compute, Net, StateDict};

use super::AnalyzeError;
use crate::network;

/// A trained model and the data it belongs to.
pub struct Subject {
    /// Its cell.
    pub cell: Cell,
    /// Its architecture.
    pub arch: ArchSpec,
    /// Its parameters and buffers.
    pub state: StateDict,
    /// The dataset it was trained on.
    pub dataset: Dataset,
    /// The test images with the trigger, with the labels that the attacker wants; none if there is no trigger.
    pub poisoned: PoisonSet,
}

impl Subject {
    /// Opens an attack's cell, or that of clean training.
    pub fn open(path: &Path, data: Option<&Path>) -> Result<Self, Failure> {
        let SuspectCell {
            cell,
            network: Network { arch, width, .. },
        } = open_suspect(path)?;
        // Nothing is written beside the results, so decoded images are not kept.
        let (dataset, poisoned) = open_data(&cell, data, None)?;
        let arch = ArchSpec::for_dataset(&arch, width, &dataset.spec)?;
        let (state, _) = network::load(&cell.listed(MODEL)?, &arch)?;
        Ok(Self {
            cell,
            arch,
            state,
            dataset,
            poisoned,
        })
    }

    /// Checks that there is a trigger; `what` is the analysis that needs one.
    pub fn needs_backdoor(&self, what: &'static str) -> Result<(), AnalyzeError> {
        if self.poisoned.is_empty() {
            return Err(AnalyzeError::NotBackdoored {
                path: self.cell.dir.clone(),
                what,
            });
        }
        Ok(())
    }

    /// Checks that there is no trigger, and that data and network are those of `other`.
    pub fn needs_clean_twin_of(&self, other: &Self) -> Result<(), AnalyzeError> {
        let path = || self.cell.dir.clone();
        if !self.poisoned.is_empty() {
            return Err(AnalyzeError::NotClean {
                path: path(),
                images: self.poisoned.len(),
            });
        }
        for (field, expected, found) in [
            ("network", other.arch.label(), self.arch.label()),
            (
                "dataset",
                other.cell.manifest.dataset.clone(),
                self.cell.manifest.dataset.clone(),
            ),
            (
                "digest of the data",
                other.dataset.digest.clone(),
                self.dataset.digest.clone(),
            ),
        ] {
            if expected != found {
                return Err(AnalyzeError::NotAlike {
                    path: path(),
                    field,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// The network, computing on `compute`.
    pub fn net(&self, compute: &Compute) -> Result<Net, Failure> {
        Ok(Net::from_state(&self.arch, &self.state)?.on(compute)?)
    }

    /// The clean training images that a defender with these settings has.
    pub fn defenders_images(&self, cfg: &TsbdConfig) -> Result<Split, DefenseError> {
        let indices = cfg.clean.indices(self.dataset.train.len())?;
        Ok(self.dataset.train.select(&indices))
    }

    /// The model as a suspect with some images, which need not be what a defender has.
    pub fn suspect<'a, D>(&'a self, data: &'a D, compute: &'a Compute) -> Suspect<'a, D> {
        Suspect::new(&self.arch, &self.dataset.spec, &self.state, data).with_compute(compute)
    }

    /// The model as a suspect without any image, as data-free methods have it.
    pub fn no_images(&self) -> Result<NoImages, DefenseError> {
        Ok(NoImages::grant(&self.dataset, &())?.0)
    }

    /// The layers whose neurons are compared: places among the parameters and names, in the network's order.
    ///
    /// # Errors
    /// [`AnalyzeError::NoTargets`] if the settings leave none.
    pub fn targets(&self, cfg: &TsbdConfig) -> Result<Vec<(usize, String)>, Failure> {
        let net = Net::from_state(&self.arch, &self.state)?;
        let entries = net.params().layout().entries();
        let targets: Vec<(usize, String)> = target_tensors(net.params(), &cfg.layers.exclude)
            .into_iter()
            .map(|tensor| (tensor, entries[tensor].name.clone()))
            .collect();
        if targets.is_empty() {
            return Err(AnalyzeError::NoTargets {
                arch: self.arch.label(),
                exclude: cfg.layers.exclude.clone(),
            }
            .into());
        }
        Ok(targets)
    }

    /// The last of [`Self::targets`].
    pub fn last_target(&self, cfg: &TsbdConfig) -> Result<(usize, String), Failure> {
        let last = self.targets(cfg)?.pop();
        Ok(last.expect("there is at least one"))
    }
}

/// What a model unlearns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Lesson {
    /// The clean training images that a defender has, until at most `unlearn.stop_accuracy` of them are right
    Clean,
    /// The clean test images, without augmentation, until at most `unlearn.stop_accuracy` of them are right
    Test,
    /// The test images with the trigger and the attacker's labels, without augmentation, until ASR is at most 5 %
    Poison,
}

/// ASR at which poison unlearning ends, as in the authors' code.
pub const POISON_STOP: f64 = 0.05;

impl Lesson {
    /// Its name in tables.
    pub fn id(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Test => "test",
            Self::Poison => "poison",
        }
    }

    /// The images and their labels.
    pub fn images(self, subject: &Subject, cfg: &TsbdConfig) -> Result<Split, Failure> {
        Ok(match self {
            Self::Clean => subject.defenders_images(cfg)?,
            Self::Test => subject.dataset.test.clone(),
            Self::Poison => {
                subject.needs_backdoor("poison unlearning")?;
                Split {
                    images: subject.poisoned.images.clone(),
                    labels: subject.poisoned.labels.clone().into(),
                }
            }
        })
    }

    /// The settings of TSBD's unlearning for it.
    fn settings(self, cfg: &TsbdConfig) -> TsbdConfig {
        let mut cfg = cfg.clone();
        if self != Self::Clean {
            cfg.unlearn.augment = false;
        }
        if self == Self::Poison {
            cfg.unlearn.stop_accuracy = POISON_STOP;
            // A backdoored model gives all of these images one class from the beginning.
            cfg.unlearn.stop_constant = false;
        }
        cfg
    }

    /// Unlearns a copy of the model, showing `watch` each epoch that ends.
    pub fn unlearn(
        self,
        subject: &Subject,
        cfg: &TsbdConfig,
        (seed, compute): (u64, &Compute),
        watch: &mut dyn FnMut(&Epoch, &mut Net) -> Result<(), DefenseError>,
    ) -> Result<Unlearned, Failure> {
        let images = CleanImages::from_split(self.images(subject, cfg)?);
        let suspect = subject.suspect(&images, compute);
        let cfg = self.settings(cfg);
        Ok(watched(&cfg, &suspect, &mut Ctx::detached(seed), watch)?)
    }
}
