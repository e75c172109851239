//! From `u8` images to normalised batches.
//!
//! The transforms of the benchmark: zero-padded random crop and (CIFAR-10 only) horizontal flip, both on 8-bit pixels,
//! then `(v / 255 - mean) / std` in `f32` exactly as PyTorch computes it.
//! The choices for an image come from its own stream (seed, purpose, epoch, index), so neither the batch size nor the
//! number of threads changes them.

use crate::net::Shape;
use bb_core::data::{DatasetSpec, Images, Split};
use bb_core::rng;
use rayon::prelude::*;

/// A normalised batch of images, `[n, h, w, 3]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Images.
    pub n: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Elements.
    pub data: Vec<f32>,
}

impl Input {
    /// The batch's sizes.
    pub fn shape(&self) -> Shape {
        Shape {
            n: self.n,
            h: self.h,
            w: self.w,
            c: 3,
        }
    }

    /// A batch from values in PyTorch's order `[n, 3, h, w]`.
    ///
    /// # Panics
    /// If the length is not `n * 3 * h * w`.
    pub fn from_nchw(n: usize, h: usize, w: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), n * 3 * h * w, "elements of the batch");
        let mut data = vec![0.0; values.len()];
        for (pixel, out) in data.chunks_exact_mut(3).enumerate() {
            let (image, at) = (pixel / (h * w), pixel % (h * w));
            for (c, o) in out.iter_mut().enumerate() {
                *o = values[(image * 3 + c) * h * w + at];
            }
        }
        Self { n, h, w, data }
    }
}

/// A batch with its labels and the images' places in their split.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Normalised images.
    pub input: Input,
    /// Class of each image.
    pub labels: Vec<u32>,
    /// Index of each image in its split.
    pub indices: Vec<usize>,
}

/// The 256 normalised values of each channel.
#[derive(Clone, Debug)]
pub struct Normaliser {
    table: [[f32; 256]; 3],
}

impl Normaliser {
    /// The normalisation of a dataset.
    pub fn new(spec: &DatasetSpec) -> Self {
        let mut table = [[0.0; 256]; 3];
        for ((row, mean), std) in table.iter_mut().zip(&spec.mean).zip(&spec.std) {
            for (v, out) in row.iter_mut().enumerate() {
                *out = (v as f32 / 255.0 - mean) / std;
            }
        }
        Self { table }
    }

    /// Normalises whole pixels (R, G, B).
    pub fn apply(&self, pixels: &[u8], out: &mut [f32]) {
        let [red, green, blue] = &self.table;
        for (o, p) in out.chunks_exact_mut(3).zip(pixels.chunks_exact(3)) {
            o[0] = red[usize::from(p[0])];
            o[1] = green[usize::from(p[1])];
            o[2] = blue[usize::from(p[2])];
        }
    }

    /// Normalised value of each byte, `[3][256]`.
    #[cfg(feature = "cuda")]
    pub(crate) fn table(&self) -> Vec<f32> {
        self.table.as_flattened().to_vec()
    }

    fn black(&self) -> [f32; 3] {
        [self.table[0][0], self.table[1][0], self.table[2][0]]
    }
}

/// How a split is cut into batches.
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Images per batch.
    pub batch_size: usize,
    /// Whether the order is drawn anew each epoch.
    pub shuffle: bool,
    /// Whether a last batch that is not full is left out.
    pub drop_last: bool,
    /// Whether the training transform (crop, flip) is applied.
    pub augment: bool,
    /// Seed of the streams.
    pub seed: u64,
    /// Name of the streams, so that two loaders with one seed draw independently.
    pub purpose: &'static str,
}

/// Batches of one epoch, see [`batches`].
#[derive(Debug)]
pub struct Batches<'a> {
    split: &'a Split,
    spec: &'a DatasetSpec,
    options: LoaderOptions,
    normaliser: Normaliser,
    order: Vec<usize>,
    epoch: u64,
    at: usize,
}

/// The batches of epoch `epoch` over `split`.
///
/// # Panics
/// If the batch size is 0.
pub fn batches<'a>(
    split: &'a Split,
    spec: &'a DatasetSpec,
    options: LoaderOptions,
    epoch: u64,
) -> Batches<'a> {
    assert!(options.batch_size > 0, "batch size");
    Batches {
        split,
        spec,
        options,
        normaliser: Normaliser::new(spec),
        order: order(split.len(), &options, epoch),
        epoch,
        at: 0,
    }
}

/// The images of epoch `epoch` in the order in which [`batches`] takes them.
pub fn order(images: usize, options: &LoaderOptions, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..images).collect();
    if options.shuffle {
        let purpose = format!("{}/order", options.purpose);
        rng::shuffle(
            &mut rng::stream(options.seed, &purpose, epoch, 0),
            &mut order,
        );
    }
    order
}

/// What [`batches`] would take, image by image: index, row shift, column shift and flip.
#[cfg(feature = "cuda")]
pub(crate) fn choices(
    images: usize,
    spec: &DatasetSpec,
    options: &LoaderOptions,
    epoch: u64,
) -> Vec<[i32; 4]> {
    let int = |v: isize| i32::try_from(v).expect("indices and shifts fit 31 bits");
    order(images, options, epoch)
        .into_par_iter()
        .map(|i| {
            let Choice { shift, flip } = if options.augment {
                Choice::draw(spec, options, epoch, i)
            } else {
                Choice {
                    shift: (0, 0),
                    flip: false,
                }
            };
            [int(i as isize), int(shift.0), int(shift.1), i32::from(flip)]
        })
        .collect()
}

/// Number of batches of `images` images.
pub fn batch_count(images: usize, batch_size: usize, drop_last: bool) -> usize {
    if drop_last {
        images / batch_size
    } else {
        images.div_ceil(batch_size)
    }
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let left = self.order.len() - self.at;
        let n = left.min(self.options.batch_size);
        if n == 0 || (self.options.drop_last && n < self.options.batch_size) {
            return None;
        }
        let indices = self.order[self.at..self.at + n].to_vec();
        self.at += n;
        Some(assemble(
            (self.split, self.spec),
            &self.options,
            &self.normaliser,
            self.epoch,
            indices,
        ))
    }
}

/// The images `indices` of `split` as [`batches`] of epoch `epoch` would have them; nothing else is looked at.
pub fn gather(
    split: &Split,
    spec: &DatasetSpec,
    options: &LoaderOptions,
    epoch: u64,
    indices: &[usize],
) -> Batch {
    let normaliser = Normaliser::new(spec);
    assemble((split, spec), options, &normaliser, epoch, indices.to_vec())
}

fn assemble(
    (split, spec): (&Split, &DatasetSpec),
    options: &LoaderOptions,
    normaliser: &Normaliser,
    epoch: u64,
    indices: Vec<usize>,
) -> Batch {
    let labels = indices.iter().map(|&i| split.labels[i]).collect();
    let images = &split.images;
    let (n, h, w) = (indices.len(), images.height(), images.width());
    let mut data = vec![0.0; n * h * w * 3];
    data.par_chunks_mut(h * w * 3)
        .zip(&indices)
        .for_each(|(out, &i)| {
            if options.augment {
                let choice = Choice::draw(spec, options, epoch, i);
                choice.apply(images.image(i), h, w, normaliser, out);
            } else {
                normaliser.apply(images.image(i), out);
            }
        });
    Batch {
        input: Input { n, h, w, data },
        labels,
        indices,
    }
}

/// Crop offset and flip of one image in one epoch.
struct Choice {
    /// Rows and columns by which the crop window starts after the image's own corner; negative is in the padding.
    shift: (isize, isize),
    flip: bool,
}

impl Choice {
    fn draw(spec: &DatasetSpec, options: &LoaderOptions, epoch: u64, index: usize) -> Self {
        let mut stream = rng::stream(options.seed, options.purpose, epoch, index as u64);
        let pad = spec.crop_padding as u64;
        let offset = |stream: &mut _| rng::below(stream, 2 * pad + 1) as isize - pad as isize;
        let shift = (offset(&mut stream), offset(&mut stream));
        Self {
            shift,
            flip: spec.flip && rng::below(&mut stream, 2) == 1,
        }
    }

    fn apply(&self, image: &[u8], h: usize, w: usize, normaliser: &Normaliser, out: &mut [f32]) {
        let black = normaliser.black();
        for (y, row) in out.chunks_exact_mut(w * 3).enumerate() {
            let source = (y as isize + self.shift.0)
                .try_into()
                .ok()
                .filter(|&s: &usize| s < h);
            let Some(source) = source else {
                for pixel in row.chunks_exact_mut(3) {
                    pixel.copy_from_slice(&black);
                }
                continue;
            };
            let pixels = &image[source * w * 3..][..w * 3];
            for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                let x = if self.flip { w - 1 - x } else { x };
                let source = (x as isize + self.shift.1)
                    .try_into()
                    .ok()
                    .filter(|&s: &usize| s < w);
                match source {
                    Some(s) => normaliser.apply(&pixels[s * 3..][..3], pixel),
                    None => pixel.copy_from_slice(&black),
                }
            }
        }
    }
}

/// Images `range` of `images` with the test transform.
pub fn plain_input(
    images: &Images,
    range: std::ops::Range<usize>,
    normaliser: &Normaliser,
) -> Input {
    let (h, w) = (images.height(), images.width());
    let n = range.len();
    let mut data = vec![0.0; n * h * w * 3];
    data.par_chunks_mut(h * w * 3)
        .zip(range)
        .for_each(|(out, i)| normaliser.apply(images.image(i), out));
    Input { n, h, w, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_core::data::DATASETS;

    fn options(augment: bool) -> LoaderOptions {
        LoaderOptions {
            batch_size: 1,
            shuffle: false,
            drop_last: false,
            augment,
            seed: 0,
            purpose: "test",
        }
    }

    /// Crop, mirror and normalisation as the benchmark's transform of each dataset has them.
    #[test]
    fn golden_augmentation_of_each_dataset() {
        let folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
        let path = std::path::Path::new(&folder).join("tests/golden_data/augmentation.safetensors");
        let file = candle_core::safetensors::load(path, &candle_core::Device::Cpu).expect("there");
        let flat = |name: String| file[&name].flatten_all().expect("a tensor");
        for dataset in ["cifar10", "cifar100", "gtsrb", "tiny"] {
            let spec = DATASETS.iter().find(|spec| spec.id == dataset);
            let normaliser = Normaliser::new(spec.expect("a dataset"));
            let pixels = flat(format!("{dataset}.pixels"))
                .to_vec1::<u8>()
                .expect("bytes");
            let output = &file[&format!("{dataset}.output")];
            let (n, _, h, w) = output.dims4().expect("images");
            let expect = output.permute((0, 2, 3, 1)).expect("four dimensions");
            let expect = expect.flatten_all().and_then(|t| t.to_vec1::<f32>());
            let expect = expect.expect("floats");
            let choices = flat(format!("{dataset}.choice"))
                .to_vec1::<i64>()
                .expect("counts");
            assert_eq!(choices.len(), 3 * n);
            for (choice, expect) in choices.chunks_exact(3).zip(expect.chunks_exact(h * w * 3)) {
                let choice = Choice {
                    shift: (choice[0] as isize, choice[1] as isize),
                    flip: choice[2] == 1,
                };
                let mut found = vec![0.0; h * w * 3];
                choice.apply(&pixels, h, w, &normaliser, &mut found);
                for (found, expect) in found.iter().zip(expect) {
                    assert!(
                        (found - expect).abs() < 1e-5,
                        "{dataset}: {found}, {expect}"
                    );
                }
            }
        }
    }

    /// Of all offsets 0 to 8 of the padded image each is as likely, and half of CIFAR-10's images are mirrored.
    #[test]
    fn crops_and_mirrors_are_drawn_evenly() {
        for spec in DATASETS {
            let drawn: Vec<Choice> = (0..9000)
                .map(|i| Choice::draw(spec, &options(true), 3, i))
                .collect();
            let flips = drawn.iter().filter(|choice| choice.flip).count();
            let expect = if spec.id == "cifar10" {
                4350..4650
            } else {
                0..1
            };
            assert!(expect.contains(&flips), "{}: {flips}", spec.id);
            for of in [|c: &Choice| c.shift.0, |c: &Choice| c.shift.1] {
                let mut counts = [0; 9];
                for choice in &drawn {
                    counts[usize::try_from(of(choice) + 4).expect("at least -4")] += 1;
                }
                assert!(counts.iter().all(|n| (870..1130).contains(n)), "{counts:?}");
            }
            let both = drawn.iter().filter(|c| c.shift.0 == c.shift.1).count();
            assert!(
                (870..1130).contains(&both),
                "rows and columns are drawn apart: {both}"
            );
        }
    }
}
