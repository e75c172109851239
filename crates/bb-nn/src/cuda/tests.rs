//! Single operations on the device against the CPU; skipped without a device.

use super::storage::{narrow, widen};
use super::{Device, Result, Scratch, Storage, countable, device_count};
use crate::data::Input;
use crate::kernels::conv::{self, Add, ConvShape};
use crate::kernels::precision::Precision;
use crate::net::{Mode, Net, Shape};
use crate::{ArchSpec, Compute, NnError};
use bb_core::cli::{Coded as _, exit};
use cudarc::driver::CudaSlice;
use std::rc::Rc;

fn device() -> Option<Rc<Device>> {
    if device_count() == 0 {
        eprintln!("skipped: no CUDA device");
        return None;
    }
    Some(Device::new(0).expect("the first device"))
}

/// Reproducible values in -0.5..0.5 that `bf16` holds exactly, so that rounding of factors plays no part.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut stream = bb_core::rng::stream(seed, "operations", 0, len as u64);
    (0..len)
        .map(|_| (bb_core::rng::unit_f32(&mut stream) * 256.0).floor() / 256.0 - 0.5)
        .collect()
}

/// `[taps][in][out]` to the device's `[out][taps][in]`, or back.
fn turned(weights: &[f32], s: &ConvShape, to_device: bool) -> Vec<f32> {
    let taps = s.k * s.k;
    let mut out = vec![0.0; weights.len()];
    for t in 0..taps {
        for i in 0..s.cin {
            for o in 0..s.cout {
                let (host, device) = ((t * s.cin + i) * s.cout + o, (o * taps + t) * s.cin + i);
                if to_device {
                    out[device] = weights[host];
                } else {
                    out[host] = weights[device];
                }
            }
        }
    }
    out
}

fn place(device: &Device, values: &[f32], storage: Storage) -> Result<CudaSlice<f32>> {
    let mut wide = device.take(values.len())?;
    device.upload(values, &mut wide)?;
    if storage == Storage::F32 {
        return Ok(wide);
    }
    let mut rounded = device.take(storage.words(values.len()))?;
    narrow(device, &wide.as_view(), &mut rounded, values.len())?;
    Ok(rounded)
}

fn fetch(device: &Device, from: &CudaSlice<f32>, len: usize, storage: Storage) -> Result<Vec<f32>> {
    if storage == Storage::F32 {
        return device.download(from);
    }
    let mut wide = device.take(len)?;
    widen(device, from, &mut wide.as_view_mut(), len)?;
    device.download(&wide)
}

/// `||a - b|| / ||b||`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |v: f64| v * v;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    let size: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (difference / size).sqrt()
}

/// One convolution and both gradients on the device, each added to what is there before: relative distances to the CPU.
fn errors(device: &Device, s: &ConvShape, precision: Precision) -> Result<[f64; 3]> {
    let storage = Storage::of(precision);
    let (x, w) = (values(s.input_len(), 1), values(s.weight_len(), 2));
    let (dy, before) = (values(s.output_len(), 3), values(s.output_len(), 4));
    let start = values(s.input_len(), 5);

    let mut y = before.clone();
    conv::forward(
        s,
        Precision::F32,
        x.as_slice(),
        &w,
        Add::Destination,
        &mut y,
    );
    let mut dx = start.clone();
    conv::input_gradient(s, Precision::F32, &dy, &w, Add::Destination, &mut dx);
    let mut dw = vec![0.0; w.len()];
    conv::weight_gradient(s, Precision::F32, x.as_slice(), &dy, &mut dw);

    let key = (s, precision);
    let (x_there, dy_there) = (place(device, &x, storage)?, place(device, &dy, storage)?);
    let w_there = place(device, &turned(&w, s, true), storage)?;
    let mut y_there = place(device, &before, storage)?;
    device.conv_forward(key, &x_there, &w_there, true, &mut y_there)?;
    let mut dx_there = place(device, &start, storage)?;
    device.conv_input_gradient(key, &dy_there, &w_there, true, &mut dx_there)?;
    let mut dw_there = device.take(storage.words(w.len()))?;
    device.conv_weight_gradient(key, &x_there, &dy_there, &mut dw_there)?;
    let dw_found = fetch(device, &dw_there, w.len(), storage)?;
    Ok([
        distance(&fetch(device, &y_there, y.len(), storage)?, &y),
        distance(&fetch(device, &dx_there, dx.len(), storage)?, &dx),
        distance(&turned(&dw_found, s, false), &dw),
    ])
}

fn shape(n: usize, h: usize, cin: usize, cout: usize, k: usize, stride: usize) -> ConvShape {
    ConvShape {
        n,
        h,
        w: h,
        cin,
        cout,
        k,
        stride,
        pad: k / 2,
    }
}

#[test]
fn convolutions_agree_with_the_cpu() {
    let Some(device) = device() else { return };
    let shapes = [
        shape(2, 8, 3, 8, 3, 1),
        shape(3, 8, 8, 16, 3, 1),
        shape(2, 8, 16, 32, 3, 2),
        shape(2, 8, 16, 32, 1, 2),
        shape(1, 7, 8, 8, 3, 2),
    ];
    for s in &shapes {
        for (precision, tolerance) in [
            (Precision::F32, 1e-5),
            (Precision::Tf32, 1e-3),
            (Precision::Bf16, 5e-3),
        ] {
            let found = errors(&device, s, precision).expect("no failure");
            assert!(
                found.iter().all(|e| *e <= tolerance),
                "{s} in {precision}: {found:?}"
            );
        }
    }
}

#[test]
fn memory_that_is_not_there_is_refused_and_the_rest_goes_on() {
    let Some(device) = device() else { return };
    // More than any device has.
    let error = device.take(1 << 46).expect_err("256 TiB").to_string();
    assert!(
        error.starts_with("taking 268435456 MiB") && error.contains("MiB are free"),
        "{error}"
    );
    let mut small = device.take(3).expect("a little is there");
    device.upload(&[1.0, 2.0, 3.0], &mut small).expect("a copy");
    assert_eq!(device.download(&small).expect("a copy"), [1.0, 2.0, 3.0]);
}

/// A network that passes over two images.
struct Passing {
    net: Net,
    input: Input,
    grads: crate::Flat,
}

impl Passing {
    fn new(device: &Rc<Device>, precision: Precision) -> Self {
        let spec = ArchSpec::new("preactresnet18", 4, 3).expect("a known network");
        let net = Net::new(&spec, 0).on(&Compute::Cuda(Rc::clone(device)));
        let net = net
            .and_then(|net| net.with_precision(precision))
            .expect("a network of the GPU");
        let input = Input {
            n: 2,
            h: 16,
            w: 16,
            data: values(2 * 16 * 16 * 3, 1),
        };
        let grads = net.zeros();
        Self { net, input, grads }
    }

    /// The loss of a pass with gradients, and whether it was launched as one graph.
    fn pass(&mut self) -> (f32, bool) {
        let labels = &[0, 2];
        let loss = self
            .net
            .loss_grad(&self.input, labels, Mode::TrainKeepStats, &mut self.grads);
        self.net.take_failure().expect("no failure");
        (loss.mean, self.net.is_recorded())
    }
}

/// Otherwise passes would be right and slow, and nothing would tell.
#[test]
fn a_pass_is_recorded_when_it_is_asked_for_again() {
    let Some(device) = device() else {
        return;
    };
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
        let mut passing = Passing::new(&device, precision);
        let recorded: Vec<bool> = (0..4).map(|_| passing.pass().1).collect();
        assert_eq!(recorded, [false, true, true, true], "{precision}");
    }
}

/// Needs no device.
#[test]
fn more_pixels_than_the_kernels_count_are_one_error() {
    let shape = |n, h, w, c| Shape { n, h, w, c };
    for fits in [
        shape(1 << 15, 1 << 15, 1, 64),
        shape(i32::MAX as usize, 1, 1, 1),
    ] {
        assert!(countable(fits).is_ok(), "{fits:?}");
    }
    for more in [
        shape(1 << 15, 1 << 8, 1 << 8, 3),
        shape(1 << 31, 1, 1, 1),
        shape(usize::MAX, 2, 1, 1),
        shape(1, 1, 1, 1 << 31),
    ] {
        let error = NnError::from(countable(more).expect_err("too many"));
        assert_eq!(error.exit_code(), exit::USAGE);
        assert_eq!(error.hint().as_deref(), Some("lower the batch size"));
        assert!(
            error.to_string().contains("count 2147483647 pixels"),
            "{error}"
        );
    }
}

/// A grid catches the panic of one method and goes on with the same device.
#[test]
fn a_panic_under_way_leaves_the_device_as_it_was() {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    let Some(device) = device() else {
        return;
    };
    let mut passing = Passing::new(&device, Precision::F32);
    let before = passing.pass().0.to_bits();
    let broken = || {
        let mut own = Scratch::default();
        let recorded = device.with_scratch(&mut own, || device.record(|| panic!("under way")));
        recorded.map(drop)
    };
    catch_unwind(AssertUnwindSafe(broken)).expect_err("it panics");
    assert!(!device.recording.get());
    assert!(device.aside.borrow().is_empty());
    let (loss, recorded) = passing.pass();
    assert_eq!((loss.to_bits(), recorded), (before, true));
}

#[test]
fn what_is_only_kept_is_let_go_before_memory_is_refused() {
    let Some(device) = device() else {
        return;
    };
    let mut all = [(); 2].map(|()| Passing::new(&device, Precision::F32));
    for passing in &mut all {
        passing.pass();
        assert!(passing.pass().1);
    }
    let before: Vec<u32> = all.iter_mut().map(|p| p.pass().0.to_bits()).collect();
    device.give(device.take(12345).expect("a little is there"));
    assert!(!device.scratch.borrow().free.is_empty());

    // More than any device has, asked for while another scratch memory has the place of the device's.
    let asked = device.with_scratch(&mut super::Scratch::default(), || device.take(1 << 46));
    asked.expect_err("256 TiB");
    assert!(device.scratch.borrow().free.is_empty());
    assert!(all.iter().all(|passing| !passing.net.is_recorded()));
    let passes = |all: &mut [Passing; 2]| all.each_mut().map(|p| p.pass());
    for recorded in [false, true] {
        let bits = passes(&mut all).map(|(loss, again)| {
            assert_eq!(again, recorded);
            loss.to_bits()
        });
        assert_eq!(bits.to_vec(), before);
    }
}
