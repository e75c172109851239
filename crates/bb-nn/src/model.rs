//! Models that attacks train beside the classifier: the generator of Input-aware, the encoder and decoder of SSBA.
//!
//! They are no classifiers and are not among [`crate::arch::NAMES`]; a [`Net`](crate::Net) is built from them all the
//! same, and trained through [`Net::record`](crate::Net::record) and [`Net::backward`](crate::Net::backward).

use crate::error::NnError;
use crate::graph::{ConvLayer, Graph, Value};
use crate::kernels::map::Function;
use crate::kernels::pool::Window;

/// A model and its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    kind: Kind,
    /// Channels of the first convolution.
    width: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    InputAware { outputs: usize, tanh_twice: bool },
    SsbaEncoder { side: usize, bits: usize },
    SsbaDecoder { side: usize, bits: usize },
}

/// The usual width of all three models.
pub const WIDTH: usize = 32;

/// Side of the picture that SSBA's encoder makes of the bits.
const SECRET_SIDE: usize = 16;

/// Momentum of the batch normalisations of Input-aware's generator.
const GENERATOR_MOMENTUM: f32 = 0.05;

impl ModelSpec {
    /// Input-aware's generator (Nguyen and Tran, NeurIPS 2020): an image of `outputs` channels between 0 and 1 (between
    /// 0.119 and 0.881, since the benchmark applies tanh twice) from a normalised image. 3 outputs make a pattern, 1 a
    /// mask. Sides must be multiples of 8. The usual width is [`WIDTH`].
    pub fn input_aware(outputs: usize, width: usize) -> Result<Self, NnError> {
        let kind = Kind::InputAware {
            outputs,
            tanh_twice: true,
        };
        Self::new(kind, width).and_then(|spec| spec.size("outputs", outputs, 4, "1 to 4"))
    }

    /// Input-aware's generator with one tanh, as its authors have it, so that it reaches 0 and 1; other models stay as
    /// they are.
    #[must_use]
    pub fn with_one_tanh(mut self) -> Self {
        if let Kind::InputAware { tanh_twice, .. } = &mut self.kind {
            *tanh_twice = false;
        }
        self
    }

    /// SSBA's encoder (Li et al., ICCV 2021, after `StegaStamp`): an image between 0 and 1 and `bits` bits for each image
    /// give the image with the bits in it. `side` is that of the images, the usual width is [`WIDTH`].
    pub fn ssba_encoder(side: usize, bits: usize, width: usize) -> Result<Self, NnError> {
        Self::new(Kind::SsbaEncoder { side, bits }, width)
            .and_then(|spec| spec.ssba_sizes(side, bits))
    }

    /// SSBA's decoder: a logit for each of `bits` bits from an image.
    pub fn ssba_decoder(side: usize, bits: usize, width: usize) -> Result<Self, NnError> {
        Self::new(Kind::SsbaDecoder { side, bits }, width)
            .and_then(|spec| spec.ssba_sizes(side, bits))
    }

    fn new(kind: Kind, width: usize) -> Result<Self, NnError> {
        Self { kind, width }.size("width", width, 512, "1 to 512")
    }

    fn ssba_sizes(self, side: usize, bits: usize) -> Result<Self, NnError> {
        let max = if side.is_multiple_of(32) { 256 } else { 0 };
        let this = self.size("side", side, max, "a multiple of 32, at most 256")?;
        this.size("bits", bits, 4096, "1 to 4096")
    }

    fn size(
        self,
        field: &'static str,
        found: usize,
        max: usize,
        expected: &'static str,
    ) -> Result<Self, NnError> {
        if (1..=max).contains(&found) {
            Ok(self)
        } else {
            Err(NnError::ArchSize {
                arch: self.name().to_owned(),
                field,
                found,
                expected,
            })
        }
    }

    /// The model's name.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::InputAware { .. } => "input-aware",
            Kind::SsbaEncoder { .. } => "ssba-encoder",
            Kind::SsbaDecoder { .. } => "ssba-decoder",
        }
    }

    /// Name and width, as in `ssba-encoder-w32`.
    pub fn label(&self) -> String {
        format!("{}-w{}", self.name(), self.width)
    }

    /// Channels of what it gives.
    pub fn outputs(&self) -> usize {
        match self.kind {
            Kind::InputAware { outputs, .. } => outputs,
            Kind::SsbaEncoder { .. } => 3,
            Kind::SsbaDecoder { bits, .. } => bits,
        }
    }

    pub(crate) fn graph(&self) -> Graph {
        match self.kind {
            Kind::InputAware {
                outputs,
                tanh_twice,
            } => input_aware(self.width, outputs, tanh_twice),
            Kind::SsbaEncoder { side, bits } => ssba_encoder(self.width, side, bits),
            Kind::SsbaDecoder { side, bits } => ssba_decoder(self.width, side, bits),
        }
    }
}

fn input_aware(width: usize, outputs: usize, tanh_twice: bool) -> Graph {
    /// Halvings of the side.
    const STEPS: usize = 3;
    let mut g = Graph::new();
    let block = |g: &mut Graph, x: Value, name: String, cin: usize, cout: usize, relu: bool| {
        let x = g.conv_layer(x, &format!("{name}.conv2d"), ConvLayer::three(cin, cout, 1));
        let norm = g.norm_with_momentum(&format!("{name}.batch_norm"), cout, GENERATOR_MOMENTUM);
        g.batch_norm(x, norm, relu)
    };
    let window = Window {
        k: 2,
        stride: 2,
        pad: 0,
    };
    let (mut x, mut channels) = (0, 3);
    for step in 0..STEPS {
        let wide = width << step;
        let name = |i: usize| format!("convblock_down_{}", 2 * step + i);
        x = block(&mut g, x, name(0), channels, wide, true);
        x = block(&mut g, x, name(1), wide, wide, true);
        x = g.max_pool(x, window);
        channels = wide;
    }
    x = block(
        &mut g,
        x,
        "convblock_middle".to_owned(),
        channels,
        channels,
        true,
    );
    for step in 0..STEPS {
        let last = step + 1 == STEPS;
        let next = if last { outputs } else { channels / 2 };
        let name = |i: usize| format!("convblock_up_{}", 2 * step + i);
        x = g.upsample(x, 2, true);
        x = block(&mut g, x, name(0), channels, channels, true);
        x = block(&mut g, x, name(1), channels, next, !last);
        channels = next;
    }
    g.name("raw", x);
    // Twice in the benchmark, where a module that should only have been kept was applied as well.
    x = g.map(x, Function::Tanh);
    if tanh_twice {
        x = g.map(x, Function::Tanh);
    }
    // The published code divides by 2 + 1e-7, which is 2 in `f32`.
    let half = Function::Affine {
        scale: 0.5,
        shift: 0.5,
    };
    g.map(x, half);
    g
}

/// A convolution and ReLU.
fn conv_relu(g: &mut Graph, x: Value, name: &str, layer: ConvLayer) -> Value {
    let x = g.conv_layer(x, name, layer);
    g.map(x, Function::Relu)
}

fn ssba_encoder(width: usize, side: usize, bits: usize) -> Graph {
    let w = width;
    let mut g = Graph::with_inputs(2);
    let (picture, secret) = (0, 1);
    let secret = g.linear(secret, "secret_dense", bits, 3 * SECRET_SIDE * SECRET_SIDE);
    let secret = g.map(secret, Function::Relu);
    let secret = g.reshape(secret, [SECRET_SIDE, SECRET_SIDE, 3]);
    let secret = g.upsample(secret, side / SECRET_SIDE, false);
    let both = g.concat(secret, picture, None);
    let three = ConvLayer::three;
    let c1 = conv_relu(&mut g, both, "conv1", three(6, w, 1));
    let c2 = conv_relu(&mut g, c1, "conv2", three(w, w, 2));
    let c3 = conv_relu(&mut g, c2, "conv3", three(w, 2 * w, 2));
    let c4 = conv_relu(&mut g, c3, "conv4", three(2 * w, 4 * w, 2));
    let c5 = conv_relu(&mut g, c4, "conv5", three(4 * w, 8 * w, 2));
    let up = |g: &mut Graph, x: Value, name: &str, cin: usize, cout: usize| {
        let x = g.upsample(x, 2, false);
        let x = g.pad_end(x);
        let two = ConvLayer {
            k: 2,
            pad: 0,
            ..three(cin, cout, 1)
        };
        conv_relu(g, x, name, two)
    };
    let x = up(&mut g, c5, "up6", 8 * w, 4 * w);
    let x = g.concat(c4, x, None);
    let x = conv_relu(&mut g, x, "conv6", three(8 * w, 4 * w, 1));
    let x = up(&mut g, x, "up7", 4 * w, 2 * w);
    let x = g.concat(c3, x, None);
    let x = conv_relu(&mut g, x, "conv7", three(4 * w, 2 * w, 1));
    let x = up(&mut g, x, "up8", 2 * w, w);
    let x = g.concat(c2, x, None);
    let x = conv_relu(&mut g, x, "conv8", three(2 * w, w, 1));
    let x = up(&mut g, x, "up9", w, w);
    let x = g.concat(c1, x, Some(both));
    let x = conv_relu(&mut g, x, "conv9", three(2 * w + 6, w, 1));
    let x = conv_relu(&mut g, x, "conv10", three(w, w, 1));
    let one = ConvLayer {
        k: 1,
        pad: 0,
        ..three(w, 3, 1)
    };
    let x = g.conv_layer(x, "residual", one);
    g.map(x, Function::Sigmoid);
    g
}

fn ssba_decoder(width: usize, side: usize, bits: usize) -> Graph {
    let w = width;
    let mut g = Graph::new();
    let layers = [
        (3, w, 2),
        (w, w, 1),
        (w, 2 * w, 2),
        (2 * w, 2 * w, 1),
        (2 * w, 2 * w, 2),
        (2 * w, 4 * w, 2),
        (4 * w, 4 * w, 2),
    ];
    let mut x = 0;
    for (i, (cin, cout, stride)) in layers.into_iter().enumerate() {
        let layer = ConvLayer::three(cin, cout, stride);
        x = conv_relu(&mut g, x, &format!("conv{}", i + 1), layer);
    }
    let pixels = (side / 32) * (side / 32);
    let hidden = 16 * w;
    x = g.linear(x, "dense1", pixels * 4 * w, hidden);
    x = g.map(x, Function::Relu);
    g.linear(x, "dense2", hidden, bits);
    g
}
