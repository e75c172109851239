//! Predictions and scores, in eval mode with the test transform.
//!
//! A network whose logits are NaN or infinite has no class and hence no score: whatever measures one gets an error
//! that says how many images it is about, never a number.

use crate::error::NnError;
use crate::kernels::loss::argmax;
use crate::net::Net;
use bb_core::data::{DatasetSpec, Images, Split};
use bb_core::metrics::{Ratio, Scores};
use bb_core::poison::PoisonSet;
use bb_core::precision::Precision;

/// Images whose logits are NaN or infinite.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{count} of {total} {image}s have logits that are NaN or infinite, the first is {image} {first}"
)]
pub struct NotFiniteLogits {
    /// What one of them is called, such as `clean test image`.
    pub image: &'static str,
    /// Index of the first one among its like, counted from 0.
    pub first: usize,
    /// How many there are.
    pub count: usize,
    /// How many images were measured.
    pub total: usize,
}

/// Class of the largest logit in each row of `classes` logits.
///
/// # Errors
/// [`NotFiniteLogits`] if a row has none.
pub fn classes(logits: &[f32], classes: usize) -> Result<Vec<u32>, NotFiniteLogits> {
    let mut found = Vec::with_capacity(logits.len() / classes);
    let (mut first, mut count) = (None, 0);
    for (i, row) in logits.chunks_exact(classes).enumerate() {
        let class = argmax(row);
        if class.is_none() {
            first.get_or_insert(i);
            count += 1;
        }
        found.extend(class.map(|class| class as u32));
    }
    match first {
        None => Ok(found),
        Some(first) => Err(NotFiniteLogits {
            image: "image",
            first,
            count,
            total: logits.len() / classes,
        }),
    }
}

/// Class of the largest logit for each image, computed in `f32` whatever the network is trained in.
///
/// # Errors
/// What a GPU failed at; [`NnError::Logits`] if an image has no class.
pub fn predict(net: &mut Net, images: &Images, spec: &DatasetSpec) -> Result<Vec<u32>, NnError> {
    let trained_in = net.precision();
    net.set_precision(Precision::F32);
    let outputs = net.spec().outputs();
    let mut logits = Vec::with_capacity(images.len() * outputs);
    net.forward_images(images, spec, |part| logits.extend_from_slice(part));
    net.set_precision(trained_in);
    // A failed device gives NaN, and is then the reason.
    net.take_failure()?;
    Ok(classes(&logits, outputs)?)
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
///
/// # Errors
/// As [`predict`].
pub fn accuracy(net: &mut Net, split: &Split, spec: &DatasetSpec) -> Result<Ratio, NnError> {
    let predictions = predict(net, &split.images, spec).map_err(called("clean image", None))?;
    Ok(agreement(&predictions, &split.labels))
}

/// ACC on the clean test set, ASR and RA on the poisoned one.
///
/// # Errors
/// As [`predict`]; images of both sets are named by their index in the test set.
pub fn scores(
    net: &mut Net,
    clean: &Split,
    poisoned: &PoisonSet,
    spec: &DatasetSpec,
) -> Result<Scores, NnError> {
    let acc = predict(net, &clean.images, spec).map_err(called("clean test image", None))?;
    let places = Some(&poisoned.indices[..]);
    let predictions =
        predict(net, &poisoned.images, spec).map_err(called("poisoned test image", places))?;
    Ok(Scores {
        acc: agreement(&acc, &clean.labels),
        asr: agreement(&predictions, &poisoned.labels),
        ra: agreement(&predictions, &poisoned.original_labels),
    })
}

/// Says what the images of an error are, and their indices elsewhere.
fn called(image: &'static str, indices: Option<&[usize]>) -> impl FnOnce(NnError) -> NnError {
    move |error| match error {
        NnError::Logits(logits) => NnError::Logits(NotFiniteLogits {
            image,
            first: indices.map_or(logits.first, |indices| indices[logits.first]),
            ..logits
        }),
        other => other,
    }
}
