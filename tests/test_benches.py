"""The benchmarks run on small arrays, and what they write is right; speed is not judged here.

Answers and memory are, as they do not depend on the machine.
"""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xentrs
from xentrs import _xentrs

ROOT = Path(__file__).parents[1]
BENCHES = ROOT / "benches"
LEVELS = xentrs.show_config(mode="dicts")["simd"]["available"]

pytest.importorskip("scipy", reason="the exact answers use it")
pytestmark = [
    pytest.mark.skipif(
        not BENCHES.is_dir() or shutil.which("rustc") is None,
        reason="floors are compiled in a checkout with a Rust toolchain",
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="benches choose CPUs as Linux does"),
]

# Not that of a process of pytest-xdist, in which pytest-benchmark times nothing.
ENVIRONMENT = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
# Folders that Python imports from, for a process that works in another folder
IMPORTS = {
    name: os.pathsep.join(map(os.path.abspath, value.split(os.pathsep)))
    for name, value in os.environ.items()
    if name == "PYTHONPATH"
}


def start(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT | {"XENTRS_NUM_THREADS": "2"} | IMPORTS,
        cwd=folder,
    )


def run(script: str, *arguments: str, file: Path | None = None, warnings: str = "error") -> str:
    """Run a script, where warnings are errors unless they are PyTorch's; return what it prints."""
    written = [] if file is None else ["--json", str(file)]
    done = start("-W", warnings, str(BENCHES / script), *arguments, *written)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


ROWS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import rows
kept = ["loss", "name", "with_grad"]
print(json.dumps([{key: getattr(row, key) for key in kept} | {
    "input": row.of.input,
    "axis": not row.of.elementwise,
} for row in rows.ROWS]))
"""


@pytest.fixture(scope="module")
def rows():
    """Return what the test below reads of each row.

    Another process imports them: the benchmarks change the CPUs that their process may use.
    """
    done = start("-c", ROWS, str(BENCHES))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_loss_has_rows(rows):
    """A loss that is added to xentrs is measured, or this fails: see benches/formulas.py."""
    suffix = "_with_grad"
    public = {name.removesuffix(suffix) for name in xentrs.__all__ if name.endswith(suffix)}
    public -= {"linear_cross_entropy"}  # linear.py measures it
    assert {row["loss"] for row in rows if row["with_grad"]} == public
    names = [row["name"] for row in rows]
    assert len({*names}) == len(names)
    for row in rows:
        about = xentrs._xentrs.LOSSES[row["loss"]]
        assert (row["input"], row["axis"]) == (about["input"], about["axis"]), row["name"]


def test_compare(tmp_path):
    """All rows, whose answers are compared with float64; then the tables."""
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
    beside = [row for row in report["rows"] if re.match("focal|.*, z-loss", row["name"])]
    assert len(beside) == 4
    assert all({"xentrs", "xentrs, plain row", "NumPy"} <= {*row["sides"]} for row in beside)


SUITE = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(BENCHES), "--quick"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Run the suite on one row; return the folder and the file that have its results."""
    folder = tmp_path_factory.mktemp("suite")
    suite = [*SUITE, "--rows", "loss+grad 128 x 1000 f32", "--benchmark-storage=kept"]
    peers = ["--peers", "numpy,scipy,jax"]
    done = start(*suite, *peers, "--benchmark-autosave", "-rs", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("not installed") == (importlib.util.find_spec("jax") is None)
    (file,) = folder.glob("kept/*/0001_*.json")
    return suite, file


def test_suite_saves(saved):
    """A test for each library in the row's group, and what a comparison must not mix up."""
    report = json.loads(saved[1].read_text())
    assert {"xentrs", "NumPy", "SciPy"} <= {b["extra_info"]["side"] for b in report["benchmarks"]}
    assert {b["group"] for b in report["benchmarks"]} == {"loss+grad 128 x 1000 f32"}
    assert report["machine_info"]["xentrs"]["threads"] == 2


@pytest.mark.parametrize(("factor", "fails"), [(1e-3, True), (1e3, False)])
def test_suite_shows_a_regression(saved, factor, fails):
    """Held against a run whose times were a thousandth of these, or a thousand times as long."""
    suite, file = saved
    text = file.read_text()
    report = json.loads(text)
    for benchmark in report["benchmarks"]:
        for name, value in benchmark["stats"].items():
            if isinstance(value, float):
                benchmark["stats"][name] = value * factor
    file.write_text(json.dumps(report))
    try:
        compare = ["--benchmark-compare=0001", "--benchmark-compare-fail=median:900%"]
        done = start(*suite, "--peers", "none", *compare, folder=file.parents[2])
    finally:
        file.write_text(text)
    assert ("Performance has regressed" in done.stdout + done.stderr) == fails
    assert (done.returncode != 0) == fails, done.stdout + done.stderr


WRONG = """
import sys

import pytest

sys.path.insert(0, {benches!r})
import sides

right = sides.xentrs_side


def twice_the_loss(case, name):
    side = right(case, name)
    side.statement = f"(2 * {{side.statement}}[0], g)"
    return side


sides.xentrs_side = twice_the_loss
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_suite_refuses_a_wrong_answer():
    """The answer is checked before anything is timed."""
    options = [*SUITE[2:], "--rows", "loss+grad 128 x 1000 f32", "--peers", "none"]
    done = start("-c", WRONG.format(benches=str(BENCHES)), *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wrong: the loss is" in done.stdout
    assert "1 failed" in done.stdout


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
    """The environment restricts NumPy by names that NumPy knows."""
    script = tmp_path / "level.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHES)!r})\n"
        "import environment, xentrs\n"
        "environment.restart_at('avx2')\n"
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
    assert "times as fast as one thread" in printed
    assert "xentrs, another build" in printed
    (report,) = json.loads(file.read_text())["levels"].values()
    settings = {"loop", "sleep", "product", "step", "loop in place", "beside one", "beside all"}
    for row in report["rows"]:
        in_place = {"loop in place"} if row["name"].startswith("log_loss") else set()
        assert set(row["settings"]) == (settings | {"callers"}) - in_place
        for sides in row["settings"].values():
            assert not any("trouble" in side for side in sides.values()), sides

    (tmp_path / "docs").mkdir()
    markers = "<!-- table: make bench-peers -->\nstale\n<!-- end of the table -->"
    (tmp_path / "README.md").write_text(f"before\n{markers}\nafter\n")
    into = ["--into", str(tmp_path)]
    assert start(str(BENCHES / "table.py"), str(tmp_path), "--check", *into).returncode == 1
    run("table.py", str(tmp_path), "--readme", *into)
    run("table.py", str(tmp_path), "--check", *into)
    small = (tmp_path / "README.md").read_text()
    large = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert small.startswith("before\n<!--")
    assert small.endswith("-->\nafter\n")
    assert "stale" not in small
    # No row of full size was timed, so none is shown; the legend is.
    assert "[docs/benchmarks.md](docs/benchmarks.md)" in small
    assert all(f"| {row['name']} | sleep |" in large for row in report["rows"])


def test_torch_suite(tmp_path):
    """PyTorch's own loss, and compositions of it. Sigmoid focal loss, named alike, has none."""
    pytest.importorskip("torch", reason="make test-torch runs it")
    rows = ["--rows", "loss+grad 65536 x 10 f32, z-loss", "--rows", "focal loss+grad 65536 x 10"]
    done = start(*SUITE, *rows, "--peers", "pytorch", folder=tmp_path)
    assert "7 passed, 2 skipped" in done.stdout, done.stdout + done.stderr


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


def test_every_file_is_explained():
    """benches/README.md says what each file has."""
    named = set(re.findall(r"`([\w/]+(?:\.\w+)?)`", (BENCHES / "README.md").read_text()))
    files = {f.name + "/" * f.is_dir() for f in BENCHES.iterdir() if f.name != "README.md"}
    files = {name for name in files if not name.startswith((".", "__pycache__"))}
    assert files <= named


def test_committed_tables_are_current():
    """The README's table, and docs/benchmarks.md, are what the committed measurements give."""
    shown = "import rows, table; assert {s[0] for s in table.SHOWN} <= {*rows.STEP_ROWS}"
    done = start("-c", f"import sys; sys.path.insert(0, {str(BENCHES)!r}); {shown}")
    assert done.returncode == 0, done.stderr
    run("table.py", "--check")
    table = re.search(r"\n(\| work .*?)\n\n", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    header, _, *lines = table.splitlines()
    assert header.count("|") - 1 <= 6
    assert 5 <= len(lines) <= 8
    assert not re.search(r"\b0\.0+\b", table)


def test_picture(tmp_path):
    """Of the committed measurements."""
    pytest.importorskip("matplotlib", reason="it draws")
    run("picture.py", "--folder", str(tmp_path))
    picture = (tmp_path / "bench.svg").read_text()
    assert "</svg>" in picture
    assert all(name in picture for name in ("one sample", "PyTorch compiled"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0312, "0.031"),
        (0.5, "0.50"),
        (0.996, "1.00"),
        (1.4, "1.40"),
        (14.6, "14.6"),
        (99.96, "100"),
    ],
)
def test_no_factor_is_shown_as_zero(value, shown):
    spec = importlib.util.spec_from_file_location("results", BENCHES / "results.py")
    results = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(results)
    assert results.factor(value) == shown


def test_curves(tmp_path):
    pytest.importorskip("matplotlib", reason="it draws")
    run("curves.py", "--quick", "--folder", str(tmp_path), file=tmp_path / "curves.json")
    for name in ("curve-classes.svg", "scaling.svg"):
        assert "</svg>" in (tmp_path / name).read_text()


def test_keywords():
    # Not above: other tests here run beside those of PyTorch, which have a module of this name.
    from losses import OF_ONE_CLASS

    printed = run("keywords.py", "--quick", "--limit", "0", "--dtypes", "f32")
    for name, loss in _xentrs.LOSSES.items():
        lines = [line for line in printed.splitlines() if f" {name} 16 x 10 f32" in line]
        for keyword in {*loss["options"]} - {"axis", "logsumexp_out", "argmax_out"}:
            refused = keyword == "label_smoothing" and name in OF_ONE_CLASS
            assert refused or any(f": {keyword}" in line for line in lines), (name, keyword)


def test_meter():
    printed = run("meter.py", "--quick", "--rows", "1000 float32")
    (row,) = [line for line in printed.splitlines() if line.startswith("| 64 x 10 float32 |")]
    assert len(row.split("|")) == 9


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


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="it counts the instructions")
def test_the_plugin_counts_instructions(tmp_path):
    """Between two calls of `getppid`, whatever the program is."""
    plugin, counts = tmp_path / "libcounts.so", tmp_path / "counts"
    compiler = ["rustc", "--edition", "2024", "-O", "--crate-type", "cdylib"]
    subprocess.run([*compiler, "-o", plugin, BENCHES / "counts.rs"], check=True)
    script = "import os\nos.getppid()\nfor n in 1000, 3000, 5000:\n  sum(range(n)); os.getppid()"
    emulator = ["qemu-x86_64", "-plugin", f"{plugin},out={counts}"]
    python = os.path.realpath(sys.executable)
    subprocess.run([*emulator, python, "-c", script], check=True, env=ENVIRONMENT)
    marks = [int(line) for line in counts.read_text().split()]
    few, some, many = (after - before for before, after in itertools.pairwise(marks))
    # A step of the loop has the same instructions, apart from collections of garbage.
    assert 10 * 2000 < some - few < 1000 * 2000
    assert many - some == pytest.approx(some - few, rel=0.05)
