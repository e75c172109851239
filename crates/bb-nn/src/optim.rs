//! Optimisers over all parameters at once.

#[cfg(feature = "cuda")]
use crate::cuda::resident::{SgdStep, adam, sgd};
use crate::flat::Flat;
use crate::kernels::vector::{self, AdamStep};

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

/// Adam (Kingma and Ba, ICLR 2015), as PyTorch's `Adam`.
///
/// Weight decay is an L2 penalty, added to the gradient of every parameter.
#[derive(Clone, Debug)]
pub struct Adam {
    /// Shares of the old mean and of the old mean square in the new ones.
    pub betas: (f64, f64),
    /// Added to the denominator.
    pub eps: f64,
    /// L2 penalty, added to the gradient as `weight_decay * w`.
    pub weight_decay: f32,
    mean: Flat,
    square: Flat,
    /// AMSGrad's largest mean square so far.
    largest: Option<Flat>,
    steps: u64,
}

impl Adam {
    /// An optimiser at rest for parameters of `like`'s layout, with eps 1e-8 and no weight decay. PyTorch's usual
    /// `betas` are 0.9 and 0.999.
    pub fn new(like: &Flat, betas: (f64, f64)) -> Self {
        Self {
            betas,
            eps: 1e-8,
            weight_decay: 0.0,
            mean: Flat::zeros(like.layout()),
            square: Flat::zeros(like.layout()),
            largest: None,
            steps: 0,
        }
    }

    /// [`Adam::new`] with AMSGrad (Reddi et al., ICLR 2018), as PyTorch's `amsgrad=True`: steps are divided by the root of
    /// the largest mean square so far.
    pub fn amsgrad(like: &Flat, betas: (f64, f64)) -> Self {
        Self {
            largest: Some(Flat::zeros(like.layout())),
            ..Self::new(like, betas)
        }
    }

    /// One step with learning rate `lr`.
    pub fn step(&mut self, params: &mut Flat, grads: &Flat, lr: f32) {
        self.steps += 1;
        let by = self.numbers(lr);
        #[cfg(feature = "cuda")]
        if let Some(device) = params.held().current_device() {
            let layout = std::sync::Arc::clone(params.layout());
            let (mean, square) = (self.mean.held_mut(), self.square.held_mut());
            let held = (params.held_mut(), mean, square, grads.held());
            let largest = self.largest.as_mut().map(Flat::held_mut);
            device.keep(adam(&device, &layout, held, largest, by));
            return;
        }
        if let Some(largest) = &mut self.largest {
            vector::amsgrad(
                params.data_mut(),
                self.mean.data_mut(),
                self.square.data_mut(),
                largest.data_mut(),
                grads.data(),
                by,
            );
            return;
        }
        vector::adam(
            params.data_mut(),
            self.mean.data_mut(),
            self.square.data_mut(),
            grads.data(),
            by,
        );
    }

    /// The numbers of the step that [`Adam::steps`] counts last; the corrections of the moments' start are computed in
    /// `f64`, as in PyTorch.
    fn numbers(&self, lr: f32) -> AdamStep {
        let (beta1, beta2) = self.betas;
        let t = self.steps as f64;
        AdamStep {
            step: (f64::from(lr) / (1.0 - beta1.powf(t))) as f32,
            share1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            share2: (1.0 - beta2) as f32,
            eps: self.eps as f32,
            weight_decay: self.weight_decay,
            bias2_sqrt: (1.0 - beta2.powf(t)).sqrt() as f32,
        }
    }

    /// Means of the gradients and of their squares, for checkpoints.
    pub fn moments(&self) -> (&Flat, &Flat) {
        (&self.mean, &self.square)
    }

    /// See [`Adam::moments`].
    pub fn moments_mut(&mut self) -> (&mut Flat, &mut Flat) {
        (&mut self.mean, &mut self.square)
    }

    /// The largest means of the squares so far, for checkpoints; only AMSGrad has them.
    pub fn largest(&self) -> Option<&Flat> {
        self.largest.as_ref()
    }

    /// The vectors that a checkpoint holds, with a name each: the moments and, with AMSGrad, the largest mean squares.
    pub fn vectors_mut(&mut self) -> Vec<(&'static str, &mut Flat)> {
        let mut all = vec![("mean", &mut self.mean), ("square", &mut self.square)];
        all.extend(self.largest.as_mut().map(|largest| ("largest", largest)));
        all
    }

    /// Steps so far, for checkpoints: they decide how the moments' start at 0 is corrected.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// See [`Adam::steps`].
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }
}
