"""What people install: one wheel that needs NumPy and nothing else, and an sdist that builds it.

`make wheel` makes both, unless those in dist/ are newer than the sources.
"""

import email.message
import email.parser
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="manylinux is for Linux"),
    pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="a checkout without a Makefile"),
    pytest.mark.skipif(shutil.which("cargo") is None, reason="building needs Rust"),
    pytest.mark.timeout(900),
]

# Runs where there is nothing but the wheel and NumPy.
USE = """
import importlib.metadata, shutil, sys
import numpy as np
assert shutil.which("cargo") is None and shutil.which("rustc") is None
before = set(sys.modules)
import xentrs
assert "torch" not in sys.modules and importlib.util.find_spec("torch") is None
logits = np.float32([[2.0, 1.0, 0.1]])
loss, grad = xentrs.cross_entropy_with_grad(logits, [0])
np.testing.assert_allclose(loss, 0.4170300162778335, rtol=1e-6)
np.testing.assert_allclose(grad, [[-0.34099886, 0.24243297, 0.09856589]], rtol=1e-6)
assert xentrs.__version__ == importlib.metadata.version("xentrs")
xentrs.show_config()
print(xentrs.__file__)
"""


@pytest.fixture(scope="session")
def dist():
    # pytest may itself run under make, whose flags and variables are not for this one.
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    done = subprocess.run(["make", "wheel"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "dist"


@pytest.fixture(scope="session")
def wheel(dist):
    (file,) = dist.glob("*.whl")
    return file


@pytest.fixture(scope="session")
def sdist(dist):
    (file,) = dist.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        return file, archive.getnames()


@pytest.fixture(scope="session")
def bare(wheel, tmp_path_factory):
    """Install the wheel alone; return that Python, and environment variables without Rust."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    names = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CARGO", "RUST", "PYTHON", "VIRTUAL_ENV", "XENTRS"))
    }
    env = names | {"PATH": str(folder / "bin")}
    done = subprocess.run(
        [python, "-m", "pip", "install", "--only-binary", ":all:", "--quiet", wheel],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return python, env


def metadata(wheel: Path) -> email.message.Message:
    return email.parser.Parser().parsestr(member(wheel, r"[^/]+\.dist-info/METADATA"))


def member(wheel: Path, pattern: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if re.fullmatch(pattern, name)]
        return archive.read(name).decode()


def test_tags(wheel):
    """For every CPython since 3.11, on every Linux since 2014."""
    python, abi, platforms = wheel.stem.split("-")[2:]
    assert (python, abi) == ("cp311", "abi3")
    assert {p.rsplit("_", 2)[0] for p in platforms.split(".")} == {
        "manylinux2014",
        "manylinux_2_17",
    }
    tags = re.findall(r"^Tag: (.+)$", member(wheel, r"[^/]+\.dist-info/WHEEL"), re.MULTILINE)
    assert tags
    assert all(tag.startswith("cp311-abi3-manylinux") for tag in tags)


def test_metadata(wheel):
    headers = metadata(wheel)
    needed, *optional = headers.get_all("Requires-Dist")
    assert re.match(r"numpy\b", needed)
    assert all("extra ==" in requirement for requirement in optional)
    assert headers["Requires-Python"] == ">=3.11"
    assert headers["License-Expression"] == "MIT OR Apache-2.0"
    assert set(headers.get_all("License-File")) == {"LICENSE-MIT", "LICENSE-APACHE"}
    assert headers["Version"] in wheel.name
    assert headers.get_payload().startswith("# xentrs")


def test_contents_of_the_wheel(wheel):
    """The package with its types, one module, the licences; no sources, no tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    package = {name for name in names if name.startswith("xentrs/")}
    sources = {
        str(file.relative_to(ROOT / "python"))
        for pattern in ("*.py", "*.pyi", "py.typed")
        for file in (ROOT / "python" / "xentrs").rglob(pattern)
    }
    assert {"xentrs/py.typed", "xentrs/_xentrs.pyi"} <= sources
    assert package == sources | {"xentrs/_xentrs.abi3.so"}
    others = {name.split("/")[0] for name in names} - {"xentrs"}
    assert all(re.fullmatch(r"xentrs-.+\.dist-info", name) for name in others)
    for licence in ("LICENSE-MIT", "LICENSE-APACHE"):
        text = member(wheel, rf"[^/]+\.dist-info/licenses/{licence}")
        assert text == (ROOT / licence).read_text()


def test_every_function_is_in_the_oldest_glibc(wheel):
    """A function that glibc 2.17 lacks has no version, and would fail as the module is loaded."""
    with zipfile.ZipFile(wheel) as archive:
        module = ELFFile(io.BytesIO(archive.read("xentrs/_xentrs.abi3.so")))
    symbols = module.get_section_by_name(".dynsym")
    versions = module.get_section_by_name(".gnu.version")
    unversioned = {
        symbol.name
        for i, symbol in enumerate(symbols.iter_symbols())
        if symbol["st_shndx"] == "SHN_UNDEF"
        and symbol["st_info"]["bind"] == "STB_GLOBAL"
        and versions.get_symbol(i)["ndx"] in ("VER_NDX_LOCAL", "VER_NDX_GLOBAL")
    }
    assert any(name.startswith("Py") for name in unversioned)
    assert not {name for name in unversioned if not name.startswith(("Py", "_Py"))}


def test_no_path_of_the_building_machine(wheel):
    """Whoever builds it, and where, the bytes are the same."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            for path in (ROOT, Path.home() / ".cargo"):
                assert str(path).encode() not in archive.read(name), f"{path} in {name}"


def test_contents_of_the_sdist(sdist, tmp_path):
    """All that building needs, so that cargo finds every file that Cargo.toml speaks of."""
    file, names = sdist
    top = file.name.removesuffix(".tar.gz")
    inside = {name.removeprefix(top + "/") for name in names}
    needed = {"Cargo.toml", "Cargo.lock", "pyproject.toml", "PKG-INFO", "README.md"}
    needed |= {"LICENSE-MIT", "LICENSE-APACHE"}
    for folder, pattern in (("src", "*.rs"), ("python", "*.py"), ("python", "*.pyi")):
        needed |= {str(f.relative_to(ROOT)) for f in (ROOT / folder).rglob(pattern)}
    assert needed <= inside
    assert not any(name.endswith(".so") for name in inside)
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path, filter="data")
    subprocess.run(
        ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"],
        cwd=tmp_path / top,
        check=True,
        capture_output=True,
    )


def test_works_without_rust_and_torch(bare):
    python, env = bare
    done = subprocess.run([python, "-c", USE], env=env, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert str(python.parents[1]) in done.stdout.splitlines()[-1], "another xentrs was imported"


def test_import_takes_little_beside_numpy(bare):
    """At most 20 ms more than NumPy; the least of several, as the machine may be busy."""
    python, env = bare
    report = r"^import time:\s*\d+ \|\s*(\d+) \| {}$"
    extra = []
    for _ in range(7):
        done = subprocess.run(
            [python, "-X", "importtime", "-c", "import numpy; import xentrs"],
            env=env,
            capture_output=True,
            text=True,
            cwd="/",
            check=True,
        )
        (microseconds,) = re.findall(report.format("xentrs"), done.stderr, re.MULTILINE)
        extra.append(int(microseconds) / 1000)
    assert min(extra) <= 20
