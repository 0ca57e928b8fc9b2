"""The process that a benchmark runs in: threads, instruction sets, a second copy of xentrs.

Import this module before any other library that is compared: it fixes the number of threads of all
of them (two, or `XENTRS_NUM_THREADS`) and the CPUs that they may use. It is not run by itself.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import xentrs

# JAX takes as many threads as there are CPUs in the affinity mask.
THREADS = int(os.environ.get("XENTRS_NUM_THREADS", min(2, len(os.sched_getaffinity(0)))))
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
os.environ["OMP_NUM_THREADS"] = str(THREADS)
# PyTorch's cache of compiled code does not tell levels apart: code generated for vectors of 8 and
# compiled for vectors of 16 writes beyond its arrays.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(
    Path(tempfile.gettempdir()) / f"xentrs-inductor-{os.environ.get('XENTRS_BENCH_LEVEL', 'own')}"
)

# Names of the levels, which are sets of instructions, as the tables write them
LEVELS = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "portable"}

# Restricts each library to AVX2, in its own way. NumPy needs a list, which is made when needed.
AVX2 = {
    "XENTRS_SIMD": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",  # NumPy's matrix products
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",  # JAX, TensorFlow
}

# Instruction sets


def level_of(module: ModuleType) -> str:
    """Return the level at which a copy of xentrs runs."""
    return str(module.show_config(mode="dicts")["simd"]["level"])


def restart_at(level: str | None) -> None:
    """Start this script again with every library restricted to a level.

    Return if that has been done, or if no level is given. Libraries choose their instructions once
    a process, most of them while they are imported.
    """
    if level is None:
        return
    wanted = {"XENTRS_SIMD": level}
    if level == "avx2":
        beyond = [name for name in numpy_features() if name.startswith(("AVX512", "X86_V4"))]
        wanted = AVX2 | ({"NPY_DISABLE_CPU_FEATURES": " ".join(beyond)} if beyond else {})
    if os.environ.get("XENTRS_BENCH_LEVEL") == level:
        if level_of(xentrs) != level:
            raise SystemExit(f"xentrs runs at {level_of(xentrs)} on this machine, not at {level}")
        return
    environment = os.environ | wanted | {"XENTRS_BENCH_LEVEL": level}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def numpy_features() -> list[str]:
    """Return the CPU features among which NumPy chooses at run time and that this machine has."""
    module = importlib.import_module("numpy._core._multiarray_umath")
    return [name for name in module.__cpu_dispatch__ if module.__cpu_features__.get(name)]


# A second copy of xentrs


def second_copy(
    level: str | None = None, threads: int = THREADS, folder: Path | None = None
) -> ModuleType:
    """Return a second xentrs in this process, with its own level and number of threads.

    A level is chosen once a process. To the system a copy of the package is another library, so the
    copy chooses again. `folder` holds another build of the package.
    """
    copied = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, copied, ignore_errors=True)
    package = Path(xentrs.__file__).parent if folder is None else folder / "xentrs"
    shutil.copytree(package, Path(copied) / "xentrs")
    first = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_xentrs(name)}
    before = os.environ.get("XENTRS_SIMD")
    level = level or level_of(first["xentrs"])
    os.environ["XENTRS_SIMD"] = level
    sys.path.insert(0, copied)
    try:
        second = importlib.import_module("xentrs")
        if level_of(second) != level:
            raise RuntimeError(f"a second xentrs runs at {level_of(second)}, not at {level}")
        second.set_num_threads(threads)
        # Modules that the copy would import later must come from its own folder too.
        for file in sorted((Path(copied) / "xentrs").glob("_*.py")):
            importlib.import_module(f"xentrs.{file.stem}")
        return second
    finally:
        sys.path.remove(copied)
        if before is None:
            del os.environ["XENTRS_SIMD"]
        else:
            os.environ["XENTRS_SIMD"] = before
        for name in [name for name in sys.modules if _is_xentrs(name)]:
            del sys.modules[name]
        sys.modules.update(first)
        shutil.rmtree(copied)  # a loaded library stays loaded


def _is_xentrs(name: str) -> bool:
    return name == "xentrs" or name.startswith("xentrs.")


# The machine


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine(*packages: str) -> dict[str, Any]:
    """Return what a reader must know beside the figures: CPU, caches, level, threads, versions."""
    config = xentrs.show_config(mode="dicts")
    versions = {"Python": platform.python_version(), "xentrs": xentrs.__version__}
    for package in ("numpy", *packages):
        if importlib.util.find_spec(package.replace("scikit-learn", "sklearn")):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": cpu_model(),
        "caches": caches(),
        "level": config["simd"]["level"],
        "levels": config["simd"]["available"],
        "threads": THREADS,
        "load": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


PACKAGES = ["scipy", "torch", "jax", "optax", "tensorflow", "scikit-learn"]


def caches() -> dict[str, str]:
    """Return the sizes of the first CPU's caches, as Linux reports them."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = (
            (folder / name).read_text().strip() for name in ("type", "level", "size")
        )
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def describe(machine: dict[str, Any]) -> str:
    """Say in a sentence what the figures were measured on."""
    sizes = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']} ({sizes}), level {machine['level']}, {machine['threads']} threads, "
        f"load {machine['load']} before the run; {versions}."
    )
