"""Want of memory, and tensors that change their shape meanwhile."""

import sys
import time
import weakref

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import xentrs.torch as xt
from interference import meanwhile
from xentrs._xentrs import quick_cross_entropy

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")


@linux
def test_no_memory_for_a_gradient(python):
    python(
        """
    import torch, xentrs.torch as xt
    from interference import assert_short_of_memory

    small = torch.randn(200, 2000, requires_grad=True)
    xt.cross_entropy(small, torch.zeros(200, dtype=torch.long)).backward()
    for shape in ((9000, 1000), (1 << 21, 10), (170, 1200, 210)):  # a freed one is too small
        x = torch.randn(shape, requires_grad=True)
        t = torch.zeros((shape[0], *shape[2:]), dtype=torch.long)
        assert_short_of_memory(lambda: xt.cross_entropy(x, t))
        zeros = torch.zeros(())[None].expand(shape)
        assert_short_of_memory(lambda: xt.binary_cross_entropy_with_logits(x, zeros))
        loss = xt.cross_entropy(x, t)
        loss.backward()
        """,
        timeout=110,
    )


def test_a_thread_that_changes_the_shape_meanwhile():
    """The memory stays, its shape and strides go: the loss is that of one of the shapes.

    Assigning `data` keeps the GIL, as the compiled function does while it looks at the tensors.
    PyTorch's functions do not: what changes a shape in place is safe beside none of them.
    """
    memory = torch.randn(400, 30)
    target = torch.zeros(400, dtype=torch.long)
    right = xt.cross_entropy(memory, target).item()
    x, shapes = memory[:], (memory[None], memory[:])

    def reshape():
        for shape in shapes:
            x.data = shape

    done, until = 0, time.monotonic() + 30
    with meanwhile(reshape):
        while done < 30 and time.monotonic() < until:
            loss = quick_cross_entropy(x, target, None, -100, 0.0, "mean", False)
            if loss is NotImplemented:
                continue
            assert loss.item() == pytest.approx(right, rel=1e-5)
            done += 1
    assert done == 30


@pytest.mark.parametrize("kind", ["indices", "soft", "none", "binary", "focal", "kl", "linear"])
def test_a_loss_that_is_kept_keeps_no_tensor_of_its_call(kind):
    """As `total = total + loss` keeps every loss of an epoch."""
    source = torch.randn(20, 7, requires_grad=True)
    y, soft, weight = torch.arange(20) % 7, torch.rand(20, 7), torch.randn(9, 7)

    def loss_of(x, soft):
        if kind == "linear":
            return xt.linear_cross_entropy(x, weight, y)
        if kind == "binary":
            return xt.binary_cross_entropy_with_logits(x, soft)
        if kind == "focal":
            return xt.focal_loss(x, y)
        if kind == "kl":
            return xt.kl_divergence(x, soft)
        return xt.cross_entropy(
            x, soft if kind == "soft" else y, reduction="none" if kind == "none" else "mean"
        )

    for upstream in (1.0, 0.5):
        x, q = source * 2.0, soft + 0.0
        loss = loss_of(x, q)
        kept = [weakref.ref(x), weakref.ref(q)]
        (first,) = torch.autograd.grad((loss * upstream).sum(), source, retain_graph=True)
        (again,) = torch.autograd.grad((loss * upstream).sum(), source, retain_graph=True)
        assert torch.equal(first, again)
        (loss * upstream).sum().backward()
        del x, q
        assert [tensor() for tensor in kept] == [None, None]
        with pytest.raises(RuntimeError, match="second time"):
            loss.sum().backward()
