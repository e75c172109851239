//! The committed recipes, built into the program.

/// A settings file of the repository, for one defense on one dataset.
#[derive(Clone, Copy, Debug)]
pub struct RecipeFile {
    /// Name of the dataset.
    pub dataset: &'static str,
    /// Path in the repository.
    pub path: &'static str,
    /// The file.
    pub text: &'static str,
}

/// The files `configs/defense/<method>/<dataset>.toml` of a method of this crate.
macro_rules! recipes {
    ($method:literal: $($dataset:literal),* $(,)?) => {
        &[$($crate::recipes::RecipeFile {
            dataset: $dataset,
            path: concat!("configs/defense/", $method, "/", $dataset, ".toml"),
            text: include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"), "/../../configs/defense/", $method, "/", $dataset, ".toml"
            )),
        }),*]
    };
}

pub(crate) use recipes;
