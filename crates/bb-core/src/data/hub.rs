//! CIFAR-10 from the Hugging Face hub, downloaded and decoded by candle-datasets.
//!
//! candle-datasets hands over tensors of f32 between 0 and 1, from which the original bytes are recovered exactly.
//! That takes about 1.5 GB for a moment; the decoded cache keeps it to the first time.

use std::path::Path;

use candle_core::Tensor;
use candle_datasets::vision;

use super::images::{Images, Split};
use super::{DataError, DatasetSpec};

/// Images converted at a time.
const CHUNK: usize = 1000;

/// Downloads the Parquet files into the hub's own cache, or finds them there, and reads them.
pub(super) fn fetch(spec: &'static DatasetSpec) -> Result<(Split, Split), DataError> {
    let failed = |source| DataError::Hub {
        id: spec.id,
        source: Box::new(source),
    };
    // The loader panics on an image that it cannot decode, which a damaged download has.
    let loaded = DataError::guard(Path::new(super::HUB), || {
        vision::cifar::load().map_err(failed)
    })?;
    let vision::Dataset {
        train_images,
        train_labels,
        test_images,
        test_labels,
        ..
    } = loaded;
    let train = split(spec, &train_images, &train_labels)?;
    drop(train_images);
    let test = split(spec, &test_images, &test_labels)?;
    Ok((train, test))
}

fn split(spec: &'static DatasetSpec, images: &Tensor, labels: &Tensor) -> Result<Split, DataError> {
    let failed = |source| DataError::Hub {
        id: spec.id,
        source: Box::new(source),
    };
    let (h, w) = (spec.height, spec.width);
    let labels = labels.to_vec1::<u8>().map_err(failed)?;
    let shape = images.dims();
    let expected = [labels.len(), 3, h, w];
    if shape != expected {
        return Err(DataError::Shape {
            id: spec.id,
            expected: expected.to_vec(),
            found: shape.to_vec(),
        });
    }
    let wrong = labels
        .iter()
        .position(|label| usize::from(*label) >= spec.classes);
    if let Some(row) = wrong {
        return Err(DataError::Label {
            path: Path::new(super::HUB).to_path_buf(),
            row,
            found: i64::from(labels[row]),
            classes: spec.classes,
        });
    }
    let pixels = bytes(images).map_err(failed)?;
    Ok(Split {
        images: Images::new(labels.len(), h, w, pixels)?,
        labels: labels.into_iter().map(u32::from).collect(),
    })
}

/// The bytes that were divided by 255, as `[n, h, w, 3]`.
///
/// They arrive as `[n, c, w, h]`: the loader of candle-datasets 0.11 takes the rows of an image for its columns.
/// The shape does not show it, because the images are square.
fn bytes(images: &Tensor) -> candle_core::Result<Vec<u8>> {
    let n = images.dim(0)?;
    let mut pixels = Vec::with_capacity(images.elem_count());
    for start in (0..n).step_by(CHUNK) {
        let chunk = images.narrow(0, start, CHUNK.min(n - start))?;
        let chunk = chunk.permute((0, 3, 2, 1))?;
        let values = chunk.flatten_all()?.to_vec1::<f32>()?;
        pixels.extend(values.iter().map(|value| (value * 255.0).round() as u8));
    }
    Ok(pixels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::spec;
    use candle_core::{DType, Device};

    /// Pixels that tell their place, `[n, h, w, 3]`.
    fn pixels(n: usize, h: usize, w: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for i in 0..n {
            for y in 0..h {
                for x in 0..w {
                    out.extend([i, y * 7, x * 7].map(|v| (v % 256) as u8));
                }
            }
        }
        out
    }

    fn tensor(values: &[u8], shape: (usize, usize, usize, usize)) -> Tensor {
        (Tensor::from_slice(values, shape, &Device::Cpu)
            .and_then(|t| t.to_dtype(DType::F32))
            .expect("a tensor")
            / 255.0)
            .expect("divides")
    }

    #[test]
    fn the_swap_of_height_and_width_is_undone() {
        // Not square and more than one chunk, so that a swap or a lost image would show.
        let (n, h, w) = (CHUNK + 3, 5, 4);
        let expect = pixels(n, h, w);
        // What candle-datasets 0.11 does after decoding.
        let arriving = tensor(&expect, (n, h, w, 3)).permute((0, 3, 2, 1));
        assert!(bytes(&arriving.expect("permutes")).expect("converts") == expect);
    }

    #[test]
    fn every_byte_survives_the_division_by_255() {
        let all: Vec<u8> = (0..=255).collect();
        let images = tensor(&all, (1, 1, 256, 1));
        assert_eq!(bytes(&images).expect("converts"), all);
    }

    #[test]
    fn wrong_shapes_and_labels_are_refused() {
        let spec = spec("cifar10").expect("known");
        let labels = |l: &[u8]| Tensor::from_slice(l, l.len(), &Device::Cpu).expect("a tensor");
        let convert = |n, size, l: &[u8]| {
            let images = Tensor::zeros((n, 3, size, size), DType::F32, &Device::Cpu);
            split(spec, &images.expect("a tensor"), &labels(l))
                .map(|split| split.len())
                .map_err(|e| e.to_string())
        };
        assert_eq!(convert(2, 32, &[3, 9]), Ok(2));
        assert_eq!(
            convert(2, 32, &[3, 10]),
            Err("row 1 of `hub` has label 10, expected 0 to 9".to_owned())
        );
        assert_eq!(
            convert(3, 32, &[3, 9]),
            Err(
                "the images of `cifar10` have shape [3, 3, 32, 32], expected [2, 3, 32, 32]"
                    .to_owned()
            )
        );
        assert!(convert(2, 31, &[3, 9]).is_err());
    }
}
