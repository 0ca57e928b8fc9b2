"""All sums of a meter, each of them exact."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xentrs._exact import ExactSums, taller
from xentrs._meter.arguments import Options
from xentrs._meter.batches import Batch
from xentrs._meter.histogram import Histogram

_Array: TypeAlias = NDArray[Any]

# Rows of the table of sums.
NAMES = (
    # Over all samples: of the weights, and of losses times weights.
    "weight",
    "loss",
    # Over samples without a group: of the weights squared, of weighted losses times weights, of
    # weighted losses squared.
    "weight^2",
    "weight*loss",
    "loss^2",
    # Over samples with logits.
    "logits:weight",
    "accuracy",
    "brier",
    "entropy",
    # Over samples with reference logits. A difference is the model's loss less the reference's.
    "reference:weight",
    "difference",
    "kl",
    "same_top",
    # The same, without a group.
    "reference:weight^2",
    "weight*difference",
    "difference^2",
)
ROW = {name: i for i, name in enumerate(NAMES)}
# So many numbers are searched for faster than computed with.
_FEW = 1 << 8

COUNTS = ("samples", "single", "reference_single")


class Sums:
    """The sums of a meter.

    Attributes
    ----------
    options : Options
        The meter's options.
    counts : dict of str to int
        How many samples count: all, those without a group, and those with reference logits but
        without a group.
    table : ExactSums
        A sum for each of `NAMES`, and for each of ``options.top_k`` the weight of its hits.
    edges : ndarray of float64
        The edges of the bins of confidence.
    bin_counts : ndarray of int64
        Samples by bins of confidence, and in one bin more those of a confidence of NaN.
    bin_sums : ExactSums
        For each of these bins weight, weight of hits, and weighted confidence.
    losses, divergences : Histogram
        Of the losses, and of the divergences from reference logits.
    group_ids : dict of int or str to int
        The row of each group in the tables of groups.
    group_sums, group_references : list of ExactSums
        Weight and weighted loss of each group, and of its samples with reference logits weight and
        weighted difference.
    group_reference_counts : ndarray of int64
        Samples of each group that have reference logits.
    classes : int
        How many classes there are; 0 if that is neither known nor needed.
    class_counts : ndarray of int64
        Samples of each class, with ``per_class=True``.
    class_sums : list of ExactSums
        Weight, weighted loss, and weight of hits of each class, with ``per_class=True``.
    lock : RLock
        Held while sums are changed, or read: threads may share a meter.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.lock = threading.RLock()
        self.counts = dict.fromkeys(COUNTS, 0)
        self.table = ExactSums(len(NAMES) + len(options.top_k))
        self.edges = np.linspace(0.0, 1.0, options.bins + 1)
        inner = self.edges[1:-1]
        self._lower, self._upper = np.append(-np.inf, inner), np.append(inner, np.inf)
        self._bin_rows = 3 * np.arange(options.bins + 1)
        self.bin_counts = np.zeros(options.bins + 1, np.int64)
        self.bin_sums = ExactSums(3 * (options.bins + 1))
        self.losses = Histogram()
        self.divergences = Histogram()
        self.group_ids: dict[Any, int] = {}
        self.group_sums = [ExactSums(0), ExactSums(0)]
        self.group_references = [ExactSums(0), ExactSums(0)]
        self.group_reference_counts = np.zeros(0, np.int64)
        self.classes = 0 if options.weight is None else options.weight.size
        self.class_counts = np.zeros(self.classes if options.per_class else 0, np.int64)
        self.class_sums = [ExactSums(len(self.class_counts)) for _ in range(3)]
        self._journal: list[Callable[[], None]] = []

    def group_kind(self) -> type | None:
        """Return the type of the names of groups, which all have the same."""
        for key in self.group_ids:
            return type(key)
        return None

    def have_classes(self, classes: int) -> None:
        """Have sums for each class, where these are wanted; 0 if no logits have been seen."""
        if not self.options.per_class:
            return
        # Updates have checked this, but another thread's may have come between.
        if self.classes and classes not in (0, self.classes):
            raise ValueError(
                f"logits have {classes} classes, but with per_class=True all must have as many: "
                f"others had {self.classes}"
            )
        self.classes = self.classes or classes
        if len(self.class_counts) < classes:
            self.class_counts = np.zeros(classes, np.int64)
            self.class_sums = [ExactSums(classes) for _ in range(3)]

    def add(self, batch: Batch, classes: int = 0) -> None:
        """Add the numbers of some samples, all of them or none; `classes` is how many there are."""
        # NaN and infinities are counted apart.
        with self.lock, np.errstate(all="ignore"):
            self._all_or_nothing(lambda: self._add(batch, classes))

    def _all_or_nothing(self, change: Callable[[], None]) -> None:
        """Change the sums, and take that back if something raises: Ctrl-C, or want of memory.

        No context manager: Ctrl-C within its own code would leave it open.
        """
        fields = ("counts", "bin_counts", "classes", "class_counts", "class_sums")
        old = {name: getattr(self, name) for name in (*fields, "group_reference_counts")}
        groups = len(self.group_ids)
        nans = self.losses.nans, self.divergences.nans

        def undo() -> None:
            for name, value in old.items():
                setattr(self, name, value)
            self.losses.nans, self.divergences.nans = nans
            for name in list(self.group_ids)[groups:]:
                del self.group_ids[name]

        journal = self._journal = [undo]
        tables = [self.table, self.bin_sums, self.losses.sums, self.divergences.sums]
        tables += [*self.group_sums, *self.group_references, *self.class_sums]
        try:
            for table in tables:
                table.journal = journal
            change()
        except BaseException:
            while journal:
                with suppress(KeyboardInterrupt):  # the first one is raised below
                    journal[-1]()
                    journal.pop()
            raise
        finally:
            self._journal = []
            for table in tables:
                table.journal = None

    def _add(self, batch: Batch, classes: int) -> None:
        self.have_classes(classes)
        w, value, factor = batch.weight, batch.value, batch.factor
        counts = self.counts = dict(self.counts)
        number = value.size
        # What is added to the table: rows, and the numbers that go to each of them. First moments
        # are sums of products that are rounded once.
        weighted = _times(value, factor)
        weights, losses = [ROW["weight"]], [ROW["loss"]]
        terms = [(weights, _weights(w, number)), (losses, weighted)]
        counts["samples"] += number
        groups = None if batch.group is None else self._group_rows(batch.group)
        if groups is None:
            counts["single"] += number
            if w is None:
                weights.append(ROW["weight^2"])
                losses.append(ROW["weight*loss"])
            self._add_products(("weight^2", "weight*loss", "loss^2"), w, weighted)
        else:
            self.group_sums[0].add_weights(groups, w)
            self.group_sums[1].add(groups, weighted)
        self.losses.add(batch.loss, w)
        if batch.top is not None:
            assert batch.target is not None
            assert batch.above is not None
            assert batch.confidence is not None
            assert batch.brier is not None
            assert batch.entropy is not None
            known = batch.above >= 0
            hits = (batch.top == batch.target) & known
            weights.append(ROW["logits:weight"])
            terms += [
                ([ROW["accuracy"]], _weights(w, number, hits)),
                ([ROW["brier"]], _times(batch.brier, w)),
                ([ROW["entropy"]], _times(batch.entropy, w)),
            ]
            for i, k in enumerate(self.options.top_k):
                hits_of_k = known & (batch.above < k)
                terms.append(([len(NAMES) + i], _weights(w, number, hits_of_k)))
            self._add_confidence(batch.confidence, hits, w)
            if self.options.per_class:
                self._add_to_classes(batch.target, hits, w, weighted)
        if batch.kl is not None:
            assert batch.top is not None
            assert batch.reference_value is not None
            assert batch.reference_top is not None
            difference = _times(value - batch.reference_value, factor)
            weights.append(ROW["reference:weight"])
            differences = [ROW["difference"]]
            same_top: _Array = batch.top == batch.reference_top
            terms += [
                ([ROW["same_top"]], _weights(w, number, same_top)),
                ([ROW["kl"]], _times(batch.kl, w)),
                (differences, difference),
            ]
            if groups is None:
                counts["reference_single"] += number
                if w is None:
                    weights.append(ROW["reference:weight^2"])
                    differences.append(ROW["weight*difference"])
                names = ("reference:weight^2", "weight*difference", "difference^2")
                self._add_products(names, w, difference)
            else:
                self.group_references[0].add_weights(groups, w)
                self.group_references[1].add(groups, difference)
                self._count_references(*np.unique(groups, return_counts=True))
            self.divergences.add(batch.kl, w)
        self.table.add_to(*terms)

    def _add_products(self, names: tuple[str, str, str], w: _Array | None, x: _Array) -> None:
        """Add weights squared, products with the weights, and squares, to a sum each.

        These are second moments. Their products are not rounded at all, so that the variance has no
        cancellation. Without weights the first two are no products.
        """
        squares, products, own_squares = (ROW[name] for name in names)
        if w is not None:
            self.table.add(squares, w, w)
            self.table.add(products, x, w)
        self.table.add(own_squares, x, x)

    def _add_confidence(self, confidence: _Array, hits: _Array, w: _Array | None) -> None:
        """Add weights, weights of hits, and weighted confidences, to the bins of confidence."""
        bins = self._bins(confidence)
        length = self.options.bins + 1
        misses_and_hits = np.bincount(2 * bins + hits, minlength=2 * length).reshape(-1, 2)
        counted = misses_and_hits[:, 0] + misses_and_hits[:, 1]
        self.bin_counts = self.bin_counts + counted
        if w is None:
            rows = [self._bin_rows, self._bin_rows + 1]
            weights = [counted.astype(np.float64), misses_and_hits[:, 1].astype(np.float64)]
        else:
            rows, weights = [3 * bins, 3 * bins[hits] + 1], [w, w[hits]]
        rows.append(3 * bins + 2)
        weights.append(_times(confidence, w))
        self.bin_sums.add(np.concatenate(rows), np.concatenate(weights))

    def _bins(self, confidence: _Array) -> NDArray[np.int64]:
        """Return the bin of each confidence. A bin has its right edge; NaN has the last bin."""
        number = self.options.bins
        # A search takes longer for many. It has NaN after all others.
        if confidence.size <= _FEW or np.isnan(confidence).any():
            return self._upper.searchsorted(confidence)
        # The product is rounded, so that it may be in the bin beside.
        bins = np.minimum((confidence * number).astype(np.int64), number - 1)
        bins -= confidence <= self._lower.take(bins)
        bins += confidence > self._upper.take(bins)
        return bins

    def _add_to_classes(
        self, target: _Array, hits: _Array, w: _Array | None, weighted: _Array
    ) -> None:
        """Add weights, weighted losses, and weights of hits, to the classes of the targets."""
        self.class_counts = self.class_counts.copy()
        np.add.at(self.class_counts, target, 1)
        weights, losses, weights_of_hits = self.class_sums
        weights.add_weights(target, w)
        losses.add(target, weighted)
        weights_of_hits.add_weights(target[hits], None if w is None else w[hits])

    def _group_rows(self, ids: _Array) -> _Array:
        """Return the row of each sample's group, new groups included."""
        ids = ids if ids.dtype.kind == "U" else ids.astype(np.int64)
        unique, inverse = np.unique(ids, return_inverse=True)
        rows = self._rows_of_groups(unique.tolist())
        for sums in (*self.group_sums, *self.group_references):
            sums.grow(len(self.group_ids))
        return rows[inverse]

    def _rows_of_groups(self, names: list[Any]) -> NDArray[np.int64]:
        """Return the row of each of these groups, new ones included."""
        ids = self.group_ids
        if names and {type(names[0]), self.group_kind()} == {int, str}:
            raise ValueError("group is integers for some samples, but strings for others")
        rows = [ids.setdefault(name, len(ids)) for name in names]
        self.group_reference_counts = taller(self.group_reference_counts, len(ids))
        return np.array(rows, np.int64)

    def _count_references(self, groups: _Array, counts: _Array) -> None:
        """Count samples that have reference logits for some groups, none of them twice."""
        table = self.group_reference_counts
        before = table[groups]
        self._journal.append(lambda: table.__setitem__(groups, before))
        table[groups] += counts

    def merge(self, other: Sums) -> None:
        """Add all sums of another meter of the same options, or none."""
        first, second = sorted((self, other), key=id)  # or two merges could wait for each other
        with first.lock, second.lock:
            self._all_or_nothing(lambda: self._merge(other))

    def _merge(self, other: Sums) -> None:
        self.have_classes(other.classes)
        rows = self._rows_of_groups(list(other.group_ids))
        for mine, theirs in (
            *zip(self.group_sums, other.group_sums, strict=True),
            *zip(self.group_references, other.group_references, strict=True),
        ):
            mine.grow(len(self.group_ids))
            mine.merge(theirs, rows)
        self._count_references(rows, other.group_reference_counts)
        self.table.merge(other.table)
        self.bin_sums.merge(other.bin_sums)
        self.losses.merge(other.losses)
        self.divergences.merge(other.divergences)
        for mine, theirs in zip(self.class_sums, other.class_sums, strict=True):
            mine.merge(theirs)
        self.counts = {name: n + other.counts[name] for name, n in self.counts.items()}
        self.bin_counts = self.bin_counts + other.bin_counts
        if other.class_counts.size:
            self.class_counts = self.class_counts + other.class_counts


def _weights(w: _Array | None, number: int, where: _Array | None = None) -> NDArray[np.float64]:
    """Return the weights of the samples, or of some; without weights, how many these are."""
    if w is not None:
        return w if where is None else w[where]
    return np.array([number if where is None else np.count_nonzero(where)], np.float64)


def _times(x: _Array, w: _Array | None) -> _Array:
    return x if w is None else x * w
