//! VGG-19 with batch normalisation (Simonyan and Zisserman, ICLR 2015) as torchvision builds it.
//!
//! Sixteen 3x3 convolutions with bias, each followed by normalisation and ReLU, with 2x2 max pooling between five
//! groups; average pooling to 7x7, whatever arrives (a 32x32 image arrives as one pixel and is repeated), and three
//! linear layers with ReLU and dropout between them.

use crate::graph::{ConvLayer, Graph};
use crate::kernels::map::Function;
use crate::kernels::pool::Window;

/// Channels, in units of the width, and convolutions of each group.
const GROUPS: [(usize, usize); 5] = [(1, 2), (2, 2), (4, 4), (8, 4), (8, 4)];

/// Side of the image that the linear layers see.
const SIDE: usize = 7;

pub(super) fn vgg19_bn(width: usize, classes: usize) -> Graph {
    let mut g = Graph::new();
    let (mut x, mut channels) = (0, 3);
    // Index in torchvision's list of layers.
    let mut layer = 0;
    for (factor, convolutions) in GROUPS {
        for _ in 0..convolutions {
            let conv = ConvLayer::three(channels, factor * width, 1);
            x = g.conv_layer(x, &format!("features.{layer}"), conv);
            g.name(&format!("features.{layer}"), x);
            let norm = g.norm(&format!("features.{}", layer + 1), factor * width);
            x = g.norm_relu(x, norm);
            channels = factor * width;
            layer += 3;
        }
        let window = Window {
            k: 2,
            stride: 2,
            pad: 0,
        };
        x = g.max_pool(x, window);
        g.name(&format!("features.{layer}"), x);
        layer += 1;
    }
    g.name("features", x);
    x = g.average_pool(x, SIDE, SIDE);
    g.name("avgpool", x);
    // 4096 at the usual width of 64.
    let hidden = 64 * width;
    x = g.flattened_linear(x, "classifier.0", (SIDE * SIDE, channels), hidden);
    x = g.map(x, Function::Relu);
    x = g.dropout(x, 0.5);
    g.name("classifier.2", x);
    x = g.linear(x, "classifier.3", hidden, hidden);
    x = g.map(x, Function::Relu);
    x = g.dropout(x, 0.5);
    g.name("classifier.5", x);
    g.name(super::PENULTIMATE, x);
    g.linear(x, "classifier.6", hidden, classes);
    g.start_convolutions_normal();
    g.start_linear_normal(0.01);
    g
}
