//! Places in a network that defenses of several kinds act on.

use bb_nn::{Flat, Net};

use crate::error::DefenseError;

/// Parts of the names of shortcut convolutions: PreActResNet's and ResNet's.
pub const SHORTCUTS: [&str; 2] = ["shortcut", "downsample"];

/// Sets to 0 the weights of tensor `i` whose mask, in PyTorch's order, is true.
///
/// # Panics
/// If the mask has another length than the tensor.
pub fn clear(params: &mut Flat, i: usize, mask: &[bool]) {
    let mut weights = params.to_plain(i);
    assert_eq!(weights.len(), mask.len(), "one mask a weight");
    for (weight, _) in weights
        .iter_mut()
        .zip(mask)
        .filter(|(_, cleared)| **cleared)
    {
        *weight = 0.0;
    }
    params.set_plain(i, &weights);
}

/// A linear layer that defenses act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its weight `[classes, features]`, a place among the parameters.
    pub weight: usize,
    /// Its bias `[classes]`.
    pub bias: usize,
    /// Rows of the weight; of the classifier they are the classes.
    pub classes: usize,
    /// Columns of the weight.
    pub features: usize,
}

/// The linear layer whose weight is parameter `weight`, if it is one with a bias.
fn linear(net: &Net, weight: usize) -> Option<Head> {
    let entries = net.params().layout().entries();
    let (matrix, bias) = (entries.get(weight)?, entries.get(weight + 1)?);
    match (matrix.shape.as_slice(), bias.shape.as_slice()) {
        (&[classes, features], &[biases]) if classes == biases => Some(Head {
            weight,
            bias: weight + 1,
            classes,
            features,
        }),
        _ => None,
    }
}

fn missing(net: &Net) -> DefenseError {
    DefenseError::NoHead {
        arch: net.spec().label(),
    }
}

/// The classifier of a network: the last linear layer.
///
/// # Errors
/// [`DefenseError::NoHead`] if its last two parameters are not weight and bias of a linear layer.
pub fn head(net: &Net) -> Result<Head, DefenseError> {
    let last = net.params().tensors().checked_sub(2);
    last.and_then(|weight| linear(net, weight))
        .ok_or_else(|| missing(net))
}

/// The linear layer that reads what the convolutions give, `avgpool`, channel by channel: the first one. It is the
/// classifier but in `vgg19_bn`, which has three.
///
/// # Errors
/// [`DefenseError::NoHead`] if there is no linear layer with a bias.
pub fn reader(net: &Net) -> Result<Head, DefenseError> {
    (0..net.params().tensors())
        .find_map(|weight| linear(net, weight))
        .ok_or_else(|| missing(net))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_nn::ArchSpec;

    #[test]
    fn the_head_is_the_last_linear_layer_and_the_reader_the_first() {
        for (arch, first, last) in [
            ("preactresnet18", "linear.weight", "linear.weight"),
            ("resnet34", "fc.weight", "fc.weight"),
            ("vgg19_bn", "classifier.0.weight", "classifier.6.weight"),
        ] {
            let net = Net::new(&ArchSpec::new(arch, 4, 7).expect("a small network"), 0);
            let head = head(&net).expect("it has one");
            let entries = net.params().layout().entries();
            assert_eq!(entries[head.weight].name, last);
            let reader = reader(&net).expect("it has one");
            assert_eq!(entries[reader.weight].name, first);
            let shape = &entries[reader.weight].shape;
            assert_eq!(shape, &[reader.classes, reader.features]);
            assert_eq!(head.classes, 7);
            assert_eq!(entries[head.weight].shape, [7, head.features]);
        }
    }

    #[test]
    fn clearing_takes_what_the_mask_names() {
        let arch = ArchSpec::new("preactresnet18", 4, 3).expect("a small network");
        let mut net = Net::new(&arch, 0);
        let before = net.params().to_plain(0);
        let mask: Vec<bool> = (0..before.len()).map(|i| i % 3 == 0).collect();
        clear(net.params_mut(), 0, &mask);
        for ((before, after), cleared) in before.iter().zip(net.params().to_plain(0)).zip(mask) {
            let expected = if cleared { 0.0 } else { *before };
            assert_eq!(after.to_bits(), expected.to_bits());
        }
    }
}
