//! A vector of tensors that lives on the host, on a GPU, or on both.

use super::{Context, Device, Result, launch};
use crate::flat::{Layout, Order};
use cudarc::driver::CudaSlice;
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
        let (Order::Hwio, &[co, ci, kh, kw]) = (entry.order, entry.shape.as_slice()) else {
            continue;
        };
        let (src, dst) = (&data[entry.range.clone()], &mut out[entry.range.clone()]);
        for tap in 0..kh * kw {
            for i in 0..ci {
                for o in 0..co {
                    let hwio = (tap * ci + i) * co + o;
                    let ohwi = (o * kh * kw + tap) * ci + i;
                    if to_device {
                        dst[ohwi] = src[hwio];
                    } else {
                        dst[hwio] = src[ohwi];
                    }
                }
            }
        }
    }
    out
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

/// Sum of squares; the same bits each time, but not the host's.
pub(crate) fn sum_of_squares(device: &Rc<Device>, layout: &Layout, x: &Held) -> Result<f64> {
    const BLOCKS: u32 = 1024;
    x.read(layout, device, |x| {
        let stream = device.stream();
        let zeros = stream.alloc_zeros::<f64>(BLOCKS as usize);
        let mut partial = zeros.on("taking memory for a sum")?;
        let n = x.len() as i64;
        let shape = Device::grid((BLOCKS, 1), (256, 1));
        launch!(device, "sum_of_squares", shape, x, &n, &mut partial);
        let partial = stream.clone_dtoh(&partial).on("copying a sum")?;
        Ok(partial.iter().sum())
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
