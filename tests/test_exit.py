"""A thread that computes while the interpreter ends does not take the process down."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

BEGIN = """
import atexit, sys, threading, time
{before}
import numpy as np
import xentrs

x, y = np.zeros((4, 3), "f4"), np.zeros(4, int)
large, z = np.zeros((2000, 500), "f4"), np.zeros(2000, int)
"""

# Arrays as they are and converted by Python code, with the GIL and without it, nested calls.
CALLS = {
    "list": "xentrs.cross_entropy([[1.0, 2.0]], [0])",
    "array": "xentrs.cross_entropy_with_grad(x, y)",
    "byte-swapped": "xentrs.cross_entropy_with_grad(x.astype('>f4'), y)",
    "large": "xentrs.cross_entropy_with_grad(large, z, out=large)",
    "binary": "xentrs.binary_cross_entropy_with_logits(large, large)",
    "softmax": "xentrs.softmax(x)",
    "meter": "xentrs.CrossEntropyMeter().update(x, y).compute()",
    "slices": "xentrs.PartialCrossEntropy.of(x, y, first_class=0).loss()",
}


def run(program, *, before="", flags=()):
    program = BEGIN.format(before=textwrap.dedent(before)) + textwrap.dedent(program)
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, *flags, "-c", program], capture_output=True, text=True, timeout=120
    )
    return done, time.monotonic() - begin


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", CALLS)
def test_daemon_threads(kind, threads):
    program = f"""
        def calls():
            while True:
                {CALLS[kind]}

        for _ in range({threads}):
            threading.Thread(target=calls, daemon=True).start()
        time.sleep(0.1)
        print("the end")
    """
    for _ in range(3):
        done, _ = run(program)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "the end\n"


def test_a_function_of_atexit_that_waits_for_a_thread():
    """It was registered before ours, and so runs later: its thread must not wait for ever."""
    before = """
        def finish():
            queue.append(3)
            worker.join()
            print(*results)

        atexit.register(finish)
    """
    program = """
        queue, results = [], []

        def work():
            while not queue:
                time.sleep(0.01)
            results.extend(xentrs.cross_entropy(x, y) for _ in range(queue[0]))

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
    """
    done, seconds = run(program, before=before)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["1.0986121892929077"] * 3
    assert seconds < 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_child_does_not_wait_for_threads_of_its_parent():
    program = """
        import os

        def calls():
            while True:
                xentrs.cross_entropy_with_grad(large, z, out=large)

        for _ in range(3):
            threading.Thread(target=calls, daemon=True).start()
        time.sleep(0.1)
        for _ in range(5):
            child = os.fork()
            if not child:
                print(xentrs.cross_entropy(x, y), flush=True)
                begin = time.monotonic()
                atexit._run_exitfuncs()
                os._exit(time.monotonic() - begin > 0.5)
            assert os.waitpid(child, 0)[1] == 0
    """
    done, _ = run(program, flags=["-W", "ignore::DeprecationWarning"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["1.0986121892929077"] * 5


def test_calls_of_atexit():
    done, _ = run("print(xentrs.cross_entropy(x, y))", before="import xentrs")
    expected = done.stdout
    before = "atexit.register(lambda: print(xentrs.cross_entropy(x, y)))"
    later = "atexit.register(lambda: print(xentrs.cross_entropy(x.tolist(), y.tolist())))"
    done, _ = run(later, before=before)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == expected.strip()


def test_without_docstrings():
    """`python -OO` drops them."""
    program = "print(xentrs.cross_entropy.__doc__, xentrs.cross_entropy(x, y))"
    done, _ = run(program, flags=["-OO"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "None 1.0986121892929077\n"
