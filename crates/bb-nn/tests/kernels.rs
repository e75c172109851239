//! The kernels against plain loops in `f64`, over random shapes, and against themselves on another number of threads.

use bb_nn::kernels::conv::{self, Add, ConvShape};
use bb_nn::kernels::precision::{Precision, supported};
use bb_nn::kernels::{linear, loss, norm, pool, vector};
use bb_nn::ops;
use candle_core::{Device, Tensor, Var};
use proptest::prelude::*;

/// Reproducible values in -0.5..0.5.
fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut stream = bb_core::rng::stream(seed, "kernel tests", 0, len as u64);
    (0..len)
        .map(|_| bb_core::rng::unit_f32(&mut stream) - 0.5)
        .collect()
}

fn assert_near(name: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*f) - e).abs() <= tolerance * (1.0 + e.abs()),
            "{name}[{i}]: {f} instead of {e}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn statistics_are_mean_and_variance(rows in 1usize..700, c in 1usize..40, offset in -50f32..50.0, seed in 0u64..1000) {
        let x: Vec<f32> = random(rows * c, seed).iter().map(|v| v + offset).collect();
        let (mean, var) = norm::statistics(&x, c);
        for i in 0..c {
            let column: Vec<f64> = x.iter().skip(i).step_by(c).map(|v| f64::from(*v)).collect();
            let m = column.iter().sum::<f64>() / rows as f64;
            let v = column.iter().map(|v| (v - m).powi(2)).sum::<f64>() / rows as f64;
            // Blocks are summed in f32, so the error grows with the size of the values.
            prop_assert!((f64::from(mean[i]) - m).abs() < 1e-6 * (1.0 + m.abs()), "{} {m}", mean[i]);
            prop_assert!((f64::from(var[i]) - v).abs() < 1e-5, "{} {v}", var[i]);
        }
    }

    #[test]
    fn loss_gradient_rows_sum_to_zero(n in 1usize..20, classes in 1usize..30, seed in 0u64..1000) {
        let logits: Vec<f32> = random(n * classes, seed).iter().map(|v| v * 40.0).collect();
        let labels: Vec<u32> = (0..n).map(|i| (i * 7 % classes) as u32).collect();
        let mut gradient = vec![0.0; logits.len()];
        let loss = loss::cross_entropy(&logits, &labels, classes, Some(&mut gradient));
        prop_assert!(loss.mean.is_finite() && loss.mean >= 0.0);
        for row in gradient.chunks_exact(classes) {
            prop_assert!(row.iter().sum::<f32>().abs() < 1e-6);
        }
    }
}

#[test]
fn same_bits_on_any_number_of_threads() {
    // The first is multiplied directly, the others by Winograd's form, with few and with many weights.
    let shapes = [(9, 16, 24, 40), (40, 16, 32, 48), (8, 4, 256, 256)];
    for (n, h, cin, cout) in shapes {
        let s = ConvShape {
            n,
            h,
            w: h,
            cin,
            cout,
            k: 3,
            stride: 1,
            pad: 1,
        };
        let (x, w, dy) = (
            random(s.input_len(), 1),
            random(s.weight_len(), 2),
            random(s.output_len(), 3),
        );
        let run = |precision, threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("a thread pool");
            pool.install(|| {
                let mut y = vec![0.0; s.output_len()];
                let mut dx = vec![0.0; s.input_len()];
                let mut dw = vec![0.0; s.weight_len()];
                conv::forward(&s, precision, &x, &w, Add::Nothing, &mut y);
                conv::input_gradient(&s, precision, &dy, &w, Add::Nothing, &mut dx);
                conv::weight_gradient(&s, precision, &x, &dy, &mut dw);
                let (mean, var) = norm::statistics(&y, s.cout);
                (y, dx, dw, mean, var, vector::sum_of_squares(&x).to_bits())
            })
        };
        for precision in [Precision::F32, Precision::Bf16] {
            if supported(precision).is_err() {
                eprintln!("skipped {precision}: this processor lacks it");
                continue;
            }
            let one = run(precision, 1);
            assert!(
                one == run(precision, 2) && one == run(precision, 3),
                "{s:?}, {precision}"
            );
        }
    }
}

#[test]
fn a_bias_is_added_to_every_pixel() {
    // Directly, and by Winograd's form with few and with many weights; channels that fill no vector among them.
    let shapes = [
        (3, 9, 5, 7, 2),
        (9, 16, 24, 40, 3),
        (40, 16, 32, 48, 3),
        (8, 4, 256, 256, 3),
    ];
    for (n, h, cin, cout, k) in shapes {
        let s = ConvShape {
            n,
            h,
            w: h,
            cin,
            cout,
            k,
            stride: 1,
            pad: k / 2,
        };
        let (x, w, bias) = (
            random(s.input_len(), 1),
            random(s.weight_len(), 2),
            random(cout, 3),
        );
        let run = |add| {
            let mut y = vec![0.0; s.output_len()];
            conv::forward(&s, Precision::F32, &x, &w, add, &mut y);
            y
        };
        let mut expected = run(Add::Nothing);
        for row in expected.chunks_exact_mut(cout) {
            row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b);
        }
        assert!(run(Add::Bias(&bias)) == expected, "{s}");
        let mut sums = vec![0.0; cout];
        conv::bias_gradient(&expected, &mut sums);
        for (i, sum) in sums.iter().enumerate() {
            let column = expected.iter().skip(i).step_by(cout);
            let exact: f64 = column.map(|v| f64::from(*v)).sum();
            assert!(
                (f64::from(*sum) - exact).abs() < 1e-5 * (1.0 + exact.abs()),
                "{s}"
            );
        }
    }
}

#[test]
fn relu_has_no_gradient_at_zero() {
    let x = Var::from_slice(&[-1.0f32, 0.0, 2.0], 3, &Device::Cpu).unwrap();
    let grads = ops::relu(&x)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    assert_eq!(
        grads.get(&x).unwrap().to_vec1::<f32>().unwrap(),
        [0.0, 0.0, 1.0]
    );
    // The fused kernel: scale 1, shift 0, so the pre-activation is x itself.
    let (scale, shift, mean, invstd) = ([1.0], [0.0], [0.0], [1.0]);
    let saved = norm::Saved {
        scale: &scale,
        shift: &shift,
        mean: &mean,
        invstd: &invstd,
        relu: true,
    };
    let mut dy = [1.0, 1.0, 1.0];
    norm::input_gradient_in_place(&mut dy, &[-1.0, 0.0, 2.0], &saved, None);
    assert_eq!(dy, [0.0, 0.0, 1.0]);
}

#[test]
fn nan_is_not_hidden_by_relu() {
    let mut y = [0.0; 2];
    norm::apply(&[f32::NAN, -1.0], &[1.0], &[0.0], true, &mut y);
    assert!(y[0].is_nan() && y[1] == 0.0);
    assert!(!vector::all_finite(&[1.0, f32::NAN]) && !vector::all_finite(&[f32::INFINITY; 40]));
    assert!(vector::all_finite(&[1e38; 100]));
}

/// Every operation's gradient against central differences of its own forward pass.
#[test]
fn operations_have_the_gradient_of_their_forward_pass() {
    type Function = Box<dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>>;
    let labels = [1u32, 0];
    let cases: Vec<(&str, Vec<Vec<usize>>, Function)> = vec![
        (
            "conv2d",
            vec![vec![2, 3, 5, 4], vec![4, 3, 3, 3]],
            Box::new(|t| ops::conv2d(&t[0], &t[1], 2, 1)),
        ),
        (
            "batch_norm_train",
            vec![vec![2, 3, 2, 2], vec![3], vec![3]],
            Box::new(|t| ops::batch_norm_train(&t[0], &t[1], &t[2])),
        ),
        (
            "batch_norm_eval",
            vec![vec![2, 2, 2, 2], vec![2], vec![2]],
            Box::new(|t| {
                let mean = Tensor::new(&[0.1f32, -0.2], &Device::Cpu)?;
                let var = Tensor::new(&[0.5f32, 1.5], &Device::Cpu)?;
                ops::batch_norm_eval(&t[0], &t[1], &t[2], &mean, &var)
            }),
        ),
        (
            "global_average_pool",
            vec![vec![2, 3, 2, 2]],
            Box::new(|t| ops::global_average_pool(&t[0])),
        ),
        (
            "linear",
            vec![vec![3, 4], vec![2, 4], vec![2]],
            Box::new(|t| ops::linear(&t[0], &t[1], &t[2])),
        ),
        (
            "cross_entropy",
            vec![vec![2, 5]],
            Box::new(move |t| ops::cross_entropy(&t[0], &labels)),
        ),
    ];
    for (name, shapes, function) in cases {
        let vars: Vec<Var> = shapes
            .iter()
            .enumerate()
            .map(|(i, shape)| {
                let data = random(shape.iter().product(), 11 + i as u64);
                Var::from_vec(data, shape.as_slice(), &Device::Cpu).unwrap()
            })
            .collect();
        // A fixed random weighting makes the result a scalar that every output element matters to.
        let objective = |args: &[Tensor]| -> f64 {
            let y = function(args)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            y.iter()
                .zip(random(y.len(), 99))
                .map(|(a, b)| f64::from(*a) * f64::from(b))
                .sum()
        };
        let args: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = function(&args).unwrap();
        let weights =
            Tensor::from_vec(random(y.elem_count(), 99), y.shape(), &Device::Cpu).unwrap();
        let grads = (y * weights)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        for (i, var) in vars.iter().enumerate() {
            let analytic = grads
                .get(var)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            let values = args[i].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for j in 0..values.len() {
                let step = 1e-2;
                let at = |delta: f32| {
                    let mut moved = values.clone();
                    moved[j] += delta;
                    let mut args = args.clone();
                    args[i] = Tensor::from_vec(moved, shapes[i].as_slice(), &Device::Cpu).unwrap();
                    objective(&args)
                };
                let numeric = (at(step) - at(-step)) / (2.0 * f64::from(step));
                assert!(
                    (f64::from(analytic[j]) - numeric).abs() < 3e-3 * (1.0 + numeric.abs()),
                    "{name}, argument {i}, element {j}: {} instead of {numeric}",
                    analytic[j]
                );
            }
        }
    }
}

#[test]
fn operations_refuse_arguments_that_do_not_fit() {
    let t = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(ops::conv2d(&t(&[1, 3, 4, 4]), &t(&[8, 2, 3, 3]), 1, 1).is_err());
    assert!(ops::conv2d(&t(&[1, 3, 2, 2]), &t(&[8, 3, 5, 5]), 1, 0).is_err());
    assert!(ops::batch_norm_train(&t(&[1, 3, 4, 4]), &t(&[2]), &t(&[2])).is_err());
    assert!(ops::linear(&t(&[1, 3]), &t(&[2, 4]), &t(&[2])).is_err());
    let error = ops::cross_entropy(&t(&[1, 3]), &[3])
        .unwrap_err()
        .to_string();
    assert!(error.contains("label 3 is not below 3"), "{error}");
}

#[test]
fn pooling_and_linear_are_their_definitions() {
    let x = random(2 * 6 * 5, 1);
    let mut y = vec![0.0; 10];
    pool::global_average(&x, 6, 5, &mut y);
    let expected: Vec<f64> = (0..10)
        .map(|i| {
            (0..6)
                .map(|p| f64::from(x[(i / 5) * 30 + p * 5 + i % 5]))
                .sum::<f64>()
                / 6.0
        })
        .collect();
    assert_near("pool", &y, &expected, 1e-6);

    let (x, w, b) = (random(3 * 4, 2), random(2 * 4, 3), random(2, 4));
    let mut y = vec![0.0; 6];
    linear::forward(&x, &w, &b, 4, &mut y);
    let expected: Vec<f64> = (0..6)
        .map(|i| {
            let (r, o) = (i / 2, i % 2);
            f64::from(b[o])
                + (0..4)
                    .map(|k| f64::from(x[r * 4 + k]) * f64::from(w[o * 4 + k]))
                    .sum::<f64>()
        })
        .collect();
    assert_near("linear", &y, &expected, 1e-6);
}

#[test]
fn operations_agree_with_candles_own() {
    let tensor = |shape: &[usize], seed| {
        Tensor::from_vec(random(shape.iter().product(), seed), shape, &Device::Cpu).unwrap()
    };
    let close = |name: &str, a: &Tensor, b: &Tensor| {
        let b: Vec<f64> = b
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .map(|v| f64::from(*v))
            .collect();
        assert_near(
            name,
            &a.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            &b,
            1e-5,
        );
    };
    let (x, w) = (tensor(&[3, 5, 9, 7], 1), tensor(&[6, 5, 3, 3], 2));
    close(
        "conv2d",
        &ops::conv2d(&x, &w, 2, 1).unwrap(),
        &x.conv2d(&w, 1, 2, 1, 1).unwrap(),
    );
    let (logits, labels) = (tensor(&[4, 6], 3), [5u32, 0, 3, 3]);
    let target = Tensor::new(&labels, &Device::Cpu).unwrap();
    let theirs = candle_nn::loss::cross_entropy(&logits, &target).unwrap();
    close(
        "cross_entropy",
        &ops::cross_entropy(&logits, &labels).unwrap(),
        &theirs,
    );
    let (mean, var) = (tensor(&[5], 4), (tensor(&[5], 5) + 1.0).unwrap());
    let (gamma, beta) = (tensor(&[5], 6), tensor(&[5], 7));
    let theirs = candle_nn::BatchNorm::new(
        5,
        mean.clone(),
        var.clone(),
        gamma.clone(),
        beta.clone(),
        1e-5,
    )
    .unwrap();
    let theirs = candle_nn::ModuleT::forward_t(&theirs, &x, false).unwrap();
    close(
        "batch_norm",
        &ops::batch_norm_eval(&x, &gamma, &beta, &mean, &var).unwrap(),
        &theirs,
    );
}
