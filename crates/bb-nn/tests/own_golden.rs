//! PyTorch's numbers on a tiny network, kept in the repository, so that every checkout has them.

mod common;
#[path = "common/tiny.rs"]
mod tiny;

#[test]
fn golden_tiny_network() {
    tiny::check(&bb_nn::Compute::Cpu);
}
