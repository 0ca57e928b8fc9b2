"""`xentrs.torch.patch`: what it replaces, what it takes back, and the code in between."""

import abc
import copy
import io
import pickle
import subprocess
import sys
import threading

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import torch.nn.functional as F
from torch import nn

import xentrs.torch

# Other losses of the same names, such as `binary_cross_entropy`, have other values at the edges.
PLACES = [
    (F, "cross_entropy"),
    (F, "binary_cross_entropy_with_logits"),
    (F, "linear_cross_entropy"),
    (nn, "CrossEntropyLoss"),
    (nn, "BCEWithLogitsLoss"),
    (nn, "LinearCrossEntropyLoss"),
]
ORIGINALS = [getattr(*place) for place in PLACES]
X = torch.tensor([[17.0, -3.0, -4.0], [0.0, 1.0, 2.0]])  # PyTorch's first loss is 0

Y = torch.tensor([0, 2])


def is_patched():
    """Return whether the names are ours; all or none."""
    ours = [getattr(module, name) is getattr(xentrs.torch, name) for module, name in PLACES]
    theirs = [
        getattr(*place) is original for place, original in zip(PLACES, ORIGINALS, strict=True)
    ]
    assert all(ours) or all(theirs)
    assert ours[0] != theirs[0]
    return ours[0]


@pytest.fixture(autouse=True)
def unpatched():
    assert not is_patched()
    yield
    xentrs.torch.unpatch()
    assert not is_patched()


def test_what_is_replaced():
    others = [vars(module).copy() for module in (F, nn)]
    with xentrs.torch.patch():
        assert is_patched()
        changed = [
            name
            for module, before in zip((F, nn), others, strict=True)
            for name, value in vars(module).items()
            if before.get(name) is not value
        ]
        assert sorted(changed) == sorted(name for _, name in PLACES)
    assert not is_patched()
    xentrs.torch.patch()
    xentrs.torch.patch()
    assert is_patched()
    xentrs.torch.unpatch()
    assert not is_patched()
    xentrs.torch.unpatch()
    assert not is_patched()


def test_nested_statements():
    with xentrs.torch.patch():
        with xentrs.torch.patch():
            assert is_patched()
        assert is_patched()
        with pytest.raises(ZeroDivisionError), xentrs.torch.patch():
            1 / 0  # noqa: B018
        assert is_patched()
    assert not is_patched()
    # Inside of a call, which lasts until unpatch.
    xentrs.torch.patch()
    with xentrs.torch.patch():
        assert is_patched()
    assert is_patched()
    xentrs.torch.unpatch()
    # A call inside of a statement lasts longer than it.
    with xentrs.torch.patch():
        xentrs.torch.patch()
    assert is_patched()
    xentrs.torch.unpatch()
    # Taken back inside.
    with xentrs.torch.patch():
        xentrs.torch.unpatch()
        assert not is_patched()
        with xentrs.torch.patch():
            assert is_patched()
        assert not is_patched()
    assert not is_patched()
    # One object, entered twice.
    handle = xentrs.torch.patch()
    with handle, handle:
        assert is_patched()
    assert not is_patched()
    with handle:
        assert is_patched()
    assert not is_patched()


def test_decorators():
    @xentrs.torch.patch()
    def depth(n):
        """Call itself."""
        assert is_patched()
        return 1 + depth(n - 1) if n else 0

    assert not is_patched()
    assert (depth.__name__, depth.__doc__) == ("depth", "Call itself.")
    for _ in range(2):
        assert depth(3) == 3
        assert not is_patched()

    @xentrs.torch.patch()
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not is_patched()
    with xentrs.torch.patch():
        depth(0)
        assert is_patched()
    # After a call, which lasts until unpatch.
    xentrs.torch.patch()
    assert xentrs.torch.patch()(lambda: is_patched())()
    assert is_patched()
    xentrs.torch.unpatch()
    assert depth(1) == 1


def generator():
    yield


async def coroutine():
    pass


async def asynchronous_generator():
    yield


@pytest.mark.parametrize("function", [generator, coroutine, asynchronous_generator])
def test_functions_whose_code_runs_after_the_call_are_not_decorated(function):
    with pytest.raises(TypeError, match=r"write `with xentrs\.torch\.patch\(\):` inside of it$"):
        xentrs.torch.patch()(function)
    assert not is_patched()


def test_what_was_there_is_restored(monkeypatch):
    other = lambda *args, **kwargs: None  # noqa: E731
    monkeypatch.setattr(F, "cross_entropy", other)
    with xentrs.torch.patch():
        assert F.cross_entropy is xentrs.torch.cross_entropy
    assert F.cross_entropy is other


def test_threads():
    """The names are ours while any thread is inside, and PyTorch's after the last."""
    barrier = threading.Barrier(4)
    wrong = []

    def work():
        for _ in range(200):
            with xentrs.torch.patch():
                if F.cross_entropy is not xentrs.torch.cross_entropy:
                    wrong.append("not patched inside")
                F.cross_entropy(X, Y)
        barrier.wait()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not is_patched()


def test_modules_made_before_are_served():
    exact = -X.double().log_softmax(1)[0, 0]
    before = nn.CrossEntropyLoss()
    assert before(X[:1], Y[:1]) == 0  # PyTorch's own loses the digits
    with xentrs.torch.patch():
        assert before(X[:1], Y[:1]).item() == pytest.approx(exact.item(), rel=1e-6)
        assert F.cross_entropy(X[:1], Y[:1]).item() == pytest.approx(exact.item(), rel=1e-6)
        inside = nn.CrossEntropyLoss()
    assert inside(X[:1], Y[:1]).item() == pytest.approx(exact.item(), rel=1e-6)
    assert before(X[:1], Y[:1]) == 0
    hidden = torch.randn(2, 4)
    for make, arguments in (
        (lambda: nn.BCEWithLogitsLoss(), (X, X.sigmoid())),
        (lambda: nn.LinearCrossEntropyLoss(4, 3), (hidden, Y)),
    ):
        module = make()
        expected = module(*arguments)
        with xentrs.torch.patch():
            torch.testing.assert_close(module(*arguments), expected)
            assert type(make()).__module__.startswith("xentrs.torch")


@pytest.mark.parametrize(
    "name", ["CrossEntropyLoss", "BCEWithLogitsLoss", "LinearCrossEntropyLoss"]
)
def test_instances_and_subclasses(name):
    arguments = (4, 3) if name.startswith("Linear") else ()
    theirs = getattr(nn, name)
    before = theirs(*arguments)
    of_theirs = type("OfTheirs", (theirs,), {})
    with xentrs.torch.patch():
        ours = getattr(nn, name)
        inside = ours(*arguments)
        of_ours = type("OfOurs", (ours,), {})
        for module in (before, inside, of_theirs(*arguments), of_ours(*arguments)):
            assert isinstance(module, ours)
            assert isinstance(module, theirs)
        assert issubclass(theirs, ours)
        assert issubclass(of_theirs, ours)
        assert not isinstance(before, of_ours)
        assert not isinstance(nn.MSELoss(), ours)
        assert repr(inside) == repr(before)
    assert isinstance(inside, theirs)
    assert isinstance(of_ours(*arguments), theirs)
    assert isinstance(inside, ours)
    assert not isinstance(before, ours)
    assert not issubclass(theirs, ours)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "BCEWithLogitsLoss"])
def test_abstract_base_classes_beside_the_modules(name):
    with xentrs.torch.patch():
        for base in (getattr(nn, name), getattr(xentrs.torch, name)):
            mixed = type("Mixed", (base, abc.ABC), {})
            assert isinstance(mixed(), base)
            assert isinstance(mixed(), abc.ABC)
            assert issubclass(mixed, base)
            assert not isinstance(nn.MSELoss(), mixed)


class OfTheirs(nn.CrossEntropyLoss):
    """A user's subclass, at the top of a module so that it can be pickled."""


def test_pickles():
    weight = torch.ones(3)
    before, own = nn.CrossEntropyLoss(weight), OfTheirs(weight)
    with xentrs.torch.patch():
        inside = nn.CrossEntropyLoss(weight)
        pickles = [pickle.dumps(m) for m in (before, own, inside)]
        copies = [copy.deepcopy(m) for m in (before, own, inside)]
        buffer = io.BytesIO()
        torch.save([before, own, inside, F.cross_entropy], buffer)
        buffer.seek(0)
        copies += torch.load(buffer, weights_only=False)[:3]
    copies += [pickle.loads(p) for p in pickles]
    for i, module in enumerate(copies):
        assert type(module) is type((before, own, inside)[i % 3])
        torch.testing.assert_close(module(X, Y), before(X, Y))
    assert inside.state_dict().keys() == before.state_dict().keys()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_ours_refuses_reaches_pytorch():
    q = X.softmax(1).requires_grad_()
    with xentrs.torch.patch():
        # Gradients in a target.
        F.cross_entropy(X, q).backward()
        assert q.grad is not None
        # PyTorch's messages.
        for wrong in ((X, Y.float()), (X.int(), Y), (X, Y[:1]), (X.numpy(), Y)):
            messages = []
            for f in (F.cross_entropy, ORIGINALS[[p[1] for p in PLACES].index("cross_entropy")]):
                with pytest.raises(Exception) as error:  # noqa: PT011
                    f(*wrong)
                messages.append((type(error.value), str(error.value)))
            assert messages[0] == messages[1]
        # Traced by torch.jit, which would keep our loss as a constant.
        traced = torch.jit.trace(lambda x: F.cross_entropy(x, Y), X)
        assert traced(2 * X).item() == pytest.approx(xentrs.torch.cross_entropy(2 * X, Y).item())
        t = X.sigmoid()
        traced = torch.jit.trace(lambda x: F.binary_cross_entropy_with_logits(x, t), X)
        torch.testing.assert_close(
            traced(2 * X), xentrs.torch.binary_cross_entropy_with_logits(2 * X, t)
        )
        # Traced by torch.fx.
        model = nn.Sequential(nn.Linear(3, 3), Loss())
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(X), model(X))
    with pytest.raises(NotImplementedError, match=r"cannot be traced by torch\.jit\.trace"):
        torch.jit.trace(lambda x: xentrs.torch.cross_entropy(x, Y), X)


class Loss(nn.Module):
    """A user's module."""

    def forward(self, x):
        return F.cross_entropy(x, torch.tensor([0, 2]))


def test_a_device_without_kernels_is_pytorchs(monkeypatch):
    from xentrs.torch._arguments import softmax

    monkeypatch.setattr(softmax, "has_kernels", lambda _: False)
    digits = xentrs.torch.cross_entropy(X[:1], Y[:1], sample_weight=torch.ones(1))
    assert digits > 0
    with xentrs.torch.patch():
        one_hot = F.one_hot(Y[:1], X.shape[1]).to(X)
        assert F.cross_entropy(X[:1], one_hot, reduction="none")[0] == 0


def test_a_tensor_subclass_sees_a_function():
    """PyTorch hands a subclass what stands under the function's name."""
    seen = []

    class Logged(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    x = X.as_subclass(Logged)
    expected = F.cross_entropy(x, Y)
    with xentrs.torch.patch():
        torch.testing.assert_close(F.cross_entropy(x, Y), expected)
        with pytest.raises(RuntimeError):
            F.cross_entropy(x, Y.float())
    assert seen


COMPILED = """
import torch, torch.nn.functional as F
from torch import nn
import xentrs.torch

x, y = torch.randn(4, 5), torch.tensor([0, 1, 2, -100])

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, x):
        z = self.layer(x)
        inside = nn.CrossEntropyLoss(reduction="sum")
        t = z.detach().sigmoid()
        return self.loss(z, y) + F.cross_entropy(z, y) + inside(z, y) + (
            F.binary_cross_entropy_with_logits(z, t)
        ) + F.linear_cross_entropy(z, self.layer.weight, y)

first, then = {order}
for is_ours in (first, then):
    model = Model()
    expected = model(x)
    (true,) = torch.autograd.grad(expected, model.layer.weight)
    if is_ours:
        xentrs.torch.patch()
        model.loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    graphs = []

    def backend(graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    loss = torch.compile(model, fullgraph=True, backend=backend)(x)
    (grad,) = torch.autograd.grad(loss, model.layer.weight)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, true)
    text = str([n.target for g in graphs for n in g.graph.nodes])
    assert ("xentrs" in text) == is_ours, text
    xentrs.torch.unpatch()
print("done")
"""


@pytest.mark.parametrize("order", [(True, False), (False, True)], ids=str)
def test_compiled(order):
    """Whichever PyTorch compiles first: it looks its functions up once in a process."""
    command = [sys.executable, "-W", "ignore", "-c", COMPILED.replace("{order}", str(order))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "done\n", done.stdout + done.stderr
