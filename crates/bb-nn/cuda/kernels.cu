// The engine's CUDA kernels.
//
// Everything is f32 unless said otherwise. Images are NHWC, so an activation is a row-major matrix [rows, c] with
// rows = n * h * w. Compiled with -fmad=false: only what is written `fmaf` is fused, as in the CPU kernels.
// Sums run in a fixed order (shared memory and barriers, no atomics), so every run gives the same bits.
//
// Launch shapes, unless a kernel says otherwise:
//   elementwise    one-dimensional, 256 threads, any grid (the loops stride by the grid)
//   per channel    one-dimensional, at least c threads
//   column sums    block (32, 8), grid (parts, ceil(c / 32))
//   products       block (16, 16), grid (ceil(columns / 16), ceil(rows / 16)) of the result
//   block sums     256 threads
// The same file is compiled for the host by the emulator, see emulator/README.md.

constexpr int COLUMNS = 32; // channels of one block of a column sum
constexpr int LANES = 8;    // rows it reads at a time
constexpr int TILE = 16;    // edge of a tile of a product
constexpr int THREADS = 256; // threads of a block that sums as a whole

// ---------------------------------------------------------------------------------------------------------------------
// Indices

// This thread's number in a one-dimensional grid.
static __device__ __forceinline__ long long first_element()
{
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

// Number of threads of a one-dimensional grid.
static __device__ __forceinline__ long long grid_threads()
{
    return (long long)gridDim.x * blockDim.x;
}

// Walks over the elements of [rows, c] by the grid's threads and knows the channel without a division per element.
struct ChannelWalk {
    long long i;
    int channel;

    __device__ __forceinline__ explicit ChannelWalk(int c)
        : i(first_element()), channel((int)(first_element() % c)), c(c), stride(grid_threads()),
          step((int)(grid_threads() % c))
    {
    }
    __device__ __forceinline__ void next()
    {
        i += stride;
        channel += step;
        if (channel >= c) channel -= c;
    }

private:
    int c;
    long long stride;
    int step;
};

// The rows of one part that a lane of a column sum adds: first, first + LANES, ... below end.
struct PartRows {
    int begin, end; // of the whole part; begin >= end for a part without rows

    __device__ __forceinline__ PartRows(int part, int rows, int rows_per_part)
    {
        const long long from = (long long)part * rows_per_part, to = from + rows_per_part;
        begin = (int)(from < rows ? from : rows);
        end = (int)(to < rows ? to : rows);
    }
    __device__ __forceinline__ int count() const { return end - begin; }
};

// ---------------------------------------------------------------------------------------------------------------------
// Sums over the threads of a block. All threads must take part.

// Sum over the LANES threads with one threadIdx.x of a (COLUMNS, LANES) block, given to each of them.
static __device__ float column_sum(float value)
{
    __shared__ float values[LANES][COLUMNS];
    values[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++) sum += values[lane][threadIdx.x];
    __syncthreads(); // the array may be used again
    return sum;
}

// Sum over the THREADS threads of a one-dimensional block; the result is valid in thread 0.
static __device__ double block_sum(double value)
{
    constexpr int GROUPS = 16;
    __shared__ double values[THREADS];
    values[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x < GROUPS)
        for (int i = threadIdx.x + GROUPS; i < THREADS; i += GROUPS) values[threadIdx.x] += values[i];
    __syncthreads();
    double sum = 0.0;
    if (threadIdx.x == 0)
        for (int i = 0; i < GROUPS; i++) sum += values[i];
    __syncthreads(); // the array may be used again
    return sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// Batch normalisation: y = relu(x * scale + shift), scale = gamma * invstd, shift = beta - mean * scale

// The output gradient behind the ReLU. At exactly 0 the gradient is 0.
static __device__ __forceinline__ float masked(float dy, float x, float scale, float shift, int relu)
{
    return fmaf(x, scale, shift) > (relu ? 0.0f : -INFINITY) ? dy : 0.0f;
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

// partial [parts][2][c]: mean and sum of squared deviations from it, over the rows of each part of x [rows, c].
// Column sums.
extern "C" __global__ void bn_partial(
    const float *__restrict__ x, int rows, int c, int rows_per_part, float *__restrict__ partial)
{
    const int k = blockIdx.y * COLUMNS + threadIdx.x;
    const PartRows part(blockIdx.x, rows, rows_per_part);
    const bool inside = k < c;
    float sum = 0.0f;
    if (inside) {
#pragma unroll 4
        for (int r = part.begin + threadIdx.y; r < part.end; r += LANES) sum += x[(long long)r * c + k];
    }
    sum = column_sum(sum);
    const float mean = part.count() > 0 ? sum / (float)part.count() : 0.0f;
    float m2 = 0.0f;
    if (inside) {
#pragma unroll 4
        for (int r = part.begin + threadIdx.y; r < part.end; r += LANES) {
            const float d = x[(long long)r * c + k] - mean;
            m2 = fmaf(d, d, m2);
        }
    }
    m2 = column_sum(m2);
    if (inside && threadIdx.y == 0) {
        partial[((long long)blockIdx.x * 2) * c + k] = mean;
        partial[((long long)blockIdx.x * 2 + 1) * c + k] = m2;
    }
}

// Joins the parts of bn_partial by Chan et al.'s update and writes mean, invstd, scale and shift [c]. With `update`
// it also moves the running mean and (unbiased) variance [c]; without, these two are not touched. Per channel.
extern "C" __global__ void bn_factors(
    const float *__restrict__ partial, int parts, int rows, int rows_per_part, int c,
    const float *__restrict__ gamma, const float *__restrict__ beta, float *__restrict__ running_mean,
    float *__restrict__ running_var, float momentum, float eps, int update, float *__restrict__ mean,
    float *__restrict__ invstd, float *__restrict__ scale, float *__restrict__ shift)
{
    const int k = (int)first_element();
    if (k >= c) return;
    double count = 0.0, joined_mean = 0.0, joined_m2 = 0.0;
    for (int p = 0; p < parts; p++) {
        const int size = PartRows(p, rows, rows_per_part).count();
        if (size <= 0) break;
        const double total = count + size;
        const double delta = partial[(long long)p * 2 * c + k] - joined_mean;
        // The quotients do not depend on the running values, so only a few operations wait for the last part.
        joined_mean += delta * (size / total);
        joined_m2 += partial[((long long)p * 2 + 1) * c + k] + delta * delta * (count * size / total);
        count = total;
    }
    const float m = (float)joined_mean, var = (float)(joined_m2 / count);
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

// y = x * scale + shift, then ReLU if `relu`, over the n elements of [rows, c]. y may be x. Elementwise.
extern "C" __global__ void bn_apply(
    const float *x, const float *__restrict__ scale, const float *__restrict__ shift, int relu, long long n, int c,
    float *y)
{
    for (ChannelWalk at(c); at.i < n; at.next()) {
        const float z = fmaf(x[at.i], scale[at.channel], shift[at.channel]);
        y[at.i] = relu && z < 0.0f ? 0.0f : z; // a comparison, so that NaN stays NaN
    }
}

// partial [parts][2][c]: sums of g and of g * (x - mean) over the rows of each part, where g is dy behind the ReLU.
// Column sums.
extern "C" __global__ void bn_gradient_partial(
    const float *__restrict__ dy, const float *__restrict__ x, const float *__restrict__ scale,
    const float *__restrict__ shift, const float *__restrict__ mean, int relu, int rows, int c, int rows_per_part,
    float *__restrict__ partial)
{
    const int k = blockIdx.y * COLUMNS + threadIdx.x;
    const PartRows part(blockIdx.x, rows, rows_per_part);
    const bool inside = k < c;
    float sum = 0.0f, dot = 0.0f;
    if (inside) {
        const float a = scale[k], b = shift[k], m = mean[k];
#pragma unroll 4
        for (int r = part.begin + threadIdx.y; r < part.end; r += LANES) {
            const long long i = (long long)r * c + k;
            const float v = x[i], g = masked(dy[i], v, a, b, relu);
            sum += g;
            dot = fmaf(g, v - m, dot);
        }
    }
    sum = column_sum(sum);
    dot = column_sum(dot);
    if (inside && threadIdx.y == 0) {
        partial[((long long)blockIdx.x * 2) * c + k] = sum;
        partial[((long long)blockIdx.x * 2 + 1) * c + k] = dot;
    }
}

// Joins the parts of bn_gradient_partial: overwrites the gradients of beta and gamma [c], and the two terms [c] through
// which the batch's statistics enter the input gradient (0 without `batch`). Per channel.
extern "C" __global__ void bn_gradient_terms(
    const float *__restrict__ partial, int parts, int rows, int c, const float *__restrict__ invstd,
    const float *__restrict__ scale, int batch, float *__restrict__ dbeta, float *__restrict__ dgamma,
    float *__restrict__ constant, float *__restrict__ slope)
{
    const int k = (int)first_element();
    if (k >= c) return;
    double sum = 0.0, dot = 0.0;
    for (int p = 0; p < parts; p++) {
        sum += partial[(long long)p * 2 * c + k];
        dot += partial[((long long)p * 2 + 1) * c + k];
    }
    const float b = (float)sum, g = (float)(dot * invstd[k]);
    dbeta[k] = b;
    dgamma[k] = g;
    const double factor = (double)scale[k] / rows;
    constant[k] = batch ? (float)(factor * b) : 0.0f;
    slope[k] = batch ? (float)(factor * g * invstd[k]) : 0.0f;
}

// dx = scale * g - constant - slope * (x - mean), added to dx if `add`, over the n elements of [rows, c], where g is dy
// behind the ReLU. dx may be dy if not `add`. Elementwise.
extern "C" __global__ void bn_input_gradient(
    const float *dy, const float *__restrict__ x, const float *__restrict__ scale, const float *__restrict__ shift,
    const float *__restrict__ mean, const float *__restrict__ constant, const float *__restrict__ slope, int relu,
    int add, long long n, int c, float *dx)
{
    for (ChannelWalk at(c); at.i < n; at.next()) {
        const int k = at.channel;
        const float v = x[at.i], g = masked(dy[at.i], v, scale[k], shift[k], relu);
        const float drift = fmaf(slope[k], v - mean[k], constant[k]);
        const float d = scale[k] * g - drift;
        dx[at.i] = add ? dx[at.i] + d : d;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Long vectors, elementwise

// y += a * x
extern "C" __global__ void add_scaled(float *y, float a, const float *x, long long n)
{
    for (long long i = first_element(); i < n; i += grid_threads()) y[i] += a * x[i];
}

// y = a * y + b * x
extern "C" __global__ void mix(float *y, float a, const float *x, float b, long long n)
{
    for (long long i = first_element(); i < n; i += grid_threads()) y[i] = a * y[i] + b * x[i];
}

// y *= a
extern "C" __global__ void scale(float *y, float a, long long n)
{
    for (long long i = first_element(); i < n; i += grid_threads()) y[i] *= a;
}

// One step of SGD with momentum, as the CPU's `sgd_momentum`: weights w, momentum v, gradient g, all [n].
extern "C" __global__ void sgd_momentum(
    float *__restrict__ w, float *__restrict__ v, const float *__restrict__ g, float lr, float momentum,
    float weight_decay, int nesterov, long long n)
{
    for (long long i = first_element(); i < n; i += grid_threads()) {
        const float gradient = g[i] + weight_decay * w[i];
        const float velocity = momentum * v[i] + gradient;
        v[i] = velocity;
        w[i] -= lr * (nesterov ? gradient + momentum * velocity : velocity);
    }
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

// ---------------------------------------------------------------------------------------------------------------------
// Global average pooling

// y [n, c]: mean over the pixels of x [n, pixels, c]. A loop over the n * c results, launched as elementwise.
extern "C" __global__ void global_average(
    const float *__restrict__ x, int n, int pixels, int c, float *__restrict__ y)
{
    const float inverse = 1.0f / (float)pixels;
    for (long long i = first_element(); i < (long long)n * c; i += grid_threads()) {
        const float *column = x + i / c * pixels * c + i % c;
        float sum = 0.0f;
        for (int p = 0; p < pixels; p++) sum += column[(long long)p * c];
        y[i] = sum * inverse;
    }
}

// dx [n, pixels, c] = dy [n, c] / pixels. Elementwise over n * pixels * c.
extern "C" __global__ void global_average_gradient(
    const float *__restrict__ dy, int n, int pixels, int c, float *__restrict__ dx)
{
    const float inverse = 1.0f / (float)pixels;
    const long long image = (long long)pixels * c;
    for (ChannelWalk at(c); at.i < n * image; at.next()) dx[at.i] = dy[at.i / image * c + at.channel] * inverse;
}

// ---------------------------------------------------------------------------------------------------------------------
// The fully connected layer y = x w^T + b: x [n, inputs], w [outputs, inputs], b [outputs], y [n, outputs]

// A matrix as a product reads it.
struct Operand {
    const float *data;
    int length;            // rows of a left operand, columns of a right one
    long long line, depth; // distance of neighbours along `length` and along the summed axis
};

// Copies a tile of an operand into shared memory, tile[depth][line], with 0 outside; neighbouring threads read
// neighbouring elements.
static __device__ __forceinline__ void load_tile(
    const Operand &m, int first_line, int first_depth, int depths, float (*tile)[TILE + 1])
{
    const bool along_depth = m.depth == 1;
    const int l = along_depth ? threadIdx.y : threadIdx.x, d = along_depth ? threadIdx.x : threadIdx.y;
    const int line = first_line + l, depth = first_depth + d;
    tile[d][l] = line < m.length && depth < depths ? m.data[line * m.line + depth * m.depth] : 0.0f;
}

// Element (row, column) of the product of `left` and `right` for this thread, summed in order over `depths`.
// All threads of the block must take part.
static __device__ float product(const Operand &left, const Operand &right, int depths)
{
    __shared__ float a[TILE][TILE + 1], b[TILE][TILE + 1]; // one more column: no bank conflicts
    float sum = 0.0f;
    for (int first = 0; first < depths; first += TILE) {
        load_tile(left, blockIdx.y * TILE, first, depths, a);
        load_tile(right, blockIdx.x * TILE, first, depths, b);
        __syncthreads();
        for (int d = 0; d < TILE; d++) sum = fmaf(a[d][threadIdx.y], b[d][threadIdx.x], sum);
        __syncthreads();
    }
    return sum;
}

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

// ---------------------------------------------------------------------------------------------------------------------
// Loss

// Softmax cross-entropy of logits [n, classes], one thread per image. loss [n] and correct [n] are per image; the first
// of equal logits is the prediction. gradient [n, classes], which may be null, is that of the mean loss:
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
        for (int k = 1; k < classes; k++)
            if (row[k] > row[best]) best = k;
        const float largest = row[best];
        float sum = 0.0f;
        for (int k = 0; k < classes; k++) sum += expf(row[k] - largest);
        loss[i] = known ? logf(sum) - (row[label] - largest) : NAN;
        correct[i] = best == label;
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

// ---------------------------------------------------------------------------------------------------------------------
// Batches

// out [n, h, w, 3]: normalised, shifted and flipped images. images [..][h][w][3] are the bytes of a whole split,
// choices [n][4] the image's index, row shift, column shift and flip, table [3][256] the value of each byte. A pixel is
// that of row y + row shift and column x' + column shift, where x' is x, or w - 1 - x if flipped; pixels outside the
// image are byte 0. Elementwise over n * h * w * 3.
extern "C" __global__ void assemble(
    const unsigned char *__restrict__ images, const int *__restrict__ choices, const float *__restrict__ table, int n,
    int h, int w, float *__restrict__ out)
{
    const long long size = (long long)h * w * 3;
    for (ChannelWalk at(3); at.i < n * size; at.next()) {
        const int *choice = choices + at.i / size * 4;
        const int pixel = (int)(at.i % size) / 3, x = pixel % w;
        const int row = pixel / w + choice[1], column = (choice[3] ? w - 1 - x : x) + choice[2];
        const bool inside = row >= 0 && row < h && column >= 0 && column < w;
        const int byte =
            inside ? images[choice[0] * size + ((long long)row * w + column) * 3 + at.channel] : 0;
        out[at.i] = table[at.channel * 256 + byte];
    }
}
