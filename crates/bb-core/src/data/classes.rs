//! Names of classes: those that are known by the dataset, and what files say about them.

use std::path::{Path, PathBuf};

use super::DataError;

/// The classes of `id` in label order, where its definition names them; otherwise nothing.
pub fn known(id: &str) -> Option<&'static [&'static str]> {
    match id {
        "cifar10" => Some(&CIFAR10),
        "cifar100" => Some(&CIFAR100),
        "gtsrb" => Some(&GTSRB),
        "synthetic" => Some(&SYNTHETIC),
        _ => None,
    }
}

/// Refuses names that say that a file numbers the classes of `id` otherwise.
///
/// Every model, record and published number goes by the official numbers, and nothing but the names shows a mirror that
/// has others. Names that only differ in spelling, or that are numbers or words of the mirror's own, say nothing about
/// the order.
pub(super) fn check_order(
    id: &'static str,
    path: &Path,
    names: &[String],
) -> Result<(), DataError> {
    let official: Vec<String> = match id {
        "cifar10" => CIFAR10.map(str::to_owned).to_vec(),
        "cifar100" => CIFAR100.map(str::to_owned).to_vec(),
        // Its classes are the sorted WordNet ids.
        "tiny" if names.iter().all(|name| is_wordnet_id(name)) => {
            let mut sorted = names.to_vec();
            sorted.sort();
            sorted
        }
        _ => return Ok(()),
    };
    let plain = |name: &str| -> String {
        let letters = name.chars().filter(char::is_ascii_alphanumeric);
        letters.map(|c| c.to_ascii_lowercase()).collect()
    };
    let numbers: Vec<String> = official.iter().map(|name| plain(name)).collect();
    let moved = names.iter().enumerate().find(|(class, name)| {
        let number = numbers.iter().position(|official| *official == plain(name));
        number.is_some_and(|number| number != *class)
    });
    match moved {
        None => Ok(()),
        Some((class, found)) => Err(DataError::ClassOrder {
            path: path.to_path_buf(),
            id,
            class,
            found: found.as_str().into(),
            expected: official.get(class).map_or("", String::as_str).into(),
        }),
    }
}

/// Refuses two files that name a class differently; `a` and `b` are a file and its names.
pub(super) fn check_same(a: (&Path, &[String]), b: (&Path, &[String])) -> Result<(), DataError> {
    let differs = a.1.iter().zip(b.1).position(|(a, b)| a != b);
    // Lists of another length are refused before, by the number of classes.
    let class = differs.or_else(|| (a.1.len() != b.1.len()).then_some(a.1.len().min(b.1.len())));
    match class {
        None => Ok(()),
        Some(class) => {
            let name = |names: &[String]| names.get(class).map_or("", String::as_str).into();
            Err(DataError::ClassNames {
                a: PathBuf::from(a.0),
                b: PathBuf::from(b.0),
                class,
                name_a: name(a.1),
                name_b: name(b.1),
            })
        }
    }
}

/// Refuses a list of another length than the dataset has classes.
pub(super) fn check_count(path: &Path, names: &[String], classes: usize) -> Result<(), DataError> {
    if names.len() == classes {
        return Ok(());
    }
    Err(DataError::ClassCount {
        path: path.to_path_buf(),
        expected: classes,
        found: names.len(),
    })
}

/// `n` and eight digits.
pub(super) fn is_wordnet_id(name: &str) -> bool {
    name.strip_prefix('n')
        .is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// As in `batches.meta`.
const CIFAR10: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

/// The fine labels, as in `meta`.
const CIFAR100: [&str; 100] = [
    "apple",
    "aquarium_fish",
    "baby",
    "bear",
    "beaver",
    "bed",
    "bee",
    "beetle",
    "bicycle",
    "bottle",
    "bowl",
    "boy",
    "bridge",
    "bus",
    "butterfly",
    "camel",
    "can",
    "castle",
    "caterpillar",
    "cattle",
    "chair",
    "chimpanzee",
    "clock",
    "cloud",
    "cockroach",
    "couch",
    "crab",
    "crocodile",
    "cup",
    "dinosaur",
    "dolphin",
    "elephant",
    "flatfish",
    "forest",
    "fox",
    "girl",
    "hamster",
    "house",
    "kangaroo",
    "keyboard",
    "lamp",
    "lawn_mower",
    "leopard",
    "lion",
    "lizard",
    "lobster",
    "man",
    "maple_tree",
    "motorcycle",
    "mountain",
    "mouse",
    "mushroom",
    "oak_tree",
    "orange",
    "orchid",
    "otter",
    "palm_tree",
    "pear",
    "pickup_truck",
    "pine_tree",
    "plain",
    "plate",
    "poppy",
    "porcupine",
    "possum",
    "rabbit",
    "raccoon",
    "ray",
    "road",
    "rocket",
    "rose",
    "sea",
    "seal",
    "shark",
    "shrew",
    "skunk",
    "skyscraper",
    "snail",
    "snake",
    "spider",
    "squirrel",
    "streetcar",
    "sunflower",
    "sweet_pepper",
    "table",
    "tank",
    "telephone",
    "television",
    "tiger",
    "tractor",
    "train",
    "trout",
    "tulip",
    "turtle",
    "wardrobe",
    "whale",
    "willow_tree",
    "wolf",
    "woman",
    "worm",
];

/// The meanings of the signs; the files only have numbers.
const GTSRB: [&str; 43] = [
    "Speed limit (20km/h)",
    "Speed limit (30km/h)",
    "Speed limit (50km/h)",
    "Speed limit (60km/h)",
    "Speed limit (70km/h)",
    "Speed limit (80km/h)",
    "End of speed limit (80km/h)",
    "Speed limit (100km/h)",
    "Speed limit (120km/h)",
    "No passing",
    "No passing for vehicles over 3.5 metric tons",
    "Right-of-way at the next intersection",
    "Priority road",
    "Yield",
    "Stop",
    "No vehicles",
    "Vehicles over 3.5 metric tons prohibited",
    "No entry",
    "General caution",
    "Dangerous curve to the left",
    "Dangerous curve to the right",
    "Double curve",
    "Bumpy road",
    "Slippery road",
    "Road narrows on the right",
    "Road work",
    "Traffic signals",
    "Pedestrians",
    "Children crossing",
    "Bicycles crossing",
    "Beware of ice/snow",
    "Wild animals crossing",
    "End of all speed and passing limits",
    "Turn right ahead",
    "Turn left ahead",
    "Ahead only",
    "Go straight or right",
    "Go straight or left",
    "Keep right",
    "Keep left",
    "Roundabout mandatory",
    "End of no passing",
    "End of no passing by vehicles over 3.5 metric tons",
];

/// What the generator draws.
const SYNTHETIC: [&str; 10] = [
    "disk striped across",
    "disk striped down",
    "square striped across",
    "square striped down",
    "triangle striped across",
    "triangle striped down",
    "ring striped across",
    "ring striped down",
    "cross striped across",
    "cross striped down",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DATASETS;

    #[test]
    fn known_names_are_as_many_as_the_classes_and_all_different() {
        for spec in DATASETS {
            let Some(names) = known(spec.id) else {
                continue;
            };
            assert_eq!(names.len(), spec.classes, "{}", spec.id);
            for (i, name) in names.iter().enumerate() {
                assert!(!names[..i].contains(name), "{name} of {}", spec.id);
            }
        }
    }

    #[test]
    fn only_a_known_name_at_another_place_is_another_order() {
        let names = |list: &[&str]| -> Vec<String> { list.iter().map(|&n| n.to_owned()).collect() };
        let path = Path::new("train.parquet");
        let mut reversed = names(&CIFAR10);
        reversed.reverse();
        let error = check_order("cifar10", path, &reversed).expect_err("another order");
        assert_eq!(
            error.to_string(),
            "`train.parquet` numbers the classes of `cifar10` otherwise: class 0 is `truck`, expected `airplane`"
        );
        let mut spelt = names(&CIFAR100);
        spelt[1] = "Aquarium Fish".to_owned();
        assert!(check_order("cifar100", path, &spelt).is_ok());
        let mut own = names(&CIFAR10);
        own[0] = "plane".to_owned();
        own[1] = "car".to_owned();
        assert!(check_order("cifar10", path, &own).is_ok());
        let numbers: Vec<String> = (0..10).rev().map(|i| i.to_string()).collect();
        assert!(check_order("cifar10", path, &numbers).is_ok());
        let ids = names(&["n01443537", "n01629819"]);
        assert!(check_order("tiny", path, &ids).is_ok());
        let swapped = names(&["n01629819", "n01443537"]);
        assert!(check_order("tiny", path, &swapped).is_err());
        assert!(check_order("gtsrb", path, &reversed).is_ok());
    }
}
