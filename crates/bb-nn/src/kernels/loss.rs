//! Softmax cross-entropy over rows of logits.

/// Mean loss and number of rows whose largest logit is the label's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Mean cross-entropy over the rows, natural logarithm.
    pub mean: f32,
    /// Rows predicted right; the first of equal logits counts as the prediction.
    pub correct: usize,
}

/// Index of the largest value, the first one of equals (and of NaN: 0).
pub fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in row.iter().enumerate().skip(1) {
        if *v > row[best] {
            best = i;
        }
    }
    best
}

/// Mean cross-entropy of `logits` (`[n, classes]`) and, where asked for, its gradient `(softmax - onehot) / n`.
///
/// # Panics
/// If a label is not below `classes` or lengths disagree.
pub fn cross_entropy(
    logits: &[f32],
    labels: &[u32],
    classes: usize,
    mut gradient: Option<&mut [f32]>,
) -> Loss {
    assert_eq!(logits.len(), labels.len() * classes);
    let inverse = 1.0 / labels.len() as f32;
    let (mut total, mut correct) = (0f64, 0);
    for (r, (row, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        let label = label as usize;
        let best = argmax(row);
        correct += usize::from(best == label);
        let largest = row[best];
        let sum: f32 = row.iter().map(|v| (v - largest).exp()).sum();
        total += f64::from(sum.ln() - (row[label] - largest));
        if let Some(gradient) = gradient.as_deref_mut() {
            let out = &mut gradient[r * classes..][..classes];
            for (o, v) in out.iter_mut().zip(row) {
                *o = (v - largest).exp() / sum * inverse;
            }
            out[label] -= inverse;
        }
    }
    Loss {
        mean: (total / labels.len() as f64) as f32,
        correct,
    }
}
