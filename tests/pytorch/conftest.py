"""What the tests of `xentrs.torch` share: the backends that this machine has.

Nothing here imports PyTorch, so that without it these tests skip with their reason.
"""

import functools
import inspect
import os

import pytest

from backends import BACKENDS


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Run the test on each backend; return the device that its tensors are on."""
    torch = pytest.importorskip("torch")
    from xentrs.torch import _backend

    has_gpu = torch.cuda.is_available()
    if request.param == "cuda":
        if not has_gpu:
            pytest.skip("no GPU")
        return "cuda"
    if request.param == "interpreter":
        if has_gpu:
            pytest.skip("with a GPU the kernels run there")
        pytest.importorskip("triton", reason="Triton is not installed")
        keep_patches_of_the_interpreter()
        monkeypatch.setattr(_backend, "FORCED", "triton")
    return "cpu"


@functools.cache
def keep_patches_of_the_interpreter():
    """Let Triton's interpreter patch `triton.language` once instead of at every function call.

    That takes half the time of these tests. Nothing else in this process uses the language.
    """
    from triton.runtime import interpreter

    patch, patched = getattr(interpreter, "_patch_lang", None), set()
    if patch is None:  # of another version
        return

    class Kept:
        def restore(self):
            pass

    def patch_once(function):
        # What it patches depends on the modules that the function sees.
        modules = (v.__name__ for v in function.__globals__.values() if inspect.ismodule(v))
        languages = frozenset(name for name in modules if name.startswith("triton.language"))
        if languages not in patched:
            patched.add(languages)
            patch(function)
        return Kept()

    interpreter._patch_lang = patch_once


@pytest.fixture
def small_tiles(monkeypatch):
    """Make the GPU's kernels go through rows of many tiles, and the CPU's through many chunks."""
    from xentrs.torch._cpu import tensors
    from xentrs.torch._gpu import divergence, tiles

    for module, name in ((tiles, "SIZES"), (divergence, "_SIZES")):
        small = getattr(module, name)._replace(longest=8, tile=16)
        monkeypatch.setattr(module, name, small)
    monkeypatch.setattr(tensors, "CHUNK", 64)


def pytest_configure(config):
    """Let Triton interpret kernels where there is no GPU; with one, its compiler is tested.

    Triton reads this at the first launch.
    """
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    for line in (
        # NumPy's, in Triton's interpreter, where a GPU quietly gives inf or NaN.
        "ignore:(divide by zero|invalid value|overflow|underflow):RuntimeWarning",
        "ignore:linear_cross_entropy. ``options`` ignored:UserWarning",  # PyTorch's own
        "ignore::DeprecationWarning:torch.*",
        "ignore::FutureWarning:torch.*",
        "ignore::UserWarning:torch.*",
    ):
        config.addinivalue_line("filterwarnings", line)
