// Batch normalisation: y = relu(x * scale + shift), scale = gamma * invstd, shift = beta - mean * scale.
#pragma once

#include "storage.cuh"
#include "sums.cuh"

// The output gradient behind the ReLU. At exactly 0 the gradient is 0.
static __device__ __forceinline__ float masked(float dy, float x, float scale, float shift, int relu)
{
    return fmaf(x, scale, shift) > (relu ? 0.0f : -INFINITY) ? dy : 0.0f;
}

// Channels that a thread of a column sum reads at a time. An f32 row of a block is one access of a warp as it is.
template <typename T> constexpr int CHANNELS = 1;
template <> constexpr int CHANNELS<bf16> = WIDE;

// Reads V neighbouring channels, of which `inside` exist; the others count as 0. All exist if `grouped`, and p is a
// multiple of V elements. The order of the sums does not depend on it.
template <bool grouped, int V, typename T>
static __device__ __forceinline__ void load_channels(const T *p, int inside, float (&v)[V])
{
    if constexpr (grouped || V == 1) {
        load(p, v);
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = j < inside ? load_one(p + j) : 0.0f;
    }
}

template <bool grouped, typename T>
static __device__ __forceinline__ void partial_statistics(
    const T *__restrict__ x, int rows, int c, int rows_per_part, float *__restrict__ partial)
{
    constexpr int V = CHANNELS<T>;
    const Columns<V> columns;
    const PartRows part(blockIdx.x, rows, rows_per_part);
    const int from = blockIdx.y * COLUMNS + columns.first, inside = c - from;
    const int begin = inside > 0 ? part.begin + columns.lane : part.end;
    float sum[V] = {}, m2[V] = {}, mean[V];
#pragma unroll 8
    for (int r = begin; r < part.end; r += columns.STEP) {
        float v[V];
        load_channels<grouped>(x + (long long)r * c + from, inside, v);
        for (int j = 0; j < V; j++) sum[j] += v[j];
    }
    const float total = columns.sum(sum);
    const float mean_here = part.count() > 0 ? total / (float)part.count() : 0.0f;
    columns.share(mean_here, mean);
#pragma unroll 8
    for (int r = begin; r < part.end; r += columns.STEP) {
        float v[V];
        load_channels<grouped>(x + (long long)r * c + from, inside, v);
        for (int j = 0; j < V; j++) {
            const float d = v[j] - mean[j];
            m2[j] = fmaf(d, d, m2[j]);
        }
    }
    const float m2_here = columns.sum(m2);
    const int k = blockIdx.y * COLUMNS + threadIdx.x;
    if (k < c && threadIdx.y == 0) {
        partial[((long long)blockIdx.x * 2) * c + k] = mean_here;
        partial[((long long)blockIdx.x * 2 + 1) * c + k] = m2_here;
    }
}

// partial [parts][2][c]: mean and sum of squared deviations from it, over the rows of each part of x [rows, c].
// Column sums. The bounds of the bf16 kernels allow enough registers to have eight rows in flight.
extern "C" __global__ void bn_partial(
    const float *__restrict__ x, int rows, int c, int rows_per_part, float *__restrict__ partial)
{
    partial_statistics<false>(x, rows, c, rows_per_part, partial);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) bn_partial_bf16(
    const bf16 *__restrict__ x, int rows, int c, int rows_per_part, float *__restrict__ partial)
{
    if (c % WIDE == 0 && aligned(x))
        partial_statistics<true>(x, rows, c, rows_per_part, partial);
    else
        partial_statistics<false>(x, rows, c, rows_per_part, partial);
}

// Writes what the forward pass and its gradient need of a channel.
static __device__ __forceinline__ void write_factors(
    int k, float m, float var, float eps, const float *gamma, const float *beta, float *mean, float *invstd,
    float *scale, float *shift)
{
    const float i = 1.0f / sqrtf(var + eps), s = gamma[k] * i;
    mean[k] = m;
    invstd[k] = i;
    scale[k] = s;
    shift[k] = beta[k] - m * s;
}

// Joins the parts of bn_partial and writes mean, invstd, scale and shift [c]. With `update` it also moves the running mean
// and (unbiased) variance [c]; without, these two are not touched. Joined sums.
extern "C" __global__ void __launch_bounds__(COLUMNS *JOINERS) bn_factors(
    const float *__restrict__ partial, int parts, int rows, int rows_per_part, int c,
    const float *__restrict__ gamma, const float *__restrict__ beta, float *__restrict__ running_mean,
    float *__restrict__ running_var, float momentum, float eps, int update, float *__restrict__ mean,
    float *__restrict__ invstd, float *__restrict__ scale, float *__restrict__ shift)
{
    const int k = blockIdx.x * COLUMNS + threadIdx.x;
    const int first = k < c ? threadIdx.y : parts; // all threads take part in the sums
    double sum = 0.0;
#pragma unroll 4
    for (int p = first; p < parts; p += JOINERS) {
        const int size = PartRows(p, rows, rows_per_part).count();
        if (size <= 0) break; // the parts behind have no rows either
        sum += size * (double)partial[(long long)p * 2 * c + k];
    }
    const double joined_mean = joined_sum(sum) / rows;
    // Around the mean of all rows: squares within the parts, and those of the parts' own means.
    double squares = 0.0;
#pragma unroll 4
    for (int p = first; p < parts; p += JOINERS) {
        const int size = PartRows(p, rows, rows_per_part).count();
        if (size <= 0) break; // the parts behind have no rows either
        const double delta = partial[(long long)p * 2 * c + k] - joined_mean;
        squares += partial[((long long)p * 2 + 1) * c + k] + delta * delta * size;
    }
    const double joined_squares = joined_sum(squares);
    if (k >= c || threadIdx.y != 0) return;
    const float m = (float)joined_mean, var = (float)(joined_squares / rows);
    if (update) {
        // One row has no unbiased variance; the biased one (0) is used.
        const float unbiased = (float)rows / (float)((rows > 2 ? rows : 2) - 1);
        running_mean[k] = (1.0f - momentum) * running_mean[k] + momentum * m;
        running_var[k] = (1.0f - momentum) * running_var[k] + momentum * (var * unbiased);
    }
    write_factors(k, m, var, eps, gamma, beta, mean, invstd, scale, shift);
}

// The same from the running statistics. Per channel.
extern "C" __global__ void bn_eval_factors(
    const float *__restrict__ running_mean, const float *__restrict__ running_var, const float *__restrict__ gamma,
    const float *__restrict__ beta, float eps, int c, float *__restrict__ mean, float *__restrict__ invstd,
    float *__restrict__ scale, float *__restrict__ shift)
{
    const int k = (int)first_element();
    if (k >= c) return;
    write_factors(k, running_mean[k], running_var[k], eps, gamma, beta, mean, invstd, scale, shift);
}

template <int N, typename T>
static __device__ __forceinline__ void apply(
    const T *x, const float *__restrict__ scale, const float *__restrict__ shift, int relu, long long n, int c, T *y)
{
    float a[N], b[N], v[N];
    int read = -1; // the channel whose factors these are; with many grids it never changes
#pragma unroll 1
    for (ChannelWalk<N> at(c); at.i < n; at.next()) {
        load(x + at.i, v);
        if (at.channel != read) {
            read = at.channel;
            load(scale + read, a);
            load(shift + read, b);
        }
        for (int j = 0; j < N; j++) {
            const float z = fmaf(v[j], a[j], b[j]);
            v[j] = relu && z < 0.0f ? 0.0f : z; // a comparison, so that NaN stays NaN
        }
        store(y + at.i, v);
    }
}

template <typename T>
static __device__ __forceinline__ void apply(
    const T *x, const float *__restrict__ scale, const float *__restrict__ shift, int relu, long long n, int c, T *y)
{
    if (c % GROUP<T> == 0 && aligned(x, y, scale, shift))
        apply<GROUP<T>>(x, scale, shift, relu, n, c, y);
    else
        apply<1>(x, scale, shift, relu, n, c, y);
}

// y = x * scale + shift, then ReLU if `relu`, over the n elements of [rows, c]. y may be x. Elementwise.
extern "C" __global__ void bn_apply(
    const float *x, const float *__restrict__ scale, const float *__restrict__ shift, int relu, long long n, int c,
    float *y)
{
    apply(x, scale, shift, relu, n, c, y);
}

extern "C" __global__ void bn_apply_bf16(
    const bf16 *x, const float *__restrict__ scale, const float *__restrict__ shift, int relu, long long n, int c,
    bf16 *y)
{
    apply(x, scale, shift, relu, n, c, y);
}

template <bool grouped, typename T>
static __device__ __forceinline__ void partial_gradient(
    const T *__restrict__ dy, const T *__restrict__ x, const float *__restrict__ scale,
    const float *__restrict__ shift, const float *__restrict__ mean, int relu, int rows, int c, int rows_per_part,
    float *__restrict__ partial)
{
    constexpr int V = CHANNELS<T>;
    const Columns<V> columns;
    const PartRows part(blockIdx.x, rows, rows_per_part);
    const int from = blockIdx.y * COLUMNS + columns.first, inside = c - from;
    const int begin = inside > 0 ? part.begin + columns.lane : part.end;
    float sum[V] = {}, dot[V] = {}, a[V] = {}, b[V] = {}, m[V] = {};
#pragma unroll
    for (int j = 0; j < V; j++)
        if (j < inside) a[j] = scale[from + j], b[j] = shift[from + j], m[j] = mean[from + j];
#pragma unroll 4
    for (int r = begin; r < part.end; r += columns.STEP) {
        const long long i = (long long)r * c + from;
        float v[V], d[V];
        load_channels<grouped>(x + i, inside, v);
        load_channels<grouped>(dy + i, inside, d);
        for (int j = 0; j < V; j++) {
            const float g = masked(d[j], v[j], a[j], b[j], relu);
            sum[j] += g;
            dot[j] = fmaf(g, v[j] - m[j], dot[j]);
        }
    }
    const float sum_here = columns.sum(sum), dot_here = columns.sum(dot);
    const int k = blockIdx.y * COLUMNS + threadIdx.x;
    if (k < c && threadIdx.y == 0) {
        partial[((long long)blockIdx.x * 2) * c + k] = sum_here;
        partial[((long long)blockIdx.x * 2 + 1) * c + k] = dot_here;
    }
}

// partial [parts][2][c]: sums of g and of g * (x - mean) over the rows of each part, where g is dy behind the ReLU.
// Column sums.
extern "C" __global__ void bn_gradient_partial(
    const float *__restrict__ dy, const float *__restrict__ x, const float *__restrict__ scale,
    const float *__restrict__ shift, const float *__restrict__ mean, int relu, int rows, int c, int rows_per_part,
    float *__restrict__ partial)
{
    partial_gradient<false>(dy, x, scale, shift, mean, relu, rows, c, rows_per_part, partial);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) bn_gradient_partial_bf16(
    const bf16 *__restrict__ dy, const bf16 *__restrict__ x, const float *__restrict__ scale,
    const float *__restrict__ shift, const float *__restrict__ mean, int relu, int rows, int c, int rows_per_part,
    float *__restrict__ partial)
{
    if (c % WIDE == 0 && aligned(dy, x))
        partial_gradient<true>(dy, x, scale, shift, mean, relu, rows, c, rows_per_part, partial);
    else
        partial_gradient<false>(dy, x, scale, shift, mean, relu, rows, c, rows_per_part, partial);
}

// Joins the parts of bn_gradient_partial: overwrites the gradients of beta and gamma [c], and the two terms [c] through
// which the batch's statistics enter the input gradient (0 without `batch`). Joined sums.
extern "C" __global__ void __launch_bounds__(COLUMNS *JOINERS) bn_gradient_terms(
    const float *__restrict__ partial, int parts, int rows, int c, const float *__restrict__ invstd,
    const float *__restrict__ scale, int batch, float *__restrict__ dbeta, float *__restrict__ dgamma,
    float *__restrict__ constant, float *__restrict__ slope)
{
    const int k = blockIdx.x * COLUMNS + threadIdx.x;
    double sum = 0.0, dot = 0.0;
#pragma unroll 4
    for (int p = k < c ? threadIdx.y : parts; p < parts; p += JOINERS) {
        sum += partial[(long long)p * 2 * c + k];
        dot += partial[((long long)p * 2 + 1) * c + k];
    }
    sum = joined_sum(sum);
    dot = joined_sum(dot);
    if (k >= c || threadIdx.y != 0) return;
    const float b = (float)sum, g = (float)(dot * invstd[k]);
    dbeta[k] = b;
    dgamma[k] = g;
    const double factor = (double)scale[k] / rows;
    constant[k] = batch ? (float)(factor * b) : 0.0f;
    slope[k] = batch ? (float)(factor * g * invstd[k]) : 0.0f;
}

template <int N, typename T>
static __device__ __forceinline__ void input_gradient(
    const T *dy, const T *__restrict__ x, const float *__restrict__ scale, const float *__restrict__ shift,
    const float *__restrict__ mean, const float *__restrict__ constant, const float *__restrict__ slope, int relu,
    int add, long long n, int c, T *dx)
{
    float a[N], b[N], m[N], s[N], k[N], v[N], d[N], before[N] = {};
    int read = -1; // as in `apply`
#pragma unroll 1
    for (ChannelWalk<N> at(c); at.i < n; at.next()) {
        load(x + at.i, v);
        load(dy + at.i, d);
        if (add) load(dx + at.i, before);
        if (at.channel != read) {
            read = at.channel;
            load(scale + read, a);
            load(shift + read, b);
            load(mean + read, m);
            load(constant + read, k);
            load(slope + read, s);
        }
        for (int j = 0; j < N; j++) {
            const float g = masked(d[j], v[j], a[j], b[j], relu);
            const float drift = fmaf(s[j], v[j] - m[j], k[j]);
            const float here = a[j] * g - drift;
            d[j] = add ? before[j] + here : here;
        }
        store(dx + at.i, d);
    }
}

template <typename T>
static __device__ __forceinline__ void input_gradient(
    const T *dy, const T *__restrict__ x, const float *__restrict__ scale, const float *__restrict__ shift,
    const float *__restrict__ mean, const float *__restrict__ constant, const float *__restrict__ slope, int relu,
    int add, long long n, int c, T *dx)
{
    if (c % GROUP<T> == 0 && aligned(dy, x, dx, scale, shift, mean, constant, slope))
        input_gradient<GROUP<T>>(dy, x, scale, shift, mean, constant, slope, relu, add, n, c, dx);
    else
        input_gradient<1>(dy, x, scale, shift, mean, constant, slope, relu, add, n, c, dx);
}

// dx = scale * g - constant - slope * (x - mean), added to dx if `add`, over the n elements of [rows, c], where g is dy
// behind the ReLU. dx may be dy if not `add`. Elementwise.
extern "C" __global__ void bn_input_gradient(
    const float *dy, const float *__restrict__ x, const float *__restrict__ scale, const float *__restrict__ shift,
    const float *__restrict__ mean, const float *__restrict__ constant, const float *__restrict__ slope, int relu,
    int add, long long n, int c, float *dx)
{
    input_gradient(dy, x, scale, shift, mean, constant, slope, relu, add, n, c, dx);
}

extern "C" __global__ void bn_input_gradient_bf16(
    const bf16 *dy, const bf16 *__restrict__ x, const float *__restrict__ scale, const float *__restrict__ shift,
    const float *__restrict__ mean, const float *__restrict__ constant, const float *__restrict__ slope, int relu,
    int add, long long n, int c, bf16 *dx)
{
    input_gradient(dy, x, scale, shift, mean, constant, slope, relu, add, n, c, dx);
}
