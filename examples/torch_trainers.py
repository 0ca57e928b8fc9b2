"""Training code that knows nothing of xentrs, with PyTorch's losses and under `xentrs.torch.patch`.

Two trainers are run as they are: `transformers.Trainer` with a small Llama, and Lightning with a
module that calls `torch.nn.functional.cross_entropy`. The models are made from their configurations
with random weights, and the texts are made up, so that nothing is downloaded. Each trainer runs in
turns with and without the patch, from the same seed. Printed are the losses of the first and the
last step, how far the losses of all steps are apart, the median time of a step, and the median of
the time that the CPUs worked for it, which other processes disturb less.

``python examples/torch_trainers.py --help``. It needs PyTorch, transformers, accelerate and
Lightning: ``pip install accelerate lightning transformers``.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import xentrs.torch

VOCABULARY, LENGTH, BATCH = 32000, 128, 4


class Tokens(Dataset[dict[str, Tensor]]):
    """Texts of runs of 16 tokens that follow each other, so that there is something to learn."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        start = torch.randint(0, VOCABULARY, (count, LENGTH // 16, 1), generator=generator)
        self.tokens = (start + torch.arange(16)).flatten(1) % VOCABULARY

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[i], "labels": self.tokens[i]}


def llama(hidden: int) -> nn.Module:
    """Make a small Llama with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model


@dataclass
class Run:
    """What a run has measured."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each step
    cpu_seconds: list[float] = field(default_factory=list)  # of each step, by all threads

    def begin_step(self) -> None:
        """Start the clocks."""
        self._begin = time.perf_counter(), time.process_time()

    def end_step(self) -> None:
        """Stop the clocks."""
        self.seconds.append(time.perf_counter() - self._begin[0])
        self.cpu_seconds.append(time.process_time() - self._begin[1])


def with_transformers(steps: int, hidden: int) -> Run:
    """Train by the trainer of transformers."""
    run = Run()

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            run.begin_step()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            run.end_step()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                run.losses.append(float(logs["loss"]))

    transformers.set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            llama(hidden), arguments, train_dataset=Tokens(steps * BATCH), callbacks=[Watch]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return run


class Module(lightning.LightningModule):
    """A user's module."""

    def __init__(self, run: Run, hidden: int) -> None:
        super().__init__()
        self.model, self.run = llama(hidden), run

    def training_step(self, batch: dict[str, Tensor], i: int) -> Tensor:
        logits = self.model(batch["input_ids"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        self.run.losses.append(float(loss))
        return loss

    def on_train_batch_start(self, batch: Any, i: int) -> None:
        self.run.begin_step()

    def on_train_batch_end(self, outputs: Any, batch: Any, i: int) -> None:
        self.run.end_step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def with_lightning(steps: int, hidden: int) -> Run:
    """Train by the trainer of Lightning."""
    run = Run()
    lightning.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(Module(run, hidden), DataLoader(Tokens(steps * BATCH), BATCH))
    return run


def compare(
    name: str, train: Callable[[int, int], Run], steps: int, turns: int, hidden: int
) -> None:
    """Run a trainer with and without the patch, in turns, and print both."""
    runs: dict[str, list[Run]] = {"PyTorch": [], "xentrs": []}
    for turn in range(turns):
        for kind in list(runs) if turn % 2 == 0 else reversed(list(runs)):
            patch = xentrs.torch.patch() if kind == "xentrs" else contextlib.nullcontext()
            with patch:
                runs[kind].append(train(steps, hidden))
    losses = {kind: of_kind[0].losses for kind, of_kind in runs.items()}
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    # The first step of a run warms up.
    times, work = (
        {
            kind: statistics.median(t for run in of_kind for t in getattr(run, clock)[1:])
            for kind, of_kind in runs.items()
        }
        for clock in ("seconds", "cpu_seconds")
    )
    for kind in runs:
        first, last = losses[kind][0], losses[kind][-1]
        print(
            f"{name} {kind}: loss {first:.4f} to {last:.4f}, "
            f"step {times[kind] * 1e3:.0f} ms, of the CPUs {work[kind] * 1e3:.0f} ms"
        )
    faster, less = (of["PyTorch"] / of["xentrs"] for of in (times, work))
    print(
        f"{name}: the losses of {steps} steps differ by {apart:.1e}, "
        f"{faster:.2f} times as fast, by the work of the CPUs {less:.2f} times"
    )


def main() -> None:
    """Compare both trainers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size of the model")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    for name, train in (
        ("transformers.Trainer", with_transformers),
        ("lightning.Trainer", with_lightning),
    ):
        compare(name, train, options.steps, options.turns, options.hidden)


if __name__ == "__main__":
    main()
