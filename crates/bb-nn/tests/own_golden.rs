//! PyTorch's numbers on tiny networks, kept in the repository, so that every checkout has them.

mod common;
#[path = "common/tiny.rs"]
mod tiny;

use bb_nn::{ArchSpec, Compute, Net};

#[test]
fn golden_tiny_network() {
    tiny::check(&Compute::Cpu);
}

/// 43 classes of 32 x 32 pixels.
#[test]
fn golden_shape_of_gtsrb() {
    tiny::check_case(&Compute::Cpu, "preactresnet_gtsrb");
}

/// 200 classes of 64 x 64 pixels, whose last map has 8 x 8 places and not 4 x 4.
#[test]
fn golden_shape_of_tiny_imagenet() {
    tiny::check_case(&Compute::Cpu, "preactresnet_tiny");
}

/// At full width, with the classes of CIFAR-10, GTSRB, CIFAR-100 and Tiny ImageNet.
#[test]
fn the_full_network_has_as_many_parameters_as_the_benchmarks() {
    for (classes, parameters) in [
        (10, 11_171_146),
        (43, 11_188_075),
        (100, 11_217_316),
        (200, 11_268_616),
    ] {
        let arch = ArchSpec::new("preactresnet18", 64, classes).unwrap();
        let net = Net::new(&arch, 0);
        assert_eq!(net.params().data().len(), parameters, "{classes} classes");
        let last = net.params().layout().entries().last().unwrap();
        assert_eq!(
            (last.name.as_str(), &last.shape[..]),
            ("linear.bias", &[classes][..])
        );
    }
}
