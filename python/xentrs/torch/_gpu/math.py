"""Functions of numbers, for Triton kernels."""

from typing import TYPE_CHECKING, no_type_check

from xentrs.torch._triton import Kernel

if TYPE_CHECKING:
    import triton.language as tl


@Kernel
@no_type_check
def log1p(r):
    # Kahan: the rounding of 1 + r cancels in the quotient.
    u = 1.0 + r
    return tl.where(u == 1.0, r, tl.log(u) * (r / tl.where(u == 1.0, 1.0, u - 1.0)))


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
