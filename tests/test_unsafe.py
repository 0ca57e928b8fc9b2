"""Unsafe Rust is in few files, and each is known.

The compiler refuses it outside of `simd`, `parallel` and `python` (`unsafe_code` in Cargo.toml and
src/lib.rs), in what macros expand to as well. This test knows the files, so that one more, or an
`allow` elsewhere, is a line in a review.
"""

import re
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
UNSAFE = {
    "parallel/affinity.rs",
    "parallel/pool.rs",
    "parallel/process.rs",
    "parallel/team.rs",
    "python/arrays.rs",
    "python/exit.rs",
    "python/memory.rs",
    "python/mod.rs",
    "python/options.rs",
    "python/public.rs",
    "python/results.rs",
    "python/tensors.rs",
    "simd/avx2.rs",
    "simd/avx512.rs",
    "simd/half.rs",
    "simd/memory.rs",
    "simd/mod.rs",
    "simd/neon.rs",
    "simd/portable.rs",
}

pytestmark = pytest.mark.skipif(not SRC.is_dir(), reason="a checkout without sources")


def code(text):
    """Return Rust without its comments, characters and strings."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    return re.sub(r"//[^\n]*|'(?:\\.|[^\\'])'|\"(?:\\.|[^\"\\])*\"", "", text)


def files(pattern):
    """Return the sources whose code has a match."""
    return {
        file.relative_to(SRC).as_posix()
        for file in SRC.rglob("*.rs")
        if re.search(pattern, code(file.read_text()))
    }


def test_unsafe_code_is_in_these_files():
    assert files(r"\bunsafe\b") == UNSAFE


def test_nothing_else_allows_it():
    allowed = re.findall(
        r"allow\(unsafe_code[^\n]*\n(?:pub )?mod (\w+);", (SRC / "lib.rs").read_text()
    )
    assert allowed == ["parallel", "python", "simd"]
    assert files(r"\bunsafe_code\b") == {"lib.rs"}
    lints = (SRC.parent / "Cargo.toml").read_text()
    assert re.search(r'^unsafe_code = "(deny|forbid)"', lints, re.M)
