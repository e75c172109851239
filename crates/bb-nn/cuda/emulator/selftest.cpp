// Checks every kernel and the three convolutions against plain loops in f64, through the driver as a program uses it.
// Everything runs twice, with blocks and threads in order and in reverse; both must give the same bits.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <set>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace {

typedef unsigned long long Address;
typedef std::vector<float> Floats;
typedef std::vector<double> Doubles;
typedef std::vector<int> Ints;

int failures = 0;

void check(bool good, const std::string &what)
{
    if (good) return;
    failures++;
    std::printf("FAILED: %s\n", what.c_str());
}

// ---- The libraries

void *open_library(const char *name)
{
    void *library = dlopen(name, RTLD_NOW);
    if (!library) {
        std::printf("%s\n", dlerror());
        std::exit(1);
    }
    return library;
}

void *function(void *library, const char *name)
{
    void *f = dlsym(library, name);
    if (!f) {
        std::printf("missing function %s\n", name);
        std::exit(1);
    }
    return f;
}

// A call of an exported function by name; the argument types are those given.
template <typename... A> int driver(const char *name, A... arguments)
{
    static void *const library = open_library("libcuda.so.1");
    return ((int (*)(A...))function(library, name))(arguments...);
}

template <typename... A> int dnn(const char *name, A... arguments)
{
    static void *const library = open_library("libcudnn.so.9");
    return ((int (*)(A...))function(library, name))(arguments...);
}

template <typename... A> void must(const char *name, A... arguments)
{
    check(driver(name, arguments...) == 0, name);
}

void *const STREAM = nullptr;

// An array in device memory.
template <typename T> struct Buffer {
    Address address = 0;
    std::size_t length;

    explicit Buffer(std::size_t length) : length(length)
    {
        must("cuMemAllocAsync", &address, length * sizeof(T), STREAM);
    }
    explicit Buffer(const std::vector<T> &values) : Buffer(values.size())
    {
        must("cuMemcpyHtoDAsync_v2", address, (const void *)values.data(), length * sizeof(T), STREAM);
    }
    Buffer(const Buffer &) = delete;
    ~Buffer() { must("cuMemFreeAsync", address, STREAM); }

    std::vector<T> values() const
    {
        std::vector<T> out(length);
        must("cuMemcpyDtoHAsync_v2", (void *)out.data(), address, length * sizeof(T), STREAM);
        return out;
    }
};

struct Grid {
    unsigned x, y;
};
struct Block {
    unsigned x, y;
};

void *module;
std::set<std::string> launched;

template <typename T> T parameter(T value)
{
    return value;
}

template <typename T> Address parameter(const Buffer<T> *buffer)
{
    return buffer->address;
}

template <typename... A> int try_launch(const char *name, Grid grid, Block block, A... arguments)
{
    void *kernel = nullptr;
    if (const int status = driver("cuModuleGetFunction", &kernel, module, name)) return status;
    launched.insert(name);
    void *parameters[] = {&arguments...};
    return driver("cuLaunchKernel", kernel, grid.x, grid.y, 1u, block.x, block.y, 1u, 0u, STREAM, (void **)parameters,
                  (void **)nullptr);
}

// Buffers are given by address; the other arguments must have exactly the kernel's types.
template <typename... A> void launch(const char *name, Grid grid, Block block, const A &...arguments)
{
    check(try_launch(name, grid, block, parameter(arguments)...) == 0, std::string("launch of ") + name);
}

const Block LINE = {256, 1}, COLUMN = {32, 8}, TILE = {16, 16};

// A grid that is too small for one element per thread where n > 512.
Grid some_blocks(long long n)
{
    return {n > 256 ? 2u : 1u, 1};
}

unsigned quotient(int a, int b)
{
    return (a + b - 1) / b;
}

// ---- Values and comparisons

unsigned long long random_state;

float random_float()
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return float(int(random_state >> 40) - (1 << 23)) / float(1 << 22); // -2..2
}

Floats random_floats(std::size_t n)
{
    Floats v(n);
    for (float &x : v) x = random_float();
    return v;
}

Floats positive_floats(std::size_t n)
{
    Floats v = random_floats(n);
    for (float &x : v) x = std::fabs(x) + 0.1f;
    return v;
}

// The bytes of all results of the first run, for the second one.
std::vector<std::vector<unsigned char>> results;
bool reversed = false;
std::size_t result_number = 0;

template <typename T> void same_as_first_run(const std::string &what, const std::vector<T> &got)
{
    std::vector<unsigned char> bytes(got.size() * sizeof(T));
    std::memcpy(bytes.data(), got.data(), bytes.size());
    if (!reversed)
        results.push_back(bytes);
    else
        check(result_number < results.size() && results[result_number] == bytes, what + ": depends on the order");
    result_number++;
}

// Every value within `tolerance` of the wanted one, relative to its size plus `size`. NaN must meet NaN.
template <typename T>
void near(
    const std::string &what, const Buffer<T> &buffer, const Doubles &want, double size = 1, double tolerance = 3e-6)
{
    const std::vector<T> got = buffer.values();
    same_as_first_run(what, got);
    check(got.size() == want.size(), what + ": length");
    for (std::size_t i = 0; i < want.size(); i++) {
        const double g = got[i];
        const bool close = std::fabs(g - want[i]) <= tolerance * (std::fabs(want[i]) + size);
        if (std::isnan(want[i]) ? std::isnan(g) : close) continue;
        char line[200];
        std::snprintf(line, sizeof line, "%s: value %zu is %.9g, must be %.9g", what.c_str(), i, g, want[i]);
        check(false, line);
        return;
    }
}

// Every value exactly the wanted one.
template <typename T> void equal(const std::string &what, const Buffer<T> &buffer, const std::vector<T> &want)
{
    const std::vector<T> got = buffer.values();
    same_as_first_run(what, got);
    check(got.size() == want.size() && !std::memcmp(got.data(), want.data(), got.size() * sizeof(T)), what);
}

Doubles doubles(const Floats &v)
{
    return Doubles(v.begin(), v.end());
}

// ---- Batch normalisation

struct Factors {
    Doubles mean, invstd, scale, shift;
};

Factors factors(const Doubles &mean, const Doubles &var, double eps, const Floats &gamma, const Floats &beta)
{
    Factors f;
    for (std::size_t k = 0; k < mean.size(); k++) {
        f.mean.push_back(mean[k]);
        f.invstd.push_back(1 / std::sqrt(var[k] + eps));
        f.scale.push_back(gamma[k] * f.invstd[k]);
        f.shift.push_back(beta[k] - mean[k] * f.scale[k]);
    }
    return f;
}

void near_factors(
    const std::string &what, const Factors &want, const Buffer<float> &mean, const Buffer<float> &invstd,
    const Buffer<float> &scale, const Buffer<float> &shift)
{
    near(what + " mean", mean, want.mean);
    near(what + " invstd", invstd, want.invstd, 1, 1e-5);
    near(what + " scale", scale, want.scale, 1, 1e-5);
    double size = 1; // of the difference's terms
    for (std::size_t k = 0; k < want.mean.size(); k++) size = std::fmax(size, std::fabs(want.mean[k] * want.scale[k]));
    near(what + " shift", shift, want.shift, size, 1e-5);
}

void test_forward(int rows, int c, int rows_per_part, int parts)
{
    const std::string shape = " rows " + std::to_string(rows) + " c " + std::to_string(c);
    const long long n = (long long)rows * c;
    const float eps = 1e-5f, momentum = 0.1f;
    Floats x = random_floats(n);
    for (int r = 0; r < rows; r++) x[r * c] += 50; // a channel with a large mean
    const Floats gamma = random_floats(c), beta = random_floats(c), old_mean = random_floats(c),
                 old_var = positive_floats(c);
    const Buffer<float> dx(x), dgamma(gamma), dbeta(beta);

    Doubles want(2 * parts * c, 0.0), mean(c, 0.0), var(c, 0.0);
    for (int p = 0; p < parts; p++)
        for (int k = 0; k < c; k++) {
            const int from = std::min(p * rows_per_part, rows), to = std::min(from + rows_per_part, rows);
            double sum = 0, m2 = 0;
            for (int r = from; r < to; r++) sum += x[r * c + k];
            const double m = to > from ? sum / (to - from) : 0;
            for (int r = from; r < to; r++) m2 += (x[r * c + k] - m) * (x[r * c + k] - m);
            want[(p * 2) * c + k] = m;
            want[(p * 2 + 1) * c + k] = m2;
            mean[k] += sum / rows;
        }
    for (long long i = 0; i < n; i++) var[i % c] += (x[i] - mean[i % c]) * (x[i] - mean[i % c]) / rows;
    const Buffer<float> partial(2 * parts * c);
    launch("bn_partial", {unsigned(parts), quotient(c, 32)}, COLUMN, &dx, rows, c, rows_per_part, &partial);
    near("bn_partial" + shape, partial, want);

    for (int update = 0; update < 2; update++) {
        const Buffer<float> running_mean(old_mean), running_var(old_var), m(c), i(c), s(c), b(c);
        launch("bn_factors", {quotient(c, 32), 1}, {32, 1}, &partial, parts, rows, rows_per_part, c, &dgamma, &dbeta,
               &running_mean, &running_var, momentum, eps, update, &m, &i, &s, &b);
        near_factors("bn_factors" + shape, factors(mean, var, eps, gamma, beta), m, i, s, b);
        if (update) {
            Doubles new_mean, new_var;
            for (int k = 0; k < c; k++) {
                new_mean.push_back(0.9 * old_mean[k] + 0.1 * mean[k]);
                new_var.push_back(0.9 * old_var[k] + 0.1 * var[k] * rows / (std::max(rows, 2) - 1));
            }
            near("bn_factors running mean" + shape, running_mean, new_mean);
            near("bn_factors running var" + shape, running_var, new_var);
        } else {
            equal("bn_factors without update, mean" + shape, running_mean, old_mean);
            equal("bn_factors without update, var" + shape, running_var, old_var);
        }
    }
    const Buffer<float> running_mean(old_mean), running_var(old_var), m(c), i(c), s(c), b(c);
    launch("bn_eval_factors", {quotient(c, 32), 1}, {32, 1}, &running_mean, &running_var, &dgamma, &dbeta, eps, c, &m,
           &i, &s, &b);
    near_factors("bn_eval_factors" + shape, factors(doubles(old_mean), doubles(old_var), eps, gamma, beta), m, i, s, b);

    x[n / 2] = NAN;
    for (int relu = 0; relu < 2; relu++)
        for (int in_place = 0; in_place < 2; in_place++) {
            const Buffer<float> in(x), scale(gamma), shift(beta), y(n);
            launch("bn_apply", some_blocks(n), LINE, &in, &scale, &shift, relu, n, c, in_place ? &in : &y);
            Doubles out(n);
            for (long long e = 0; e < n; e++) {
                const double z = (double)x[e] * gamma[e % c] + beta[e % c];
                out[e] = relu && z < 0 ? 0 : z;
            }
            near("bn_apply" + shape, in_place ? in : y, out);
        }
}

void test_backward(int rows, int c, int rows_per_part, int parts)
{
    const std::string shape = " rows " + std::to_string(rows) + " c " + std::to_string(c);
    const long long n = (long long)rows * c;
    Floats x = random_floats(n), scale = random_floats(c), shift = random_floats(c);
    const Floats dy = random_floats(n), mean = random_floats(c), invstd = positive_floats(c);
    x[0] = 0, shift[0] = 0; // exactly at the kink
    const Buffer<float> dx(x), ddy(dy), dscale(scale), dshift(shift), dmean(mean), dinvstd(invstd);
    for (int relu = 0; relu < 2; relu++) {
        // The mask is that of the forward pass in f32.
        Doubles g(n);
        for (long long i = 0; i < n; i++)
            g[i] = relu && !(std::fma(x[i], scale[i % c], shift[i % c]) > 0) ? 0 : dy[i];
        Doubles want(2 * parts * c, 0.0), sum(c, 0.0), dot(c, 0.0);
        for (long long i = 0; i < n; i++) {
            const int k = i % c, p = i / c / rows_per_part;
            const double d = g[i] * ((double)x[i] - mean[k]);
            want[(p * 2) * c + k] += g[i], sum[k] += g[i];
            want[(p * 2 + 1) * c + k] += d, dot[k] += d * invstd[k];
        }
        const Buffer<float> partial(2 * parts * c);
        launch("bn_gradient_partial", {unsigned(parts), quotient(c, 32)}, COLUMN, &ddy, &dx, &dscale, &dshift, &dmean,
               relu, rows, c, rows_per_part, &partial);
        near("bn_gradient_partial" + shape, partial, want, 10);
        for (int batch = 0; batch < 2; batch++) {
            const Buffer<float> dbeta(c), dgamma(c), constant(c), slope(c);
            launch("bn_gradient_terms", {quotient(c, 32), 1}, {32, 1}, &partial, parts, rows, c, &dinvstd, &dscale,
                   batch, &dbeta, &dgamma, &constant, &slope);
            Doubles a(c), b(c), wanted(n), added(n);
            for (int k = 0; k < c; k++) {
                a[k] = batch ? scale[k] * sum[k] / rows : 0.0;
                b[k] = batch ? scale[k] * dot[k] * invstd[k] / rows : 0.0;
            }
            near("bn_gradient_terms beta" + shape, dbeta, sum, 10);
            near("bn_gradient_terms gamma" + shape, dgamma, dot, 20);
            near("bn_gradient_terms constant" + shape, constant, a, 10);
            near("bn_gradient_terms slope" + shape, slope, b, 20);
            for (long long i = 0; i < n; i++) {
                const int k = i % c;
                wanted[i] = scale[k] * g[i] - a[k] - b[k] * ((double)x[i] - mean[k]);
                added[i] = wanted[i] + x[i];
            }
            const Buffer<float> plain(n), sums(x), in_place(dy);
            const auto run = [&](const Buffer<float> &from, int add, const Buffer<float> &to) {
                launch("bn_input_gradient", some_blocks(n), LINE, &from, &dx, &dscale, &dshift, &dmean, &constant,
                       &slope, relu, add, n, c, &to);
            };
            run(ddy, 0, plain), run(ddy, 1, sums), run(in_place, 0, in_place);
            near("bn_input_gradient" + shape, plain, wanted, 50);
            near("bn_input_gradient added" + shape, sums, added, 50);
            near("bn_input_gradient in place" + shape, in_place, wanted, 50);
        }
    }
}

// ---- Vectors

void test_vectors(long long n)
{
    const std::string shape = " n " + std::to_string(n);
    const Floats x = random_floats(n), y = random_floats(n), v = random_floats(n);
    const float a = 0.7f, b = -1.3f;
    const Buffer<float> dx(x);
    Doubles added(n), mixed(n), scaled(n);
    double squares = 0;
    for (long long i = 0; i < n; i++) {
        added[i] = y[i] + (double)a * x[i];
        mixed[i] = (double)a * y[i] + (double)b * x[i];
        scaled[i] = (double)a * y[i];
        squares += (double)x[i] * x[i];
    }
    const Buffer<float> y1(y), y2(y), y3(y);
    launch("add_scaled", some_blocks(n), LINE, &y1, a, &dx, n);
    launch("mix", some_blocks(n), LINE, &y2, a, &dx, b, n);
    launch("scale", some_blocks(n), LINE, &y3, a, n);
    near("add_scaled" + shape, y1, added);
    near("mix" + shape, y2, mixed);
    near("scale" + shape, y3, scaled);

    for (int nesterov = 0; nesterov < 2; nesterov++) {
        const Buffer<float> weights(y), velocity(v);
        launch("sgd_momentum", some_blocks(n), LINE, &weights, &velocity, &dx, 0.05f, 0.9f, 0.01f, nesterov, n);
        Doubles new_weights(n), new_velocity(n);
        for (long long i = 0; i < n; i++) {
            const double g = x[i] + 0.01 * y[i], s = 0.9 * v[i] + g;
            new_velocity[i] = s;
            new_weights[i] = y[i] - 0.05 * (nesterov ? g + 0.9 * s : s);
        }
        near("sgd_momentum weights" + shape, weights, new_weights);
        near("sgd_momentum momentum" + shape, velocity, new_velocity);
    }

    const Buffer<double> partial(1024);
    launch("sum_of_squares", {1024, 1}, LINE, &dx, n, &partial);
    const Doubles parts = partial.values();
    double sum = 0;
    for (const double p : parts) sum += p;
    same_as_first_run("sum_of_squares" + shape, parts);
    check(std::fabs(sum - squares) <= 1e-12 * squares, "sum_of_squares" + shape);

    for (const float special : {0.0f, FLT_MAX, -FLT_MAX, INFINITY, -INFINITY, NAN}) {
        Floats values = x;
        values[n - 1] = special;
        const Buffer<float> in(values);
        const Buffer<int> flag(Ints{0});
        launch("all_finite", some_blocks(n), LINE, &in, n, &flag);
        equal("all_finite" + shape, flag, Ints{!std::isfinite(special)});
    }
}

// ---- Pooling and the linear layer

void test_pooling(int n, int pixels, int c)
{
    const Floats x = random_floats(n * pixels * c), dy = random_floats(n * c);
    const Buffer<float> dx(x), ddy(dy), y(n * c), gradient(n * pixels * c);
    Doubles mean(n * c, 0.0), back(n * pixels * c);
    for (int i = 0; i < n; i++)
        for (int p = 0; p < pixels; p++)
            for (int k = 0; k < c; k++) {
                mean[i * c + k] += (double)x[(i * pixels + p) * c + k] / pixels;
                back[(i * pixels + p) * c + k] = (double)dy[i * c + k] / pixels;
            }
    launch("global_average", some_blocks(n * c), LINE, &dx, n, pixels, c, &y);
    launch("global_average_gradient", some_blocks(n * pixels * c), LINE, &ddy, n, pixels, c, &gradient);
    near("global_average", y, mean);
    near("global_average_gradient", gradient, back);
}

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
    if (with_nan) logits[2 * classes] = NAN;                                 // the prediction is class 0
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
        right[i] = best == labels[i];
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

// ---- Batches

void test_assemble(int n, int h, int w)
{
    const int stored = 4;
    std::vector<unsigned char> images(stored * h * w * 3);
    for (std::size_t i = 0; i < images.size(); i++) images[i] = (unsigned char)(i * 37 + i / 7);
    const Floats table = random_floats(3 * 256);
    Ints choices;
    for (int i = 0; i < n; i++) {
        const int choice[4] = {(i * 3 + 1) % stored, i % 5 - 2, (i * 2) % 5 - 2, i % 2};
        choices.insert(choices.end(), choice, choice + 4);
    }
    Floats want;
    for (int i = 0; i < n; i++)
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++)
                for (int k = 0; k < 3; k++) {
                    const int *choice = &choices[i * 4];
                    const int row = y + choice[1], column = (choice[3] ? w - 1 - x : x) + choice[2];
                    const bool inside = row >= 0 && row < h && column >= 0 && column < w;
                    const int byte = inside ? images[((choice[0] * h + row) * w + column) * 3 + k] : 0;
                    want.push_back(table[k * 256 + byte]);
                }
    const Buffer<unsigned char> vimages(images);
    const Buffer<int> vchoices(choices);
    const Buffer<float> vtable(table), out(want.size());
    launch("assemble", some_blocks(want.size()), LINE, &vimages, &vchoices, &vtable, n, h, w, &out);
    equal("assemble", out, want);
}

// ---- Convolutions

struct Shape {
    int n, c, h, w;
    bool nhwc;
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
        good(dnn("cudnnSetTensor4dDescriptor", x, int(xs.nhwc), 0, xs.n, xs.c, xs.h, xs.w));
        good(dnn("cudnnSetTensor4dDescriptor", y, int(ys.nhwc), 0, ys.n, ys.c, ys.h, ys.w));
        good(dnn("cudnnSetFilter4dDescriptor", w, 0, int(ws.nhwc), ws.n, ws.c, ws.h, ws.w));
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

void test_convolution(bool nhwc, int k, int stride, int pad, int groups)
{
    const std::string shape = std::string(nhwc ? " NHWC" : " NCHW") + " k " + std::to_string(k) + " stride " +
                              std::to_string(stride) + " pad " + std::to_string(pad) + " groups " +
                              std::to_string(groups);
    const Shape xs = {2, 2 * groups, 5, 6, nhwc}, ws = {3 * groups, 2, k, k, nhwc};
    const Shape ys = {2, ws.n, (xs.h + 2 * pad - k) / stride + 1, (xs.w + 2 * pad - k) / stride + 1, nhwc};
    const Floats x = random_floats(xs.size()), w = random_floats(ws.size()), dy = random_floats(ys.size());
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
    const Buffer<float> vx(x), vw(w), vdy(dy);
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
            const auto destination = [&](std::size_t n) { return beta == 0 ? Floats(n, NAN) : Floats(n, 1.0f); };
            const Buffer<float> vy(destination(ys.size())), vdx(destination(xs.size())), vdw(destination(ws.size()));
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

// ---- Errors

// Runs `f` in a child process without stderr; gives the signal that ended it, or 0.
int signal_of(const std::function<void()> &f)
{
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
        if (!std::freopen("/dev/null", "w", stderr)) _exit(1);
        f();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

void test_errors()
{
    std::fflush(stderr);
    const int shown = dup(STDERR_FILENO);
    if (!std::freopen("/dev/null", "w", stderr)) std::exit(1);

    const Buffer<float> v(Floats(10, 1.0f));
    void *context;
    must("cuCtxGetCurrent", &context);
    must("cuCtxSetCurrent", (void *)nullptr);
    check(driver("cuMemsetD8Async", v.address, (unsigned char)0, std::size_t(4), STREAM) == 201, "call out of context");
    must("cuCtxSetCurrent", context);
    void *kernel;
    check(driver("cuModuleGetFunction", &kernel, module, "no_such_kernel") == 500, "unknown kernel");
    void *other;
    must("cuModuleLoadData", &other, (const void *)"//\n.visible .entry scale(");
    check(driver("cuModuleGetFunction", &kernel, other, "scale") == 0, "kernel that the module has");
    check(driver("cuModuleGetFunction", &kernel, other, "mix") == 500, "kernel that the module lacks");
    must("cuModuleUnload", other);
    check(driver("cuModuleLoadData", &other, (const void *)"no PTX") == 200, "module that is no PTX");
    Floats host(10);
    check(try_launch("scale", {1, 1}, LINE, Address(host.data()), 2.0f, 10ll) == 700, "host memory in a kernel");
    check(try_launch("scale", {1, 1}, LINE, v.address + 2, 2.0f, 1ll) == 716, "misaligned pointer");
    check(try_launch("scale", {0, 1}, LINE, v.address, 2.0f, 10ll) == 1, "empty grid");
    check(try_launch("scale", {1, 1}, {2048, 1}, v.address, 2.0f, 10ll) == 1, "block too large");
    check(driver("cuMemcpyHtoDAsync_v2", v.address + 4, (const void *)host.data(), std::size_t(40), STREAM) == 1,
          "copy past the end");
    check(driver("cuMemsetD8Async", v.address, (unsigned char)0, std::size_t(41), STREAM) == 1, "memset past the end");
    check(driver("cuMemFreeAsync", v.address + 4, STREAM) == 1, "free of an inner address");

    const Buffer<float> fresh(3);
    for (const float f : fresh.values()) check(std::isnan(f), "fresh memory is NaN");
    check(signal_of([&] { try_launch("scale", {1, 1}, LINE, v.address, 2.0f, 1000ll); }) == SIGSEGV,
          "kernel far past the end");
    check(signal_of([&] {
              Address a;
              driver("cuMemAllocAsync", &a, std::size_t(20), STREAM);
              try_launch("scale", {1, 1}, LINE, a, 2.0f, 6ll);
              driver("cuMemFreeAsync", a, STREAM);
          }) == SIGABRT,
          "kernel one value past the end");

    const Shape xs = {1, 2, 4, 4, true}, ws = {3, 2, 3, 3, true}, ys = {1, 3, 4, 4, true};
    const Buffer<float> x(xs.size()), w(ws.size()), y(ys.size());
    const float one = 1, zero = 0;
    const auto forward = [&](Shape x_shape, Shape w_shape, Shape y_shape, Address to, int algorithm) {
        const Descriptors d(x_shape, w_shape, y_shape, 1, 1, 1);
        return dnn("cudnnConvolutionForward", d.handle, (const void *)&one, d.x, (void *)x.address, d.w,
                   (void *)w.address, d.conv, algorithm, (void *)nullptr, std::size_t(0), (const void *)&zero, d.y,
                   (void *)to);
    };
    check(forward(xs, ws, ys, y.address, 0) == 0, "convolution that fits");
    check(forward(xs, ws, {1, 3, 4, 5, true}, y.address, 0) == 2008, "wrong output size");
    check(forward(xs, {3, 1, 3, 3, true}, ys, y.address, 0) == 2008, "wrong channels of the filter");
    check(forward(xs, {3, 2, 3, 3, false}, ys, y.address, 0) == 3000, "formats that differ");
    check(forward(xs, ws, ys, 0, 0) == 2002, "null result");
    check(forward(xs, ws, ys, Address(host.data()), 0) == 2000, "host memory in a convolution");
    check(forward(xs, ws, ys, x.address, 0) == 2000, "result on an operand");
    check(forward(xs, ws, ys, y.address, 1) == 2006, "no workspace");

    std::fflush(stderr);
    dup2(shown, STDERR_FILENO);
    close(shown);
}

void test_counts()
{
    unsigned long long counts[8];
    driver("emulator_reset");
    {
        const Buffer<float> a(Floats(4, 1.0f)), b(4);
        launch("scale", {1, 1}, LINE, &a, 2.0f, 4ll);
        must("cuMemcpyDtoDAsync_v2", b.address, a.address, std::size_t(16), STREAM);
        check(b.values() == Floats(4, 2.0f), "copy on the device");
        must("cuMemsetD8Async", a.address, (unsigned char)0, std::size_t(16), STREAM);
    }
    driver("emulator_counts", &counts[0]);
    const unsigned long long want[8] = {1, 0, 2, 2, 1, 1, 1, 1};
    check(!std::memcmp(counts, want, sizeof want), "counts");
}

void run_all()
{
    random_state = 1;
    result_number = 0;
    const int shapes[][3] = {{1, 1, 8},     {7, 5, 3},   {70, 33, 16},   {45, 64, 64},
                             {130, 3, 32}, {9, 2, 512}, {300, 100, 128}}; // rows, channels, rows of a part
    for (const auto &s : shapes)
        for (int empty = 0; empty < 2; empty++) { // a part without rows at the end
            const int parts = quotient(s[0], s[2]) + empty;
            test_forward(s[0], s[1], s[2], parts);
            test_backward(s[0], s[1], s[2], parts);
        }
    for (const long long n : {1, 255, 256, 1000}) test_vectors(n);
    test_pooling(1, 1, 1), test_pooling(3, 7, 5), test_pooling(2, 16, 70);
    test_linear(1, 1, 1), test_linear(1, 35, 3), test_linear(18, 16, 17), test_linear(33, 40, 10);
    test_loss(1, 1), test_loss(1, 4), test_loss(5, 10), test_loss(5, 10, true), test_loss(600, 7);
    test_assemble(1, 1, 1), test_assemble(7, 5, 4);
    for (const bool nhwc : {false, true})
        for (const int k : {1, 3})
            for (const int stride : {1, 2})
                for (const int pad : {0, 1})
                    for (const int groups : {1, 2}) test_convolution(nhwc, k, stride, pad, groups);
}

} // namespace

int main()
{
    int device;
    void *context;
    must("cuInit", 0u);
    must("cuDeviceGet", &device, 0);
    must("cuDevicePrimaryCtxRetain", &context, device);
    must("cuCtxSetCurrent", context);
    must("cuModuleLoadData", &module, (const void *)"// no kernels named: all of them");
    run_all();
    driver("emulator_reverse", 1);
    reversed = true;
    run_all();
    driver("emulator_reverse", 0);
    test_errors();
    test_counts();
#define KERNEL(name) check(launched.count(#name), "no test of " #name);
#include "kernel_names.inc"
    std::printf("%zu results, %d failures\n", results.size(), failures);
    return failures != 0;
}
