//! A vector of tensors that lives on the host, on a GPU, or on both.

use super::{Context, Device, Result, launch};
use crate::flat::{Layout, Order};
use crate::kernels::vector::AdamStep;
use cudarc::driver::CudaSlice;
use rayon::prelude::*;
use std::cell::{OnceCell, RefCell};
use std::rc::Rc;

/// The elements of a [`Flat`](crate::Flat). Host or device, or both, are up to date.
///
/// On the device convolution weights are `[out, kh, kw, in]`, which is what cuDNN wants beside NHWC images.
#[derive(Debug)]
pub(crate) struct Held {
    /// Empty where only the device is up to date.
    host: OnceCell<Vec<f32>>,
    device: RefCell<Option<Resident>>,
}

#[derive(Debug)]
struct Resident {
    device: Rc<Device>,
    slice: CudaSlice<f32>,
    current: bool,
}

impl Held {
    pub(crate) fn new(data: Vec<f32>) -> Self {
        Self {
            host: OnceCell::from(data),
            device: RefCell::default(),
        }
    }

    pub(crate) fn get(&self, layout: &Layout) -> &[f32] {
        self.host.get_or_init(|| {
            let resident = self.device.borrow();
            let resident = resident.as_ref().expect("host or device is up to date");
            let values = resident.device.download(&resident.slice);
            let values = resident.device.keep(values);
            values.map_or_else(
                || vec![f32::NAN; resident.slice.len()],
                |v| reordered(layout, &v, false),
            )
        })
    }

    pub(crate) fn get_mut(&mut self, layout: &Layout) -> &mut [f32] {
        self.get(layout);
        if let Some(resident) = self.device.get_mut() {
            resident.current = false;
        }
        self.host.get_mut().expect("it was filled above")
    }

    /// The device on which it is up to date.
    pub(crate) fn current_device(&self) -> Option<Rc<Device>> {
        let resident = self.device.borrow();
        let resident = resident.as_ref().filter(|r| r.current)?;
        Some(Rc::clone(&resident.device))
    }

    /// Calls `f` with the elements on `device`.
    pub(crate) fn read<T>(
        &self,
        layout: &Layout,
        device: &Rc<Device>,
        f: impl FnOnce(&CudaSlice<f32>) -> Result<T>,
    ) -> Result<T> {
        self.place(layout, device)?;
        let resident = self.device.borrow();
        f(&resident.as_ref().expect("it was placed above").slice)
    }

    /// Calls `f` with the elements on `device`, to be changed.
    pub(crate) fn write<T>(
        &mut self,
        layout: &Layout,
        device: &Rc<Device>,
        f: impl FnOnce(&mut CudaSlice<f32>) -> Result<T>,
    ) -> Result<T> {
        self.place(layout, device)?;
        self.host.take();
        let resident = self.device.get_mut().as_mut();
        f(&mut resident.expect("it was placed above").slice)
    }

    /// Brings the elements to `device`, where they are not there.
    fn place(&self, layout: &Layout, device: &Rc<Device>) -> Result<()> {
        let here = |r: &Resident| Rc::ptr_eq(&r.device, device);
        if self
            .device
            .borrow()
            .as_ref()
            .is_some_and(|r| here(r) && r.current)
        {
            return Ok(());
        }
        let values = reordered(layout, self.get(layout), true);
        let mut slot = self.device.borrow_mut();
        let slice = match slot.take() {
            Some(resident) if here(&resident) => resident.slice,
            _ => device.take(values.len())?,
        };
        let mut resident = Resident {
            device: Rc::clone(device),
            slice,
            current: true,
        };
        device.upload(&values, &mut resident.slice)?;
        *slot = Some(resident);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(resident) = self.device.get_mut().take() {
            resident.device.give(resident.slice);
        }
    }
}

/// All tensors with convolution weights in the device's order, or back in the host's.
fn reordered(layout: &Layout, data: &[f32], to_device: bool) -> Vec<f32> {
    let mut out = data.to_vec();
    for entry in layout.entries() {
        let (Order::Hwio, &[outputs, ..]) = (entry.order, entry.shape.as_slice()) else {
            continue;
        };
        // The host's `[taps * in, out]` and the device's `[out, taps * in]`.
        let inputs = entry.range.len() / outputs;
        let rows = if to_device { inputs } else { outputs };
        transpose(
            &data[entry.range.clone()],
            rows,
            &mut out[entry.range.clone()],
        );
    }
    out
}

/// `to[j, i] = from[i, j]`, where `from` has `rows` rows.
fn transpose(from: &[f32], rows: usize, to: &mut [f32]) {
    /// Edge of the tiles, so that a tile's cache lines are used up while they are there.
    const TILE: usize = 16;
    let columns = from.len() / rows;
    to.par_chunks_mut(TILE * rows)
        .enumerate()
        .for_each(|(tile, to)| {
            let first = tile * TILE;
            for start in (0..rows).step_by(TILE) {
                for (j, line) in to.chunks_exact_mut(rows).enumerate() {
                    let end = (start + TILE).min(rows);
                    for (i, value) in (start..end).zip(&mut line[start..end]) {
                        *value = from[i * columns + first + j];
                    }
                }
            }
        });
}

/// `y += a * x`.
pub(crate) fn add_scaled(
    device: &Rc<Device>,
    layout: &Layout,
    y: &mut Held,
    a: f32,
    x: &Held,
) -> Result<()> {
    x.read(layout, device, |x| {
        y.write(layout, device, |y| {
            let n = y.len() as i64;
            launch!(
                device,
                "add_scaled",
                Device::elements(y.len()),
                y,
                &a,
                x,
                &n
            );
            Ok(())
        })
    })
}

/// `y = a * y + b * x`.
pub(crate) fn mix(
    device: &Rc<Device>,
    layout: &Layout,
    y: &mut Held,
    a: f32,
    x: &Held,
    b: f32,
) -> Result<()> {
    x.read(layout, device, |x| {
        y.write(layout, device, |y| {
            let n = y.len() as i64;
            launch!(device, "mix", Device::elements(y.len()), y, &a, x, &b, &n);
            Ok(())
        })
    })
}

/// `y *= a`.
pub(crate) fn scale(device: &Rc<Device>, layout: &Layout, y: &mut Held, a: f32) -> Result<()> {
    y.write(layout, device, |y| {
        let n = y.len() as i64;
        launch!(device, "scale", Device::elements(y.len()), y, &a, &n);
        Ok(())
    })
}

/// `y = x`.
pub(crate) fn copy(device: &Rc<Device>, layout: &Layout, y: &mut Held, x: &Held) -> Result<()> {
    x.read(layout, device, |x| {
        y.write(layout, device, |y| {
            device.stream().memcpy_dtod(x, y).on("copying a vector")
        })
    })
}

/// `y = min(max(y, lo), hi)`.
pub(crate) fn clamp(
    device: &Rc<Device>,
    layout: &Layout,
    y: &mut Held,
    lo: f32,
    hi: f32,
) -> Result<()> {
    y.write(layout, device, |y| {
        let n = y.len() as i64;
        launch!(device, "clamp", Device::elements(y.len()), y, &lo, &hi, &n);
        Ok(())
    })
}

/// `y = y + a * sign(x)`, no further from 0 than `limit`.
pub(crate) fn sign_step(
    device: &Rc<Device>,
    layout: &Layout,
    y: &mut Held,
    x: &Held,
    a: f32,
    limit: f32,
) -> Result<()> {
    x.read(layout, device, |x| {
        y.write(layout, device, |y| {
            let (n, grid) = (y.len() as i64, Device::elements(y.len()));
            launch!(device, "sign_step", grid, y, x, &a, &limit, &n);
            Ok(())
        })
    })
}

/// Blocks that share the elements of a vector, or of one tensor, when squares are summed.
const BLOCKS: u32 = 1024;
const PARTS: u32 = 32;

/// The sums of squares over the elements that each of [`BLOCKS`] blocks visits.
fn squares(device: &Device, x: &CudaSlice<f32>) -> Result<CudaSlice<f32>> {
    let mut partial = device.take(2 * BLOCKS as usize)?;
    let n = x.len() as i64;
    let shape = Device::grid((BLOCKS, 1), (256, 1));
    launch!(device, "sum_of_squares", shape, x, &n, &mut partial);
    Ok(partial)
}

/// The same for each of [`PARTS`] blocks a tensor, and where tensors begin and end.
fn tensor_squares(
    device: &Device,
    layout: &Layout,
    x: &CudaSlice<f32>,
) -> Result<(CudaSlice<f32>, Rc<CudaSlice<i64>>)> {
    let bounds = device.bounds(layout)?;
    let tensors = layout.entries().len();
    let mut partial = device.take(2 * PARTS as usize * tensors)?;
    let (shape, parts) = (
        Device::grid((PARTS, tensors as u32), (256, 1)),
        PARTS as i32,
    );
    launch!(
        device,
        "tensor_squares",
        shape,
        x,
        &*bounds,
        &parts,
        &mut partial
    );
    Ok((partial, bounds))
}

/// Sum of squares; the same bits each time, but not the host's.
pub(crate) fn sum_of_squares(device: &Rc<Device>, layout: &Layout, x: &Held) -> Result<f64> {
    x.read(layout, device, |x| {
        let partial = device.read_doubles(squares(device, x)?)?;
        Ok(partial.iter().sum())
    })
}

/// Sum of squares of each tensor.
pub(crate) fn sums_of_squares(device: &Rc<Device>, layout: &Layout, x: &Held) -> Result<Vec<f64>> {
    x.read(layout, device, |x| {
        let (partial, _) = tensor_squares(device, layout, x)?;
        let partial = device.read_doubles(partial)?;
        let sums = partial.chunks_exact(PARTS as usize);
        Ok(sums.map(|parts| parts.iter().sum()).collect())
    })
}

/// `y += r * x / |x|`, with the norm of all of `x` if `whole`, else tensor by tensor. The host learns nothing.
pub(crate) fn add_normalised(
    device: &Rc<Device>,
    layout: &Layout,
    y: &mut Held,
    x: &Held,
    r: f32,
    whole: bool,
) -> Result<()> {
    x.read(layout, device, |x| {
        let (partial, bounds) = tensor_squares(device, layout, x)?;
        let tensors = layout.entries().len();
        let grid = Device::grid((PARTS, tensors as u32), (256, 1));
        let (tensors, parts, whole) = (tensors as i32, PARTS as i32, i32::from(whole));
        y.write(layout, device, |y| {
            launch!(
                device,
                "add_normalised",
                grid,
                y,
                x,
                &partial,
                &*bounds,
                &tensors,
                &parts,
                &r,
                &whole,
            );
            Ok(())
        })?;
        device.give(partial);
        Ok(())
    })
}

/// Scales `x` down to the norm `max`, if it is longer. The host learns nothing.
pub(crate) fn clip_norm(
    device: &Rc<Device>,
    layout: &Layout,
    x: &mut Held,
    max: f32,
) -> Result<()> {
    x.write(layout, device, |x| {
        let partial = squares(device, x)?;
        let (n, count) = (x.len() as i64, BLOCKS as i32);
        // Every block adds up what the others found, so there are not many.
        let grid = Device::grid((512, 1), (256, 1));
        launch!(device, "clip_norm", grid, x, &partial, &count, &max, &n);
        device.give(partial);
        Ok(())
    })
}

/// Whether no element is NaN or infinite.
pub(crate) fn all_finite(device: &Rc<Device>, layout: &Layout, x: &Held) -> Result<bool> {
    const WHAT: &str = "looking for NaN";
    x.read(layout, device, |x| {
        let mut flag = device.stream().alloc_zeros::<i32>(1).on(WHAT)?;
        let n = x.len() as i64;
        launch!(
            device,
            "all_finite",
            Device::elements(x.len()),
            x,
            &n,
            &mut flag
        );
        Ok(device.stream().clone_dtoh(&flag).on(WHAT)? == [0])
    })
}

/// One step of Adam over weights, mean, mean square and gradient; of AMSGrad with the largest mean squares.
pub(crate) fn adam(
    device: &Rc<Device>,
    layout: &Layout,
    (w, m, v, g): (&mut Held, &mut Held, &mut Held, &Held),
    largest: Option<&mut Held>,
    by: AdamStep,
) -> Result<()> {
    let AdamStep {
        step,
        share1,
        beta2,
        share2,
        eps,
        weight_decay,
        bias2_sqrt,
    } = by;
    // The numbers of a step, behind its vectors.
    macro_rules! launch_step {
        ($name:literal, $shape:expr, $n:expr, $($vector:expr),+) => {
            launch!(
                device, $name, $shape, $($vector,)+
                &step, &share1, &beta2, &share2, &eps, &weight_decay, &bias2_sqrt, &$n,
            )
        };
    }
    g.read(layout, device, |g| {
        v.write(layout, device, |v| {
            m.write(layout, device, |m| {
                w.write(layout, device, |w| {
                    let (elements, n) = (Device::elements(w.len()), w.len() as i64);
                    match largest {
                        None => launch_step!("adam", elements, n, w, m, v, g),
                        Some(top) => top.write(layout, device, |top| {
                            launch_step!("amsgrad", elements, n, w, m, v, top, g);
                            Ok(())
                        })?,
                    }
                    Ok(())
                })
            })
        })
    })
}

/// What [`crate::optim::Sgd::step`] does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SgdStep {
    pub(crate) lr: f32,
    pub(crate) momentum: f32,
    pub(crate) weight_decay: f32,
    pub(crate) nesterov: bool,
}

/// One step of stochastic gradient descent with momentum.
pub(crate) fn sgd(
    device: &Rc<Device>,
    layout: &Layout,
    (w, v, g): (&mut Held, &mut Held, &Held),
    step: SgdStep,
) -> Result<()> {
    g.read(layout, device, |g| {
        v.write(layout, device, |v| {
            w.write(layout, device, |w| {
                let n = w.len() as i64;
                let nesterov = i32::from(step.nesterov);
                launch!(
                    device,
                    "sgd_momentum",
                    Device::elements(w.len()),
                    w,
                    v,
                    g,
                    &step.lr,
                    &step.momentum,
                    &step.weight_decay,
                    &nesterov,
                    &n,
                );
                Ok(())
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::transpose;

    #[test]
    fn a_matrix_is_transposed_and_back() {
        for (rows, columns) in [(1, 1), (27, 16), (16, 33), (100, 7)] {
            let matrix: Vec<f32> = (0..rows * columns).map(|v| v as f32).collect();
            let (mut turned, mut back) = (vec![-1.0; matrix.len()], vec![-1.0; matrix.len()]);
            transpose(&matrix, rows, &mut turned);
            for i in 0..rows {
                for j in 0..columns {
                    assert_eq!(turned[j * rows + i], matrix[i * columns + j]);
                }
            }
            transpose(&turned, columns, &mut back);
            assert_eq!(back, matrix);
        }
    }
}
