"""Functions of numbers, for Triton kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

from xentrs.torch._triton import Kernel

if TYPE_CHECKING:
    import triton.language as tl


# These functions do not call each other: the kernels of a module are compiled with those that it
# imports, not with those that these import.


# x - y and its rounding error (Knuth's two-sum), which is NaN where the difference is not finite.
@Kernel
@no_type_check
def difference(x, y):
    high = x - y
    part = high - x
    return high, (x - (high - part)) - (y + part)


# exp((d + low) / T), where d is not above 0 and `low` is a rounding error of it, to less than one
# unit in the last place. `tl.exp` of float32 is a power of two, whose exponent a GPU rounds: that
# costs as many units as the exponent is large, and the power itself is good to 2.
@Kernel
@no_type_check
def exp_over(d, low, T: tl.constexpr):
    if d.dtype == tl.float32:
        if T != 1.0:
            # The quotient and its rounding error, by the reciprocal in two parts (Veltkamp).
            INVERSE: tl.constexpr = 1.0 / T
            SHIFTED: tl.constexpr = 536870913.0 * INVERSE  # 2^29 + 1
            HIGH: tl.constexpr = SHIFTED - (SHIFTED - INVERSE)  # its first 24 bits
            t = d * HIGH
            low = tl.fma(d, HIGH, -t) + (d * (INVERSE - HIGH) + low * INVERSE)
        else:
            t = d
        # With n the whole number next to t log2(e), the result is 2^n e^r. Adding 1.5 2^23 + 159
        # puts n + 159 into the last bits; moved up by 23 bits they are the float 2^(n + 32).
        bits = tl.fma(t, 1.4426950408889634, 12583071.0)
        n = bits - 12583071.0
        r = tl.fma(n, -0.693359375, t)  # exact
        r = tl.fma(n, 2.12194440054690583e-4, r) + low
        power = (bits.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
        # (e^r - 1 - r) / r^2, where |r| is at most log(2) / 2
        q = tl.fma(r, 0.001381422160193324, 0.00836889911442995)
        q = tl.fma(r, q, 0.04166840389370918)
        q = tl.fma(r, q, 0.1666651964187622)
        q = tl.fma(r, q, 0.4999999403953552)
        e = tl.fma(power, tl.fma(r * r, q, r), power) * 2.3283064365386963e-10  # 2^-32
        return tl.where(t < -104.0, 0.0, e)
    else:
        if T != 1.0:
            t = d / T
            low = (tl.fma(t, -T, d) + low) * (1.0 / T)
        else:
            t = d
        e = tl.exp(t)
        return tl.where(e == 0.0, e, e + e * low)


# The division that rounds once; that of float32 by / may be off by 2 units in the last place.
@Kernel
@no_type_check
def divided(a, b):
    if b.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@Kernel
@no_type_check
def log1p(r):
    # Kahan: the rounding of 1 + r cancels in the quotient.
    u = 1.0 + r
    v = tl.where(u == 1.0, 1.0, u - 1.0)
    if r.dtype == tl.float32:
        return tl.where(u == 1.0, r, tl.log(u) * tl.div_rn(r, v))
    else:
        return tl.where(u == 1.0, r, tl.log(u) * (r / v))


@Kernel
@no_type_check
def expm1(x):
    # Kahan: the rounding of exp(x) cancels in the quotient.
    u = tl.exp(x)
    small = (u == 1.0) | (u == 0.0)
    quotient = (u - 1.0) * (x / tl.where(small, 1.0, tl.log(tl.where(small, 2.0, u))))
    return tl.where(u == 1.0, x, tl.where(u == 0.0, -1.0, quotient))


@Kernel
@no_type_check
def tanh(u):
    a = tl.abs(u)
    e = tl.exp(-2.0 * a)
    t = (1.0 - e) / (1.0 + e)
    if u.dtype == tl.float32:  # 1 - e cancels near 0
        s = u * u
        p = s * (-17.0 / 315.0 + s * (62.0 / 2835.0))
        t = tl.where(a < 0.25, a * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0) + s * p)), t)
    return tl.where(u < 0, -t, t)


@Kernel
@no_type_check
def narrowed(value, to):
    # Float64 becomes a half precision by way of float32: there is no other everywhere.
    if to.dtype.element_ty.primitive_bitwidth < 64:
        value = value.to(tl.float32)
    return value
