//! The classes and functions that a pickle may name, and the types of elements among them.

/// A class or function that checkpoints name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `collections.Counter`
    Counter,
    /// `collections.defaultdict`
    DefaultDict,
    /// `torch._utils._rebuild_tensor`, from before PyTorch 0.4
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensorV2,
    /// `torch._utils._rebuild_tensor_v3`, for types that have no class of storages
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch._utils._rebuild_parameter_with_state`
    RebuildParameterWithState,
    /// `torch._tensor._rebuild_from_type_v2`, for a tensor with attributes
    RebuildFromType,
    /// `torch.FloatStorage` and its kin.
    Storage(Element),
    /// `torch.storage.UntypedStorage`
    UntypedStorage,
    /// `torch.Tensor`, `torch.FloatTensor` and its kin, `torch.nn.parameter.Parameter`
    TensorClass,
    /// `torch.float32` and its kin, by the name without `torch.`
    TorchDtype(&'static str),
    /// `torch.Size`
    Size,
    /// `torch.device`
    Device,
    /// `torch.serialization._get_layout`
    Layout,
    /// `numpy.core.multiarray._reconstruct`
    Reconstruct,
    /// `numpy.core.numeric._frombuffer`, of protocol 5
    FromBuffer,
    /// `numpy.core.multiarray.scalar`
    Scalar,
    /// `numpy.ndarray`
    NdArray,
    /// `numpy.dtype`
    Dtype,
    /// `_codecs.encode`
    Encode,
    /// `set`
    Set,
    /// `frozenset`
    FrozenSet,
    /// `bytes`
    Bytes,
    /// `bytearray`
    ByteArray,
    /// `complex`
    Complex,
    /// `list`, `dict`, `int` and the like, which a `defaultdict` makes its values with
    Builtin,
    /// `argparse.Namespace`
    Namespace,
}

/// Functions of PyTorch whose tensors are not read, with what these are.
pub(super) const UNREAD: &[(&str, &str)] = &[
    ("_rebuild_qtensor", "a quantised tensor"),
    ("_rebuild_sparse_tensor", "a sparse tensor"),
    ("_rebuild_sparse_csr_tensor", "a sparse tensor"),
    ("_rebuild_nested_tensor", "a nested tensor"),
    (
        "_rebuild_meta_tensor_no_storage",
        "a tensor on the device `meta`, which has no elements",
    ),
    ("_rebuild_wrapper_subclass", "a subclass of tensors"),
    (
        "_rebuild_device_tensor_from_numpy",
        "a tensor of a device that has no storages",
    ),
    (
        "_rebuild_device_tensor_from_cpu_tensor",
        "a tensor of a device that has no storages",
    ),
];

/// PyTorch's types of elements; those of 8 bits and less that it writes by name only are among them to be named.
const TORCH_DTYPES: &[&str] = &[
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "complex32",
    "complex64",
    "complex128",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "quint8",
    "qint8",
    "qint32",
    "quint4x2",
    "quint2x4",
];

impl Global {
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match module {
            "collections" => match name {
                "OrderedDict" => Self::OrderedDict,
                "Counter" => Self::Counter,
                "defaultdict" => Self::DefaultDict,
                _ => return None,
            },
            "torch._utils" => match name {
                "_rebuild_tensor" => Self::RebuildTensor,
                "_rebuild_tensor_v2" => Self::RebuildTensorV2,
                "_rebuild_tensor_v3" => Self::RebuildTensorV3,
                "_rebuild_parameter" => Self::RebuildParameter,
                "_rebuild_parameter_with_state" => Self::RebuildParameterWithState,
                _ => return None,
            },
            "torch._tensor" if name == "_rebuild_from_type_v2" => Self::RebuildFromType,
            "torch.nn.parameter" if name == "Parameter" => Self::TensorClass,
            "torch.storage" if name == "UntypedStorage" => Self::UntypedStorage,
            "torch.serialization" if name == "_get_layout" => Self::Layout,
            "torch" => match name {
                "Size" => Self::Size,
                "device" => Self::Device,
                "Tensor" => Self::TensorClass,
                _ => {
                    if let Some(dtype) = TORCH_DTYPES.iter().find(|known| **known == name) {
                        return Some(Self::TorchDtype(dtype));
                    }
                    if let Some(kind) = name.strip_suffix("Storage") {
                        return Element::of_torch(kind).map(Self::Storage);
                    }
                    let kind = name.strip_suffix("Tensor")?;
                    Element::of_torch(kind)?;
                    Self::TensorClass
                }
            },
            "numpy.core.multiarray" | "numpy._core.multiarray" => match name {
                "_reconstruct" => Self::Reconstruct,
                "scalar" => Self::Scalar,
                _ => return None,
            },
            "numpy.core.numeric" | "numpy._core.numeric" if name == "_frombuffer" => {
                Self::FromBuffer
            }
            "numpy" => match name {
                "ndarray" => Self::NdArray,
                "dtype" => Self::Dtype,
                _ => return None,
            },
            "_codecs" if name == "encode" => Self::Encode,
            // Python 2's name, which protocol 2 keeps.
            "builtins" | "__builtin__" => match name {
                "set" => Self::Set,
                "frozenset" => Self::FrozenSet,
                "bytes" => Self::Bytes,
                "bytearray" => Self::ByteArray,
                "complex" => Self::Complex,
                "list" | "dict" | "tuple" | "int" | "float" | "str" | "bool" => Self::Builtin,
                _ => return None,
            },
            "argparse" if name == "Namespace" => Self::Namespace,
            _ => return None,
        })
    }

    /// Its name in Python, for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::OrderedDict => "collections.OrderedDict",
            Self::Counter => "collections.Counter",
            Self::DefaultDict => "collections.defaultdict",
            Self::RebuildTensor => "torch._utils._rebuild_tensor",
            Self::RebuildTensorV2 => "torch._utils._rebuild_tensor_v2",
            Self::RebuildTensorV3 => "torch._utils._rebuild_tensor_v3",
            Self::RebuildParameter => "torch._utils._rebuild_parameter",
            Self::RebuildParameterWithState => "torch._utils._rebuild_parameter_with_state",
            Self::RebuildFromType => "torch._tensor._rebuild_from_type_v2",
            Self::Storage(_) | Self::UntypedStorage => "a class of storages",
            Self::TensorClass => "a class of tensors",
            Self::TorchDtype(_) => "a type of elements",
            Self::Size => "torch.Size",
            Self::Device => "torch.device",
            Self::Layout => "torch.serialization._get_layout",
            Self::Reconstruct => "numpy.core.multiarray._reconstruct",
            Self::FromBuffer => "numpy.core.numeric._frombuffer",
            Self::Scalar => "numpy.core.multiarray.scalar",
            Self::NdArray => "numpy.ndarray",
            Self::Dtype => "numpy.dtype",
            Self::Encode => "_codecs.encode",
            Self::Set => "set",
            Self::FrozenSet => "frozenset",
            Self::Bytes => "bytes",
            Self::ByteArray => "bytearray",
            Self::Complex => "complex",
            Self::Builtin => "a class of Python",
            Self::Namespace => "argparse.Namespace",
        }
    }
}

/// Type of the elements of a tensor or array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Element {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl Element {
    /// By PyTorch's word in the names of its storages and tensors.
    fn of_torch(word: &str) -> Option<Self> {
        Some(match word {
            "Double" => Self::F64,
            "Float" => Self::F32,
            "Half" => Self::F16,
            "BFloat16" => Self::Bf16,
            "Long" => Self::I64,
            "Int" => Self::I32,
            "Short" => Self::I16,
            "Char" => Self::I8,
            "Byte" => Self::U8,
            "Bool" => Self::Bool,
            _ => return None,
        })
    }

    /// By the name of PyTorch's type, without `torch.`.
    pub(super) fn of_dtype(name: &str) -> Option<Self> {
        Some(match name {
            "float64" => Self::F64,
            "float32" => Self::F32,
            "float16" => Self::F16,
            "bfloat16" => Self::Bf16,
            "int64" => Self::I64,
            "int32" => Self::I32,
            "int16" => Self::I16,
            "int8" => Self::I8,
            "uint64" => Self::U64,
            "uint32" => Self::U32,
            "uint16" => Self::U16,
            "uint8" => Self::U8,
            "bool" => Self::Bool,
            _ => return None,
        })
    }

    pub(super) fn of_numpy(code: &str) -> Option<Self> {
        Some(match code {
            "f8" => Self::F64,
            "f4" => Self::F32,
            "f2" => Self::F16,
            "i8" => Self::I64,
            "i4" => Self::I32,
            "i2" => Self::I16,
            "i1" => Self::I8,
            "u8" => Self::U64,
            "u4" => Self::U32,
            "u2" => Self::U16,
            "u1" => Self::U8,
            "b1" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}
