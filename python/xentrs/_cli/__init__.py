"""The command line: `xentrs`, which is also `python -m xentrs`.

    commands    subcommands, their options, and what becomes of an error
    evaluation  files go through a meter, block by block
    sources     an array in a file, read in C order by blocks: NumPy's files, safetensors
    tables      the same of a column of Parquet or Arrow
    states      a meter's state in a file; files that are written whole or not at all
    report      what a person reads, and the JSON
    pictures    the PNG

Only `main` is imported with the package. The libraries of the extra `cli` are imported below it.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line, and return its exit status."""
    try:
        from xentrs._cli.commands import run
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in ("click", "rich"):
            raise
        print(
            f"xentrs: the command line needs {error.name}: pip install xentrs[cli]", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        return 130
    return run()
