// libcudnn.so.9: two-dimensional f32 and bf16 convolutions on host memory, by plain loops with sums in f64.
//
// Dimensions are always N, C, H, W (tensors) and K, C, R, S (filters); a format only says how they lie in memory.
// Parameters that do not fit each other give an error, also explained on stderr.

#include "emulator.h"

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <vector>

namespace {

enum Status : int {
    SUCCESS = 0,
    BAD_PARAM = 2000,
    NULL_POINTER = 2002,
    SIZE_INSUFFICIENT = 2006,
    SHAPE_MISMATCH = 2008,
    NOT_SUPPORTED = 3000,
};

struct {
    Status status;
    const char *name;
} const NAMES[] = {
    {SUCCESS, "CUDNN_STATUS_SUCCESS"},
    {BAD_PARAM, "CUDNN_STATUS_BAD_PARAM"},
    {NULL_POINTER, "CUDNN_STATUS_BAD_PARAM_NULL_POINTER"},
    {SIZE_INSUFFICIENT, "CUDNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT"},
    {SHAPE_MISMATCH, "CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH"},
    {NOT_SUPPORTED, "CUDNN_STATUS_NOT_SUPPORTED"},
};

__attribute__((format(printf, 2, 3))) Status fail(Status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    std::fputs("emulator: cuDNN: ", stderr);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
    return status;
}

#define NEED(condition, status, ...)                                                                                   \
    if (!(condition)) return fail(status, __VA_ARGS__)

enum Format { NCHW = 0, NHWC = 1 };
enum Type { FLOAT = 0, BFLOAT16 = 9 };
constexpr int CONVOLUTION = 0, CROSS_CORRELATION = 1;

// A tensor or a filter: four dimensions and the distances of neighbours along them. A size of 0 means "not set".
struct Array {
    Type type = FLOAT;
    int size[4] = {};
    long long stride[4] = {};

    void set(Format format, int n, int c, int h, int w)
    {
        const int sizes[4] = {n, c, h, w};
        const long long wide = w;
        const long long nchw[4] = {c * h * wide, h * wide, wide, 1}, nhwc[4] = {c * h * wide, 1, wide * c, c};
        std::memcpy(size, sizes, sizeof size);
        std::memcpy(stride, format == NCHW ? nchw : nhwc, sizeof stride);
    }

    // Elements from the first to the last.
    std::size_t extent() const
    {
        std::size_t last = 0;
        for (int d = 0; d < 4; d++) last += (size[d] - 1) * stride[d];
        return last + 1;
    }

    std::size_t element_bytes() const { return type == FLOAT ? sizeof(float) : sizeof(std::uint16_t); }
    std::size_t bytes() const { return extent() * element_bytes(); }

    std::size_t at(int n, int c, int h, int w) const
    {
        return n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3];
    }

    bool lies_as(Format format) const
    {
        Array packed;
        packed.set(format, size[0], size[1], size[2], size[3]);
        for (int d = 0; d < 4; d++)
            if (size[d] > 1 && stride[d] != packed.stride[d]) return false;
        return true;
    }
};

struct Filter : Array {
    Format format = NCHW;
};

struct Convolution {
    int pad[2] = {}, stride[2] = {}, dilation[2] = {}; // rows, columns; a stride of 0 means "not set"
    int mode = CROSS_CORRELATION, math = 0, groups = 1;

    int output(int input, int filter, int d) const
    {
        return (input + 2 * pad[d] - (dilation[d] * (filter - 1) + 1)) / stride[d] + 1;
    }
};

struct Handle {};

// Whether the four descriptors describe one convolution.
Status check(const void *handle, const Array *x, const Filter *w, const Array *y, const Convolution *conv)
{
    NEED(handle && x && w && y && conv, NULL_POINTER, "null handle or descriptor");
    NEED(x->size[0] && w->size[0] && y->size[0] && conv->stride[0], BAD_PARAM, "a descriptor was not set");
    NEED(x->size[1] == w->size[1] * conv->groups && w->size[0] % conv->groups == 0, SHAPE_MISMATCH,
         "%d channels, filter of %d by %d channels, %d groups", x->size[1], w->size[0], w->size[1], conv->groups);
    int want[4] = {x->size[0], w->size[0], 0, 0};
    for (int d = 0; d < 2; d++) {
        NEED(x->size[2 + d] + 2 * conv->pad[d] >= conv->dilation[d] * (w->size[2 + d] - 1) + 1, SHAPE_MISMATCH,
             "a filter larger than the padded image");
        want[2 + d] = conv->output(x->size[2 + d], w->size[2 + d], d);
    }
    NEED(!std::memcmp(want, y->size, sizeof want), SHAPE_MISMATCH,
         "output is %d x %d x %d x %d, must be %d x %d x %d x %d", y->size[0], y->size[1], y->size[2], y->size[3],
         want[0], want[1], want[2], want[3]);
    NEED(x->lies_as(w->format) && y->lies_as(w->format), NOT_SUPPORTED, "tensors and filter of different formats");
    NEED(x->type == w->type && y->type == w->type, NOT_SUPPORTED, "tensors and filter of different types");
    return SUCCESS;
}

// ---- Algorithms

// One of the three convolutions and the algorithms that it has: 0 and 1 everywhere, as their numbers in cuDNN, and some
// others. Which of them are deterministic is as in cuDNN, but for the forward one: there all are, and so that programs
// do not take the first that is offered, GEMM (2) claims not to be.
struct Kind {
    const char *name;
    struct {
        int number;
        bool deterministic;
    } algorithms[4]; // in the order of an estimate; the fastest one is not deterministic
};

const Kind FORWARD = {"forward", {{2, false}, {1, true}, {0, true}, {7, true}}};
const Kind DATA = {"data", {{0, false}, {1, true}, {5, true}, {4, true}}};
const Kind FILTER = {"filter", {{0, false}, {1, true}, {5, true}, {3, false}}};

// Whether EMULATED_CUDNN_REFUSES, for example "forward:1,data:1", names the algorithm.
bool refused(const Kind &kind, int algorithm)
{
    const char *text = std::getenv("EMULATED_CUDNN_REFUSES");
    bool found = false;
    while (text && *text) {
        char name[8];
        int number, length = 0;
        const bool read = std::sscanf(text, "%7[a-z]:%d%n", name, &number, &length) == 2;
        const char *end = text + length;
        bool known = false;
        for (const Kind *k : {&FORWARD, &DATA, &FILTER}) known |= read && !std::strcmp(name, k->name);
        if (!known || (*end && *end != ',')) {
            fail(BAD_PARAM, "EMULATED_CUDNN_REFUSES at `%s`: must be a list of forward:N, data:N and filter:N", text);
            std::abort();
        }
        found |= !std::strcmp(name, kind.name) && number == algorithm;
        text = *end ? end + 1 : end;
    }
    return found;
}

bool accepts(const Kind &kind, int algorithm)
{
    for (const auto &a : kind.algorithms)
        if (a.number == algorithm) return !refused(kind, algorithm);
    return false;
}

// The workspace that an algorithm is said to need: of no use, but not always 0.
std::size_t workspace_bytes(const Filter &w, int algorithm)
{
    return algorithm == 0 ? 0 : 256 + w.extent() * sizeof(float);
}

Status get_workspace(
    const Kind &kind, const void *handle, const Array *x, const Filter *w, const Array *y, const Convolution *conv,
    int algorithm, std::size_t *bytes)
{
    if (const Status status = check(handle, x, w, y, conv)) return status;
    NEED(bytes, NULL_POINTER, "null pointer for the size");
    NEED(accepts(kind, algorithm), NOT_SUPPORTED, "%s algorithm %d", kind.name, algorithm);
    *bytes = workspace_bytes(*w, algorithm);
    return SUCCESS;
}

// cudnnConvolution...AlgoPerf_t, the same for all kinds.
struct Performance {
    int algorithm, status;
    float milliseconds;
    std::size_t memory;
    int determinism, math, reserved[3];
};

Status get_algorithms(
    const Kind &kind, const void *handle, const Array *x, const Filter *w, const Array *y, const Convolution *conv,
    int room, int *count, Performance *out)
{
    if (const Status status = check(handle, x, w, y, conv)) return status;
    NEED(count && out, NULL_POINTER, "null pointer for the algorithms");
    NEED(room > 0, BAD_PARAM, "room for %d algorithms", room);
    *count = 0;
    for (const auto &a : kind.algorithms)
        if (*count < room && accepts(kind, a.number)) {
            out[*count] = {a.number,        SUCCESS,   float(*count + 1), workspace_bytes(*w, a.number),
                           a.deterministic, conv->math, {}};
            ++*count;
        }
    return SUCCESS;
}

// An operand in device memory.
struct Operand {
    const Array *array;
    const void *data;
};

bool overlap(const Operand &a, const Operand &b)
{
    const auto begin = [](const Operand &o) { return (std::uintptr_t)o.data; };
    const auto end = [&](const Operand &o) { return begin(o) + o.array->bytes(); };
    return begin(a) < end(b) && begin(b) < end(a);
}

// What is left of a convolution's arguments once they are checked. A graph keeps it.
struct Work {
    Array x;
    Filter w;
    Array y;
    Convolution conv;
    void *workspace;
    std::size_t needed;
    float alpha, beta;

    // Clobbers the workspace and counts.
    void begin() const
    {
        if (needed) std::memset(workspace, 0xFF, needed);
        emulator_count_convolution();
    }
};

// Does the work, or adds it to the graph that is being recorded.
template <typename F> Status perform(F work)
{
    if (!emulator_recording()) {
        work();
        return SUCCESS;
    }
    emulator_record([work] {
        work();
        return int(SUCCESS);
    });
    return SUCCESS;
}

// The checks of all three convolutions.
Status prepare(
    const Kind &kind, const void *handle, const Array *x, const Filter *w, const Array *y, const Convolution *conv,
    int algorithm, const Operand &first, const Operand &second, const Operand &result, void *workspace,
    std::size_t bytes, const void *alpha, const void *beta, Work *work)
{
    if (const Status status = check(handle, x, w, y, conv)) return status;
    NEED(alpha && beta && first.data && second.data && result.data, NULL_POINTER, "null pointer");
    NEED(accepts(kind, algorithm), NOT_SUPPORTED, "%s algorithm %d", kind.name, algorithm);
    for (const Operand &o : {first, second, result}) {
        NEED(emulator_contains(o.data, o.array->bytes()), BAD_PARAM, "%zu values at %p are not in device memory",
             o.array->extent(), o.data);
        NEED((std::uintptr_t)o.data % o.array->element_bytes() == 0, BAD_PARAM, "%p is misaligned", o.data);
    }
    NEED(!overlap(result, first) && !overlap(result, second), BAD_PARAM, "the result overlaps an operand");
    const std::size_t needed = workspace_bytes(*w, algorithm);
    NEED(bytes >= needed, SIZE_INSUFFICIENT, "workspace of %zu bytes, needs %zu", bytes, needed);
    NEED(!needed || emulator_contains(workspace, bytes), BAD_PARAM, "the workspace is not in device memory");
    *work = {*x, *w, *y, *conv, workspace, needed, *(const float *)alpha, *(const float *)beta};
    return SUCCESS;
}

// Calls f(place in x, place in w, place in y) for every product of the convolution.
template <typename F> void for_products(const Array &x, const Filter &w, const Array &y, const Convolution &conv, F f)
{
    const int per_group = w.size[0] / conv.groups;
    for (int n = 0; n < y.size[0]; n++)
        for (int k = 0; k < y.size[1]; k++)
            for (int p = 0; p < y.size[2]; p++)
                for (int q = 0; q < y.size[3]; q++)
                    for (int r = 0; r < w.size[2]; r++)
                        for (int s = 0; s < w.size[3]; s++) {
                            const int row = p * conv.stride[0] - conv.pad[0] + r * conv.dilation[0];
                            const int column = q * conv.stride[1] - conv.pad[1] + s * conv.dilation[1];
                            if (row < 0 || row >= x.size[2] || column < 0 || column >= x.size[3]) continue;
                            const bool flip = conv.mode == CONVOLUTION;
                            const std::size_t first = k / per_group * w.size[1];
                            for (int c = 0; c < w.size[1]; c++)
                                f(x.at(n, first + c, row, column),
                                  w.at(k, c, flip ? w.size[2] - 1 - r : r, flip ? w.size[3] - 1 - s : s),
                                  y.at(n, k, p, q));
                        }
}

// One value as it is stored.
double read(const Array &array, const void *data, std::size_t i)
{
    return array.type == FLOAT ? static_cast<const float *>(data)[i]
                               : emulator::from_bf16(static_cast<const std::uint16_t *>(data)[i]);
}

void write(const Array &array, void *data, std::size_t i, double value)
{
    if (array.type == FLOAT)
        static_cast<float *>(data)[i] = float(value);
    else
        static_cast<std::uint16_t *>(data)[i] = emulator::to_bf16(value);
}

typedef std::vector<double> Doubles;

Doubles values(const Array &array, const void *data)
{
    Doubles out(array.extent());
    for (std::size_t i = 0; i < out.size(); i++) out[i] = read(array, data, i);
    return out;
}

// result = alpha * sums + beta * result; with beta = 0 the result is not read.
void blend(const Array &array, const Doubles &sums, float a, float b, void *result)
{
    for (int n = 0; n < array.size[0]; n++)
        for (int c = 0; c < array.size[1]; c++)
            for (int h = 0; h < array.size[2]; h++)
                for (int w = 0; w < array.size[3]; w++) {
                    const std::size_t i = array.at(n, c, h, w);
                    const double value = a * sums[i];
                    write(array, result, i, b == 0 ? value : value + b * read(array, result, i));
                }
}

template <typename T> Status create(T **object)
{
    NEED(object, NULL_POINTER, "null pointer");
    *object = new T;
    return SUCCESS;
}

template <typename T> Status destroy(T *object)
{
    delete object;
    return SUCCESS;
}

} // namespace

#pragma GCC visibility push(default)
extern "C" {

std::size_t cudnnGetVersion(void)
{
    return 92100;
}

std::size_t cudnnGetCudartVersion(void)
{
    return 13000;
}

const char *cudnnGetErrorString(int status)
{
    for (const auto &n : NAMES)
        if (n.status == status) return n.name;
    return "CUDNN_STATUS_INTERNAL_ERROR";
}

int cudnnCreate(Handle **handle)
{
    return create(handle);
}

int cudnnDestroy(Handle *handle)
{
    return destroy(handle);
}

int cudnnSetStream(Handle *handle, void *)
{
    NEED(handle, NULL_POINTER, "null handle");
    return SUCCESS;
}

// ---- Tensors

int cudnnCreateTensorDescriptor(Array **tensor)
{
    return create(tensor);
}

int cudnnDestroyTensorDescriptor(Array *tensor)
{
    return destroy(tensor);
}

int cudnnSetTensor4dDescriptor(Array *tensor, int format, int type, int n, int c, int h, int w)
{
    NEED(tensor && n > 0 && c > 0 && h > 0 && w > 0, BAD_PARAM, "tensor of %d x %d x %d x %d", n, c, h, w);
    NEED((type == FLOAT || type == BFLOAT16) && (format == NCHW || format == NHWC), NOT_SUPPORTED,
         "data type %d, format %d", type, format);
    tensor->type = Type(type);
    tensor->set(Format(format), n, c, h, w);
    return SUCCESS;
}

int cudnnSetTensor4dDescriptorEx(
    Array *tensor, int type, int n, int c, int h, int w, int n_stride, int c_stride, int h_stride, int w_stride)
{
    if (const int status = cudnnSetTensor4dDescriptor(tensor, NCHW, type, n, c, h, w)) return status;
    NEED(n_stride > 0 && c_stride > 0 && h_stride > 0 && w_stride > 0, BAD_PARAM, "a stride is not positive");
    const long long strides[4] = {n_stride, c_stride, h_stride, w_stride};
    std::memcpy(tensor->stride, strides, sizeof strides);
    return SUCCESS;
}

// ---- Filters

int cudnnCreateFilterDescriptor(Filter **filter)
{
    return create(filter);
}

int cudnnDestroyFilterDescriptor(Filter *filter)
{
    return destroy(filter);
}

int cudnnSetFilter4dDescriptor(Filter *filter, int type, int format, int k, int c, int h, int w)
{
    if (const int status = cudnnSetTensor4dDescriptor(filter, format, type, k, c, h, w)) return status;
    filter->format = Format(format);
    return SUCCESS;
}

// ---- Convolutions

int cudnnCreateConvolutionDescriptor(Convolution **conv)
{
    return create(conv);
}

int cudnnDestroyConvolutionDescriptor(Convolution *conv)
{
    return destroy(conv);
}

int cudnnSetConvolution2dDescriptor(
    Convolution *conv, int pad_h, int pad_w, int stride_h, int stride_w, int dilation_h, int dilation_w, int mode,
    int compute_type)
{
    NEED(conv && pad_h >= 0 && pad_w >= 0 && stride_h > 0 && stride_w > 0 && dilation_h > 0 && dilation_w > 0,
         BAD_PARAM, "padding, stride or dilation");
    NEED(mode == CONVOLUTION || mode == CROSS_CORRELATION, BAD_PARAM, "mode %d", mode);
    NEED(compute_type == FLOAT, NOT_SUPPORTED, "compute type %d", compute_type);
    conv->pad[0] = pad_h, conv->pad[1] = pad_w;
    conv->stride[0] = stride_h, conv->stride[1] = stride_w;
    conv->dilation[0] = dilation_h, conv->dilation[1] = dilation_w;
    conv->mode = mode;
    return SUCCESS;
}

// Accepted and without effect: products are never rounded to TF32.
int cudnnSetConvolutionMathType(Convolution *conv, int math)
{
    NEED(conv && math >= 0 && math <= 3, BAD_PARAM, "math type %d", math);
    conv->math = math;
    return SUCCESS;
}

int cudnnSetConvolutionGroupCount(Convolution *conv, int groups)
{
    NEED(conv && groups > 0, BAD_PARAM, "%d groups", groups);
    conv->groups = groups;
    return SUCCESS;
}

int cudnnGetConvolutionForwardWorkspaceSize(
    Handle *handle, Array *x, Filter *w, Convolution *conv, Array *y, int algorithm, std::size_t *bytes)
{
    return get_workspace(FORWARD, handle, x, w, y, conv, algorithm, bytes);
}

int cudnnGetConvolutionBackwardDataWorkspaceSize(
    Handle *handle, Filter *w, Array *dy, Convolution *conv, Array *dx, int algorithm, std::size_t *bytes)
{
    return get_workspace(DATA, handle, dx, w, dy, conv, algorithm, bytes);
}

int cudnnGetConvolutionBackwardFilterWorkspaceSize(
    Handle *handle, Array *x, Array *dy, Convolution *conv, Filter *dw, int algorithm, std::size_t *bytes)
{
    return get_workspace(FILTER, handle, x, dw, dy, conv, algorithm, bytes);
}

int cudnnGetConvolutionForwardAlgorithm_v7(
    Handle *handle, Array *x, Filter *w, Convolution *conv, Array *y, int room, int *count, Performance *out)
{
    return get_algorithms(FORWARD, handle, x, w, y, conv, room, count, out);
}

int cudnnGetConvolutionBackwardDataAlgorithm_v7(
    Handle *handle, Filter *w, Array *dy, Convolution *conv, Array *dx, int room, int *count, Performance *out)
{
    return get_algorithms(DATA, handle, dx, w, dy, conv, room, count, out);
}

int cudnnGetConvolutionBackwardFilterAlgorithm_v7(
    Handle *handle, Array *x, Array *dy, Convolution *conv, Filter *dw, int room, int *count, Performance *out)
{
    return get_algorithms(FILTER, handle, x, dw, dy, conv, room, count, out);
}

int cudnnConvolutionForward(
    Handle *handle, const void *alpha, Array *x_array, const void *x, Filter *w_array, const void *w,
    Convolution *conv, int algorithm, void *workspace, std::size_t bytes, const void *beta, Array *y_array, void *y)
{
    Work work;
    if (const Status status = prepare(FORWARD, handle, x_array, w_array, y_array, conv, algorithm, {x_array, x},
                                      {w_array, w}, {y_array, y}, workspace, bytes, alpha, beta, &work))
        return status;
    return perform([=] {
        work.begin();
        const Doubles xs = values(work.x, x), ws = values(work.w, w);
        Doubles sums(work.y.extent());
        for_products(work.x, work.w, work.y, work.conv, [&](std::size_t xi, std::size_t wi, std::size_t yi) {
            sums[yi] += xs[xi] * ws[wi];
        });
        blend(work.y, sums, work.alpha, work.beta, y);
    });
}

int cudnnConvolutionBackwardData(
    Handle *handle, const void *alpha, Filter *w_array, const void *w, Array *dy_array, const void *dy,
    Convolution *conv, int algorithm, void *workspace, std::size_t bytes, const void *beta, Array *dx_array, void *dx)
{
    Work work;
    if (const Status status = prepare(DATA, handle, dx_array, w_array, dy_array, conv, algorithm, {w_array, w},
                                      {dy_array, dy}, {dx_array, dx}, workspace, bytes, alpha, beta, &work))
        return status;
    return perform([=] {
        work.begin();
        const Doubles ws = values(work.w, w), dys = values(work.y, dy);
        Doubles sums(work.x.extent());
        for_products(work.x, work.w, work.y, work.conv, [&](std::size_t xi, std::size_t wi, std::size_t yi) {
            sums[xi] += dys[yi] * ws[wi];
        });
        blend(work.x, sums, work.alpha, work.beta, dx);
    });
}

int cudnnConvolutionBackwardFilter(
    Handle *handle, const void *alpha, Array *x_array, const void *x, Array *dy_array, const void *dy,
    Convolution *conv, int algorithm, void *workspace, std::size_t bytes, const void *beta, Filter *dw_array,
    void *dw)
{
    Work work;
    if (const Status status = prepare(FILTER, handle, x_array, dw_array, dy_array, conv, algorithm, {x_array, x},
                                      {dy_array, dy}, {dw_array, dw}, workspace, bytes, alpha, beta, &work))
        return status;
    return perform([=] {
        work.begin();
        const Doubles xs = values(work.x, x), dys = values(work.y, dy);
        Doubles sums(work.w.extent());
        for_products(work.x, work.w, work.y, work.conv, [&](std::size_t xi, std::size_t wi, std::size_t yi) {
            sums[wi] += dys[yi] * xs[xi];
        });
        blend(work.w, sums, work.alpha, work.beta, dw);
    });
}

} // extern "C"
#pragma GCC visibility pop
