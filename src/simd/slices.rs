//! Vectors over slices of memory: loads of a tail, copies, the largest number.

use super::{Float, Input, Kernel, Output, Simd, Vector};

/// The largest number, NaN left out; -inf where there is none.
#[inline(always)]
pub fn maximum<S: Simd, T: Float>(s: S, x: Input<'_, T>) -> T {
    s.apart(Maximum(x))
}

struct Maximum<'a, T>(Input<'a, T>);

impl<T: Float> Kernel for Maximum<'_, T> {
    type Output = T;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> T {
        let Maximum(x) = self;
        let lowest = T::V::<S>::splat(s, T::from_f64(f64::NEG_INFINITY));
        let mut most = [lowest; 4];
        let mut at = 0;
        while at + 4 * T::LANES <= x.len() {
            for (i, most) in most.iter_mut().enumerate() {
                *most = T::V::<S>::load(s, x, at + i * T::LANES).max(*most);
            }
            at += 4 * T::LANES;
        }
        while at < x.len() {
            let lanes = lanes_from::<T>(x.len() - at);
            most[0] = T::V::<S>::load_lanes(s, x, at, lanes, lowest).max(most[0]);
            at += T::LANES;
        }
        largest_lane::<S, T>(most[0].max(most[1]).max(most[2].max(most[3])))
    }
}

/// The largest lane; no lane is NaN.
#[inline(always)]
pub fn largest_lane<S: Simd, T: Float>(x: T::V<S>) -> T {
    let mut lanes = x.to_lanes();
    let lanes = lanes.as_mut();
    let mut half = T::LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
        }
        half /= 2;
    }
    lanes[0]
}

/// The place of the first number equal to `value`, 0 if there is none.
#[inline(always)]
pub fn find<S: Simd, T: Float>(s: S, x: Input<'_, T>, value: T) -> usize {
    s.apart(Find(x, value))
}

struct Find<'a, T>(Input<'a, T>, T);

impl<T: Float> Kernel for Find<'_, T> {
    type Output = usize;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> usize {
        let Find(x, value) = self;
        let value = T::V::<S>::splat(s, value);
        let nan = T::V::<S>::splat(s, T::from_f64(f64::NAN));
        let mut at = 0;
        while at < x.len() {
            let loaded = T::V::<S>::load_lanes(s, x, at, lanes_from::<T>(x.len() - at), nan);
            let found = T::V::<S>::lanes(loaded.eq(value));
            if found != 0 {
                return at + found.trailing_zeros() as usize;
            }
            at += T::LANES;
        }
        0
    }
}

/// The place of the first NaN, or of the first of the largest numbers.
#[inline(always)]
pub fn argmax<S: Simd, T: Float>(s: S, x: Input<'_, T>) -> usize {
    s.apart(Argmax(x))
}

struct Argmax<'a, T>(Input<'a, T>);

impl<T: Float> Kernel for Argmax<'_, T> {
    type Output = usize;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> usize {
        let Argmax(x) = self;
        let lowest = T::V::<S>::splat(s, T::from_f64(f64::NEG_INFINITY));
        let (mut most, mut numbers) = (lowest, T::ALL);
        for at in (0..x.len()).step_by(T::LANES) {
            let loaded = T::V::<S>::load_lanes(s, x, at, lanes_from::<T>(x.len() - at), lowest);
            most = loaded.max(most);
            numbers &= T::V::<S>::lanes(loaded.eq(loaded));
        }
        if numbers != T::ALL {
            return (0..x.len()).find(|&i| x.get(i).to_f64().is_nan()).unwrap_or(0);
        }
        find(s, x, largest_lane::<S, T>(most))
    }
}

/// The first `n` lanes, or all.
#[inline(always)]
pub fn lanes_from<T: Float>(n: usize) -> u32 {
    if n >= T::LANES { T::ALL } else { (1 << n) - 1 }
}

/// Copies `src` to the start of `dst`, by non-temporal stores if `stream`.
#[inline(always)]
pub fn copy<S: Simd, T: Float>(s: S, src: Input<'_, T>, dst: Output<'_, T>, stream: bool) {
    let zero = T::V::<S>::splat(s, T::default());
    let head = if stream { dst.unaligned().min(src.len()) } else { 0 };
    if head > 0 {
        let lanes = lanes_from::<T>(head);
        T::V::<S>::load_lanes(s, src, 0, lanes, zero).store_lanes(dst, 0, lanes);
    }
    let mut at = head;
    while at + T::LANES <= src.len() {
        let x = T::V::<S>::load(s, src, at);
        if stream {
            x.stream(dst, at);
        } else {
            x.store(dst, at);
        }
        at += T::LANES;
    }
    if at < src.len() {
        let lanes = lanes_from::<T>(src.len() - at);
        T::V::<S>::load_lanes(s, src, at, lanes, zero).store_lanes(dst, at, lanes);
    }
}

/// Writes `x` everywhere, by non-temporal stores if `stream`.
#[inline(always)]
pub fn fill<S: Simd, T: Float>(s: S, dst: Output<'_, T>, x: T, stream: bool) {
    s.apart(Fill { dst, x, stream });
}

struct Fill<'a, T> {
    dst: Output<'a, T>,
    x: T,
    stream: bool,
}

impl<T: Float> Kernel for Fill<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let Fill { dst, x, stream } = self;
        let vector = T::V::<S>::splat(s, x);
        let head = if stream { dst.unaligned().min(dst.len()) } else { 0 };
        vector.store_lanes(dst, 0, lanes_from::<T>(head));
        let mut at = head;
        while at + T::LANES <= dst.len() {
            if stream {
                vector.stream(dst, at);
            } else {
                vector.store(dst, at);
            }
            at += T::LANES;
        }
        vector.store_lanes(dst, at, lanes_from::<T>(dst.len() - at));
    }
}

/// The lanes `lanes` of `src[at..]`, 0 elsewhere.
#[inline(always)]
pub fn load_lanes<S: Simd, T: Float>(s: S, src: Input<'_, T>, at: usize, lanes: u32) -> T::V<S> {
    if lanes == T::ALL {
        T::V::<S>::load(s, src, at)
    } else {
        T::V::<S>::load_lanes(s, src, at, lanes, T::V::<S>::splat(s, T::default()))
    }
}

/// Writes the lanes `lanes` to `dst[at..]`.
#[inline(always)]
pub fn store_lanes<S: Simd, T: Float>(x: T::V<S>, dst: Output<'_, T>, at: usize, lanes: u32) {
    if lanes == T::ALL {
        x.store(dst, at);
    } else {
        x.store_lanes(dst, at, lanes);
    }
}
