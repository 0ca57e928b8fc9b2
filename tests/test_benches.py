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

import xentrs

BENCHES = Path(__file__).parents[1] / "benches"
LEVELS = xentrs.show_config(mode="dicts")["simd"]["available"]

pytest.importorskip("scipy", reason="the exact answers use it")
pytestmark = pytest.mark.skipif(
    not BENCHES.is_dir() or shutil.which("rustc") is None,
    reason="floors are compiled in a checkout with a Rust toolchain",
)


def run(script: str, *arguments: str, file: Path | None = None, warnings: str = "error") -> str:
    """Run a script, warnings being errors but for PyTorch's own; return what it prints."""
    written = [] if file is None else ["--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-W", warnings, str(BENCHES / script), *arguments, *written],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"XENTRS_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_compare(tmp_path):
    """All rows, whose answers are compared with float64; then the tables and the picture."""
    file = tmp_path / "compare.json"
    printed = run("compare.py", "--quick", "--peers", "numpy", file=file)
    assert "wrong" not in printed
    assert "fails" not in printed
    (level, report), *others = json.loads(file.read_text())["levels"].items()
    assert not others
    assert level == report["level"]
    assert len(report["rows"]) > 30
    assert all(row["sides"]["xentrs"]["median"] > 0 for row in report["rows"])

    table = run("table.py", str(tmp_path))
    assert all(row["name"] in table for row in report["rows"])
    pytest.importorskip("matplotlib", reason="it draws")
    run("picture.py", str(tmp_path), "--level", level, "--folder", str(tmp_path))
    assert "</svg>" in (tmp_path / "bench.svg").read_text()


@pytest.mark.skipif("avx512" not in LEVELS, reason="the machine has one level of the two")
def test_levels_share_a_file(tmp_path):
    """Each level in a process of its own, the other beside it; goals of each level are told."""
    file = tmp_path / "compare.json"
    name = "loss+grad 128 x 1000 f32"
    for level in ("avx512", "avx2"):
        run(
            "compare.py", "--quick", "--peers", "numpy", "--rows", name, "--level", level, file=file
        )
    levels = json.loads(file.read_text())["levels"]
    assert [report["level"] for report in levels.values()] == ["avx512", "avx2"]
    assert "xentrs, AVX2" in levels["avx512"]["rows"][0]["sides"]
    assert "xentrs, AVX-512" in levels["avx2"]["rows"][0]["sides"]
    told = run("table.py", str(tmp_path), "--goals")
    assert "AVX-512 ≤ 1.35" in told
    assert "copy ≤ 3.5" in told


@pytest.mark.skipif("avx2" not in LEVELS, reason="the machine has no AVX2")
def test_level_is_that_of_numpy_too(tmp_path):
    """What the environment holds NumPy to is what NumPy knows by that name."""
    script = tmp_path / "level.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHES)!r})\n"
        "import common, xentrs\n"
        "common.everybody_at('avx2')\n"
        "from numpy._core import _multiarray_umath as numpy\n"
        "names = [name for name in numpy.__cpu_dispatch__ if numpy.__cpu_features__[name]]\n"
        "print(xentrs.show_config(mode='dicts')['simd']['level'], *names)\n"
    )
    level, *features = run(str(script)).split()
    assert level == "avx2"
    assert not [name for name in features if name.startswith(("AVX512", "X86_V4"))]


def test_steps(tmp_path):
    """Every setting; then the README's table and the large ones, written between their markers."""
    file = tmp_path / "steps.json"
    rows = [
        "loss+grad 65536 x 10 f32",
        "loss 2048 x 32000 f32",
        "log_loss loss+grad 65536 x 1024 f32",
    ]
    named = [part for row in rows for part in ("--rows", row)]
    against = ["--against", str(Path(xentrs.__file__).parents[1])]
    printed = run("steps.py", "--quick", "--peers", "numpy", *named, *against, file=file)
    assert "goal 0.7: " in printed
    assert "xentrs, another build" in printed
    (report,) = json.loads(file.read_text())["levels"].values()
    settings = {"loop", "sleep", "product", "step", "loop in place", "beside one", "beside all"}
    for row in report["rows"]:
        in_place = {"loop in place"} if row["name"].startswith("log_loss") else set()
        assert set(row["settings"]) == (settings | {"callers"}) - in_place
        for sides in row["settings"].values():
            assert not any("trouble" in side for side in sides.values()), sides

    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/benchmarks.md"):
        markers = "<!-- table: make bench-peers -->\nstale\n<!-- end of the table -->"
        (tmp_path / name).write_text(f"before\n{markers}\nafter\n")
    run("table.py", str(tmp_path), "--readme", "--into", str(tmp_path))
    small = (tmp_path / "README.md").read_text()
    large = (tmp_path / "docs" / "benchmarks.md").read_text()
    for text in (small, large):
        assert text.startswith("before\n<!--")
        assert text.endswith("-->\nafter\n")
        assert "stale" not in text
    # No row of full size was timed, so none is shown; the heading is.
    assert "| work | xentrs | NumPy |" in small
    assert all(f"| {row['name']} | sleep |" in large for row in report["rows"])


def test_torch_steps(tmp_path):
    pytest.importorskip("torch", reason="make test-torch runs it")
    file = tmp_path / "torch.json"
    arguments = ["--steps", "--quick", "--rows", "65536 x 10"]
    run("torch_cpu.py", *arguments, warnings="default", file=file)
    (report,) = json.loads(file.read_text())["levels"].values()
    (row,) = report["rows"]
    assert {*row["settings"]} == {"step", "whole"}
    for sides in row["settings"].values():
        assert {"xentrs.torch", "PyTorch eager", "PyTorch compiled"} <= {*sides}
        assert not any("trouble" in side for side in sides.values()), sides
    assert "| whole |" in run("table.py", str(tmp_path))


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
