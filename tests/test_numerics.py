"""The tables of docs/numerics.md: that they are complete, and that no error is above them."""

import math

import numpy as np
import pytest

import numerics_table as table
from xentrs import _xentrs

pytestmark = pytest.mark.skipif(not table.DOCS.exists(), reason="a checkout without docs")
EVERY = 100  # one input of so many


def test_every_loss_type_and_level_has_a_row():
    of_page = table.documented()
    assert list(of_page) == [(family, np.dtype(dtype).name) for family, dtype in table.rows()]
    losses = {table.function_of(family) for family, _ in of_page}
    assert losses == set(_xentrs.LOSSES)
    for (family, _), of_levels in of_page.items():
        assert {"avx512", "avx2", "portable"} <= set(of_levels)
        derivatives = _xentrs.LOSSES[table.function_of(family)]["derivatives"]
        for errors in of_levels.values():
            assert len(errors) == derivatives + 2
            assert all(map(math.isfinite, errors))


def test_functions_are_as_recorded():
    lines = table.written("functions")
    assert lines == table.table_of_functions(), "make numerics-table writes them"
    # tests/numerics.rs compares the file that they are made of with what it measures.
    for level in ("AVX-512", "AVX2", "portable"):
        of_level = {line.split("|")[1] for line in lines[2:] if level in line.split("|")[2]}
        assert of_level == {line.split("|")[1] for line in lines[2:]}


@pytest.mark.timeout(600)
def test_some_inputs_are_not_above_the_table():
    measured = table.measure_all(EVERY)
    assert not table.above(measured, table.documented())


def test_what_is_above_is_found():
    of_page = table.documented()
    row = next(iter(table.rows()))
    errors = of_page[row[0], np.dtype(row[1]).name]["avx2"]
    assert not table.above({row: {"avx2": errors, "neon": errors}}, of_page)
    for i in range(len(errors)):
        more = [error + 0.01 * (k == i) for k, error in enumerate(errors)]
        assert len(table.above({row: {"avx2": more, "neon": more}}, of_page)) == 2


def test_sums_are_compared_with_exact_ones(rng):
    losses = np.longdouble(rng.exponential(size=1000))
    exact = float(np.longdouble(math.fsum(losses.astype(float))))
    assert table.error_of_sum(exact, losses, losses, np.float64) < 1
    more = exact * (1 + 2**-50)
    assert table.error_of_sum(more, losses, losses, np.float64) == pytest.approx(4, abs=1)
    more = exact * (1 + 2**-21)
    assert table.error_of_sum(more, losses, losses, np.float32) == pytest.approx(4, abs=0.1)
    assert table.error_of_sum(more, losses, 2 * losses, np.float32) == pytest.approx(2, abs=0.1)
