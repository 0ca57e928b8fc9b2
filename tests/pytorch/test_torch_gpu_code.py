"""The Triton kernels compile for GPUs that this machine does not have."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")
pytest.importorskip("triton", reason="Triton is not installed")

# In processes of their own: in this one Triton may interpret its kernels.
LAUNCH = """
import contextlib
import threading
import torch
import triton
from triton.runtime.jit import JITFunction

launches, devices = [], []


def run(self, *arguments, grid, warmup, **options):
    launches.append((devices[-1], options))


class Module:
    @staticmethod
    @contextlib.contextmanager
    def device(device):
        devices.append(device)
        yield
        devices.append(None)


class Tensor:
    device = torch.device("cuda:1")


JITFunction.run = run
torch.get_device_module = lambda device: Module
from xentrs.torch._gpu import scale, softmax
from xentrs.torch._triton import Kernel

kernel = scale._scale  # another thread may have found it before it was compiled
for launched in (kernel, scale._scale, kernel):
    launched[(1,)](Tensor(), num_warps=8)
options = {"num_warps": 8, "sanitize_overflow": False, "enable_fp_fusion": True}
assert launches == [(Tensor.device, options)] * 3, launches

# Threads that come together: none finds some of a module's kernels compiled and others not.
jit, found = triton.jit, []


def slowly(function, **options):
    held = [isinstance(value, Kernel) for value in vars(softmax).values()]
    found.append(sum(held))
    return jit(function, **options)


triton.jit = slowly
kernel = softmax._softmax_loss
threads = [threading.Thread(target=kernel.compiled) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == found[0] and set(found) == {found[0]}, found
print("launched")
"""

COMPILE = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xentrs.torch import _binary, _binary_of_probabilities, _focal_loss
from xentrs.torch import _generalized_cross_entropy, _poly_loss, _sigmoid_focal_loss
from xentrs.torch._gpu import divergence, elements, entropy, likelihood, scale, softmax
from xentrs.torch._gpu.tiles import warps
from xentrs.torch._triton import Kernel, load_triton

kind, arch, warp, suffix = sys.argv[1:]
torch.version.hip = "7" if kind == "hip" else None
target = GPUTarget(kind, int(arch) if arch.isdigit() else arch, int(warp))
_, tl = load_triton()


def compile(module, name, types, **constants):
    namespace = vars(module)
    for key, value in list(namespace.items()):
        if isinstance(value, Kernel):
            value.function.__globals__["tl"] = tl
            namespace[key] = triton.jit(value.function, debug=True)
    kernel = namespace[name]
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    # As many warps as of a row of 32768 classes. triton.compile does not say if they are too many.
    options = {"num_warps": warps(1 << 15) if "R" in constants else 8, "debug": True}
    assert options["num_warps"] * int(warp) <= 1024
    options |= {"sanitize_overflow": False, "enable_fp_fusion": True}
    code = triton.compile(source, target=target, options=options)
    assert code.asm[suffix], "no code"
    print(name, len(code.asm[suffix]))


tile = dict(R=1, B=4096, MANY=True)
common = tile | dict(IGNORED=-100, NEAR=40.0)
common |= dict.fromkeys(("total_weight", "distance", "logsumexps", "argmaxes"))
plain = dict(SMOOTHING=0.0, EVEN=0.0, Z=0.0, CAP=0.0, T=1.0, OBJECTIVE=None, OWN=(), SOFT=False)
all_ = plain | dict(SMOOTHING=0.1, EVEN=1e-4, Z=1e-4, CAP=30.0, T=2.0)
focal = plain | dict(OBJECTIVE=_focal_loss._objective.compiled(), OWN=(2.5,))
poly = plain | dict(OBJECTIVE=_poly_loss._objective.compiled(), OWN=(2.5,))
general = _generalized_cross_entropy._objective.compiled()
general = plain | dict(OBJECTIVE=general, OWN=(0.7,))
pair = plain | dict.fromkeys(("weight", "sample_weight", "z_divisor"))
soft_ = plain | dict(SOFT=True, IGNORED=None, grad=None)
elements_ = (
    dict(ELEMENT=_binary._element.compiled(), OWN=()),
    dict(ELEMENT=_binary_of_probabilities._element.compiled(), OWN=()),
    dict(ELEMENT=_sigmoid_focal_loss._element.compiled(), OWN=(2.5, 0.25)),
)
# What a kernel does with a dtype (loads, sums, stores) shows in one or two of its variants.
for x, acc in (("bf16", "fp32"), ("fp32", "fp32"), ("fp64", "fp64")):
    floats = {"x": "*" + x, "grad": "*" + x, "loss": "*" + acc, "divisor": "*fp64"}
    real = tl.float64 if acc == "fp64" else tl.float32
    one = x == "fp32"  # the dtype of the other variants
    for options in (plain, all_, *((focal, poly, general, pair, soft_) if one else ())):
        soft = options["SOFT"]
        types = floats | {"target": "*" + x if soft else "*i64", "z_divisor": "*fp64"}
        constants = common | options | {"ACC": real}
        if options is plain:
            constants |= {"weight": None, "sample_weight": None, "z_divisor": None}
        else:
            types |= {"weight": "*fp32", "sample_weight": "*fp32"}
        if options is pair:
            numbers = {"total_weight": "*fp64", "distance": "*fp64"}
            types |= numbers | {"logsumexps": "*" + acc, "argmaxes": "*i64"}
            constants = {k: v for k, v in constants.items() if k in options or v is not None}
        compile(softmax, "_softmax_loss", types, **constants)
    types = floats | {"sample_weight": "*fp32"}
    compile(entropy, "_entropy", types, **tile, ACC=real)
    types |= {"target": "*i64", "weight": "*fp32"}
    constants = dict(R=1, B=4096, IGNORED=-100, SMOOTHING=0.1, EVEN=1e-4, SOFT=False, ACC=real)
    compile(likelihood, "_likelihood", types, **constants)
    if one:
        constants |= dict(SMOOTHING=0.0, EVEN=0.0)
        compile(likelihood, "_likelihood", types, **constants)
        constants |= dict(SOFT=True, IGNORED=None)
        compile(likelihood, "_likelihood", types | {"target": "*fp32"}, **constants)
    types = floats | {"target": "*i1", "weight": "*fp32", "pos_weight": "*fp32", "where": "*i1"}
    for element in elements_ if one else elements_[:1]:
        compile(elements, "_elements", types, **element, SMOOTHING=0.1, SUM=True, ACC=real, B=2048)
    types = floats | {"teacher": "*" + x, "sample_weight": "*fp32"}
    for beta in (0.0, 0.5, 1.0) if one else (0.5,):
        own = dict(T=2.0, BETA=beta, ACC=real, TERMS=9, NEAR=1.0, R=1, B=2048, MANY=True)
        compile(divergence, "_divergence", types, **own)
    types = {"grad": "*" + x, "grad_output": "*" + acc, "sample_mask": "*i1"}
    compile(scale, "_scale", types, BLOCK=4096)
    if one:
        compile(scale, "_scale", types, BLOCK=4096, sample_mask=None)
"""


def run(script, path, *arguments):
    """Run a script in a process of its own, where nothing is interpreted; return what it prints."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(path)
    # Triton finds a function's source in its file, so the script must be one too.
    file = path / "script.py"
    file.write_text(script)
    command = [sys.executable, str(file), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_launches(tmp_path):
    """On the tensor's device, with the same options each time, and compiled by one thread."""
    assert run(LAUNCH, tmp_path) == ["launched"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "target",
    [("cuda", "90", "32", "cubin"), ("hip", "gfx942", "64", "hsaco")],
    ids=lambda target: target[1],
)
def test_kernels_compile(target, tmp_path):
    names = [line.split()[0] for line in run(COMPILE, tmp_path, *target)]
    found = {name: names.count(name) for name in names}
    assert found == {
        "_softmax_loss": 11,
        "_entropy": 3,
        "_likelihood": 5,
        "_elements": 5,
        "_divergence": 5,
        "_scale": 4,
    }
