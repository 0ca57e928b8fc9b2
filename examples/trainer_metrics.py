"""Metrics of `transformers.Trainer` from a meter: no logits are stored.

By default the trainer keeps the logits of the whole evaluation set until its end. With
``batch_eval_metrics=True`` it calls ``compute_metrics`` after each batch instead, and says which
one is the last. `MeterMetrics` adds each batch to a `xentrs.CrossEntropyMeter`, and returns the
metrics at the end. The model is a small Llama with random weights, and the texts are made up, so
that nothing is downloaded.

``python examples/trainer_metrics.py``. It needs PyTorch, transformers and accelerate:
``pip install accelerate transformers``.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset

import xentrs

VOCABULARY, LENGTH, TEXTS, BATCH = 1000, 64, 24, 4


class MeterMetrics:
    """A ``compute_metrics`` for causal language models and classifiers.

    Parameters
    ----------
    shift : bool
        Whether the logits of a token score the next one.
    **options
        Options of `xentrs.CrossEntropyMeter`.
    """

    def __init__(self, *, shift: bool, **options: Any) -> None:
        self.shift, self.options = shift, options
        self.meter = xentrs.CrossEntropyMeter(**options)

    def __call__(
        self, prediction: transformers.EvalPrediction, compute_result: bool
    ) -> dict[str, float]:
        """Add a batch; return the metrics of all, and begin anew, if it was the last."""
        logits, labels = (self.plain(x) for x in (prediction.predictions, prediction.label_ids))
        if self.shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        self.meter.update(logits.numpy(), labels.numpy())
        if not compute_result:
            return {}
        result, self.meter = self.meter.compute(), xentrs.CrossEntropyMeter(**self.options)
        return {
            "nll": result.loss,
            "nll_stderr": result.stderr,
            "perplexity": result.perplexity,
            "accuracy": result.accuracy,
            "top_5": result.top_k[5],
            "calibration_error": result.calibration_error,
            "nll_p99": result.quantile(0.99),
        }

    @staticmethod
    def plain(x: Any) -> Tensor:
        x = x[0] if isinstance(x, tuple) else x
        tensor: Tensor = torch.as_tensor(x).detach().cpu()
        # NumPy has no bfloat16.
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


class Texts(Dataset[dict[str, Tensor]]):
    """Texts of runs of tokens that follow each other."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        start = torch.randint(0, VOCABULARY, (TEXTS, LENGTH // 16, 1), generator=generator)
        self.tokens = (start + torch.arange(16)).flatten(1) % VOCABULARY

    def __len__(self) -> int:
        return TEXTS

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[i], "labels": self.tokens[i]}


def llama() -> nn.Module:
    """Make a small Llama with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model


def main() -> None:
    """Train a little, evaluate, and print the metrics."""
    transformers.set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=10,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            learning_rate=1e-2,
            batch_eval_metrics=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            llama(),
            arguments,
            train_dataset=Texts(),
            eval_dataset=Texts(),
            compute_metrics=MeterMetrics(shift=True),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        metrics = trainer.evaluate()
    for name, value in metrics.items():
        if not name.endswith(("runtime", "per_second", "epoch")):
            print(f"{name:24} {value:.5f}")


if __name__ == "__main__":
    main()
