//! The trait that every attack implements, and its form without types for the registry.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use bb_core::data::Dataset;
use bb_core::method::MethodInfo;
use bb_core::poison::PoisonSet;
use bb_core::settings::{Layers, Origin, Resolved, Unnumbered, Valid, Validate, render};
use bb_nn::data::Batch;
use bb_nn::kernels::loss::Loss;
use bb_nn::train::{Recipe, StepAt};
use bb_nn::{ArchSpec, Flat, Mode, Net};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::AttackError;
use crate::in_loop::Counts;
use crate::prep::Prep;
use crate::recipes;

/// An attack: a way to poison a training set, and if need be the training itself.
pub trait Attack: 'static {
    /// Name, paper and documentation.
    const INFO: MethodInfo;
    /// The settings. Their default is the reference's choice.
    type Config: Serialize + DeserializeOwned + Default + Validate + 'static;
    /// Whether it takes its share of every batch, and chooses no images before the training.
    const IN_LOOP: bool = false;

    /// The training recipe in the settings.
    fn recipe(cfg: &Self::Config) -> &Recipe;

    /// Epochs that the classifier is trained for, where that is not what the recipe says.
    fn epochs(cfg: &Self::Config) -> usize {
        Self::recipe(cfg).epochs
    }

    /// Measure after every n-th epoch; 0 measures only after the last.
    fn eval_every(cfg: &Self::Config) -> usize;

    /// Settings that came after the first cells: at their default they are no part of a cell's identity, so that cells that
    /// were made without them keep theirs.
    fn later(cfg: &Self::Config) -> &'static [&'static str] {
        let _ = cfg;
        &[]
    }

    /// How often what these settings compute has become something else since the first cells. It is a part of a cell's
    /// identity where it is not 0, so that no older cell is taken for one of now.
    fn revision(cfg: &Self::Config) -> u32 {
        let _ = cfg;
        0
    }

    /// Settings that stand for a class, and so take its name as well as its number.
    fn classes() -> &'static [&'static str] {
        &["target"]
    }

    /// Files that the settings name, as (setting, path). Their contents become part of the cell's identity.
    fn files(cfg: &Self::Config) -> Vec<(&'static str, PathBuf)>;

    /// Refuses what cannot work on these data, before anything is computed. [`Attack::prepare`] is called afterwards.
    fn check(cfg: &Valid<Self::Config>, dataset: &Dataset, seed: u64) -> Result<(), AttackError> {
        let _ = (cfg, dataset, seed);
        Ok(())
    }

    /// Whether the trigger is made with a network, which then has the architecture and width of the attacked one.
    fn needs_network(cfg: &Self::Config) -> bool {
        let _ = cfg;
        false
    }

    /// Poisons the data, and builds the hook of an attack that shapes the training too.
    fn prepare(cfg: &Valid<Self::Config>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError>;
}

/// What an attack is given.
#[derive(Clone, Copy, Debug)]
pub struct Ctx<'a> {
    /// The clean data.
    pub dataset: &'a Dataset,
    /// The network that will be trained.
    pub arch: &'a ArchSpec,
    /// The seed of the run.
    pub seed: u64,
    /// Where a preparation that takes long keeps and tells things.
    pub prep: Prep<'a>,
}

/// What an attack hands back.
pub struct Poisoned {
    /// Poisoned training images. Without a [`TrainHook`] they replace the clean ones before training.
    pub train: PoisonSet,
    /// Poisoned test images, none of which has its attacked label as true label.
    pub test: PoisonSet,
    /// Further files for the cell: name and content.
    pub artefacts: Vec<(String, Vec<u8>)>,
    /// What the user should know of how the settings were taken, one line each.
    pub warnings: Vec<String>,
    /// What an attack on the training itself does along the way.
    ///
    /// With a hook the training split stays clean and the hook changes the batches; `train` is then only a record of
    /// which pixels the attack stands for, and [`TrainHook::finish`] has the last word on both sets.
    pub hook: Option<Box<dyn TrainHook>>,
}

/// An attack's part in the training loop, for attacks that are more than poisoned data (warping with noise, learnt triggers).
///
/// What it draws at random comes from streams named by epoch, step and image, and what it learns is in [`TrainHook::save`],
/// so that a resumed run ends with the bits of a whole one.
pub trait TrainHook {
    /// Whether the loader augments, where the recipe wants it; a hook that says no does it itself, after poisoning.
    fn loader_augments(&self) -> bool {
        true
    }

    /// Epochs of the hook's own work before those of the classifier.
    fn epochs_before(&self) -> usize {
        0
    }

    /// One of them, counted from 0, over about as many images as the training set has. To be called: `done`, with the
    /// number of images, after each step; its error, an interruption, is to be passed on. Gives a line for the log.
    fn epoch_before(
        &mut self,
        epoch: usize,
        done: &mut dyn FnMut(usize) -> Result<(), AttackError>,
    ) -> Result<String, AttackError> {
        let _ = (epoch, done);
        Ok(String::new())
    }

    /// Changes a batch (normalised) and its labels before the step that it is for.
    fn batch(&mut self, at: StepAt, batch: &mut Batch) -> Result<(), AttackError> {
        let _ = (at, batch);
        Ok(())
    }

    /// The loss of a step, of which `grads` becomes the gradient by the parameters of `net`: cross-entropy of the batch
    /// after [`TrainHook::batch`], unless the hook has another loss or learns from it itself.
    fn gradients(
        &mut self,
        net: &mut Net,
        at: StepAt,
        batch: &mut Batch,
        grads: &mut Flat,
    ) -> Result<Loss, AttackError> {
        self.batch(at, batch)?;
        Ok(net.loss_grad(&batch.input, &batch.labels, Mode::Train, grads))
    }

    /// How many images the whole run poisons, for the record.
    fn counts(&self) -> Option<Counts> {
        None
    }

    /// The poisoned test set as the trigger is now; `None` if the one made before training still holds.
    fn test_set(&mut self) -> Result<Option<PoisonSet>, AttackError> {
        Ok(None)
    }

    /// Bytes that bring the hook back to its present state, kept with the checkpoint of the network.
    fn save(&self) -> Result<Vec<u8>, AttackError> {
        Ok(Vec::new())
    }

    /// Goes back to a saved state; `path` is for messages.
    fn load(&mut self, state: &[u8], path: &Path) -> Result<(), AttackError> {
        let _ = (state, path);
        Ok(())
    }

    /// The sets and files that belong in the cell, once the network is trained; `None` if those made before still hold.
    fn finish(&mut self, net: &mut Net) -> Result<Option<Finished>, AttackError> {
        let _ = net;
        Ok(None)
    }
}

/// What a [`TrainHook`] leaves when training is over.
pub struct Finished {
    /// Poisoned training images.
    pub train: PoisonSet,
    /// Poisoned test images.
    pub test: PoisonSet,
    /// Further files for the cell: name and content.
    pub artefacts: Vec<(String, Vec<u8>)>,
}

/// Where the settings of a run come from, beside the defaults and the committed recipe of the dataset.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Settings files, the last one wins.
    pub files: Vec<PathBuf>,
    /// Single settings, `key=value`; they win over the files.
    pub set: Vec<String>,
}

/// An attack whose settings type is hidden, so that attacks of all kinds fit in one list.
pub trait AnyAttack: Sync {
    /// Name, paper and documentation.
    fn info(&self) -> &'static MethodInfo;

    /// Merges defaults, the committed recipe of `dataset` (if there is one) and what the user gave, and checks it.
    ///
    /// The name of a class may remain until [`Ready::bind`].
    fn resolve(&self, dataset: &str, given: &Given) -> Result<Box<dyn Ready>, AttackError>;
}

/// An attack with checked settings.
pub trait Ready {
    /// Puts the numbers of classes in the place of their names, now that these are known; to be called before anything
    /// follows from the settings. Gives what the user should know of it, one line each.
    ///
    /// # Errors
    /// If no class has a name that was given, or more than one has.
    fn bind(&mut self, dataset: &Dataset) -> Result<Vec<String>, AttackError>;

    /// The error for a class whose name is not among `known`, if there is one.
    fn unknown_class(&self, known: &[&str]) -> Option<AttackError>;

    /// The settings that identify a cell: all but those of [`Attack::later`] that have their default.
    fn tree(&self) -> &serde_json::Value;

    /// See [`Attack::revision`].
    fn revision(&self) -> u32;

    /// See [`Attack::needs_network`].
    fn needs_network(&self) -> bool;

    /// See [`Attack::IN_LOOP`].
    fn in_loop(&self) -> bool;

    /// Every setting with its value and where it came from.
    fn origins(&self) -> &[(String, String, Origin)];

    /// The complete settings as a file that gives the same settings again.
    fn to_toml(&self) -> String;

    /// The settings with their origins, for people.
    fn show(&self) -> String;

    /// The training recipe, with the epochs that the classifier is trained for.
    fn recipe(&self) -> Recipe;

    /// Measure after every n-th epoch; 0 measures only after the last.
    fn eval_every(&self) -> usize;

    /// Files that the settings name.
    fn files(&self) -> Vec<(&'static str, PathBuf)>;

    /// Refuses what cannot work on these data, see [`Attack::check`].
    fn check(&self, dataset: &Dataset, seed: u64) -> Result<(), AttackError>;

    /// Poisons the data, see [`Attack::prepare`].
    fn prepare(&self, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError>;
}

/// Hides the type of an attack's settings.
pub const fn erase<A: Attack>() -> &'static dyn AnyAttack {
    &Erased::<A>(PhantomData)
}

struct Erased<A>(PhantomData<fn() -> A>);

impl<A: Attack> AnyAttack for Erased<A> {
    fn info(&self) -> &'static MethodInfo {
        const { &A::INFO }
    }

    fn resolve(&self, dataset: &str, given: &Given) -> Result<Box<dyn Ready>, AttackError> {
        let mut layers = Layers::new(&A::Config::default()).with_classes(A::classes());
        if let Some(recipe) = recipes::find(A::INFO.id, dataset) {
            layers = layers.toml_text(recipe.path, recipe.text)?;
        }
        for path in &given.files {
            layers = layers.file(path)?;
        }
        for assignment in &given.set {
            layers = layers.set(assignment)?;
        }
        let official = bb_core::data::known_classes(dataset).unwrap_or_default();
        let names: Vec<(&str, usize)> = official.iter().copied().zip(0..).collect();
        Ok(Box::new(Checked::<A>::new(layers, &names)?))
    }
}

struct Checked<A: Attack> {
    /// As they were given, with names of classes.
    layers: Layers,
    settings: Resolved<Valid<A::Config>>,
    /// Classes whose numbers are not known yet.
    unnumbered: Unnumbered,
    tree: serde_json::Value,
}

impl<A: Attack> Checked<A> {
    /// The settings with the numbers of classes by their `names`.
    fn new(layers: Layers, names: &[(&str, usize)]) -> Result<Self, AttackError> {
        let (numbered, unnumbered) = layers.clone().numbered(names)?;
        let mut settings = numbered.resolve()?.valid()?;
        for (key, name) in &unnumbered {
            settings.show_as(key, name);
        }
        Ok(Self {
            layers,
            tree: settings.identity(A::later(&settings.value), &A::Config::default()),
            settings,
            unnumbered,
        })
    }
}

impl<A: Attack> Ready for Checked<A> {
    fn bind(&mut self, dataset: &Dataset) -> Result<Vec<String>, AttackError> {
        *self = Self::new(self.layers.clone(), &dataset.class_numbers())?;
        let names = &dataset.class_names;
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        if let Some(error) = self.unknown_class(&known) {
            return Err(error);
        }
        let mut warnings = Vec::new();
        for (key, number) in self.layers.class_numbers() {
            let name = usize::try_from(number).ok().and_then(|i| names.get(i));
            let named = names.iter().position(|name| name.parse() == Ok(number));
            if let (Some(name), Some(named)) = (name, named)
                && named as u64 != number
            {
                let meant = &names[named];
                warnings.push(format!(
                    "`{key}` is {number}, the number of the class `{name}`; the class that is called `{meant}` has number \
                     {named}, and `{key} = \"{meant}\"` means it"
                ));
            }
        }
        Ok(warnings)
    }

    fn unknown_class(&self, known: &[&str]) -> Option<AttackError> {
        let (key, name) = self.unnumbered.first()?;
        Some(self.layers.unknown_class(key, name, known).into())
    }

    fn tree(&self) -> &serde_json::Value {
        &self.tree
    }

    fn revision(&self) -> u32 {
        A::revision(&self.settings.value)
    }

    fn needs_network(&self) -> bool {
        A::needs_network(&self.settings.value)
    }

    fn in_loop(&self) -> bool {
        A::IN_LOOP
    }

    fn origins(&self) -> &[(String, String, Origin)] {
        &self.settings.origins
    }

    fn to_toml(&self) -> String {
        self.settings.to_toml()
    }

    fn show(&self) -> String {
        render(&self.settings)
    }

    fn recipe(&self) -> Recipe {
        Recipe {
            epochs: A::epochs(&self.settings.value),
            ..A::recipe(&self.settings.value).clone()
        }
    }

    fn eval_every(&self) -> usize {
        A::eval_every(&self.settings.value)
    }

    fn files(&self) -> Vec<(&'static str, PathBuf)> {
        A::files(&self.settings.value)
    }

    fn check(&self, dataset: &Dataset, seed: u64) -> Result<(), AttackError> {
        A::check(&self.settings.value, dataset, seed)
    }

    fn prepare(&self, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        A::prepare(&self.settings.value, ctx)
    }
}
