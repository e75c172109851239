//! The trait that every defense implements, and its form without types for the registry.

use bb_core::data::{Dataset, DatasetSpec, Split};
use bb_core::method::MethodInfo;
use bb_core::precision::Precision;
use bb_core::settings::{Layers, Origin, Resolved, Valid, Validate, render};
use bb_nn::{ArchSpec, Compute, Net, StateDict};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::Ctx;
use crate::data::{CleanImages, FromNeeds, Granted};
use crate::error::DefenseError;
use crate::recipes::RecipeFile;
use crate::results::Oracle;

/// A defense: a way to repair a suspect model after training.
///
/// What it can reach is fixed by [`Data`](Self::Data) when it is compiled. A data-free method has no image:
///
/// ```compile_fail,E0599
/// use bb_defense::data::NoImages;
/// use bb_defense::method::Suspect;
///
/// fn peek(suspect: &Suspect<'_, NoImages>) -> usize {
///     suspect.clean().len()
/// }
/// ```
///
/// A method with clean images has those, and nothing that was poisoned or is kept for the test:
///
/// ```
/// use bb_defense::data::CleanImages;
/// use bb_defense::method::Suspect;
///
/// fn count(suspect: &Suspect<'_, CleanImages>) -> usize {
///     suspect.clean().len()
/// }
/// ```
///
/// A measurement on the test set gives nothing back that could be acted on, and what measures cannot be reached:
///
/// ```compile_fail,E0308
/// use bb_core::metrics::Scores;
/// use bb_defense::context::{At, Ctx};
/// use bb_nn::Net;
///
/// fn score(ctx: &mut Ctx<'_>, net: &mut Net) -> Scores {
///     ctx.probe(At::stage("finetune"), net)
/// }
/// ```
///
/// ```compile_fail,E0616
/// use bb_defense::context::Ctx;
///
/// fn harness(ctx: &Ctx<'_>) -> bool {
///     ctx.host.is_some()
/// }
/// ```
pub trait Defense: Sync + 'static {
    /// Name, paper, needs and documentation. `needs` must be [`FromNeeds::NEEDS`] of [`Data`](Self::Data), or the
    /// method does not compile into a registry.
    const INFO: MethodInfo;
    /// The committed recipes, at most one a dataset.
    const RECIPES: &'static [RecipeFile] = &[];
    /// Whether it trains a network, so that the precision of training makes a difference.
    const TRAINS: bool = true;
    /// What the method is given besides the suspect model.
    type Data: FromNeeds;
    /// The settings. Their default is the reference's choice, and the head comment says where it is not. The table
    /// `compute` is the harness's own.
    type Config: Serialize + DeserializeOwned + Default + Validate + 'static;

    /// How much of its data the method is given.
    fn budget(cfg: &Self::Config) -> <Self::Data as FromNeeds>::Budget {
        let _ = cfg;
        Default::default()
    }

    /// Which of several candidates is kept as `oracle`: the best rating, unless the reference has a rule of its own.
    fn oracle(cfg: &Self::Config) -> Oracle {
        let _ = cfg;
        Oracle::Rating
    }

    /// How often what these settings compute on the architecture `arch` has become something else since the first cells. It
    /// is a part of a cell's identity where it is not 0, so that no older cell is taken for one of now.
    fn revision(cfg: &Self::Config, arch: &str) -> u32 {
        let _ = (cfg, arch);
        0
    }

    /// Repairs the suspect model.
    ///
    /// The same arguments give the same bits, with or without interruption, on any number of threads.
    fn repair(
        cfg: &Valid<Self::Config>,
        suspect: Suspect<'_, Self::Data>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError>;
}

/// The model that may be backdoored, and what the threat model allows to be seen beside it.
#[derive(Clone, Copy, Debug)]
pub struct Suspect<'a, D> {
    arch: &'a ArchSpec,
    task: &'a DatasetSpec,
    state: &'a StateDict,
    data: &'a D,
    precision: Precision,
    compute: &'a Compute,
}

impl<'a, D> Suspect<'a, D> {
    /// A suspect model, to be trained in `f32` on the CPU; the harness makes one, and so do tests.
    pub fn new(
        arch: &'a ArchSpec,
        task: &'a DatasetSpec,
        state: &'a StateDict,
        data: &'a D,
    ) -> Self {
        Self {
            arch,
            task,
            state,
            data,
            precision: Precision::F32,
            compute: &Compute::Cpu,
        }
    }

    /// The same, to be trained in `precision`.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same, to be trained on `compute`.
    #[must_use]
    pub fn with_compute(self, compute: &'a Compute) -> Self {
        Self { compute, ..self }
    }

    /// The architecture.
    pub fn arch(&self) -> &'a ArchSpec {
        self.arch
    }

    /// What the model classifies: classes, image size, normalisation and augmentation, and no image.
    pub fn task(&self) -> &'a DatasetSpec {
        self.task
    }

    /// Parameters and buffers under PyTorch's names.
    pub fn state(&self) -> &'a StateDict {
        self.state
    }

    /// How convolutions multiply while a network is trained; [`Suspect::net`] gives one that does.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Where networks compute; [`Suspect::net`] gives one that does.
    pub fn compute(&self) -> &'a Compute {
        self.compute
    }

    /// A network of its own with the suspect's parameters and buffers, to be trained in [`Suspect::precision`].
    pub fn net(&self) -> Result<Net, DefenseError> {
        Ok(Net::from_state(self.arch, self.state)?
            .on(self.compute)?
            .with_precision(self.precision)?)
    }
}

impl<'a> Suspect<'a, CleanImages> {
    /// The clean images with their true labels, in the order of the draw.
    pub fn clean(&self) -> &'a Split {
        self.data.split()
    }
}

/// What a defense hands back.
#[derive(Clone, Debug)]
pub struct Repaired {
    /// The models that the method made, one for each setting that it tried; all have different names.
    ///
    /// If there is more than one, the harness scores them all and keeps the best one by [`Defense::oracle`] beside the
    /// chosen one, as the row `oracle`. The scores never come back to the method.
    pub candidates: Vec<Candidate>,
    /// Place of the repaired model among them: the one that a defender, who sees no trigger, would use.
    pub chosen: usize,
    /// Further files for the cell: name and content.
    pub artefacts: Vec<(String, Vec<u8>)>,
    /// Whatever else should stand in the manifest, such as counts. No times.
    pub notes: Value,
}

/// A repaired model with a name.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What distinguishes it from the others, such as `n=0.15`.
    pub name: String,
    /// Parameters and buffers.
    pub state: StateDict,
    /// What the defender knows of it, for the manifest.
    pub notes: Value,
}

impl Repaired {
    /// A single model, with nothing to choose from.
    pub fn single(state: StateDict) -> Self {
        let only = Candidate {
            name: "repaired".to_owned(),
            state,
            notes: json!({}),
        };
        Self {
            candidates: vec![only],
            chosen: 0,
            artefacts: Vec::new(),
            notes: json!({}),
        }
    }
}

/// Where the settings of a run come from, beside the defaults and the committed recipe of the dataset.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Settings files, the last one wins.
    pub files: Vec<std::path::PathBuf>,
    /// Single settings, `key=value`; they win over the files.
    pub set: Vec<String>,
}

/// A defense whose types are hidden, so that defenses of all kinds fit in one list.
///
/// Every [`Defense`] is one; there is nothing to implement. One whose `INFO` promises other needs than its data have
/// is refused when it is compiled into a list:
///
/// ```compile_fail,E0080
/// # use bb_core::method::{MethodInfo, Needs, Status};
/// # use bb_core::settings::{SettingsError, Valid, Validate};
/// # use bb_defense::{DefenseError, context::Ctx, data::CleanImages};
/// # use bb_defense::method::{AnyDefense, Defense, Repaired, Suspect};
/// # #[derive(Default, serde::Serialize, serde::Deserialize)]
/// # struct Config {}
/// # impl Validate for Config {
/// #     fn validate(&self) -> Result<(), SettingsError> { Ok(()) }
/// # }
/// # const SOME: MethodInfo = MethodInfo {
/// #     id: "x", title: "X", paper: "", needs: Needs::CleanFraction, status: Status::Experimental, summary: "", docs: "",
/// # };
/// struct Greedy;
/// impl Defense for Greedy {
///     const INFO: MethodInfo = MethodInfo { needs: Needs::DataFree, ..SOME };
///     type Data = CleanImages;
///     // ...
/// #   type Config = Config;
/// #   fn repair(_: &Valid<Config>, suspect: Suspect<'_, CleanImages>, _: &mut Ctx<'_>) -> Result<Repaired, DefenseError> {
/// #       Ok(Repaired::single(suspect.state().clone()))
/// #   }
/// }
/// let list: [&dyn AnyDefense; 1] = [&Greedy];
/// ```
pub trait AnyDefense: Sync {
    /// Name, paper, needs and documentation.
    fn info(&self) -> &'static MethodInfo;

    /// The committed recipes.
    fn recipes(&self) -> &'static [RecipeFile];

    /// See [`Defense::TRAINS`].
    fn trains(&self) -> bool;

    /// Merges defaults, the committed recipe of `dataset` (if there is one) and what the user gave, and checks it.
    fn resolve(&self, dataset: &str, given: &Given) -> Result<Box<dyn Ready>, DefenseError>;
}

/// A defense with checked settings.
pub trait Ready {
    /// The complete settings, in the form that identifies them.
    fn tree(&self) -> &Value;

    /// Every setting with its value and where it came from.
    fn origins(&self) -> &[(String, String, Origin)];

    /// A complete settings file.
    fn to_toml(&self) -> String;

    /// The settings with their origins, as `--show-config` prints them.
    fn render(&self) -> String;

    /// See [`Defense::revision`].
    fn revision(&self, arch: &str) -> u32;

    /// Takes what the method may see out of the dataset.
    fn grant(&self, dataset: &Dataset) -> Result<Box<dyn Armed + '_>, DefenseError>;
}

/// A defense with checked settings and its data.
pub trait Armed {
    /// What was handed out; `None` for a data-free method.
    fn granted(&self) -> Option<&Granted>;

    /// Which candidate is kept as `oracle`, see [`Defense::oracle`].
    fn oracle(&self) -> Oracle;

    /// Repairs a model, see [`Defense::repair`].
    fn repair(
        &self,
        arch: &ArchSpec,
        task: &DatasetSpec,
        state: &StateDict,
        precision: Precision,
        compute: &Compute,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError>;
}

/// The settings of a defense: its defaults, the committed recipe of `dataset` (if there is one) and what the user gave,
/// merged and checked.
pub fn settings<D: Defense>(
    dataset: &str,
    given: &Given,
) -> Result<Resolved<Valid<D::Config>>, DefenseError> {
    let mut layers = Layers::new(&D::Config::default());
    if let Some(recipe) = D::RECIPES.iter().find(|recipe| recipe.dataset == dataset) {
        layers = layers.toml_text(recipe.path, recipe.text)?;
    }
    for path in &given.files {
        layers = layers.file(path)?;
    }
    for assignment in &given.set {
        layers = layers.set(assignment)?;
    }
    Ok(layers.resolve::<D::Config>()?.valid()?)
}

impl<D: Defense> AnyDefense for D {
    fn info(&self) -> &'static MethodInfo {
        const {
            assert!(
                D::INFO.needs as u8 == <D::Data as FromNeeds>::NEEDS as u8,
                "`INFO.needs` of a defense says something else than its type `Data`"
            );
        }
        const { &D::INFO }
    }

    fn recipes(&self) -> &'static [RecipeFile] {
        D::RECIPES
    }

    fn trains(&self) -> bool {
        D::TRAINS
    }

    fn resolve(&self, dataset: &str, given: &Given) -> Result<Box<dyn Ready>, DefenseError> {
        Ok(Box::new(Checked::<D>(settings::<D>(dataset, given)?)))
    }
}

struct Checked<D: Defense>(Resolved<Valid<D::Config>>);

impl<D: Defense> Ready for Checked<D> {
    fn tree(&self) -> &Value {
        &self.0.tree
    }

    fn origins(&self) -> &[(String, String, Origin)] {
        &self.0.origins
    }

    fn to_toml(&self) -> String {
        self.0.to_toml()
    }

    fn render(&self) -> String {
        render(&self.0)
    }

    fn revision(&self, arch: &str) -> u32 {
        D::revision(&self.0.value, arch)
    }

    fn grant(&self, dataset: &Dataset) -> Result<Box<dyn Armed + '_>, DefenseError> {
        let (data, granted) = D::Data::grant(dataset, &D::budget(&self.0.value))?;
        Ok(Box::new(WithData::<D> {
            config: &self.0.value,
            data,
            granted,
        }))
    }
}

struct WithData<'c, D: Defense> {
    config: &'c Valid<D::Config>,
    data: D::Data,
    granted: Option<Granted>,
}

impl<D: Defense> Armed for WithData<'_, D> {
    fn granted(&self) -> Option<&Granted> {
        self.granted.as_ref()
    }

    fn oracle(&self) -> Oracle {
        D::oracle(self.config)
    }

    fn repair(
        &self,
        arch: &ArchSpec,
        task: &DatasetSpec,
        state: &StateDict,
        precision: Precision,
        compute: &Compute,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        let suspect = Suspect::new(arch, task, state, &self.data)
            .with_precision(precision)
            .with_compute(compute);
        D::repair(self.config, suspect, ctx)
    }
}
