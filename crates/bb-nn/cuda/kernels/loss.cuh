// The loss and its sums over batches.
#pragma once

#include "sums.cuh"

// Softmax cross-entropy of logits [n, classes], one thread per image. loss [n] and correct [n] are per image; the first
// of equal logits is the prediction, and a row that is not finite predicts nothing. gradient [n, classes], which may be null, is that of the mean loss:
// (softmax - onehot) / n. A label outside 0..classes gives a NaN loss. Launched as elementwise over n.
extern "C" __global__ void cross_entropy(
    const float *__restrict__ logits, const int *__restrict__ labels, int n, int classes,
    float *__restrict__ gradient, float *__restrict__ loss, int *__restrict__ correct)
{
    const float inverse = 1.0f / (float)n;
    for (long long i = first_element(); i < n; i += grid_threads()) {
        const float *row = logits + i * classes;
        const int label = labels[i];
        const bool known = label >= 0 && label < classes;
        int best = 0;
        // The difference is NaN for NaN and for infinities.
        bool finite = row[0] - row[0] == 0.0f;
        for (int k = 1; k < classes; k++) {
            if (row[k] > row[best]) best = k;
            finite = finite && row[k] - row[k] == 0.0f;
        }
        const float largest = row[best];
        float sum = 0.0f;
        for (int k = 0; k < classes; k++) sum += expf(row[k] - largest);
        loss[i] = known ? logf(sum) - (row[label] - largest) : NAN;
        correct[i] = finite && best == label;
        if (gradient) {
            float *out = gradient + i * classes;
            for (int k = 0; k < classes; k++) out[k] = expf(row[k] - largest) / sum * inverse;
            if (known) out[label] -= inverse;
        }
    }
}

// Adds a batch to sums [3]: its mean loss (rounded to f32, as on the CPU), the number of correct predictions, and 1.
// Block sums; one block.
extern "C" __global__ void loss_sums(
    const float *__restrict__ loss, const int *__restrict__ correct, int n, double *__restrict__ sums)
{
    double total = 0.0, right = 0.0;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        total += loss[i];
        right += correct[i];
    }
    total = block_sum(total);
    right = block_sum(right);
    if (threadIdx.x == 0) {
        sums[0] += (float)(total / n);
        sums[1] += right;
        sums[2] += 1.0;
    }
}
