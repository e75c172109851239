//! Networks as lists of operations.
//!
//! A network here is a straight list of operations on numbered values, in execution order, which [`crate::net`]
//! walks forwards and backwards. A list instead of an autograd tape, because the whole step is then known before it
//! runs: buffers are reused as soon as their last reader is done, gradients are added in place by the kernel that
//! produces them, and the same list can be lowered to another device.

use crate::flat::{Layout, Order};
use crate::kernels::conv::ConvShape;
use crate::kernels::map::Function;
use crate::kernels::pool::Window;
use crate::net::Shape;

/// Number of a value (an activation); the first ones are the inputs.
pub(crate) type Value = usize;

/// One operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Convolution; `residual` or the bias is added to the result.
    Conv {
        x: Value,
        residual: Option<Value>,
        weight: usize,
        bias: Option<usize>,
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
    /// Sum of two values, then ReLU if `relu`.
    Add {
        a: Value,
        b: Value,
        relu: bool,
        out: Value,
    },
    /// A function of each element.
    Map {
        x: Value,
        function: Function,
        out: Value,
    },
    /// Largest value of each window.
    MaxPool {
        x: Value,
        window: Window,
        out: Value,
    },
    /// Mean over all pixels.
    GlobalAveragePool { x: Value, out: Value },
    /// Means over windows whose sizes give `rows x cols` pixels, as PyTorch's adaptive average pooling.
    AveragePool {
        x: Value,
        rows: usize,
        cols: usize,
        out: Value,
    },
    /// Rows and columns `factor` times as many: each pixel repeated, or (`smooth`) bilinear with pixel centres at halves.
    Upsample {
        x: Value,
        factor: usize,
        smooth: bool,
        out: Value,
    },
    /// The channels of two or three values, one after the other.
    Concat {
        a: Value,
        b: Value,
        c: Option<Value>,
        out: Value,
    },
    /// A row of zeros below and a column of zeros to the right.
    PadEnd { x: Value, out: Value },
    /// Zeros elements with this probability while training and scales the others by `1 / (1 - probability)`.
    Dropout {
        x: Value,
        probability: f32,
        /// Number among the network's dropouts.
        layer: usize,
        out: Value,
    },
    /// The same elements as an image of other sizes.
    Reshape {
        x: Value,
        rows: usize,
        cols: usize,
        channels: usize,
        out: Value,
    },
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
            | Self::Add { out, .. }
            | Self::Map { out, .. }
            | Self::MaxPool { out, .. }
            | Self::GlobalAveragePool { out, .. }
            | Self::AveragePool { out, .. }
            | Self::Upsample { out, .. }
            | Self::Concat { out, .. }
            | Self::PadEnd { out, .. }
            | Self::Dropout { out, .. }
            | Self::Reshape { out, .. }
            | Self::Linear { out, .. } => out,
        }
    }

    /// The values this operation reads.
    pub(crate) fn reads(&self) -> impl Iterator<Item = Value> {
        let (first, second, third) = match *self {
            Self::Conv { x, residual, .. } => (x, residual, None),
            Self::Add { a, b, .. } => (a, Some(b), None),
            Self::Concat { a, b, c, .. } => (a, Some(b), c),
            Self::BatchNorm { x, .. }
            | Self::Map { x, .. }
            | Self::MaxPool { x, .. }
            | Self::GlobalAveragePool { x, .. }
            | Self::AveragePool { x, .. }
            | Self::Upsample { x, .. }
            | Self::PadEnd { x, .. }
            | Self::Dropout { x, .. }
            | Self::Reshape { x, .. }
            | Self::Linear { x, .. } => (x, None, None),
        };
        std::iter::once(first).chain(second).chain(third)
    }

    /// What it is called in profiles and messages.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Conv { bias: None, .. } => "convolution",
            Self::Conv { .. } => "convolution with bias",
            Self::BatchNorm { .. } => "batch norm",
            Self::Add { .. } => "addition",
            Self::Map { function, .. } => function.label(),
            Self::MaxPool { .. } => "max pooling",
            Self::GlobalAveragePool { .. } | Self::AveragePool { .. } => "average pooling",
            Self::Upsample { .. } => "upsampling",
            Self::Concat { .. } => "concatenation",
            Self::PadEnd { .. } => "padding",
            Self::Dropout { .. } => "dropout",
            Self::Reshape { .. } => "reshape",
            Self::Linear { .. } => "linear",
        }
    }

    /// The value that its backward step reads, apart from gradients: an input, or its own result.
    fn needed_backward(&self) -> Option<Value> {
        match *self {
            Self::Conv { x, .. } | Self::BatchNorm { x, .. } | Self::Linear { x, .. } => Some(x),
            Self::Add {
                relu: true, out, ..
            } => Some(out),
            Self::Map {
                function: Function::Relu | Function::Tanh | Function::Sigmoid,
                out,
                ..
            } => Some(out),
            _ => None,
        }
    }

    /// Sizes of its result, from those of the values before it.
    ///
    /// # Panics
    /// If an image is too small for the operation.
    pub(crate) fn shape(&self, params: &Layout, shapes: &[Shape]) -> Shape {
        match *self {
            Self::Conv {
                x,
                weight,
                k,
                stride,
                pad,
                ..
            } => {
                let conv = conv_shape(params, shapes[x], weight, k, stride, pad);
                assert!(conv.is_valid(), "too small an image: {conv:?}");
                Shape {
                    n: conv.n,
                    h: conv.oh(),
                    w: conv.ow(),
                    c: conv.cout,
                }
            }
            Self::BatchNorm { x, .. } | Self::Map { x, .. } | Self::Dropout { x, .. } => shapes[x],
            Self::Add { a, b, .. } => {
                assert_eq!(shapes[a], shapes[b], "values to add");
                shapes[a]
            }
            Self::MaxPool { x, window, .. } => {
                let Shape { n, h, w, c } = shapes[x];
                let (h, w) = (window.outputs(h), window.outputs(w));
                Shape { n, h, w, c }
            }
            Self::GlobalAveragePool { x, .. } => Shape {
                h: 1,
                w: 1,
                ..shapes[x]
            },
            Self::AveragePool { x, rows, cols, .. } => Shape {
                h: rows,
                w: cols,
                ..shapes[x]
            },
            Self::Upsample { x, factor, .. } => {
                let Shape { n, h, w, c } = shapes[x];
                let (h, w) = (h * factor, w * factor);
                Shape { n, h, w, c }
            }
            Self::Concat { a, b, c, .. } => {
                let Shape { n, h, w, .. } = shapes[a];
                let mut channels = 0;
                for v in [Some(a), Some(b), c].into_iter().flatten() {
                    let part = shapes[v];
                    assert_eq!((n, h, w), (part.n, part.h, part.w), "values to concatenate");
                    channels += part.c;
                }
                Shape {
                    c: channels,
                    ..shapes[a]
                }
            }
            Self::PadEnd { x, .. } => {
                let Shape { n, h, w, c } = shapes[x];
                let (h, w) = (h + 1, w + 1);
                Shape { n, h, w, c }
            }
            Self::Reshape {
                x,
                rows,
                cols,
                channels,
                ..
            } => {
                let shape = Shape {
                    n: shapes[x].n,
                    h: rows,
                    w: cols,
                    c: channels,
                };
                assert_eq!(shape.len(), shapes[x].len(), "elements of a reshaped value");
                shape
            }
            Self::Linear { x, bias, .. } => Shape {
                n: shapes[x].n,
                h: 1,
                w: 1,
                c: params.entries()[bias].range.len(),
            },
        }
    }
}

/// The sizes of a convolution of an activation `x` with the tensor `weight` of a network.
pub(crate) fn conv_shape(
    params: &Layout,
    x: Shape,
    weight: usize,
    k: usize,
    stride: usize,
    pad: usize,
) -> ConvShape {
    let cout = params.entries()[weight].shape[0];
    ConvShape {
        n: x.n,
        h: x.h,
        w: x.w,
        cin: x.c,
        cout,
        k,
        stride,
        pad,
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Init {
    /// This value everywhere.
    Constant(f32),
    /// Uniform in `±1/sqrt(fan_in)`.
    Uniform { fan_in: usize },
    /// Normal with mean 0 and this standard deviation.
    Normal { std: f64 },
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
    /// Share of a batch's statistics in the new running ones.
    pub(crate) momentum: f32,
}

/// A network's operations and the layout of its tensors.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    pub(crate) ops: Vec<Op>,
    pub(crate) params: Layout,
    pub(crate) buffers: Layout,
    pub(crate) norms: Vec<Norm>,
    /// How each parameter starts.
    pub(crate) init: Vec<Init>,
    /// Number of inputs, which are the first values.
    pub(crate) inputs: usize,
    /// Number of dropouts.
    pub(crate) dropouts: usize,
    /// Names of the whole state in PyTorch's registration order.
    pub(crate) order: Vec<StateName>,
    /// Number of values.
    pub(crate) values: usize,
    /// Index of the last operation that reads a value, per value.
    pub(crate) last_read: Vec<usize>,
    /// Values that somebody reads after the forward pass: the backward pass, or whoever asks for a name.
    pub(crate) kept: Vec<bool>,
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

/// Name of every network's last value.
pub(crate) const OUTPUT: &str = "output";

/// Momentum of batch normalisation where nothing else is said, as in PyTorch.
const MOMENTUM: f32 = 0.1;

/// Sizes of a convolution layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvLayer {
    pub(crate) cin: usize,
    pub(crate) cout: usize,
    pub(crate) k: usize,
    pub(crate) stride: usize,
    pub(crate) pad: usize,
    pub(crate) bias: bool,
}

impl ConvLayer {
    /// A 3x3 convolution with padding 1 and a bias.
    pub(crate) fn three(cin: usize, cout: usize, stride: usize) -> Self {
        Self {
            cin,
            cout,
            k: 3,
            stride,
            pad: 1,
            bias: true,
        }
    }
}

impl Graph {
    /// A graph of one input.
    pub(crate) fn new() -> Self {
        Self::with_inputs(1)
    }

    /// A graph whose first values are its inputs.
    pub(crate) fn with_inputs(inputs: usize) -> Self {
        Self {
            values: inputs,
            inputs,
            ..Self::default()
        }
    }

    fn value(&mut self) -> Value {
        self.values += 1;
        self.values - 1
    }

    fn param(&mut self, name: &str, shape: &[usize], order: Order, init: Init) -> usize {
        let i = self.params.push(name, shape, order);
        self.order.push(StateName::Param(i));
        self.init.push(init);
        i
    }

    /// Registers a convolution's weight, `[cout, cin, k, k]` in PyTorch.
    pub(crate) fn conv_weight(&mut self, name: &str, cout: usize, cin: usize, k: usize) -> usize {
        let init = Init::Uniform {
            fan_in: cin * k * k,
        };
        self.param(
            &format!("{name}.weight"),
            &[cout, cin, k, k],
            Order::Hwio,
            init,
        )
    }

    /// Registers the tensors of a batch normalisation.
    pub(crate) fn norm(&mut self, name: &str, channels: usize) -> usize {
        self.norm_with_momentum(name, channels, MOMENTUM)
    }

    /// [`Graph::norm`] with another momentum than PyTorch's usual one.
    pub(crate) fn norm_with_momentum(
        &mut self,
        name: &str,
        channels: usize,
        momentum: f32,
    ) -> usize {
        let mut factor = |name: String, start| {
            self.param(&name, &[channels], Order::Plain, Init::Constant(start))
        };
        let gamma = factor(format!("{name}.weight"), 1.0);
        let beta = factor(format!("{name}.bias"), 0.0);
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
            momentum,
        });
        index
    }

    /// A bias-free convolution whose weight is registered.
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
            bias: None,
            k,
            stride,
            pad,
            out,
        });
        out
    }

    /// A convolution with the tensors it registers.
    pub(crate) fn conv_layer(&mut self, x: Value, name: &str, layer: ConvLayer) -> Value {
        let ConvLayer {
            cin,
            cout,
            k,
            stride,
            pad,
            bias,
        } = layer;
        let weight = self.conv_weight(name, cout, cin, k);
        let fan_in = cin * k * k;
        let bias = bias.then(|| {
            self.param(
                &format!("{name}.bias"),
                &[cout],
                Order::Plain,
                Init::Uniform { fan_in },
            )
        });
        let out = self.value();
        self.ops.push(Op::Conv {
            x,
            residual: None,
            weight,
            bias,
            k,
            stride,
            pad,
            out,
        });
        out
    }

    pub(crate) fn norm_relu(&mut self, x: Value, norm: usize) -> Value {
        self.batch_norm(x, norm, true)
    }

    pub(crate) fn batch_norm(&mut self, x: Value, norm: usize, relu: bool) -> Value {
        let out = self.value();
        self.ops.push(Op::BatchNorm { x, norm, relu, out });
        out
    }

    pub(crate) fn add_relu(&mut self, a: Value, b: Value) -> Value {
        let out = self.value();
        let relu = true;
        self.ops.push(Op::Add { a, b, relu, out });
        out
    }

    pub(crate) fn map(&mut self, x: Value, function: Function) -> Value {
        let out = self.value();
        self.ops.push(Op::Map { x, function, out });
        out
    }

    pub(crate) fn max_pool(&mut self, x: Value, window: Window) -> Value {
        let out = self.value();
        self.ops.push(Op::MaxPool { x, window, out });
        out
    }

    pub(crate) fn global_average_pool(&mut self, x: Value) -> Value {
        let out = self.value();
        self.ops.push(Op::GlobalAveragePool { x, out });
        out
    }

    /// Average pooling to `rows x cols` pixels.
    pub(crate) fn average_pool(&mut self, x: Value, rows: usize, cols: usize) -> Value {
        let out = self.value();
        self.ops.push(Op::AveragePool { x, rows, cols, out });
        out
    }

    pub(crate) fn upsample(&mut self, x: Value, factor: usize, smooth: bool) -> Value {
        let out = self.value();
        self.ops.push(Op::Upsample {
            x,
            factor,
            smooth,
            out,
        });
        out
    }

    pub(crate) fn concat(&mut self, a: Value, b: Value, c: Option<Value>) -> Value {
        let out = self.value();
        self.ops.push(Op::Concat { a, b, c, out });
        out
    }

    pub(crate) fn pad_end(&mut self, x: Value) -> Value {
        let out = self.value();
        self.ops.push(Op::PadEnd { x, out });
        out
    }

    pub(crate) fn dropout(&mut self, x: Value, probability: f32) -> Value {
        let out = self.value();
        let layer = self.dropouts;
        self.dropouts += 1;
        self.ops.push(Op::Dropout {
            x,
            probability,
            layer,
            out,
        });
        out
    }

    pub(crate) fn reshape(&mut self, x: Value, [rows, cols, channels]: [usize; 3]) -> Value {
        let out = self.value();
        self.ops.push(Op::Reshape {
            x,
            rows,
            cols,
            channels,
            out,
        });
        out
    }

    pub(crate) fn linear(&mut self, x: Value, name: &str, inputs: usize, outputs: usize) -> Value {
        self.linear_layer(x, name, inputs, outputs, Order::Plain)
    }

    /// A fully connected layer behind an image of `pixels` pixels, which PyTorch flattens channel by channel.
    pub(crate) fn flattened_linear(
        &mut self,
        x: Value,
        name: &str,
        (pixels, channels): (usize, usize),
        outputs: usize,
    ) -> Value {
        let order = Order::Flattened { pixels };
        self.linear_layer(x, name, pixels * channels, outputs, order)
    }

    fn linear_layer(
        &mut self,
        x: Value,
        name: &str,
        inputs: usize,
        outputs: usize,
        order: Order,
    ) -> Value {
        let init = Init::Uniform { fan_in: inputs };
        // One after the other, so that the gradients of both are one slice.
        let weight = self.param(&format!("{name}.weight"), &[outputs, inputs], order, init);
        let bias = self.param(&format!("{name}.bias"), &[outputs], Order::Plain, init);
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

    /// Convolutions start as torchvision's classifiers do: normal weights with variance `2 / (cout k k)` (Kaiming's
    /// rule over the outputs), biases 0.
    pub(crate) fn start_convolutions_normal(&mut self) {
        for op in &self.ops {
            if let Op::Conv { weight, bias, .. } = *op {
                let shape = &self.params.entries()[weight].shape;
                let fan_out = shape[0] * shape[2] * shape[3];
                let std = (2.0 / fan_out as f64).sqrt();
                self.init[weight] = Init::Normal { std };
                if let Some(bias) = bias {
                    self.init[bias] = Init::Constant(0.0);
                }
            }
        }
    }

    /// Fully connected layers start with normal weights of this standard deviation and biases 0.
    pub(crate) fn start_linear_normal(&mut self, std: f64) {
        for op in &self.ops {
            if let Op::Linear { weight, bias, .. } = *op {
                self.init[weight] = Init::Normal { std };
                self.init[bias] = Init::Constant(0.0);
            }
        }
    }

    /// The value called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<Value> {
        self.named.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }

    /// Computes what execution needs to know once the list is complete.
    pub(crate) fn finish(mut self) -> Self {
        self.name(OUTPUT, self.values - 1);
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
        self.kept = vec![false; self.values];
        for (i, op) in self.ops.iter().enumerate() {
            for v in op.reads() {
                self.last_read[v] = i;
                if let Some(folded) = self.folded[v] {
                    self.last_read[folded.x] = i;
                }
            }
            if let Some(v) = op.needed_backward() {
                self.kept[self.folded[v].map_or(v, |folded| folded.x)] = true;
            }
        }
        for (_, value) in &self.named {
            self.kept[*value] = true;
        }
        self
    }
}
