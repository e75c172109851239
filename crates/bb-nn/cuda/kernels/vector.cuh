// Whole vectors: storage, sums of parameters, optimisers, norms.
#pragma once

#include "storage.cuh"
#include "sums.cuh"

template <typename T> static __device__ __forceinline__ void add_multiple(T *y, float a, const T *x, long long n)
{
    for_groups<GROUP<T>>(n, aligned(y, x), [=](long long i, auto width) {
        float u[width.value], v[width.value];
        load(x + i, u);
        load(y + i, v);
        for (int j = 0; j < width.value; j++) v[j] += a * u[j];
        store(y + i, v);
    });
}

// y += a * x. Elementwise.
extern "C" __global__ void add_scaled(float *y, float a, const float *x, long long n)
{
    add_multiple(y, a, x, n);
}

// y += x, rounded once. Elementwise.
extern "C" __global__ void add_bf16(bf16 *y, const bf16 *x, long long n)
{
    add_multiple(y, 1.0f, x, n);
}

// y = x from one storage to the other. Groups of 4: 16 bytes of f32 and 8 of bf16, so that both sides are contiguous
// over a warp.
template <typename X, typename Y>
static __device__ __forceinline__ void convert(const X *__restrict__ x, long long n, Y *__restrict__ y)
{
    for_groups<4>(n, aligned(x, y), [=](long long i, auto width) {
        float v[width.value];
        load(x + i, v);
        store(y + i, v);
    });
}

// Rounds to the nearest bf16. Elementwise.
extern "C" __global__ void to_bf16(const float *__restrict__ x, long long n, bf16 *__restrict__ y)
{
    convert(x, n, y);
}

// Elementwise.
extern "C" __global__ void from_bf16(const bf16 *__restrict__ x, long long n, float *__restrict__ y)
{
    convert(x, n, y);
}

// y = a * y + b * x. Elementwise.
extern "C" __global__ void mix(float *y, float a, const float *x, float b, long long n)
{
    for_groups<4>(n, aligned(y, x), [=](long long i, auto width) {
        float u[width.value], v[width.value];
        load(x + i, u);
        load(y + i, v);
        for (int j = 0; j < width.value; j++) v[j] = a * v[j] + b * u[j];
        store(y + i, v);
    });
}

// y = f(y) for each of n elements.
template <typename F> static __device__ __forceinline__ void change_each(float *y, long long n, F f)
{
    for_groups<4>(n, aligned(y), [=](long long i, auto width) {
        float v[width.value];
        load(y + i, v);
        for (int j = 0; j < width.value; j++) v[j] = f(v[j]);
        store(y + i, v);
    });
}

// y *= a. Elementwise.
extern "C" __global__ void scale(float *y, float a, long long n)
{
    change_each(y, n, [=](float v) { return v * a; });
}

// x limited to lo..hi; NaN stays NaN.
static __device__ __forceinline__ float limited(float x, float lo, float hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

// x = x limited to lo..hi; NaN stays NaN. Elementwise.
extern "C" __global__ void clamp(float *x, float lo, float hi, long long n)
{
    change_each(x, n, [=](float v) { return limited(v, lo, hi); });
}

// x = x + a * sign(g), limited to -limit..limit; sign(0) is 0, that of NaN is NaN. Elementwise.
extern "C" __global__ void sign_step(float *x, const float *g, float a, float limit, long long n)
{
    for_groups<4>(n, aligned(x, g), [=](long long i, auto width) {
        float v[width.value], d[width.value];
        load(x + i, v);
        load(g + i, d);
        for (int j = 0; j < width.value; j++) {
            const float sign = d[j] > 0.0f ? 1.0f : d[j] < 0.0f ? -1.0f : d[j];
            v[j] = limited(v[j] + a * sign, -limit, limit);
        }
        store(x + i, v);
    });
}

// One step of SGD with momentum, as the CPU's `sgd_momentum`: weights w, momentum v, gradient g, all [n]. Elementwise.
extern "C" __global__ void sgd_momentum(
    float *__restrict__ w, float *__restrict__ v, const float *__restrict__ g, float lr, float momentum,
    float weight_decay, int nesterov, long long n)
{
    for_groups<4>(n, aligned(w, v, g), [=](long long i, auto width) {
        float weight[width.value], velocity[width.value], gradient[width.value];
        load(w + i, weight);
        load(v + i, velocity);
        load(g + i, gradient);
        for (int j = 0; j < width.value; j++) {
            const float d = gradient[j] + weight_decay * weight[j];
            velocity[j] = momentum * velocity[j] + d;
            weight[j] -= lr * (nesterov ? d + momentum * velocity[j] : velocity[j]);
        }
        store(v + i, velocity);
        store(w + i, weight);
    });
}

// What a step of Adam takes beside its vectors: step is lr / (1 - beta1^t), bias2_sqrt the root of 1 - beta2^t; the
// weight decay is added to the gradient. The shares are 1 - beta1 and 1 - beta2, which the rounded betas do not give
// exactly.
struct AdamStep {
    float step, share1, beta2, share2, eps, weight_decay, bias2_sqrt;

    __device__ void moments(float w, float &first, float &second, float g) const
    {
        const float d = g + weight_decay * w;
        first += share1 * (d - first);
        second = beta2 * second + share2 * d * d;
    }

    __device__ void move(float &w, float first, float second) const
    {
        w -= step * first / (sqrtf(second) / bias2_sqrt + eps);
    }
};

// One step of Adam as PyTorch's: weights w, first and second moment m and v, gradient g, all [n]. Elementwise.
extern "C" __global__ void adam(
    float *__restrict__ w, float *__restrict__ m, float *__restrict__ v, const float *__restrict__ g, float step,
    float share1, float beta2, float share2, float eps, float weight_decay, float bias2_sqrt, long long n)
{
    const AdamStep by{step, share1, beta2, share2, eps, weight_decay, bias2_sqrt};
    for_groups<4>(n, aligned(w, m, v, g), [=](long long i, auto width) {
        float weight[width.value], first[width.value], second[width.value], gradient[width.value];
        load(w + i, weight);
        load(m + i, first);
        load(v + i, second);
        load(g + i, gradient);
        for (int j = 0; j < width.value; j++) {
            by.moments(weight[j], first[j], second[j], gradient[j]);
            by.move(weight[j], first[j], second[j]);
        }
        store(m + i, first);
        store(v + i, second);
        store(w + i, weight);
    });
}

// One step of AMSGrad as PyTorch's: adam with top, the largest second moment so far, in the place of v. Elementwise.
extern "C" __global__ void amsgrad(
    float *__restrict__ w, float *__restrict__ m, float *__restrict__ v, float *__restrict__ top,
    const float *__restrict__ g, float step, float share1, float beta2, float share2, float eps, float weight_decay,
    float bias2_sqrt, long long n)
{
    const AdamStep by{step, share1, beta2, share2, eps, weight_decay, bias2_sqrt};
    for_groups<4>(n, aligned(w, m, v, top, g), [=](long long i, auto width) {
        float weight[width.value], first[width.value], second[width.value], largest[width.value],
            gradient[width.value];
        load(w + i, weight);
        load(m + i, first);
        load(v + i, second);
        load(top + i, largest);
        load(g + i, gradient);
        for (int j = 0; j < width.value; j++) {
            by.moments(weight[j], first[j], second[j], gradient[j]);
            largest[j] = fmaxf(largest[j], second[j]);
            by.move(weight[j], first[j], largest[j]);
        }
        store(m + i, first);
        store(v + i, second);
        store(top + i, largest);
        store(w + i, weight);
    });
}

// partial[block] = sum of squares of the elements that the block's threads visit. Block sums; always launched with
// 1024 blocks, so that the order of the sum depends on n alone. Blocks without elements write 0.
extern "C" __global__ void sum_of_squares(const float *__restrict__ x, long long n, double *__restrict__ partial)
{
    double sum = 0.0;
    for (long long i = first_element(); i < n; i += grid_threads()) sum += (double)x[i] * x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// flag[0] = 1 where an element is infinite or NaN; otherwise the flag is left alone. Elementwise.
extern "C" __global__ void all_finite(const float *__restrict__ x, long long n, int *__restrict__ flag)
{
    for (long long i = first_element(); i < n; i += grid_threads())
        if (!(fabsf(x[i]) < INFINITY)) flag[0] = 1;
}

// partial [tensors][parts]: sums of squares of each part of tensor t, which is x[bounds[t]..bounds[t + 1]]. A part has
// the elements that its block visits; empty ones get 0. Tensors.
extern "C" __global__ void tensor_squares(
    const float *__restrict__ x, const long long *__restrict__ bounds, int parts, double *__restrict__ partial)
{
    const int part = blockIdx.x, tensor = blockIdx.y;
    const long long end = bounds[tensor + 1];
    double sum = 0.0;
#pragma unroll 4
    for (long long i = bounds[tensor] + part * THREADS + threadIdx.x; i < end; i += (long long)parts * THREADS)
        sum += (double)x[i] * x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[(long long)tensor * parts + part] = sum;
}

// w += r * g / |g| over every tensor; `partial` is what `tensor_squares` has written of g. |g| is the norm of that
// tensor, or of all of them if `whole`; where it is 0, w stays. Tensors.
extern "C" __global__ void add_normalised(
    float *w, const float *g, const double *__restrict__ partial, const long long *__restrict__ bounds, int tensors,
    int parts, float r, int whole)
{
    const int part = blockIdx.x, tensor = blockIdx.y;
    const double squares =
        whole ? sum_of(partial, tensors * parts) : sum_of(partial + (long long)tensor * parts, parts);
    if (squares == 0.0) return;
    const float factor = (float)(r / sqrt(squares));
    const long long end = bounds[tensor + 1];
    for (long long i = bounds[tensor] + part * THREADS + threadIdx.x; i < end; i += (long long)parts * THREADS)
        w[i] += factor * g[i];
}

// Scales g [n] down to the norm max_norm where its norm is larger, as PyTorch's clip_grad_norm_; its sum of squares is
// that of partial [count]. Elementwise; every block adds the partial sums, so a grid of a few blocks for each
// multiprocessor is best.
extern "C" __global__ void clip_norm(
    float *g, const double *__restrict__ partial, int count, float max_norm, long long n)
{
    const float norm = (float)sqrt(sum_of(partial, count));
    const float factor = max_norm / (norm + 1e-6f);
    if (factor >= 1.0f) return; // not if it is NaN
    change_each(g, n, [=](float v) { return v * factor; });
}
