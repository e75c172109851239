//! Networks as lists of operations.
//!
//! A classifier here is a straight list of operations on numbered values, in execution order, which [`crate::net`]
//! walks forwards and backwards. A list instead of an autograd tape, because the whole step is then known before it
//! runs: buffers are reused as soon as their last reader is done, gradients are added in place by the kernel that
//! produces them, and the same list can be lowered to another device.

use crate::flat::{Layout, Order};

/// Number of a value (an activation); value 0 is the input.
pub(crate) type Value = usize;

/// One operation.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Convolution without bias; `residual` is added to the result.
    Conv {
        x: Value,
        residual: Option<Value>,
        weight: usize,
        k: usize,
        stride: usize,
        pad: usize,
        out: Value,
    },
    /// Batch normalisation, then ReLU if `relu`.
    BatchNorm {
        x: Value,
        norm: usize,
        relu: bool,
        out: Value,
    },
    /// Mean over all pixels.
    GlobalAveragePool { x: Value, out: Value },
    /// Fully connected layer.
    Linear {
        x: Value,
        weight: usize,
        bias: usize,
        out: Value,
    },
}

impl Op {
    /// The value this operation makes.
    pub(crate) fn out(&self) -> Value {
        match *self {
            Self::Conv { out, .. }
            | Self::BatchNorm { out, .. }
            | Self::GlobalAveragePool { out, .. }
            | Self::Linear { out, .. } => out,
        }
    }

    /// The values this operation reads.
    pub(crate) fn reads(&self) -> impl Iterator<Item = Value> {
        let (first, second) = match *self {
            Self::Conv { x, residual, .. } => (x, residual),
            Self::BatchNorm { x, .. }
            | Self::GlobalAveragePool { x, .. }
            | Self::Linear { x, .. } => (x, None),
        };
        std::iter::once(first).chain(second)
    }
}

/// Indices of the tensors of one batch normalisation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    /// In the parameters.
    pub(crate) gamma: usize,
    pub(crate) beta: usize,
    /// In the buffers.
    pub(crate) mean: usize,
    pub(crate) var: usize,
    pub(crate) channels: usize,
}

/// A network's operations and the layout of its tensors.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    pub(crate) ops: Vec<Op>,
    pub(crate) params: Layout,
    pub(crate) buffers: Layout,
    pub(crate) norms: Vec<Norm>,
    /// Names of the whole state in PyTorch's registration order.
    pub(crate) order: Vec<StateName>,
    /// Number of values.
    pub(crate) values: usize,
    /// Index of the last operation that reads a value, per value.
    pub(crate) last_read: Vec<usize>,
    /// The batch normalisation whose result a value is, where only convolutions read it: they normalise while they
    /// lay out their input, so the value itself is never made.
    pub(crate) folded: Vec<Option<Folded>>,
    /// Values with names, for access to features (`layer4`, `avgpool`).
    pub(crate) named: Vec<(String, Value)>,
}

/// A value that exists only as a batch normalisation of another one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Folded {
    /// What is normalised.
    pub(crate) x: Value,
    /// Index of the normalisation.
    pub(crate) norm: usize,
}

/// Where a name of the state dictionary points.
#[derive(Clone, Debug)]
pub(crate) enum StateName {
    Param(usize),
    Buffer(usize),
    /// `num_batches_tracked` of a batch normalisation.
    Tracked(usize, String),
}

impl Graph {
    pub(crate) fn new() -> Self {
        Self {
            values: 1,
            ..Self::default()
        }
    }

    fn value(&mut self) -> Value {
        self.values += 1;
        self.values - 1
    }

    fn param(&mut self, name: &str, shape: &[usize], order: Order) -> usize {
        let i = self.params.push(name, shape, order);
        self.order.push(StateName::Param(i));
        i
    }

    /// Registers a convolution's weight, `[cout, cin, k, k]` in PyTorch.
    pub(crate) fn conv_weight(&mut self, name: &str, cout: usize, cin: usize, k: usize) -> usize {
        self.param(&format!("{name}.weight"), &[cout, cin, k, k], Order::Hwio)
    }

    /// Registers the tensors of a batch normalisation.
    pub(crate) fn norm(&mut self, name: &str, channels: usize) -> usize {
        let gamma = self.param(&format!("{name}.weight"), &[channels], Order::Plain);
        let beta = self.param(&format!("{name}.bias"), &[channels], Order::Plain);
        let mean = self
            .buffers
            .push(&format!("{name}.running_mean"), &[channels], Order::Plain);
        let var = self
            .buffers
            .push(&format!("{name}.running_var"), &[channels], Order::Plain);
        self.order.push(StateName::Buffer(mean));
        self.order.push(StateName::Buffer(var));
        let index = self.norms.len();
        self.order.push(StateName::Tracked(
            index,
            format!("{name}.num_batches_tracked"),
        ));
        self.norms.push(Norm {
            gamma,
            beta,
            mean,
            var,
            channels,
        });
        index
    }

    pub(crate) fn conv(
        &mut self,
        x: Value,
        residual: Option<Value>,
        weight: usize,
        k: usize,
        stride: usize,
        pad: usize,
    ) -> Value {
        let out = self.value();
        self.ops.push(Op::Conv {
            x,
            residual,
            weight,
            k,
            stride,
            pad,
            out,
        });
        out
    }

    pub(crate) fn norm_relu(&mut self, x: Value, norm: usize) -> Value {
        let out = self.value();
        self.ops.push(Op::BatchNorm {
            x,
            norm,
            relu: true,
            out,
        });
        out
    }

    pub(crate) fn global_average_pool(&mut self, x: Value) -> Value {
        let out = self.value();
        self.ops.push(Op::GlobalAveragePool { x, out });
        out
    }

    pub(crate) fn linear(&mut self, x: Value, name: &str, inputs: usize, outputs: usize) -> Value {
        let weight = self.param(&format!("{name}.weight"), &[outputs, inputs], Order::Plain);
        let bias = self.param(&format!("{name}.bias"), &[outputs], Order::Plain);
        let out = self.value();
        self.ops.push(Op::Linear {
            x,
            weight,
            bias,
            out,
        });
        out
    }

    pub(crate) fn name(&mut self, name: &str, value: Value) {
        self.named.push((name.to_owned(), value));
    }

    /// Computes what execution needs to know once the list is complete.
    pub(crate) fn finish(mut self) -> Self {
        self.folded = vec![None; self.values];
        for op in &self.ops {
            if let Op::BatchNorm { x, norm, out, .. } = *op {
                self.folded[out] = Some(Folded { x, norm });
            }
        }
        for op in &self.ops {
            match *op {
                Op::Conv { residual, .. } => {
                    residual.into_iter().for_each(|v| self.folded[v] = None)
                }
                _ => op.reads().for_each(|v| self.folded[v] = None),
            }
        }
        for (_, value) in &self.named {
            self.folded[*value] = None;
        }
        self.last_read = vec![0; self.values];
        for (i, op) in self.ops.iter().enumerate() {
            for v in op.reads() {
                self.last_read[v] = i;
                if let Some(folded) = self.folded[v] {
                    self.last_read[folded.x] = i;
                }
            }
        }
        self
    }
}
