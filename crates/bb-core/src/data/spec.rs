//! What is fixed by the name of a dataset.

use super::DataError;

/// What is fixed by the name of a dataset: classes, image size and the constants of its transforms.
///
/// The four benchmark datasets carry the constants of BackdoorBench's tables, so that models exchanged with it see
/// the inputs they were trained on.
/// For `folder` the number of classes and the size are zero in [`DATASETS`]: they are known once the folder is open,
/// and [`super::Dataset::spec`] then holds them.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetSpec {
    /// The name used on the command line, in settings and in paths of cells.
    pub id: &'static str,
    /// The name used in tables.
    pub title: &'static str,
    /// Number of classes; labels are `0..classes`.
    pub classes: usize,
    /// Image height in pixels; images of another size are resized as Pillow does it.
    pub height: usize,
    /// Image width in pixels.
    pub width: usize,
    /// Mean per channel (R, G, B) on the 0-1 scale, subtracted by the normalisation.
    pub mean: [f32; 3],
    /// Standard deviation per channel on the 0-1 scale, by which the normalisation divides.
    pub std: [f32; 3],
    /// Black pixels added on each side before the random crop of the training transform; 0 means no crop.
    pub crop_padding: usize,
    /// Whether the training transform mirrors half of the images.
    pub flip: bool,
}

/// Every dataset that [`super::open`] knows.
pub static DATASETS: &[DatasetSpec] = &[
    DatasetSpec {
        id: "cifar10",
        title: "CIFAR-10",
        classes: 10,
        height: 32,
        width: 32,
        mean: [0.4914, 0.4822, 0.4465],
        std: [0.247, 0.243, 0.261],
        crop_padding: 4,
        flip: true,
    },
    DatasetSpec {
        id: "cifar100",
        title: "CIFAR-100",
        classes: 100,
        height: 32,
        width: 32,
        mean: [0.5071, 0.4865, 0.4409],
        std: [0.2673, 0.2564, 0.2762],
        crop_padding: 4,
        flip: false,
    },
    DatasetSpec {
        id: "gtsrb",
        title: "GTSRB",
        classes: 43,
        height: 32,
        width: 32,
        mean: [0.0; 3],
        std: [1.0; 3],
        crop_padding: 4,
        flip: false,
    },
    DatasetSpec {
        id: "tiny",
        title: "Tiny ImageNet",
        classes: 200,
        height: 64,
        width: 64,
        mean: [0.4802, 0.4481, 0.3975],
        std: [0.2302, 0.2265, 0.2262],
        crop_padding: 4,
        flip: false,
    },
    // Mean and deviation are those of the generator, rounded; a test holds them to it.
    DatasetSpec {
        id: "synthetic",
        title: "Synthetic shapes",
        classes: 10,
        height: 32,
        width: 32,
        mean: [0.5; 3],
        std: [0.15; 3],
        crop_padding: 4,
        flip: false,
    },
    // Nothing is known of the user's images: mid-grey as the mean and a quarter of the range as the deviation, which
    // is what natural photographs have within a few hundredths, bring them to about zero mean and unit variance.
    // Mirroring is off because it would change the meaning of signs and letters.
    DatasetSpec {
        id: "folder",
        title: "Image folder",
        classes: 0,
        height: 0,
        width: 0,
        mean: [0.5; 3],
        std: [0.25; 3],
        crop_padding: 4,
        flip: false,
    },
];

/// The entry of [`DATASETS`] with this id.
///
/// # Errors
/// [`DataError::UnknownDataset`] with the nearest known id, if one is near.
pub fn spec(id: &str) -> Result<&'static DatasetSpec, DataError> {
    DATASETS
        .iter()
        .find(|known| known.id == id)
        .ok_or_else(|| DataError::UnknownDataset {
            id: id.to_owned(),
            nearest: nearest(id),
        })
}

/// The known id that a person who typed `id` most likely meant.
fn nearest(id: &str) -> Option<&'static str> {
    // Spellings such as `CIFAR-10`, `tiny_imagenet` or `cifar_100` differ from ours in case and separators only.
    let plain: String = id
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    DATASETS
        .iter()
        .map(|known| (strsim::jaro_winkler(&plain, known.id), known.id))
        .filter(|(likeness, _)| *likeness >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_id_is_refused_with_the_nearest_one() {
        for (typed, expect) in [
            ("CIFAR-10", Some("cifar10")),
            ("cifar_100", Some("cifar100")),
            ("gtsbr", Some("gtsrb")),
            ("tiny_imagenet", Some("tiny")),
            ("sintetic", Some("synthetic")),
            ("celeba", None),
            ("", None),
        ] {
            match spec(typed) {
                Err(DataError::UnknownDataset { id, nearest }) => {
                    assert_eq!((id.as_str(), nearest), (typed, expect));
                }
                other => panic!("`{typed}` gave {other:?}"),
            }
        }
    }

    #[test]
    fn ids_are_unique_and_the_constants_usable() {
        for (i, known) in DATASETS.iter().enumerate() {
            assert!(spec(known.id).is_ok());
            assert!(DATASETS[..i].iter().all(|earlier| earlier.id != known.id));
            assert!(known.std.iter().all(|s| *s > 0.0), "{}", known.id);
        }
    }
}
