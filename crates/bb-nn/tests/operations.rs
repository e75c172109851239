//! PyTorch's numbers for single operations and for Adam, made by `golden_data/networks.py` and kept beside it.

mod common;

use bb_nn::Net;
use bb_nn::kernels::{image, pool, vector, warp};
use bb_nn::model::ModelSpec;
use bb_nn::optim::Adam;
use candle_core::Tensor;
use common::{Tensors, assert_close, assert_relative, floats, golden, load};
use std::path::Path;

/// An image batch in the engine's order.
fn nhwc(t: &Tensor) -> Vec<f32> {
    floats(&t.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap())
}

fn sizes(t: &Tensor) -> (usize, usize, usize) {
    let (_, c, h, w) = t.dims4().unwrap();
    (h, w, c)
}

/// A forward and a backward kernel against the file's `pool.<name>.*`.
fn check(all: &Tensors, name: &str, run: impl FnOnce(&[f32], &mut [f32], &[f32], &mut [f32])) {
    let [y, dy, dx] = ["y", "dy", "dx"].map(|part| nhwc(&all[&format!("pool.{name}.{part}")]));
    let x = nhwc(&all["pool.x"]);
    // What the buffers held before must not matter.
    let (mut found, mut gradient) = (vec![f32::NAN; y.len()], vec![f32::NAN; dx.len()]);
    run(&x, &mut found, &dy, &mut gradient);
    assert_close(name, &found, &y, 1e-6);
    assert_close(name, &gradient, &dx, 2e-6);
}

#[test]
fn golden_pooling_and_upsampling() {
    let all = golden("operations");
    let at = sizes(&all["pool.x"]);
    for (name, k, stride, pad) in [("max3", 3, 2, 1), ("max2", 2, 2, 0)] {
        check(&all, name, |x, y, dy, dx| {
            let window = pool::Window { k, stride, pad };
            let mut places = vec![255; y.len()];
            pool::max(x, at, window, y, &mut places);
            pool::max_gradient(dy, &places, at, window, dx);
        });
    }
    for (name, to) in [("average_down", (4, 3)), ("average_up", (11, 13))] {
        check(&all, name, |x, y, dy, dx| {
            pool::adaptive_average(x, at, to, y);
            pool::adaptive_average_gradient(dy, at, to, dx);
        });
    }
    check(&all, "bilinear", |x, y, dy, dx| {
        image::double(x, at, y);
        image::double_gradient(dy, at, dx);
    });
    check(&all, "nearest", |x, y, dy, dx| {
        image::repeat(x, at, 3, y);
        image::repeat_gradient(dy, at, 3, dx);
    });
}

#[test]
fn golden_warps() {
    let all = golden("operations");
    let (x, at) = (nhwc(&all["sample.x"]), sizes(&all["sample.x"]));
    for name in ["one", "each"] {
        let expected = &all[&format!("sample.by_{name}")];
        let (h, w, _) = sizes(expected);
        let mut y = vec![f32::NAN; expected.elem_count()];
        let grid = floats(&all[&format!("sample.{name}")]);
        warp::grid_sample(&x, at, &grid, (h, w), &mut y);
        assert_close(name, &y, &nhwc(expected), 2e-6);
    }
    let expected = &all["bicubic.y"];
    let (h, w, _) = sizes(expected);
    let mut y = vec![f32::NAN; expected.elem_count()];
    let small = &all["bicubic.x"];
    image::bicubic(&nhwc(small), sizes(small), (h, w), &mut y);
    assert_close("bicubic", &y, &nhwc(expected), 1e-5);
    for i in 0..4 {
        let degrees = all[&format!("rotate{i}.degrees")].to_vec0::<f64>().unwrap();
        let mut y = vec![f32::NAN; x.len()];
        warp::rotate(&x, at, degrees, &mut y);
        assert!(
            y == nhwc(&all[&format!("rotate{i}.y")]),
            "turned by {degrees}"
        );
    }
}

/// The warp of the original research code, from the folder that `BB_SHARED` names.
#[test]
#[ignore = "needs BB_SHARED"]
fn golden_wanet() {
    let shared = std::env::var_os("BB_SHARED").expect("BB_SHARED names the folder of the goldens");
    let all = load(&Path::new(&shared).join("golden/e_triggers.safetensors"));
    let raw = floats(&all["wanet.ins_raw"]);
    let mean = raw.iter().map(|v| v.abs()).sum::<f32>() / raw.len() as f32;
    let k = all["wanet.ins_raw"].dims()[2];
    let scaled = all["wanet.ins_raw"].affine(1.0 / f64::from(mean), 0.0);
    let mut noise = vec![0.0; 32 * 32 * 2];
    image::bicubic(&nhwc(&scaled.unwrap()), (k, k, 2), (32, 32), &mut noise);
    assert_close("noise", &noise, &floats(&all["wanet.noise_grid"]), 1e-5);

    let x = &all["wanet.in_norm"];
    let grid = floats(&all["wanet.grid"]);
    let cross: Vec<f32> = floats(&all["wanet.cross_rand"])
        .chunks(grid.len())
        .flat_map(|rand| rand.iter().zip(&grid))
        .map(|(rand, grid)| (grid + rand / 32.0).clamp(-1.0, 1.0))
        .collect();
    for (name, grid) in [
        ("wanet.out_float", &grid),
        ("wanet.cross_out_float", &cross),
    ] {
        let mut y = vec![0.0; x.elem_count()];
        warp::grid_sample(&nhwc(x), sizes(x), grid, (32, 32), &mut y);
        // The file has it as an image again, with CIFAR-10's mean and standard deviation.
        for pixel in y.chunks_exact_mut(3) {
            let factors = [(0.247, 0.4914), (0.243, 0.4822), (0.261, 0.4465)];
            for (v, (std, mean)) in pixel.iter_mut().zip(factors) {
                *v = *v * std + mean;
            }
        }
        assert_close(name, &y, &nhwc(&all[name]), 2e-5);
    }
}

#[test]
fn golden_adam() {
    let all = golden("operations");
    // Any 300 parameters will do: the first ones of a small network.
    let spec = ModelSpec::ssba_decoder(32, 4, 2).unwrap();
    for (case, betas, weight_decay) in [(0, (0.9, 0.999), 0.0), (1, (0.5, 0.9), 0.05)] {
        let part = |name: &str| floats(&all[&format!("adam{case}.{name}")]);
        let mut net = Net::new(&spec, 0);
        let mut grads = net.zeros();
        let start = part("start");
        let n = start.len();
        net.params_mut().data_mut()[..n].copy_from_slice(&start);
        let mut adam = Adam::new(net.params(), betas);
        adam.weight_decay = weight_decay;
        for (i, g) in part("grads").chunks(n).enumerate() {
            grads.data_mut()[..n].copy_from_slice(g);
            if i == 2 {
                // As a checkpoint would.
                let mut again = Adam::new(net.params(), betas);
                again.weight_decay = weight_decay;
                again.moments_mut().0.copy_from(adam.moments().0);
                again.moments_mut().1.copy_from(adam.moments().1);
                again.set_steps(adam.steps());
                adam = again;
            }
            adam.step(net.params_mut(), &grads, 0.01);
        }
        assert_eq!(adam.steps(), 4);
        assert_close("parameters", &net.params().data()[..n], &part("end"), 1e-6);
        let (m, v) = adam.moments();
        for (name, found) in [("m", m), ("v", v)] {
            // Four kinds of parameters, whose gradients are of very different sizes.
            for kind in 0..4 {
                let of_kind =
                    |x: &[f32]| -> Vec<f32> { x.iter().skip(kind).step_by(4).copied().collect() };
                let (found, expected) = (of_kind(&found.data()[..n]), of_kind(&part(name)));
                assert_relative(name, &found, &expected, 1e-6);
            }
        }
    }
}

/// The steps as PyTorch's documentation states them, in `f64` and for one parameter.
struct Scalar {
    w: f64,
    m: f64,
    v: f64,
    top: f64,
}

impl Scalar {
    fn step(&mut self, g: f64, t: i32, (lr, decay): (f64, f64), amsgrad: bool) {
        let (beta1, beta2) = (0.9_f64, 0.999_f64);
        let g = g + decay * self.w;
        self.m = beta1 * self.m + (1.0 - beta1) * g;
        self.v = beta2 * self.v + (1.0 - beta2) * g * g;
        self.top = self.top.max(self.v);
        let second = if amsgrad { self.top } else { self.v };
        let denominator = (second / (1.0 - beta2.powi(t))).sqrt() + 1e-8;
        self.w -= lr * self.m / (1.0 - beta1.powi(t)) / denominator;
    }
}

#[test]
fn amsgrad_divides_by_the_largest_mean_square() {
    // One large gradient, after which the mean square falls for two thousand steps of small ones.
    let gradient = |t: i32, i: usize| {
        let size = if t == 1 { 1.0 } else { 0.01 };
        size * (1.0 + i as f64) * if i.is_multiple_of(2) { 1.0 } else { -1.0 }
    };
    let spec = ModelSpec::ssba_decoder(32, 4, 2).unwrap();
    let n = 40;
    let train = |amsgrad: bool| {
        let mut net = Net::new(&spec, 0);
        let mut grads = net.zeros();
        let betas = (0.9, 0.999);
        let new = |net: &Net| {
            let mut adam = if amsgrad {
                Adam::amsgrad(net.params(), betas)
            } else {
                Adam::new(net.params(), betas)
            };
            adam.weight_decay = 1e-3;
            adam
        };
        let mut adam = new(&net);
        let mut expected: Vec<Scalar> = net.params().data()[..n]
            .iter()
            .map(|&w| Scalar {
                w: f64::from(w),
                m: 0.0,
                v: 0.0,
                top: 0.0,
            })
            .collect();
        for t in 1..=2000 {
            for (i, (value, own)) in grads.data_mut()[..n]
                .iter_mut()
                .zip(&mut expected)
                .enumerate()
            {
                *value = gradient(t, i) as f32;
                own.step(gradient(t, i), t, (1e-3, 1e-3), amsgrad);
            }
            if t == 1000 {
                // As a checkpoint would.
                let mut again = new(&net);
                let vectors = adam.vectors_mut();
                assert_eq!(vectors.len(), if amsgrad { 3 } else { 2 });
                for ((name, vector), (same, into)) in vectors.into_iter().zip(again.vectors_mut()) {
                    assert_eq!(name, same);
                    into.copy_from(vector);
                }
                again.set_steps(adam.steps());
                adam = again;
            }
            adam.step(net.params_mut(), &grads, 1e-3);
        }
        for (found, own) in net.params().data()[..n].iter().zip(&expected) {
            assert!(
                (f64::from(*found) - own.w).abs() < 1e-4,
                "{found} {}",
                own.w
            );
        }
        if let Some(largest) = adam.largest() {
            for (i, (found, own)) in largest.data()[..n].iter().zip(&expected).enumerate() {
                let relative = (f64::from(*found) - own.top).abs() / own.top;
                assert!(relative < 1e-5, "{i}: {relative:e}");
                assert!(adam.moments().1.data()[i] < 0.5 * found, "{i}");
            }
        }
        assert_eq!(adam.largest().is_some(), amsgrad);
        net.params().data()[..n].to_vec()
    };
    let (with, without) = (train(true), train(false));
    let apart = with
        .iter()
        .zip(&without)
        .filter(|(a, b)| (*a - *b).abs() > 1e-2);
    assert_eq!(apart.count(), n, "the two have to be told apart");
}

#[test]
fn sums_and_steps_are_the_same_on_any_number_of_threads() {
    let n = 3 << 15;
    let data = |seed: u64| -> Vec<f32> {
        let mut stream = bb_core::rng::stream(seed, "operation tests", 0, 0);
        (0..n)
            .map(|_| bb_core::rng::unit_f32(&mut stream) - 0.5)
            .collect()
    };
    let run = |threads| {
        let workers = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        workers.install(|| {
            let (x, dy) = (data(1), data(2));
            let sums = bb_nn::kernels::norm::column_sums(&x, 6);
            let (mut w, mut m, mut v) = (data(3), data(4), vec![1.0; n]);
            let by = vector::AdamStep {
                step: 0.1,
                share1: 0.1,
                beta2: 0.99,
                share2: 0.01,
                eps: 1e-8,
                weight_decay: 0.1,
                bias2_sqrt: 0.5,
            };
            vector::adam(&mut w, &mut m, &mut v, &dy, by);
            let mut top = data(5);
            vector::amsgrad(&mut w, &mut m, &mut v, &mut top, &dy, by);
            (sums, w, m, v, top)
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
    let expected: f64 = data(1).iter().step_by(6).map(|v| f64::from(*v)).sum();
    assert!((f64::from(one.0[0]) - expected).abs() < 1e-3);
}
