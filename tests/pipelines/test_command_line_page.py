"""docs/command_line.md: its commands run, and print what the page shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NEEDED = "runs where the extra cli is: make test-pipelines"
pytest.importorskip("click", reason=NEEDED)
pytest.importorskip("rich", reason=NEEDED)

PAGE = Path(__file__).parents[2] / "docs" / "command_line.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="a checkout without documentation")


def calls(text):
    """Yield each command of the page with what it shows below."""
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield command, shown


def run(tmp_path, text):
    """Run all commands in one shell and return what each of them printed."""
    (made,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", made], cwd=tmp_path, env=environment, check=True)
    script = [f'xentrs() {{ "{sys.executable}" -m xentrs "$@"; }}']
    script += [f'python() {{ "{sys.executable}" "$@"; }}']
    for command, _ in calls(text):
        script += [command, "status=$?", "echo ---", "(exit $status)"]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return [part.rstrip() for part in done.stdout.split("---\n")[:-1]]


def plain(text):
    """Without spaces at the ends of lines, which an editor removes."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def test_commands(tmp_path):
    text = PAGE.read_text()
    printed = run(tmp_path, text)
    shown = list(calls(text))
    assert len(shown) == len(printed) > 8
    for (command, expected), found in zip(shown, printed, strict=True):
        assert plain(found) == plain(expected), command


def rewrite(folder):
    """Put what the commands print into the page: run this file as a script."""
    text = PAGE.read_text()
    for (command, shown), found in zip(calls(text), run(folder, text), strict=True):
        text = text.replace(
            f"$ {command}\n{shown}", f"$ {command}\n{plain(found)}\n".replace("\n\n\n", "\n")
        )
    PAGE.write_text(text)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        rewrite(made)
