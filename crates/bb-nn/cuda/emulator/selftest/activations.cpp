// What works on activations, in both storages: batch normalisation, pooling, batches.

#include "harness.h"

namespace {

// The result of a kernel of `n` elements on activations in T: run(grid, offset) launches it on arrays that begin
// `offset` elements after a multiple of 16 bytes. Neither may change a bit of the result.
template <typename T, typename F> Floats elements(const std::string &what, long long n, F run)
{
    std::vector<T> first;
    for (const Grid grid : grids(n))
        for (const std::size_t offset : {0, 1}) {
            const std::vector<T> got = run(grid, offset);
            check(got.size() == std::size_t(n), what + ": length");
            if (first.empty()) first = got;
            check(!std::memcmp(got.data(), first.data(), n * sizeof(T)), what + ": depends on grid or address");
        }
    same_as_first_run(what, first);
    return Floats(first.begin(), first.end());
}

// Compares a kernel's result in f32 with `want`, and that in bf16 with the one in f32, rounded: the same arithmetic on
// the same values. run(storage, grid, offset) takes a value of the storage's type. With a size of 0 values are exact.
template <typename F> void both_storages(const std::string &what, const Doubles &want, double size, F run)
{
    const auto in = [&](auto storage) {
        typedef decltype(storage) T;
        return elements<T>(what, want.size(), [&](Grid grid, std::size_t offset) { return run(T(), grid, offset); });
    };
    const Floats wide = in(float()), narrow = in(Bf16());
    near(what, wide, want, size, size == 0 ? 0 : 3e-6);
    equal(what + " in bf16", narrow, rounded<Bf16>(wide));
}

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

// The shape of a column sum.
struct Columns {
    int rows, c, rows_per_part, parts;

    std::string name() const { return " rows " + std::to_string(rows) + " c " + std::to_string(c); }
    Grid grid() const { return {unsigned(parts), quotient(c, 32)}; }
};

template <typename T> void test_statistics(Columns s)
{
    const auto [rows, c, rows_per_part, parts] = s;
    const std::string shape = s.name() + (IS_BF16<T> ? " bf16" : "");
    const long long n = (long long)rows * c;
    const float eps = 1e-5f, momentum = 0.1f;
    Floats x = random_floats(n);
    for (int r = 0; r < rows; r++) x[r * c] += 50; // a channel with a large mean
    x = rounded<T>(x);
    const Floats gamma = random_floats(c), beta = random_floats(c), old_mean = random_floats(c),
                 old_var = positive_floats(c);
    const Buffer<float> dgamma(gamma), dbeta(beta);

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
    const Buffer<float> partial(2 * parts * c), of_view(2 * parts * c);
    const Buffer<T> dx(stored<T>(x)), view(stored<T>(x), 1);
    launch(kernel<T>("bn_partial"), s.grid(), COLUMN, &dx, rows, c, rows_per_part, &partial);
    launch(kernel<T>("bn_partial"), s.grid(), COLUMN, &view, rows, c, rows_per_part, &of_view);
    near("bn_partial" + shape, partial, want);
    equal("bn_partial of a view" + shape, of_view, partial.values());

    for (int update = 0; update < 2; update++) {
        const Buffer<float> running_mean(old_mean), running_var(old_var), m(c), i(c), s(c), b(c);
        launch("bn_factors", {quotient(c, 32), 1}, {32, 32}, &partial, parts, rows, rows_per_part, c, &dgamma, &dbeta,
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
    const Buffer<float> running_mean(old_mean), running_var(old_var), m(c), i(c), f(c), b(c);
    launch("bn_eval_factors", {quotient(c, 32), 1}, {32, 1}, &running_mean, &running_var, &dgamma, &dbeta, eps, c, &m,
           &i, &f, &b);
    near_factors("bn_eval_factors" + shape, factors(doubles(old_mean), doubles(old_var), eps, gamma, beta), m, i, f, b);
}

void test_apply(Columns s)
{
    const int c = s.c;
    const long long n = (long long)s.rows * c;
    Floats x = rounded<Bf16>(random_floats(n));
    x[n / 2] = NAN;
    const Floats scale = random_floats(c), shift = random_floats(c);
    const Buffer<float> dscale(scale), dshift(shift);
    for (int relu = 0; relu < 2; relu++) {
        Doubles want(n);
        for (long long i = 0; i < n; i++) {
            const double z = (double)x[i] * scale[i % c] + shift[i % c];
            want[i] = relu && z < 0 ? 0 : z;
        }
        for (int in_place = 0; in_place < 2; in_place++)
            both_storages("bn_apply" + s.name(), want, 1, [&](auto storage, Grid grid, std::size_t offset) {
                typedef decltype(storage) T;
                const Buffer<T> in(stored<T>(x), offset), y(n, offset);
                const Buffer<T> &out = in_place ? in : y;
                launch(kernel<T>("bn_apply"), grid, LINE, &in, &dscale, &dshift, relu, n, c, &out);
                return out.values();
            });
    }
}

// Column sums of a gradient and the terms that follow from them.
template <typename T> void test_gradient_sums(Columns s, int relu)
{
    const auto [rows, c, rows_per_part, parts] = s;
    const std::string shape = s.name() + (IS_BF16<T> ? " bf16" : "");
    const long long n = (long long)rows * c;
    Floats x = rounded<T>(random_floats(n)), scale = random_floats(c), shift = random_floats(c);
    const Floats dy = rounded<T>(random_floats(n)), mean = random_floats(c), invstd = positive_floats(c);
    x[0] = 0, shift[0] = 0; // exactly at the kink
    const Buffer<float> dscale(scale), dshift(shift), dmean(mean), dinvstd(invstd);
    Doubles want(2 * parts * c, 0.0), sum(c, 0.0), dot(c, 0.0);
    for (long long i = 0; i < n; i++) {
        const int k = i % c, p = i / c / rows_per_part;
        // The mask is that of the forward pass in f32.
        const double g = relu && !(std::fma(x[i], scale[k], shift[k]) > 0) ? 0 : dy[i];
        const double d = g * ((double)x[i] - mean[k]);
        want[(p * 2) * c + k] += g, sum[k] += g;
        want[(p * 2 + 1) * c + k] += d, dot[k] += d * invstd[k];
    }
    const Buffer<float> partial(2 * parts * c), of_views(2 * parts * c);
    const auto run = [&](std::size_t offset, const Buffer<float> &to) {
        const Buffer<T> dx(stored<T>(x), offset), ddy(stored<T>(dy), offset);
        launch(kernel<T>("bn_gradient_partial"), s.grid(), COLUMN, &ddy, &dx, &dscale, &dshift, &dmean, relu, rows, c,
               rows_per_part, &to);
    };
    run(0, partial), run(1, of_views);
    near("bn_gradient_partial" + shape, partial, want, 10);
    equal("bn_gradient_partial of views" + shape, of_views, partial.values());
    for (int batch = 0; batch < 2; batch++) {
        const Buffer<float> dbeta(c), dgamma(c), constant(c), slope(c);
        launch("bn_gradient_terms", {quotient(c, 32), 1}, {32, 32}, &partial, parts, rows, c, &dinvstd, &dscale, batch,
               &dbeta, &dgamma, &constant, &slope);
        Doubles a(c), b(c);
        for (int k = 0; k < c; k++) {
            a[k] = batch ? scale[k] * sum[k] / rows : 0.0;
            b[k] = batch ? scale[k] * dot[k] * invstd[k] / rows : 0.0;
        }
        near("bn_gradient_terms beta" + shape, dbeta, sum, 10);
        near("bn_gradient_terms gamma" + shape, dgamma, dot, 20);
        near("bn_gradient_terms constant" + shape, constant, a, 10);
        near("bn_gradient_terms slope" + shape, slope, b, 20);
    }
}

void test_input_gradient(Columns s, int relu)
{
    const int c = s.c;
    const long long n = (long long)s.rows * c;
    Floats x = rounded<Bf16>(random_floats(n)), scale = random_floats(c), shift = random_floats(c);
    const Floats dy = rounded<Bf16>(random_floats(n)), before = rounded<Bf16>(random_floats(n)),
                 mean = random_floats(c), constant = random_floats(c), slope = random_floats(c);
    x[0] = 0, shift[0] = 0; // exactly at the kink
    const Buffer<float> dscale(scale), dshift(shift), dmean(mean), dconstant(constant), dslope(slope);
    Doubles want(n), added(n);
    for (long long i = 0; i < n; i++) {
        const int k = i % c;
        const double g = relu && !(std::fma(x[i], scale[k], shift[k]) > 0) ? 0 : dy[i];
        want[i] = scale[k] * g - constant[k] - slope[k] * ((double)x[i] - mean[k]);
        added[i] = want[i] + before[i];
    }
    const auto run = [&](const char *what, int add, bool in_place) {
        both_storages(what + s.name(), add ? added : want, 10, [&](auto storage, Grid grid, std::size_t offset) {
            typedef decltype(storage) T;
            const Buffer<T> dx(stored<T>(x), offset), ddy(stored<T>(dy), offset), sums(stored<T>(before), offset);
            const Buffer<T> &out = in_place ? ddy : sums;
            launch(kernel<T>("bn_input_gradient"), grid, LINE, &ddy, &dx, &dscale, &dshift, &dmean, &dconstant, &dslope,
                   relu, add, n, c, &out);
            return out.values();
        });
    };
    run("bn_input_gradient", 0, false), run("bn_input_gradient added", 1, false);
    run("bn_input_gradient in place", 0, true);
}

void test_pooling(int n, int pixels, int c)
{
    const long long size = (long long)n * pixels * c;
    const Floats x = rounded<Bf16>(random_floats(size)), dy = random_floats(n * c);
    Doubles mean(n * c, 0.0), back(size);
    for (int i = 0; i < n; i++)
        for (int p = 0; p < pixels; p++)
            for (int k = 0; k < c; k++) {
                mean[i * c + k] += (double)x[(i * pixels + p) * c + k] / pixels;
                back[(i * pixels + p) * c + k] = (double)dy[i * c + k] / pixels;
            }
    const Buffer<float> wide(x), y(n * c), y_of_narrow(n * c), ddy(dy);
    const Buffer<Bf16> narrow(stored<Bf16>(x), 1);
    launch("global_average", some_blocks(n * c), LINE, &wide, n, pixels, c, &y);
    launch("global_average_bf16", some_blocks(n * c), LINE, &narrow, n, pixels, c, &y_of_narrow);
    near("global_average", y, mean);
    equal("global_average_bf16", y_of_narrow, y.values());
    both_storages("global_average_gradient", back, 1, [&](auto storage, Grid grid, std::size_t offset) {
        typedef decltype(storage) T;
        const Buffer<T> out(size, offset);
        launch(kernel<T>("global_average_gradient"), grid, LINE, &ddy, n, pixels, c, &out);
        return out.values();
    });
}

void test_assemble(int n, int h, int w)
{
    const int stored_images = 4;
    std::vector<unsigned char> images(stored_images * h * w * 3);
    for (std::size_t i = 0; i < images.size(); i++) images[i] = (unsigned char)(i * 37 + i / 7);
    const Floats table = random_floats(3 * 256);
    Ints choices;
    for (int i = 0; i < n; i++) {
        const int choice[4] = {(i * 3 + 1) % stored_images, i % 5 - 2, (i * 2) % 5 - 2, i % 2};
        choices.insert(choices.end(), choice, choice + 4);
    }
    Doubles want;
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
    const Buffer<float> vtable(table);
    both_storages("assemble", want, 0, [&](auto storage, Grid grid, std::size_t offset) {
        typedef decltype(storage) T;
        const Buffer<T> out(want.size(), offset);
        launch(kernel<T>("assemble"), grid, LINE, &vimages, &vchoices, &vtable, n, h, w, &out);
        return out.values();
    });
}

} // namespace

void test_activations()
{
    // Rows, channels, rows of a part. Channels that are no multiple of anything, of 4 only, and of 8.
    const int shapes[][3] = {{1, 1, 8},     {7, 5, 3},    {70, 33, 16},  {45, 64, 64}, {130, 3, 32},  {9, 2, 512},
                             {300, 100, 128}, {40, 4, 16}, {200, 24, 64}, {700, 8, 600}, {35, 1024, 35}};
    for (const auto &s : shapes)
        for (int empty = 0; empty < 2; empty++) { // a part without rows at the end
            const Columns columns = {s[0], s[1], s[2], int(quotient(s[0], s[2])) + empty};
            test_statistics<float>(columns), test_statistics<Bf16>(columns);
            for (int relu = 0; relu < 2; relu++) {
                test_gradient_sums<float>(columns, relu), test_gradient_sums<Bf16>(columns, relu);
                if (!empty) test_input_gradient(columns, relu);
            }
            if (!empty) test_apply(columns);
        }
    test_pooling(1, 1, 1), test_pooling(3, 7, 5), test_pooling(2, 16, 70), test_pooling(3, 4, 12);
    test_pooling(5, 9, 24);
    test_assemble(1, 1, 1), test_assemble(7, 5, 4);
}
