"""Functions of rows that are no losses: the softmax and its kin, and the entropy of counts."""

from __future__ import annotations

from xentrs._arrays import evaluate_rows
from xentrs._xentrs import compute_rows


def softmax(logits, axis=-1, *, temperature=1.0, out=None):
    result = compute_rows("softmax", logits, axis, temperature, None, out)
    if result is NotImplemented:
        return evaluate_rows("softmax", "logits", logits, axis, temperature=temperature, out=out)
    return result


def log_softmax(logits, axis=-1, *, temperature=1.0, out=None):
    result = compute_rows("log_softmax", logits, axis, temperature, None, out)
    if result is NotImplemented:
        return evaluate_rows("log_softmax", "logits", logits, axis, temperature=temperature, out=out)
    return result


def logsumexp(logits, axis=-1, *, keepdims=False):
    result = compute_rows("logsumexp", logits, axis, None, None, None)
    if result is NotImplemented:
        return evaluate_rows("logsumexp", "logits", logits, axis)
    return result


def entropy(p, axis=-1, *, base=None):
    result = compute_rows("entropy", p, axis, None, base, None)
    if result is NotImplemented:
        return evaluate_rows("entropy", "p", p, axis, base=base, counts=True)
    return result
