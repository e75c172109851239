//! PyTorch's numbers on tiny networks, made by `golden_data/make.py` and kept beside it.

use crate::common::{assert_close, assert_relative, floats, golden, labels};
use bb_nn::data::Input;
use bb_nn::net::{Mode, Net};
use bb_nn::optim::Sgd;
use bb_nn::{ArchSpec, Compute, StateDict};
use candle_core::DType;

/// The smallest case, computed on `compute`.
pub(crate) fn check(compute: &Compute) {
    check_case(compute, "preactresnet");
}

/// Forward pass, gradients and two steps of SGD, computed on `compute`.
pub(crate) fn check_case(compute: &Compute, name: &str) {
    let mut all = golden(name);
    if let Some(pixels) = all.get("pixels") {
        let x = pixels
            .to_dtype(DType::F32)
            .unwrap()
            .affine(1.0 / 128.0, -1.0);
        all.insert("x".to_owned(), x.unwrap());
    }
    let mut state = StateDict::new();
    for (name, tensor) in all
        .iter()
        .filter_map(|(n, t)| Some((n.strip_prefix("state.")?, t)))
    {
        // The start may be rounded to bf16, to make the file small.
        let start = match tensor.dtype() {
            DType::BF16 => tensor.to_dtype(DType::F32).unwrap(),
            _ => tensor.clone(),
        };
        state.insert(name, start);
    }
    let width = all["state.conv1.weight"].dims()[0];
    let classes = all["state.linear.bias"].dims()[0];
    let spec = ArchSpec::new("preactresnet18", width, classes).unwrap();
    let mut net = Net::from_state(&spec, &state).unwrap().on(compute).unwrap();
    let (n, _, h, w) = all["x"].dims4().unwrap();
    let input = Input::from_nchw(n, h, w, &floats(&all["x"]));
    let batch_labels = labels(&all["labels"]);

    assert_close(
        "logits_eval",
        &net.forward(&input, Mode::Eval),
        &floats(&all["logits_eval"]),
        2e-5,
    );
    let logits = net.forward(&input, Mode::TrainKeepStats);
    assert_close("logits_train", &logits, &floats(&all["logits_train"]), 2e-5);

    let mut grads = net.zeros();
    let mut sgd = Sgd::new(net.params(), 0.9, 5e-4, false);
    for step in 0..2 {
        let loss = net.loss_grad(&input, &batch_labels, Mode::Train, &mut grads);
        if step == 0 {
            assert_close("loss", &[loss.mean], &floats(&all["loss"]), 1e-5);
            for (i, entry) in grads.layout().entries().iter().enumerate() {
                let expected = floats(&all[&format!("grad.{}", entry.name)]);
                assert_relative(&entry.name, &grads.to_plain(i), &expected, 1e-3);
            }
        }
        sgd.step(net.params_mut(), &grads, 0.05);
    }
    let after = net.state().unwrap();
    assert_eq!(
        after.len(),
        all.keys().filter(|k| k.starts_with("after.")).count()
    );
    for (name, tensor) in after.iter() {
        assert_relative(
            name,
            &floats(tensor),
            &floats(&all[&format!("after.{name}")]),
            1e-3,
        );
    }
}
