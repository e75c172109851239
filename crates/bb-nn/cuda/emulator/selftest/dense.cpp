// The linear layer and the loss.

#include "harness.h"

namespace {

void test_linear(int n, int inputs, int outputs)
{
    const std::string shape =
        " " + std::to_string(n) + " x " + std::to_string(inputs) + " to " + std::to_string(outputs);
    const Floats x = random_floats(n * inputs), w = random_floats(outputs * inputs), b = random_floats(outputs),
                 dy = random_floats(n * outputs);
    Doubles y(n * outputs), dx(n * inputs, 0.0), dw(outputs * inputs, 0.0), db(outputs, 0.0);
    for (int i = 0; i < n; i++)
        for (int o = 0; o < outputs; o++) {
            const double g = dy[i * outputs + o];
            double sum = b[o];
            for (int k = 0; k < inputs; k++) {
                sum += (double)x[i * inputs + k] * w[o * inputs + k];
                dx[i * inputs + k] += g * w[o * inputs + k];
                dw[o * inputs + k] += g * x[i * inputs + k];
            }
            y[i * outputs + o] = sum;
            db[o] += g;
        }
    const Buffer<float> vx(x), vw(w), vb(b), vdy(dy), out(n * outputs), grad_x(n * inputs), grad_w(outputs * inputs),
        grad_b(outputs);
    launch("linear_forward", {quotient(outputs, 16), quotient(n, 16)}, TILE, &vx, &vw, &vb, n, inputs, outputs, &out);
    launch("linear_input_gradient", {quotient(inputs, 16), quotient(n, 16)}, TILE, &vdy, &vw, n, inputs, outputs,
           &grad_x);
    launch("linear_weight_gradient", {quotient(inputs, 16), quotient(outputs, 16)}, TILE, &vx, &vdy, n, inputs,
           outputs, &grad_w, &grad_b);
    near("linear_forward" + shape, out, y, 10);
    near("linear_input_gradient" + shape, grad_x, dx, 10);
    near("linear_weight_gradient weights" + shape, grad_w, dw, 10);
    near("linear_weight_gradient bias" + shape, grad_b, db, 10);
}

// ---- Loss

void test_loss(int n, int classes, bool with_nan = false)
{
    const std::string shape = " " + std::to_string(n) + " x " + std::to_string(classes);
    Floats logits = random_floats(n * classes);
    if (n > 2 && classes > 2) logits[classes + 1] = logits[classes + 2] = 9; // equal largest ones: the first counts
    if (with_nan) logits[2 * classes] = NAN;                                 // there is no prediction
    Ints labels(n), right(n);
    for (int i = 0; i < n; i++) labels[i] = i % classes;
    Doubles loss(n), gradient(n * classes);
    double total = 0, correct = 0;
    for (int i = 0; i < n; i++) {
        const float *row = &logits[i * classes];
        int best = 0;
        double sum = 0;
        for (int k = 0; k < classes; k++) {
            if (row[k] > row[best]) best = k;
            sum += std::exp((double)row[k]);
        }
        loss[i] = std::log(sum) - row[labels[i]];
        right[i] = best == labels[i] && !std::isnan(row[0]);
        for (int k = 0; k < classes; k++)
            gradient[i * classes + k] = (std::exp((double)row[k]) / sum - (k == labels[i])) / n;
        total += loss[i], correct += right[i];
    }
    const Buffer<float> vlogits(logits), vloss(n), vgradient(n * classes);
    const Buffer<int> vlabels(labels), vright(n);
    launch("cross_entropy", some_blocks(n), LINE, &vlogits, &vlabels, n, classes, Address(0), &vloss, &vright);
    near("cross_entropy without gradient" + shape, vloss, loss);
    launch("cross_entropy", some_blocks(n), LINE, &vlogits, &vlabels, n, classes, &vgradient, &vloss, &vright);
    near("cross_entropy loss" + shape, vloss, loss);
    near("cross_entropy gradient" + shape, vgradient, gradient, 1.0 / n);
    equal("cross_entropy correct" + shape, vright, right);

    const Buffer<double> sums(Doubles{1, 2, 3});
    launch("loss_sums", {1, 1}, LINE, &vloss, &vright, n, &sums);
    near("loss_sums" + shape, sums, {1 + total / n, 2 + correct, 4});

    labels[n - 1] = classes;
    loss[n - 1] = NAN;
    const Buffer<int> wrong(labels);
    launch("cross_entropy", some_blocks(n), LINE, &vlogits, &wrong, n, classes, Address(0), &vloss, &vright);
    near("cross_entropy with a wrong label" + shape, vloss, loss);
}

} // namespace

void test_dense()
{
    test_linear(1, 1, 1), test_linear(1, 35, 3), test_linear(18, 16, 17), test_linear(33, 40, 10);
    test_loss(1, 1), test_loss(1, 4), test_loss(5, 10), test_loss(5, 10, true), test_loss(600, 7);
}
