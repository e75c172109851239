//! ANP against outputs of the benchmark's code.

use bb_defense::anp::config::{AnpConfig, MaskConfig};
use bb_defense::anp::step;
use bb_defense::channels::{Channels, Masks, PerChannel, rounded};
use bb_nn::Net;

use super::{Folder, Golden, Setting, on_both_folders};

on_both_folders!(golden_mask_training);

/// The numbers of all batch normalisations in one vector, from the tensors `prefix`, name, `suffix`.
fn joined(golden: &Golden, net: &Net, channels: &Channels, prefix: &str, suffix: &str) -> Vec<f32> {
    let entries = net.params().layout().entries();
    channels
        .norms()
        .iter()
        .flat_map(|norm| {
            let name = entries[norm.weight].name.trim_end_matches(".weight");
            golden.float(&format!("{prefix}{name}{suffix}"))
        })
        .copied()
        .collect()
}

#[track_caller]
fn check_within(what: &str, found: &[f32], wanted: &[f32], tolerance: f32) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (channel, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let close = (found - wanted).abs() <= tolerance;
        assert!(close, "{what} {channel}: {found} against {wanted}");
    }
}

fn golden_mask_training(folder: &Folder) {
    let count = check_mask_training(folder, "k_anp.safetensors", 1);
    assert!(count > 1, "{count} batches");
}

/// With three steps of the noise, of a third of its length each.
#[test]
fn golden_steps_of_the_noise() {
    check_mask_training(&Folder::committed(), "k_anp_steps.safetensors", 3);
}

/// Trains masks on the batches of a file, and gives their number.
fn check_mask_training(folder: &Folder, file: &str, steps: usize) -> usize {
    let setting = Setting::read(folder);
    let golden = Golden::read(folder, file);
    let mut net = setting.net();
    let channels = Channels::of(&net).expect("it has some");
    let cfg = MaskConfig {
        lr: 0.2,
        steps,
        ..AnpConfig::default().mask
    };
    let mut masks = Masks::ones(channels.count());
    let mut grads = net.zeros();
    let stored = golden.float("losses_in_call_order");
    let passes = steps + 2;
    let count = stored.len() / passes;
    let mut sum = 0.0;
    for (number, (input, labels)) in setting.batches[..count].iter().enumerate() {
        let start = format!("noise_init.{number}.");
        let mut noise = PerChannel {
            scale: joined(&golden, &net, &channels, &start, ".neuron_noise"),
            shift: joined(&golden, &net, &channels, &start, ".neuron_noise_bias"),
        };
        let data = (input, labels.as_slice());
        let masked = (&channels, masks.values());
        let (losses, gradient) = step(&cfg, &mut net, masked, &mut noise, data, &mut grads);
        masks.step(&gradient, cfg.lr as f32, cfg.momentum as f32);
        let mut found: Vec<f32> = losses.noise.iter().map(|loss| loss.mean).collect();
        found.extend([losses.robust.mean, losses.natural.mean]);
        check_within("loss", &found, &stored[passes * number..][..passes], 1e-4);
        let alpha = cfg.alpha as f32;
        sum += alpha * losses.natural.mean + (1.0 - alpha) * losses.robust.mean;
        if number + 1 == count {
            let after = |suffix| joined(&golden, &net, &channels, "noise_after.", suffix);
            check_within("noise", &noise.scale, &after(".neuron_noise"), 1e-6);
            let shift = after(".neuron_noise_bias");
            check_within("noise of shifts", &noise.shift, &shift, 1e-6);
        }
    }
    check_within(
        "mean loss",
        &[sum / count as f32],
        golden.float("loss_mean"),
        1e-4,
    );
    let wanted = joined(&golden, &net, &channels, "mask_after.", "");
    check_within("mask", masks.values(), &wanted, 1e-3);
    assert!(
        wanted.iter().any(|mask| *mask < 1.0),
        "the masks have to move"
    );
    let mut compared = 0;
    for (i, entry) in net.buffers().layout().entries().iter().enumerate() {
        let wanted = golden.float(&format!("bn_after.{}", entry.name));
        check_within(&entry.name, net.buffers().tensor(i), wanted, 1e-4);
        compared += 1;
    }
    let stored = golden
        .floats
        .keys()
        .filter(|key| key.starts_with("bn_after."));
    assert_eq!(compared, stored.count());
    count
}

/// Pruned are the channels whose mask, with four decimals, is at most the threshold; only their scales are cleared.
#[test]
fn golden_pruning() {
    let folder = Folder::committed();
    let golden = Golden::read(&folder, "k_anp.safetensors");
    let mut net = Setting::read(&folder).net();
    let channels = Channels::of(&net).expect("it has some");
    let scores = rounded(&joined(&golden, &net, &channels, "mask_after.", ""));
    let threshold = golden.doubles["prune_threshold"][0];
    assert!(scores.contains(&threshold), "one is the threshold itself");
    let mask: Vec<bool> = scores.iter().map(|&score| score <= threshold).collect();
    let before = net.params().clone();
    let count = channels.prune(net.params_mut(), &mask);
    let mut wanted = 0;
    for (i, entry) in before.layout().entries().iter().enumerate() {
        let stored = format!("pruned.{}", entry.name.trim_end_matches(".weight"));
        let (before, after) = (before.to_plain(i), net.params().to_plain(i));
        let Some(stored) = golden
            .integers
            .get(&stored)
            .filter(|_| entry.name.ends_with(".weight"))
        else {
            assert_eq!(before, after, "{}", entry.name);
            continue;
        };
        for ((before, after), pruned) in before.iter().zip(after).zip(stored) {
            let expected = if *pruned == 1 { 0.0 } else { *before };
            assert_eq!(after.to_bits(), expected.to_bits(), "{}", entry.name);
            wanted += usize::from(*pruned == 1);
        }
    }
    assert_eq!((count, count > 1), (wanted, true));
}
