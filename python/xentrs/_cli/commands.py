"""The subcommands, their options, and what becomes of an error."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, TypeAlias

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

import xentrs
from xentrs._cli import pictures, report, states
from xentrs._cli.errors import InputError, MissingLibrary, reason
from xentrs._cli.evaluation import Inputs, Interrupt, Terminated, evaluate
from xentrs._cli.sources import Listed, Source, list_file, open_source

_Command: TypeAlias = Callable[..., Any]

_EPILOG = (
    "An array is FILE or FILE:KEY. Formats: .npy, .npz (KEY is a member), .safetensors (a tensor), "
    "Parquet and Arrow IPC (a column, or columns by a pattern such as 'class_*'). Files may be "
    "larger than the memory."
)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    _prepare_streams()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        with (
            Interrupt() as interrupt,
            interrupt.allowed(),
            # Not `main` of click, which prints an empty line on Ctrl-C.
            _xentrs.make_context("xentrs", list(given)) as context,
        ):
            _xentrs.invoke(context)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        return _fail(error.format_message())
    except (InputError, MissingLibrary) as error:
        return _fail(str(error))
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except Terminated:
        return 143
    except KeyboardInterrupt:
        return 130
    except MemoryError:
        return _fail("a block of the files does not fit into memory: pass --block-size")
    except BrokenPipeError:  # whoever reads has read enough
        _drop_output()
        return 1
    except OSError as error:
        _drop_output()
        return _fail(f"{error.filename or 'standard output'}: {reason(error)}")
    return 0


def _prepare_streams() -> None:
    """Let standard output and error take any character, and be there where they are closed."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        # As git does, take their numbers: a file that got one would get all that libraries print.
        while os.open(os.devnull, os.O_RDONLY) <= 2:
            pass
    if sys.stdout is None:
        # Every command prints what it was asked for. So a closed output is an error, as for
        # `ls >&-`; files are written before it. A write to what is open for reading fails in the
        # same way as one to what is closed.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:  # nobody reads errors; the status tells of them
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    codecs.register_error(_encodable.__name__, _encodable)
    for stream in (sys.stdout, sys.stderr):
        # PYTHONIOENCODING may have asked for another way.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=_encodable.__name__)


_ASCII = {"±": "+-", "…": "..."}


def _encodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace a character that the encoding of an output does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # a byte of the name of a file, in no known encoding
        return bytes([ord(character) - 0xDC00]), error.start + 1
    shown = character.encode("ascii", "backslashreplace").decode()
    return _ASCII.get(character, shown), error.start + 1


def _drop_output() -> None:
    """Let the rest of the output vanish, which the interpreter would try to write at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    print("xentrs: " + " ".join(message.split()), file=sys.stderr)
    return 2


class _Size(click.ParamType):
    """A number of bytes, with K, M or G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        found = re.fullmatch(r"(\d+)([KMG]?)", str(value).upper())
        if found is None or int(found[1]) == 0:
            raise click.BadParameter(f"{value!r} is no size such as 16M", ctx, param)
        return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]


class _Index(click.ParamType):
    """An int, or `none`."""

    name = "int|none"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Return the index."""
        try:
            return None if str(value).lower() == "none" else int(value)
        except ValueError:
            message = f"{value!r} is neither an int nor 'none'"
            raise click.BadParameter(message, ctx, param) from None


_json = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")


def _outputs(command: _Command) -> _Command:
    """Add the options of where results go."""
    for option in (
        click.option("--png", metavar="FILE", help="Draw reliability, losses and KL percentiles."),
        click.option("--save-state", metavar="FILE", help="Write the sums, for `xentrs merge`."),
        _json,
    ):
        command = option(command)
    return command


@click.group("xentrs", context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(xentrs.__version__, prog_name="xentrs", message="%(prog)s %(version)s")
def _xentrs() -> None:
    """Exact cross-entropy of logits in files: loss, perplexity, calibration, KL of two models."""


@_xentrs.command("eval", epilog=_EPILOG)
@click.argument("logits")
@click.option("--target", "-t", required=True, metavar="T", help="Class indices or probabilities.")
@click.option("--reference", "-r", metavar="BASE", help="Logits of a model to compare with.")
@click.option("--shift", is_flag=True, help="Logits at t score the token at t + 1.")
@click.option("--group", metavar="F", help="Groups (documents), for the standard error.")
@click.option("--bytes", "n_bytes", metavar="F", help="Bytes of the text: a number, or by token.")
@click.option("--sample-weight", metavar="F", help="Weight of each sample.")
@click.option("--weight", metavar="F", help="Weight of each class.")
@click.option(
    "--ignore-index",
    type=_Index(),
    multiple=True,
    default=(-100,),
    show_default=True,
    help="Class index whose samples count for nothing, or 'none'. May be repeated.",
)
@click.option("--label-smoothing", type=float, default=0.0, show_default=True)
@click.option(
    "--top-k", type=int, multiple=True, default=(1, 5), show_default=True, help="May be repeated."
)
@click.option("--bins", type=int, default=15, show_default=True, help="Bins of confidence.")
@click.option("--per-class", is_flag=True, help="Statistics of each class too (in the JSON).")
@_outputs
@click.option(
    "--block-size", type=_Size(), default="16M", show_default=True, help="Read at a time."
)
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
def _eval(
    *,
    logits: str,
    target: str,
    reference: str | None,
    shift: bool,
    group: str | None,
    n_bytes: str | None,
    sample_weight: str | None,
    weight: str | None,
    ignore_index: tuple[int | None, ...],
    label_smoothing: float,
    top_k: tuple[int, ...],
    bins: int,
    per_class: bool,
    as_json: bool,
    save_state: str | None,
    png: str | None,
    block_size: int,
    quiet: bool,
) -> None:
    """Evaluate LOGITS, an array FILE[:KEY] with the classes on its last axis."""
    _check_outputs(save_state, png)
    number = _number(n_bytes)
    specs = {
        "logits": logits,
        "target": target,
        "reference_logits": reference,
        "sample_weight": sample_weight,
        "group": group,
        "token_bytes": n_bytes if number is None else None,
    }
    files = (*filter(None, specs.values()), *filter(None, (weight,)))
    ignored = tuple(index for index in ignore_index if index is not None)
    with contextlib.ExitStack() as stack:

        def opened(spec: str, logits: bool = False) -> Source:
            others = tuple(other for other in files if other != spec)
            found = open_source(spec, block_size, others=others, logits=logits)
            source = stack.enter_context(contextlib.closing(found))
            for output in filter(os.path.exists, filter(None, (save_state, png))):
                if os.path.samefile(output, source.file):
                    raise InputError(output, "is an input, and would be replaced")
            return source

        inputs = Inputs(
            **{
                name: opened(spec, name.endswith("logits"))
                for name, spec in specs.items()
                if spec is not None
            },
            shift=shift,
        )
        with _options():
            meter = xentrs.CrossEntropyMeter(
                weight=None if weight is None else _class_weight(opened(weight), inputs.classes),
                ignore_index=ignored or None,
                label_smoothing=label_smoothing,
                top_k=top_k,
                bins=bins,
                per_class=per_class,
            )
        interrupt = stack.enter_context(Interrupt())
        try:
            with _progress(quiet, inputs.samples) as advance:
                counted = evaluate(
                    meter,
                    inputs,
                    ignored=ignored,
                    block=block_size,
                    interrupt=interrupt,
                    advance=advance,
                )
        except KeyboardInterrupt:
            _save_interrupted(save_state, meter)
            raise
    _finish(
        meter,
        number if number is not None else counted,
        f"{logits} ({_shape(inputs.logits)})",
        as_json=as_json,
        save_state=save_state,
        png=png,
    )


@_xentrs.command("merge")
@click.argument("states_", metavar="STATE...", nargs=-1, required=True)
@click.option("--bytes", "n_bytes", metavar="N", type=float, help="Bytes of the text.")
@_outputs
def _merge(
    *,
    states_: tuple[str, ...],
    n_bytes: float | None,
    as_json: bool,
    save_state: str | None,
    png: str | None,
) -> None:
    """Merge states that `xentrs eval --save-state` wrote: exactly, in any order."""
    _check_outputs(save_state, png)
    states.check_distinct(states_)
    meter = states.load_state(states_[0])
    for file in states_[1:]:
        try:
            meter.merge(states.load_state(file))
        except ValueError as error:
            raise InputError(file, f"does not go with {states_[0]}: {reason(error)}") from error
    title = f"{len(states_)} states" if len(states_) > 1 else states_[0]
    _finish(meter, n_bytes, title, as_json=as_json, save_state=save_state, png=png)


@_xentrs.command("info")
@click.argument("files", metavar="[FILE]...", nargs=-1)
@_json
def _info(*, files: tuple[str, ...], as_json: bool) -> None:
    """Show the version, what this machine runs, and the arrays in files."""
    if files:
        _list_files(files, as_json)
        return
    config = xentrs.show_config(mode="dicts")
    simd, threads = config["simd"], config["threads"]
    known = {
        "xentrs": config["version"],
        "instructions": simd["level"],
        "instructions_source": simd["source"],
        "threads": threads["count"],
        "threads_source": threads["source"],
        "Python": platform.python_version(),
    }
    for name in ("numpy", "ml_dtypes", "pyarrow", "matplotlib"):
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            known[name] = None
    if as_json:
        print(json.dumps(known))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in known.items():
        if not name.endswith("_source"):
            source = f" ({known[f'{name}_source']})" if f"{name}_source" in known else ""
            table.add_row(name, "not installed" if value is None else f"{value}{source}")
    _console().print(table)


def _list_files(files: tuple[str, ...], as_json: bool) -> None:
    """Print the arrays of files, and then what is wrong with those that cannot be read."""
    arrays: list[tuple[str, Listed]] = []
    errors: list[InputError | MissingLibrary] = []
    for file in files:
        for one in list_file(file):
            if isinstance(one, Listed):
                arrays.append((file, one))
            else:
                errors.append(one)
    if as_json:
        print(report.arrays_as_json(arrays))
    elif arrays or not errors:
        report.show_arrays(arrays, _console())
    sys.stdout.flush()  # before the errors, where both go to a terminal
    for error in errors:
        _fail(str(error))
    if errors:
        raise click.exceptions.Exit(2)


# What the commands share


def _check_outputs(save_state: str | None, png: str | None) -> None:
    for file in (save_state, png):
        if file is not None:
            states.check_writeable(file)
    if png is not None:
        pictures.check_drawing()


def _number(text: str | None) -> float | None:
    """Return `--bytes` if it is a number and no file."""
    if text is None or os.path.exists(text):
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    if not 0 < number < float("inf"):
        raise click.BadParameter(f"{text} bytes, but must be positive", param_hint="'--bytes'")
    return number


def _class_weight(source: Source, classes: int) -> Any:
    if source.shape != (classes,):
        raise InputError(
            source.file,
            f"has shape {source.shape}, but must have a weight for each class: ({classes},)",
        )
    weight = source.read(classes)
    try:
        xentrs.CrossEntropyMeter(weight=weight)
    except (TypeError, ValueError) as error:
        raise InputError(source.file, reason(error)) from error
    return weight


@contextlib.contextmanager
def _options() -> Iterator[None]:
    """Turn what the meter says of an option into a message about the option."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise click.UsageError(reason(error)) from error


@contextlib.contextmanager
def _progress(quiet: bool, samples: int) -> Iterator[Callable[[int], None]]:
    """Show progress and the time left on standard error, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("samples", total=samples)
        yield lambda count: progress.advance(task, count)


def _save_interrupted(save_state: str | None, meter: xentrs.CrossEntropyMeter) -> None:
    # Not from `compute`, which takes a while where there are many groups.
    message = f"xentrs: interrupted after {meter._sums.counts['samples']} samples"
    if save_state is not None:
        states.save_state(save_state, meter)
        message += f", whose state is in {save_state}"
    print(message, file=sys.stderr)


def _shape(source: Source) -> str:
    return f"{' x '.join(map(str, source.shape))}, {source.dtype}"


def _console() -> Console:
    # Lines of a pipe are not wrapped.
    return Console(width=None if sys.stdout.isatty() else 100, highlight=False, emoji=False)


def _finish(
    meter: xentrs.CrossEntropyMeter,
    n_bytes: float | None,
    title: str,
    *,
    as_json: bool,
    save_state: str | None,
    png: str | None,
) -> None:
    """Write what was asked for, and print the report."""
    result = meter.compute()
    if n_bytes is not None and n_bytes <= 0:
        raise click.UsageError(f"--bytes is {n_bytes:g}: the tokens that count have no bytes")
    text = report.as_json(result, n_bytes) if as_json else ""
    failed = []  # neither the report nor the other file is lost with one that cannot be written
    if save_state is not None:
        try:
            states.save_state(save_state, meter)
        except InputError as error:
            failed.append(error)
    if png is not None:
        try:
            states.write_whole(png, lambda opened: pictures.draw(result, title, opened))
        except InputError as error:
            failed.append(error)
    if as_json:
        print(text)
    else:
        report.show(result, n_bytes, title, _console())
    if failed:
        sys.stdout.flush()
        raise failed[0]
