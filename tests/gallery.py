"""What the tests of the gallery share: an entry's script, its page and its picture.

Each script runs once, as a user runs it, with warnings as errors. What it prints is compared with
the output on its page, and the picture with the one beside the page.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "examples" / "gallery"
PAGES = ROOT / "docs" / "gallery"
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
TEXT = re.compile(r"<text[^>]*>([^<]*)</text>")
# Processors and versions of the other libraries change the last digits of a training.
RELATIVE, ABSOLUTE = 0.15, 0.03
# The data are small, and other tests run beside these.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run(name, folder, *arguments):
    """Return what an entry prints, and its picture."""
    picture = folder / f"{name}.svg"
    command = [sys.executable, "-W", "error", SCRIPTS / f"{name}.py", "--picture", picture]
    done = subprocess.run(
        [*map(str, command), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **THREADS},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.replace(f"{picture}", f"build/gallery/{name}.svg"), picture.read_text()


def rows(printed):
    """Map the words that a row begins with to the row's numbers.

    Columns are separated by two spaces or more.
    """
    table = {}
    for line in printed.splitlines():
        words = [cell for cell in re.split(r"\s{2,}", line.strip()) if cell]
        numbers = [cell for cell in words if NUMBER.fullmatch(cell)]
        label = " ".join(cell for cell in words if not NUMBER.fullmatch(cell))
        if numbers:
            table[label] = [float(cell.replace(",", "")) for cell in numbers]
    return table


def blocks(name, language):
    """Return the blocks of a language on a page."""
    page = (PAGES / f"{name}.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def assert_page(name, printed, picture, relative=RELATIVE):
    """Assert that a page shows the script's code, what it prints and what it draws."""
    script = (SCRIPTS / f"{name}.py").read_text()
    code = blocks(name, "python")
    assert code, "the page shows no code"
    for block in code:
        assert block in script, f"the page shows what is not in the script:\n{block}"

    (shown,) = blocks(name, "text")
    words, numbers = NUMBER.sub("_", printed.strip()), NUMBER.findall(printed)
    # The width of a number may change, and the spaces before it.
    assert re.sub(r"[ -]+", " ", words) == re.sub(r"[ -]+", " ", NUMBER.sub("_", shown.strip()))
    for one, other in zip(numbers, NUMBER.findall(shown), strict=True):
        value, stated = (float(text.replace(",", "")) for text in (one, other))
        assert value == pytest.approx(stated, rel=relative, abs=ABSOLUTE), f"{one} is not {other}"

    assert f"]({name}.svg)" in (PAGES / f"{name}.md").read_text()
    assert_same_picture(picture, PAGES / f"{name}.svg")


def assert_same_picture(picture, committed):
    """Assert that a picture has the labels of the one in the documentation, which is small."""
    assert committed.stat().st_size < 80_000
    labels = [
        {
            text
            for text in TEXT.findall(one)
            if not NUMBER.fullmatch(text.replace("\N{MINUS SIGN}", "-"))
        }
        for one in (picture, committed.read_text())
    ]
    assert labels[0] == labels[1], "the picture beside the page is another one"
