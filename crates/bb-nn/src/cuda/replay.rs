//! Passes with gradients that are asked for again and again: recorded once as a CUDA graph, then launched as one.
//!
//! A step is some two hundred launches, and at 30 to 50 microseconds of the host's time for each the host, not the GPU,
//! would set the pace of all but large batches of wide networks. A graph holds the addresses of its buffers, so a
//! [`Replay`] owns all memory that its pass works in, and is good for one [`Key`].

use super::storage::narrow;
use super::{Batch, Context, Device, Result, Scratch, Storage, countable};
use crate::kernels::precision::Precision;
use crate::net::{Mode, Shape};
use cudarc::driver::{CudaGraph, CudaSlice};
use std::fmt;

/// How many a network keeps: the batches of an epoch, and its smaller last one.
const KEPT: usize = 2;

/// What decides which calls a pass makes, and on which memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Of the images.
    pub(super) shape: Shape,
    pub(super) mode: Mode,
    pub(super) precision: Precision,
    /// Whether the input's gradient is wanted.
    pub(super) input: bool,
    /// Addresses of parameters, statistics, gradients, and the sums of losses.
    pub(super) vectors: [u64; 4],
}

/// A pass with its memory.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) key: Key,
    pub(super) scratch: Scratch,
    /// The batch. Taken while the pass runs.
    pub(super) images: Option<CudaSlice<f32>>,
    pub(super) labels: CudaSlice<i32>,
    /// What the pass leaves where the key asks for it.
    pub(super) input_gradient: Option<CudaSlice<f32>>,
    pub(super) state: State,
}

/// How often a pass was asked for.
pub(super) enum State {
    /// Never: the first pass makes plans and buffers.
    New,
    /// Once: all that it needs is there.
    Ready,
    /// More often.
    Recorded(CudaGraph),
    /// It could not be recorded, so it is asked for call by call.
    Refused,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "New",
            Self::Ready => "Ready",
            Self::Recorded(_) => "Recorded",
            Self::Refused => "Refused",
        })
    }
}

impl Replay {
    /// A pass that was never asked for.
    pub(super) fn new(device: &Device, key: Key) -> Result<Self> {
        let storage = Storage::of(key.precision);
        countable(key.shape)?;
        Ok(Self {
            key,
            scratch: Scratch::default(),
            images: Some(device.take(storage.words(key.shape.len()))?),
            labels: device.allocate(key.shape.n)?,
            input_gradient: None,
            state: State::New,
        })
    }

    /// Writes images and labels where the pass reads them.
    pub(super) fn fill(&mut self, device: &Device, batch: &Batch<'_>) -> Result<()> {
        const WHAT: &str = "copying labels";
        let images = self.images.as_mut().expect("no pass is running");
        fill_images(device, batch, Storage::of(self.key.precision), images)?;
        let labels = &mut self.labels;
        match batch {
            Batch::Resident(split, range) => device
                .stream()
                .memcpy_dtod(&split.labels(range), labels)
                .on(WHAT),
            Batch::Host(_, own) => {
                assert_eq!(own.len(), self.key.shape.n, "one label for each image");
                let own: Vec<i32> = own.iter().map(|l| *l as i32).collect();
                device.stream().memcpy_htod(&own, labels).on(WHAT)
            }
        }
    }

    /// Gives the memory back for others.
    fn dissolve(self, device: &Device) {
        // First the graph, which may still name the buffers.
        drop(self.state);
        for buffer in self.images.into_iter().chain(self.input_gradient) {
            device.give(buffer);
        }
        device.give_all(self.scratch);
    }
}

/// Writes the normalised images of a batch, `[n, h, w, 3]`.
pub(super) fn fill_images(
    device: &Device,
    batch: &Batch<'_>,
    storage: Storage,
    images: &mut CudaSlice<f32>,
) -> Result<()> {
    match (batch, storage) {
        (Batch::Resident(split, range), _) => split.assemble(range, storage, images),
        (Batch::Host(input, _), Storage::F32) => device.upload(&input.data, images),
        (Batch::Host(input, _), Storage::Bf16) => {
            let len = input.data.len();
            let mut wide = device.take(len)?;
            device.upload(&input.data, &mut wide)?;
            narrow(device, &wide.as_view(), images, len)?;
            device.give(wide);
            Ok(())
        }
    }
}

/// The passes that a network asked for last.
#[derive(Debug, Default)]
pub(super) struct Replays(Vec<Replay>);

impl Replays {
    /// The one with this key, taken out for the time it runs; without one, there is room for it now.
    pub(super) fn take(&mut self, device: &Device, key: Key) -> Option<Replay> {
        if let Some(found) = self.0.iter().position(|r| r.key == key) {
            return Some(self.0.remove(found));
        }
        if self.0.len() == KEPT {
            self.0.remove(0).dissolve(device);
        }
        None
    }

    /// Puts it back after a pass that went well.
    pub(super) fn put(&mut self, replay: Replay) {
        self.0.push(replay);
    }

    /// The one that was put back last.
    pub(super) fn last(&self) -> Option<&Replay> {
        self.0.last()
    }

    /// Gives all memory back for others.
    pub(super) fn clear(&mut self, device: &Device) {
        for replay in self.0.drain(..) {
            replay.dissolve(device);
        }
    }
}
