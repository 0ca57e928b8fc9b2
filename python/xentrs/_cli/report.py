"""What `compute` returns and what files hold, for a person at a glance and as JSON."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from xentrs._cli.sources import Listed
    from xentrs._meter import MeterResult

# Of more arrays in a row with one shape and type, three and the last one are shown.
_MOST = 8

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


def as_json(result: MeterResult, n_bytes: float | None) -> str:
    """Return one flat JSON object on one line.

    What is not finite is null, since JSON has neither NaN nor infinities.
    """
    numbers = {f.name: getattr(result, f.name) for f in fields(result)}
    found: dict[str, Any] = {k: x for k, x in numbers.items() if isinstance(x, int | float)}
    found["bits_per_byte"] = math.nan if n_bytes is None else result.bits_per_byte(n_bytes)
    found |= {f"top_k_{k}": share for k, share in result.top_k.items()}
    for name in ("quantile", "kl_quantile"):
        found |= {f"{name}_{q}": getattr(result, name)(q) for q in QUANTILES}
    for name in ("reliability", "per_class"):
        part = getattr(result, name)
        if part is not None:
            found |= {f"{name}_{key}": np.asarray(a).tolist() for key, a in vars(part).items()}
    return json.dumps({name: _plain(value) for name, value in found.items()}, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def show(result: MeterResult, n_bytes: float | None, title: str, console: Console) -> None:
    """Print the report that a person reads."""
    table = _table()
    _add(table, "samples", f"{result.count:,}")
    has_nan = result.count > 0 and math.isnan(result.loss)
    of_loss = "the loss of at least one sample is NaN" if has_nan else _in_nats(result.stderr)
    _add(table, "loss", _number(result.loss), of_loss)
    _add(table, "", _number(result.bits), "bits")
    _add(table, "perplexity", _number(result.perplexity))
    if n_bytes is not None:
        _add(
            table, "bits per byte", _number(result.bits_per_byte(n_bytes)), f"{n_bytes:,.0f} bytes"
        )
    _add_share(table, "accuracy", result.accuracy)
    for k, value in result.top_k.items():
        if k > 1:
            _add_share(table, f"top {k}", value)
    for name, value, note in (
        ("entropy", result.entropy, "nats, of the predictions"),
        ("Brier score", result.brier, ""),
        ("calibration error", result.calibration_error, "accuracy against confidence"),
    ):
        # NaN also stands for what was not computed, which is left out.
        if has_nan or not math.isnan(value):
            _add(table, name, _number(value), note)
    if not math.isnan(result.prior_loss):
        of_prior = "nats, of the frequencies of the classes"
        _add(table, "prior loss", _number(result.prior_loss), of_prior)
    console.print(Text(title, style="bold"))
    console.print()
    console.print(table)

    of_reference = (result.kl, result.delta_loss, result.same_top)
    has_reference = not all(map(math.isnan, of_reference))
    if has_reference:
        table = _table()
        _add(table, "KL divergence", _number(result.kl), "nats, KL(reference, model)")
        _add_share(table, "same top class", result.same_top)
        delta = _number(result.delta_loss, "+.5g")
        _add(table, "loss - reference", delta, _in_nats(result.delta_stderr))
        console.print()
        console.print(Text("against the reference", style="bold"))
        console.print(table)

    if result.count:
        percentiles = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        percentiles.add_column("percentile", justify="right")
        percentiles.add_column("loss", justify="right")
        if has_reference:
            percentiles.add_column("KL", justify="right")
        for q in QUANTILES:
            cells = [f"{100 * q:g} %", _number(result.quantile(q))]
            if has_reference:
                cells.append(_number(result.kl_quantile(q)))
            percentiles.add_row(*map(Text, cells))
        console.print()
        console.print(percentiles)


def arrays_as_json(arrays: Sequence[tuple[str, Listed]]) -> str:
    """Return the arrays of files as a list of JSON objects, on one line."""
    return json.dumps(
        [
            {"file": file, "key": one.key or None, "shape": one.shape, "type": one.dtype}
            for file, one in arrays
        ]
    )


def show_arrays(arrays: Sequence[tuple[str, Listed]], console: Console) -> None:
    """Print the table of arrays that a person reads."""
    table = Table("file", "key", "shape", "type", box=None, pad_edge=False)
    for _, group in itertools.groupby(arrays, lambda one: (one[0], *one[1][1:])):
        alike = list(group)
        for i, (file, one) in enumerate(alike):
            if len(alike) <= _MOST or i < 3 or i == len(alike) - 1:
                table.add_row(*map(Text, (file, one.key, str(one.shape), one.dtype)))
            elif i == 3:
                table.add_row(Text(file), Text(f"… {len(alike) - 4} more"))
    console.print(table)


def _table() -> Table:
    """Return a table of statistics, each with its name before it and a note behind it."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    return table


def _add(table: Table, name: str, value: str, note: str = "") -> None:
    table.add_row(Text(name), Text(value), Text(note))


def _add_share(table: Table, name: str, value: float) -> None:
    if not math.isnan(value):
        _add(table, name, f"{100 * value:.2f} %")


def _in_nats(stderr: float) -> str:
    """Return the note behind a loss: its standard error, if that is known, and its unit."""
    return "nats" if math.isnan(stderr) else f"± {stderr:.2g} nats"


def _number(value: float, form: str = ".5g") -> str:
    return "-" if math.isnan(value) else format(value, form)
