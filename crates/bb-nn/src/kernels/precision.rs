//! In which numbers the products of convolutions are formed.
//!
//! Kernels that multiply are written once, over *words* of 32 bits: a word is one `f32`, or two neighbouring values of
//! the summed axis in `bf16`, and a `Product` says how two words are multiplied into an `f32` sum.

pub use bb_core::precision::Precision;
use pulp::{Arch, Simd, WithSimd};

/// Why a precision cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnsupportedPrecision {
    /// The processor lacks the instructions.
    #[error("precision `bf16` needs a processor with AVX512-BF16, which this one lacks")]
    Processor,
    /// Only GPUs have such products.
    #[error("precision `tf32` is for NVIDIA GPUs; the CPU computes in `f32` or `bf16`")]
    OnCpu,
}

/// `precision` itself, if this machine's CPU can compute in it.
pub fn supported(precision: Precision) -> Result<Precision, UnsupportedPrecision> {
    match precision {
        Precision::Bf16 if !pair::is_available() => Err(UnsupportedPrecision::Processor),
        Precision::Tf32 => Err(UnsupportedPrecision::OnCpu),
        _ => Ok(precision),
    }
}

/// Values of the summed axis in one word.
pub(super) fn per_word(precision: Precision) -> usize {
    match precision {
        Precision::F32 | Precision::Tf32 => 1,
        Precision::Bf16 => 2,
    }
}

/// How words are made and multiplied.
pub(super) trait Product<S: Simd>: Copy {
    /// Values of the summed axis in one word.
    const PER_WORD: usize;

    /// `sum + a * b`, in every lane over all values of the words.
    fn mul_add(self, simd: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s;

    /// Words of neighbouring values: `values[i]` is value `i` of each word.
    fn words(self, simd: S, values: &[S::f32s]) -> S::f32s;

    /// `words` with `values` as the second value of each.
    fn with_second(self, simd: S, words: S::f32s, values: S::f32s) -> S::f32s;

    /// Writes a vector of values that are neighbours themselves, `LANES / PER_WORD` words from `at` on.
    ///
    /// # Safety
    /// That many words must be writable there.
    unsafe fn put_neighbours(self, simd: S, values: S::f32s, at: *mut f32);
}

/// One `f32` in a word.
#[derive(Clone, Copy)]
pub(super) struct Single;

impl<S: Simd> Product<S> for Single {
    const PER_WORD: usize = 1;

    #[inline(always)]
    fn mul_add(self, simd: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s {
        simd.mul_add_e_f32s(a, b, sum)
    }

    #[inline(always)]
    fn words(self, _: S, values: &[S::f32s]) -> S::f32s {
        values[0]
    }

    #[inline(always)]
    fn with_second(self, _: S, _: S::f32s, _: S::f32s) -> S::f32s {
        unreachable!("a word holds one value")
    }

    #[inline(always)]
    unsafe fn put_neighbours(self, _: S, values: S::f32s, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<S::f32s>().write_unaligned(values) };
    }
}

/// A computation that is the same for every vector width and every precision.
pub(super) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`: only code inlined into the dispatcher may use the processor's vectors.
    fn run<S: Simd, P: Product<S>>(self, simd: S, product: P) -> Self::Output;
}

/// Runs a kernel with the widest vectors of this processor.
///
/// # Panics
/// If the processor does not support `precision`.
pub(super) fn dispatch<K: Kernel>(precision: Precision, kernel: K) -> K::Output {
    struct Singles<K>(K);
    impl<K: Kernel> WithSimd for Singles<K> {
        type Output = K::Output;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> K::Output {
            self.0.run(simd, Single)
        }
    }
    match precision {
        #[cfg(test)]
        Precision::F32 if narrow::limit() > 0 => narrow::dispatch(Singles(kernel)),
        Precision::F32 => Arch::new().dispatch(Singles(kernel)),
        Precision::Tf32 => unreachable!("`supported` refuses it on the CPU"),
        Precision::Bf16 => pair::dispatch(kernel),
    }
}

/// Lanes of the vectors that [`dispatch`] uses.
pub(super) fn lanes(precision: Precision) -> usize {
    struct Lanes;
    impl Kernel for Lanes {
        type Output = usize;
        #[inline(always)]
        fn run<S: Simd, P: Product<S>>(self, _: S, _: P) -> usize {
            S::F32_LANES
        }
    }
    dispatch(precision, Lanes)
}

/// Lets tests run the code for narrower vectors than this processor has.
#[cfg(test)]
pub(super) mod narrow {
    use pulp::{Simd, WithSimd};
    use std::sync::atomic::{AtomicU8, Ordering};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static LIMIT: AtomicU8 = AtomicU8::new(0);
    static ALONE: Mutex<()> = Mutex::new(());

    /// 0: the widest vectors; 1: AVX2, if there is such a thing; 2: no vectors.
    pub(in crate::kernels) const LEVELS: [u8; 3] = [0, 1, 2];

    /// The limit for this process while the guard lives.
    pub(in crate::kernels) fn set(level: u8) -> Guard {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        LIMIT.store(level, Ordering::SeqCst);
        Guard(alone)
    }

    pub(in crate::kernels) struct Guard(
        #[expect(dead_code, reason = "held")] MutexGuard<'static, ()>,
    );

    impl Drop for Guard {
        fn drop(&mut self) {
            LIMIT.store(0, Ordering::SeqCst);
        }
    }

    pub(super) fn limit() -> u8 {
        LIMIT.load(Ordering::SeqCst)
    }

    pub(super) fn dispatch<W: WithSimd>(work: W) -> W::Output {
        #[cfg(target_arch = "x86_64")]
        if limit() == 1
            && let Some(avx2) = pulp::x86::V3::try_new()
        {
            return Simd::vectorize(avx2, work);
        }
        Simd::vectorize(pulp::Scalar::new(), work)
    }
}

#[cfg(target_arch = "x86_64")]
mod pair {
    use super::{Kernel, Product};
    use pulp::x86::V4;
    use std::arch::x86_64::{
        __m256bh, __m256i, __m512, __m512bh, __m512i, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh,
        _mm512_dpbf16_ps, _mm512_or_si512, _mm512_slli_epi32,
    };

    /// Two `bf16` in a word, the first in the low half.
    #[derive(Clone, Copy)]
    pub(super) struct Pair(());

    pub(super) fn is_available() -> bool {
        std::arch::is_x86_feature_detected!("avx512bf16") && V4::is_available()
    }

    pub(super) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
        let simd = V4::try_new().filter(|_| is_available());
        let simd = simd.expect("the precision is one that this processor supports");
        // SAFETY: all features were found.
        unsafe { enter(simd, kernel) }
    }

    #[target_feature(
        enable = "sse4.2,popcnt,avx,avx2,bmi1,bmi2,fma,lzcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16"
    )]
    unsafe fn enter<K: Kernel>(simd: V4, kernel: K) -> K::Output {
        kernel.run(simd, Pair(()))
    }

    /// Rounded to the nearest `bf16`, ties to even.
    #[inline(always)]
    fn round(values: <V4 as pulp::Simd>::f32s) -> __m256bh {
        // SAFETY: a `Pair` exists only inside `enter`, which has the feature; both types are sixteen `f32`.
        unsafe { _mm512_cvtneps_pbh(std::mem::transmute::<pulp::f32x16, __m512>(values)) }
    }

    impl Product<V4> for Pair {
        const PER_WORD: usize = 2;

        #[inline(always)]
        fn mul_add(
            self,
            _: V4,
            a: pulp::f32x16,
            b: pulp::f32x16,
            sum: pulp::f32x16,
        ) -> pulp::f32x16 {
            // SAFETY: as in `round`; any bits are a pair of `bf16`.
            unsafe {
                std::mem::transmute::<__m512, pulp::f32x16>(_mm512_dpbf16_ps(
                    std::mem::transmute::<pulp::f32x16, __m512>(sum),
                    std::mem::transmute::<pulp::f32x16, __m512bh>(a),
                    std::mem::transmute::<pulp::f32x16, __m512bh>(b),
                ))
            }
        }

        #[inline(always)]
        fn words(self, simd: V4, values: &[pulp::f32x16]) -> pulp::f32x16 {
            // SAFETY: as in `round`; a `__m256bh` is sixteen 16-bit integers.
            let low = unsafe {
                let low = std::mem::transmute::<__m256bh, __m256i>(round(values[0]));
                std::mem::transmute::<__m512i, pulp::f32x16>(_mm512_cvtepu16_epi32(low))
            };
            self.with_second(simd, low, values[1])
        }

        #[inline(always)]
        fn with_second(self, _: V4, words: pulp::f32x16, values: pulp::f32x16) -> pulp::f32x16 {
            // SAFETY: as in `words`.
            unsafe {
                let low = std::mem::transmute::<pulp::f32x16, __m512i>(words);
                let high = std::mem::transmute::<__m256bh, __m256i>(round(values));
                let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high));
                std::mem::transmute::<__m512i, pulp::f32x16>(_mm512_or_si512(low, high))
            }
        }

        #[inline(always)]
        unsafe fn put_neighbours(self, _: V4, values: pulp::f32x16, at: *mut f32) {
            // SAFETY: the caller grants eight words.
            unsafe { at.cast::<__m256bh>().write_unaligned(round(values)) };
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod pair {
    pub(super) fn is_available() -> bool {
        false
    }

    pub(super) fn dispatch<K: super::Kernel>(_: K) -> K::Output {
        unreachable!("`supported` refuses bf16 on this architecture")
    }
}
