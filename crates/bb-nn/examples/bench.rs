//! Speed of a training step or a forward pass, as one JSON line.
//!
//! `cargo run --release -p bb-nn --example bench -- --width 64 --batch 128 --mode train`
//!
//! Images are random and already in memory, so only the network's own work is timed: for `train` forward,
//! cross-entropy, backward and SGD with momentum 0.9 and weight decay 5e-4; for `eval` a forward pass in eval mode.
//! On a GPU training is the second of two epochs over 8-bit images that are there already, so assembling batches is timed
//! and the start of a training is not; evaluation includes copying the images.
//! `gflops_direct` counts what the convolutions would need in direct form, so Winograd's form can take
//! `share_of_peak` (of a large `f32` matrix product) above 1.

use bb_core::cli::Device;
use bb_core::data::{Images, Split};
use bb_nn::data::{Input, LoaderOptions, batches};
use bb_nn::net::{Mode, Net};
use bb_nn::optim::Sgd;
use bb_nn::train::{Checkpoints, EpochRow, Hooks, Recipe, TrainError, fit};
use bb_nn::{ArchSpec, Compute, Flat, Precision};
use clap::{Parser, ValueEnum};
use std::time::{Duration, Instant};

const CLASSES: usize = 10;

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
    /// How convolutions multiply: `f32`, `bf16` or `tf32` (GPU).
    #[arg(long, default_value_t)]
    precision: Precision,
    /// Where: `auto`, `cpu` or `cuda:N`.
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
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
    /// Print the time of every operation to standard error.
    #[arg(long)]
    profile: bool,
    /// Assemble each batch from 8-bit images (crop, flip, normalise), as training does.
    #[arg(long)]
    assemble: bool,
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

/// The network and what a step needs.
struct Work {
    mode: What,
    on_gpu: bool,
    device: String,
    /// What the last step gave.
    last: f32,
    net: Net,
    split: Option<Split>,
    input: Input,
    labels: Vec<u32>,
    grads: Flat,
    sgd: Sgd,
    batches: u64,
}

impl Work {
    fn new(o: &Options) -> Result<Self, Box<dyn std::error::Error>> {
        let compute = Compute::open(o.device)?;
        let net = Net::new(&ArchSpec::new("preactresnet18", o.width, CLASSES)?, 0)
            .on(&compute)?
            .with_precision(o.precision)?;
        let mut stream = bb_core::rng::stream(0, "bench", 0, 0);
        let len = o.batch * o.image * o.image * 3;
        let pixels: Vec<u8> = (0..len)
            .map(|_| bb_core::rng::below(&mut stream, 256) as u8)
            .collect();
        let labels: Vec<u32> = (0..o.batch)
            .map(|_| bb_core::rng::below(&mut stream, CLASSES as u64) as u32)
            .collect();
        let input = Input {
            n: o.batch,
            h: o.image,
            w: o.image,
            data: pixels.iter().map(|v| f32::from(*v) / 127.5 - 1.0).collect(),
        };
        let split = if o.assemble {
            Some(Split {
                images: Images::new(o.batch, o.image, o.image, pixels)?,
                labels: labels.clone().into(),
            })
        } else {
            None
        };
        Ok(Self {
            mode: o.mode,
            on_gpu: !matches!(compute, Compute::Cpu),
            device: compute.name(),
            last: 0.0,
            grads: net.zeros(),
            sgd: Sgd::new(net.params(), 0.9, 5e-4, false),
            net,
            split,
            input,
            labels,
            batches: 0,
        })
    }

    fn step(&mut self) -> f32 {
        if let Some(split) = &self.split {
            let options = LoaderOptions {
                batch_size: split.len(),
                shuffle: true,
                drop_last: true,
                augment: true,
                seed: 0,
                purpose: "bench",
            };
            let spec = bb_core::data::spec("cifar10").expect("a known dataset");
            let batch = batches(split, spec, options, self.batches).next();
            let batch = batch.expect("one batch");
            (self.input, self.labels) = (batch.input, batch.labels);
            self.batches += 1;
        }
        match self.mode {
            What::Train => {
                let Self {
                    net,
                    input,
                    labels,
                    grads,
                    sgd,
                    ..
                } = self;
                let loss = net.loss_grad(input, labels, Mode::Train, grads);
                sgd.step(net.params_mut(), grads, 0.01);
                loss.mean
            }
            What::Eval => self.net.forward(&self.input, Mode::Eval).iter().sum(),
        }
    }

    /// The time that the steps take. A GPU gets all images at once, and sizes its forward passes itself.
    fn steps(&mut self, o: &Options) -> Result<Duration, Box<dyn std::error::Error>> {
        let start = Instant::now();
        if !self.on_gpu {
            for _ in 0..o.steps {
                self.last = self.step();
            }
            return Ok(start.elapsed());
        }
        let count = o.batch * o.steps;
        let pixels = vec![127; count * o.image * o.image * 3];
        let images = Images::new(count, o.image, o.image, pixels)?;
        let spec = bb_core::data::spec("cifar10").expect("a known dataset");
        if self.mode == What::Eval {
            let start = Instant::now();
            let last = &mut self.last;
            self.net
                .forward_images(&images, spec, |logits| *last = logits.iter().sum());
            return Ok(start.elapsed());
        }
        let split = Split {
            images,
            labels: (0..count).map(|i| (i % CLASSES) as u32).collect(),
        };
        let recipe = Recipe {
            epochs: 2,
            batch_size: o.batch,
            ..Recipe::default()
        };
        let (none, mut ends) = (Checkpoints::none(), Ends::default());
        fit(&mut self.net, &split, spec, &recipe, 0, &none, &mut ends)?;
        Ok(ends.0[1] - ends.0[0])
    }

    /// One line per kind of operation of the CPU: calls and milliseconds in a step, share of the time, and of the peak where
    /// arithmetic counts. What is left over is loss, optimiser, and the batch where it is assembled.
    fn profile(&mut self, steps: usize, peak: f64) {
        let start = Instant::now();
        self.net.start_profile();
        for _ in 0..steps {
            self.step();
        }
        let total = start.elapsed().as_secs_f64();
        let profile = self.net.take_profile().expect("it was started");
        let line = |name: &str, calls: usize, seconds: f64, flops: f64| {
            let rate = flops / seconds / 1e9;
            let rate = if flops > 0.0 {
                format!("{rate:8.0} {:5.2}", rate / peak)
            } else {
                String::new()
            };
            eprintln!(
                "{name:44} {calls:4} {:9.2} {:5.1}% {rate}",
                seconds * 1e3 / steps as f64,
                100.0 * seconds / total
            );
        };
        eprintln!(
            "{:44} {:>4} {:>9} {:>6} {:>8} {:>5}",
            "operation", "n", "ms/step", "share", "GFLOP/s", "peak"
        );
        let mut rest = total;
        for row in profile.rows() {
            let seconds = row.time.as_secs_f64();
            rest -= seconds;
            line(&row.name, row.calls / steps, seconds, row.flops);
        }
        line("everything else", 1, rest, 0.0);
        line("step", 1, total, 0.0);
    }
}

/// When each epoch ended, which is when its loss was read.
#[derive(Default)]
struct Ends(Vec<Instant>);

impl Hooks for Ends {
    fn sees_batches(&self) -> bool {
        false
    }

    fn epoch(&mut self, _: &mut Net, _: &EpochRow) -> Result<(), TrainError> {
        self.0.push(Instant::now());
        Ok(())
    }
}

/// The most memory this process has held, in MiB, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let o = Options::parse();
    rayon::ThreadPoolBuilder::new()
        .num_threads(o.threads)
        .build_global()?;
    let peak = peak(o.threads);
    let mut work = Work::new(&o)?;
    for _ in 0..o.warmup {
        work.step();
    }
    if work.on_gpu {
        work.steps(&o)?;
    }
    if o.profile {
        work.profile(o.steps, peak);
    }
    let mut rates = Vec::new();
    for _ in 0..o.repeats.max(1) {
        let time = work.steps(&o)?;
        rates.push((o.batch * o.steps) as f64 / time.as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let median = rates[rates.len() / 2];
    // The backward pass costs twice the forward pass, less the input gradient of the first layer.
    let passes = if o.mode == What::Train { 3.0 } else { 1.0 };
    let gflops = median * forward_flops(o.width, o.image, CLASSES) * passes / 1e9;
    let hundredths = |v: f64| (v * 100.0).round() / 100.0;
    work.net.take_failure()?;
    let line = serde_json::json!({
        "device": work.device, "width": o.width, "batch": o.batch, "mode": if o.mode == What::Train { "train" } else { "eval" },
        "precision": o.precision, "threads": o.threads,
        "img_per_s_median": hundredths(median),
        "img_per_s_min": hundredths(rates[0]),
        "img_per_s_max": hundredths(rates[rates.len() - 1]),
        "gflops_direct": gflops.round(), "gemm_peak_gflops": peak.round(),
        "share_of_peak": hundredths(gflops / peak), "peak_memory_mib": peak_memory(), "last": work.last,
    });
    println!("{line}");
    Ok(())
}
