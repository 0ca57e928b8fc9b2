//! Writes the gradient and the Hessian of a row from its exponentials.

use crate::call::coefficients::{Coefficients, RowCoefficients};
use crate::math::gradual;
use crate::math::{Real, times};
use crate::reduce::Sum;
use crate::simd::slices::{find, lanes_from, maximum};
use crate::simd::{Function, Half, Input, Kernel, Output, Simd, Vector};

use super::{AHEAD, VECTORS};

/// What the Hessian is computed from, beside an exponential and the factor of its gradient. Not at the pivot.
#[derive(Clone, Copy)]
pub(super) struct Curvature<S: Simd, T: Real> {
    /// `1 / S`
    pub(super) inverse: T::V<S>,
    /// `1 / temperature`, the second factor of that kind in the Hessian.
    pub(super) cooled: T::V<S>,
    /// The factor of `p E` that an objective other than plain cross-entropy adds to the Hessian.
    pub(super) second: Option<T::V<S>>,
}

impl<S: Simd, T: Real> Curvature<S, T> {
    /// The Hessian of a vector of exponentials `e`. `a`: as in [`Emit`].
    #[inline(always)]
    fn hessian(&self, s: S, e: T::V<S>, a: [T::V<S>; 2]) -> T::V<S> {
        let one = T::V::<S>::splat(s, T::from_f64(1.0));
        let p = e.mul(self.inverse);
        let plain = times::<S, T>(e, a).mul(one.sub(p));
        let hess = match self.second {
            None => plain,
            Some(second) => plain.add(p.mul(e.mul(second))),
        };
        hess.mul(self.cooled)
    }
}

/// Writes the Hessian of a chunk.
struct ChunkOfHessian<'a, S: Simd, T: Real> {
    curvature: Curvature<S, T>,
    a: [T::V<S>; 2],
    scratch: Input<'a, T>,
    hess: Output<'a, T>,
}

impl<S: Simd, T: Real> Function<S> for ChunkOfHessian<'_, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        for i in (0..self.scratch.len()).step_by(T::LANES) {
            let e = T::V::<S>::load(s, self.scratch, i);
            self.curvature.hessian(s, e, self.a).store(self.hess, i);
        }
    }
}

/// A reduced row whose gradient is not yet written: its exponentials are in scratch.
#[derive(Clone, Copy)]
pub(super) struct Emit<'a, S: Simd, T: Real, R> {
    pub(super) scratch: Input<'a, T>,
    /// How many classes there are.
    pub(super) len: usize,
    pub(super) grad: Output<'a, T>,
    /// The gradient of half precision, in place of `grad`.
    pub(super) halves: Option<(Half, Output<'a, u16>)>,
    pub(super) hess: Option<Output<'a, T>>,
    pub(super) coefficients: R,
    /// `a`, and its rounding error.
    pub(super) a: [T::V<S>; 2],
    /// Exponentials below this have products with `a` that need subnormal numbers ([`gradual`]).
    pub(super) least: T::V<S>,
    /// `-b`
    pub(super) minus_b: T::V<S>,
    pub(super) curvature: Curvature<S, T>,
    /// The pivot, and the gradient and Hessian there. Without coefficients, a `pivot_grad` of 0 means that
    /// the gradient follows from the exponential in scratch.
    pub(super) pivot: usize,
    pub(super) pivot_grad: T,
    pub(super) pivot_hess: T,
    /// A class that is not the pivot and has most of the probability, if there is one, and the Hessian there.
    pub(super) dominant: Option<(usize, T)>,
    /// How many numbers of the row's gradient lie before the first that is aligned to a cache line.
    pub(super) head: usize,
    pub(super) non_temporal: bool,
}

/// Emits a chunk of a row, as a call of its own.
pub(super) struct Chunk<'e, 'a, S: Simd, T: Real, C: Coefficients<T>> {
    pub(super) emit: &'e Emit<'a, S, T, C::Row<S>>,
    pub(super) at: usize,
}

impl<S: Simd, T: Real, C: Coefficients<T>> Function<S> for Chunk<'_, '_, S, T, C> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        self.emit.chunk::<C>(s, self.at);
    }
}

/// Emits a chunk of a row in half precision. A copy of `emit`: a reference would keep the original in memory, for
/// chunks of other types too.
struct ChunkOfHalves<'a, S: Simd, T: Real, C: Coefficients<T>> {
    emit: Emit<'a, S, T, C::Row<S>>,
    at: usize,
    half: Half,
    grad: Output<'a, u16>,
}

impl<S: Simd, T: Real, C: Coefficients<T>> Function<S> for ChunkOfHalves<'_, S, T, C> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        let ChunkOfHalves { emit, at, half, grad } = self;
        match half {
            // The type is a constant in each branch.
            Half::Brain => emit.halves::<C>(s, Half::Brain, grad, at),
            Half::Binary16 => emit.halves::<C>(s, Half::Binary16, grad, at),
        }
    }
}

/// Emits the numbers from `at` to `end`: of any exponentials, the pivot may be among them.
struct Part<'e, 'a, S: Simd, T: Real, C: Coefficients<T>> {
    emit: &'e Emit<'a, S, T, C::Row<S>>,
    at: usize,
    end: usize,
}

impl<S: Simd, T: Real, C: Coefficients<T>> Function<S> for Part<'_, '_, S, T, C> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        let Part { emit, at, end } = self;
        for at in (at..end).step_by(T::LANES) {
            emit.some::<C>(s, at, T::LANES.min(end - at));
        }
    }
}

/// Emits a whole row. A copy of `emit`, as in [`ChunkOfHalves`].
struct Whole<'a, S: Simd, T: Real, C: Coefficients<T>> {
    emit: Emit<'a, S, T, C::Row<S>>,
}

impl<S: Simd, T: Real, C: Coefficients<T>> Function<S> for Whole<'_, S, T, C> {
    type Output = ();
    #[inline(always)]
    fn call(self, s: S) {
        let Whole { emit } = self;
        for at in (0..emit.len).step_by(VECTORS * T::LANES) {
            s.apart(Chunk::<S, T, C> { emit: &emit, at });
        }
        emit.finish::<C>();
    }
}

impl<S: Simd, T: Real, R: RowCoefficients<S, T>> Emit<'_, S, T, R> {
    /// The gradient of a vector of classes, the pivot's aside.
    #[inline(always)]
    pub(super) fn gradient<C: Coefficients<T>>(
        &self,
        s: S,
        e: T::V<S>,
        at: usize,
        lanes: u32,
    ) -> T::V<S> {
        if C::ANY {
            let other = self.coefficients.load(s, at, lanes).mul(self.minus_b);
            let [high, low] = self.a;
            e.fma(high, e.fma(low, other))
        } else {
            times::<S, T>(e, self.a)
        }
    }

    /// [`Emit::gradient`], the same bits, of any exponentials. Class weights and smoothing add to each product.
    #[inline(always)]
    fn any_gradient<C: Coefficients<T>>(&self, s: S, e: T::V<S>, at: usize, lanes: u32) -> T::V<S> {
        if !C::ANY {
            return gradual::times_any::<S, T>(s, e, self.a, self.least);
        }
        if C::HARD {
            return self.gradient::<C>(s, e, at, lanes);
        }
        let other = self.coefficients.load(s, at, lanes).mul(self.minus_b);
        gradual::times_any_plus::<S, T>(s, e, self.a, self.least, other)
    }

    /// Emits the chunk at `at`, shifted by `head`, so that its stores are aligned. It reads up to `head`
    /// exponentials of the next chunk: the reduction that follows overwrites those of this chunk only.
    #[inline(always)]
    pub(super) fn chunk<C: Coefficients<T, Row<S> = R>>(&self, s: S, at: usize) {
        let chunk = VECTORS * T::LANES;
        if at == 0 && self.head > 0 {
            s.apart(Part::<S, T, C> { emit: self, at: 0, end: self.head.min(self.len) });
        }
        let at = at + self.head;
        let is_part = at + chunk > self.len || C::ANY && self.pivot.wrapping_sub(at) < chunk;
        // Class weights and smoothing add to each product.
        let may_be_small = !C::ANY || !C::HARD;
        if is_part
            || may_be_small && gradual::any_small(s, self.scratch.part(at, chunk), self.least)
        {
            return s.apart(Part::<S, T, C> { emit: self, at, end: self.len.min(at + chunk) });
        }
        let scratch = self.scratch.part(at, chunk);
        if let Some(hess) = self.hess {
            let Emit { curvature, a, .. } = *self;
            s.apart(ChunkOfHessian::<S, T> { curvature, a, scratch, hess: hess.part(at, chunk) });
        }
        if let (true, Some((half, grad))) = (T::OF_HALVES, self.halves) {
            let grad = grad.part(at, chunk);
            return s.apart(ChunkOfHalves::<S, T, C> { emit: *self, at, half, grad });
        }
        let grad = self.grad.part(at, chunk);
        if self.non_temporal {
            for i in 0..VECTORS {
                let e = T::V::<S>::load(s, scratch, i * T::LANES);
                let g = self.gradient::<C>(s, e, at + i * T::LANES, T::ALL);
                g.stream(grad, i * T::LANES);
            }
        } else {
            for i in 0..VECTORS {
                grad.prefetch(AHEAD / size_of::<T>() + i * T::LANES);
                let e = T::V::<S>::load(s, scratch, i * T::LANES);
                let g = self.gradient::<C>(s, e, at + i * T::LANES, T::ALL);
                g.store(grad, i * T::LANES);
            }
        }
    }

    /// Emits a whole chunk in half precision.
    #[inline(always)]
    fn halves<C: Coefficients<T>>(&self, s: S, half: Half, grad: Output<'_, u16>, at: usize) {
        let scratch = self.scratch.part(at, VECTORS * T::LANES);
        for i in (0..VECTORS).step_by(2) {
            let mut pair = [T::V::<S>::splat(s, T::default()); 2];
            for (j, g) in pair.iter_mut().enumerate() {
                let i = (i + j) * T::LANES;
                let e = T::V::<S>::load(s, scratch, i);
                *g = self.gradient::<C>(s, e, at + i, T::ALL);
            }
            T::V::<S>::pair_to_halves(pair, half, grad, i * T::LANES, self.non_temporal);
        }
    }

    /// Emits `n` numbers, at most a vector. The pivot may be among them.
    #[inline(always)]
    fn some<C: Coefficients<T>>(&self, s: S, at: usize, n: usize) {
        let zero = T::V::<S>::splat(s, T::default());
        let lanes = lanes_from::<T>(n);
        let e = T::V::<S>::load_lanes(s, self.scratch, at, lanes, zero);
        let mut g = self.any_gradient::<C>(s, e, at, lanes);
        let lane = self.pivot.wrapping_sub(at);
        if C::ANY && lane < n {
            let mask = T::V::<S>::mask(s, 1 << lane);
            g = T::V::<S>::select(mask, T::V::<S>::splat(s, self.pivot_grad), g);
        }
        if let (true, Some((half, grad))) = (T::OF_HALVES, self.halves) {
            return s.apart(SomeHalves::<T> {
                half,
                grad: grad.part(at, n),
                numbers: g.to_lanes(),
            });
        }
        if self.non_temporal && lanes == T::ALL {
            g.stream(self.grad, at);
        } else {
            g.store_lanes(self.grad, at, lanes);
        }
        if let Some(hess) = self.hess {
            self.curvature.hessian(s, e, self.a).store_lanes(hess, at, lanes);
        }
    }

    /// Emits the whole row, as a call of its own.
    #[inline(always)]
    pub(super) fn all<C: Coefficients<T, Row<S> = R>>(&self, s: S) {
        s.apart(Whole::<S, T, C> { emit: *self });
    }

    /// Writes the gradient of a class.
    #[inline(always)]
    pub(super) fn set(&self, class: usize, x: T) {
        match self.halves {
            None => self.grad.set(class, x),
            Some((half, grad)) => grad.set(class, half.round(x.to_f64() as f32)),
        }
    }

    /// After the last chunk: writes what differs at the pivot and at a dominant class.
    #[inline(always)]
    pub(super) fn finish<C: Coefficients<T, Row<S> = R>>(&self) {
        if !C::ANY && self.pivot_grad != T::default() {
            self.set(self.pivot, self.pivot_grad);
        }
        let Some(hess) = self.hess else { return };
        hess.set(self.pivot, self.pivot_hess);
        if let Some((class, x)) = self.dominant {
            hess.set(class, x);
        }
    }
}

/// Emits the first of some numbers in half precision, as many as there is room for.
struct SomeHalves<'a, T: Real> {
    half: Half,
    grad: Output<'a, u16>,
    numbers: T::Lanes,
}

impl<T: Real> Kernel for SomeHalves<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let SomeHalves { half, grad, numbers } = self;
        if grad.len() == T::LANES {
            return T::V::<S>::from_lanes(s, numbers).to_halves(half, grad, 0);
        }
        for (i, x) in numbers.as_ref().iter().enumerate().take(grad.len()) {
            grad.set(i, half.round(x.to_f64() as f32));
        }
    }
}

/// The class that has more than half of the probability, if there is one, and the Hessian there.
/// `1 - p` would cancel, so this sums the other classes.
pub(super) struct DominantHessian<'a, T> {
    pub(super) exponentials: Input<'a, T>,
    /// Their sum.
    pub(super) whole: f64,
    /// The factor that makes an exponential its gradient.
    pub(super) a: f64,
}

impl<T: Real> Kernel for DominantHessian<'_, T> {
    type Output = Option<(usize, T)>;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Option<(usize, T)> {
        let DominantHessian { exponentials: row, whole, a } = self;
        let most = maximum(s, row);
        if most.to_f64() / whole <= 0.5 {
            return None;
        }
        let class = find(s, row, most);
        let zero = T::V::<S>::splat(s, T::default());
        let mut others = Sum::<S, T>::new(s);
        for at in (0..row.len()).step_by(T::LANES) {
            let lane = class.wrapping_sub(at);
            let mut lanes = lanes_from::<T>(row.len() - at);
            if lane < T::LANES {
                lanes &= !(1 << lane);
            }
            others.add(T::V::<S>::load_lanes(s, row, at, lanes, zero));
        }
        let others = others.total();
        let p = a * most.to_f64();
        Some((class, T::from_f64(p * (others / (others + most.to_f64())))))
    }
}
