//! The engine on a GPU against the engine on the CPU; skipped without a device.
//!
//! `scripts/emulate_cuda.sh` gives a machine without a GPU a device that runs the same kernels on the CPU.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/tiny.rs"]
mod tiny;

use bb_core::data::OpenOptions;
use bb_nn::cuda::{Device, device_count};
use bb_nn::data::Input;
use bb_nn::net::{Mode, Net};
use bb_nn::neurons::{self, Chosen};
use bb_nn::optim::{Adam, Sgd};
use bb_nn::train::{Checkpoints, EpochRow, Hooks, Recipe, TrainError, fit};
use bb_nn::{ArchSpec, Compute, Flat, NormScope, Precision};
use common::{assert_close, assert_relative};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The first device, for one test at a time, because what it counts is counted for the process.
fn device() -> Option<(Compute, MutexGuard<'static, ()>)> {
    static ALONE: Mutex<()> = Mutex::new(());
    if device_count() == 0 {
        eprintln!("skipped: no CUDA device");
        return None;
    }
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Some((
        Compute::Cuda(Device::new(0).expect("the first device")),
        alone,
    ))
}

/// Reproducible values in -0.5..0.5.
fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut stream = bb_core::rng::stream(seed, "cuda tests", 0, len as u64);
    (0..len)
        .map(|_| bb_core::rng::unit_f32(&mut stream) - 0.5)
        .collect()
}

const CLASSES: usize = 5;

/// A small network whose normalisations are not at their start, a batch, and its labels.
fn case(n: usize) -> (Net, Input, Vec<u32>) {
    let spec = ArchSpec::new("preactresnet18", 4, CLASSES).unwrap();
    let mut net = Net::new(&spec, 3);
    let noise = random(net.params().data().len(), 1);
    for (p, v) in net.params_mut().data_mut().iter_mut().zip(noise) {
        *p += 0.1 * v;
    }
    for v in net.buffers_mut().data_mut() {
        *v += 0.25;
    }
    let input = Input {
        n,
        h: 16,
        w: 16,
        data: random(n * 16 * 16 * 3, 2).iter().map(|v| 4.0 * v).collect(),
    };
    let labels = (0..n).map(|i| (i * 3 % CLASSES) as u32).collect();
    (net, input, labels)
}

fn assert_same_tensors(name: &str, found: &Flat, expected: &Flat, tolerance: f64) {
    for (i, entry) in expected.layout().entries().iter().enumerate() {
        let name = format!("{name} of {}", entry.name);
        assert_relative(&name, found.tensor(i), expected.tensor(i), tolerance);
    }
}

#[test]
fn passes_agree_with_the_cpu() {
    let Some((device, _alone)) = device() else {
        return;
    };
    let (mut cpu, input, labels) = case(6);
    let mut gpu = cpu.clone().on(&device).unwrap();
    let names = ["conv1", "layer2", "avgpool"];
    let (logits, features) = cpu.forward_with(&input, Mode::Eval, &names);
    let (found, found_features) = gpu.forward_with(&input, Mode::Eval, &names);
    assert_close("logits", &found, &logits, 2e-5);
    assert_eq!(features.len(), found_features.len());
    for (a, b) in found_features.iter().zip(&features) {
        assert_eq!(a.shape, b.shape);
        assert_close("a feature", &a.data, &b.data, 5e-5);
    }
    for mode in [Mode::Eval, Mode::TrainKeepStats, Mode::Train] {
        let (mut expected, mut found) = (cpu.zeros(), gpu.zeros());
        let (a, dx) = cpu.loss_grad_input(&input, &labels, mode, &mut expected);
        let (b, found_dx) = gpu.loss_grad_input(&input, &labels, mode, &mut found);
        gpu.take_failure().expect("no failure");
        assert_close("loss", &[b.mean], &[a.mean], 1e-5);
        assert_eq!(a.correct, b.correct, "{mode:?}");
        assert_same_tensors("gradient", &found, &expected, 1e-3);
        assert_relative("input gradient", &found_dx, &dx, 1e-3);
        assert_same_tensors("statistics", gpu.buffers(), cpu.buffers(), 1e-5);
    }
    assert_eq!(
        common::labels(
            gpu.state()
                .unwrap()
                .get("layer1.0.bn1.num_batches_tracked")
                .unwrap()
        ),
        common::labels(
            cpu.state()
                .unwrap()
                .get("layer1.0.bn1.num_batches_tracked")
                .unwrap()
        ),
    );
}

#[test]
fn training_agrees_with_the_cpu_and_with_itself() {
    let Some((device, _alone)) = device() else {
        return;
    };
    let (cpu, input, labels) = case(4);
    let train = |mut net: Net| {
        let mut grads = net.zeros();
        let mut sgd = Sgd::new(net.params(), 0.9, 5e-4, true);
        for _ in 0..3 {
            let loss = net.loss_grad(&input, &labels, Mode::Train, &mut grads);
            assert!(loss.mean.is_finite());
            sgd.step(net.params_mut(), &grads, 0.05);
        }
        net.take_failure().expect("no failure");
        net
    };
    let expected = train(cpu.clone());
    let first = train(cpu.clone().on(&device).unwrap());
    let second = train(cpu.on(&device).unwrap());
    assert_same_tensors("parameter", first.params(), expected.params(), 1e-3);
    assert_same_tensors("statistics", first.buffers(), expected.buffers(), 1e-3);
    assert_eq!(
        first.params().data(),
        second.params().data(),
        "the same bits"
    );
    assert_eq!(first.buffers().data(), second.buffers().data());
}

#[test]
fn each_place_has_its_precisions() {
    let Some((device, _alone)) = device() else {
        return;
    };
    let (cpu, input, labels) = case(2);
    assert!(cpu.clone().with_precision(Precision::Tf32).is_err());
    let mut gpu = cpu.on(&device).unwrap();
    let tf32 = gpu.clone().with_precision(Precision::Tf32).unwrap();
    assert!(tf32.on(&Compute::Cpu).is_err());
    let mut expected = gpu.zeros();
    let (loss, dx) = gpu.loss_grad_input(&input, &labels, Mode::Eval, &mut expected);
    // TF32 keeps 11 bits of each factor, `bf16` 8 bits of each activation.
    for (precision, tolerance) in [(Precision::Tf32, 1e-2), (Precision::Bf16, 0.1)] {
        let net = gpu.clone().with_precision(precision).unwrap();
        let run = |mut net: Net| {
            let mut grads = net.zeros();
            let (loss, dx) = net.loss_grad_input(&input, &labels, Mode::Eval, &mut grads);
            let (_, features) = net.forward_with(&input, Mode::Eval, &["layer1"]);
            net.take_failure().expect("no failure");
            (loss, dx, grads, features[0].data.clone())
        };
        let (found, found_dx, grads, feature) = run(net.clone());
        assert_close("loss", &[found.mean], &[loss.mean], tolerance as f32);
        assert_same_tensors(precision.name(), &grads, &expected, tolerance);
        assert_relative("input gradient", &found_dx, &dx, tolerance);
        let again = run(net);
        assert_eq!(found_dx, again.1, "the same bits in {precision}");
        assert_eq!(grads.data(), again.2.data(), "the same bits in {precision}");
        assert_eq!(feature, again.3, "the same bits in {precision}");
    }
}

/// Images to measure on are assembled on the device.
#[test]
fn predictions_are_the_cpus() {
    let Some((device, _alone)) = device() else {
        return;
    };
    let options = OpenOptions {
        train_limit: Some(4),
        test_limit: Some(37),
        ..OpenOptions::default()
    };
    let data = bb_core::data::open("synthetic", None, &options).unwrap();
    let spec = ArchSpec::new("preactresnet18", 4, data.spec.classes).unwrap();
    let mut cpu = Net::new(&spec, 0);
    let mut gpu = cpu
        .clone()
        .on(&device)
        .unwrap()
        .with_precision(Precision::Bf16)
        .unwrap();
    let images = &data.test.images;
    let found = bb_nn::eval::predict(&mut gpu, images, &data.spec).expect("no failure");
    let expected = bb_nn::eval::predict(&mut cpu, images, &data.spec).expect("finite logits");
    assert_eq!(found, expected);
    assert_eq!(gpu.precision(), Precision::Bf16);
}

/// Vectors that live on the device, and what the host does to them in between.
#[test]
fn vectors_are_the_same_wherever_they_are() {
    let Some((device, _alone)) = device() else {
        return;
    };
    let (cpu, input, labels) = case(2);
    let gradient = |mut net: Net| {
        let mut grads = net.zeros();
        net.loss_grad(&input, &labels, Mode::Eval, &mut grads);
        grads
    };
    let (a, b) = (gradient(cpu.clone()), gradient(cpu.on(&device).unwrap()));
    let work = |mut v: Flat| {
        let mut other = v.clone();
        v.scale(0.5);
        v.add_scaled(2.0, &other);
        v.data_mut()[7] = 3.0;
        v.mix(0.25, &other, -1.0);
        let mut norms = vec![v.norm_l2()];
        norms.extend(v.norm_l2_per_tensor());
        norms.extend(v.channel_l1(3).into_iter().map(f64::from));
        other.add_normalised(&v, 0.5, NormScope::PerTensor);
        v.add_normalised(&other, 2.0, NormScope::Global);
        norms.push(v.norm_l2());
        v.clip_norm(1.5);
        norms.push(v.norm_l2());
        v.clip_norm(10.0);
        other.clamp(-0.3, 0.2);
        other.sign_step(&v, 0.125, 0.25);
        assert_eq!(v.first_not_finite(), None);
        let mut copy = v.clone();
        copy.copy_from(&other);
        copy.add_scaled(f32::INFINITY, &v);
        let name = copy.first_not_finite().map(str::to_owned);
        assert_eq!(name.as_deref(), Some("conv1.weight"));
        (norms, v.data().to_vec(), other.data().to_vec())
    };
    let ((norms_a, a, other_a), (norms_b, b, other_b)) = (work(a), work(b));
    assert_relative("elements", &b, &a, 1e-3);
    assert_relative("other elements", &other_b, &other_a, 1e-3);
    assert_eq!(norms_a.len(), norms_b.len());
    for (a, b) in norms_a.iter().zip(&norms_b) {
        assert!((a - b).abs() <= 1e-3 * a, "{a} {b}");
    }
}

#[test]
fn adam_is_the_cpus() {
    let Some((device, _alone)) = device() else {
        return;
    };
    let (cpu, input, labels) = case(2);
    let train = |mut net: Net, new: fn(&Flat, (f64, f64)) -> Adam| {
        let mut grads = net.zeros();
        // Adam divides by the gradient's size, so rounding shows where a gradient is nearly 0.
        net.loss_grad(&input, &labels, Mode::Eval, &mut grads);
        let rounded = random(grads.data().len(), 6);
        grads.data_mut().copy_from_slice(&rounded);
        let mut adam = new(net.params(), (0.5, 0.9));
        adam.weight_decay = 0.1;
        // Gradients that become smaller, so that the largest mean square is an earlier one.
        for _ in 0..3 {
            adam.step(net.params_mut(), &grads, 0.01);
            grads.scale(0.5);
        }
        net.take_failure().expect("no failure");
        net
    };
    let gpu = cpu.clone().on(&device).unwrap();
    let mut expected = Vec::new();
    for new in [Adam::new, Adam::amsgrad] {
        let (here, there) = (train(cpu.clone(), new), train(gpu.clone(), new));
        assert_same_tensors("parameter", there.params(), here.params(), 1e-6);
        expected.push(here);
    }
    assert!(expected[0].params().data() != expected[1].params().data());
}

/// Two states of a network on the device and on the CPU.
#[test]
fn neurons_are_measured_alike() {
    let Some((device, _alone)) = device() else {
        return;
    };
    let (before, input, labels) = case(2);
    let moved = |mut net: Net| {
        let mut grads = net.zeros();
        net.loss_grad(&input, &labels, Mode::Eval, &mut grads);
        net.params_mut().add_scaled(0.1, &grads);
        net
    };
    let gpu = moved(before.clone().on(&device).unwrap());
    // The same numbers on the host, so that both sides start from equal bits.
    let mut cpu = before.clone();
    cpu.params_mut()
        .data_mut()
        .copy_from_slice(gpu.params().data());
    let (old, there, here) = (before.params(), gpu.params(), cpu.params());
    let convolutions: Vec<usize> = (0..old.tensors())
        .filter(|&i| old.layout().entries()[i].shape.len() == 4)
        .collect();
    for &i in &convolutions {
        let name = &old.layout().entries()[i].name;
        let (a, b) = (
            neurons::weight_change(old, there, i),
            neurons::weight_change(old, here, i),
        );
        assert_relative(name, &a, &b, 1e-6);
        let (a, b) = (
            neurons::distances(there, old, i),
            neurons::distances(here, old, i),
        );
        assert_relative(name, &a, &b, 1e-6);
        let (a, b) = (
            neurons::spectral_norms(there, i),
            neurons::spectral_norms(here, i),
        );
        assert_relative(name, &a, &b, 1e-6);
    }
    let picks: Vec<Vec<bool>> = convolutions
        .iter()
        .map(|&i| {
            let channels = old.layout().entries()[i].shape[0];
            (0..channels).map(|c| (c + i) % 3 == 0).collect()
        })
        .collect();
    let chosen: Vec<Chosen<'_>> = convolutions
        .iter()
        .zip(&picks)
        .map(|(&tensor, channels)| Chosen { tensor, channels })
        .collect();
    for k in [1, 10, 777] {
        let threshold = neurons::kth_largest_change(old, there, &chosen, k);
        let expected = neurons::kth_largest_change(old, here, &chosen, k);
        assert_eq!(threshold.to_bits(), expected.to_bits(), "{k}");
        let (mut a, mut b) = (old.clone(), old.clone());
        let cleared = neurons::clear_changed(&mut a, there, &chosen, threshold);
        assert!(cleared >= k);
        assert_eq!(
            cleared,
            neurons::clear_changed(&mut b, here, &chosen, threshold)
        );
        assert_eq!(a.data(), b.data());
    }
    device.take_failure().expect("no failure");
}

#[test]
fn a_copy_on_the_device_lives_there() {
    let Some((device, _alone)) = device() else {
        return;
    };
    let Some(before) = counts() else {
        eprintln!("skipped: a real device does not count");
        return;
    };
    let (cpu, input, labels) = case(2);
    let mut net = cpu.on(&device).unwrap();
    let (mut grads, mut kept) = (net.zeros(), net.zeros());
    net.loss_grad(&input, &labels, Mode::Eval, &mut grads);
    let from_device = counts().expect("it counts")[5];
    // The step of a perturbation, which must not need the host.
    kept.copy_from(net.params());
    net.params_mut()
        .add_normalised(&grads, 0.05, NormScope::PerTensor);
    net.params_mut().copy_from(&kept);
    grads.clip_norm(1.0);
    assert_eq!(counts().expect("it counts")[5], from_device);
    assert!(from_device > before[5], "the loss was read");
    assert_eq!(net.params().data(), kept.data());
}

/// What the emulated device counts: kernels, convolutions, allocations, frees, copies to the device, copies from it,
/// copies inside it, fills.
type Counts = [u64; 8];

/// The emulator's counters, `None` on a real device.
fn counts() -> Option<Counts> {
    // SAFETY: the library is loaded already, and the symbol has this type wherever it exists.
    unsafe {
        let driver = libloading::Library::new("libcuda.so.1").ok()?;
        let read: libloading::Symbol<'_, unsafe extern "C" fn(*mut u64)> =
            driver.get(b"emulator_counts").ok()?;
        let mut counts = [0; 8];
        read(counts.as_mut_ptr());
        Some(counts)
    }
}

/// One epoch of training over `images` synthetic images, four a step.
fn fit_images(
    (compute, precision, width): (&Compute, Precision, usize),
    images: usize,
    epochs: usize,
) -> (Net, Vec<EpochRow>) {
    let options = OpenOptions {
        train_limit: Some(images),
        test_limit: Some(4),
        ..OpenOptions::default()
    };
    let data = bb_core::data::open("synthetic", None, &options).unwrap();
    let spec = ArchSpec::new("preactresnet18", width, data.spec.classes).unwrap();
    let net = Net::new(&spec, 0).on(compute).unwrap();
    let mut net = net.with_precision(precision).unwrap();
    let recipe = Recipe {
        epochs,
        batch_size: 4,
        // So low that rounding does not grow from step to step.
        lr: 1e-4,
        ..Recipe::default()
    };
    let mut rows = Rows(Vec::new());
    let none = Checkpoints::none();
    fit(
        &mut net,
        &data.train,
        &data.spec,
        &recipe,
        5,
        &none,
        &mut rows,
    )
    .unwrap();
    (net, rows.0)
}

/// Keeps what each epoch gave, and leaves the batches to the device.
struct Rows(Vec<EpochRow>);

impl Hooks for Rows {
    fn sees_batches(&self) -> bool {
        false
    }

    fn epoch(&mut self, _: &mut Net, row: &EpochRow) -> Result<(), TrainError> {
        self.0.push(row.clone());
        Ok(())
    }
}

#[test]
fn fit_on_the_device_is_fit_on_the_cpu() {
    let Some((device, _alone)) = device() else {
        return;
    };
    let (expected, expected_rows) = fit_images((&Compute::Cpu, Precision::F32, 4), 14, 2);
    let (found, rows) = fit_images((&device, Precision::F32, 4), 14, 2);
    assert_same_tensors("parameter", found.params(), expected.params(), 1e-4);
    // The running statistics show that the same images came in the same order with the same crops and flips.
    assert_same_tensors("statistics", found.buffers(), expected.buffers(), 1e-4);
    assert_eq!(rows.len(), expected_rows.len());
    for (a, b) in rows.iter().zip(&expected_rows) {
        assert!((a.train_loss - b.train_loss).abs() < 1e-3, "{a:?} {b:?}");
        assert_eq!(
            (a.train_correct, a.train_total),
            (b.train_correct, b.train_total)
        );
    }
}

#[test]
fn pytorchs_numbers() {
    let Some((device, _alone)) = device() else {
        return;
    };
    tiny::check(&device);
}

/// A pass is recorded when it is asked for the second time; that must not be seen, whatever happens in between.
#[test]
fn a_recorded_pass_is_the_pass_call_by_call() {
    let Some((device, _alone)) = device() else {
        return;
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let (net, input, labels) = case(6);
        let mut net = net.on(&device).unwrap().with_precision(precision).unwrap();
        let mut sgd = Sgd::new(net.params(), 0.9, 5e-4, false);
        let mut grads = net.zeros();
        for step in 0..12 {
            // A copy has recorded nothing yet.
            let (mut fresh, mut expected) = (net.clone(), net.zeros());
            let count = if step == 7 { 4 } else { 6 };
            let batch = Input {
                n: count,
                data: random(count * 16 * 16 * 3, step),
                ..input
            };
            let labels = &labels[..count];
            let mode = if step == 5 { Mode::Eval } else { Mode::Train };
            if step % 2 == 0 {
                let loss = fresh.loss_grad(&batch, labels, mode, &mut expected);
                assert_eq!(net.loss_grad(&batch, labels, mode, &mut grads), loss);
            } else {
                let want = fresh.loss_grad_input(&batch, labels, mode, &mut expected);
                let found = net.loss_grad_input(&batch, labels, mode, &mut grads);
                assert_eq!(found, want, "{precision}, step {step}");
                if mode == Mode::Eval {
                    // Without the parameters' gradients it is the same.
                    let alone = net.loss_input_gradient(&batch, labels, mode);
                    assert_eq!(alone, want, "{precision}, step {step}");
                }
            }
            net.take_failure().expect("no failure");
            assert_eq!(grads.data(), expected.data(), "{precision}, step {step}");
            assert_eq!(net.buffers().data(), fresh.buffers().data());
            sgd.step(net.params_mut(), &grads, 0.01);
            if step == 8 {
                // On the host, from where it must come back.
                net.params_mut().data_mut()[0] += 0.5;
            }
            if step == 9 {
                // Takes and gives buffers of all sizes.
                net.forward(&batch, Mode::Eval);
            }
        }
    }
}

/// What a step costs, as the difference of two trainings: at most 250 launches, and nothing that stops the device.
#[test]
fn a_training_step_keeps_its_launch_budget() {
    let Some((device, _alone)) = device() else {
        return;
    };
    if counts().is_none() {
        eprintln!("skipped: a real device does not count");
        return;
    }
    for precision in [Precision::F32, Precision::Bf16] {
        check_budget(&device, precision);
    }
}

fn check_budget(device: &Compute, precision: Precision) {
    // Of narrower networks some tensors begin where they must be copied to be read.
    let case = (device, precision, 8);
    // Makes plans and buffers, which the device then keeps.
    fit_images(case, 8, 1);
    let cost = |images| {
        let before = counts().expect("it counts");
        fit_images(case, images, 1);
        let after = counts().expect("it counts");
        after
            .iter()
            .zip(before)
            .map(|(a, b)| a - b)
            .collect::<Vec<u64>>()
    };
    let (two, four) = (cost(8), cost(16));
    let [
        kernels,
        convolutions,
        allocations,
        _,
        to_device,
        from_device,
        inside,
        fills,
    ] = std::array::from_fn(|i| (four[i] - two[i]) / 2);
    let launches = kernels + convolutions + inside + fills;
    assert!(launches <= 250, "{launches} launches");
    assert_eq!((allocations, to_device, from_device), (0, 0, 0));
    eprintln!(
        "{precision}: {kernels} kernels, {convolutions} convolutions, {inside} copies inside, {fills} fills"
    );
}

#[test]
fn a_network_with_operations_of_the_cpu_is_refused() {
    let Some((device, _alone)) = device() else {
        return;
    };
    for (arch, message) in [
        (
            "vgg19_bn",
            "`vgg19_bn-w1` cannot run on a GPU: convolution with bias is computed on the CPU only",
        ),
        (
            "resnet18",
            "`resnet18-w1` cannot run on a GPU: max pooling is computed on the CPU only",
        ),
    ] {
        let net = Net::new(&ArchSpec::new(arch, 1, CLASSES).unwrap(), 0);
        let error = net.on(&device).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_kept_pass_is_computed_on_the_cpu() {
    let Some((device, _alone)) = device() else {
        return;
    };
    let (mut cpu, input, labels) = case(4);
    let mut gpu = cpu.clone().on(&device).unwrap();
    let mut grads = [cpu.zeros(), gpu.zeros()];
    // Its tensors are on the device now.
    gpu.loss_grad(&input, &labels, Mode::TrainKeepStats, &mut grads[1]);
    let cotangent = random(4 * CLASSES, 5);
    for (net, grads) in [&mut cpu, &mut gpu].into_iter().zip(&mut grads) {
        let tape = net.record(&input, Mode::Train);
        net.backward(tape, &[("output", &cotangent)], grads)
            .unwrap();
    }
    assert!(grads[0].data() == grads[1].data());
    assert!(cpu.buffers().data() == gpu.buffers().data());
}
