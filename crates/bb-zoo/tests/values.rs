//! What stands beside tensors in checkpoints, and the ways in which tensors themselves are written.

mod program;

use bb_zoo::torch::pickle::{Object, Value};
use bb_zoo::torch::{Checkpoint, Detail, TensorData, nested, scan};
use program::{Program, archive, put, tensors};
use zip::CompressionMethod;

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A file with this pickle and these storages.
fn file(pickle: &[u8], storages: &[&[u8]]) -> Vec<u8> {
    let names: Vec<String> = (0..storages.len()).map(|i| format!("x/data/{i}")).collect();
    let mut files: Vec<(&str, &[u8])> = vec![("x/data.pkl", pickle)];
    files.extend(
        names
            .iter()
            .map(String::as_str)
            .zip(storages.iter().copied()),
    );
    archive(&files, CompressionMethod::Stored)
}

fn storage(program: Program, class: &str, len: i32) -> Program {
    program
        .op(b"(")
        .text("storage")
        .global("torch", class)
        .text("0")
        .text("cpu")
        .int(len)
        .op(b"tQ")
}

#[test]
fn harmless_values_beside_tensors_are_inert() {
    let new = Program::new;
    let two = |program: Program| program.op(b"](K\x01K\x02e\x85R");
    for (kind, program) in [
        (
            "a dictionary",
            new()
                .global("collections", "Counter")
                .op(b"}K\x07K\x01s\x85R"),
        ),
        (
            "a dictionary",
            new().global("collections", "Counter").op(b")R"),
        ),
        (
            "a dictionary",
            new()
                .global("collections", "defaultdict")
                .global("__builtin__", "list")
                .op(b"\x85R"),
        ),
        (
            "a device",
            new().global("torch", "device").text("cuda").op(b"K\0\x86R"),
        ),
        (
            "a device",
            new().global("torch", "device").text("cpu").op(b"\x85R"),
        ),
        ("a type of elements", new().global("torch", "float32")),
        (
            "a layout",
            new()
                .global("torch.serialization", "_get_layout")
                .text("torch.strided")
                .op(b"\x85R"),
        ),
        ("a set", two(new().global("__builtin__", "set"))),
        ("a set", two(new().global("builtins", "frozenset"))),
        ("a set", new().op(b"\x8f(K\x01K\x02\x90")),
        ("a set", new().op(b"(K\x01K\x02\x91")),
        (
            "a byte string",
            new().global("__builtin__", "bytes").op(b")R"),
        ),
        (
            "a byte string",
            new().global("builtins", "bytearray").op(b"C\x01a\x85R"),
        ),
        ("a byte string", new().op(b"\x96\x02\0\0\0\0\0\0\0ab")),
        (
            "a complex number",
            new()
                .global("__builtin__", "complex")
                .op(b"G\0\0\0\0\0\0\0\0K\x02\x86R"),
        ),
        (
            "an argparse.Namespace",
            new()
                .global("argparse", "Namespace")
                .op(b")\x81}")
                .text("lr")
                .op(b"K\x01sb"),
        ),
        ("a class", new().global("torch.nn.parameter", "Parameter")),
        ("a whole number", Program(b"I42\n".to_vec())),
        ("a truth value", Program(b"I01\n".to_vec())),
        ("a whole number", Program(b"L-42L\n".to_vec())),
        ("a number", Program(b"F0.5\n".to_vec())),
        ("a text", new().op(b"U\x02ab")),
        ("a list", new().op(b"(K\x01lp0\n")),
        ("a dictionary", new().op(b"(K\x01K\x02dq\x01")),
    ] {
        let bytes = program.0.clone();
        let pickle = program.read().expect(kind);
        assert_eq!(pickle.kind(&pickle.root), kind, "{bytes:?}");
    }
    // A class that does something stays what it was: refused by name.
    for (module, name) in [
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("torch.jit", "load"),
    ] {
        let error = new().global(module, name).read().expect_err(name);
        assert!(
            error.contains(&format!("`{module}.{name}` is not allowed")),
            "{error}"
        );
    }
    let error = new().global("torch._utils", "_rebuild_qtensor").read();
    let error = error.expect_err("no such tensors");
    assert!(
        error.contains("makes a quantised tensor, which is not read"),
        "{error}"
    );
}

#[test]
fn an_ordered_dictionary_of_python_2_is_a_dictionary() {
    let pickle = Program::new()
        .global("collections", "OrderedDict")
        .op(b"q\x01](](U\x01aK\x01e](U\x01bK\x02ee\x85R")
        .read()
        .expect("what cPickle writes, from memo entry 1 on");
    let entries = pickle.dict(&pickle.root).expect("a dictionary");
    let expected = [("a", 1), ("b", 2)].map(|(k, v)| (Value::Text(k.into()), Value::Int(v)));
    assert_eq!(entries, expected);
}

#[test]
fn every_way_to_write_a_tensor_gives_it() {
    let hooks = b"\x89ccollections\nOrderedDict\n)R";
    let four = |program: Program| program.op(b"K\0").ints(&[2, 2]).ints(&[2, 1]);
    let v2 = |program: Program| {
        let begun = program
            .global("torch._utils", "_rebuild_tensor_v2")
            .op(b"(");
        four(storage(begun, "FloatStorage", 4)).op(hooks)
    };
    let new = || Program::new().op(b"}").text("w");
    let begun = new().global("torch._utils", "_rebuild_tensor").op(b"(");
    let old = four(storage(begun, "FloatStorage", 4)).op(b"tR");
    let negated = v2(new()).op(b"}").text("neg").op(b"\x88stR");
    let plain = v2(new()).op(b"NtR");
    let with_state = new()
        .global("torch._utils", "_rebuild_parameter_with_state")
        .op(b"(");
    let with_state = v2(with_state)
        .op(b"tR")
        .op(hooks)
        .op(b"}")
        .text("tag")
        .op(b"K\x01stR");
    let typed = new()
        .global("torch._tensor", "_rebuild_from_type_v2")
        .op(b"(");
    let typed = typed.global("torch._utils", "_rebuild_tensor_v2");
    let typed = typed.global("torch.nn.parameter", "Parameter").op(b"(");
    let typed = four(storage(typed, "FloatStorage", 4))
        .op(hooks)
        .op(b"t}tR");
    let data = floats(&[1.0, 2.0, 3.0, 4.0]);
    for (name, program, sign) in [
        ("old", old, 1.0),
        ("negated", negated, -1.0),
        ("plain", plain, 1.0),
        ("with state", with_state, 1.0),
        ("typed", typed, 1.0),
    ] {
        let (_folder, path) = put(&file(&program.op(b"s").end(), &[&data]));
        let found = tensors(&path).expect(name);
        let expected = [1.0, 2.0, 3.0, 4.0].map(|v| sign * v);
        assert_eq!(found[0].data, TensorData::Float(expected.into()), "{name}");
    }
    let third = |dtype: &str| {
        let begun = new().global("torch._utils", "_rebuild_tensor_v3").op(b"((");
        let stored = begun
            .text("storage")
            .global("torch.storage", "UntypedStorage");
        let stored = stored.text("0").text("cpu").int(4).op(b"tQ");
        let whole = stored.op(b"K\0K\x02\x85K\x01\x85").op(hooks);
        whole.global("torch", dtype).op(b"tRs").end()
    };
    let (_folder, path) = put(&file(&third("uint16"), &[&[1, 0, 255, 255]]));
    let found = tensors(&path).expect("16 bits without sign");
    assert_eq!(found[0].data, TensorData::Int(vec![1, 65_535]));
    let (_folder, path) = put(&file(&third("float8_e4m3fn"), &[&[0; 4]]));
    let error = tensors(&path).expect_err("8 bits");
    let cause = std::error::Error::source(&error)
        .expect("the pickle's")
        .to_string();
    assert!(
        cause.contains("a tensor of `torch.float8_e4m3fn`, which is not read"),
        "{cause}"
    );
}

#[test]
fn views_of_one_storage_are_charged_what_they_have() {
    // 500 parameters of four numbers each in one storage, as flat parameters are saved.
    let count = 500;
    let all: Vec<f32> = (0..4 * count).map(|i| i as f32).collect();
    let mut program = Program::new().op(b"}");
    for i in 0..count {
        let name = format!("w{i}");
        program = program
            .text(&name)
            .tensor("0", 4 * count, 4 * i, &[2, 2], &[2, 1])
            .op(b"s");
    }
    let (_folder, path) = put(&file(&program.end(), &[&floats(&all)]));
    let found = tensors(&path).expect("all of one storage");
    assert_eq!(found.len(), 500);
    let expected = vec![1996.0, 1997.0, 1998.0, 1999.0];
    assert_eq!(found[499].data, TensorData::Float(expected));

    // Repeated and overlapping elements are what PyTorch makes of them.
    let views = Program::new()
        .op(b"}")
        .text("row")
        .tensor("0", 4, 1, &[2, 3], &[0, 1])
        .op(b"s")
        .text("column")
        .tensor("0", 4, 0, &[2], &[3])
        .op(b"s");
    let (_folder, path) = put(&file(&views.end(), &[&floats(&[1.0, 2.0, 3.0, 4.0])]));
    let found = tensors(&path).expect("views");
    let data = |values: &[f32]| TensorData::Float(values.to_vec());
    assert_eq!(found[0].data, data(&[2.0, 3.0, 4.0, 2.0, 3.0, 4.0]));
    assert_eq!(found[1].data, data(&[1.0, 4.0]));
}

#[test]
fn state_dictionaries_are_found_below_the_keys_that_lead_to_them() {
    let tensor = |program: Program| program.text("w").tensor("0", 1, 0, &[1], &[1]).op(b"s");
    let inner = |program: Program| tensor(program.op(b"}"));
    let nested_once = inner(
        Program::new()
            .op(b"}")
            .text("epoch")
            .op(b"K\x01s")
            .text("net"),
    );
    let program = inner(nested_once.op(b"q\x01s").text("ema").op(b"}").text("a.b")).op(b"ss");
    // The same dictionary a second time is no second network.
    let program = program.text("best").op(b"h\x01s");
    let (_folder, path) = put(&file(&program.end(), &[&floats(&[1.0])]));
    let checkpoint = Checkpoint::open(&path).expect("a good file");
    let keys: Vec<String> = nested::places(&checkpoint)
        .into_iter()
        .map(|p| p.key)
        .collect();
    assert_eq!(keys, ["net", "ema.a.b"]);
    let at = |key: &str| nested::at(&checkpoint, key).map(|v| checkpoint.pickle().kind(v));
    assert_eq!(at("ema.a.b"), Some("a dictionary"));
    assert_eq!(at("ema.a.b.w"), Some("a tensor"));
    assert_eq!(at("epoch"), Some("a whole number"));
    for absent in ["", "nets", "ema.a", "ema.a.b.", "net.w.x", "epoch.0"] {
        assert_eq!(at(absent), None, "{absent}");
    }
    let page = scan(&checkpoint, Detail::PAGE);
    assert!(page.starts_with("dictionary of 4\n  epoch: 1\n"), "{page}");
}

#[test]
fn arrays_and_numbers_of_numpy_are_read_in_every_type() {
    let dtype = |program: Program, code: &str, order: &str| {
        let made = program.global("numpy", "dtype").text(code);
        // Old versions of NumPy write numbers for the truth values.
        let made = made.op(b"K\0K\x01\x87R(K\x03").text(order).op(b"NNN");
        made.int(-1).int(-1).op(b"K\0tb")
    };
    for (code, order, bytes, expected) in [
        ("b1", "|", &[1][..], Value::Bool(true)),
        ("u1", "|", &[200], Value::Int(200)),
        ("u4", "<", &[255; 4], Value::Int(4_294_967_295)),
        ("f2", "<", &[0, 0x3c], Value::Float(1.0)),
        ("i2", "<", &[0xfe, 0xff], Value::Int(-2)),
        ("u8", "<", &[255; 8], Value::Bytes([255; 8].into())),
    ] {
        let begun = dtype(
            Program::new().global("numpy._core.multiarray", "scalar"),
            code,
            order,
        );
        let len = u8::try_from(bytes.len()).expect("short");
        let pickle = begun.op(&[b'C', len]).op(bytes).op(b"\x86R").read();
        assert_eq!(pickle.expect(code).root, expected, "{code}");
    }
    let begun = Program::new().global("numpy.core.multiarray", "_reconstruct");
    let begun = begun
        .global("numpy", "ndarray")
        .op(b"K\0\x85U\x01b\x87R(K\x01")
        .ints(&[2, 3]);
    let fortran = dtype(begun, "u2", "<")
        .op(b"\x88C\x0c")
        .op(&[7; 12])
        .op(b"tb");
    let fortran = fortran.read().expect("an array in Fortran's order");
    match fortran.object(&fortran.root) {
        Some(Object::Array(Some(array))) => assert!(array.fortran && array.shape == [2, 3]),
        other => panic!("{other:?}"),
    }
    let empty = Program::new().global("numpy.core.numeric", "_frombuffer");
    let empty = dtype(empty.op(b"C\0"), "f8", "<")
        .ints(&[0])
        .text("C")
        .op(b"(0")
        .read();
    assert!(empty.is_err(), "it is not called");
    let called = Program::new()
        .global("numpy.core.numeric", "_frombuffer")
        .op(b"(C\0");
    let called = dtype(called, "f8", "<")
        .ints(&[0])
        .text("C")
        .op(b"tR")
        .read();
    let called = called.expect("an empty array of protocol 5");
    assert_eq!(called.kind(&called.root), "an array");
}

#[test]
fn what_lies_in_place_of_a_checkpoint_is_named() {
    let stored = |files: &[(&str, &[u8])]| archive(files, CompressionMethod::Stored);
    for (reason, bytes) in [
        (
            "it is a TorchScript archive",
            stored(&[
                ("m/data.pkl", b"\x80\x02}."),
                ("m/constants.pkl", b"\x80\x02)."),
            ]),
        ),
        (
            "it is an archive with `a/attack_result.pt` in it",
            stored(&[
                ("a/bd_test_dataset/0/1.png", b"x"),
                ("a/attack_result.pt", b"PK"),
            ]),
        ),
        (
            "it is an archive with `net.PTH` in it",
            stored(&[("net.PTH", b"PK")]),
        ),
        (
            "it is an archive of NumPy arrays",
            stored(&[("w.npy", b"\x93NUMPY")]),
        ),
        ("it is compressed with gzip", b"\x1f\x8b\x08\0".to_vec()),
        ("it is an HDF5 file", b"\x89HDF\r\n\x1a\n".to_vec()),
        ("but a pickle by itself", b"\x80\x04}.".to_vec()),
    ] {
        let (_folder, path) = put(&bytes);
        let error = Checkpoint::open(&path).expect_err(reason).to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let (_folder, path) = put(&file(&Program::new().op(b"]").end(), &[]));
    let error = tensors(&path).expect_err("a list").to_string();
    assert!(
        error.ends_with("file.pt` is a list, expected a dictionary"),
        "{error}"
    );
}
