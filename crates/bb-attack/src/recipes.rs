//! The committed recipes, one per attack and dataset, built into the program.

/// A settings file of the repository.
#[derive(Clone, Copy, Debug)]
pub struct RecipeFile {
    /// Name of the attack.
    pub method: &'static str,
    /// Name of the dataset.
    pub dataset: &'static str,
    /// Path in the repository.
    pub path: &'static str,
    /// The file.
    pub text: &'static str,
}

/// The files of one attack.
macro_rules! recipes {
    ($($method:literal / $dataset:literal),* $(,)?) => {
        &[$(RecipeFile {
            method: $method,
            dataset: $dataset,
            path: concat!("configs/attack/", $method, "/", $dataset, ".toml"),
            text: include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"), "/../../configs/attack/", $method, "/", $dataset, ".toml"
            )),
        }),*]
    };
}

/// All recipes.
pub static RECIPES: &[RecipeFile] = recipes![
    "clean" / "cifar10",
    "clean" / "cifar100",
    "clean" / "gtsrb",
    "clean" / "tiny",
    "clean" / "synthetic",
    "badnets" / "cifar10",
    "badnets" / "cifar100",
    "badnets" / "gtsrb",
    "badnets" / "tiny",
    "badnets" / "synthetic",
    "blended" / "cifar10",
    "blended" / "cifar100",
    "blended" / "gtsrb",
    "blended" / "tiny",
    "blended" / "synthetic",
    "lf" / "cifar10",
    "lf" / "cifar100",
    "lf" / "gtsrb",
    "lf" / "tiny",
    "lf" / "synthetic",
    "sig" / "cifar10",
    "sig" / "cifar100",
    "sig" / "gtsrb",
    "sig" / "tiny",
    "sig" / "synthetic",
    "ssba" / "cifar10",
    "ssba" / "cifar100",
    "ssba" / "gtsrb",
    "ssba" / "tiny",
    "ssba" / "synthetic",
    "trojan" / "cifar10",
    "trojan" / "cifar100",
    "trojan" / "gtsrb",
    "trojan" / "tiny",
    "trojan" / "synthetic",
    "wanet" / "cifar10",
    "wanet" / "cifar100",
    "wanet" / "gtsrb",
    "wanet" / "tiny",
    "wanet" / "synthetic",
    "inputaware" / "cifar10",
    "inputaware" / "cifar100",
    "inputaware" / "gtsrb",
    "inputaware" / "tiny",
    "inputaware" / "synthetic",
];

/// The recipe for an attack on a dataset; `None` for a dataset that has none, such as a folder of images.
pub fn find(method: &str, dataset: &str) -> Option<&'static RecipeFile> {
    RECIPES
        .iter()
        .find(|recipe| recipe.method == method && recipe.dataset == dataset)
}
