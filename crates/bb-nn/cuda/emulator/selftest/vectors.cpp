// Whole vectors: storage, sums, optimisers, norms.

#include "harness.h"

#include <cfloat>

namespace {

// Runs a kernel on arrays of n elements that begin at and next to a multiple of 16 bytes, with two grids:
// run(grid, offset) gives its result, which may depend on neither.
template <typename F> auto everywhere(const std::string &what, long long n, F run)
{
    const auto first = run(grids(n)[0], 0);
    for (const Grid grid : grids(n))
        for (const std::size_t offset : {0, 1, 2})
            check(!std::memcmp(run(grid, offset).data(), first.data(), n * sizeof first[0]),
                  what + ": depends on grid or address");
    return first;
}

// ---- Storage

// Every bf16, and every f32 that lies on, next to or halfway between two of them.
void test_all_values()
{
    std::vector<Bf16> narrow;
    Floats wide;
    for (unsigned high = 0; high < 1 << 16; high++) {
        narrow.push_back({std::uint16_t(high)});
        for (const unsigned low : {0u, 1u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
            const std::uint32_t bits = high << 16 | low;
            float value;
            std::memcpy(&value, &bits, sizeof value);
            wide.push_back(value);
        }
    }
    const Buffer<Bf16> from(narrow), to(wide.size());
    const Buffer<float> widened(narrow.size()), in(wide);
    launch("from_bf16", {64, 1}, LINE, &from, (long long)narrow.size(), &widened);
    launch("to_bf16", {64, 1}, LINE, &in, (long long)wide.size(), &to);
    equal("from_bf16", widened, Floats(narrow.begin(), narrow.end()));
    equal("to_bf16", to, stored<Bf16>(wide));
}

void test_storage(long long n)
{
    const std::string shape = " n " + std::to_string(n);
    const Floats x = random_floats(n), y = random_floats(n);
    Floats sums;
    for (long long i = 0; i < n; i++) sums.push_back(rounded<Bf16>(x)[i] + rounded<Bf16>(y)[i]);
    equal("to_bf16" + shape, everywhere("to_bf16" + shape, n, [&](Grid grid, std::size_t offset) {
              const Buffer<float> in(x, offset);
              const Buffer<Bf16> out(n, offset);
              launch("to_bf16", grid, LINE, &in, n, &out);
              return out.values();
          }), stored<Bf16>(x));
    equal("from_bf16" + shape, everywhere("from_bf16" + shape, n, [&](Grid grid, std::size_t offset) {
              const Buffer<Bf16> in(stored<Bf16>(x), offset);
              const Buffer<float> out(n, offset);
              launch("from_bf16", grid, LINE, &in, n, &out);
              return out.values();
          }), rounded<Bf16>(x));
    equal("add_bf16" + shape, everywhere("add_bf16" + shape, n, [&](Grid grid, std::size_t offset) {
              const Buffer<Bf16> in(stored<Bf16>(x), offset), out(stored<Bf16>(y), offset);
              launch("add_bf16", grid, LINE, &out, &in, n);
              return out.values();
          }), stored<Bf16>(sums));
}

// ---- Sums, optimisers

void test_vectors(long long n)
{
    const std::string shape = " n " + std::to_string(n);
    const Floats x = random_floats(n), y = random_floats(n), v = random_floats(n), squares = positive_floats(n);
    const float a = 0.7f, b = -1.3f;
    Doubles added(n), mixed(n), scaled(n), clamped(n), stepped(n);
    for (long long i = 0; i < n; i++) {
        added[i] = y[i] + (double)a * x[i];
        mixed[i] = (double)a * y[i] + (double)b * x[i];
        scaled[i] = (double)a * y[i];
        clamped[i] = std::fmin(std::fmax(y[i], b), a);
        stepped[i] = std::fmin(std::fmax((double)y[i] + (x[i] > 0 ? a : x[i] < 0 ? -a : 0), -1.5), 1.5);
    }
    // launch(y, x, grid) changes y.
    const auto change = [&](const char *what, const Doubles &want, auto launch_it) {
        near(what + shape, everywhere(what + shape, n, [&](Grid grid, std::size_t offset) {
                 const Buffer<float> vx(x, offset), vy(y, offset);
                 launch_it(vy, vx, grid);
                 return vy.values();
             }), want);
    };
    typedef const Buffer<float> &Vector;
    change("add_scaled", added,
           [&](Vector to, Vector from, Grid g) { launch("add_scaled", g, LINE, &to, a, &from, n); });
    change("mix", mixed, [&](Vector to, Vector from, Grid g) { launch("mix", g, LINE, &to, a, &from, b, n); });
    change("scale", scaled, [&](Vector to, Vector, Grid g) { launch("scale", g, LINE, &to, a, n); });
    change("clamp", clamped, [&](Vector to, Vector, Grid g) { launch("clamp", g, LINE, &to, b, a, n); });
    change("sign_step", stepped,
           [&](Vector to, Vector from, Grid g) { launch("sign_step", g, LINE, &to, &from, a, 1.5f, n); });

    for (int nesterov = 0; nesterov < 2; nesterov++) {
        Doubles want(2 * n);
        for (long long i = 0; i < n; i++) {
            const double g = x[i] + 0.01 * y[i], s = 0.9 * v[i] + g;
            want[i] = y[i] - 0.05 * (nesterov ? g + 0.9 * s : s);
            want[n + i] = s;
        }
        near("sgd_momentum" + shape, everywhere("sgd_momentum" + shape, n, [&](Grid grid, std::size_t offset) {
                 const Buffer<float> gradient(x, offset), weights(y, offset), velocity(v, offset);
                 launch("sgd_momentum", grid, LINE, &weights, &velocity, &gradient, 0.05f, 0.9f, 0.01f, nesterov, n);
                 Floats out = weights.values();
                 for (const float s : velocity.values()) out.push_back(s);
                 return out;
             }), want);
    }

    const float step = 0.02f, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, decay = 0.01f, bias2_sqrt = 0.3f;
    Doubles moved(3 * n);
    for (long long i = 0; i < n; i++) {
        const double g = x[i] + (double)decay * y[i], m = v[i] + (1.0 - beta1) * (g - v[i]),
                     s = (double)beta2 * squares[i] + (1.0 - beta2) * g * g;
        moved[i] = y[i] - step * m / (std::sqrt(s) / bias2_sqrt + eps);
        moved[n + i] = m;
        moved[2 * n + i] = s;
    }
    near("adam" + shape, everywhere("adam" + shape, n, [&](Grid grid, std::size_t offset) {
             const Buffer<float> gradient(x, offset), weights(y, offset), first(v, offset), second(squares, offset);
             launch("adam", grid, LINE, &weights, &first, &second, &gradient, step, 1 - beta1, beta2, 1 - beta2, eps,
                    decay, bias2_sqrt, n);
             Floats out = weights.values();
             for (const float m : first.values()) out.push_back(m);
             for (const float s : second.values()) out.push_back(s);
             return out;
         }), moved);


    // The largest second moment so far is below the new one at every other element.
    Floats largest(n);
    Doubles moved_least(4 * n);
    for (long long i = 0; i < n; i++) {
        const double s = moved[2 * n + i];
        largest[i] = (float)(i % 2 ? 2 * s + 1 : s / 2);
        const double top = std::fmax(s, largest[i]);
        moved_least[i] = y[i] - step * moved[n + i] / (std::sqrt(top) / bias2_sqrt + eps);
        moved_least[n + i] = moved[n + i];
        moved_least[2 * n + i] = s;
        moved_least[3 * n + i] = top;
    }
    near("amsgrad" + shape, everywhere("amsgrad" + shape, n, [&](Grid grid, std::size_t offset) {
             const Buffer<float> gradient(x, offset), weights(y, offset), first(v, offset), second(squares, offset),
                 top(largest, offset);
             launch("amsgrad", grid, LINE, &weights, &first, &second, &top, &gradient, step, 1 - beta1, beta2,
                    1 - beta2, eps, decay, bias2_sqrt, n);
             Floats out = weights.values();
             for (const float m : first.values()) out.push_back(m);
             for (const float s : second.values()) out.push_back(s);
             for (const float s : top.values()) out.push_back(s);
             return out;
         }), moved_least);

    const Buffer<float> dx(x);
    const Buffer<double> partial(1024);
    launch("sum_of_squares", {1024, 1}, LINE, &dx, n, &partial);
    double sum = 0, want = 0;
    for (const double p : partial.values()) sum += p;
    for (const float e : x) want += (double)e * e;
    near("sum_of_squares" + shape, Doubles{sum}, {want}, 0, 1e-12);

    for (const float special : {0.0f, FLT_MAX, -FLT_MAX, INFINITY, -INFINITY, NAN}) {
        Floats values = x;
        values[n - 1] = special;
        const Buffer<float> in(values);
        const Buffer<int> flag(Ints{0});
        launch("all_finite", some_blocks(n), LINE, &in, n, &flag);
        equal("all_finite" + shape, flag, Ints{!std::isfinite(special)});
    }

    // A norm of 5 by two partial sums and one that stays 0.
    const Buffer<double> sums(Doubles{9, 0, 16});
    for (const float limit : {1.0f, 5.0f, 6.0f}) {
        Doubles clipped;
        for (const float e : x) clipped.push_back(e * std::fmin(1, limit / (5 + 1e-6)));
        const auto got = everywhere("clip_norm" + shape, n, [&](Grid grid, std::size_t offset) {
            const Buffer<float> g(x, offset);
            launch("clip_norm", grid, LINE, &g, &sums, 3, limit, n);
            return g.values();
        });
        near("clip_norm" + shape, got, clipped);
        if (limit > 5.5f) equal("clip_norm that changes nothing" + shape, got, x);
    }
}

void test_special_values()
{
    const Floats x = {NAN, 1, -3, INFINITY, -INFINITY, -0.0f}, g = {1, NAN, 0, -0.0f, 1, -2};
    const Buffer<float> clamped(x), stepped(x), clipped(x), dg(g);
    launch("clamp", {1, 1}, LINE, &clamped, -2.0f, 2.0f, 6ll);
    equal("clamp of special values", clamped, Floats{NAN, 1, -2, 2, -2, -0.0f});
    launch("sign_step", {1, 1}, LINE, &stepped, &dg, 0.5f, 2.0f, 6ll);
    equal("sign_step of special values", stepped, Floats{NAN, NAN, -2, 2, -2, -0.5f});
    const Buffer<double> sums(Doubles{1, NAN});
    launch("clip_norm", {1, 1}, LINE, &clipped, &sums, 2, 1.0f, 6ll);
    equal("clip_norm of NaN", clipped, Floats(6, NAN));
}

// ---- Tensors of a vector

void test_tensors(int parts)
{
    const std::string shape = " parts " + std::to_string(parts);
    // Sizes of tensors, one of them empty and one of zeros, behind a first element that belongs to none.
    const std::vector<int> sizes = {3, 0, 700, 1, 256, 5};
    const int tensors = int(sizes.size()), zeros = 4;
    std::vector<long long> bounds = {1};
    for (const int size : sizes) bounds.push_back(bounds.back() + size);
    const long long n = bounds.back() + 1; // and before a last one
    Floats x = random_floats(n);
    const Floats w = random_floats(n);
    std::fill(x.begin() + bounds[zeros], x.begin() + bounds[zeros + 1], 0.0f);
    const Buffer<float> dx(x);
    const Buffer<long long> dbounds(bounds);
    const Buffer<double> partial(tensors * parts);
    const Grid grid = {unsigned(parts), unsigned(tensors)};
    launch("tensor_squares", grid, LINE, &dx, &dbounds, parts, &partial);

    Doubles squares(tensors, 0.0), want(tensors * parts, 0.0);
    double all = 0;
    for (int t = 0; t < tensors; t++)
        for (long long i = bounds[t]; i < bounds[t + 1]; i++) {
            squares[t] += (double)x[i] * x[i];
            all += (double)x[i] * x[i];
            want[t * parts + (i - bounds[t]) / 256 % parts] += (double)x[i] * x[i];
        }
    near("tensor_squares" + shape, partial, want, 1, 1e-12);
    for (int whole = 0; whole < 2; whole++) {
        const Buffer<float> dw(w);
        launch("add_normalised", grid, LINE, &dw, &dx, &partial, &dbounds, tensors, parts, 0.3f, whole);
        Doubles moved = doubles(w);
        for (int t = 0; t < tensors; t++) {
            const double norm = std::sqrt(whole ? all : squares[t]);
            for (long long i = bounds[t]; norm > 0 && i < bounds[t + 1]; i++) moved[i] += 0.3f / norm * x[i];
        }
        near("add_normalised" + shape, dw, moved);
    }
    // Nothing moves along a gradient of zeros.
    const Buffer<float> dw(w), nothing(Floats(n, 0.0f));
    launch("tensor_squares", grid, LINE, &nothing, &dbounds, parts, &partial);
    launch("add_normalised", grid, LINE, &dw, &nothing, &partial, &dbounds, tensors, parts, 0.3f, 1);
    equal("add_normalised of zeros" + shape, dw, w);
}

} // namespace

void test_vectors()
{
    test_all_values();
    for (const long long n : {1, 7, 8, 255, 256, 1000, 4099}) test_storage(n), test_vectors(n);
    test_special_values();
    for (const int parts : {1, 2, 5}) test_tensors(parts);
}
