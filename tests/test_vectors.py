"""No closure of the kernels holds vectors.

The standard library calls a closure (in `map`, `map_or`, `fold`...) from a function that may be
compiled without the kernel's instruction set. Then each intrinsic in it is a call, which takes
several times the time.
"""

import re

import pytest

from test_unsafe import SRC, code

pytestmark = pytest.mark.skipif(not SRC.is_dir(), reason="a checkout without sources")

FILES = sorted(
    file
    for file in SRC.rglob("*.rs")
    if file.name != "tests.rs" and file.parent.name != "parallel"  # has no vectors
)
CLOSURE = re.compile(r"[(,=]\s*(?:move )?\|[^|=]*\|")
# A vector's type, a function of vectors (its first argument is the instruction set), or a method of
# vectors alone.
VECTORS = re.compile(r"\bV(?:32|64)?::|[(]s[,)]|\.(?:to_lanes|lanes|clear|wide|not_lt|lt)\(")


def closures(text):
    """Return the closures of Rust without comments, each from its first bar to its end."""
    found = []
    for start in CLOSURE.finditer(text):
        depth = 0
        for end in range(start.end(), len(text)):
            depth += (text[end] in "([{") - (text[end] in ")]}")
            if depth < 0 or (depth == 0 and text[end] in ",;"):
                break
        found.append(text[start.start() + 1 : end])
    return found


def of_vectors(text):
    """Return the closures that hold vectors."""
    without_tests = code(text).split("#[cfg(test)]\nmod tests {")[0]
    return [closure for closure in closures(without_tests) if VECTORS.search(closure)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_no_closure_holds_vectors(file):
    assert of_vectors(file.read_text()) == []


@pytest.mark.parametrize(
    "closure",
    [
        "let a = b.map(|x| T::V::<S>::splat(s, x));",
        "let a = weight.map_or(q, |weight| { let w = load(s, weight); q.mul(w) });",
        "let a = most.unwrap_or_else(|| row.maximum(s, 0..3));",
        "let a = (0..N).fold(0, |all, i| all | V::lanes(mask[i]));",
        "let a = [x, y].map(|x| x.to_lanes());",
    ],
)
def test_such_a_closure_is_found(closure):
    assert len(of_vectors(f"fn f() {{ {closure} }}")) == 1


@pytest.mark.parametrize(
    "other",
    [
        "let a = b.map(|x| x + 1.0); let v = T::V::<S>::splat(s, a);",
        "let a = (x | y, V::splat(s, z));",
        "match a { 1 | 2 => V::splat(s, z), _ => b }",
    ],
)
def test_others_are_not(other):
    assert of_vectors(f"fn f() {{ {other} }}") == []
