"""The pictures that people look at, in one PNG."""

from __future__ import annotations

import math
import os
import warnings
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from xentrs._cli.errors import MissingLibrary

if TYPE_CHECKING:
    from xentrs._meter import MeterResult


# Where larger finite numbers are drawn: margins around them would not be finite.
_LARGEST = 1e200


def check_drawing() -> None:
    """Refuse before any work if there is nothing to draw with."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise MissingLibrary("--png", "matplotlib") from None


def draw(result: MeterResult, title: str, opened: IO[bytes]) -> None:
    """Draw reliability, the histogram of losses and the percentiles of the KL divergence."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a screen

    has_kl = not math.isnan(result.kl)
    figure = Figure(figsize=(5 * (2 + has_kl), 4.5), layout="constrained")
    axes = figure.subplots(1, 2 + has_kl)
    # Bytes of a file's name that are no characters cannot be drawn; dollars in it are no formula.
    figure.suptitle(os.fsencode(title).decode("utf-8", "replace"), parse_math=False)
    _reliability(axes[0], result)
    _losses(axes[1], result)
    if has_kl:
        _divergences(axes[2], result)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the font draws a box for it
        figure.savefig(opened, format="png", dpi=120)


def _reliability(axes: Any, result: MeterResult) -> None:
    found = result.reliability
    edges, filled = found.edges, found.count > 0
    width = np.diff(edges)
    axes.bar(
        edges[:-1][filled],
        found.accuracy[filled],
        width[filled],
        align="edge",
        color="tab:blue",
        alpha=0.6,
        edgecolor="white",
        label="accuracy",
    )
    axes.plot(found.confidence[filled], found.accuracy[filled], "o", color="tab:blue")
    axes.plot([0, 1], [0, 1], "--", color="gray", label="calibrated")
    top = max(int(found.count.sum()), 1)
    axes.step(edges, np.r_[found.count, 0] / top, where="post", color="tab:orange", lw=1)
    axes.plot([], [], color="tab:orange", lw=1, label="share of samples")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    axes.set_title(f"Reliability (calibration error {result.calibration_error:.4f})")
    axes.legend(loc="upper left", fontsize="small")


def _losses(axes: Any, result: MeterResult) -> None:
    # Equal shares of the samples, of which each has the loss of its quantile.
    losses = result.quantile((np.arange(2000) + 0.5) / 2000)
    shown = _drawn(losses[np.isfinite(losses)])
    # Quantiles are rounded to steps of 1/64 or finer: equal ones are spread over their step.
    _, step, count = np.unique(shown, return_inverse=True, return_counts=True)
    rank = np.arange(shown.size) - (np.cumsum(count) - count)[step]
    shown = shown * (1 + ((rank + 0.5) / count[step] - 0.5) / 64)
    if shown.size and shown[-1] > 0:
        bins = np.linspace(0, shown[min(int(0.995 * shown.size), shown.size - 1)] or shown[-1], 50)
        axes.hist(np.minimum(shown, bins[-1]), bins, weights=np.full(shown.size, 1 / losses.size))
    axes.axvline(_drawn(result.loss), color="tab:red", lw=1, label=f"mean {result.loss:.4g}")
    axes.set(xlabel="loss (nats)", ylabel="share of samples", title="Losses")
    axes.legend(fontsize="small")


def _divergences(axes: Any, result: MeterResult) -> None:
    shares = np.r_[np.linspace(0.01, 0.99, 99), 0.995, 0.999]
    divergences = _drawn(result.kl_quantile(shares))
    axes.plot(100 * shares, divergences)
    axes.axhline(_drawn(result.kl), color="tab:red", lw=1, label=f"mean {result.kl:.4g}")
    axes.set(xlabel="percentile", ylabel="KL divergence (nats)", title="KL from the reference")
    if ((divergences > 0) & (divergences < math.inf)).any():
        axes.set_yscale("log")
    axes.legend(fontsize="small")


def _drawn(x: Any) -> Any:
    return np.where(np.isinf(x), x, np.minimum(x, _LARGEST))
