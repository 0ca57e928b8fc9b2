"""What the documentation names exists: files, targets of make, decisions."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xentrs
from gallery import assert_same_picture
from xentrs import _xentrs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DECISIONS = DOCS / "decisions"
LOSSES = DOCS / "losses"
GALLERY = DOCS / "gallery"
RECORDS = sorted(DECISIONS.glob("0*.md"))
README = ROOT / "README.md"
PAGES = [
    README,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted(LOSSES.glob("*.md")),
    *sorted(GALLERY.glob("*.md")),
    DECISIONS / "README.md",
]
# Folders of the repository whose files the documentation names.
PATH = re.compile(r"`((?:\.ci|benches|docs|examples|python|src|tests|tools)/[\w./-]*)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
MAKE = re.compile(r"`make ([a-z0-9-]+)")
DECISION = re.compile(r"decisions? (\d+)\b", re.IGNORECASE)

pytestmark = pytest.mark.skipif(not DECISIONS.is_dir(), reason="a checkout without documentation")


def ids(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_named_files_exist(page):
    named = PATH.findall(page.read_text())
    # What a command makes is not in a checkout.
    made = {"docs/api/"}
    assert not [path for path in named if path not in made and not (ROOT / path).exists()]


@pytest.mark.parametrize("page", [*PAGES, *RECORDS], ids=ids)
def test_linked_files_exist(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    # `make docs` writes the pages in api/, and is sure to find them.
    links = [link for link in links if not link.removeprefix("../").startswith("api/")]
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_named_targets_of_make_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z0-9-]+)(?: [a-z0-9-]+)*:.*## ", makefile, re.M)
    assert len(targets) > 10
    assert not [name for name in MAKE.findall(page.read_text()) if name not in targets]


def test_readme_lists_each_loss():
    """The README's table of functions has each loss, and nothing else."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| [a-z]", README.read_text(), re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    losses = {name.removesuffix("_with_grad") for name in xentrs.__all__ if "_with_grad" in name}
    assert sorted(listed) == sorted(name for name in losses if not name.endswith("_hess"))


@pytest.mark.parametrize("name", _xentrs.LOSSES)
def test_each_loss_has_its_page(name):
    """A page of the usual sections, with an example, and a link to it in the index."""
    text = (LOSSES / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    expected = ["Formula", "Gradient", "When to use it", "Error", "Example"]
    assert [section for section in sections if section in expected] == expected
    assert "```python\n" in text
    assert "# -> " in text
    assert f"[`{name}`]({name}.md)" in (LOSSES / "index.md").read_text()


def test_pictures_of_losses(tmp_path):
    """What `docs/losses/curves.py` draws is what is there, each on the page of its loss."""
    for name in ("matplotlib", "scipy"):
        pytest.importorskip(name, reason="it draws the curves")
    command = [sys.executable, "-W", "error", LOSSES / "curves.py", "--folder", tmp_path]
    path = os.pathsep.join(path for path in sys.path if path)
    subprocess.run(command, check=True, timeout=120, env=os.environ | {"PYTHONPATH": path})
    names = {path.stem for path in tmp_path.glob("*.svg")}
    assert names == {path.stem for path in LOSSES.glob("*.svg")}
    assert len(names) >= 7
    for name in names:
        assert_same_picture((tmp_path / f"{name}.svg").read_text(), LOSSES / f"{name}.svg")
        assert f"]({name}.svg)" in (LOSSES / f"{name}.md").read_text()


def test_list_of_decisions():
    """Each record has one line with its number, and the list says which numbers have none."""
    text = (DECISIONS / "README.md").read_text()
    listed = re.findall(r"^\| \[(\d+)\]\((\S+)\) \|", text, re.MULTILINE)
    assert listed == [(str(int(path.name[:4])), path.name) for path in RECORDS]
    numbers = [int(number) for number, _ in listed]
    absent = sorted({*range(1, numbers[-1])} - {*numbers})
    assert absent == [9, 17, 18, 19, 41]
    assert f"The next record is {numbers[-1] + 1}." in text


def test_decisions_that_are_referred_to_exist():
    numbers = {int(path.name[:4]) for path in RECORDS}
    files = [*PAGES, *RECORDS]
    files += [path for folder in ("src", "python") for path in (ROOT / folder).rglob("*.rs")]
    files += [path for path in (ROOT / "python").rglob("*.py")]
    found = {path: {int(n) for n in DECISION.findall(path.read_text())} for path in files}
    assert any(found.values())
    assert not {ids(path): found[path] - numbers for path in files if found[path] - numbers}
