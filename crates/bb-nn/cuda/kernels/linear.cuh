// The fully connected layer y = x w^T + b: x [n, inputs], w [outputs, inputs], b [outputs], y [n, outputs].
#pragma once

#include "product.cuh"

// y = x w^T + b. Product, result [n, outputs].
extern "C" __global__ void linear_forward(
    const float *__restrict__ x, const float *__restrict__ w, const float *__restrict__ b, int n, int inputs,
    int outputs, float *__restrict__ y)
{
    const float sum = product({x, n, inputs, 1}, {w, outputs, inputs, 1}, inputs);
    const int row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
    if (row < n && column < outputs) y[(long long)row * outputs + column] = b[column] + sum;
}

// dx = dy w. Product, result [n, inputs].
extern "C" __global__ void linear_input_gradient(
    const float *__restrict__ dy, const float *__restrict__ w, int n, int inputs, int outputs,
    float *__restrict__ dx)
{
    const float sum = product({dy, n, outputs, 1}, {w, inputs, 1, inputs}, outputs);
    const int row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
    if (row < n && column < inputs) dx[(long long)row * inputs + column] = sum;
}

// dw = dy^T x and db = column sums of dy, both overwritten. Product, result dw [outputs, inputs].
extern "C" __global__ void linear_weight_gradient(
    const float *__restrict__ x, const float *__restrict__ dy, int n, int inputs, int outputs,
    float *__restrict__ dw, float *__restrict__ db)
{
    const float sum = product({dy, outputs, 1, outputs}, {x, inputs, 1, inputs}, n);
    const int row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
    if (row < outputs && column < inputs) dw[(long long)row * inputs + column] = sum;
    const int output = blockIdx.y * TILE + threadIdx.x;
    if (blockIdx.x == 0 && threadIdx.y == 0 && output < outputs) {
        float bias = 0.0f;
        for (int i = 0; i < n; i++) bias += dy[(long long)i * outputs + output];
        db[output] = bias;
    }
}
