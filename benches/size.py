"""The size of the compiled module: ``make size`` shows what it is made of, a test holds it.

Losses, types, instruction sets and options multiply kernels, so that machine code grows fast and
nobody sees it. ``python benches/size.py`` measures the installed module: the bytes of the file and
of its machine code, the number of its functions, and how many of them are large (loops of kernels
are). It fails where one of them differs by more than `MARGIN` from the figures in ``size.json``.
``make size-record`` replaces those figures. `tests/test_size.py` makes the same comparison.

``make size`` compiles the module with symbols and prints where the megabytes are: by instruction
set, by type, by kernel, and by the parameters of its instances, such as the way a target is stored.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

RECORDED = Path(__file__).with_name("size.json")
MARGIN = 0.04  # compilers of other versions differ by less
GOAL = 8_000_000  # bytes of the file
LARGE = 4096  # bytes of machine code from which on a function is large

ADVICE = """\
The compiled module differs from the recorded size by more than {margin:.0%}. `make size` shows
where the bytes are. If the change is meant, or comes with another compiler, record the new figures
with `make size-record`, and say in the commit what the bytes are for.
"""


# The check


def installed_module() -> Path:
    """Return the file of the compiled module that `import xentrs` would load."""
    spec = importlib.util.find_spec("xentrs._xentrs")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def measure(module: Path) -> dict[str, int]:
    """Return the figures of a compiled module, which needs no symbols."""
    with module.open("rb") as file:
        elf = ELFFile(file)
        entries = elf.get_dwarf_info().EH_CFI_entries()
        text = elf.get_section_by_name(".text")
        assert text is not None
        # Each function has an entry that tells how to unwind its frame, with its size.
        sizes = [entry.header["address_range"] for entry in entries if isinstance(entry, FDE)]
        return {
            "file": module.stat().st_size,
            "text": text["sh_size"],
            "functions": len(sizes),
            "large functions": sum(size >= LARGE for size in sizes),
        }


def complaints(found: dict[str, int], recorded: dict[str, int]) -> list[str]:
    """Say which figures differ from what was recorded, and if a goal that was met is not any more.

    A smaller figure is one to record, too: otherwise the module could grow back unnoticed.
    """
    said = [
        f"{name}: {found[name]:,}, recorded {before:,} ({found[name] / before - 1:+.1%})"
        for name, before in recorded.items()
        if abs(found[name] / before - 1) > MARGIN
    ]
    if recorded["file"] <= GOAL < found["file"]:
        said.append(f"file: {found['file']:,}, more than the goal of {GOAL:,}")
    return said


# Where the bytes are


@dataclass(frozen=True)
class Function:
    """A function of the module, and what its name says of it."""

    size: int
    name: str

    @property
    def level(self) -> str:
        """The instruction set that it is compiled for."""
        for level in ("avx512", "avx2"):
            if f"simd::{level}::" in self.name:
                return level
        # The portable level needs no features: its kernels are compiled into `enter`.
        portable = "simd::portable::" in self.name or self.name.startswith("xentrs::simd::enter")
        return "portable" if portable else "any"

    @property
    def dtype(self) -> str:
        types = Counter(re.findall(r"\bf(?:32|64)\b", self.name))
        return types.most_common(1)[0][0] if types else "none"

    @property
    def kernel(self) -> str:
        """The type of the kernel that a level's function evaluates, or the function itself."""
        paths = self._paths
        if self.level == "any":
            return without_generics(self.name) if "xentrs" in self.name else "other crates"
        return paths[0] if paths else without_generics(self.name)

    @property
    def parameters(self) -> list[str]:
        """What the kernel is instantiated with beside its numbers: types of ours, constants."""
        if self.level == "any":
            return []
        types = {path.split("::")[-1] for path in self._paths[1:]}
        constants = re.findall(r"\b(?:true|false)\b", self.name)
        return [*sorted(types), " ".join(constants)] if constants else sorted(types)

    @property
    def _paths(self) -> list[str]:
        """Types of ours in the name, without those of levels and of a kernel's blocks of rows."""
        return [
            path
            for path in re.findall(r"xentrs::([\w:]*\w)", self.name)
            if not path.startswith("simd::") and not path.endswith("::Blocks")
        ]


def without_generics(name: str) -> str:
    """Return a path without what stands between angle brackets, unless it begins with them."""
    start = re.match(r"<([^<> ]+)", name)
    kept, depth = start[1] if start else "", 0
    for character in name.replace("->", ""):
        depth += (character == "<") - (character == ">" and depth > 0)
        kept += character if depth == 0 and character != ">" else ""
    return kept.replace("::::", "::").removesuffix("::")


def functions_of(module: Path) -> Iterator[Function]:
    """Yield the functions of a module that has its symbols, as binutils' nm lists them."""
    command = ["nm", "--demangle", "--print-size", "--defined-only", str(module)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        # an address, a size, a letter, a name; what has no size is a label
        found = re.fullmatch(r"[0-9a-f]+ ([0-9a-f]+) [tTwW] (.+)", line)
        if found:
            yield Function(int(found[1], 16), found[2])


def breakdown(functions: list[Function], most: int = 20) -> str:
    """Return a table for each way of grouping the functions."""
    groupings: dict[str, Callable[[Function], list[str]]] = {
        "instruction set": lambda function: [function.level],
        "type": lambda function: [function.dtype],
        "kernel": lambda function: [function.kernel],
        "parameter (a function counts for each of its own)": lambda function: function.parameters,
    }
    tables = []
    for title, groups_of in groupings.items():
        sizes: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for function in functions:
            for group in groups_of(function):
                sizes[group] += function.size
                counts[group] += 1
        lines = [f"| {title} | MB | functions |", "| --- | --- | --- |"]
        for group, size in sizes.most_common(most):
            lines.append(f"| {group} | {size / 1e6:.2f} | {counts[group]} |")
        tables.append("\n".join(lines))
    total = sum(function.size for function in functions)
    return "\n\n".join([*tables, f"{len(functions)} functions, {total / 1e6:.2f} MB"])


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", nargs="?", type=Path, help="by default the installed one")
    parser.add_argument("--record", action="store_true", help="replace the recorded figures")
    parser.add_argument("--symbols", action="store_true", help="show where the bytes are")
    options = parser.parse_args()
    module = options.module or installed_module()
    if options.symbols:
        functions = list(functions_of(module))
        if not functions:
            parser.error(f"{module} has no symbols: build it as `make size` does")
        print(breakdown(functions))
        return 0
    found = measure(module)
    if options.record:
        RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    recorded: dict[str, int] = json.loads(RECORDED.read_text())
    print("| | found | recorded |\n|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:,} | {recorded[name]:,} |")
    print(f"\nthe file is {found['file'] / 1e6:.1f} MB, the goal {GOAL / 1e6:.1f} MB")
    said = complaints(found, recorded)
    if said:
        print("\n".join([ADVICE.format(margin=MARGIN), *said]), file=sys.stderr)
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
