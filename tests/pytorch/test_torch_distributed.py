"""Two processes: the vocabulary-parallel loss, DDP and FSDP."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

if not torch.distributed.is_available():
    pytest.skip("PyTorch without torch.distributed", allow_module_level=True)

PARALLEL = """
import itertools
import math

def check(rank):
    for dtype, near in (
        (torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 0.02)
    ):
        for shape in ((6, 10), (3, 10, 4)):
            torch.manual_seed(0)
            x = (torch.randn(shape, dtype=torch.float64) * 4 + 50).to(dtype)
            y = torch.randint(0, 7, shape[:1] + shape[2:])
            y[1] = -100
            s = torch.rand(y.shape, dtype=torch.float64)
            for options in (
                {}, {"reduction": "sum"}, {"reduction": "none", "ignore_index": (-100, 3)},
                {"label_smoothing": 0.1, "sample_weight": s, "denominator": 3.0},
                {"label_smoothing": 0.2, "z_loss": 0.01, "reduction": "none"},
                {"softcap": 30.0}, {"temperature": 2.5, "reduction": "none"},
                {"softcap": 20.0, "temperature": 0.4, "label_smoothing": 0.1, "sample_weight": s},
                {"softcap": 40.0, "temperature": 3.0, "z_loss": 0.01, "reduction": "none"},
            ):
                logits = x.clone()
                if "label_smoothing" not in options:
                    logits[0, 7:] = -math.inf  # as vocabularies are padded
                if not options:
                    logits[2, 5:] = -math.inf  # nothing is left to the second process
                    y[2] = 2
                mine = slice(5 * rank, 5 * rank + 5)
                whole = logits.clone().requires_grad_()
                part = logits[:, mine].clone().requires_grad_()
                expected = xentrs.torch.cross_entropy(whole, y, **options)
                actual = xentrs.torch.vocab_parallel_cross_entropy(part, y, **options)
                assert actual.dtype == dtype
                assert_close(actual, expected, rtol=near, atol=near)
                weights = torch.rand(expected.shape).to(dtype)
                expected.backward(weights)
                actual.backward(weights)
                assert_close(part.grad, whole.grad[:, mine], rtol=near, atol=near)
                with torch.no_grad():
                    again = xentrs.torch.vocab_parallel_cross_entropy(part, y, **options)
                assert_close(again, actual.detach(), rtol=near, atol=near)
    # Unequal parts; digits of a small loss.
    x = torch.tensor([[17.0, 0.0, -3.0]])
    mine = slice(0, 1) if rank == 0 else slice(1, 3)
    part = x[:, mine].clone().requires_grad_()
    loss = xentrs.torch.vocab_parallel_cross_entropy(part, torch.tensor([0]), first_class=rank)
    loss.backward()
    expected = xentrs.torch.cross_entropy(x.requires_grad_(), torch.tensor([0]))
    expected.backward()
    assert_close(loss, expected, rtol=1e-6, atol=0.0)
    assert_close(part.grad, x.grad[:, mine], rtol=1e-6, atol=0.0)
    # Memory that is not aligned.
    memory = torch.frombuffer(bytearray(13), dtype=torch.float32, offset=1).view(1, 3)
    for apart in (memory[:, mine], memory[:, : part.shape[1]]):
        apart.copy_(x.detach()[:, mine])
        leaf = apart.requires_grad_()
        again = xentrs.torch.vocab_parallel_cross_entropy(leaf, torch.tensor([0]), first_class=rank)
        again.backward()
        assert_close(again, loss, rtol=0.0, atol=0.0)
        assert_close(leaf.grad, part.grad, rtol=0.0, atol=0.0)

    # A target that is ruled out, in either process.
    whole = torch.arange(14.0)[None].repeat(2, 1)
    for target in (1, 12):
        x = whole.clone()
        x[0, target] = -torch.inf
        x.requires_grad_()
        mine = x.detach()[:, 7 * rank : 7 * rank + 7].clone().requires_grad_()
        y = torch.tensor([target, 2])
        expected = xentrs.torch.cross_entropy(x, y, reduction="none")
        loss = xentrs.torch.vocab_parallel_cross_entropy(mine, y, reduction="none")
        expected.sum().backward()
        loss.sum().backward()
        assert_close(loss, expected)
        assert_close(mine.grad, x.grad[:, 7 * rank : 7 * rank + 7])

    # Samples that do not count: NaN as logits and as upstream gradient.
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for reduction in ("none", "mean"):
            for z, e, more in (
                (0.0, 0.0, {}), (0.1, 0.1, {}), (0.0, 0.0, {"temperature": 2.0}),
                (0.1, 0.1, {"temperature": 0.5, "softcap": 3.0}),
            ):
                torch.manual_seed(0)
                x = torch.randn(4, 6).to(dtype)
                x[1], x[2, 0], x[2, 5] = math.nan, math.inf, math.nan
                y = torch.tensor([5, -100, 0, 3])
                s = torch.tensor([1.0, 1.0, 0.0, 2.0])
                mine = x[:, 3 * rank : 3 * rank + 3].clone().requires_grad_()
                whole = x.double()[[0, 3]].requires_grad_()
                options = {"z_loss": z, "label_smoothing": e, "reduction": reduction, **more}
                loss = xentrs.torch.vocab_parallel_cross_entropy(
                    mine, y, sample_weight=s, **options
                )
                expected = xentrs.torch.cross_entropy(
                    whole, y[[0, 3]], sample_weight=s[[0, 3]], **options
                )
                up = torch.full_like(loss, math.nan)
                up[[0, 3] if reduction == "none" else ()] = 1.0
                (grad,) = torch.autograd.grad(loss, mine, up, retain_graph=True)
                (true,) = torch.autograd.grad(expected.sum(), whole)
                near = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
                assert_close(loss.sum().double(), expected.sum(), **near)
                here = true[:, 3 * rank : 3 * rank + 3]
                assert_close(grad[[0, 3]].double(), here, **near)
                assert (grad[1:3] == 0).all(), grad
                (grad,) = torch.autograd.grad(loss, mine, torch.full_like(loss, math.nan))
                assert (grad[1:3] == 0).all(), grad
                assert grad[[0, 3]].isnan().all(), grad

    # Units in the last place, whatever spread and offset. A GPU's kernel has errors of its own.
    def errors(actual, exact):
        unit = 2.0 ** (exact.abs().clamp(min=2.0**-126).log2().floor() - 23)
        error = (actual.detach().double() - exact).abs() / unit
        return error[exact.abs() >= 2.0**-126].max()

    for spread, offset, peak in (
        (3.0, 0.0, 0.0), (3.0, 0.0, 40.0), (40.0, 0.0, 0.0), (5.0, 1e5, 0.0)
    ):
        torch.manual_seed(1)
        x = torch.randn(32, 40) * spread + offset
        y = torch.randint(0, 40, (32,))
        x[range(16), y[:16]] += peak
        span = slice(0, 13) if rank == 0 else slice(13, 40)
        mine = x[:, span].clone().requires_grad_()
        alone, whole = x.clone().requires_grad_(), x.double().requires_grad_()
        loss = xentrs.torch.vocab_parallel_cross_entropy(
            mine, y, reduction="none", first_class=span.start
        )
        exact, single = (
            xentrs.torch.cross_entropy(one, y, reduction="none") for one in (whole, alone)
        )
        for one in (loss, exact, single):
            one.sum().backward()
        for actual, other, true in (
            (loss, single, exact.detach()),
            (mine.grad, alone.grad[:, span], whole.grad[:, span]),
        ):
            bound = 4.0 if BACKEND == "rust" else 4.0 + errors(other, true)
            assert errors(actual, true) <= bound, (spread, offset, peak, errors(actual, true))

    # The same with softcap and temperature. Errors of a softcap are in units of the cap.
    for dtype, near in ((torch.float64, 4 * 2.0**-52), (torch.float32, 4 * 2.0**-23)):
        for offset, options in (
            (0.0, {"softcap": 5.0}), (0.0, {"temperature": 0.3}), (1e5, {"temperature": 2.0}),
            (1e5, {"temperature": 0.3, "label_smoothing": 0.1}),
            (3.0, {"temperature": 0.7, "softcap": 15.0}),
        ):
            torch.manual_seed(2)
            x, y = (torch.randn(32, 40) * 5 + offset).to(dtype), torch.randint(0, 40, (32,))
            if "label_smoothing" not in options:
                x[0, 3], x[1, 30] = -math.inf, -math.inf
            span = slice(0, 13) if rank == 0 else slice(13, 40)
            mine, whole = x[:, span].clone().requires_grad_(), x.double()
            cap, t = options.get("softcap"), options.get("temperature", 1.0)
            loss = xentrs.torch.vocab_parallel_cross_entropy(
                mine, y, reduction="none", first_class=span.start, **options
            )
            loss.sum().backward()
            whole = whole.numpy().astype("longdouble")
            z = cap * numpy.tanh(whole / cap) if cap else whole
            z[numpy.isinf(whole)] = -numpy.inf
            z = (z - z.max(1, keepdims=True)) / numpy.longdouble(t)
            log_p = z - numpy.log(numpy.exp(z).sum(1, keepdims=True))
            e = options.get("label_smoothing", 0.0)
            q = (1 - e) * numpy.eye(40)[y] + e / 40
            exact = -(q * numpy.where(q == 0, 0, log_p)).sum(1)
            slope = 1 / numpy.cosh(whole / cap) ** 2 if cap else 1.0
            grad = (numpy.exp(log_p) - q) * slope / t
            unit = near * (cap or 1.0) / t
            off = abs(loss.detach().numpy() - exact) / (unit + near * abs(exact))
            assert (off <= 1.0).all(), (dtype, offset, options, off)
            off = abs(mine.grad.numpy() - grad[:, span]) / unit
            assert (off <= 1.0).all(), (dtype, offset, options, off.max())

    # All processes have the same loss to the last bit, whatever their order of arrival.
    losses = [torch.empty(32) for _ in range(2)]
    dist.all_gather(losses, loss.detach())
    assert (losses[0] == losses[1]).all()

    # float16 with loss scaling.
    x = torch.randn(64, 8000).half().requires_grad_()
    mine = x.detach()[:, 4000 * rank : 4000 * rank + 4000].clone().requires_grad_()
    y = torch.randint(0, 8000, (64,))
    (xentrs.torch.cross_entropy(x.double(), y) * 2.0**14).backward()
    (xentrs.torch.vocab_parallel_cross_entropy(mine, y).float() * 2.0**14).backward()
    assert_close(mine.grad, x.grad[:, 4000 * rank : 4000 * rank + 4000], rtol=2e-3, atol=0.0)
    for bad, first, words in (
        (7, rank, "target[1] is 7, but a class index must be in [0, 3), or be ignore_index (-100)"),
        (-1, rank, "target[1] is -1, but a class index must be in [0, 3)"),
        (0, 1 + rank, "target holds 0, but no process has this class"),
        (0, 0, "target holds 0, but several processes have this class"),
    ):
        y = torch.tensor([1, bad])
        try:
            xentrs.torch.vocab_parallel_cross_entropy(part.expand(2, -1), y, first_class=first)
        except IndexError as error:
            assert words in str(error), error
        else:
            raise AssertionError("nothing was raised")
    try:
        xentrs.torch.vocab_parallel_cross_entropy(part, torch.tensor([0]))
    except ValueError as error:
        assert "the processes have 1, 2 classes: pass first_class" in str(error), error
    else:
        raise AssertionError("nothing was raised")
    try:
        xentrs.torch.vocab_parallel_cross_entropy(part, torch.rand(1, 2))
    except ValueError as error:
        assert "class indices" in str(error)
"""

SHARDED = """
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.parallel import loss_parallel

def check(rank):
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    x, y = torch.randn(7, 5, 3), torch.randint(0, 5, (7, 3))
    y[1, 1] = y[5] = -100
    w, s, q = torch.rand(5), torch.rand(7, 3), torch.rand(7, 5, 3)

    def put(t, place):
        return distribute_tensor(t.clone(), mesh, [place])

    def compare(f, others, places, options):
        ours, whole = put(x, places[0]).requires_grad_(), x.clone().requires_grad_()
        expected = f(whole, others, **options)
        loss = f(ours, put(others, places[1]), **options)
        assert_close(loss.full_tensor(), expected)
        up = torch.rand(expected.shape)
        expected.backward(up)
        loss.backward(put(up, loss.placements[0]))
        assert ours.grad.placements == (places[0],)
        assert_close(ours.grad.full_tensor(), whole.grad)

    for place, of_samples in ((Shard(0),) * 2, (Shard(2), Shard(1)), (Replicate(),) * 2):
        for reduction in ("mean", "sum", "none"):
            for options in (
                {}, {"weight": w, "sample_weight": s}, {"denominator": 3.0},
                {"z_loss": 0.1, "weight": w, "label_smoothing": 0.1, "temperature": 2.0},
            ):
                options = {"reduction": reduction, **options}
                places = (place, of_samples)
                compare(xentrs.torch.cross_entropy, y, places, options)
                if "z_loss" not in options:
                    compare(xentrs.torch.focal_loss, y, places, options)
                    compare(xentrs.torch.nll_loss, y, places, options)
            options = {"reduction": reduction}
            compare(xentrs.torch.cross_entropy, q, (place, place), options)
            options = options | {"pos_weight": w[:, None], "where": q > 0.3}
            compare(xentrs.torch.binary_cross_entropy_with_logits, q, (place, place), options)
    options = {"pos_weight": w[:, None], "where": q > 0.3}
    compare(xentrs.torch.binary_cross_entropy_with_logits, q, (Shard(1),) * 2, options)

    # One process without a sample that counts, one without a sample, none that counts at all.
    nothing = torch.full_like(y, -100)
    half = torch.where(torch.arange(7)[:, None] < 4, y, -100)
    compare(xentrs.torch.cross_entropy, half, (Shard(0),) * 2, {})
    none = xentrs.torch.cross_entropy(put(x, Shard(0)), put(nothing, Shard(0)))
    assert none.full_tensor().isnan()
    one = xentrs.torch.cross_entropy(put(x[:1], Shard(0)), put(y[:1], Shard(0)))
    assert_close(one.full_tensor(), xentrs.torch.cross_entropy(x[:1], y[:1]))
    low = xentrs.torch.cross_entropy(put(x.bfloat16(), Shard(0)), put(y, Shard(0)))
    assert low.dtype == torch.bfloat16

    compiled = torch.compile(
        lambda x, y: xentrs.torch.cross_entropy(x * 2, y), fullgraph=True, backend="aot_eager"
    )
    a, b = put(x, Shard(0)).requires_grad_(), put(y, Shard(0))
    loss = compiled(a, b)
    assert_close(loss.full_tensor(), xentrs.torch.cross_entropy(x * 2, y))
    loss.backward()

    # Sharded over the classes.
    flat, labels = x[..., 0], put(y[..., 0], Replicate())
    for f in (xentrs.torch.cross_entropy, xentrs.torch.focal_loss):
        try:
            f(put(flat, Shard(1)), labels)
            raise AssertionError("not refused")
        except NotImplementedError as error:
            assert "vocab_parallel_cross_entropy" in str(error)
    hidden, layer = torch.rand(7, 4), torch.rand(5, 4)
    for given in ((put(hidden, Shard(0)), layer), (hidden, put(layer, Shard(0)))):
        try:
            xentrs.torch.linear_cross_entropy(*given, labels)
            raise AssertionError("not refused")
        except NotImplementedError as error:
            assert "xentrs.torch.linear_cross_entropy takes no DTensor" in str(error)
    sharded = put(hidden, Shard(0)), put(layer, Replicate()), put(y[..., 0], Shard(0))
    with xentrs.torch.patch():  # PyTorch's own
        loss = torch.nn.functional.linear_cross_entropy(*sharded)
        expected = xentrs.torch.linear_cross_entropy(hidden, layer, y[..., 0])
        assert_close(loss.full_tensor(), expected)
    with loss_parallel(), xentrs.torch.patch():
        logits = put(flat, Shard(1)).requires_grad_()
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        assert_close(loss.full_tensor(), xentrs.torch.cross_entropy(flat, y[..., 0]))
"""

DATA_PARALLEL = """
from torch.nn.parallel import DistributedDataParallel

def check(rank):
    torch.manual_seed(0)
    x, y = torch.randn(8, 6), torch.randint(0, 5, (8,))
    mine = slice(4 * rank, 4 * rank + 4)
    for kind in ("linear", "fused"):
        grads = []
        for parallel in (False, True):
            torch.manual_seed(1)
            if kind == "linear":
                model = torch.nn.Linear(6, 5)
            else:
                model = xentrs.torch.LinearCrossEntropyLoss(6, 5)
            weight = next(model.parameters())
            module = DistributedDataParallel(model) if parallel else model
            here = mine if parallel else slice(None)
            if kind == "linear":
                loss = xentrs.torch.cross_entropy(module(x[here]), y[here])
            else:
                loss = module(x[here], y[here])
            loss.backward()
            grads.append(weight.grad)
        assert_close(*grads)
"""

FULLY_SHARDED = """
from torch.distributed.fsdp import fully_shard

def check(rank):
    torch.manual_seed(0)
    x, y = torch.randn(8, 6), torch.randint(0, 5, (8,))
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    weights = []
    for sharded in (False, True):
        torch.manual_seed(1)
        model = torch.nn.Linear(6, 5)
        if sharded:
            fully_shard(model, mesh=mesh)
        here = slice(4 * rank, 4 * rank + 4) if sharded else slice(None)
        xentrs.torch.cross_entropy(model(x[here]), y[here]).backward()
        grad = model.weight.grad
        weights.append(grad.full_tensor() if sharded else grad)
    assert_close(*weights)
"""

MAIN = """
import os
import sys

import numpy
import torch
import torch.distributed as dist
from torch.testing import assert_close

import xentrs.torch

BACKEND = {backend!r}
{body}
rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method="file://" + store, rank=rank, world_size=2
)
check(rank)
dist.barrier()
dist.destroy_process_group()
print("done", flush=True)
os._exit(0)  # PyTorch's threads were seen to abort an interpreter that was done
"""


def run_two(body: str, folder: Path, backend: str = "rust") -> None:
    script = folder / "script.py"
    script.write_text(MAIN.format(body=body, backend=backend))
    interpreted = {"TRITON_INTERPRET": "1", "XENTRS_TORCH_BACKEND": "triton"}
    environment = os.environ | (interpreted if backend == "triton" else {})
    store = folder / "store"  # a file: a free port may be taken by another before it is used
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
            assert "done" in output
    finally:
        for process in processes:
            process.kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "body",
    [PARALLEL, SHARDED, DATA_PARALLEL, FULLY_SHARDED],
    ids=["vocabulary", "dtensor", "ddp", "fsdp"],
)
def test_two_processes(body, tmp_path):
    run_two(body, tmp_path)


@pytest.mark.timeout(300)
def test_two_processes_with_the_kernels_for_gpus(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("with a GPU no kernel is interpreted")
    run_two(PARALLEL, tmp_path, "triton")
