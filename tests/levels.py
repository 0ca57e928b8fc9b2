"""The levels of instruction sets, and processes that compute at one: a process chooses once."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

import xentrs

HERE = Path(__file__).parent
LEVELS = ["avx512", "avx2", "neon", "portable"]
FUSED = ["avx512", "avx2", "neon"]  # with fused multiply-add: all bits are the same
# The levels of this machine ("available", the best first), and that of this process ("level").
SIMD = xentrs.show_config(mode="dicts")["simd"]


def have_the_same_bits(level, other):
    return level == other or {level, other} <= {*FUSED}


def environment(level):
    """Return the environment of a process at a level."""
    paths = [str(HERE), *(path for path in sys.path if path)]
    return os.environ | {"XENTRS_SIMD": level, "PYTHONPATH": os.pathsep.join(paths)}


class Level:
    """A process that computes cases of `test_accuracy` at one level."""

    def __init__(self, name):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment(name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(60) == 0

    def compute(self, case):
        """Return the results of a case, and the sum of its losses."""
        pickle.dump(case, self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)


def serve():
    """Compute what comes in, at the level of this process."""
    while True:
        try:
            case = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        results = [np.asarray(result) for result in case.compute()]
        pickle.dump((results, case.sum_of_losses()), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
