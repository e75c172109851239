// cuDNN's convolutions, their algorithms, and what is refused.

#include "harness.h"

namespace {

constexpr int FLOAT = 0, BFLOAT16 = 9;
constexpr int BAD_PARAM = 2000, NULL_POINTER = 2002, SIZE_INSUFFICIENT = 2006, SHAPE_MISMATCH = 2008,
              NOT_SUPPORTED = 3000;

struct Shape {
    int n, c, h, w;
    bool nhwc;
    int type = FLOAT;
    std::size_t size() const { return (std::size_t)n * c * h * w; }
    std::size_t at(int i, int k, int y, int x) const
    {
        return nhwc ? (((std::size_t)i * h + y) * w + x) * c + k : (((std::size_t)i * c + k) * h + y) * w + x;
    }
};

struct Descriptors {
    void *handle, *x, *w, *y, *conv;

    Descriptors(Shape xs, Shape ws, Shape ys, int stride, int pad, int groups)
    {
        good(dnn("cudnnCreate", &handle));
        good(dnn("cudnnCreateTensorDescriptor", &x));
        good(dnn("cudnnCreateTensorDescriptor", &y));
        good(dnn("cudnnCreateFilterDescriptor", &w));
        good(dnn("cudnnCreateConvolutionDescriptor", &conv));
        good(dnn("cudnnSetTensor4dDescriptor", x, int(xs.nhwc), xs.type, xs.n, xs.c, xs.h, xs.w));
        good(dnn("cudnnSetTensor4dDescriptor", y, int(ys.nhwc), ys.type, ys.n, ys.c, ys.h, ys.w));
        good(dnn("cudnnSetFilter4dDescriptor", w, ws.type, int(ws.nhwc), ws.n, ws.c, ws.h, ws.w));
        good(dnn("cudnnSetConvolution2dDescriptor", conv, pad, pad, stride, stride, 1, 1, 1, 0));
        good(dnn("cudnnSetConvolutionGroupCount", conv, groups));
        good(dnn("cudnnSetConvolutionMathType", conv, 3));
    }
    ~Descriptors()
    {
        good(dnn("cudnnDestroyConvolutionDescriptor", conv));
        good(dnn("cudnnDestroyFilterDescriptor", w));
        good(dnn("cudnnDestroyTensorDescriptor", y));
        good(dnn("cudnnDestroyTensorDescriptor", x));
        good(dnn("cudnnDestroy", handle));
    }
    static void good(int status) { check(status == 0, "descriptors"); }
};

template <typename T> void test_convolution(bool nhwc, int k, int stride, int pad, int groups)
{
    constexpr int type = IS_BF16<T> ? BFLOAT16 : FLOAT;
    const std::string shape = std::string(IS_BF16<T> ? " bf16" : " f32") + (nhwc ? " NHWC" : " NCHW") + " k " +
                              std::to_string(k) + " stride " + std::to_string(stride) + " pad " + std::to_string(pad) +
                              " groups " + std::to_string(groups);
    const Shape xs = {2, 2 * groups, 5, 6, nhwc, type}, ws = {3 * groups, 2, k, k, nhwc, type};
    const Shape ys = {2, ws.n, (xs.h + 2 * pad - k) / stride + 1, (xs.w + 2 * pad - k) / stride + 1, nhwc, type};
    const Floats x = rounded<T>(random_floats(xs.size())), w = rounded<T>(random_floats(ws.size())),
                 dy = rounded<T>(random_floats(ys.size()));
    // Output place that input place `i` reaches through filter place `r`, or -1.
    const auto reached = [&](int i, int r, int outputs) {
        const int p = i + pad - r;
        return p < 0 || p % stride || p / stride >= outputs ? -1 : p / stride;
    };
    Doubles y(ys.size(), 0.0), dx(xs.size(), 0.0), dw(ws.size(), 0.0);
    for (int n = 0; n < xs.n; n++)
        for (int group = 0; group < groups; group++)
            for (int c = 0; c < ws.c; c++)
                for (int h = 0; h < xs.h; h++)
                    for (int v = 0; v < xs.w; v++)
                        for (int o = group * 3; o < group * 3 + 3; o++)
                            for (int r = 0; r < k; r++)
                                for (int s = 0; s < k; s++) {
                                    const int p = reached(h, r, ys.h), q = reached(v, s, ys.w);
                                    if (p < 0 || q < 0) continue;
                                    const std::size_t xi = xs.at(n, group * 2 + c, h, v), wi = ws.at(o, c, r, s),
                                                      yi = ys.at(n, o, p, q);
                                    y[yi] += (double)x[xi] * w[wi];
                                    dx[xi] += (double)dy[yi] * w[wi];
                                    dw[wi] += (double)dy[yi] * x[xi];
                                }
    const Descriptors d(xs, ws, ys, stride, pad, groups);
    const Buffer<T> vx(stored<T>(x)), vw(stored<T>(w)), vdy(stored<T>(dy));
    const auto pointer = [](const auto &buffer) { return (void *)buffer.address; };
    for (int algorithm = 0; algorithm < 2; algorithm++) {
        std::size_t bytes[3];
        Descriptors::good(
            dnn("cudnnGetConvolutionForwardWorkspaceSize", d.handle, d.x, d.w, d.conv, d.y, algorithm, &bytes[0]));
        Descriptors::good(
            dnn("cudnnGetConvolutionBackwardDataWorkspaceSize", d.handle, d.w, d.y, d.conv, d.x, algorithm, &bytes[1]));
        Descriptors::good(dnn("cudnnGetConvolutionBackwardFilterWorkspaceSize", d.handle, d.x, d.y, d.conv, d.w,
                              algorithm, &bytes[2]));
        const Buffer<unsigned char> space(std::max({bytes[0], bytes[1], bytes[2], std::size_t(1)}));
        void *const work = pointer(space);
        for (const float beta : {0.0f, 2.0f}) {
            const float alpha = beta == 0 ? 1.0f : 0.5f;
            const void *const a = &alpha, *const b = &beta;
            // With beta = 0 the destinations hold NaN and must not be read.
            const auto destination = [&](std::size_t n) { return stored<T>(Floats(n, beta == 0 ? NAN : 1.0f)); };
            const Buffer<T> vy(destination(ys.size())), vdx(destination(xs.size())), vdw(destination(ws.size()));
            const auto wanted = [&](Doubles v) {
                for (double &e : v) e = alpha * e + beta;
                return v;
            };
            check(dnn("cudnnConvolutionForward", d.handle, a, d.x, pointer(vx), d.w, pointer(vw), d.conv, algorithm,
                      work, bytes[0], b, d.y, pointer(vy)) == 0, "forward" + shape);
            check(dnn("cudnnConvolutionBackwardData", d.handle, a, d.w, pointer(vw), d.y, pointer(vdy), d.conv,
                      algorithm, work, bytes[1], b, d.x, pointer(vdx)) == 0, "backward data" + shape);
            check(dnn("cudnnConvolutionBackwardFilter", d.handle, a, d.x, pointer(vx), d.y, pointer(vdy), d.conv,
                      algorithm, work, bytes[2], b, d.w, pointer(vdw)) == 0, "backward filter" + shape);
            near("convolution forward" + shape, vy, wanted(y));
            near("convolution backward data" + shape, vdx, wanted(dx));
            near("convolution backward filter" + shape, vdw, wanted(dw));
        }
    }
}

// cudnnConvolution...AlgoPerf_t.
struct Performance {
    int algorithm, status;
    float time;
    std::size_t memory;
    int determinism, math, reserved[3];
};
static_assert(sizeof(Performance) == 48, "as in cuDNN");

struct Listed {
    int algorithm, determinism;
};

// Which algorithms the three directions offer, with room for `room`; checks the rest of each entry.
void check_algorithms(const std::string &what, int room, const std::vector<Listed> (&want)[3])
{
    const Shape xs = {1, 2, 4, 4, true}, ws = {3, 2, 3, 3, true}, ys = {1, 3, 4, 4, true};
    const Descriptors d(xs, ws, ys, 1, 1, 1);
    for (int kind = 0; kind < 3; kind++) {
        int count = -1;
        Performance list[8];
        const int status =
            kind == 0 ? dnn("cudnnGetConvolutionForwardAlgorithm_v7", d.handle, d.x, d.w, d.conv, d.y, room, &count,
                            &list[0])
            : kind == 1 ? dnn("cudnnGetConvolutionBackwardDataAlgorithm_v7", d.handle, d.w, d.y, d.conv, d.x, room,
                              &count, &list[0])
                        : dnn("cudnnGetConvolutionBackwardFilterAlgorithm_v7", d.handle, d.x, d.y, d.conv, d.w, room,
                              &count, &list[0]);
        check(status == 0 && count == int(want[kind].size()), what + ": number of algorithms");
        for (int i = 0; i < count && i < int(want[kind].size()); i++) {
            const Performance &p = list[i];
            std::size_t bytes = 0;
            Descriptors::good(
                kind == 0 ? dnn("cudnnGetConvolutionForwardWorkspaceSize", d.handle, d.x, d.w, d.conv, d.y, p.algorithm,
                                &bytes)
                : kind == 1 ? dnn("cudnnGetConvolutionBackwardDataWorkspaceSize", d.handle, d.w, d.y, d.conv, d.x,
                                  p.algorithm, &bytes)
                            : dnn("cudnnGetConvolutionBackwardFilterWorkspaceSize", d.handle, d.x, d.y, d.conv, d.w,
                                  p.algorithm, &bytes));
            check(p.algorithm == want[kind][i].algorithm && p.determinism == want[kind][i].determinism &&
                      p.status == 0 && p.memory == bytes && p.math == 3,
                  what + ": an algorithm");
        }
    }
}

} // namespace

void test_convolutions()
{
    for (const bool nhwc : {false, true})
        for (const int k : {1, 3})
            for (const int stride : {1, 2})
                for (const int pad : {0, 1})
                    for (const int groups : {1, 2}) {
                        test_convolution<float>(nhwc, k, stride, pad, groups);
                        test_convolution<Bf16>(nhwc, k, stride, pad, groups);
                    }
    check_algorithms("all algorithms", 8,
                     {{{2, 0}, {1, 1}, {0, 1}, {7, 1}},
                      {{0, 0}, {1, 1}, {5, 1}, {4, 1}},
                      {{0, 0}, {1, 1}, {5, 1}, {3, 0}}});
    check_algorithms("two algorithms", 2, {{{2, 0}, {1, 1}}, {{0, 0}, {1, 1}}, {{0, 0}, {1, 1}}});
    setenv("EMULATED_CUDNN_REFUSES", "forward:1,data:0,filter:1", 1);
    check_algorithms("algorithms that are left", 8,
                     {{{2, 0}, {0, 1}, {7, 1}}, {{1, 1}, {5, 1}, {4, 1}}, {{0, 0}, {5, 1}, {3, 0}}});
    unsetenv("EMULATED_CUDNN_REFUSES");
}

void test_refusals()
{
    const Shape xs = {1, 2, 4, 4, true}, ws = {3, 2, 3, 3, true}, ys = {1, 3, 4, 4, true};
    const Buffer<float> x(xs.size()), w(ws.size()), y(ys.size());
    Floats host(ys.size());
    const float one = 1, zero = 0;
    const auto forward = [&](Shape x_shape, Shape w_shape, Shape y_shape, Address to, int algorithm) {
        const Descriptors d(x_shape, w_shape, y_shape, 1, 1, 1);
        return dnn("cudnnConvolutionForward", d.handle, (const void *)&one, d.x, (void *)x.address, d.w,
                   (void *)w.address, d.conv, algorithm, (void *)nullptr, std::size_t(0), (const void *)&zero, d.y,
                   (void *)to);
    };
    check(forward(xs, ws, ys, y.address, 0) == 0, "convolution that fits");
    check(forward(xs, ws, {1, 3, 4, 5, true}, y.address, 0) == SHAPE_MISMATCH, "wrong output size");
    check(forward(xs, {3, 1, 3, 3, true}, ys, y.address, 0) == SHAPE_MISMATCH, "wrong channels of the filter");
    check(forward(xs, {3, 2, 3, 3, false}, ys, y.address, 0) == NOT_SUPPORTED, "formats that differ");
    check(forward(xs, {3, 2, 3, 3, true, BFLOAT16}, ys, y.address, 0) == NOT_SUPPORTED, "types that differ");
    check(forward(xs, ws, ys, 0, 0) == NULL_POINTER, "null result");
    check(forward(xs, ws, ys, Address(host.data()), 0) == BAD_PARAM, "host memory in a convolution");
    check(forward(xs, ws, ys, x.address, 0) == BAD_PARAM, "result on an operand");
    check(forward(xs, ws, ys, y.address, 1) == SIZE_INSUFFICIENT, "no workspace");
    check(forward(xs, ws, ys, y.address, 3) == NOT_SUPPORTED, "unknown algorithm");

    setenv("EMULATED_CUDNN_REFUSES", "data:1,forward:0", 1);
    const Descriptors d(xs, ws, ys, 1, 1, 1);
    std::size_t bytes;
    check(dnn("cudnnGetConvolutionForwardWorkspaceSize", d.handle, d.x, d.w, d.conv, d.y, 0, &bytes) == NOT_SUPPORTED,
          "workspace of a refused algorithm");
    check(dnn("cudnnGetConvolutionBackwardDataWorkspaceSize", d.handle, d.w, d.y, d.conv, d.x, 1, &bytes) ==
              NOT_SUPPORTED, "workspace of another refused algorithm");
    check(dnn("cudnnGetConvolutionForwardWorkspaceSize", d.handle, d.x, d.w, d.conv, d.y, 1, &bytes) == 0,
          "workspace of the algorithm with a refused number in another direction");
    check(forward(xs, ws, ys, y.address, 0) == NOT_SUPPORTED, "refused algorithm");
    unsetenv("EMULATED_CUDNN_REFUSES");
}
