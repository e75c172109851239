//! Optimisers over all parameters at once.

#[cfg(feature = "cuda")]
use crate::cuda::resident::{SgdStep, sgd};
use crate::flat::Flat;
use crate::kernels::vector;

/// Stochastic gradient descent with momentum, as PyTorch's `SGD` with dampening 0.
///
/// Weight decay acts on every parameter, batch normalisation and biases included, as in the benchmark.
#[derive(Clone, Debug)]
pub struct Sgd {
    /// Factor of the velocity.
    pub momentum: f32,
    /// L2 penalty, added to the gradient as `weight_decay * w`.
    pub weight_decay: f32,
    /// Nesterov's variant.
    pub nesterov: bool,
    velocity: Flat,
}

impl Sgd {
    /// An optimiser at rest for parameters of `like`'s layout.
    pub fn new(like: &Flat, momentum: f32, weight_decay: f32, nesterov: bool) -> Self {
        Self {
            momentum,
            weight_decay,
            nesterov,
            velocity: Flat::zeros(like.layout()),
        }
    }

    /// One step with learning rate `lr`.
    pub fn step(&mut self, params: &mut Flat, grads: &Flat, lr: f32) {
        #[cfg(feature = "cuda")]
        if let Some(device) = params.held().current_device() {
            let layout = std::sync::Arc::clone(params.layout());
            let step = SgdStep {
                lr,
                momentum: self.momentum,
                weight_decay: self.weight_decay,
                nesterov: self.nesterov,
            };
            let held = (params.held_mut(), self.velocity.held_mut(), grads.held());
            device.keep(sgd(&device, &layout, held, step));
            return;
        }
        vector::sgd_momentum(
            params.data_mut(),
            self.velocity.data_mut(),
            grads.data(),
            lr,
            self.momentum,
            self.weight_decay,
            self.nesterov,
        );
    }

    /// The velocity, for checkpoints.
    pub fn velocity(&self) -> &Flat {
        &self.velocity
    }

    /// See [`Sgd::velocity`].
    pub fn velocity_mut(&mut self) -> &mut Flat {
        &mut self.velocity
    }
}
