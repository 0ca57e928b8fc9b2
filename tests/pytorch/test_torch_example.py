"""The example runs, and its loss curves agree; so do the answers in the GPU's benchmark."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


def run(*command):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_digits():
    pytest.importorskip("sklearn", reason="the data are scikit-learn's")
    printed = run("examples/torch_digits.py", "--quick")
    assert "largest difference between the curves" in printed
    accuracies = [line.split()[2] for line in printed.splitlines() if " accuracy " in line]
    assert len(accuracies) == 3
    assert all(float(accuracy) > 0.8 for accuracy in accuracies)


def test_trainers():
    for name in ("accelerate", "lightning", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed: the group trainers has it")
    printed = run("examples/torch_trainers.py", "--steps", "2", "--turns", "1")
    for name in ("transformers.Trainer", "lightning.Trainer"):
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{name}: the losses")]
        assert float(line.split("differ by ")[1].split(",")[0]) < 1e-5


def test_metrics_of_the_trainer():
    for name in ("accelerate", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed: the group trainers has it")
    printed = run("examples/trainer_metrics.py")
    found = {line.split()[0]: float(line.split()[1]) for line in printed.splitlines()}
    # The trainer's own loss is the mean of the batches' means, whose texts have the same length.
    assert found["eval_nll"] == pytest.approx(found["eval_loss"], rel=1e-4)
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_nll"]), rel=1e-4)
    assert 0 <= found["eval_accuracy"] <= found["eval_top_5"] <= 1


def test_benchmark_on_the_cpu():
    printed = run("benches/torch_cpu.py", "--quick", "--rows", "128 x 1000")
    assert "| 128 x 1000 float32 |" in printed


def test_benchmark_on_the_gpu():
    pytest.importorskip("triton", reason="Triton is not installed")
    import torch

    if torch.cuda.is_available():
        pytest.skip("for a machine without a GPU: it would take long")
    printed = run("benches/torch_gpu.py")
    losses = re.findall(r"the answers agree: (.*?) \| .* \| xentrs$", printed, re.MULTILINE)
    assert len(losses) >= 12 * 6  # of each loss three sizes, two types
    assert {losses.count(name) for name in losses} == {6}
    assert "nothing was timed" in printed
