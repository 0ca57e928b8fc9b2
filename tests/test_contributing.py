"""CONTRIBUTING.md's "What do I touch?" against the tree: files exist, the example is complete."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GENERATED = ("benches/results/", "docs/benchmarks.md", ".svg")


def section(title):
    """Return a section of CONTRIBUTING.md, its subsections included."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    assert found, f"no section {title!r}"
    return found[1]


def paths(text):
    """Return what looks like a path among the code spans of a text."""
    spans = re.findall(r"`([^`\s]+)`", text)
    return [span for span in spans if re.search(r"/|\.(py|pyi|rs|md|toml)$|^Makefile$", span)]


def example():
    """Return the files that the worked example lists, with what it says of each."""
    text = section("What do I touch?").partition("### ")[2]
    rows = re.findall(r"^\| (`.+?`) \| (.+?) \|$", text, re.M)
    return {path: words for cell, words in rows for path in paths(cell)}


@pytest.fixture(scope="module")
def tracked():
    """Return the files that git tracks."""
    command = ["git", "ls-files"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a working tree of git")
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


def is_own(path):
    """Whether a file is named after the loss of the example, and not after its binary relative."""
    return re.search(r"(?<!sigmoid_)focal", Path(path).stem) is not None


def test_every_path_exists():
    named = paths(section("What do I touch?"))
    assert len(named) > 20
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_example_lists_every_file_that_names_its_loss(tracked):
    naming = set()
    for name in tracked:
        generated = any(part in name for part in GENERATED)
        own = "focal" in Path(name).stem
        if (
            not generated
            and not own
            and name not in ("CONTRIBUTING.md", "tests/test_contributing.py")
        ):
            text = (ROOT / name).read_bytes().decode(errors="replace")
            if re.search(r"focal", text, re.I):
                naming.add(name)
    listed = {path for path in example() if not is_own(path)}
    folders = tuple(path for path in listed if path.endswith("/"))
    left_out = {name for name in naming - listed if not name.startswith(folders)}
    assert not left_out, "files that a loss touches and the example leaves out"
    untouched = listed - naming - set(folders)
    assert not untouched, "files that the example lists and its loss does not touch"


def test_the_example_lists_the_files_of_its_own(tracked):
    folders = tuple(path for path in example() if path.endswith("/"))
    own = {name for name in tracked if is_own(name) and not name.startswith(folders)}
    assert own == {path for path in example() if is_own(path)}
    assert len(own) >= 2
