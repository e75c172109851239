//! Speed of a training step or a forward pass, as one JSON line.
//!
//! `cargo run --release -p bb-nn --example bench -- --width 64 --batch 128 --mode train`
//!
//! Images are random and already in memory, so only the network's own work is timed: for `train` forward,
//! cross-entropy, backward and SGD with momentum 0.9 and weight decay 5e-4; for `eval` a forward pass in eval mode.

use bb_nn::data::Input;
use bb_nn::net::{Mode, Net};
use bb_nn::optim::Sgd;
use bb_nn::{ArchSpec, Precision};
use clap::{Parser, ValueEnum};
use std::time::Instant;

#[derive(Clone, Copy, ValueEnum, PartialEq)]
enum What {
    Train,
    Eval,
}

#[derive(Parser)]
struct Options {
    /// Channels of the first stage.
    #[arg(long, default_value_t = 64)]
    width: usize,
    /// Images per step.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// What is timed.
    #[arg(long, value_enum, default_value = "train")]
    mode: What,
    /// How convolutions multiply: `f32` or `bf16`.
    #[arg(long, default_value_t)]
    precision: Precision,
    /// Timed steps in one repeat.
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// Steps before the clock starts.
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Repeats; the median is reported.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Worker threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Image side in pixels.
    #[arg(long, default_value_t = 32)]
    image: usize,
}

/// Multiply-adds times two of one forward pass per image, convolutions and head.
fn forward_flops(width: usize, image: usize, classes: usize) -> f64 {
    let conv = |side: usize, cin: usize, cout: usize, k: usize| {
        (2 * side * side * cin * cout * k * k) as f64
    };
    let mut total = conv(image, 3, width, 3);
    let mut cin = width;
    for stage in 0..4 {
        let (side, cout) = (image >> stage, width << stage);
        total += conv(side, cin, cout, 3) + 3.0 * conv(side, cout, cout, 3);
        if cin != cout {
            total += conv(side, cin, cout, 1);
        }
        cin = cout;
    }
    total + (2 * cin * classes) as f64
}

/// GFLOP/s of a large matrix product on all threads: what the machine can do in `f32`.
fn peak(threads: usize) -> f64 {
    let n = 1536;
    let (a, b, mut c) = (vec![0.5f32; n * n], vec![0.25f32; n * n], vec![0f32; n * n]);
    let mut best = 0f64;
    for _ in 0..6 {
        let start = Instant::now();
        // SAFETY: three row-major n x n matrices in vectors of n * n floats.
        unsafe {
            gemm::gemm(
                n,
                n,
                n,
                c.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.as_ptr(),
                1,
                n as isize,
                b.as_ptr(),
                1,
                n as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(threads),
            );
        }
        best = best.max(2.0 * (n * n * n) as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let o = Options::parse();
    rayon::ThreadPoolBuilder::new()
        .num_threads(o.threads)
        .build_global()?;
    let classes = 10;
    let mut net = Net::new(&ArchSpec::new("preactresnet18", o.width, classes)?, 0)
        .with_precision(o.precision)?;
    let mut stream = bb_core::rng::stream(0, "bench", 0, 0);
    let data = (0..o.batch * o.image * o.image * 3)
        .map(|_| bb_core::rng::unit_f32(&mut stream) * 2.0 - 1.0)
        .collect();
    let input = Input {
        n: o.batch,
        h: o.image,
        w: o.image,
        data,
    };
    let labels: Vec<u32> = (0..o.batch)
        .map(|_| bb_core::rng::below(&mut stream, classes as u64) as u32)
        .collect();
    let mut grads = net.zeros();
    let mut sgd = Sgd::new(net.params(), 0.9, 5e-4, false);
    let peak = peak(o.threads);
    let mut step = || match o.mode {
        What::Train => {
            let loss = net.loss_grad(&input, &labels, Mode::Train, &mut grads);
            sgd.step(net.params_mut(), &grads, 0.01);
            loss.mean
        }
        What::Eval => net.forward(&input, Mode::Eval).iter().sum(),
    };
    for _ in 0..o.warmup {
        step();
    }
    let mut last = 0.0;
    let mut rates: Vec<f64> = (0..o.repeats.max(1))
        .map(|_| {
            let start = Instant::now();
            for _ in 0..o.steps {
                last = step();
            }
            (o.batch * o.steps) as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    let median = rates[rates.len() / 2];
    // The backward pass costs twice the forward pass, less the input gradient of the first layer.
    let passes = if o.mode == What::Train { 3.0 } else { 1.0 };
    let gflops = median * forward_flops(o.width, o.image, classes) * passes / 1e9;
    let line = serde_json::json!({
        "width": o.width, "batch": o.batch, "mode": if o.mode == What::Train { "train" } else { "eval" },
        "precision": o.precision, "threads": o.threads,
        "img_per_s_median": (median * 100.0).round() / 100.0,
        "img_per_s_min": (rates[0] * 100.0).round() / 100.0,
        "img_per_s_max": (rates[rates.len() - 1] * 100.0).round() / 100.0,
        "gflops_direct": gflops.round(), "gemm_peak_gflops": peak.round(),
        "share_of_peak": (gflops / peak * 1000.0).round() / 1000.0, "last": last,
    });
    println!("{line}");
    Ok(())
}
