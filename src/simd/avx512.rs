//! AVX-512F and BW: a vector is one register, a set of lanes one mask register.

use std::arch::x86_64::*;

use super::half::{Half, round, widen};
use super::{COLUMNS, Function, HALF, Input, Output, PAIR, Simd, Vector};

/// Proof that AVX-512F and BW, AVX2, F16C and FMA exist and that the system keeps their registers.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma");
        found.then_some(Avx512(()))
    }
}

/// Evaluates a kernel with the features of this level.
///
/// # Safety
/// [`Avx512::detect`] has found them.
#[target_feature(enable = "avx512f,avx512bw,avx2,f16c,fma")]
#[inline(never)]
pub unsafe fn with_features<F: Function<Avx512>>(function: F) -> F::Output {
    function.call(Avx512(()))
}

impl Simd for Avx512 {
    type V32 = F32;
    type V64 = F64;

    const SLOW_SUBNORMALS: bool = true;
    const MASKS: bool = true;

    #[inline(always)]
    fn apart<F: Function<Self>>(self, function: F) -> F::Output {
        // SAFETY: the token in hand proves that the features exist.
        unsafe { with_features(function) }
    }
}

/// Sixteen `f32`.
#[derive(Clone, Copy, Debug)]
pub struct F32(__m512);

/// Eight `f64`.
#[derive(Clone, Copy, Debug)]
pub struct F64(__m512d);

/// The odd words of two registers.
static ODD: [u16; 32] = {
    let mut odd = [0; 32];
    let mut i = 0;
    while i < 32 {
        odd[i] = 2 * i as u16 + 1;
        i += 1;
    }
    odd
};

impl F32 {
    /// The bits of the nearest numbers of half precision.
    #[inline(always)]
    unsafe fn rounded(self, half: Half) -> __m256i {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
        // SAFETY: the caller holds vectors of this level.
        unsafe {
            if half == Half::Binary16 {
                return _mm512_cvtps_ph::<NEAREST>(self.0);
            }
            // The upper half of each lane.
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(self.rounded_brain()))
        }
    }

    /// The same of two vectors.
    #[inline(always)]
    unsafe fn rounded_pair([low, high]: [Self; 2], half: Half) -> __m512i {
        // SAFETY: the caller holds vectors of this level.
        unsafe {
            if half == Half::Brain {
                // The odd words of both.
                let index = _mm512_loadu_si512(ODD.as_ptr().cast());
                return _mm512_permutex2var_epi16(low.rounded_brain(), index, high.rounded_brain());
            }
            let low = _mm512_castsi256_si512(low.rounded(half));
            _mm512_inserti64x4::<1>(low, high.rounded(half))
        }
    }

    /// Numbers rounded to `bfloat16`, in the upper half of each lane.
    #[inline(always)]
    unsafe fn rounded_brain(self) -> __m512i {
        // SAFETY: the caller holds vectors of this level.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x1_0000));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let rounding =
                _mm512_mask_blend_epi32(odd, _mm512_set1_epi32(0x7fff), _mm512_set1_epi32(0x8000));
            let rounded = _mm512_add_epi32(bits, rounding);
            // A NaN keeps its upper bits and is made quiet.
            _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x40_0000))
        }
    }
}

/// Each quarter of four registers is transposed.
#[inline(always)]
unsafe fn transpose_quarters([x, y, z, w]: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: the caller holds vectors of this level.
    unsafe {
        let a = _mm512_castps_pd(_mm512_unpacklo_ps(x, y));
        let b = _mm512_castps_pd(_mm512_unpackhi_ps(x, y));
        let c = _mm512_castps_pd(_mm512_unpacklo_ps(z, w));
        let d = _mm512_castps_pd(_mm512_unpackhi_ps(z, w));
        [
            _mm512_castpd_ps(_mm512_unpacklo_pd(a, c)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(a, c)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(b, d)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(b, d)),
        ]
    }
}

/// Quarters 0 and 2 of two registers in turn, and quarters 1 and 3: its own inverse.
#[inline(always)]
unsafe fn exchange_quarters(a: __m512d, b: __m512d) -> [__m512d; 2] {
    // SAFETY: the caller holds vectors of this level.
    unsafe {
        let even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
        let odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
        [_mm512_permutex2var_pd(a, even, b), _mm512_permutex2var_pd(a, odd, b)]
    }
}

/// Eight registers of eight numbers, transposed.
#[inline(always)]
unsafe fn transpose_pd(x: [__m512d; COLUMNS]) -> [__m512d; COLUMNS] {
    // SAFETY: the caller holds vectors of this level.
    unsafe {
        let mut result = x;
        for odd in [0, 1] {
            let mut pairs = [x[0]; 4];
            for i in 0..4 {
                let (a, b) = (x[2 * i], x[2 * i + 1]);
                pairs[i] =
                    if odd == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) };
            }
            let [a, b, c, d] = pairs;
            let low = [_mm512_shuffle_f64x2::<0x88>(a, b), _mm512_shuffle_f64x2::<0x88>(c, d)];
            let high = [_mm512_shuffle_f64x2::<0xDD>(a, b), _mm512_shuffle_f64x2::<0xDD>(c, d)];
            result[odd] = _mm512_shuffle_f64x2::<0x88>(low[0], low[1]);
            result[odd + 2] = _mm512_shuffle_f64x2::<0x88>(high[0], high[1]);
            result[odd + 4] = _mm512_shuffle_f64x2::<0xDD>(low[0], low[1]);
            result[odd + 6] = _mm512_shuffle_f64x2::<0xDD>(high[0], high[1]);
        }
        result
    }
}

/// A method that is one expression over intrinsics.
macro_rules! op {
    ($name:ident($($arg:ident: $type:ty),* $(,)?) -> $result:ty = $body:expr) => {
        #[inline(always)]
        #[allow(unused_unsafe, reason = "some bodies only call others")]
        fn $name($($arg: $type),*) -> $result {
            // SAFETY: a vector or a token in hand proves that the instructions exist.
            unsafe { $body }
        }
    };
}

macro_rules! vector {
    ($v:ident, $t:ident, $lanes:literal, $mask:ident, $register:ident,
     $to_bits:ident, $of_bits:ident, $set:ident, $load:ident, $mask_load:ident, $store:ident,
     $mask_store:ident, $stream:ident, $add:ident, $sub:ident, $mul:ident, $div:ident,
     $fmadd:ident, $max:ident, $min:ident, $abs:ident, $bits_add:ident, $bits_sub:ident, $shl:ident, $shr:ident,
     $permute:ident, $cmp:ident, $blend:ident, { $($rest:item)* }) => {
        impl Vector<Avx512, $t> for $v {
            type Mask = $mask;

            op!(splat(_s: Avx512, x: $t) -> Self = $v($set(x)));
            op!(from_lanes(_s: Avx512, lanes: [$t; $lanes]) -> Self = $v($load(lanes.as_ptr())));
            #[inline(always)]
            fn to_lanes(self) -> [$t; $lanes] {
                let mut lanes = [0.0; $lanes];
                // SAFETY: the array holds that many numbers.
                unsafe { $store(lanes.as_mut_ptr(), self.0) };
                lanes
            }

            // In the next seven methods the pointer is to as many numbers as are accessed.
            op!(load(_s: Avx512, src: Input<'_, $t>, at: usize) -> Self =
                $v($load(src.pointer(at, $lanes))));
            op!(load_lanes(_s: Avx512, src: Input<'_, $t>, at: usize, lanes: u32, fill: Self)
                -> Self = {
                let end = (u32::BITS - lanes.leading_zeros()) as usize;
                $v($mask_load(fill.0, lanes as $mask, src.pointer(at, end)))
            });
            op!(store(self: Self, dst: Output<'_, $t>, at: usize) -> () =
                $store(dst.pointer(at, $lanes), self.0));
            op!(store_lanes(self: Self, dst: Output<'_, $t>, at: usize, lanes: u32) -> () = {
                let end = (u32::BITS - lanes.leading_zeros()) as usize;
                $mask_store(dst.pointer(at, end), lanes as $mask, self.0)
            });
            op!(stream(self: Self, dst: Output<'_, $t>, at: usize) -> () = {
                let pointer = dst.pointer(at, $lanes);
                if pointer as usize % 64 == 0 {
                    $stream(pointer, self.0)
                } else {
                    $store(pointer, self.0)
                }
            });

            op!(add(self: Self, other: Self) -> Self = $v($add(self.0, other.0)));
            op!(sub(self: Self, other: Self) -> Self = $v($sub(self.0, other.0)));
            op!(mul(self: Self, other: Self) -> Self = $v($mul(self.0, other.0)));
            op!(div(self: Self, other: Self) -> Self = $v($div(self.0, other.0)));
            op!(mul_add(self: Self, b: Self, c: Self) -> Self = $v($fmadd(self.0, b.0, c.0)));
            op!(fma(self: Self, b: Self, c: Self) -> Self = $v($fmadd(self.0, b.0, c.0)));
            op!(max(self: Self, other: Self) -> Self = $v($max(self.0, other.0)));
            op!(min(self: Self, other: Self) -> Self = $v($min(self.0, other.0)));
            op!(abs(self: Self) -> Self = $v($abs(self.0)));

            op!(bits_add(self: Self, other: Self) -> Self =
                $v($of_bits($bits_add($to_bits(self.0), $to_bits(other.0)))));
            op!(bits_sub(self: Self, other: Self) -> Self =
                $v($of_bits($bits_sub($to_bits(self.0), $to_bits(other.0)))));
            op!(bits_and(self: Self, other: Self) -> Self =
                $v($of_bits(_mm512_and_si512($to_bits(self.0), $to_bits(other.0)))));
            op!(bits_or(self: Self, other: Self) -> Self =
                $v($of_bits(_mm512_or_si512($to_bits(self.0), $to_bits(other.0)))));
            // A constant count becomes an immediate operand.
            #[inline(always)]
            fn bits_shl(self, k: u32) -> Self {
                // SAFETY: as in `op`.
                unsafe { $v($of_bits($shl($to_bits(self.0), _mm_cvtsi32_si128(k as i32)))) }
            }
            #[inline(always)]
            fn bits_shr(self, k: u32) -> Self {
                // SAFETY: as in `op`.
                unsafe { $v($of_bits($shr($to_bits(self.0), _mm_cvtsi32_si128(k as i32)))) }
            }
            op!(permute(self: Self, index: Self) -> Self =
                $v($permute($to_bits(index.0), self.0)));

            op!(lt(self: Self, other: Self) -> $mask = $cmp::<_CMP_LT_OQ>(self.0, other.0));
            op!(not_lt(self: Self, other: Self) -> $mask = $cmp::<_CMP_NLT_UQ>(self.0, other.0));
            op!(eq(self: Self, other: Self) -> $mask = $cmp::<_CMP_EQ_OQ>(self.0, other.0));
            #[inline(always)]
            fn mask(_: Avx512, lanes: u32) -> $mask {
                lanes as $mask
            }
            #[inline(always)]
            fn lanes(mask: $mask) -> u32 {
                u32::from(mask)
            }
            op!(select(mask: $mask, a: Self, b: Self) -> Self = $v($blend(mask, b.0, a.0)));

            $($rest)*
        }
    };
}

vector!(
    F32,
    f32,
    16,
    __mmask16,
    __m512,
    _mm512_castps_si512,
    _mm512_castsi512_ps,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_mask_loadu_ps,
    _mm512_storeu_ps,
    _mm512_mask_storeu_ps,
    _mm512_stream_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_div_ps,
    _mm512_fmadd_ps,
    _mm512_max_ps,
    _mm512_min_ps,
    _mm512_abs_ps,
    _mm512_add_epi32,
    _mm512_sub_epi32,
    _mm512_sll_epi32,
    _mm512_srl_epi32,
    _mm512_permutexvar_ps,
    _mm512_cmp_ps_mask,
    _mm512_mask_blend_ps,
    {
        op!(from_halves(_s: Avx512, half: Half, src: Input<'_, u16>, at: usize) -> Self = {
            let bits = _mm256_loadu_si256(src.pointer(at, 16).cast());
            F32(match half {
                Half::Binary16 => _mm512_cvtph_ps(bits),
                Half::Brain => {
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
                }
            })
        });
        op!(to_halves(self: Self, half: Half, dst: Output<'_, u16>, at: usize) -> () =
            _mm256_storeu_si256(dst.pointer(at, 16).cast(), self.rounded(half)));
        op!(stream_halves(self: Self, half: Half, dst: Output<'_, u16>, at: usize) -> () = {
            let pointer = dst.pointer(at, 16).cast();
            if (pointer as usize).is_multiple_of(32) {
                _mm256_stream_si256(pointer, self.rounded(half))
            } else {
                _mm256_storeu_si256(pointer, self.rounded(half))
            }
        });
        op!(pair_to_halves(
            pair: [Self; 2], half: Half, dst: Output<'_, u16>, at: usize, stream: bool
        ) -> () = {
            let pointer = dst.pointer(at, 32).cast();
            let both = Self::rounded_pair(pair, half);
            if stream && (pointer as usize).is_multiple_of(64) {
                _mm512_stream_si512(pointer, both)
            } else {
                _mm512_storeu_si512(pointer, both)
            }
        });
        op!(load_bytes(_s: Avx512, src: Input<'_, u8>, at: usize) -> Self = {
            let bytes = _mm_loadu_si128(src.pointer(at, 16).cast());
            F32(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)))
        });
        op!(load_columns(_s: Avx512, src: Input<'_, f32>, at: usize, stride: usize)
            -> [Self; COLUMNS] = {
            let (start, stride) = src.rows(at, 16, stride, COLUMNS);
            // Rows i and i + 4 in one register: four rows more follow after the first step.
            let mut x = [[_mm512_setzero_ps(); 4]; 2];
            // The address of a row follows from that of the row before: sixteen addresses would need more registers
            // than there are.
            let mut row = start;
            for i in 0..16 {
                let (numbers, x) = (_mm256_loadu_ps(row), &mut x[i / 8][i % 4]);
                *x = if i % 8 < 4 {
                    _mm512_castps256_ps512(numbers)
                } else {
                    let upper = _mm256_castps_pd(numbers);
                    _mm512_castpd_ps(_mm512_insertf64x4::<1>(_mm512_castps_pd(*x), upper))
                };
                row = row.wrapping_add(stride);
            }
            let [a, b] = [transpose_quarters(x[0]), transpose_quarters(x[1])];
            let mut columns = [F32(a[0]); COLUMNS];
            for i in 0..4 {
                columns[i] = F32(_mm512_shuffle_f32x4::<0x88>(a[i], b[i]));
                columns[4 + i] = F32(_mm512_shuffle_f32x4::<0xDD>(a[i], b[i]));
            }
            columns
        });
        op!(store_columns(columns: [Self; COLUMNS], dst: Output<'_, f32>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 16, stride, COLUMNS);
            let lower = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
            let upper = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
            let mut x = [[_mm512_setzero_ps(); 4]; 2];
            for i in 0..4 {
                let a = _mm512_castps_pd(columns[i].0);
                let b = _mm512_castps_pd(columns[4 + i].0);
                x[0][i] = _mm512_castpd_ps(_mm512_permutex2var_pd(a, lower, b));
                x[1][i] = _mm512_castpd_ps(_mm512_permutex2var_pd(a, upper, b));
            }
            let x = [transpose_quarters(x[0]), transpose_quarters(x[1])];
            let mut row = start;
            for i in 0..16 {
                let pair = _mm512_castps_pd(x[i / 8][i % 4]);
                let numbers = if i % 8 < 4 {
                    _mm512_castpd512_pd256(pair)
                } else {
                    _mm512_extractf64x4_pd::<1>(pair)
                };
                _mm256_storeu_ps(row, _mm256_castpd_ps(numbers));
                row = row.wrapping_add(stride);
            }
        });
        op!(load_half(_s: Avx512, src: Input<'_, f32>, at: usize, stride: usize) -> [Self; HALF] = {
            let (start, stride) = src.rows(at, 16, stride, HALF);
            let mut x = [_mm512_setzero_ps(); HALF];
            for (i, x) in x.iter_mut().enumerate() {
                // Rows i, i + 4, i + 8 and i + 12.
                let row = |j: usize| start.add((i + 4 * j) * stride);
                *x = _mm512_castps128_ps512(_mm_loadu_ps(row(0)));
                *x = _mm512_insertf32x4::<1>(*x, _mm_loadu_ps(row(1)));
                *x = _mm512_insertf32x4::<2>(*x, _mm_loadu_ps(row(2)));
                *x = _mm512_insertf32x4::<3>(*x, _mm_loadu_ps(row(3)));
            }
            transpose_quarters(x).map(F32)
        });
        op!(store_half(columns: [Self; HALF], dst: Output<'_, f32>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 16, stride, HALF);
            let x = transpose_quarters(columns.map(|x| x.0));
            let mut row = start;
            for i in 0..16 {
                let numbers = match i / 4 {
                    0 => _mm512_castps512_ps128(x[i % 4]),
                    1 => _mm512_extractf32x4_ps::<1>(x[i % 4]),
                    2 => _mm512_extractf32x4_ps::<2>(x[i % 4]),
                    _ => _mm512_extractf32x4_ps::<3>(x[i % 4]),
                };
                _mm_storeu_ps(row, numbers);
                row = row.wrapping_add(stride);
            }
        });
        op!(load_pair(_s: Avx512, src: Input<'_, f32>, at: usize, stride: usize) -> [Self; PAIR] = {
            let (start, stride) = src.rows(at, 16, stride, PAIR);
            let row = |i: usize| _mm_loadl_epi64(start.add(i * stride).cast());
            // Quarter i: rows 4 i and 4 i + 1, and the next two.
            let mut x = [_mm512_setzero_si512(); 2];
            for (i, x) in x.iter_mut().enumerate() {
                let quarter = |j: usize| {
                    _mm_unpacklo_epi64(row(4 * j + 2 * i), row(4 * j + 2 * i + 1))
                };
                *x = _mm512_castsi128_si512(quarter(0));
                *x = _mm512_inserti32x4::<1>(*x, quarter(1));
                *x = _mm512_inserti32x4::<2>(*x, quarter(2));
                *x = _mm512_inserti32x4::<3>(*x, quarter(3));
            }
            let [a, b] = x.map(|x| _mm512_castsi512_ps(x));
            [F32(_mm512_shuffle_ps::<0x88>(a, b)), F32(_mm512_shuffle_ps::<0xDD>(a, b))]
        });
        op!(store_pair(columns: [Self; PAIR], dst: Output<'_, f32>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 16, stride, PAIR);
            let [a, b] = columns.map(|x| x.0);
            let x = [_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)];
            let mut row = start;
            for i in 0..8 {
                let x = _mm512_castps_si512(x[i % 2]);
                let rows = match i / 2 {
                    0 => _mm512_castsi512_si128(x),
                    1 => _mm512_extracti32x4_epi32::<1>(x),
                    2 => _mm512_extracti32x4_epi32::<2>(x),
                    _ => _mm512_extracti32x4_epi32::<3>(x),
                };
                _mm_storel_epi64(row.cast(), rows);
                row = row.wrapping_add(stride);
                _mm_storel_epi64(row.cast(), _mm_unpackhi_epi64(rows, rows));
                row = row.wrapping_add(stride);
            }
        });
        op!(narrow(parts: [F64; 2]) -> Self = {
            let (low, high) = (_mm512_cvtpd_ps(parts[0].0), _mm512_cvtpd_ps(parts[1].0));
            let low = _mm512_castps_pd(_mm512_castps256_ps512(low));
            F32(_mm512_castpd_ps(_mm512_insertf64x4::<1>(low, _mm256_castps_pd(high))))
        });
        op!(wide(self: Self, part: usize) -> F64 = {
            let half = if part == 0 {
                _mm512_castps512_ps256(self.0)
            } else {
                _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)))
            };
            F64(_mm512_cvtps_pd(half))
        });
    }
);

vector!(
    F64,
    f64,
    8,
    __mmask8,
    __m512d,
    _mm512_castpd_si512,
    _mm512_castsi512_pd,
    _mm512_set1_pd,
    _mm512_loadu_pd,
    _mm512_mask_loadu_pd,
    _mm512_storeu_pd,
    _mm512_mask_storeu_pd,
    _mm512_stream_pd,
    _mm512_add_pd,
    _mm512_sub_pd,
    _mm512_mul_pd,
    _mm512_div_pd,
    _mm512_fmadd_pd,
    _mm512_max_pd,
    _mm512_min_pd,
    _mm512_abs_pd,
    _mm512_add_epi64,
    _mm512_sub_epi64,
    _mm512_sll_epi64,
    _mm512_srl_epi64,
    _mm512_permutexvar_pd,
    _mm512_cmp_pd_mask,
    _mm512_mask_blend_pd,
    {
        op!(from_halves(_s: Avx512, half: Half, src: Input<'_, u16>, at: usize) -> Self = {
            let bits = _mm_loadu_si128(src.pointer(at, 8).cast());
            F64(_mm512_cvtps_pd(widen(half, bits)))
        });
        op!(to_halves(self: Self, half: Half, dst: Output<'_, u16>, at: usize) -> () = {
            let floats = _mm512_cvtpd_ps(self.0);
            let bits = _mm256_castsi256_si128(round(half, floats, floats));
            _mm_storeu_si128(dst.pointer(at, 8).cast(), bits)
        });
        op!(stream_halves(self: Self, half: Half, dst: Output<'_, u16>, at: usize) -> () =
            self.to_halves(half, dst, at));
        op!(load_bytes(_s: Avx512, src: Input<'_, u8>, at: usize) -> Self = {
            let bytes = _mm_loadl_epi64(src.pointer(at, 8).cast());
            F64(_mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(bytes)))
        });
        op!(load_columns(_s: Avx512, src: Input<'_, f64>, at: usize, stride: usize)
            -> [Self; COLUMNS] = {
            let (start, stride) = src.rows(at, 8, stride, COLUMNS);
            let mut x = [_mm512_setzero_pd(); COLUMNS];
            for (i, x) in x.iter_mut().enumerate() {
                *x = _mm512_loadu_pd(start.add(i * stride));
            }
            transpose_pd(x).map(F64)
        });
        op!(store_columns(columns: [Self; COLUMNS], dst: Output<'_, f64>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 8, stride, COLUMNS);
            for (i, row) in transpose_pd(columns.map(|x| x.0)).into_iter().enumerate() {
                _mm512_storeu_pd(start.add(i * stride), row);
            }
        });
        op!(load_half(_s: Avx512, src: Input<'_, f64>, at: usize, stride: usize) -> [Self; HALF] = {
            let (start, stride) = src.rows(at, 8, stride, HALF);
            let mut x = [_mm512_setzero_pd(); HALF];
            for (i, x) in x.iter_mut().enumerate() {
                // Rows i and i + 4.
                let lower = _mm512_castpd256_pd512(_mm256_loadu_pd(start.add(i * stride)));
                *x = _mm512_insertf64x4::<1>(lower, _mm256_loadu_pd(start.add((i + 4) * stride)));
            }
            let [x, y, z, w] = x;
            let (a, b) = (_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
            let (c, d) = (_mm512_unpacklo_pd(z, w), _mm512_unpackhi_pd(z, w));
            let ([e, g], [f, h]) = (exchange_quarters(a, c), exchange_quarters(b, d));
            [F64(e), F64(f), F64(g), F64(h)]
        });
        op!(store_half(columns: [Self; HALF], dst: Output<'_, f64>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 8, stride, HALF);
            let [e, f, g, h] = columns.map(|x| x.0);
            let ([a, c], [b, d]) = (exchange_quarters(e, g), exchange_quarters(f, h));
            let x = [
                _mm512_unpacklo_pd(a, b),
                _mm512_unpackhi_pd(a, b),
                _mm512_unpacklo_pd(c, d),
                _mm512_unpackhi_pd(c, d),
            ];
            for i in 0..8 {
                let row = if i < 4 {
                    _mm512_castpd512_pd256(x[i])
                } else {
                    _mm512_extractf64x4_pd::<1>(x[i - 4])
                };
                _mm256_storeu_pd(start.add(i * stride), row);
            }
        });
        op!(load_pair(_s: Avx512, src: Input<'_, f64>, at: usize, stride: usize) -> [Self; PAIR] = {
            let (start, stride) = src.rows(at, 8, stride, PAIR);
            let row = |i: usize| _mm_castpd_ps(_mm_loadu_pd(start.add(i * stride)));
            // Even rows, and odd ones.
            let mut x = [_mm512_setzero_ps(); 2];
            for (i, x) in x.iter_mut().enumerate() {
                *x = _mm512_castps128_ps512(row(i));
                *x = _mm512_insertf32x4::<1>(*x, row(2 + i));
                *x = _mm512_insertf32x4::<2>(*x, row(4 + i));
                *x = _mm512_insertf32x4::<3>(*x, row(6 + i));
            }
            let [a, b] = x.map(|x| _mm512_castps_pd(x));
            [F64(_mm512_unpacklo_pd(a, b)), F64(_mm512_unpackhi_pd(a, b))]
        });
        op!(store_pair(columns: [Self; PAIR], dst: Output<'_, f64>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 8, stride, PAIR);
            let [a, b] = columns.map(|x| x.0);
            let x = [_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b)];
            let mut row = start;
            for i in 0..8 {
                let x = _mm512_castpd_ps(x[i % 2]);
                let numbers = match i / 2 {
                    0 => _mm512_castps512_ps128(x),
                    1 => _mm512_extractf32x4_ps::<1>(x),
                    2 => _mm512_extractf32x4_ps::<2>(x),
                    _ => _mm512_extractf32x4_ps::<3>(x),
                };
                _mm_storeu_pd(row, _mm_castps_pd(numbers));
                row = row.wrapping_add(stride);
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
