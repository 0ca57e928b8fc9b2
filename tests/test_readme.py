"""The Python of the README and of docs/ runs, and the results in its comments are right.

A comment with an arrow after an expression states its value: ``loss  # -> 0.2564``. Text before the
arrow is a remark. Numbers are compared to the digits that are shown.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
LOSSES = DOCS / "losses"
PAGES = [README, *sorted(DOCS.glob("*.md")), *sorted(LOSSES.glob("*.md"))]
# What some blocks import, and the target of make that runs them
NEEDED = {
    "torch": "test-torch",
    "xgboost": "test-pipelines",
    "lightgbm": "test-pipelines",
    "catboost": "test-pipelines",
    "dask.array": "test-pipelines",
}
NUMBER = re.compile(r"[-+]?(?:inf|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)")

pytestmark = pytest.mark.skipif(not README.exists(), reason="a checkout without a README")


def blocks(page):
    """Yield each Python block, with its first line's number so that tracebacks point there.

    Of the pages in docs/ only those that state results: the others are imports and tables' arrays,
    which `test_guide.py` runs.
    """
    text = page.read_text() if page.exists() else ""
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: found.start(1)].count("\n") + 1
        if page == README or stated_results(found[1]):
            yield pytest.param(page, line, found[1], id=f"{page.stem}-line-{line}")


def stated_results(code):
    """Map the number of a line to what its comment says after the arrow."""
    comments = (
        token
        for token in tokenize.generate_tokens(io.StringIO(code).readline)
        if token.type == tokenize.COMMENT and "->" in token.string
    )
    return {token.start[0]: token.string.split("->", 1)[1].strip() for token in comments}


def resolution(shown):
    """Half a unit of the last digit shown, and a little for the rounding of decimal numbers."""
    mantissa, _, exponent = shown.lower().partition("e")
    _, _, decimals = mantissa.partition(".")
    return 0.5001 * 10.0 ** (int(exponent or 0) - len(decimals))


def assert_shown(value, shown):
    """Assert that a value is what is shown of it."""
    if isinstance(value, float | np.floating | np.ndarray):
        value = np.asarray(value)
        numbers = NUMBER.findall(shown)
        skeleton = re.sub(r"[\d.eE+-]+", "_", str(value.tolist()))
        assert re.sub(r"[\d.eE+-]+", "_", shown) == skeleton, f"{value} is not shown as {shown}"
        for actual, text in zip(value.ravel().tolist(), numbers, strict=True):
            is_shown = actual == float(text) or abs(actual - float(text)) <= resolution(text)
            assert is_shown, f"{value} is not {shown}"
    else:
        assert repr(value) == shown


@pytest.mark.parametrize(
    ("page", "line", "code"), [block for page in PAGES for block in blocks(page)]
)
def test_block(page, line, code):
    for name, target in NEEDED.items():
        if f"import {name}\n" in code:
            pytest.importorskip(name, reason=f"runs where {name} is: make {target}")
    stated = stated_results(code)
    namespace = {}
    for statement in ast.parse(code).body:
        shown = stated.pop(statement.end_lineno, None)
        ast.increment_lineno(statement, line - 1)
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), page, "eval"), namespace)
            if shown is not None:
                assert_shown(value, shown)
        else:
            assert shown is None, f"only an expression has a value: {ast.unparse(statement)}"
            exec(compile(ast.Module([statement], []), page, "exec"), namespace)
    assert not stated, f"these belong to no statement: {stated}"


def test_there_are_blocks_with_results():
    """So that a change of the README's form does not leave the test above with nothing to do."""
    found = [stated_results(parameters.values[2]) for parameters in blocks(README)]
    assert len(found) >= 5
    assert all(found)
    assert len(list(blocks(ROOT / "docs" / "examples.md"))) >= 4
    assert len(list(blocks(ROOT / "docs" / "guide.md"))) >= 3


@pytest.mark.parametrize(
    ("value", "shown", "right"),
    [
        (0.25823, "0.2582", True),
        (0.25823, "0.2583", False),
        (4.13994e-8, "4.1399e-08", True),
        (4.13994e-8, "4.1398e-08", False),
        (4.13994e-8, "0.0", True),  # which is all it shows
        (np.array([[1.0, 2.5], [3.0, -1e-9]]), "[[1, 2.5], [3.0, 0]]", True),
        (np.array([[1.0, 2.5]]), "[1, 2.5]", False),
        (np.array([1.0, 2.5]), "[1, 2.5, 0]", False),
        (np.inf, "inf", True),
        (1.0, "inf", False),
        (True, "True", True),
        (True, "False", False),
    ],
)
def test_comparison(value, shown, right):
    """The comparison itself finds what is wrong."""
    if right:
        assert_shown(value, shown)
    else:
        with pytest.raises(AssertionError):
            assert_shown(value, shown)
