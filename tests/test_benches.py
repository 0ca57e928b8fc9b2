"""The benchmarks run, on small arrays, and draw; what they find is not judged here.

But for two things that do not depend on the machine: answers are right, and memory is bounded.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[1] / "benches"

pytest.importorskip("scipy", reason="the exact answers use it")
pytestmark = pytest.mark.skipif(
    not BENCHES.is_dir() or shutil.which("rustc") is None,
    reason="floors are compiled in a checkout with a Rust toolchain",
)


def run(script: str, *arguments: str, file: Path | None = None) -> str:
    """Run a script, warnings being errors; return what it prints."""
    written = [] if file is None else ["--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(BENCHES / script), *arguments, *written],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"XENTRS_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_compare(tmp_path):
    """All rows, whose answers are compared with float64; then the table and the picture."""
    file = tmp_path / "compare.json"
    printed = run("compare.py", "--quick", "--peers", "numpy", file=file)
    assert "wrong" not in printed
    assert "fails" not in printed
    report = json.loads(file.read_text())
    assert len(report["rows"]) > 30
    assert all(row["sides"]["xentrs"]["median"] > 0 for row in report["rows"])

    table = run("table.py", str(file))
    assert all(row["name"] in table for row in report["rows"])
    pytest.importorskip("matplotlib", reason="it draws")
    run("picture.py", str(file), "--folder", str(tmp_path))
    assert "</svg>" in (tmp_path / "bench.svg").read_text()


def test_curves(tmp_path):
    pytest.importorskip("matplotlib", reason="it draws")
    run("curves.py", "--quick", "--folder", str(tmp_path), file=tmp_path / "curves.json")
    for name in ("curve-classes.svg", "scaling.svg"):
        assert "</svg>" in (tmp_path / name).read_text()


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux shows it"
)
def test_memory():
    assert "\n0 of " in run(
        "memory.py", "--quick", "--rows", "label smoothing", "--rows", "log_loss loss+"
    )


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="it counts the instructions")
def test_instructions():
    assert "| binary loss+grad" in run("instructions.py", "--quick")
