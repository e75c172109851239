use bb_nn::kernels::conv::{self, Add, ConvShape};
use std::time::Instant;
fn main() {
    rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build_global()
        .unwrap();
    let w0: usize = std::env::args().nth(1).map_or(64, |v| v.parse().unwrap());
    let n: usize = std::env::args().nth(2).map_or(128, |v| v.parse().unwrap());
    let pr: bb_nn::Precision = std::env::args()
        .nth(3)
        .map_or(bb_nn::Precision::F32, |v| v.parse().unwrap());
    let mut total = [0f64; 3];
    for (h, cin, cout, k, stride, times) in [
        (32, 3, w0, 3, 1, 1.),
        (32, w0, w0, 3, 1, 4.),
        (32, w0, 2 * w0, 3, 2, 1.),
        (32, w0, 2 * w0, 1, 2, 1.),
        (16, 2 * w0, 2 * w0, 3, 1, 3.),
        (16, 2 * w0, 4 * w0, 3, 2, 1.),
        (16, 2 * w0, 4 * w0, 1, 2, 1.),
        (8, 4 * w0, 4 * w0, 3, 1, 3.),
        (8, 4 * w0, 8 * w0, 3, 2, 1.),
        (8, 4 * w0, 8 * w0, 1, 2, 1.),
        (4, 8 * w0, 8 * w0, 3, 1, 3.),
    ] {
        let s = ConvShape {
            n,
            h,
            w: h,
            cin,
            cout,
            k,
            stride,
            pad: k / 2,
        };
        let x = vec![0.5f32; s.input_len()];
        let w = vec![0.25f32; s.weight_len()];
        let mut y = vec![0.1f32; s.output_len()];
        let mut dx = vec![0f32; s.input_len()];
        let mut dw = vec![0f32; s.weight_len()];
        let mut best = [f64::MAX; 3];
        for _ in 0..6 {
            let t = Instant::now();
            conv::forward(&s, pr, &x, &w, Add::Nothing, &mut y);
            best[0] = best[0].min(t.elapsed().as_secs_f64());
            let t = Instant::now();
            if cin > 3 {
                conv::input_gradient(&s, pr, &y, &w, Add::Nothing, &mut dx);
            }
            best[1] = best[1].min(t.elapsed().as_secs_f64());
            let t = Instant::now();
            conv::weight_gradient(&s, pr, &x, &y, &mut dw);
            best[2] = best[2].min(t.elapsed().as_secs_f64());
        }
        for i in 0..3 {
            total[i] += best[i] * times;
        }
        let g = s.flops() as f64 / 1e9;
        println!(
            "{h:3} {cin:4}->{cout:4} k{k} s{stride} x{times}: fwd {:7.2} ms {:6.0} | dx {:7.2} ms {:6.0} | dw {:7.2} ms {:6.0} GF/s",
            best[0] * 1e3,
            g / best[0],
            best[1] * 1e3,
            g / best[1],
            best[2] * 1e3,
            g / best[2]
        );
    }
    println!(
        "total fwd {:.1} dx {:.1} dw {:.1} ms",
        total[0] * 1e3,
        total[1] * 1e3,
        total[2] * 1e3
    );
}
