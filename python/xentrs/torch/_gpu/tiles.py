"""How large a part of the logits a program of a kernel over rows takes at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch

from xentrs.torch._triton import next_power_of_two


class Sizes(NamedTuple):
    """Sizes of tiles, which depend on how many registers a kernel needs for a logit."""

    longest: int  # a row of at most so many classes is one tile, and stays in registers
    tile: int  # classes in a tile of a longer row
    least: int  # numbers in a tile of several short rows
    classes: int  # classes in a tile whose neighbours in memory are positions


SIZES = Sizes(longest=1 << 15, tile=1 << 13, least=1 << 11, classes=32)

# The most classes in a tile with `more` and with `wide` (see `tiles`): the compiler for sm_90 would
# spill registers for a larger one.
_MORE, _WIDE = 1 << 14, 1 << 12


def warps(numbers: int, each: int = 16) -> int:
    """Return how many warps share a tile of so many numbers, of which a thread has `each`."""
    # A program has at most 1024 threads: 32 warps of 32, or on AMD 16 of 64.
    return min(max(numbers // (32 * each), 4), 16 if torch.version.hip else 32)


def tiles(
    classes: int,
    positions: int,
    sizes: Sizes | None = None,
    *,
    more: bool = False,
    wide: bool = False,
) -> tuple[int, int]:
    """Return how many samples and how many of their classes a program takes at a time.

    `more` says that a class needs further numbers than its logit, `wide` that they are float64.
    """
    sizes = sizes or SIZES
    most = _WIDE if wide else _MORE if more else sizes.longest
    sizes = sizes._replace(longest=min(sizes.longest, most), tile=min(sizes.tile, most))
    if positions > 1:  # neighbours in memory are positions, not classes
        return 64, min(next_power_of_two(classes), sizes.classes)
    columns = next_power_of_two(classes) if classes <= sizes.longest else sizes.tile
    return max(1, sizes.least // columns), columns
