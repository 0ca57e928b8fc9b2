"""docs/many_machines.md: the recipes for Ray and Spark run as they stand there."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "many_machines.md"

pytestmark = [
    pytest.mark.skipif(not PAGE.exists(), reason="a checkout without documentation"),
    pytest.mark.timeout(300),
]


def block(title):
    """Return the Python of a section of the page."""
    text = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return code


@pytest.mark.parametrize(("title", "library"), [("Ray", "ray"), ("Spark", "pyspark")])
def test_recipe(title, library, tmp_path):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"runs where {library} is: make test-pipelines")
    if library == "pyspark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    (tmp_path / "states.py").write_text(block("States as bytes"))
    code = block(title)
    assert "assert meter.compute() == " in code
    (tmp_path / "recipe.py").write_text(f"{code}print(meter.compute().count)\n")
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {
        "PYTHONPATH": path,
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    done = subprocess.run(
        [sys.executable, "recipe.py"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.splitlines()[-1] == "1000"
