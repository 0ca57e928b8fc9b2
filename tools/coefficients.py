"""Print the tables and polynomial coefficients of `src/math/` (needs mpmath).

Each polynomial is the interpolant at Chebyshev nodes of the exact remainder, which is within a
factor of two of the minimax one; the error printed beside it is measured on a dense grid.
"""

import random

import mpmath as mp

mp.mp.dps = 60


def fit(remainder, low, high, degree):
    """Coefficients, lowest first, of the Chebyshev interpolant of `remainder` on [low, high]."""
    n = degree + 1
    nodes = [
        (low + high) / 2 + (high - low) / 2 * mp.cos(mp.pi * (2 * k + 1) / (2 * n))
        for k in range(n)
    ]
    matrix = mp.matrix([[x**j for j in range(n)] for x in nodes])
    return list(mp.lu_solve(matrix, mp.matrix([remainder(x) for x in nodes])))


def horner(coefficients, x):
    value = mp.mpf(0)
    for c in reversed(coefficients):
        value = value * x + c
    return value


def grid(low, high, n=4001):
    return [low + (high - low) * k / (n - 1) for k in range(n)]


def nonzero_exponent(value, bits):
    return bits - 1 - mp.floor(mp.log(abs(value), 2)) if value else 0


def split(value, bits, parts=2):
    """`value` as a sum of numbers of `bits` significant bits each, nearest first."""
    result = []
    for _ in range(parts):
        exponent = nonzero_exponent(value, bits)
        part = mp.nint(value * mp.mpf(2) ** exponent) / mp.mpf(2) ** exponent
        result.append(part)
        value -= part
    return result


def show(name, values, bits):
    # Rounded to the type first: the decimal then has no more digits than the type can hold.
    digits = 9 if bits == 24 else 17
    print(f"  {name}:", ", ".join(mp.nstr(split(v, bits, 1)[0], digits) for v in values))


def best_near(value, bits):
    """Find a number near `value` whose logarithm is nearly one of `bits` bits."""
    draw = random.Random(1)
    best = None
    # Near a simple fraction all neighbours round alike: look further.
    for _ in range(3000):
        x = split(value * (1 + mp.mpf(draw.random() - 0.5) / 1024), bits, 1)[0]
        log = mp.log(x)
        error = abs(log - split(log, bits, 1)[0]) / abs(log)
        if best is None or error < best[0]:
            best = error, x
    return best[1]


def main():
    ln2 = mp.log(2)
    for name, bits, table_bits, degree, log_degree in (
        ("f32", 24, 4, 1, 3),
        ("f64", 53, 3, 5, 10),
    ):
        size = 2**table_bits
        print(f"{name}: exp, table of {size}")
        # A little wider than ln2 / (2 size): n is rounded from an inexact product.
        r = ln2 / (2 * size) * mp.mpf("1.1")
        square = fit(lambda x: (mp.expm1(x) - x) / x**2 if x else mp.mpf(0.5), -r, r, degree)
        error = max(abs(x + x * x * horner(square, x) - mp.expm1(x)) for x in grid(-r, r))
        show("coefficients of r^2, r^3, ...", square, bits)
        print(f"  error of q, in 2^-{bits}: {mp.nstr(error * 2**bits, 3)}")
        powers = [mp.mpf(2) ** (mp.mpf(j) / size) for j in range(size)]
        show("table", powers, bits)
        # What rounding an entry lost, relative to it.
        show("table's rest", [(p - split(p, bits, 1)[0]) / p for p in powers], bits)
        show("ln2/size, two parts", split(ln2 / size, bits), bits)
        show("size/ln2", [size / ln2], bits)
        show("ln2, two parts", split(ln2, bits - 11), bits)
        near = [best_near(1 / (1 + mp.mpf(j) / size), bits) for j in range(1, size - 1)]
        show("log: a", [mp.mpf(1), mp.mpf(1), *near], bits)
        show("-log(a)", [mp.mpf(0), mp.mpf(0), *(-mp.log(a) for a in near)], bits)
        print(f"{name}: log(1 + f) = f + f^2 Q(f); log1p of [0, 1]: f = (1 + r) a - 1")
        step = mp.mpf(1) / (size - 1)
        f = step / 2 * mp.mpf("1.01")
        low = -mp.mpf(3) / (4 * size)
        square = fit(
            lambda x: (mp.log1p(x) - x) / x**2 if abs(x) > mp.mpf("1e-20") else mp.mpf(-0.5),
            low,
            f,
            log_degree,
        )
        show("Q", square, bits)
        error = max(
            abs((x + x * x * horner(square, x)) / mp.log1p(x) - 1)
            for x in [*grid(mp.mpf("1e-6"), f, 400), *grid(low, mp.mpf("-1e-6"), 400)]
        )
        print(f"  relative error, in 2^-{bits}: {mp.nstr(error * 2**bits, 3)}")
        near = [best_near(1 / (1 + j * step), bits) for j in range(1, size - 1)]
        show("a", [mp.mpf(1), *near, mp.mpf(0.5)], bits)
        show("-log(a)", [mp.mpf(0), *(-mp.log(a) for a in near), ln2], bits)


if __name__ == "__main__":
    main()
