//! Steps that make a network unlearn, shared by the defenses that look at what moves when it does.

use bb_nn::data::Input;
use bb_nn::kernels::loss::Loss;
use bb_nn::optim::Sgd;
use bb_nn::{Flat, Mode, Net};

/// One step of gradient ascent on the cross-entropy, in train mode. Gives the loss before the step and leaves the
/// gradient of the negative loss in `grads`.
///
/// With `clip` the gradient's L2 norm over all parameters is at most that, as PyTorch's `clip_grad_norm_` does it; weight
/// decay comes after, in the optimiser.
pub fn ascend(
    net: &mut Net,
    sgd: &mut Sgd,
    grads: &mut Flat,
    (input, labels): (&Input, &[u32]),
    lr: f32,
    clip: Option<f64>,
) -> Loss {
    let loss = net.loss_grad(input, labels, Mode::Train, grads);
    grads.scale(-1.0);
    if let Some(norm) = clip {
        grads.clip_norm(norm);
    }
    sgd.step(net.params_mut(), grads, lr);
    loss
}
