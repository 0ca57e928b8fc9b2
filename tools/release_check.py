"""What a release must pass, of the files in dist/: make release-check.

Every check prints a line: ok, skipped and why, or FAILED. Nothing is uploaded.
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PROGRAMS = Path(sysconfig.get_path("scripts"))
LOWEST_NUMPY = "1.25"  # what pyproject.toml claims
MINORS = range(11, 16)
TRY = ROOT / "tools" / "try_wheel.py"


class Skipped(Exception):
    """A check that cannot be made here; the message says why."""


def run(*command: object, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Run a command; return what it prints, or raise with it."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{command[0]} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


def tool(name: str) -> Path:
    """Return a program of this environment."""
    found = shutil.which(name, path=str(PROGRAMS))
    assert found, f"{name} is not in {PROGRAMS}"
    return Path(found)


def one(pattern: str) -> Path:
    """Return the one file of dist/ with such a name."""
    found = list(DIST.glob(pattern))
    assert len(found) == 1, f"not one {pattern} in dist/, but {found}"
    return found[0]


def digest(file: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------ checks


def same_version() -> str:
    """One version in Cargo.toml, the files' names, the changelog and the citation."""
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)
    newest = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    (cited,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    built = [file.name.split("-")[1].removesuffix(".tar.gz") for file in DIST.glob("xentrs-*")]
    assert {version, newest, cited, *built} == {version}, (version, newest, cited, built)
    tag = os.environ.get("GITHUB_REF", "")
    assert not tag.startswith("refs/tags/") or tag == f"refs/tags/v{version}", tag
    return version


def same_bytes(build: str) -> str:
    """Built in another folder, from what the sdist holds, both files have the same bytes."""
    if not build:
        raise Skipped("no --build")
    if sys.platform != "linux":
        raise Skipped(
            "other linkers than Linux's may write a time or a path; nobody has looked yet"
        )
    wheel, sdist = one("*.whl"), one("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        date = datetime(*archive.infolist()[0].date_time, tzinfo=UTC)
    env = {
        "SOURCE_DATE_EPOCH": str(int(date.timestamp())),
        "PATH": os.pathsep.join([str(PROGRAMS), os.environ["PATH"]]),
        "VIRTUAL_ENV": str(PROGRAMS.parent),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        source = folder / sdist.name.removesuffix(".tar.gz")
        again = folder / "again"
        command = [tool("maturin"), *shlex.split(build), "--out", again]
        # As in a checkout: what git knows is in the sdist, and `PKG-INFO` is written.
        (source / "PKG-INFO").unlink()
        run("git", "init", "--quiet", cwd=source)
        run("git", "add", "--all", cwd=source)
        run(tool("maturin"), "sdist", "--out", again, env=env, cwd=source)
        run(*command, "--target-dir", folder / "target", env=env, cwd=source)
        for first in (wheel, sdist):
            second = again / first.name
            assert second.exists(), f"{first.name} is called {os.listdir(again)} the second time"
            assert digest(first) == digest(second), f"{first.name} has other bytes"
    return f"wheel {digest(wheel)[:12]}, sdist {digest(sdist)[:12]}"


def metadata() -> str:
    """Whether PyPI accepts and shows it."""
    run(tool("twine"), "check", "--strict", *DIST.glob("xentrs-*"))
    return "twine check --strict"


def abi3() -> str:
    """No function that the stable ABI of CPython 3.11 lacks."""
    run(tool("abi3audit"), "--strict", one("*.whl"))
    return "abi3audit --strict"


def platform_tag() -> str:
    """No function that the oldest C library of the wheel's tag lacks."""
    wheel = one("*.whl")
    if sys.platform != "linux":
        raise Skipped("auditwheel is for Linux")
    claimed = wheel.stem.split("-")[-1].split(".")
    text = " ".join(run(tool("auditwheel"), "show", wheel).split())
    (found,) = re.findall(r'consistent with the following platform tag: "(\S+?)"', text)
    assert found in claimed, f"the wheel claims {claimed}, auditwheel finds {found}"
    return found


def interpreter(minor: int) -> Path:
    """Return a CPython of this machine."""
    candidates = [Path(sys.executable)]
    candidates += map(Path, filter(None, [shutil.which(f"python3.{minor}")]))
    candidates += sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python"))
    kept = os.environ.get("RUNNER_TOOL_CACHE")  # where a workflow on Windows finds its Pythons
    candidates += sorted(Path(kept, "Python").glob(f"3.{minor}.*/*/python.exe")) if kept else []
    for candidate in candidates:
        script = "import sys; print(sys.implementation.name, sys.version_info[1])"
        try:
            if run(candidate, "-c", script).split() == ["cpython", str(minor)]:
                return candidate
        except (AssertionError, OSError):
            continue  # a shim of pyenv, of a version that is not active
    raise Skipped("not on this machine")


def tried(minor: int, numpy: str) -> str:
    """Install the wheel in a fresh environment, and use it."""
    wheel = one("*.whl")
    if "musllinux" in wheel.name and "musl" not in sysconfig.get_config_var("HOST_GNU_TYPE"):
        raise Skipped("a wheel for musl, and this system has glibc")
    python = interpreter(minor)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(python, "-m", "venv", folder / "venv")
        python = next((folder / "venv").glob("[Sb][ci]*/python*"))
        # Nothing is compiled: where NumPy has no wheel, the check is skipped.
        install = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        try:
            run(*install, numpy)
        except AssertionError as error:
            if "No matching distribution" in str(error):
                raise Skipped(f"no wheel of {numpy}") from None
            raise
        run(*install, wheel, numpy)
        env = {"PATH": str(python.parent), "PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
        return run(python, "-W", "error", TRY, env=env, cwd=folder).strip()


def free_threaded() -> str:
    """See that a build without the GIL refuses the abi3 wheel."""
    found = shutil.which("python3.14t") or shutil.which("python3.13t")
    if not found:
        raise Skipped("no free-threaded CPython on this machine; its pip refuses abi3 wheels")
    with tempfile.TemporaryDirectory() as name:
        run(found, "-m", "venv", name)
        python = next(Path(name).glob("[Sb][ci]*/python*"))
        try:
            run(python, "-m", "pip", "install", "--no-deps", one("*.whl"))
        except AssertionError as refused:
            if "not a supported wheel" not in str(refused):
                raise
            return "refused"
        raise AssertionError("a free-threaded CPython took the wheel")


def older_glibc() -> str:
    """Say why the wheel is not tried on an older C library."""
    raise Skipped(
        "no CPython 3.11 or later beside an older glibc here; auditwheel has compared the "
        "versions of the functions instead"
    )


# -------------------------------------------------------------------------------------------- main


def main() -> None:
    """Make all checks; end with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="", help="maturin's arguments for the second build")
    build = parser.parse_args().build
    checks: list[tuple[str, Callable[[], str]]] = [
        ("version", same_version),
        ("metadata", metadata),
        ("stable ABI", abi3),
        ("platform tag", platform_tag),
        ("free-threaded CPython", free_threaded),
        ("older glibc", older_glibc),
    ]
    for minor in MINORS:
        numpys = [f"numpy=={LOWEST_NUMPY}.*", "numpy"] if minor == MINORS[0] else ["numpy"]
        for numpy in numpys:
            checks.append((f"3.{minor}, {numpy}", lambda m=minor, n=numpy: tried(m, n)))
    checks.append(("same bytes twice", lambda: same_bytes(build)))
    failed = 0
    for name, check in checks:
        start = time.perf_counter()
        try:
            state, said = "ok", check()
        except Skipped as reason:
            state, said = "skipped", str(reason)
        except AssertionError as error:
            state, said = "FAILED", str(error)
            failed += 1
        print(f"{state:8} {name:24} {time.perf_counter() - start:5.0f} s  {said}", flush=True)
    if failed:
        sys.exit(f"{failed} of {len(checks)} checks failed")


if __name__ == "__main__":
    main()
