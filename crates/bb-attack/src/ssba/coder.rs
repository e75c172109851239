//! The encoder that hides bits in an image, and the decoder that it is trained with.

use std::collections::BTreeMap;
use std::path::Path;

use bb_core::artifact::atomic;
use bb_core::cell::LONGEST_FILE;
use bb_core::cli::{catch_interrupts, check_interrupt};
use bb_core::data::Images;
use bb_core::events::Progress;
use bb_core::files::{self, Links};
use bb_core::rng;
use bb_nn::data::Input;
use bb_nn::model::ModelSpec;
use bb_nn::optim::Adam;
use bb_nn::{Flat, Mode, Net, NnError, StateDict};
use rng::RngCore as _;
use serde_json::json;

use super::config::TriggerConfig;
use crate::error::AttackError;
use crate::method::Ctx;

/// Steps between two checkpoints.
const CHECKPOINT_EVERY: usize = 200;
/// Steps between two lines of the log.
const TELL_EVERY: usize = 500;
/// PyTorch's usual shares of Adam.
const BETAS: (f64, f64) = (0.9, 0.999);
/// Name of the checkpoint.
const CHECKPOINT: &str = "ssba-coder.safetensors";

/// Encoder and decoder with what trains them.
#[derive(Debug)]
pub struct Coder {
    encoder: Net,
    decoder: Net,
    adams: [Adam; 2],
    /// Steps done.
    step: usize,
    /// The step at which bits were read well enough.
    started: Option<usize>,
}

/// What a step gave.
#[derive(Clone, Copy, Debug)]
struct Step {
    bit_loss: f64,
    bit_accuracy: f64,
    image_loss: f64,
}

/// How well encoded images carry the message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quality {
    /// Share of the bits that the decoder reads from the 8-bit images.
    pub bit_accuracy: f64,
    /// Mean peak signal-to-noise ratio in dB.
    pub psnr: f64,
}

impl Coder {
    /// Untrained networks for images of `side` x `side`.
    pub fn new(cfg: &TriggerConfig, side: usize, seed: u64) -> Result<Self, NnError> {
        let mut stream = rng::stream(seed, "ssba/networks", 0, 0);
        let encoder = ModelSpec::ssba_encoder(side, cfg.bits, cfg.width)?;
        let decoder = ModelSpec::ssba_decoder(side, cfg.bits, cfg.width)?;
        let encoder = Net::new(&encoder, stream.next_u64());
        let decoder = Net::new(&decoder, stream.next_u64());
        let adams = [&encoder, &decoder].map(|net| Adam::new(net.params(), BETAS));
        Ok(Self {
            encoder,
            decoder,
            adams,
            step: 0,
            started: None,
        })
    }

    /// Trains new networks on the training images, or goes on where an interrupted run was.
    pub fn trained(cfg: &TriggerConfig, ctx: &Ctx<'_>) -> Result<Self, AttackError> {
        let images = &ctx.dataset.train.images;
        let mut coder = Self::new(cfg, images.height(), ctx.seed)?;
        let batch = cfg.batch_size.min(images.len());
        let per_epoch = images.len().div_ceil(batch);
        let steps = match cfg.steps {
            0 => cfg.epochs * per_epoch,
            steps => steps,
        };
        let checkpoint = ctx.prep.checkpoint(CHECKPOINT)?;
        if let Some(path) = &checkpoint {
            // A file that was damaged is written anew, as it is after a crash in the first steps.
            if let Ok(bytes) = files::read(path, Links::Refuse, LONGEST_FILE)
                && coder.load(&bytes, path).is_err()
            {
                coder = Self::new(cfg, images.height(), ctx.seed)?;
            }
            catch_interrupts()?;
        }
        let progress = Progress::new(
            "training the encoder",
            "steps",
            steps as u64,
            ctx.prep.quiet,
        )
        .resumed_at(coder.step as u64);
        let mut grads = [coder.encoder.zeros(), coder.decoder.zeros()];
        let mut order = Vec::new();
        let mut epoch = usize::MAX;
        while coder.step < steps {
            if let Err(stop) = check_interrupt() {
                coder.keep(checkpoint.as_deref())?;
                return Err(stop.into());
            }
            if epoch != coder.step / per_epoch {
                epoch = coder.step / per_epoch;
                let mut stream = rng::stream(ctx.seed, "ssba/order", epoch as u64, 0);
                order = rng::permutation(&mut stream, images.len());
            }
            let chosen = batch_of(coder.step, batch, &order);
            let input = fractions(images, chosen);
            let bits = random_bits(ctx.seed, coder.step, chosen.len() * cfg.bits);
            let done = coder.train_step(cfg, &input, &bits, &mut grads)?;
            progress.add(1);
            let last = coder.step == steps;
            if last || coder.step.is_multiple_of(TELL_EVERY) {
                let Step {
                    bit_loss,
                    bit_accuracy,
                    image_loss,
                } = done;
                let say = format!(
                    "encoder, step {} of {steps}: bit accuracy {:.2} %, bit loss {bit_loss:.4}, image error {image_loss:.5}",
                    coder.step,
                    100.0 * bit_accuracy,
                );
                let data = json!({ "step": coder.step, "bit_loss": bit_loss, "bit_accuracy": bit_accuracy, "image_loss": image_loss, "started": coder.started });
                ctx.prep.tell("encoder", &say, &data)?;
            }
            if last || coder.step.is_multiple_of(CHECKPOINT_EVERY) {
                coder.keep(checkpoint.as_deref())?;
            }
        }
        progress.finish();
        Ok(coder)
    }

    /// Weight of the image's error in the next step.
    fn image_weight(&self, cfg: &TriggerConfig) -> f64 {
        let Some(started) = self.started else {
            return 0.0;
        };
        let since = (self.step - started) as f64 - cfg.delay as f64;
        let share = if cfg.ramp == 0 {
            f64::from(since >= 0.0)
        } else {
            (since / cfg.ramp as f64).clamp(0.0, 1.0)
        };
        cfg.image_weight * share
    }

    /// One step on images between 0 and 1 and a row of bits for each.
    fn train_step(
        &mut self,
        cfg: &TriggerConfig,
        images: &Input,
        bits: &[f32],
        [encoder_grads, decoder_grads]: &mut [Flat; 2],
    ) -> Result<Step, AttackError> {
        let weight = self.image_weight(cfg) as f32;
        let tape = self.encoder.record((images, bits), Mode::Train);
        let encoded = tape.output().clone();
        let reading = self.decoder.record(&encoded, Mode::Train);
        let logits = &reading.output().data;
        let scale = 1.0 / bits.len() as f32;
        let (mut bit_loss, mut right) = (0.0, 0);
        let mut gradient = Vec::with_capacity(bits.len());
        for (&z, &b) in logits.iter().zip(bits) {
            // log(1 + e^z) - b z, written so that nothing overflows.
            bit_loss += f64::from(z.max(0.0) - b * z + (-z.abs()).exp().ln_1p());
            right += usize::from((z > 0.0) == (b > 0.5));
            gradient.push((1.0 / (1.0 + (-z).exp()) - b) * scale);
        }
        let bit_loss = bit_loss / bits.len() as f64;
        let bit_accuracy = right as f64 / bits.len() as f64;
        let mut by_image =
            self.decoder
                .backward_input(reading, &[("output", &gradient)], decoder_grads)?;
        let mut squares = 0.0;
        let pull = 2.0 * weight / images.data.len() as f32;
        for ((g, &e), &x) in by_image.iter_mut().zip(&encoded.data).zip(&images.data) {
            let off = e - x;
            squares += f64::from(off * off);
            *g += pull * off;
        }
        self.encoder
            .backward(tape, &[("output", &by_image)], encoder_grads)?;
        if !bit_loss.is_finite() || !squares.is_finite() {
            return Err(AttackError::EncoderDiverged { step: self.step });
        }
        let lr = cfg.lr as f32;
        let [encoder_adam, decoder_adam] = &mut self.adams;
        encoder_adam.step(self.encoder.params_mut(), encoder_grads, lr);
        decoder_adam.step(self.decoder.params_mut(), decoder_grads, lr);
        self.step += 1;
        if self.started.is_none() && bit_accuracy > cfg.start_accuracy {
            self.started = Some(self.step);
        }
        Ok(Step {
            bit_loss,
            bit_accuracy,
            image_loss: squares / images.data.len() as f64,
        })
    }

    /// The images at `indices` with the message in them, one after the other, and how well it can be read from them.
    ///
    /// # Errors
    /// [`AttackError::OwnNetwork`] if a network gives what is no number, which as a byte would be black and as a bit 0.
    pub fn encode(
        &mut self,
        images: &Images,
        indices: &[usize],
        message: &[f32],
    ) -> Result<(Vec<u8>, Quality), AttackError> {
        /// Images of a pass; no result depends on it.
        const PART: usize = 64;
        let (mut pixels, mut right, mut psnr) = (Vec::new(), 0, 0.0);
        for part in indices.chunks(PART) {
            let input = fractions(images, part);
            let bits = message.repeat(part.len());
            let encoded = self.encoder.output((&input, &bits[..]), Mode::Eval);
            check_finite("encoder", "images", &encoded.data)?;
            let bytes: Vec<u8> = encoded
                .data
                .iter()
                .map(|v| (255.0 * v + 0.5).clamp(0.0, 255.0) as u8)
                .collect();
            let size = bytes.len() / part.len();
            for (image, &i) in bytes.chunks_exact(size).zip(part) {
                let pairs = image.iter().zip(images.image(i));
                let squares: u64 = pairs.map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum();
                // An image that did not change at all counts as one that changed by one level in one place.
                let mean = squares.max(1) as f64 / size as f64;
                psnr += 10.0 * (255.0 * 255.0 / mean).log10();
            }
            let seen = Input {
                data: bytes.iter().map(|&v| f32::from(v) / 255.0).collect(),
                ..input
            };
            let logits = self.decoder.output(&seen, Mode::Eval).data;
            check_finite("decoder", "bits", &logits)?;
            let pairs = logits.iter().zip(&bits);
            right += pairs.filter(|(z, b)| (**z > 0.0) == (**b > 0.5)).count();
            pixels.extend(bytes);
        }
        let images = indices.len().max(1) as f64;
        let quality = Quality {
            bit_accuracy: right as f64 / (images * message.len() as f64),
            psnr: psnr / images,
        };
        Ok((pixels, quality))
    }

    /// The encoder as a file for the cell.
    pub fn encoder_file(&self, about: &BTreeMap<String, String>) -> Result<Vec<u8>, NnError> {
        self.encoder.state()?.to_bytes(about)
    }

    fn keep(&self, path: Option<&Path>) -> Result<(), AttackError> {
        let Some(path) = path else {
            return Ok(());
        };
        let mut all = StateDict::new();
        for (role, net, adam) in [
            ("encoder", &self.encoder, &self.adams[0]),
            ("decoder", &self.decoder, &self.adams[1]),
        ] {
            let (mean, square) = adam.moments();
            for (kind, flat) in [("params", net.params()), ("mean", mean), ("square", square)] {
                for (i, entry) in flat.layout().entries().iter().enumerate() {
                    let tensor = flat.to_tensor(i).map_err(NnError::from)?;
                    all.insert(format!("{role}.{kind}.{}", entry.name), tensor);
                }
            }
        }
        let started = self.started.map_or(String::new(), |step| step.to_string());
        let about = BTreeMap::from([
            ("step".to_owned(), self.step.to_string()),
            ("started".to_owned(), started),
        ]);
        Ok(atomic::write(path, all.to_bytes(&about)?)?)
    }

    fn load(&mut self, bytes: &[u8], path: &Path) -> Result<(), NnError> {
        let wrong = |reason: &str| NnError::Format {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let all = StateDict::from_bytes(bytes, path)?;
        let about = StateDict::metadata(bytes, path)?;
        let number = |key: &str| about.get(key).and_then(|text| text.parse::<usize>().ok());
        let step = number("step").ok_or_else(|| wrong("`step` is missing"))?;
        let [encoder_adam, decoder_adam] = &mut self.adams;
        for (role, net, adam) in [
            ("encoder", &mut self.encoder, encoder_adam),
            ("decoder", &mut self.decoder, decoder_adam),
        ] {
            adam.set_steps(step as u64);
            let (mean, square) = adam.moments_mut();
            let flats = [
                ("params", net.params_mut()),
                ("mean", mean),
                ("square", square),
            ];
            for (kind, flat) in flats {
                let layout = std::sync::Arc::clone(flat.layout());
                for (i, entry) in layout.entries().iter().enumerate() {
                    let name = format!("{role}.{kind}.{}", entry.name);
                    let values = all
                        .floats(&name)
                        .ok_or_else(|| wrong("a tensor is missing"))??;
                    if values.len() != entry.range.len() {
                        return Err(wrong("a tensor has another size"));
                    }
                    flat.set_plain(i, &values);
                }
            }
        }
        self.step = step;
        self.started = number("started");
        Ok(())
    }
}

fn check_finite(network: &'static str, what: &str, values: &[f32]) -> Result<(), AttackError> {
    if values.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    let what = what.to_owned();
    Err(AttackError::OwnNetwork { network, what })
}

/// Refuses a side of the images that the networks cannot take.
pub fn check_side(cfg: &TriggerConfig, side: usize) -> Result<(), NnError> {
    ModelSpec::ssba_encoder(side, cfg.bits, cfg.width).map(|_| ())
}

/// The bits that poisoned images carry.
pub fn message(cfg: &TriggerConfig) -> Vec<f32> {
    bits(
        &mut rng::stream(cfg.message_seed, "ssba/message", 0, 0),
        cfg.bits,
    )
}

fn random_bits(seed: u64, step: usize, count: usize) -> Vec<f32> {
    bits(&mut rng::stream(seed, "ssba/bits", step as u64, 0), count)
}

fn bits(stream: &mut impl rng::RngCore, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng::below(stream, 2) as f32).collect()
}

/// The images of a step, of the order of its epoch; the last step of an epoch has those that are left.
fn batch_of(step: usize, batch: usize, order: &[usize]) -> &[usize] {
    let at = (step % order.len().div_ceil(batch)) * batch;
    &order[at..order.len().min(at + batch)]
}

/// Images as fractions of 0 to 1.
fn fractions(images: &Images, indices: &[usize]) -> Input {
    let data = indices
        .iter()
        .flat_map(|&i| images.image(i).iter().map(|&v| f32::from(v) / 255.0))
        .collect();
    Input {
        n: indices.len(),
        h: images.height(),
        w: images.width(),
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{Golden, close, norms};
    use crate::prep::Prep;
    use crate::ssba::config::SsbaConfig;
    use bb_core::data::{Dataset, OpenOptions};
    use bb_nn::ArchSpec;

    fn small() -> TriggerConfig {
        let mut cfg = SsbaConfig::default().trigger;
        (cfg.bits, cfg.width, cfg.batch_size, cfg.lr) = (4, 8, 16, 3e-3);
        (cfg.steps, cfg.delay, cfg.ramp) = (40, 5, 10);
        cfg
    }

    fn data() -> Dataset {
        let options = OpenOptions {
            train_limit: Some(192),
            test_limit: Some(16),
            ..OpenOptions::default()
        };
        bb_core::data::open("synthetic", None, &options).expect("made by the program")
    }

    fn trained(cfg: &TriggerConfig, dataset: &Dataset, folder: Option<&Path>) -> Coder {
        let arch = ArchSpec::new("preactresnet18", 4, 10).expect("a small network");
        let prep = Prep {
            folder,
            quiet: true,
            ..Prep::default()
        };
        let ctx = Ctx {
            dataset,
            arch: &arch,
            seed: 0,
            prep,
        };
        Coder::trained(cfg, &ctx).expect("a training")
    }

    /// The coder of the goldens, in the middle of its ramp: the first step has 3 tenths of the image's weight.
    fn golden_coder(golden: &Golden) -> (TriggerConfig, Coder) {
        let mut cfg = SsbaConfig::default().trigger;
        (cfg.bits, cfg.width, cfg.delay, cfg.ramp) = (10, 2, 2, 10);
        let mut coder = Coder::new(&cfg, 32, 0).expect("small networks");
        golden.fill("state.encoder.", &mut coder.encoder);
        golden.fill("state.decoder.", &mut coder.decoder);
        (coder.step, coder.started) = (5, Some(0));
        (cfg, coder)
    }

    /// Images and bits of one of the goldens' two steps.
    fn golden_batch(golden: &Golden, step: usize) -> (Input, Vec<f32>) {
        let bits = golden.bytes("bits");
        let half = bits.len() / 2;
        let bits = bits[step * half..(step + 1) * half].iter();
        let indices = [3 * step, 3 * step + 1, 3 * step + 2];
        let images = fractions(&golden.images("x"), &indices);
        (images, bits.map(|&b| f32::from(b)).collect())
    }

    #[test]
    fn golden_training_steps() {
        let golden = Golden::load("ssba");
        let (cfg, mut coder) = golden_coder(&golden);
        let mut grads = [coder.encoder.zeros(), coder.decoder.zeros()];
        let expected = golden.floats("losses");
        for step in 0..2 {
            let (images, bits) = golden_batch(&golden, step);
            let weight = coder.image_weight(&cfg);
            let done = coder
                .train_step(&cfg, &images, &bits, &mut grads)
                .expect("a step");
            let found = [done.bit_loss, done.image_loss, done.bit_accuracy, weight];
            // In single and double precision the original differs by 1e-7.
            let expected = &expected[4 * step..][..4];
            close("losses", &found.map(|v| v as f32), expected, 1e-5);
            let found = [&grads[0], &grads[1]].map(|flat| norms(flat, |_| true));
            let name = format!("norm.{step}");
            close(&name, &found.concat(), &golden.floats(&name), 1e-4);
        }
        // Two steps move a weight by 2e-4 at most, so a tenth of a percent of that is what is compared.
        for (role, net) in [("encoder", &coder.encoder), ("decoder", &coder.decoder)] {
            for (i, entry) in net.params().layout().entries().iter().enumerate() {
                let name = format!("{role}.{}", entry.name);
                let before = golden.floats(&format!("state.{name}"));
                let moved = |after: Vec<f32>| -> Vec<f32> {
                    after.iter().zip(&before).map(|(a, b)| a - b).collect()
                };
                let expected = moved(golden.floats(&format!("after.{name}")));
                close(&name, &moved(net.params().to_plain(i)), &expected, 1e-2);
            }
        }
    }

    /// Only an accuracy above the requested one starts the ramp.
    #[test]
    fn the_image_counts_once_more_bits_are_right_than_asked_for() {
        let golden = Golden::load("ssba");
        let (images, bits) = golden_batch(&golden, 0);
        let accuracy = f64::from(golden.floats("losses")[2]);
        let right = (accuracy * bits.len() as f64).round();
        for (share, started) in [(right, None), (right - 1.0, Some(6))] {
            let (mut cfg, mut coder) = golden_coder(&golden);
            coder.started = None;
            cfg.start_accuracy = share / bits.len() as f64;
            let mut grads = [coder.encoder.zeros(), coder.decoder.zeros()];
            coder
                .train_step(&cfg, &images, &bits, &mut grads)
                .expect("a step");
            assert_eq!(coder.started, started);
        }
    }

    #[test]
    fn the_weight_of_the_image_waits_and_rises() {
        let mut coder = Coder::new(&small(), 32, 0).expect("small networks");
        let cfg = SsbaConfig::default().trigger;
        let mut check = |step: usize, started, expect: f64| {
            (coder.step, coder.started) = (step, started);
            assert!((coder.image_weight(&cfg) - expect).abs() < 1e-12, "{step}");
        };
        check(5000, None, 0.0);
        check(1000, Some(1000), 0.0);
        check(2000, Some(1000), 0.0);
        check(3500, Some(1000), 5.0);
        check(5000, Some(1000), 10.0);
        check(50_000, Some(1000), 10.0);
    }

    #[test]
    fn an_epoch_has_every_image_once_and_its_last_batch_is_the_short_one() {
        let order: Vec<usize> = (0..50_000).rev().collect();
        let batches: Vec<&[usize]> = (0..782).map(|step| batch_of(step, 64, &order)).collect();
        assert_eq!(batches.concat(), order);
        assert!(batches[..781].iter().all(|batch| batch.len() == 64));
        assert_eq!(batches[781].len(), 50_000 - 781 * 64);
        // Then the next epoch begins.
        assert_eq!(batch_of(782, 64, &order), batches[0]);
        assert_eq!(batch_of(20 * 782 - 1, 64, &order), batches[781]);
        assert_eq!(
            batch_of(5, 4, &order[..12]),
            &order[8..12],
            "nothing is left"
        );
        assert_eq!(batch_of(5, 4, &order[..4]), &order[..4]);
    }

    #[test]
    fn a_training_that_was_interrupted_ends_with_the_same_bits() {
        // Ten steps an epoch, of which the last has 12 images; the interrupted training goes on with such a one.
        let (cfg, dataset) = (
            TriggerConfig {
                batch_size: 20,
                ..small()
            },
            data(),
        );
        let folder = tempfile::tempdir().expect("a temporary folder");
        let whole = trained(&cfg, &dataset, None);
        let half = TriggerConfig {
            steps: 19,
            ..cfg.clone()
        };
        trained(&half, &dataset, Some(folder.path()));
        let resumed = trained(&cfg, &dataset, Some(folder.path()));
        assert_eq!(
            whole.encoder.params().data(),
            resumed.encoder.params().data()
        );
        assert_eq!(whole.started, resumed.started);
        // A damaged checkpoint is no reason to stop.
        fs_err::write(folder.path().join(CHECKPOINT), "no tensors").expect("a writable folder");
        let anew = trained(&cfg, &dataset, Some(folder.path()));
        assert_eq!(whole.decoder.params().data(), anew.decoder.params().data());
    }

    #[test]
    fn a_trained_encoder_carries_its_message_and_keeps_the_image() {
        let dataset = data();
        let mut cfg = small();
        (cfg.steps, cfg.delay, cfg.ramp, cfg.image_weight) = (300, 0, 100, 1.0);
        let mut coder = trained(&cfg, &dataset, None);
        let message = message(&cfg);
        let indices: Vec<usize> = (0..16).collect();
        let mut encode = |indices: &[usize], message: &[f32]| {
            coder
                .encode(&dataset.test.images, indices, message)
                .expect("finite images")
        };
        let (pixels, quality) = encode(&indices, &message);
        assert_eq!(pixels.len(), 16 * 32 * 32 * 3);
        assert!(quality.bit_accuracy > 0.9, "{quality:?}");
        assert!(quality.psnr > 14.0, "{quality:?}");
        // An image's encoding does not depend on its neighbours.
        let (one, _) = encode(&indices[7..8], &message);
        assert_eq!(one, pixels[7 * 3072..8 * 3072]);
        // A decoder that always says the same would read one of these two.
        let opposite: Vec<f32> = message.iter().map(|b| 1.0 - b).collect();
        let (_, quality) = encode(&indices, &opposite);
        assert!(quality.bit_accuracy > 0.9, "{quality:?}");
    }
}
