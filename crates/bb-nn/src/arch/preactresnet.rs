//! Pre-activation ResNet-18 for small images (He et al., ECCV 2016), as the benchmark builds it.
//!
//! A 3x3 stem without normalisation, four stages of two blocks, global average pooling, `linear`.
//! A block is `a = relu(bn1(x))`, `h = conv2(relu(bn2(conv1(a))))`, `out = h + skip`, where the skip is a bias-free
//! 1x1 convolution of `a` when the shape changes and the raw `x` otherwise.
//! There is neither normalisation nor ReLU after the last block.

use crate::graph::{Graph, Value};

pub(super) fn preactresnet18(width: usize, classes: usize) -> Graph {
    let mut g = Graph::new();
    let stem = g.conv_weight("conv1", width, 3, 3);
    let mut x = g.conv(0, None, stem, 3, 1, 1);
    g.name("conv1", x);
    let mut channels = width;
    for stage in 0..4 {
        for block in 0..2 {
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
    g.linear(pooled, "linear", channels, classes);
    g
}

fn block(g: &mut Graph, x: Value, name: &str, cin: usize, cout: usize, stride: usize) -> Value {
    let bn1 = g.norm(&format!("{name}.bn1"), cin);
    let conv1 = g.conv_weight(&format!("{name}.conv1"), cout, cin, 3);
    let bn2 = g.norm(&format!("{name}.bn2"), cout);
    let conv2 = g.conv_weight(&format!("{name}.conv2"), cout, cout, 3);
    let a = g.norm_relu(x, bn1);
    let skip = if stride != 1 || cin != cout {
        let shortcut = g.conv_weight(&format!("{name}.shortcut.0"), cout, cin, 1);
        g.conv(a, None, shortcut, 1, stride, 0)
    } else {
        x
    };
    let h = g.conv(a, None, conv1, 3, stride, 1);
    g.name(&format!("{name}.conv1"), h);
    let h = g.norm_relu(h, bn2);
    g.conv(h, Some(skip), conv2, 3, 1, 1)
}
