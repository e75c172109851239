//! The fully connected layer, `y = x w^T + b` with `w` as `[outputs, inputs]`, on the `gemm` crate.

use gemm::Parallelism;

/// A matrix in memory: first element, rows, columns, row stride, column stride.
struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        Self {
            data,
            rows,
            cols,
            strides: (cols, 1),
        }
    }
    fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            strides: (self.strides.1, self.strides.0),
        }
    }
}

/// `out = a b` (plus `out` itself if `accumulate`), `out` row-major.
fn product(out: &mut [f32], a: &Matrix<'_>, b: &Matrix<'_>, accumulate: bool) {
    assert_eq!(a.cols, b.rows);
    assert_eq!(out.len(), a.rows * b.cols);
    // Threads split rows and columns of the result, never the sum, so the bits do not depend on their number.
    let large = a.rows * a.cols * b.cols > 1 << 22;
    // SAFETY: the three matrices lie inside their slices (lengths checked here and in `Matrix::new`), `out` is
    // exclusively borrowed.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            b.cols as isize,
            accumulate,
            a.data.as_ptr(),
            a.strides.1 as isize,
            a.strides.0 as isize,
            b.data.as_ptr(),
            b.strides.1 as isize,
            b.strides.0 as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            if large {
                Parallelism::Rayon(0)
            } else {
                Parallelism::None
            },
        );
    }
}

/// `y[n, outputs] = x[n, inputs] w^T + bias`.
pub fn forward(x: &[f32], w: &[f32], bias: &[f32], inputs: usize, y: &mut [f32]) {
    let outputs = bias.len();
    let n = y.len() / outputs;
    for row in y.chunks_exact_mut(outputs) {
        row.copy_from_slice(bias);
    }
    product(
        y,
        &Matrix::new(x, n, inputs),
        &Matrix::new(w, outputs, inputs).transposed(),
        true,
    );
}

/// Gradients of [`forward`]: overwrites `dw` and `dbias`, and `dx` where given.
pub fn backward(
    x: &[f32],
    w: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    dbias: &mut [f32],
    dx: Option<&mut [f32]>,
) {
    let outputs = dbias.len();
    weight_gradient(x, dy, dw, dbias);
    if let Some(dx) = dx {
        input_gradient(w, dy, outputs, dx);
    }
}

/// Gradients of [`forward`] by its weight and bias; overwrites both.
pub fn weight_gradient(x: &[f32], dy: &[f32], dw: &mut [f32], dbias: &mut [f32]) {
    let outputs = dbias.len();
    let n = dy.len() / outputs;
    let inputs = dw.len() / outputs;
    product(
        dw,
        &Matrix::new(dy, n, outputs).transposed(),
        &Matrix::new(x, n, inputs),
        false,
    );
    dbias.fill(0.0);
    for row in dy.chunks_exact(outputs) {
        for (b, v) in dbias.iter_mut().zip(row) {
            *b += v;
        }
    }
}

/// Gradient of [`forward`] by its input; overwrites `dx`.
pub fn input_gradient(w: &[f32], dy: &[f32], outputs: usize, dx: &mut [f32]) {
    let n = dy.len() / outputs;
    product(
        dx,
        &Matrix::new(dy, n, outputs),
        &Matrix::new(w, outputs, w.len() / outputs),
        false,
    );
}
