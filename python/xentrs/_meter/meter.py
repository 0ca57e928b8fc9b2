"""`CrossEntropyMeter`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, SupportsIndex

from numpy.typing import ArrayLike, NDArray

from xentrs import _arrays
from xentrs._losses._types import Ignored
from xentrs._meter import arguments, batches, states
from xentrs._meter.results import MeterResult, compute
from xentrs._meter.sums import Sums


class CrossEntropyMeter:
    r"""Statistics of predictions over any number of batches, each logit read once.

    `update` takes a batch of logits and targets, `compute` returns the statistics of all batches
    so far: mean loss and its standard error, perplexity, accuracy, calibration, quantiles, and with
    logits of a reference model how far the two are apart. `merge` adds the samples of another
    meter. The memory that a meter takes does not grow with the samples.

    All sums are exact. The statistics do not depend, to the last bit, on the order of the samples,
    on how they are cut into batches, or on how meters are merged. Threads may share a meter.

    Parameters
    ----------
    axis : int, default -1
        The class axis of the logits.
    weight : array_like of shape (C,), optional
        Weight of each class. It multiplies the weight of a sample, as in `cross_entropy`.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing; None for no such index.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: for the loss the target becomes (1 - e) times itself plus e / C in
        every class.
    top_k : int or iterable of ints, default (1, 5)
        For which k the share of the samples is counted whose target is among the k largest logits.
    bins : int, default 15
        Number of bins of equal width for the calibration error.
    per_class : bool, default False
        Whether to keep statistics of each class. The memory then grows with the classes.

    Raises
    ------
    TypeError
        If an argument has a type other than above.
    ValueError
        If it has a value other than above.

    See Also
    --------
    cross_entropy : the loss of one batch.
    PartialCrossEntropy : the loss of classes that lie in slices.

    Notes
    -----
    A sample has the weight that `update` is given for it, times that of its class. It counts unless
    it is ignored or has a weight of 0. All means are weighted; `count` is not.

    With probabilities as target, the class that accuracy, `top_k` and the statistics by class refer
    to is that of the largest probability, the first of several.

    The loss of a sample is that of `cross_entropy`, in float64 before it is rounded to the logits'
    type. Losses, and products of losses and weights, are added in fixed-point numbers of as many
    digits as it takes. Each mean is the sum, rounded once, over the sum of the weights, rounded
    once. The standard error is computed from exact sums of squares.

    The kernels are described in ``src/softmax/statistics.rs`` and ``src/losses/compared.rs`` of the
    source, the sums in ``src/exact.rs``.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> meter = xentrs.CrossEntropyMeter(top_k=(1, 2))
    >>> batches = [
    ...     (np.array([[2.0, 0.5, -1.0], [0.0, 3.0, 0.2]]), np.array([0, 1])),
    ...     (np.array([[0.5, 0.1, 0.4]]), np.array([2])),
    ... ]
    >>> for logits, target in batches:
    ...     _ = meter.update(logits, target)
    >>> result = meter.compute()
    >>> result.count
    3
    >>> round(result.loss, 6)
    0.46404
    >>> round(result.perplexity, 6)
    1.590486
    >>> round(result.top_k[1], 6), result.top_k[2]
    (0.666667, 1.0)

    How far is another model from this one?

    >>> other = xentrs.CrossEntropyMeter(top_k=(1, 2))
    >>> for logits, target in batches:
    ...     _ = other.update(logits * 0.9, target, reference_logits=logits)
    >>> round(other.compute().kl, 6)
    0.002449
    """

    def __init__(
        self,
        *,
        axis: SupportsIndex = -1,
        weight: ArrayLike | None = None,
        ignore_index: Ignored = -100,
        label_smoothing: float = 0.0,
        top_k: SupportsIndex | Iterable[SupportsIndex] = (1, 5),
        bins: SupportsIndex = 15,
        per_class: bool = False,
    ) -> None:
        self._sums = Sums(
            arguments.options(
                axis=axis,
                weight=weight,
                ignore_index=ignore_index,
                label_smoothing=label_smoothing,
                top_k=top_k,
                bins=bins,
                per_class=per_class,
            )
        )

    def update(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        group: ArrayLike | None = None,
        reference_logits: ArrayLike | None = None,
    ) -> CrossEntropyMeter:
        """Add a batch of samples.

        Parameters
        ----------
        logits : array_like, float16, bfloat16, float32 or float64
            The logits, of any rank from 1, with the classes on `axis`.
        target : array_like
            Class indices, of the shape of `logits` without the class axis; or probabilities, of the
            shape of `logits`.
        sample_weight : array_like, optional
            Weight of each sample, of the shape of `logits` without the class axis. Not negative.
        group : array_like of integers or strings, optional
            Which group each sample belongs to, of the same shape: for example the document. One
            group may be given for the whole batch.
        reference_logits : array_like, float16, bfloat16, float32 or float64, optional
            Logits of another model for the same samples, of the shape of `logits`.

        Returns
        -------
        CrossEntropyMeter
            This object itself.

        Raises
        ------
        TypeError
            If an argument has a type or dtype other than above.
        ValueError
            If shapes do not fit, or an argument has a value other than above.
        IndexError
            If a class index is neither a class nor ignored.
        """
        options = self._sums.options
        samples = arguments.samples(
            options,
            self._sums.classes,
            self._sums.group_kind(),
            logits=logits,
            target=target,
            sample_weight=sample_weight,
            group=group,
            reference_logits=reference_logits,
        )
        dtype, most = batches.plan(samples)
        # Several blocks are added together, so that an interrupt leaves the meter as it was.
        added = self._sums if math.prod(samples.shape) <= most else Sums(options)
        classes = samples.logits.shape[samples.axis]
        for index in _arrays.sample_blocks(samples.shape, most):
            added.add(batches.of_logits(options, samples, dtype, index), classes)
        if added is not self._sums:
            self._sums.merge(added)
        return self

    def update_losses(
        self,
        losses: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        group: ArrayLike | None = None,
    ) -> CrossEntropyMeter:
        """Add samples of which only the losses are known.

        Parameters
        ----------
        losses : array_like of float
            The loss of each sample in nats, of any shape.
        sample_weight : array_like, optional
            Weight of each sample, of the shape of `losses`. Not negative.
        group : array_like of integers or strings, optional
            Which group each sample belongs to, of the shape of `losses`, or one for all.

        Returns
        -------
        CrossEntropyMeter
            This object itself.

        Raises
        ------
        TypeError
            If an argument has a type or dtype other than above.
        ValueError
            If shapes do not fit, or an argument has a value other than above.

        Notes
        -----
        Options of the meter do not change the losses: a sample whose target is ignored must have a
        weight of 0. Statistics that need logits are those of the samples of `update`.
        """
        given = _arrays._typed(
            "losses", losses, _arrays._is_floating, "float", untyped_integers=True
        )
        weights = arguments.sample_weights(sample_weight, given.shape, "that of losses")
        groups = arguments.groups(group, given.shape, self._sums.group_kind())
        # Several blocks are added together, so that an interrupt leaves the meter as it was.
        added = self._sums if given.size <= batches.BLOCK else Sums(self._sums.options)
        for index in _arrays.sample_blocks(given.shape, batches.BLOCK):
            parts = (None if a is None else a[index] for a in (weights, groups))
            added.add(batches.of_losses(given[index], *parts))
        if added is not self._sums:
            self._sums.merge(added)
        return self

    def merge(self, other: CrossEntropyMeter) -> CrossEntropyMeter:
        """Add the samples of another meter.

        Parameters
        ----------
        other : CrossEntropyMeter
            A meter of the same options. It is not changed.

        Returns
        -------
        CrossEntropyMeter
            This object itself.

        Raises
        ------
        TypeError
            If `other` is of another type.
        ValueError
            If the two have different options, one has integers as groups and the other strings, or,
            with ``per_class``, their logits have different numbers of classes.
        """
        if not isinstance(other, CrossEntropyMeter):
            raise TypeError(f"other must be a CrossEntropyMeter, not {type(other).__name__}")
        self._sums.options.check_equal(other._sums.options)
        self._sums.merge(other._sums)
        return self

    def __repr__(self) -> str:
        return f"<CrossEntropyMeter of {self._sums.counts['samples']} samples>"

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Return all of the meter as arrays, which `numpy.savez` writes without pickling.

        Returns
        -------
        dict of str to ndarray
            Options and sums. Meters of the same options and samples have equal states.
        """
        with self._sums.lock:
            return states.write(self._sums)

    @classmethod
    def from_state(cls, state: Any) -> CrossEntropyMeter:
        """Return the meter that `to_state` was called on.

        Parameters
        ----------
        state : mapping of str to ndarray
            What `to_state` returned, or the file that `numpy.load` opens of it. A list may stand
            for an array, as in JSON.

        Returns
        -------
        CrossEntropyMeter
            A meter of the same options and samples.

        Raises
        ------
        ValueError
            If the state is not one that `to_state` returns.
        """
        meter = cls.__new__(cls)
        meter._sums = states.read(state)
        return meter

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_sums": self.to_state()}  # attributes of a subclass too

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _sums=states.read(state["_sums"]))

    def compute(self) -> MeterResult:
        """Return the statistics of all samples so far.

        Returns
        -------
        MeterResult
            A frozen dataclass, which later updates do not change.
        """
        with self._sums.lock:
            return compute(self._sums)
