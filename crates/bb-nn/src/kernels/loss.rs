//! Softmax cross-entropy over rows of logits.

/// Mean loss and number of rows whose largest logit is the label's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Mean cross-entropy over the rows, natural logarithm.
    pub mean: f32,
    /// Rows predicted right; the first of equal logits counts as the prediction, and a row with NaN or an infinity
    /// predicts nothing.
    pub correct: usize,
}

/// Index of the largest value, the first one of equals; `None` if a value is NaN or infinite, since a broken network
/// has no opinion and must not get the credit of class 0.
pub fn argmax(row: &[f32]) -> Option<usize> {
    row.iter()
        .all(|v| v.is_finite())
        .then(|| first_largest(row))
}

/// Index of the largest value, the first one of equals, whatever the values are.
fn first_largest(row: &[f32]) -> usize {
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
        correct += usize::from(argmax(row) == Some(label));
        let largest = row[first_largest(row)];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_has_no_class() {
        let check = |row: &[f32], expected| assert_eq!(argmax(row), expected, "{row:?}");
        check(&[0.0, 2.0, 2.0, -1.0], Some(1));
        check(&[-3.0], Some(0));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..3 {
                let mut row = [1.0, 5.0, 2.0];
                row[place] = bad;
                check(&row, None);
            }
        }
    }

    #[test]
    fn a_row_that_is_not_finite_is_never_right() {
        let rows = [f32::NAN, f32::NAN, 3.0, f32::NEG_INFINITY, 3.0, 1.0];
        let loss = cross_entropy(&rows, &[0, 0, 0], 2, None);
        assert_eq!(loss.correct, 1, "the last row alone");
        assert!(loss.mean.is_nan());
    }
}
