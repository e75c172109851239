//! A dataset that stays on the device, from which batches are assembled there.

use super::{Context, Device, Result, Storage, launch, stored};
use crate::data::{LoaderOptions, Normaliser, choices};
use crate::net::Shape;
use bb_core::data::{DatasetSpec, Images, Split};
use cudarc::driver::{CudaSlice, CudaView};
use std::ops::Range;
use std::rc::Rc;

/// The images of a split as bytes, and the order and transforms of one epoch.
#[derive(Debug)]
pub(crate) struct DeviceSplit<'a> {
    device: Rc<Device>,
    pictures: &'a Images,
    /// Class of each image; empty where nothing asks for it.
    classes: &'a [u32],
    spec: &'a DatasetSpec,
    images: CudaSlice<u8>,
    /// Normalised value of each byte, `[3][256]`.
    table: CudaSlice<f32>,
    /// `[image][4]`: index, row shift, column shift, flip.
    choices: CudaSlice<i32>,
    /// Labels in the epoch's order.
    labels: CudaSlice<i32>,
}

impl<'a> DeviceSplit<'a> {
    /// A split to train on; [`DeviceSplit::begin`] comes before its batches.
    pub(crate) fn new(
        device: &Rc<Device>,
        split: &'a Split,
        spec: &'a DatasetSpec,
    ) -> Result<Self> {
        Self::place(device, &split.images, &split.labels, spec)
    }

    /// Images to measure on, in their order, as they are.
    pub(crate) fn plain(
        device: &Rc<Device>,
        images: &'a Images,
        spec: &'a DatasetSpec,
    ) -> Result<Self> {
        let mut placed = Self::place(device, images, &[], spec)?;
        let choices: Vec<[i32; 4]> = (0..images.len() as i32).map(|i| [i, 0, 0, 0]).collect();
        let stream = device.stream();
        stream
            .memcpy_htod(choices.as_flattened(), &mut placed.choices)
            .on("copying an order to the device")?;
        Ok(placed)
    }

    fn place(
        device: &Rc<Device>,
        pictures: &'a Images,
        classes: &'a [u32],
        spec: &'a DatasetSpec,
    ) -> Result<Self> {
        const WHAT: &str = "copying the dataset to the device";
        let stream = device.stream();
        let n = pictures.len();
        Ok(Self {
            device: Rc::clone(device),
            pictures,
            classes,
            spec,
            images: stream.clone_htod(pictures.as_bytes()).on(WHAT)?,
            table: stream.clone_htod(&Normaliser::new(spec).table()).on(WHAT)?,
            choices: stream.alloc_zeros(4 * n).on(WHAT)?,
            labels: stream.alloc_zeros(n).on(WHAT)?,
        })
    }

    /// Number of images.
    pub(crate) fn len(&self) -> usize {
        self.pictures.len()
    }

    /// Draws the order and the transforms of an epoch.
    pub(crate) fn begin(&mut self, options: &LoaderOptions, epoch: u64) -> Result<()> {
        const WHAT: &str = "copying an epoch's order to the device";
        let choices = choices(self.len(), self.spec, options, epoch);
        let labels: Vec<i32> = choices
            .iter()
            .map(|c| self.classes[c[0] as usize] as i32)
            .collect();
        let stream = self.device.stream();
        stream
            .memcpy_htod(choices.as_flattened(), &mut self.choices)
            .on(WHAT)?;
        stream.memcpy_htod(&labels, &mut self.labels).on(WHAT)
    }

    /// Sizes of a batch of the images at `range` of the epoch's order.
    pub(crate) fn shape(&self, range: &Range<usize>) -> Shape {
        Shape {
            n: range.len(),
            h: self.pictures.height(),
            w: self.pictures.width(),
            c: 3,
        }
    }

    pub(crate) fn labels(&self, range: &Range<usize>) -> CudaView<'_, i32> {
        self.labels.slice(range.clone())
    }

    /// Writes the normalised images at `range` of the epoch's order, `[n, h, w, 3]`.
    pub(crate) fn assemble(
        &self,
        range: &Range<usize>,
        storage: Storage,
        out: &mut CudaSlice<f32>,
    ) -> Result<()> {
        let shape = self.shape(range);
        assert_eq!(out.len(), storage.words(shape.len()));
        let choices = self.choices.slice(4 * range.start..4 * range.end);
        let (n, h, w) = (shape.n as i32, shape.h as i32, shape.w as i32);
        launch!(
            self.device,
            stored!(storage, "assemble"),
            Device::elements(shape.len()),
            &self.images,
            &choices,
            &self.table,
            &n,
            &h,
            &w,
            out,
        );
        Ok(())
    }
}
