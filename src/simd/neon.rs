//! NEON with fused multiply-add, which every 64-bit Arm processor has: a vector is four registers, a mask four as
//! well.

use std::arch::aarch64::*;
use std::arch::asm;

use super::half::Half;
use super::{COLUMNS, Function, HALF, Input, Output, PAIR, Simd, Vector};

/// Proof that NEON exists.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

/// Evaluates a kernel with the features of this level.
///
/// # Safety
/// [`Neon::detect`] has found them.
#[target_feature(enable = "neon")]
#[inline(never)]
pub unsafe fn with_features<F: Function<Neon>>(function: F) -> F::Output {
    function.call(Neon(()))
}

impl Simd for Neon {
    type V32 = F32;
    type V64 = F64;

    const TOGETHER: usize = 4;

    #[inline(always)]
    fn apart<F: Function<Self>>(self, function: F) -> F::Output {
        // SAFETY: the token in hand proves that the features exist.
        unsafe { with_features(function) }
    }
}

/// Registers of a vector.
const REGISTERS: usize = 4;

/// Sixteen `f32`.
#[derive(Clone, Copy, Debug)]
pub struct F32([float32x4_t; REGISTERS]);

/// Eight `f64`.
#[derive(Clone, Copy, Debug)]
pub struct F64([float64x2_t; REGISTERS]);

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

/// An array of what an expression is at each register `i`. Not a closure: it might not be inlined.
macro_rules! each {
    ($i:ident => $body:expr) => {{
        [
            {
                const $i: usize = 0;
                $body
            },
            {
                const $i: usize = 1;
                $body
            },
            {
                const $i: usize = 2;
                $body
            },
            {
                const $i: usize = 3;
                $body
            },
        ]
    }};
}

/// Four registers of four numbers, transposed.
#[inline(always)]
unsafe fn transpose_f32([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: the caller holds vectors of this level.
    unsafe {
        let (x, y) = (vtrn1q_f32(a, b), vtrn2q_f32(a, b));
        let (z, w) = (vtrn1q_f32(c, d), vtrn2q_f32(c, d));
        let [x, y, z, w] = [x, y, z, w].map(|v| vreinterpretq_f64_f32(v));
        [vtrn1q_f64(x, z), vtrn1q_f64(y, w), vtrn2q_f64(x, z), vtrn2q_f64(y, w)]
            .map(|v| vreinterpretq_f32_f64(v))
    }
}

/// Looks up numbers of `1 << SHIFT` bytes in a table of 64 bytes. `index` names them by the lowest bits of its numbers.
/// `lowest` is where the lowest byte of each number lies in a register, `byte` which byte of its number each one is.
#[inline(always)]
unsafe fn permute<const SHIFT: i32>(
    table: uint8x16x4_t,
    index: uint8x16_t,
    lowest: [u8; 16],
    byte: [u8; 16],
) -> uint8x16_t {
    // SAFETY: the caller holds vectors of this level.
    unsafe {
        let number = vqtbl1q_u8(index, vld1q_u8(lowest.as_ptr()));
        let start = vandq_u8(vshlq_n_u8::<SHIFT>(number), vdupq_n_u8(64 - (1 << SHIFT)));
        vqtbl4q_u8(table, vaddq_u8(start, vld1q_u8(byte.as_ptr())))
    }
}

/// [`Half::widen`] of four numbers.
#[inline(always)]
unsafe fn widen(half: Half, bits: uint16x4_t) -> float32x4_t {
    // SAFETY: the caller holds vectors of this level; the instruction touches these registers alone.
    unsafe {
        match half {
            Half::Brain => vreinterpretq_f32_u32(vshll_n_u16::<16>(bits)),
            Half::Binary16 => {
                let wide;
                asm!(
                    "fcvtl {wide:v}.4s, {bits:v}.4h",
                    wide = lateout(vreg) wide,
                    bits = in(vreg) bits,
                    options(pure, nomem, nostack, preserves_flags),
                );
                wide
            }
        }
    }
}

/// [`Half::round`] of four numbers.
#[inline(always)]
unsafe fn round(half: Half, x: float32x4_t) -> uint16x4_t {
    // SAFETY: the caller holds vectors of this level; the instruction touches these registers alone.
    unsafe {
        match half {
            Half::Brain => {
                let bits = vreinterpretq_u32_f32(x);
                let upper = vshrq_n_u32::<16>(bits);
                let even = vandq_u32(upper, vdupq_n_u32(1));
                let rounding = vaddq_u32(even, vdupq_n_u32(0x7fff));
                let rounded = vshrq_n_u32::<16>(vaddq_u32(bits, rounding));
                let nan = vorrq_u32(upper, vdupq_n_u32(0x40));
                vmovn_u32(vbslq_u32(vceqq_f32(x, x), rounded, nan))
            }
            Half::Binary16 => {
                let bits;
                asm!(
                    "fcvtn {bits:v}.4h, {x:v}.4s",
                    bits = lateout(vreg) bits,
                    x = in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags),
                );
                bits
            }
        }
    }
}

macro_rules! vector {
    ($v:ident, $t:ident, $lanes:literal, $register:ident, $mask:ident, $bits:ident, $signed:ident,
     $to_bits:ident, $of_bits:ident, $to_bytes:ident, $of_bytes:ident, $dup:ident, $load:ident, $store:ident,
     $add:ident, $sub:ident, $mul:ident, $div:ident, $fma:ident, $abs:ident, $select:ident,
     $greater:ident, $equal:ident, $bits_add:ident, $bits_sub:ident, $bits_shl:ident, $dup_signed:ident,
     $and:ident, $or:ident, $xor:ident, $clear:ident, $test:ident, $bits_dup:ident, $bits_load:ident,
     $sum_across:ident, $shift:literal, $lowest:expr, $byte:expr, { $($rest:item)* }) => {
        impl $v {
            /// Numbers in a register.
            const PART: usize = $lanes / REGISTERS;
            /// The bit of each lane.
            const OWN: [[$bits; $lanes / REGISTERS]; REGISTERS] = {
                let mut own = [[0; $lanes / REGISTERS]; REGISTERS];
                let mut i = 0;
                while i < $lanes {
                    own[i / ($lanes / REGISTERS)][i % ($lanes / REGISTERS)] = 1 << i;
                    i += 1;
                }
                own
            };
        }

        impl Vector<Neon, $t> for $v {
            type Mask = [$mask; REGISTERS];

            op!(splat(_s: Neon, x: $t) -> Self = $v([$dup(x); REGISTERS]));
            op!(from_lanes(_s: Neon, lanes: [$t; $lanes]) -> Self = {
                let start = lanes.as_ptr();
                $v(each!(I => $load(start.add(I * Self::PART))))
            });
            #[inline(always)]
            fn to_lanes(self) -> [$t; $lanes] {
                let mut lanes = [0.0; $lanes];
                let start = lanes.as_mut_ptr();
                // SAFETY: the array holds that many numbers.
                unsafe { each!(I => $store(start.add(I * Self::PART), self.0[I])) };
                lanes
            }

            // In the next five methods the pointer is to as many numbers as are accessed.
            op!(load(_s: Neon, src: Input<'_, $t>, at: usize) -> Self = {
                let start = src.pointer(at, $lanes);
                $v(each!(I => $load(start.add(I * Self::PART))))
            });
            // NEON has no load of some lanes.
            #[inline(never)]
            fn load_lanes(_: Neon, src: Input<'_, $t>, at: usize, lanes: u32, fill: Self) -> Self {
                let src = src.part(at, (u32::BITS - lanes.leading_zeros()) as usize);
                let mut result = fill.to_lanes();
                for (i, lane) in result.iter_mut().enumerate() {
                    if lanes >> i & 1 != 0 {
                        *lane = src.get(i);
                    }
                }
                Self::from_lanes(Neon(()), result)
            }
            op!(store(self: Self, dst: Output<'_, $t>, at: usize) -> () = {
                let start = dst.pointer(at, $lanes);
                each!(I => $store(start.add(I * Self::PART), self.0[I]));
            });
            #[inline(never)]
            fn store_lanes(self, dst: Output<'_, $t>, at: usize, lanes: u32) {
                let dst = dst.part(at, (u32::BITS - lanes.leading_zeros()) as usize);
                for (i, x) in self.to_lanes().into_iter().enumerate() {
                    if lanes >> i & 1 != 0 {
                        dst.set(i, x);
                    }
                }
            }
            #[inline(always)]
            fn load_columns(
                s: Neon,
                src: Input<'_, $t>,
                at: usize,
                stride: usize,
            ) -> [Self; COLUMNS] {
                let src = src.part(at, ($lanes - 1) * stride + COLUMNS);
                let [a, b, c, d] = Self::load_half(s, src, 0, stride);
                let [e, f, g, h] = Self::load_half(s, src, HALF, stride);
                [a, b, c, d, e, f, g, h]
            }
            #[inline(always)]
            fn stream(self, dst: Output<'_, $t>, at: usize) {
                self.store(dst, at);
            }
            #[inline(always)]
            fn stream_halves(self, half: Half, dst: Output<'_, u16>, at: usize) {
                self.to_halves(half, dst, at);
            }

            op!(add(self: Self, other: Self) -> Self = $v(each!(I => $add(self.0[I], other.0[I]))));
            op!(sub(self: Self, other: Self) -> Self = $v(each!(I => $sub(self.0[I], other.0[I]))));
            op!(mul(self: Self, other: Self) -> Self = $v(each!(I => $mul(self.0[I], other.0[I]))));
            op!(div(self: Self, other: Self) -> Self = $v(each!(I => $div(self.0[I], other.0[I]))));
            op!(mul_add(self: Self, b: Self, c: Self) -> Self =
                $v(each!(I => $fma(c.0[I], self.0[I], b.0[I]))));
            op!(fma(self: Self, b: Self, c: Self) -> Self =
                $v(each!(I => $fma(c.0[I], self.0[I], b.0[I]))));
            // Not the instructions of these names: they give NaN if either is NaN.
            op!(max(self: Self, other: Self) -> Self = $v(each!(I => {
                $select($greater(self.0[I], other.0[I]), self.0[I], other.0[I])
            })));
            op!(min(self: Self, other: Self) -> Self = $v(each!(I => {
                $select($greater(other.0[I], self.0[I]), self.0[I], other.0[I])
            })));
            op!(abs(self: Self) -> Self = $v(each!(I => $abs(self.0[I]))));

            op!(bits_add(self: Self, other: Self) -> Self = $v(each!(I => {
                $of_bits($bits_add($to_bits(self.0[I]), $to_bits(other.0[I])))
            })));
            op!(bits_sub(self: Self, other: Self) -> Self = $v(each!(I => {
                $of_bits($bits_sub($to_bits(self.0[I]), $to_bits(other.0[I])))
            })));
            op!(bits_and(self: Self, other: Self) -> Self = $v(each!(I => {
                $of_bits($and($to_bits(self.0[I]), $to_bits(other.0[I])))
            })));
            op!(bits_or(self: Self, other: Self) -> Self = $v(each!(I => {
                $of_bits($or($to_bits(self.0[I]), $to_bits(other.0[I])))
            })));
            // A constant count becomes an immediate operand.
            op!(bits_shl(self: Self, k: u32) -> Self = $v(each!(I => {
                $of_bits($bits_shl($to_bits(self.0[I]), $dup_signed(k as $signed)))
            })));
            op!(bits_shr(self: Self, k: u32) -> Self = $v(each!(I => {
                $of_bits($bits_shl($to_bits(self.0[I]), $dup_signed(-(k as $signed))))
            })));
            op!(permute(self: Self, index: Self) -> Self = {
                let table = uint8x16x4_t(
                    $to_bytes(self.0[0]),
                    $to_bytes(self.0[1]),
                    $to_bytes(self.0[2]),
                    $to_bytes(self.0[3]),
                );
                $v(each!(I => $of_bytes(permute::<$shift>(table, $to_bytes(index.0[I]), $lowest, $byte))))
            });

            op!(lt(self: Self, other: Self) -> Self::Mask =
                each!(I => $greater(other.0[I], self.0[I])));
            op!(not_lt(self: Self, other: Self) -> Self::Mask =
                each!(I => $xor($greater(other.0[I], self.0[I]), $bits_dup(!0))));
            op!(eq(self: Self, other: Self) -> Self::Mask = each!(I => $equal(self.0[I], other.0[I])));
            op!(mask(_s: Neon, lanes: u32) -> Self::Mask =
                each!(I => $test($bits_dup(lanes.into()), $bits_load(Self::OWN[I].as_ptr()))));
            op!(lanes(mask: Self::Mask) -> u32 = {
                let own = each!(I => $and(mask[I], $bits_load(Self::OWN[I].as_ptr())));
                $sum_across($or($or(own[0], own[1]), $or(own[2], own[3]))) as u32
            });
            op!(select(mask: Self::Mask, a: Self, b: Self) -> Self =
                $v(each!(I => $select(mask[I], a.0[I], b.0[I]))));
            op!(keep(self: Self, _s: Neon, mask: Self::Mask) -> Self =
                $v(each!(I => $of_bits($and($to_bits(self.0[I]), mask[I])))));
            op!(clear(self: Self, _s: Neon, mask: Self::Mask) -> Self =
                $v(each!(I => $of_bits($clear($to_bits(self.0[I]), mask[I])))));

            $($rest)*
        }
    };
}

vector!(
    F32,
    f32,
    16,
    float32x4_t,
    uint32x4_t,
    u32,
    i32,
    vreinterpretq_u32_f32,
    vreinterpretq_f32_u32,
    vreinterpretq_u8_f32,
    vreinterpretq_f32_u8,
    vdupq_n_f32,
    vld1q_f32,
    vst1q_f32,
    vaddq_f32,
    vsubq_f32,
    vmulq_f32,
    vdivq_f32,
    vfmaq_f32,
    vabsq_f32,
    vbslq_f32,
    vcgtq_f32,
    vceqq_f32,
    vaddq_u32,
    vsubq_u32,
    vshlq_u32,
    vdupq_n_s32,
    vandq_u32,
    vorrq_u32,
    veorq_u32,
    vbicq_u32,
    vtstq_u32,
    vdupq_n_u32,
    vld1q_u32,
    vaddvq_u32,
    2,
    [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12],
    [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3],
    {
        op!(from_halves(_s: Neon, half: Half, src: Input<'_, u16>, at: usize) -> Self = {
            let start = src.pointer(at, 16);
            F32(each!(I => widen(half, vld1_u16(start.add(4 * I)))))
        });
        op!(to_halves(self: Self, half: Half, dst: Output<'_, u16>, at: usize) -> () = {
            let start = dst.pointer(at, 16);
            each!(I => vst1_u16(start.add(4 * I), round(half, self.0[I])));
        });
        op!(load_bytes(_s: Neon, src: Input<'_, u8>, at: usize) -> Self = {
            let bytes = vld1q_u8(src.pointer(at, 16));
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            F32([
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                vcvtq_f32_u32(vmovl_high_u16(low)),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                vcvtq_f32_u32(vmovl_high_u16(high)),
            ])
        });
        op!(store_columns(columns: [Self; COLUMNS], dst: Output<'_, f32>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 16, stride, COLUMNS);
            let [a, b, c, d, e, f, g, h] = columns;
            for i in 0..4 {
                let low = transpose_f32([a.0[i], b.0[i], c.0[i], d.0[i]]);
                let high = transpose_f32([e.0[i], f.0[i], g.0[i], h.0[i]]);
                for j in 0..4 {
                    let row = start.add((4 * i + j) * stride);
                    vst1q_f32(row, low[j]);
                    vst1q_f32(row.add(4), high[j]);
                }
            }
        });
        op!(load_half(_s: Neon, src: Input<'_, f32>, at: usize, stride: usize) -> [Self; HALF] = {
            let (start, stride) = src.rows(at, 16, stride, HALF);
            let mut columns = [F32([vdupq_n_f32(0.0); REGISTERS]); HALF];
            for i in 0..4 {
                let row = start.add(4 * i * stride);
                let rows = [
                    vld1q_f32(row),
                    vld1q_f32(row.add(stride)),
                    vld1q_f32(row.add(2 * stride)),
                    vld1q_f32(row.add(3 * stride)),
                ];
                let parts = transpose_f32(rows);
                for j in 0..HALF {
                    columns[j].0[i] = parts[j];
                }
            }
            columns
        });
        op!(store_half(columns: [Self; HALF], dst: Output<'_, f32>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 16, stride, HALF);
            let [a, b, c, d] = columns;
            for i in 0..4 {
                let rows = transpose_f32([a.0[i], b.0[i], c.0[i], d.0[i]]);
                for (j, row) in rows.into_iter().enumerate() {
                    vst1q_f32(start.add((4 * i + j) * stride), row);
                }
            }
        });
        op!(load_pair(_s: Neon, src: Input<'_, f32>, at: usize, stride: usize) -> [Self; PAIR] = {
            let (start, stride) = src.rows(at, 16, stride, PAIR);
            let mut columns = [F32([vdupq_n_f32(0.0); REGISTERS]); PAIR];
            for i in 0..4 {
                let row = start.add(4 * i * stride);
                let low = vcombine_f32(vld1_f32(row), vld1_f32(row.add(stride)));
                let row = row.add(2 * stride);
                let high = vcombine_f32(vld1_f32(row), vld1_f32(row.add(stride)));
                columns[0].0[i] = vuzp1q_f32(low, high);
                columns[1].0[i] = vuzp2q_f32(low, high);
            }
            columns
        });
        op!(store_pair(columns: [Self; PAIR], dst: Output<'_, f32>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 16, stride, PAIR);
            let [a, b] = columns;
            for i in 0..4 {
                let rows = [vzip1q_f32(a.0[i], b.0[i]), vzip2q_f32(a.0[i], b.0[i])];
                for (j, pair) in rows.into_iter().enumerate() {
                    let row = start.add((4 * i + 2 * j) * stride);
                    vst1_f32(row, vget_low_f32(pair));
                    vst1_f32(row.add(stride), vget_high_f32(pair));
                }
            }
        });
        op!(narrow(parts: [F64; 2]) -> Self = {
            let [low, high] = parts;
            F32([
                vcvt_high_f32_f64(vcvt_f32_f64(low.0[0]), low.0[1]),
                vcvt_high_f32_f64(vcvt_f32_f64(low.0[2]), low.0[3]),
                vcvt_high_f32_f64(vcvt_f32_f64(high.0[0]), high.0[1]),
                vcvt_high_f32_f64(vcvt_f32_f64(high.0[2]), high.0[3]),
            ])
        });
        op!(wide(self: Self, part: usize) -> F64 = {
            let [low, high] = if part == 0 { [self.0[0], self.0[1]] } else { [self.0[2], self.0[3]] };
            F64([
                vcvt_f64_f32(vget_low_f32(low)),
                vcvt_high_f64_f32(low),
                vcvt_f64_f32(vget_low_f32(high)),
                vcvt_high_f64_f32(high),
            ])
        });
    }
);

vector!(
    F64,
    f64,
    8,
    float64x2_t,
    uint64x2_t,
    u64,
    i64,
    vreinterpretq_u64_f64,
    vreinterpretq_f64_u64,
    vreinterpretq_u8_f64,
    vreinterpretq_f64_u8,
    vdupq_n_f64,
    vld1q_f64,
    vst1q_f64,
    vaddq_f64,
    vsubq_f64,
    vmulq_f64,
    vdivq_f64,
    vfmaq_f64,
    vabsq_f64,
    vbslq_f64,
    vcgtq_f64,
    vceqq_f64,
    vaddq_u64,
    vsubq_u64,
    vshlq_u64,
    vdupq_n_s64,
    vandq_u64,
    vorrq_u64,
    veorq_u64,
    vbicq_u64,
    vtstq_u64,
    vdupq_n_u64,
    vld1q_u64,
    vaddvq_u64,
    3,
    [0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8],
    [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7],
    {
        op!(from_halves(_s: Neon, half: Half, src: Input<'_, u16>, at: usize) -> Self = {
            let start = src.pointer(at, 8);
            let low = widen(half, vld1_u16(start));
            let high = widen(half, vld1_u16(start.add(4)));
            F64([
                vcvt_f64_f32(vget_low_f32(low)),
                vcvt_high_f64_f32(low),
                vcvt_f64_f32(vget_low_f32(high)),
                vcvt_high_f64_f32(high),
            ])
        });
        op!(to_halves(self: Self, half: Half, dst: Output<'_, u16>, at: usize) -> () = {
            let start = dst.pointer(at, 8);
            let low = vcvt_high_f32_f64(vcvt_f32_f64(self.0[0]), self.0[1]);
            let high = vcvt_high_f32_f64(vcvt_f32_f64(self.0[2]), self.0[3]);
            vst1_u16(start, round(half, low));
            vst1_u16(start.add(4), round(half, high));
        });
        op!(load_bytes(_s: Neon, src: Input<'_, u8>, at: usize) -> Self = {
            let numbers = vmovl_u8(vld1_u8(src.pointer(at, 8)));
            let (low, high) = (vmovl_u16(vget_low_u16(numbers)), vmovl_high_u16(numbers));
            F64([
                vcvtq_f64_u64(vmovl_u32(vget_low_u32(low))),
                vcvtq_f64_u64(vmovl_high_u32(low)),
                vcvtq_f64_u64(vmovl_u32(vget_low_u32(high))),
                vcvtq_f64_u64(vmovl_high_u32(high)),
            ])
        });
        op!(store_columns(columns: [Self; COLUMNS], dst: Output<'_, f64>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 8, stride, COLUMNS);
            for i in 0..4 {
                // Rows first to last.
                for row in 0..2 {
                    let place = start.add((2 * i + row) * stride);
                    for j in 0..COLUMNS / 2 {
                        let (a, b) = (columns[2 * j].0[i], columns[2 * j + 1].0[i]);
                        let x = if row == 0 { vtrn1q_f64(a, b) } else { vtrn2q_f64(a, b) };
                        vst1q_f64(place.add(2 * j), x);
                    }
                }
            }
        });
        op!(load_half(s: Neon, src: Input<'_, f64>, at: usize, stride: usize) -> [Self; HALF] = {
            let src = src.part(at, 7 * stride + HALF);
            let [a, b] = Self::load_pair(s, src, 0, stride);
            let [c, d] = Self::load_pair(s, src, PAIR, stride);
            [a, b, c, d]
        });
        op!(store_half(columns: [Self; HALF], dst: Output<'_, f64>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 8, stride, HALF);
            let [a, b, c, d] = columns;
            for i in 0..4 {
                let row = start.add(2 * i * stride);
                vst1q_f64(row, vtrn1q_f64(a.0[i], b.0[i]));
                vst1q_f64(row.add(2), vtrn1q_f64(c.0[i], d.0[i]));
                let row = row.add(stride);
                vst1q_f64(row, vtrn2q_f64(a.0[i], b.0[i]));
                vst1q_f64(row.add(2), vtrn2q_f64(c.0[i], d.0[i]));
            }
        });
        op!(load_pair(_s: Neon, src: Input<'_, f64>, at: usize, stride: usize) -> [Self; PAIR] = {
            let (start, stride) = src.rows(at, 8, stride, PAIR);
            let mut columns = [F64([vdupq_n_f64(0.0); REGISTERS]); PAIR];
            for i in 0..4 {
                let row = start.add(2 * i * stride);
                let (x, y) = (vld1q_f64(row), vld1q_f64(row.add(stride)));
                columns[0].0[i] = vtrn1q_f64(x, y);
                columns[1].0[i] = vtrn2q_f64(x, y);
            }
            columns
        });
        op!(store_pair(columns: [Self; PAIR], dst: Output<'_, f64>, at: usize, stride: usize)
            -> () = {
            let (start, stride) = dst.rows(at, 8, stride, PAIR);
            let [a, b] = columns;
            for i in 0..4 {
                let row = start.add(2 * i * stride);
                vst1q_f64(row, vtrn1q_f64(a.0[i], b.0[i]));
                vst1q_f64(row.add(stride), vtrn2q_f64(a.0[i], b.0[i]));
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
