// Rows of weights.

#include "harness.h"

namespace {

void test_l1(int rows, int length)
{
    const Floats a = random_floats(rows * length), b = random_floats(rows * length);
    Doubles change(rows, 0.0), size(rows, 0.0);
    for (int i = 0; i < rows * length; i++) {
        change[i / length] += std::fabs(a[i] - b[i]);
        size[i / length] += std::fabs(a[i]);
    }
    const Buffer<float> da(a, 1), db(b), out(rows);
    launch("row_l1", {unsigned(rows), 1}, LINE, &da, &db, length, &out);
    near("row_l1", out, change, 0, 1e-7);
    launch("row_l1", {unsigned(rows), 1}, LINE, &da, Address(0), length, &out);
    near("row_l1 of one array", out, size, 0, 1e-7);
}

void test_distances(int rows_a, int rows_b, int length)
{
    const Floats a = random_floats(rows_a * length);
    Floats b = random_floats(rows_b * length), want;
    std::copy_n(a.begin(), length, b.begin()); // a distance of 0
    for (int i = 0; i < rows_a; i++)
        for (int j = 0; j < rows_b; j++) {
            double sum = 0;
            for (int k = 0; k < length; k++) {
                const double d = a[i * length + k] - b[j * length + k];
                sum += d * d;
            }
            want.push_back(float(std::sqrt(sum)));
        }
    const Buffer<float> da(a, 1), db(b), out(rows_a * rows_b);
    launch("row_distances", {quotient(rows_b, 16), quotient(rows_a, 16)}, TILE, &da, &db, rows_a, rows_b, length, &out);
    equal("row_distances", out, want);
}

void test_gram(int rows, int taps, int channels)
{
    const Floats w = random_floats(rows * taps * channels);
    Doubles want;
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < taps; i++)
            for (int j = 0; j < taps; j++) {
                double sum = 0;
                for (int c = 0; c < channels; c++)
                    sum += (double)w[(row * taps + i) * channels + c] * w[(row * taps + j) * channels + c];
                want.push_back(sum);
            }
    const Buffer<float> dw(w, 1);
    const Buffer<double> out(rows * taps * taps);
    launch("row_gram", {unsigned(rows), 1}, LINE, &dw, taps, channels, &out);
    equal("row_gram", out, want);
}

// Finds the change of a given rank in the chosen rows by the four passes of a selection, and clears all from it on.
void test_selection(int rows, int length, bool choose_all)
{
    Floats w = random_floats(rows * length);
    const Floats b = random_floats(rows * length);
    for (int i = 0; i < length; i += 3) w[i] = b[i] + 0.25f; // equal changes
    std::vector<unsigned char> chosen;
    for (int row = 0; row < rows; row++) chosen.push_back(choose_all ? 1 : row % 3 ? 0 : 200);
    Floats changes;
    for (int i = 0; i < rows * length; i++)
        if (chosen[i / length]) changes.push_back(std::fabs(w[i] - b[i]));
    std::sort(changes.begin(), changes.end(), [](float x, float y) { return x > y; });
    const Buffer<float> dw(w, 1), db(b);
    const Buffer<unsigned char> dchosen(chosen);
    for (const std::size_t rank : {std::size_t(0), changes.size() / 2, changes.size() - 1}) { // of the largest first
        std::size_t above = rank;
        std::uint32_t prefix = 0, mask = 0;
        for (int shift = 24; shift >= 0; shift -= 8) {
            const Buffer<unsigned> counts(std::vector<unsigned>(256, 0));
            launch("change_histogram", {unsigned(rows), 1}, LINE, &dw, &db, &dchosen, length, unsigned(prefix),
                   unsigned(mask), shift, &counts);
            std::vector<unsigned> want(256, 0);
            for (const float change : changes) {
                std::uint32_t bits;
                std::memcpy(&bits, &change, sizeof bits);
                if ((bits & mask) == prefix) want[bits >> shift & 255]++;
            }
            equal("change_histogram", counts, want);
            unsigned digit = 255;
            for (; above >= want[digit]; digit--) above -= want[digit];
            prefix |= digit << shift;
            mask |= 255u << shift;
        }
        float found;
        std::memcpy(&found, &prefix, sizeof found);
        check(found == changes[rank], "selection of a change");

        Floats left = w;
        unsigned cleared = 7;
        for (int i = 0; i < rows * length; i++)
            if (chosen[i / length] && std::fabs(w[i] - b[i]) >= found) left[i] = 0, cleared++;
        const Buffer<float> copy(w, 1);
        const Buffer<unsigned> zeroed(std::vector<unsigned>{7});
        launch("zero_changed", {unsigned(rows), 1}, LINE, &copy, &db, &dchosen, length, found, &zeroed);
        equal("zero_changed", copy, left);
        equal("zero_changed count", zeroed, std::vector<unsigned>{cleared});
    }
}

} // namespace

void test_neurons()
{
    test_l1(1, 1), test_l1(3, 27), test_l1(2, 1000);
    test_distances(1, 1, 1), test_distances(17, 35, 20), test_distances(16, 5, 48);
    test_gram(1, 1, 1), test_gram(2, 9, 3), test_gram(2, 9, 70), test_gram(1, 25, 33), test_gram(2, 49, 3);
    test_selection(1, 1, true), test_selection(5, 27, false), test_selection(3, 600, true);
}
