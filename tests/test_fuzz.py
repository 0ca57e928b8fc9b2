"""Random arguments never crash the interpreter, whatever they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = int(4000 * float(os.environ.get("FUZZ_FACTOR", "1")))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(3))
def test_random_arguments(part):
    """See fuzz.py for what may come of a case: right results or a clear error."""
    paths = [str(HERE), *(p for p in sys.path if p)]
    script = [str(HERE / "fuzz.py"), str(part * CASES), str(CASES)]
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", *script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stderr[-3000:]}"
    accepted = int(done.stdout)
    assert CASES * 0.15 < accepted < CASES * 0.85, "too few cases of one kind to be a test"
