//! [`crate::neurons`] on the device, where a neuron's weights lie in one row, `[out][kh * kw][in]`.

use super::{Context, Device, Result, launch};
use crate::flat::Flat;
use crate::neurons::Chosen;
use cudarc::driver::{CudaSlice, CudaView, LaunchConfig};
use std::rc::Rc;

/// Sizes of a convolution's weight: rows, elements of a row.
fn sizes(weights: &Flat, i: usize) -> (usize, i32) {
    let entry = &weights.layout().entries()[i];
    let rows = entry.shape.first().copied().unwrap_or(1);
    let length = i32::try_from(entry.range.len() / rows).expect("a neuron's weights fit 31 bits");
    (rows, length)
}

/// One block for each row.
fn per_row(rows: usize) -> LaunchConfig {
    Device::grid((rows as u32, 1), (256, 1))
}

/// Calls `f` with tensor `i` of both vectors.
fn tensors<T>(
    device: &Rc<Device>,
    (a, b): (&Flat, &Flat),
    i: usize,
    f: impl FnOnce(CudaView<'_, f32>, CudaView<'_, f32>) -> Result<T>,
) -> Result<T> {
    let range = a.layout().entries()[i].range.clone();
    a.held().read(a.layout(), device, |a| {
        b.held().read(b.layout(), device, |b| {
            f(a.slice(range.clone()), b.slice(range.clone()))
        })
    })
}

/// The floats of a buffer, which is given back.
fn read(device: &Device, buffer: CudaSlice<f32>) -> Result<Vec<f32>> {
    let values = device.download(&buffer)?;
    device.give(buffer);
    Ok(values)
}

/// See [`crate::neurons::weight_change`].
pub(crate) fn weight_change(
    device: &Rc<Device>,
    before: &Flat,
    after: &Flat,
    i: usize,
) -> Result<Vec<f32>> {
    let (rows, length) = sizes(before, i);
    let mut out = device.take(rows)?;
    tensors(device, (after, before), i, |after, before| {
        let grid = per_row(rows);
        launch!(device, "row_l1", grid, &after, &before, &length, &mut out);
        Ok(())
    })?;
    read(device, out)
}

/// L1 norm of each row of tensor `i`.
pub(crate) fn l1(device: &Rc<Device>, x: &Flat, i: usize) -> Result<Vec<f32>> {
    let (rows, length) = sizes(x, i);
    let mut out = device.take(rows)?;
    let range = x.layout().entries()[i].range.clone();
    x.held().read(x.layout(), device, |x| {
        let (x, nothing) = (x.slice(range), 0u64);
        let grid = per_row(rows);
        launch!(device, "row_l1", grid, &x, &nothing, &length, &mut out);
        Ok(())
    })?;
    read(device, out)
}

/// Which rows are chosen, as bytes on the device.
fn rows_chosen(device: &Device, chosen: &Chosen<'_>) -> Result<CudaSlice<u8>> {
    let bytes: Vec<u8> = chosen.channels.iter().map(|&c| u8::from(c)).collect();
    device
        .stream()
        .clone_htod(&bytes)
        .on("copying a choice of neurons")
}

/// See [`crate::neurons::kth_largest_change`]: four rounds that each settle one byte of the value, counted from above.
///
/// The bits of floats that are not negative are ordered as their values are.
pub(crate) fn kth_largest_change(
    device: &Rc<Device>,
    before: &Flat,
    after: &Flat,
    chosen: &[Chosen<'_>],
    k: usize,
) -> Result<f32> {
    const WHAT: &str = "looking for a threshold";
    let stream = device.stream();
    let rows: Vec<CudaSlice<u8>> = chosen
        .iter()
        .map(|c| rows_chosen(device, c))
        .collect::<Result<_>>()?;
    let mut counts = stream.alloc_zeros::<u32>(256).on(WHAT)?;
    let (mut prefix, mut mask, mut left) = (0u32, 0u32, k as u64);
    for shift in [24i32, 16, 8, 0] {
        stream.memset_zeros(&mut counts).on(WHAT)?;
        for (c, rows) in chosen.iter().zip(&rows) {
            let (_, length) = sizes(before, c.tensor);
            tensors(device, (after, before), c.tensor, |after, before| {
                launch!(
                    device,
                    "change_histogram",
                    per_row(rows.len()),
                    &after,
                    &before,
                    rows,
                    &length,
                    &prefix,
                    &mask,
                    &shift,
                    &mut counts,
                );
                Ok(())
            })?;
        }
        let found = stream.clone_dtoh(&counts).on(WHAT)?;
        let byte = (0..256u32).rev().find(|&byte| {
            let here = u64::from(found[byte as usize]);
            if here >= left {
                return true;
            }
            left -= here;
            false
        });
        prefix |= byte.expect("there are as many weights") << shift;
        mask |= 0xff << shift;
    }
    Ok(f32::from_bits(prefix))
}

/// See [`crate::neurons::clear_changed`].
pub(crate) fn clear_changed(
    device: &Rc<Device>,
    weights: &mut Flat,
    after: &Flat,
    chosen: &[Chosen<'_>],
    threshold: f32,
) -> Result<usize> {
    const WHAT: &str = "counting cleared weights";
    let mut count = device.stream().alloc_zeros::<u32>(1).on(WHAT)?;
    for c in chosen {
        let ((rows, length), chosen) = (sizes(weights, c.tensor), rows_chosen(device, c)?);
        let layout = std::sync::Arc::clone(weights.layout());
        let range = layout.entries()[c.tensor].range.clone();
        after.held().read(&layout, device, |after| {
            let after = after.slice(range.clone());
            weights.held_mut().write(&layout, device, |weights| {
                let mut weights = weights.slice_mut(range.clone());
                launch!(
                    device,
                    "zero_changed",
                    per_row(rows),
                    &mut weights,
                    &after,
                    &chosen,
                    &length,
                    &threshold,
                    &mut count,
                );
                Ok(())
            })
        })?;
    }
    let count = device.stream().clone_dtoh(&count).on(WHAT)?;
    Ok(count[0] as usize)
}

/// See [`crate::neurons::distances`].
pub(crate) fn distances(device: &Rc<Device>, a: &Flat, b: &Flat, i: usize) -> Result<Vec<f32>> {
    let (rows, length) = sizes(a, i);
    let mut out = device.take(rows * rows)?;
    tensors(device, (a, b), i, |a, b| {
        let (n, grid) = (rows as i32, Device::product(rows, rows));
        launch!(
            device,
            "row_distances",
            grid,
            &a,
            &b,
            &n,
            &n,
            &length,
            &mut out
        );
        Ok(())
    })?;
    read(device, out)
}

/// The Gram matrices that [`crate::neurons::spectral_norms`] needs, `[out, taps, taps]`.
pub(crate) fn grams(device: &Rc<Device>, weights: &Flat, i: usize) -> Result<Vec<f64>> {
    let entry = &weights.layout().entries()[i];
    let (rows, inputs) = (entry.shape[0], entry.shape[1]);
    let taps = entry.range.len() / (rows * inputs);
    let mut out = device.take(2 * rows * taps * taps)?;
    weights.held().read(weights.layout(), device, |weights| {
        let weights = weights.slice(entry.range.clone());
        let (grid, taps, inputs) = (per_row(rows), taps as i32, inputs as i32);
        launch!(device, "row_gram", grid, &weights, &taps, &inputs, &mut out);
        Ok(())
    })?;
    device.read_doubles(out)
}
