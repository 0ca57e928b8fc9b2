"""Want of memory, and tensors that change their shape meanwhile."""

import sys
import threading
import time

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import xentrs.torch as xt

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")


@linux
def test_no_memory_for_a_gradient(python):
    python(
        """
    import gc, resource
    import torch, xentrs.torch as xt

    def size():
        return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

    def refused(call):
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        grown = []
        for _ in range(4):
            gc.collect()
            before = size()
            resource.setrlimit(resource.RLIMIT_AS, (before + (8 << 20), hard))
            try:
                call()
            except MemoryError as error:
                assert "report" not in str(error)
            else:
                raise AssertionError("had memory enough")
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            gc.collect()
            grown.append(size() - before)
        assert min(grown) < 4 << 20, grown

    small = torch.randn(200, 2000, requires_grad=True)
    xt.cross_entropy(small, torch.zeros(200, dtype=torch.long)).backward()
    for shape in ((9000, 1000), (1 << 21, 10), (170, 1200, 210)):  # a freed one is too small
        x = torch.randn(shape, requires_grad=True)
        t = torch.zeros((shape[0], *shape[2:]), dtype=torch.long)
        refused(lambda: xt.cross_entropy(x, t))
        refused(lambda: xt.binary_cross_entropy_with_logits(x, torch.zeros(())[None].expand(shape)))
        loss = xt.cross_entropy(x, t)
        loss.backward()
        """,
        timeout=110,
    )


def test_a_thread_that_resizes_a_view_meanwhile():
    """The memory stays, its shape and strides go: the loss is that of one of the shapes."""
    memory = torch.randn(400, 30)
    target = torch.zeros(400, dtype=torch.long)
    right = xt.cross_entropy(memory, target).item()
    stop = threading.Event()
    x = memory[:]

    def reshape():
        while not stop.is_set():
            x.unsqueeze_(0)
            x.squeeze_(0)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=reshape)
    thread.start()
    done = 0
    try:
        until = time.monotonic() + 30
        while done < 30 and time.monotonic() < until:
            try:
                loss = xt.cross_entropy(x, target)
            except (IndexError, RuntimeError, ValueError):
                continue
            assert loss.item() == pytest.approx(right, rel=1e-5)
            done += 1
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)
    assert done == 30
