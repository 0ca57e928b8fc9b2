//! The level for every other CPU: vectors are arrays, and the compiler chooses the instructions.

use super::{COLUMNS, Float, Function, HALF, Half, Input, Output, PAIR, Simd, Vector};

/// The portable level.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

impl Simd for Portable {
    type V32 = Array<f32, 16>;
    type V64 = Array<f64, 8>;
    const SPECIALIZED: bool = false;

    #[inline(never)]
    fn apart<F: Function<Self>>(self, function: F) -> F::Output {
        function.call(self)
    }

    #[inline(never)]
    fn function<F: Function<Self>>(self, function: F) -> F::Output {
        function.call(self)
    }
}

/// Lanes in an array.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Array<T, const N: usize>([T; N]);

/// `a * b + c` as if rounded once, also where `a * b` nearly cancels `c`, for targets without the instruction. For `f32` it
/// is computed in `f64`. For `f64` it takes Dekker's exact product (1971) and Knuth's two-sum, and rounds twice.
trait Fused {
    fn fused(self, b: Self, c: Self) -> Self;
}

impl Fused for f32 {
    #[inline(always)]
    fn fused(self, b: f32, c: f32) -> f32 {
        (f64::from(self) * f64::from(b) + f64::from(c)) as f32
    }
}

impl Fused for f64 {
    #[inline(always)]
    fn fused(self, b: f64, c: f64) -> f64 {
        const SPLITTER: f64 = (1u64 << 27) as f64 + 1.0;
        #[inline(always)]
        fn halves(x: f64) -> (f64, f64) {
            let big = SPLITTER * x;
            let high = big - (big - x);
            (high, x - high)
        }
        let product = self * b;
        let ((a1, a0), (b1, b0)) = (halves(self), halves(b));
        let error = ((a1 * b1 - product) + a1 * b0 + a0 * b1) + a0 * b0;
        let sum = product + c;
        let part = sum - product;
        let whole = sum + (((product - (sum - part)) + (c - part)) + error);
        if sum.is_finite() { whole } else { sum }
    }
}

/// Only ones where a condition holds, else zeros.
macro_rules! ones {
    ($bits:ident, $condition:expr) => {
        if $condition { $bits::MAX } else { 0 }
    };
}

macro_rules! array {
    ($t:ident, $lanes:literal, $bits:ident) => {
        impl Array<$t, $lanes> {
            #[inline(always)]
            fn of_bits(self, other: Self, f: impl Fn($bits, $bits) -> $bits) -> Self {
                self.zip(other, |a, b| $t::from_bits(f(a.to_bits(), b.to_bits())))
            }

            #[inline(always)]
            fn zip(self, other: Self, f: impl Fn($t, $t) -> $t) -> Self {
                Array(std::array::from_fn(|i| f(self.0[i], other.0[i])))
            }
        }

        impl Vector<Portable, $t> for Array<$t, $lanes> {
            // Lanes of only ones, or only zeros: how processors compare.
            type Mask = [$bits; $lanes];

            #[inline(always)]
            fn splat(_: Portable, x: $t) -> Self {
                Array([x; $lanes])
            }
            #[inline(always)]
            fn from_lanes(_: Portable, lanes: [$t; $lanes]) -> Self {
                Array(lanes)
            }
            #[inline(always)]
            fn to_lanes(self) -> [$t; $lanes] {
                self.0
            }

            #[inline(always)]
            fn load(_: Portable, src: Input<'_, $t>, at: usize) -> Self {
                // SAFETY: the pointer is to that many numbers.
                Array(unsafe { src.pointer(at, $lanes).cast::<[$t; $lanes]>().read() })
            }
            #[inline(never)]
            fn load_lanes(
                _: Portable,
                src: Input<'_, $t>,
                at: usize,
                lanes: u32,
                fill: Self,
            ) -> Self {
                let mut result = fill;
                for i in 0..$lanes {
                    if lanes >> i & 1 != 0 {
                        result.0[i] = src.get(at + i);
                    }
                }
                result
            }
            #[inline(always)]
            fn load_bytes(_: Portable, src: Input<'_, u8>, at: usize) -> Self {
                let src = src.part(at, $lanes);
                Array(std::array::from_fn(|i| $t::from(src.get(i))))
            }
            #[inline(always)]
            fn store(self, dst: Output<'_, $t>, at: usize) {
                // SAFETY: the pointer is to that many numbers.
                unsafe { dst.pointer(at, $lanes).cast::<[$t; $lanes]>().write(self.0) }
            }
            #[inline(never)]
            fn store_lanes(self, dst: Output<'_, $t>, at: usize, lanes: u32) {
                for i in 0..$lanes {
                    if lanes >> i & 1 != 0 {
                        dst.set(at + i, self.0[i]);
                    }
                }
            }
            #[inline(never)]
            fn from_halves(_: Portable, half: Half, src: Input<'_, u16>, at: usize) -> Self {
                let src = src.part(at, $lanes);
                Array(std::array::from_fn(|i| half.widen(src.get(i)).into()))
            }
            #[inline(never)]
            fn to_halves(self, half: Half, dst: Output<'_, u16>, at: usize) {
                let dst = dst.part(at, $lanes);
                for i in 0..$lanes {
                    dst.set(i, half.round(self.0[i] as f32));
                }
            }
            #[inline(always)]
            fn stream_halves(self, half: Half, dst: Output<'_, u16>, at: usize) {
                self.to_halves(half, dst, at);
            }
            #[inline(always)]
            fn stream(self, dst: Output<'_, $t>, at: usize) {
                self.store(dst, at);
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.zip(other, |a, b| a + b)
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self.zip(other, |a, b| a - b)
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                self.zip(other, |a, b| a * b)
            }
            #[inline(always)]
            fn div(self, other: Self) -> Self {
                self.zip(other, |a, b| a / b)
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                self.mul(b).add(c)
            }
            // Long beside the cost of a call, and in every polynomial.
            #[inline(never)]
            fn fma(self, b: Self, c: Self) -> Self {
                Array(std::array::from_fn(|i| self.0[i].fused(b.0[i], c.0[i])))
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                self.zip(other, |a, b| if a > b { a } else { b })
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                self.zip(other, |a, b| if a < b { a } else { b })
            }
            #[inline(always)]
            fn abs(self) -> Self {
                Array(self.0.map($t::abs))
            }

            #[inline(always)]
            fn bits_add(self, other: Self) -> Self {
                self.of_bits(other, $bits::wrapping_add)
            }
            #[inline(always)]
            fn bits_sub(self, other: Self) -> Self {
                self.of_bits(other, $bits::wrapping_sub)
            }
            #[inline(always)]
            fn bits_shl(self, k: u32) -> Self {
                self.of_bits(self, |a, _| a << k)
            }
            #[inline(always)]
            fn bits_shr(self, k: u32) -> Self {
                self.of_bits(self, |a, _| a >> k)
            }
            #[inline(always)]
            fn bits_and(self, other: Self) -> Self {
                self.of_bits(other, |a, b| a & b)
            }
            #[inline(always)]
            fn bits_or(self, other: Self) -> Self {
                self.of_bits(other, |a, b| a | b)
            }
            #[inline(never)]
            fn permute(self, index: Self) -> Self {
                let lane = |i: usize| self.0[index.0[i].to_bits() as usize % $lanes];
                Array(std::array::from_fn(lane))
            }

            #[inline(always)]
            fn lt(self, other: Self) -> [$bits; $lanes] {
                std::array::from_fn(|i| ones!($bits, self.0[i] < other.0[i]))
            }
            #[inline(always)]
            #[allow(clippy::neg_cmp_op_on_partial_ord, reason = "true of NaN")]
            fn not_lt(self, other: Self) -> [$bits; $lanes] {
                std::array::from_fn(|i| ones!($bits, !(self.0[i] < other.0[i])))
            }
            #[inline(always)]
            fn eq(self, other: Self) -> [$bits; $lanes] {
                std::array::from_fn(|i| ones!($bits, self.0[i] == other.0[i]))
            }
            #[inline(always)]
            fn mask(_: Portable, lanes: u32) -> [$bits; $lanes] {
                std::array::from_fn(|i| ones!($bits, lanes >> i & 1 != 0))
            }
            #[inline(never)]
            fn lanes(mask: [$bits; $lanes]) -> u32 {
                (0..$lanes).fold(0, |lanes, i| lanes | u32::from(mask[i] != 0) << i)
            }
            #[inline(always)]
            fn select(mask: [$bits; $lanes], a: Self, b: Self) -> Self {
                let lane = |i: usize| a.0[i].to_bits() & mask[i] | b.0[i].to_bits() & !mask[i];
                Array(std::array::from_fn(|i| $t::from_bits(lane(i))))
            }

            #[inline(always)]
            fn wide(self, part: usize) -> Array<f64, 8> {
                Array(std::array::from_fn(|i| self.0[part * 8 + i].to_f64()))
            }
            #[inline(never)]
            fn load_columns(
                _: Portable,
                src: Input<'_, $t>,
                at: usize,
                stride: usize,
            ) -> [Self; COLUMNS] {
                columns(src, at, stride)
            }
            #[inline(never)]
            fn store_columns(
                columns: [Self; COLUMNS],
                dst: Output<'_, $t>,
                at: usize,
                stride: usize,
            ) {
                store(columns, dst, at, stride);
            }
            #[inline(never)]
            fn load_half(
                _: Portable,
                src: Input<'_, $t>,
                at: usize,
                stride: usize,
            ) -> [Self; HALF] {
                columns(src, at, stride)
            }
            #[inline(never)]
            fn store_half(columns: [Self; HALF], dst: Output<'_, $t>, at: usize, stride: usize) {
                store(columns, dst, at, stride);
            }
            #[inline(never)]
            fn load_pair(
                _: Portable,
                src: Input<'_, $t>,
                at: usize,
                stride: usize,
            ) -> [Self; PAIR] {
                columns(src, at, stride)
            }
            #[inline(never)]
            fn store_pair(columns: [Self; PAIR], dst: Output<'_, $t>, at: usize, stride: usize) {
                store(columns, dst, at, stride);
            }
            #[inline(always)]
            fn narrow(parts: [Array<f64, 8>; 2]) -> Self {
                Array(std::array::from_fn(|i| $t::from_f64(parts[i / 8].0[i % 8])))
            }
        }
    };
}

/// `N` columns of as many rows as lanes.
#[inline(always)]
fn columns<T: Copy, const LANES: usize, const N: usize>(
    src: Input<'_, T>,
    at: usize,
    stride: usize,
) -> [Array<T, LANES>; N] {
    let src = src.part(at, (LANES - 1) * stride + N);
    std::array::from_fn(|j| Array(std::array::from_fn(|i| src.get(i * stride + j))))
}

/// Undoes [`columns`].
#[inline(always)]
fn store<T: Copy, const LANES: usize, const N: usize>(
    columns: [Array<T, LANES>; N],
    dst: Output<'_, T>,
    at: usize,
    stride: usize,
) {
    let dst = dst.part(at, (LANES - 1) * stride + N);
    for i in 0..LANES {
        for (j, column) in columns.iter().enumerate() {
            dst.set(i * stride + j, column.0[i]);
        }
    }
}

array!(f32, 16, u32);
array!(f64, 8, u64);
