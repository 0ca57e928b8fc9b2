//! Vectors of one shape at every level. A level is an instruction set.
//!
//! A vector holds 512 bits of numbers at *every* level: sixteen `f32` or eight `f64`, in one
//! register (AVX-512), two (AVX2), four (NEON) or an array (portable). A kernel is written once against
//! [`Vector`]. So lanes, block boundaries and the order of additions are the same at every level. The bits of
//! the results are too, among the levels with fused multiply-add.
//!
//! The level is chosen once a process ([`crate::parallel::process`]). [`enter`] calls the level's function
//! with its `#[target_feature]`s, which evaluates the kernel. A function that a kernel calls gets these features only
//! if it is inlined. So everything that a kernel calls is `#[inline(always)]`, and no closure holds intrinsics
//! (tests/test_vectors.py).
//!
//! A [`Simd`] token proves that the level's instructions exist. Only detection makes a token, and a vector is only
//! made with one. So kernels are safe code. All unsafe code is in this folder, in `python/` and in `parallel/`.

mod half;
mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub mod slices;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::fmt::Debug;

pub use half::Half;
pub(crate) use memory::free_surplus;
pub use memory::{AHEAD, Input, Output, Scratch, copy, zeros};

/// The most lanes a vector has: those of `f32`.
pub const MAX_LANES: usize = 16;

/// How many columns are transposed at a time,
pub const COLUMNS: usize = 8;
/// where fewer are left,
pub const HALF: usize = COLUMNS / 2;
/// and where one or two are left.
pub const PAIR: usize = 2;

/// A token that proves that a level's instructions exist on this machine.
pub trait Simd: Copy + Send + Sync + 'static {
    /// How many exponentials of a row are taken together, the first step of all before the second of any.
    ///
    /// An exponential is one long chain of dependent instructions. Meanwhile a processor executes other
    /// instructions, but only those of its next few hundred. Where a vector is several registers, these are one or
    /// two exponentials. With two shorter chains, each over several vectors, fewer units are idle.
    const TOGETHER: usize = 1;
    /// Whether a kernel is compiled a second time without a step that some calls do not need. Not at a level where
    /// size counts more than speed.
    const SPECIALIZED: bool = true;
    /// Whether there are processors that take hundreds of cycles for an instruction with a subnormal number
    /// ([`gradual`](crate::math::gradual)). Not at a level where kernels do without a remedy.
    const SLOW_SUBNORMALS: bool = false;
    /// Whether an instruction may leave lanes 0 at no cost, and what these lanes would be costs nothing either.
    const MASKS: bool = false;
    /// Sixteen `f32`.
    type V32: Vector<Self, f32>;
    /// Eight `f64`.
    type V64: Vector<Self, f64>;
    /// Evaluates a function, or a kernel, as a function of its own, not inlined. Loops in one function compete for its
    /// registers, and a function that is called in many places is compiled once.
    fn apart<F: Function<Self>>(self, function: F) -> F::Output;
    /// Evaluates a function of vectors. It is inlined where vectors are registers. Where they are arrays it is called:
    /// a call costs little beside the function, and every copy of its code is long.
    #[inline(always)]
    fn function<F: Function<Self>>(self, function: F) -> F::Output {
        function.call(self)
    }
}

/// No other type is a [`Float`]. Any bits are a number of these types, so a buffer may be read whatever it holds.
mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}
use sealed::Sealed;

/// The type of logits: `f32` or `f64`.
pub trait Float: Copy + Send + Sync + PartialOrd + Debug + Default + Sealed + 'static {
    /// The vector of such numbers at a level.
    type V<S: Simd>: Vector<S, Self>;
    /// The lanes of a vector, as an array.
    type Lanes: Copy + AsRef<[Self]> + AsMut<[Self]>;

    /// Numbers in a vector.
    const LANES: usize;
    /// `f64` vectors that hold the lanes of one vector.
    const WIDE: usize;
    /// Whether rows of half precision are computed in this type.
    const OF_HALVES: bool = Self::WIDE == 2;
    /// All lanes, one bit each.
    const ALL: u32 = (1 << Self::LANES) - 1;

    /// The nearest number of this type.
    fn from_f64(x: f64) -> Self;
    /// The nearest number of this type.
    fn from_i32(x: i32) -> Self;
    /// The same number (exact).
    fn to_f64(self) -> f64;
    /// The number that has these bits (the low ones, for `f32`).
    fn from_bits(bits: u64) -> Self;
    /// The bits of this number.
    fn to_bits(self) -> u64;
}

impl Float for f32 {
    type V<S: Simd> = S::V32;
    type Lanes = [f32; 16];
    const LANES: usize = 16;
    const WIDE: usize = 2;

    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn from_i32(x: i32) -> Self {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        f32::from_bits(bits as u32)
    }
    #[inline(always)]
    fn to_bits(self) -> u64 {
        u64::from(f32::to_bits(self))
    }
}

impl Float for f64 {
    type V<S: Simd> = S::V64;
    type Lanes = [f64; 8];
    const LANES: usize = 8;
    const WIDE: usize = 1;

    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn from_i32(x: i32) -> Self {
        x.into()
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        f64::from_bits(bits)
    }
    #[inline(always)]
    fn to_bits(self) -> u64 {
        f64::to_bits(self)
    }
}

/// A vector of `T::LANES` numbers. A set of lanes is a `u32`, lane `i` its bit `i`.
pub trait Vector<S: Simd, T: Float>: Copy {
    /// The outcome of a comparison.
    type Mask: Copy;

    /// Every lane `x`.
    fn splat(s: S, x: T) -> Self;
    /// A vector for each number.
    #[inline(always)]
    fn splat_each<const N: usize>(s: S, numbers: [T; N]) -> [Self; N] {
        let mut vectors = [Self::splat(s, T::default()); N];
        for (vector, number) in vectors.iter_mut().zip(numbers) {
            *vector = Self::splat(s, number);
        }
        vectors
    }
    /// The lanes of an array.
    fn from_lanes(s: S, lanes: T::Lanes) -> Self;
    /// The lanes as an array.
    fn to_lanes(self) -> T::Lanes;

    /// `src[at..]`; panics past its end.
    fn load(s: S, src: Input<'_, T>, at: usize) -> Self;
    /// The lanes `lanes` of `src[at..]`, `fill` elsewhere; what is not loaded is not read. Panics if
    /// the last of `lanes` is past the end.
    fn load_lanes(s: S, src: Input<'_, T>, at: usize, lanes: u32, fill: Self) -> Self;
    /// `src[at..]` as numbers from 0 to 255; panics past its end.
    fn load_bytes(s: S, src: Input<'_, u8>, at: usize) -> Self;
    /// Writes to `dst[at..]`; panics past its end.
    fn store(self, dst: Output<'_, T>, at: usize);
    /// Writes the lanes `lanes` to `dst[at..]`; panics if the last of them is past the end.
    fn store_lanes(self, dst: Output<'_, T>, at: usize, lanes: u32);
    /// `src[at..]`, converted from half precision; panics past its end.
    fn from_halves(s: S, half: Half, src: Input<'_, u16>, at: usize) -> Self;
    /// Rounds to half precision, `float64` by way of `float32`, and writes to `dst[at..]`; panics past its end.
    fn to_halves(self, half: Half, dst: Output<'_, u16>, at: usize);
    /// Like `to_halves`, by a non-temporal store where the level has one and `dst[at]` is aligned to the vector.
    fn stream_halves(self, half: Half, dst: Output<'_, u16>, at: usize);
    /// `to_halves` of two vectors, or `stream_halves` if `stream`: in one store where the level has one as wide.
    #[inline(always)]
    fn pair_to_halves(pair: [Self; 2], half: Half, dst: Output<'_, u16>, at: usize, stream: bool) {
        for (i, x) in pair.into_iter().enumerate() {
            if stream {
                x.stream_halves(half, dst, at + i * T::LANES);
            } else {
                x.to_halves(half, dst, at + i * T::LANES);
            }
        }
    }
    /// Like `store`, by a non-temporal store where the level has one and `dst[at]` is aligned to 64 bytes.
    /// [`fence`] makes such writes visible to other threads.
    fn stream(self, dst: Output<'_, T>, at: usize);

    /// `self + other`
    fn add(self, other: Self) -> Self;
    /// `self - other`
    fn sub(self, other: Self) -> Self;
    /// `self * other`
    fn mul(self, other: Self) -> Self;
    /// `self / other`
    fn div(self, other: Self) -> Self;
    /// `self * b + c`, rounded once where the level has fused multiply-add, else twice.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self * b + c` as if rounded once at every level, where `self * b` nearly cancels `c`.
    fn fma(self, b: Self, c: Self) -> Self;
    /// The greater; `other` if either is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller; `other` if either is NaN.
    fn min(self, other: Self) -> Self;
    /// `|self|`
    fn abs(self) -> Self;

    /// The sum of the lanes' bits as integers, wrapping.
    fn bits_add(self, other: Self) -> Self;
    /// The difference of the lanes' bits as integers, wrapping.
    fn bits_sub(self, other: Self) -> Self;
    /// The lanes' bits shifted left (by a constant).
    fn bits_shl(self, k: u32) -> Self;
    /// The lanes' bits shifted right (by a constant), zeros shifted in.
    fn bits_shr(self, k: u32) -> Self;
    /// The bits that both have.
    fn bits_and(self, other: Self) -> Self;
    /// The bits that either has.
    fn bits_or(self, other: Self) -> Self;
    /// Lane `i` of the result is the lane of `self` that the low bits of `index`'s lane `i` name.
    fn permute(self, index: Self) -> Self;

    /// `self < other`
    fn lt(self, other: Self) -> Self::Mask;
    /// Not `self < other`: true of NaN.
    fn not_lt(self, other: Self) -> Self::Mask;
    /// `self == other`
    fn eq(self, other: Self) -> Self::Mask;
    /// The mask of a set of lanes.
    fn mask(s: S, lanes: u32) -> Self::Mask;
    /// The set of lanes of a mask.
    fn lanes(mask: Self::Mask) -> u32;
    /// `a` where the mask is set, `b` elsewhere.
    fn select(mask: Self::Mask, a: Self, b: Self) -> Self;
    /// The lanes where the mask is set, 0 elsewhere.
    #[inline(always)]
    fn keep(self, s: S, mask: Self::Mask) -> Self {
        Self::select(mask, self, Self::splat(s, T::default()))
    }
    /// 0 where the mask is set, the other lanes as they are.
    #[inline(always)]
    fn clear(self, s: S, mask: Self::Mask) -> Self {
        Self::select(mask, Self::splat(s, T::default()), self)
    }

    /// The `part`-th `T::WIDE`-th of the lanes, as `f64`.
    fn wide(self, part: usize) -> S::V64;
    /// Eight columns of `T::LANES` rows, transposed: lane `i` of vector `j` is
    /// `src[at + i * stride + j]`. Panics past the view's end.
    fn load_columns(s: S, src: Input<'_, T>, at: usize, stride: usize) -> [Self; COLUMNS];
    /// Undoes `load_columns`, rows first to last: with a stride below [`COLUMNS`] a row begins over the
    /// end of the one before it.
    fn store_columns(columns: [Self; COLUMNS], dst: Output<'_, T>, at: usize, stride: usize);
    /// `load_columns` of [`HALF`] the columns.
    fn load_half(s: S, src: Input<'_, T>, at: usize, stride: usize) -> [Self; HALF];
    /// Undoes `load_half`, as `store_columns` does.
    fn store_half(columns: [Self; HALF], dst: Output<'_, T>, at: usize, stride: usize);
    /// `load_columns` of two columns.
    fn load_pair(s: S, src: Input<'_, T>, at: usize, stride: usize) -> [Self; PAIR];
    /// Undoes `load_pair`, as `store_columns` does.
    fn store_pair(columns: [Self; PAIR], dst: Output<'_, T>, at: usize, stride: usize);
    /// The nearest numbers to those of `T::WIDE` parts: undoes `wide`.
    fn narrow(parts: [S::V64; 2]) -> Self;
}

/// The sum of the lanes: adds the upper half to the lower half until one lane is left. All levels add in this order.
#[inline(always)]
pub fn fold<const N: usize>(mut lanes: [f64; N]) -> f64 {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Orders the non-temporal stores of this thread before all that it stores later.
#[inline(always)]
pub fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE, of which `sfence` is a part, belongs to every x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    }
}

/// A computation with vectors, at any level.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Computes it. Must be `#[inline(always)]`, and so must everything that it calls.
    fn eval<S: Simd>(self, s: S) -> Self::Output;
}

/// A computation with the vectors of one level.
pub trait Function<S: Simd> {
    /// What it returns.
    type Output;
    /// Computes it. Must be `#[inline(always)]`, and so must everything that it calls.
    fn call(self, s: S) -> Self::Output;
}

impl<S: Simd, K: Kernel> Function<S> for K {
    type Output = K::Output;
    #[inline(always)]
    fn call(self, s: S) -> K::Output {
        self.eval(s)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level(Isa);

/// The variable that forces a level.
pub const LEVEL_VARIABLE: &str = "XENTRS_SIMD";

/// Names of all levels, best first.
const NAMES: [&str; 4] = ["avx512", "avx2", "neon", "portable"];

impl Level {
    /// The levels of this machine, best first.
    pub fn available() -> Vec<Level> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if cfg!(not(xentrs_without = "avx512")) && avx512::Avx512::detect().is_some() {
                levels.push(Level(Isa::Avx512));
            }
            if cfg!(not(xentrs_without = "avx2")) && avx2::Avx2::detect().is_some() {
                levels.push(Level(Isa::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if cfg!(not(xentrs_without = "neon")) && neon::Neon::detect().is_some() {
            levels.push(Level(Isa::Neon));
        }
        if cfg!(not(xentrs_without = "portable")) {
            levels.push(Level(Isa::Portable));
        }
        levels
    }

    /// Whether kernels are compiled in several ways for speed: [`Simd::SPECIALIZED`].
    pub fn is_specialized(self) -> bool {
        self.0 != Isa::Portable
    }

    /// The name that [`LEVEL_VARIABLE`] gives it.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
            Isa::Portable => "portable",
        }
    }

    /// The level of this name, or the best there is where the name is empty; an unknown or unavailable
    /// name is an error that names [`LEVEL_VARIABLE`].
    pub fn named(name: &str) -> Result<Level, String> {
        let levels = Level::available();
        if name.is_empty() {
            return Ok(levels[0]);
        }
        levels.iter().find(|level| level.name() == name).copied().ok_or_else(|| {
            let known = NAMES.contains(&name);
            let what = if known { "not available on this CPU" } else { "unknown" };
            let names: Vec<_> = levels.iter().map(|level| level.name()).collect();
            format!("{LEVEL_VARIABLE}={name:?} is {what}; available: {}", names.join(", "))
        })
    }
}

/// Evaluates a kernel at a level.
///
/// To compile faster while kernels are edited, levels can be left out of a build:
/// `RUSTFLAGS='--cfg xentrs_without="avx2" --cfg xentrs_without="portable"'`.
pub fn enter<K: Kernel>(level: Level, kernel: K) -> K::Output {
    match level.0 {
        #[cfg(all(target_arch = "x86_64", not(xentrs_without = "avx512")))]
        // SAFETY: a `Level` is only made where its token was detected.
        Isa::Avx512 => unsafe { avx512::with_features(kernel) },
        #[cfg(all(target_arch = "x86_64", not(xentrs_without = "avx2")))]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2::with_features(kernel) },
        #[cfg(all(target_arch = "aarch64", not(xentrs_without = "neon")))]
        // SAFETY: as above.
        Isa::Neon => unsafe { neon::with_features(kernel) },
        #[cfg(not(xentrs_without = "portable"))]
        Isa::Portable => portable::Portable.apart(kernel),
        #[cfg(any(
            xentrs_without = "avx512",
            xentrs_without = "avx2",
            xentrs_without = "neon",
            xentrs_without = "portable"
        ))]
        #[allow(unreachable_patterns, reason = "levels of another architecture")]
        left_out => unreachable!("{left_out:?} was left out of this build"),
    }
}

#[cfg(test)]
mod tests;
