//! AVX2 with FMA and F16C: a vector is two registers, a mask two as well.

use std::arch::asm;
use std::arch::x86_64::*;

use super::half::{Half, round, widen};
use super::{COLUMNS, Function, HALF, Input, Output, PAIR, Simd, Vector};

/// Proof that AVX2, F16C and FMA exist and that the system keeps their registers.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma");
        found.then_some(Avx2(()))
    }
}

/// Evaluates a kernel with the features of this level.
///
/// # Safety
/// [`Avx2::detect`] has found them.
#[target_feature(enable = "avx2,f16c,fma")]
#[inline(never)]
pub unsafe fn with_features<F: Function<Avx2>>(function: F) -> F::Output {
    function.call(Avx2(()))
}

impl Simd for Avx2 {
    type V32 = F32;
    type V64 = F64;

    const TOGETHER: usize = 8;
    const SLOW_SUBNORMALS: bool = true;

    #[inline(always)]
    fn apart<F: Function<Self>>(self, function: F) -> F::Output {
        // SAFETY: the token in hand proves that the features exist.
        unsafe { with_features(function) }
    }
}

/// Sixteen `f32`.
#[derive(Clone, Copy, Debug)]
pub struct F32(__m256, __m256);

/// Eight `f64`.
#[derive(Clone, Copy, Debug)]
pub struct F64(__m256d, __m256d);

/// A method that is one expression over intrinsics.
macro_rules! op {
    ($name:ident($($arg:ident: $type:ty),*) -> $result:ty = $body:expr) => {
        #[inline(always)]
        #[allow(unused_unsafe, reason = "some bodies only call others")]
        fn $name($($arg: $type),*) -> $result {
            // SAFETY: a vector or a token in hand proves that the instructions exist.
            unsafe { $body }
        }
    };
}

/// Each half of four registers is transposed.
#[inline(always)]
unsafe fn transpose_halves([x, y, z, w]: [__m256; 4]) -> [__m256; 4] {
    // SAFETY: the caller holds vectors of this level.
    unsafe {
        let a = _mm256_castps_pd(_mm256_unpacklo_ps(x, y));
        let b = _mm256_castps_pd(_mm256_unpackhi_ps(x, y));
        let c = _mm256_castps_pd(_mm256_unpacklo_ps(z, w));
        let d = _mm256_castps_pd(_mm256_unpackhi_ps(z, w));
        [
            _mm256_castpd_ps(_mm256_unpacklo_pd(a, c)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(a, c)),
            _mm256_castpd_ps(_mm256_unpacklo_pd(b, d)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(b, d)),
        ]
    }
}

/// Eight registers of eight numbers, transposed.
#[inline(always)]
unsafe fn transpose_ps([a, b, c, d, e, f, g, h]: [__m256; COLUMNS]) -> [__m256; COLUMNS] {
    // SAFETY: the caller holds vectors of this level.
    unsafe {
        let (x, y) = (transpose_halves([a, b, c, d]), transpose_halves([e, f, g, h]));
        let mut result = [x[0]; COLUMNS];
        for i in 0..4 {
            result[i] = _mm256_permute2f128_ps::<0x20>(x[i], y[i]);
            result[4 + i] = _mm256_permute2f128_ps::<0x31>(x[i], y[i]);
        }
        result
    }
}

/// Four registers of four numbers, transposed.
#[inline(always)]
unsafe fn transpose_pd([a, b, c, d]: [__m256d; 4]) -> [__m256d; 4] {
    // SAFETY: the caller holds vectors of this level.
    unsafe {
        let (e, f) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
        let (g, h) = (_mm256_unpacklo_pd(c, d), _mm256_unpackhi_pd(c, d));
        [
            _mm256_permute2f128_pd::<0x20>(e, g),
            _mm256_permute2f128_pd::<0x20>(f, h),
            _mm256_permute2f128_pd::<0x31>(e, g),
            _mm256_permute2f128_pd::<0x31>(f, h),
        ]
    }
}

/// Moves bit 3 of each 32-bit part to its sign. In assembly: the compiler would replace a shift before a blend by
/// an AND and a comparison with 0, which take longer.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn sign_of_bit_3(bits: __m256i) -> __m256 {
    let signs;
    // SAFETY: the caller holds vectors of this level; the instruction touches these registers alone.
    unsafe {
        asm!(
            "vpslld {signs}, {bits}, 28",
            signs = lateout(ymm_reg) signs,
            bits = in(ymm_reg) bits,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    signs
}

// Each half of the table is permuted, bit 3 of the index chooses.
op!(permute_ps(table: F32, index: __m256) -> __m256 = {
    let bits = _mm256_castps_si256(index);
    _mm256_blendv_ps(
        _mm256_permutevar8x32_ps(table.0, bits),
        _mm256_permutevar8x32_ps(table.1, bits),
        sign_of_bit_3(bits),
    )
});
// AVX2 permutes 32-bit parts: an index becomes those of its number's two, bit 2 chooses.
op!(permute_pd(table: F64, index: __m256d) -> __m256d = {
    let bits = _mm256_castpd_si256(index);
    let twice = _mm256_slli_epi32::<1>(_mm256_shuffle_epi32::<0xA0>(bits));
    let parts = _mm256_add_epi32(twice, _mm256_setr_epi32(0, 1, 0, 1, 0, 1, 0, 1));
    let low = _mm256_permutevar8x32_ps(_mm256_castpd_ps(table.0), parts);
    let high = _mm256_permutevar8x32_ps(_mm256_castpd_ps(table.1), parts);
    let upper = _mm256_castsi256_pd(_mm256_slli_epi64::<61>(bits));
    _mm256_blendv_pd(_mm256_castps_pd(low), _mm256_castps_pd(high), upper)
});

macro_rules! vector {
    ($v:ident, $t:ident, $lanes:literal, $register:ident, $to_bits:ident, $of_bits:ident,
     $set:ident, $load:ident, $mask_load:ident, $store:ident, $mask_store:ident, $stream:ident,
     $add:ident, $sub:ident, $mul:ident, $div:ident, $fmadd:ident, $max:ident, $min:ident,
     $and:ident, $andnot:ident, $bits_add:ident, $bits_sub:ident, $shl:ident, $shr:ident, $cmp:ident, $blend:ident,
     $movemask:ident, $bits_eq:ident, $bits_set:ident, $lane_bits:expr, { $($rest:item)* }) => {
        impl $v {
            const HALF: usize = $lanes / 2;

            // Both halves of a set of lanes as masks: each lane's own bit, compared with itself.
            op!(masks(lanes: u32) -> (__m256i, __m256i) = {
                let own = $lane_bits;
                let (low, high) = ($bits_set(lanes as _), $bits_set((lanes >> Self::HALF) as _));
                (
                    $bits_eq(_mm256_and_si256(low, own), own),
                    $bits_eq(_mm256_and_si256(high, own), own),
                )
            });
        }

        impl Vector<Avx2, $t> for $v {
            type Mask = ($register, $register);

            op!(splat(_s: Avx2, x: $t) -> Self = $v($set(x), $set(x)));
            op!(from_lanes(_s: Avx2, lanes: [$t; $lanes]) -> Self = {
                let start = lanes.as_ptr();
                $v($load(start), $load(start.add(Self::HALF)))
            });
            #[inline(always)]
            fn to_lanes(self) -> [$t; $lanes] {
                let mut lanes = [0.0; $lanes];
                let start = lanes.as_mut_ptr();
                // SAFETY: the array holds that many numbers.
                unsafe {
                    $store(start, self.0);
                    $store(start.add(Self::HALF), self.1);
                }
                lanes
            }

            // In the next five methods the pointer is to as many numbers as are accessed. A pointer past them is
            // computed with `wrapping_add`.
            op!(load(_s: Avx2, src: Input<'_, $t>, at: usize) -> Self = {
                let start = src.pointer(at, $lanes);
                $v($load(start), $load(start.add(Self::HALF)))
            });
            op!(load_lanes(_s: Avx2, src: Input<'_, $t>, at: usize, lanes: u32, fill: Self)
                -> Self = {
                let start = src.pointer(at, (u32::BITS - lanes.leading_zeros()) as usize);
                let (low, high) = Self::masks(lanes);
                $v(
                    $blend(fill.0, $mask_load(start, low), $of_bits(low)),
                    $blend(
                        fill.1,
                        $mask_load(start.wrapping_add(Self::HALF), high),
                        $of_bits(high),
                    ),
                )
            });
            op!(store(self: Self, dst: Output<'_, $t>, at: usize) -> () = {
                let start = dst.pointer(at, $lanes);
                $store(start, self.0);
                $store(start.add(Self::HALF), self.1);
            });
            op!(store_lanes(self: Self, dst: Output<'_, $t>, at: usize, lanes: u32) -> () = {
                let start = dst.pointer(at, (u32::BITS - lanes.leading_zeros()) as usize);
                let (low, high) = Self::masks(lanes);
                $mask_store(start, low, self.0);
                $mask_store(start.wrapping_add(Self::HALF), high, self.1);
            });
            op!(stream(self: Self, dst: Output<'_, $t>, at: usize) -> () = {
                let start = dst.pointer(at, $lanes);
                if start as usize % 64 == 0 {
                    $stream(start, self.0);
                    $stream(start.add(Self::HALF), self.1);
                } else {
                    $store(start, self.0);
                    $store(start.add(Self::HALF), self.1);
                }
            });

            op!(add(self: Self, other: Self) -> Self =
                $v($add(self.0, other.0), $add(self.1, other.1)));
            op!(sub(self: Self, other: Self) -> Self =
                $v($sub(self.0, other.0), $sub(self.1, other.1)));
            op!(mul(self: Self, other: Self) -> Self =
                $v($mul(self.0, other.0), $mul(self.1, other.1)));
            op!(div(self: Self, other: Self) -> Self =
                $v($div(self.0, other.0), $div(self.1, other.1)));
            op!(mul_add(self: Self, b: Self, c: Self) -> Self =
                $v($fmadd(self.0, b.0, c.0), $fmadd(self.1, b.1, c.1)));
            op!(fma(self: Self, b: Self, c: Self) -> Self =
                $v($fmadd(self.0, b.0, c.0), $fmadd(self.1, b.1, c.1)));
            op!(max(self: Self, other: Self) -> Self =
                $v($max(self.0, other.0), $max(self.1, other.1)));
            op!(min(self: Self, other: Self) -> Self =
                $v($min(self.0, other.0), $min(self.1, other.1)));
            op!(abs(self: Self) -> Self = {
                let sign = $set(-0.0);
                $v($andnot(sign, self.0), $andnot(sign, self.1))
            });

            op!(bits_add(self: Self, other: Self) -> Self = $v(
                $of_bits($bits_add($to_bits(self.0), $to_bits(other.0))),
                $of_bits($bits_add($to_bits(self.1), $to_bits(other.1)))
            ));
            op!(bits_sub(self: Self, other: Self) -> Self = $v(
                $of_bits($bits_sub($to_bits(self.0), $to_bits(other.0))),
                $of_bits($bits_sub($to_bits(self.1), $to_bits(other.1)))
            ));
            op!(bits_and(self: Self, other: Self) -> Self =
                $v($and(self.0, other.0), $and(self.1, other.1)));
            op!(bits_or(self: Self, other: Self) -> Self = $v(
                $of_bits(_mm256_or_si256($to_bits(self.0), $to_bits(other.0))),
                $of_bits(_mm256_or_si256($to_bits(self.1), $to_bits(other.1)))
            ));
            // A constant count becomes an immediate operand.
            #[inline(always)]
            fn bits_shl(self, k: u32) -> Self {
                // SAFETY: as in `op`.
                unsafe {
                    let count = _mm_cvtsi32_si128(k as i32);
                    $v(
                        $of_bits($shl($to_bits(self.0), count)),
                        $of_bits($shl($to_bits(self.1), count)),
                    )
                }
            }
            #[inline(always)]
            fn bits_shr(self, k: u32) -> Self {
                // SAFETY: as in `op`.
                unsafe {
                    let count = _mm_cvtsi32_si128(k as i32);
                    $v(
                        $of_bits($shr($to_bits(self.0), count)),
                        $of_bits($shr($to_bits(self.1), count)),
                    )
                }
            }

            op!(lt(self: Self, other: Self) -> ($register, $register) =
                ($cmp::<_CMP_LT_OQ>(self.0, other.0), $cmp::<_CMP_LT_OQ>(self.1, other.1)));
            op!(not_lt(self: Self, other: Self) -> ($register, $register) =
                ($cmp::<_CMP_NLT_UQ>(self.0, other.0), $cmp::<_CMP_NLT_UQ>(self.1, other.1)));
            op!(eq(self: Self, other: Self) -> ($register, $register) =
                ($cmp::<_CMP_EQ_OQ>(self.0, other.0), $cmp::<_CMP_EQ_OQ>(self.1, other.1)));
            op!(mask(_s: Avx2, lanes: u32) -> ($register, $register) = {
                let (low, high) = Self::masks(lanes);
                ($of_bits(low), $of_bits(high))
            });
            op!(lanes(mask: ($register, $register)) -> u32 =
                $movemask(mask.0) as u32 | ($movemask(mask.1) as u32) << Self::HALF);
            op!(select(mask: ($register, $register), a: Self, b: Self) -> Self =
                $v($blend(b.0, a.0, mask.0), $blend(b.1, a.1, mask.1)));
            op!(keep(self: Self, _s: Avx2, mask: ($register, $register)) -> Self =
                $v($and(mask.0, self.0), $and(mask.1, self.1)));
            op!(clear(self: Self, _s: Avx2, mask: ($register, $register)) -> Self =
                $v($andnot(mask.0, self.0), $andnot(mask.1, self.1)));

            $($rest)*
        }
    };
}

vector!(
    F32,
    f32,
    16,
    __m256,
    _mm256_castps_si256,
    _mm256_castsi256_ps,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_maskload_ps,
    _mm256_storeu_ps,
    _mm256_maskstore_ps,
    _mm256_stream_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_div_ps,
    _mm256_fmadd_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    _mm256_and_ps,
    _mm256_andnot_ps,
    _mm256_add_epi32,
    _mm256_sub_epi32,
    _mm256_sll_epi32,
    _mm256_srl_epi32,
    _mm256_cmp_ps,
    _mm256_blendv_ps,
    _mm256_movemask_ps,
    _mm256_cmpeq_epi32,
    _mm256_set1_epi32,
    _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128),
    {
        op!(permute(self: Self, index: Self) -> Self =
        F32(permute_ps(self, index.0), permute_ps(self, index.1)));
        op!(from_halves(_s: Avx2, half: Half, src: Input<'_, u16>, at: usize) -> Self = {
            let start = src.pointer(at, 16).cast::<__m128i>();
            F32(
                widen(half, _mm_loadu_si128(start)),
                widen(half, _mm_loadu_si128(start.add(1))),
            )
        });
        op!(to_halves(self: Self, half: Half, dst: Output<'_, u16>, at: usize) -> () =
            _mm256_storeu_si256(dst.pointer(at, 16).cast(), round(half, self.0, self.1)));
        op!(stream_halves(self: Self, half: Half, dst: Output<'_, u16>, at: usize) -> () = {
            let pointer = dst.pointer(at, 16).cast();
            let bits = round(half, self.0, self.1);
            if (pointer as usize).is_multiple_of(32) {
                _mm256_stream_si256(pointer, bits)
            } else {
                _mm256_storeu_si256(pointer, bits)
            }
        });
        op!(load_bytes(_s: Avx2, src: Input<'_, u8>, at: usize) -> Self = {
            let start: *const __m128i = src.pointer(at, 16).cast();
            let (low, high) = (_mm_loadl_epi64(start), _mm_loadl_epi64(start.byte_add(8)));
            F32(
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high)),
            )
        });
        op!(load_columns(_s: Avx2, src: Input<'_, f32>, at: usize, stride: usize)
            -> [Self; COLUMNS] = {
            let (start, stride) = src.rows(at, 16, stride, COLUMNS);
            let mut halves = [[_mm256_setzero_ps(); COLUMNS]; 2];
            for i in 0..16 {
                halves[i / 8][i % 8] = _mm256_loadu_ps(start.add(i * stride));
            }
            let [low, high] = [transpose_ps(halves[0]), transpose_ps(halves[1])];
            let mut columns = [F32(low[0], high[0]); COLUMNS];
            for i in 1..COLUMNS {
                columns[i] = F32(low[i], high[i]);
            }
            columns
        });
        op!(store_columns(columns: [Self; COLUMNS], dst: Output<'_, f32>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 16, stride, COLUMNS);
            let halves = [columns.map(|x| x.0), columns.map(|x| x.1)];
            for (half, x) in halves.into_iter().enumerate() {
                for (i, row) in transpose_ps(x).into_iter().enumerate() {
                    _mm256_storeu_ps(start.add((half * 8 + i) * stride), row);
                }
            }
        });
        op!(load_half(_s: Avx2, src: Input<'_, f32>, at: usize, stride: usize) -> [Self; HALF] = {
            let (start, stride) = src.rows(at, 16, stride, HALF);
            let mut halves = [[_mm256_setzero_ps(); HALF]; 2];
            for i in 0..8 {
                // Rows i and i + 4 of eight.
                let row = start.add((i / 4 * 8 + i % 4) * stride);
                halves[i / 4][i % 4] = _mm256_loadu2_m128(row.add(4 * stride), row);
            }
            let [low, high] = [transpose_halves(halves[0]), transpose_halves(halves[1])];
            let [a, b, c, d] = low;
            let [e, f, g, h] = high;
            [F32(a, e), F32(b, f), F32(c, g), F32(d, h)]
        });
        op!(store_half(columns: [Self; HALF], dst: Output<'_, f32>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 16, stride, HALF);
            let halves = [columns.map(|x| x.0), columns.map(|x| x.1)];
            for (half, x) in halves.into_iter().enumerate() {
                let x = transpose_halves(x);
                for i in 0..8 {
                    let row = if i < 4 {
                        _mm256_castps256_ps128(x[i])
                    } else {
                        _mm256_extractf128_ps::<1>(x[i - 4])
                    };
                    _mm_storeu_ps(start.add((half * 8 + i) * stride), row);
                }
            }
        });
        op!(load_pair(_s: Avx2, src: Input<'_, f32>, at: usize, stride: usize) -> [Self; PAIR] = {
            let (start, stride) = src.rows(at, 16, stride, PAIR);
            let row = |i: usize| _mm_loadl_epi64(start.add(i * stride).cast());
            let two = |i: usize| _mm_unpacklo_epi64(row(i), row(i + 1));
            // Of half the rows: the first two and the third two of eight, and the others.
            let four = |i: usize| _mm256_castsi256_ps(_mm256_set_m128i(two(i + 4), two(i)));
            let [a, b, c, d] = [four(0), four(2), four(8), four(10)];
            [
                F32(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0x88>(c, d)),
                F32(_mm256_shuffle_ps::<0xDD>(a, b), _mm256_shuffle_ps::<0xDD>(c, d)),
            ]
        });
        op!(store_pair(columns: [Self; PAIR], dst: Output<'_, f32>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 16, stride, PAIR);
            let [a, b] = columns;
            let mut row = start;
            for (a, b) in [(a.0, b.0), (a.1, b.1)] {
                let x = [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)];
                for i in 0..4 {
                    let x = _mm256_castps_si256(x[i % 2]);
                    let rows = if i < 2 {
                        _mm256_castsi256_si128(x)
                    } else {
                        _mm256_extracti128_si256::<1>(x)
                    };
                    _mm_storel_epi64(row.cast(), rows);
                    row = row.wrapping_add(stride);
                    _mm_storel_epi64(row.cast(), _mm_unpackhi_epi64(rows, rows));
                    row = row.wrapping_add(stride);
                }
            }
        });
        op!(narrow(parts: [F64; 2]) -> Self = {
            let [low, high] = parts;
            F32(
                _mm256_set_m128(_mm256_cvtpd_ps(low.1), _mm256_cvtpd_ps(low.0)),
                _mm256_set_m128(_mm256_cvtpd_ps(high.1), _mm256_cvtpd_ps(high.0)),
            )
        });
        op!(wide(self: Self, part: usize) -> F64 = {
            let half = if part == 0 { self.0 } else { self.1 };
            F64(
                _mm256_cvtps_pd(_mm256_castps256_ps128(half)),
                _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(half)),
            )
        });
    }
);

vector!(
    F64,
    f64,
    8,
    __m256d,
    _mm256_castpd_si256,
    _mm256_castsi256_pd,
    _mm256_set1_pd,
    _mm256_loadu_pd,
    _mm256_maskload_pd,
    _mm256_storeu_pd,
    _mm256_maskstore_pd,
    _mm256_stream_pd,
    _mm256_add_pd,
    _mm256_sub_pd,
    _mm256_mul_pd,
    _mm256_div_pd,
    _mm256_fmadd_pd,
    _mm256_max_pd,
    _mm256_min_pd,
    _mm256_and_pd,
    _mm256_andnot_pd,
    _mm256_add_epi64,
    _mm256_sub_epi64,
    _mm256_sll_epi64,
    _mm256_srl_epi64,
    _mm256_cmp_pd,
    _mm256_blendv_pd,
    _mm256_movemask_pd,
    _mm256_cmpeq_epi64,
    _mm256_set1_epi64x,
    _mm256_setr_epi64x(1, 2, 4, 8),
    {
        op!(permute(self: Self, index: Self) -> Self =
        F64(permute_pd(self, index.0), permute_pd(self, index.1)));
        op!(from_halves(_s: Avx2, half: Half, src: Input<'_, u16>, at: usize) -> Self = {
            let floats = widen(half, _mm_loadu_si128(src.pointer(at, 8).cast()));
            F64(
                _mm256_cvtps_pd(_mm256_castps256_ps128(floats)),
                _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(floats)),
            )
        });
        op!(to_halves(self: Self, half: Half, dst: Output<'_, u16>, at: usize) -> () = {
            let floats = _mm256_set_m128(_mm256_cvtpd_ps(self.1), _mm256_cvtpd_ps(self.0));
            let bits = _mm256_castsi256_si128(round(half, floats, floats));
            _mm_storeu_si128(dst.pointer(at, 8).cast(), bits)
        });
        op!(stream_halves(self: Self, half: Half, dst: Output<'_, u16>, at: usize) -> () =
            self.to_halves(half, dst, at));
        op!(load_bytes(_s: Avx2, src: Input<'_, u8>, at: usize) -> Self = {
            let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(src.pointer(at, 8).cast()));
            F64(
                _mm256_cvtepi32_pd(_mm256_castsi256_si128(wide)),
                _mm256_cvtepi32_pd(_mm256_extracti128_si256::<1>(wide)),
            )
        });
        op!(load_columns(_s: Avx2, src: Input<'_, f64>, at: usize, stride: usize)
            -> [Self; COLUMNS] = {
            let (start, stride) = src.rows(at, 8, stride, COLUMNS);
            let zero = _mm256_setzero_pd();
            let mut columns = [F64(zero, zero); COLUMNS];
            for part in [0, 4] {
                let mut halves = [[zero; 4]; 2];
                for i in 0..8 {
                    halves[i / 4][i % 4] = _mm256_loadu_pd(start.add(i * stride + part));
                }
                let [low, high] = [transpose_pd(halves[0]), transpose_pd(halves[1])];
                for i in 0..4 {
                    columns[part + i] = F64(low[i], high[i]);
                }
            }
            columns
        });
        op!(store_columns(columns: [Self; COLUMNS], dst: Output<'_, f64>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 8, stride, COLUMNS);
            let [a, b, c, d, e, f, g, h] = columns;
            let halves = [
                [[a.0, b.0, c.0, d.0], [e.0, f.0, g.0, h.0]],
                [[a.1, b.1, c.1, d.1], [e.1, f.1, g.1, h.1]],
            ];
            for (half, [low, high]) in halves.into_iter().enumerate() {
                let (low, high) = (transpose_pd(low), transpose_pd(high));
                for i in 0..4 {
                    let row = start.add((half * 4 + i) * stride);
                    _mm256_storeu_pd(row, low[i]);
                    _mm256_storeu_pd(row.add(4), high[i]);
                }
            }
        });
        op!(load_half(_s: Avx2, src: Input<'_, f64>, at: usize, stride: usize) -> [Self; HALF] = {
            let (start, stride) = src.rows(at, 8, stride, HALF);
            let mut halves = [[_mm256_setzero_pd(); HALF]; 2];
            for i in 0..8 {
                halves[i / 4][i % 4] = _mm256_loadu_pd(start.add(i * stride));
            }
            let [low, high] = [transpose_pd(halves[0]), transpose_pd(halves[1])];
            let [a, b, c, d] = low;
            let [e, f, g, h] = high;
            [F64(a, e), F64(b, f), F64(c, g), F64(d, h)]
        });
        op!(store_half(columns: [Self; HALF], dst: Output<'_, f64>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 8, stride, HALF);
            let halves = [columns.map(|x| x.0), columns.map(|x| x.1)];
            for (half, x) in halves.into_iter().enumerate() {
                for (i, row) in transpose_pd(x).into_iter().enumerate() {
                    _mm256_storeu_pd(start.add((half * 4 + i) * stride), row);
                }
            }
        });
        op!(load_pair(_s: Avx2, src: Input<'_, f64>, at: usize, stride: usize) -> [Self; PAIR] = {
            let (start, stride) = src.rows(at, 8, stride, PAIR);
            let row = |i: usize| _mm_loadu_pd(start.add(i * stride));
            let two = |i: usize| _mm256_set_m128d(row(i + 2), row(i));
            let [a, b, c, d] = [two(0), two(1), two(4), two(5)];
            [
                F64(_mm256_unpacklo_pd(a, b), _mm256_unpacklo_pd(c, d)),
                F64(_mm256_unpackhi_pd(a, b), _mm256_unpackhi_pd(c, d)),
            ]
        });
        op!(store_pair(columns: [Self; PAIR], dst: Output<'_, f64>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 8, stride, PAIR);
            let [a, b] = columns;
            for (half, (a, b)) in [(a.0, b.0), (a.1, b.1)].into_iter().enumerate() {
                let x = [_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b)];
                let row = start.add(4 * half * stride);
                _mm_storeu_pd(row, _mm256_castpd256_pd128(x[0]));
                _mm_storeu_pd(row.add(stride), _mm256_castpd256_pd128(x[1]));
                _mm_storeu_pd(row.add(2 * stride), _mm256_extractf128_pd::<1>(x[0]));
                _mm_storeu_pd(row.add(3 * stride), _mm256_extractf128_pd::<1>(x[1]));
            }
        });
        #[inline(always)]
        fn wide(self, _: usize) -> F64 {
            self
        }
        #[inline(always)]
        fn narrow(parts: [F64; 2]) -> Self {
            parts[0]
        }
    }
);
