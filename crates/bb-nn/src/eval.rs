//! Predictions and scores, in eval mode with the test transform.

use crate::kernels::loss::argmax;
use crate::net::Net;
use bb_core::data::{DatasetSpec, Images, Split};
use bb_core::metrics::{Ratio, Scores};
use bb_core::poison::PoisonSet;
use bb_core::precision::Precision;

/// Class of the largest logit for each image, computed in `f32` whatever the network is trained in.
pub fn predict(net: &mut Net, images: &Images, spec: &DatasetSpec) -> Vec<u32> {
    let trained_in = net.precision();
    net.set_precision(Precision::F32);
    let classes = net.spec().outputs();
    let mut predictions = Vec::with_capacity(images.len());
    net.forward_images(images, spec, |logits| {
        predictions.extend(logits.chunks_exact(classes).map(|row| argmax(row) as u32));
    });
    net.set_precision(trained_in);
    predictions
}

/// How many of `images` are predicted as `labels` say.
pub fn agreement(predictions: &[u32], labels: &[u32]) -> Ratio {
    let hits = predictions
        .iter()
        .zip(labels)
        .filter(|(p, l)| p == l)
        .count();
    Ratio {
        hits: hits as u64,
        total: predictions.len() as u64,
    }
}

/// Accuracy on a split.
pub fn accuracy(net: &mut Net, split: &Split, spec: &DatasetSpec) -> Ratio {
    agreement(&predict(net, &split.images, spec), &split.labels)
}

/// ACC on the clean test set, ASR and RA on the poisoned one.
pub fn scores(net: &mut Net, clean: &Split, poisoned: &PoisonSet, spec: &DatasetSpec) -> Scores {
    let acc = accuracy(net, clean, spec);
    let predictions = predict(net, &poisoned.images, spec);
    Scores {
        acc,
        asr: agreement(&predictions, &poisoned.labels),
        ra: agreement(&predictions, &poisoned.original_labels),
    }
}
