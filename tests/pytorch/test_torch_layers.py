"""How `xentrs.torch` is built: imports go down, PyTorch's private interfaces are in one file."""

import ast
import itertools
import os
import pkgutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import xentrs.torch

FOLDER = Path(xentrs.torch.__file__).parent
FILES = {
    ".".join(path.relative_to(FOLDER).with_suffix("").parts): path
    for path in sorted(FOLDER.rglob("*.py"))
    if path.name != "__init__.py"
}
# From the bottom up. A layer imports from those before it, and from itself.
LAYERS = (
    ("_private", "_triton"),
    ("_backend",),
    ("_mode",),
    ("_arguments",),
    ("_cpu", "_gpu"),
    ("_operators",),
    ("_module",),
    ("losses",),  # a file each: whatever is no other layer
    ("_patch",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def layer(name):
    """Return the layer of a module."""
    top = name.partition(".")[0]
    return top if top in LEVEL else "losses"


def imports(path):
    """Yield the modules of this package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("xentrs.torch"):
            inside = node.module.removeprefix("xentrs.torch").removeprefix(".")
            for alias in node.names:
                name = f"{inside}.{alias.name}".removeprefix(".")
                yield name if name in FILES else inside


def test_imports_go_down():
    graph = {name: set(imports(path)) for name, path in FILES.items()}
    assert {layer(name) for name in graph} == set(LEVEL)
    for name, found in graph.items():
        assert found <= set(FILES), (name, found)
        for other in found:
            here, below = layer(name), layer(other)
            assert here == below or LEVEL[below] < LEVEL[here], f"{name} imports {other}"
    list(TopologicalSorter(graph).static_order())  # raises CycleError


# Of a `NamedTuple`, and public.
_OF_TUPLES = ("_replace", "_fields")


def private_names(tree):
    """Yield the names with an underscore that are read of anything but modules of our own."""
    own = {"xentrs"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.module.startswith("xentrs"):
                own |= {alias.asname or alias.name for alias in node.names}
            else:
                yield from (part for part in node.module.split(".") if part.startswith("_"))
                yield from (alias.name for alias in node.names if alias.name.startswith("_"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            is_own = isinstance(node.value, ast.Name) and node.value.id in own | {"self"}
            if node.attr.startswith("_") and node.attr not in _OF_TUPLES and not is_own:
                yield node.attr


@pytest.mark.parametrize("name", [name for name in FILES if name != "_private"])
def test_private_interfaces_stand_in_one_file(name):
    found = set(private_names(ast.parse(FILES[name].read_text())))
    assert found - {"__future__"} == set()


# The interfaces that have a public way beside them, as `_private.py` groups them.
OPTIONAL = {
    "around a call": (
        "torch._C._are_functorch_transforms_active",
        "torch._C._len_torch_dispatch_stack",
        "torch._C._is_tracing",
        "torch.autograd.forward_ad._current_level",
    ),
    "in a backward pass": (
        "torch._C._autograd._get_current_graph_task_keep_graph",
        "torch._C._functorch.is_legacy_batchedtensor",
    ),
    "of operators": (
        "torch._C._after_autograd_keyset",
        "torch.autograd.forward_ad._set_fwd_grad_enabled",
        "torch.autograd.function._SingleLevelFunction",
        "torch._functorch.utils.enable_single_level_autograd_function",
        "torch._ops.OpOverload.redispatch",
    ),
}
OPTIONAL["all"] = (*itertools.chain(*OPTIONAL.values()), "torch._assert_async")

# Removes some of them while `xentrs.torch` is imported: PyTorch itself still needs them.
WITHOUT = """
import pkgutil, sys
import torch, torch._dynamo, torch.nn.functional as F

removed = []
for path in sys.argv[1:]:
    owner, _, name = path.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    removed.append((owner, name, getattr(owner, name)))
    delattr(owner, name)
import xentrs.torch as xt
for owner, name, value in removed:
    setattr(owner, name, value)

torch.manual_seed(0)
x, y = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, -100, 3, 4, 2])
t, w = x.sigmoid(), torch.randn(5, 5, dtype=torch.float64)


def same(f):
    found = []
    for module in (xt, F):
        a = x.clone().requires_grad_()
        loss = f(module, a)
        weights = torch.ones_like(loss)
        found.append([loss, *torch.autograd.grad(loss, a, weights, retain_graph=True)])
        found[-1] += torch.autograd.grad(loss, a, 2 * weights)
    torch.testing.assert_close(*found)


same(lambda m, x: m.cross_entropy(x, y))
same(lambda m, x: m.cross_entropy(x, y, reduction="none", label_smoothing=0.1))
same(lambda m, x: m.binary_cross_entropy_with_logits(x, t))
same(lambda m, x: m.linear_cross_entropy(x, w, y))
for name in ("cross_entropy", "binary_cross_entropy_with_logits"):
    target = t if "binary" in name else y
    f = lambda x: getattr(xt, name)(x * 2, target)
    f = torch.compile(f, backend="aot_eager", fullgraph=True)
    same(lambda m, x: f(x) if m is xt else getattr(F, name)(x * 2, target))
with torch.no_grad():
    torch.testing.assert_close(xt.cross_entropy(x, y), F.cross_entropy(x, y))
eye = torch.eye(6, dtype=torch.float64)
rows = []
for module in (xt, F):
    a = x.clone().requires_grad_()
    loss = module.cross_entropy(a, y, reduction="none")
    rows.append(torch.autograd.grad(loss, a, eye, is_grads_batched=True)[0])
torch.testing.assert_close(*rows)


def twice(m):
    once = torch.func.grad(lambda x: m.cross_entropy(x, y))
    return torch.func.grad(lambda x: once(x).sin().sum())(x)


def graph(m):
    a = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(m.cross_entropy(a * 1, y), a, create_graph=True)
    return torch.autograd.grad(grad.sin().sum(), a)[0]


nested = xt._private.CAN_REDISPATCH
for f in (twice, graph):
    try:
        torch.testing.assert_close(f(xt), f(F))
    except RuntimeError as error:  # ours, or PyTorch's own of its public way
        words = "cannot be differentiated twice, nor by torch.func", "functorch transforms"
        assert any(found in str(error) for found in words), error
        assert not nested
(loss,) = torch.func.vmap(lambda x: xt.cross_entropy(x, y))(x[None])
torch.testing.assert_close(loss, F.cross_entropy(x, y))
print("done")
"""


def test_this_pytorch_has_them():
    """Else update `_private.py`: the public ways are slower, or do less."""
    for path in OPTIONAL["all"]:
        pkgutil.resolve_name(path)
    assert xentrs.torch._private.CAN_REDISPATCH


@pytest.mark.parametrize("missing", OPTIONAL)
def test_without_private_interfaces(missing):
    """The public ways beside them give the same results, or refuse."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT, *OPTIONAL[missing]],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr


def test_assertions_without_those_of_the_device(monkeypatch):
    from xentrs.torch import _private

    monkeypatch.setattr(_private, "_assert_async", None)
    _private.assert_on_device(torch.tensor(True), "bounds")
    with pytest.raises(RuntimeError, match="bounds"):
        _private.assert_on_device(torch.tensor(False), "bounds")
