"""The compiled module stays as large as it was recorded to be: see benches/size.py."""

import importlib.util
import json
import platform
import sys
from pathlib import Path

import pytest

import xentrs

ROOT = Path(__file__).parents[1]
BENCHES = ROOT / "benches"
MODULE = Path(xentrs._xentrs.__file__)

pytestmark = [
    pytest.mark.skipif(not BENCHES.is_dir(), reason="a checkout without benches"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads ELF files"),
]


@pytest.fixture(scope="module")
def size():
    pytest.importorskip("elftools", reason="pyelftools reads the module: in the group `test`")
    spec = importlib.util.spec_from_file_location("size", BENCHES / "size.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["size"] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["size"]


@pytest.mark.skipif(
    MODULE.is_relative_to(ROOT / "python"), reason="a build for development, not the wheel's"
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="recorded for x86-64")
def test_installed_module(size):
    """The file, its machine code and the number of its kernels do not change unnoticed."""
    recorded = json.loads(size.RECORDED.read_text())
    said = size.complaints(size.measure(MODULE), recorded)
    assert not said, "\n".join([size.ADVICE.format(margin=size.MARGIN), *said])


def test_measure(size):
    """What is found in any build of the module, whose parts are known to be in it."""
    found = size.measure(MODULE)
    assert found.keys() == json.loads(size.RECORDED.read_text()).keys()
    assert found["file"] == MODULE.stat().st_size
    assert 100_000 < found["text"] < found["file"]
    assert 10 < found["large functions"] < found["functions"]


@pytest.mark.parametrize("name", ["file", "text", "functions", "large functions"])
def test_complaints(size, name):
    recorded = {"file": 5_000_000, "text": 4_000_000, "functions": 1000, "large functions": 100}
    assert size.complaints(recorded, recorded) == []
    assert size.complaints(recorded | {name: recorded[name] * 103 // 100}, recorded) == []
    for factor, shown in ((1.1, "+10.0%"), (0.9, "-10.0%")):
        (said,) = size.complaints(recorded | {name: int(recorded[name] * factor)}, recorded)
        assert said.startswith(f"{name}: ")
        assert shown in said


def test_goal(size):
    """Once met, the goal is a limit without a margin; what misses it already may stay."""
    met = {"file": size.GOAL - 1}
    (said,) = size.complaints({"file": size.GOAL + 1}, met)
    assert "more than the goal of 8,000,000" in said
    assert size.complaints({"file": size.GOAL + 2}, {"file": size.GOAL + 1}) == []


@pytest.mark.parametrize(
    ("name", "level", "dtype", "kernel", "parameters"),
    [
        (
            "xentrs::simd::avx512::with_features::<xentrs::driver::Blocks<"
            "xentrs::softmax::rows::Rows<f64, xentrs::coefficients::Even<f64>, false>>>",
            *("avx512", "f64", "softmax::rows::Rows", ["Even", "false"]),
        ),
        (
            "<xentrs::simd::portable::Portable as xentrs::simd::Simd>::apart::<xentrs::softmax::"
            "few::write::Emission<xentrs::softmax::few::Few<f32, xentrs::coefficients::Hard, true>"
            ", f32, false>>",
            *("portable", "f32", "softmax::few::write::Emission", ["Few", "Hard", "true false"]),
        ),
        (
            "xentrs::simd::enter::<xentrs::driver::Blocks<xentrs::losses::log_loss::Single<f32>>>",
            *("portable", "f32", "losses::log_loss::Single", []),
        ),
        ("<xentrs::tiles::Tile>::run::<f64>", "any", "f64", "xentrs::tiles::Tile::run", []),
        ("core::slice::sort::heapsort::<u32>", "any", "none", "other crates", []),
    ],
)
def test_names_of_functions(size, name, level, dtype, kernel, parameters):
    """What `make size` reads from the names of functions."""
    function = size.Function(100, name)
    assert (function.level, function.dtype, function.kernel) == (level, dtype, kernel)
    assert function.parameters == parameters
    table = size.breakdown([function, function])
    assert f"| {kernel} | 0.00 | 2 |" in table
