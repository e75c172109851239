//! ResNet-18 and -34 (He et al., CVPR 2016) as torchvision builds them, with the stem for large images.
//!
//! A 7x7 convolution of stride 2, normalisation, ReLU and 3x3 max pooling of stride 2, four stages of basic blocks,
//! global average pooling, `fc`. A block is `relu(bn2(conv2(relu(bn1(conv1(x))))) + skip)`, where the skip is
//! `bn(conv 1x1)` when the shape changes and `x` otherwise.

use crate::graph::{ConvLayer, Graph, Value};
use crate::kernels::pool::Window;

/// `blocks` of each stage: 2, 2, 2, 2 or 3, 4, 6, 3.
pub(super) fn resnet(blocks: [usize; 4], width: usize, classes: usize) -> Graph {
    let mut g = Graph::new();
    let stem = ConvLayer {
        cin: 3,
        cout: width,
        k: 7,
        stride: 2,
        pad: 3,
        bias: false,
    };
    let x = g.conv_layer(0, "conv1", stem);
    let norm = g.norm("bn1", width);
    let x = g.norm_relu(x, norm);
    let window = Window {
        k: 3,
        stride: 2,
        pad: 1,
    };
    let mut x = g.max_pool(x, window);
    g.name("maxpool", x);
    let mut channels = width;
    for (stage, blocks) in blocks.into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = format!("layer{}.{block}", stage + 1);
            x = self::block(&mut g, x, &name, channels, width << stage, stride);
            channels = width << stage;
        }
        g.name(&format!("layer{}", stage + 1), x);
    }
    let pooled = g.global_average_pool(x);
    g.name("avgpool", pooled);
    g.name(super::PENULTIMATE, pooled);
    g.linear(pooled, "fc", channels, classes);
    g.start_convolutions_normal();
    g
}

fn block(g: &mut Graph, x: Value, name: &str, cin: usize, cout: usize, stride: usize) -> Value {
    let three = |cin, stride| ConvLayer {
        bias: false,
        ..ConvLayer::three(cin, cout, stride)
    };
    let h = g.conv_layer(x, &format!("{name}.conv1"), three(cin, stride));
    g.name(&format!("{name}.conv1"), h);
    let bn1 = g.norm(&format!("{name}.bn1"), cout);
    let h = g.norm_relu(h, bn1);
    let h = g.conv_layer(h, &format!("{name}.conv2"), three(cout, 1));
    g.name(&format!("{name}.conv2"), h);
    let bn2 = g.norm(&format!("{name}.bn2"), cout);
    let h = g.batch_norm(h, bn2, false);
    let skip = if stride != 1 || cin != cout {
        let one = ConvLayer {
            k: 1,
            pad: 0,
            ..three(cin, stride)
        };
        let skip = g.conv_layer(x, &format!("{name}.downsample.0"), one);
        let norm = g.norm(&format!("{name}.downsample.1"), cout);
        g.batch_norm(skip, norm, false)
    } else {
        x
    };
    g.add_relu(h, skip)
}
