"""The command `xentrs`, run as a user runs it."""

import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

import xentrs

NEEDED = "runs where the extra cli is: make test-pipelines"
pytest.importorskip("click", reason=NEEDED)
pytest.importorskip("rich", reason=NEEDED)
pty = pytest.importorskip("pty", reason="terminals as POSIX has them")
pa = pytest.importorskip("pyarrow", reason=NEEDED)
ml_dtypes = pytest.importorskip("ml_dtypes", reason=NEEDED)
safetensors = pytest.importorskip("safetensors.numpy", reason=NEEDED)
pq = pytest.importorskip("pyarrow.parquet", reason=NEEDED)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
N, S, C = 30, 7, 20  # sequences, tokens, classes
RNG = np.random.default_rng(0)
X = RNG.normal(0, 2, (N, S, C)).astype(np.float32)
BASE = (X + RNG.normal(0, 0.1, X.shape)).astype(np.float32)
T = RNG.integers(0, C, (N, S))
T[::3, :2] = -100
GROUP = np.arange(N)[:, None] // 4 + np.zeros((N, S), int)
WEIGHT = RNG.uniform(0, 2, (N, S))
BYTES = RNG.integers(1, 9, (N, S))

# On a machine of many cores each thread would take address space, which a test limits.
ENVIRONMENT = os.environ | {"XENTRS_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
ENVIRONMENT |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
COMMAND = [sys.executable, "-m", "xentrs"]


def call(*arguments, cwd=None, env=ENVIRONMENT, text=True, **options):
    """Run the command in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=text, timeout=60, **options
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a new folder that has the arrays above as .npy files."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save("t.npy", T)
    np.save("flat.npy", T.ravel())
    return tmp_path


@pytest.fixture
def run(capsys):
    """Return a function that runs the command in this process, and returns status and output."""
    from xentrs._cli.commands import run

    def call(*arguments):
        status = run(list(map(str, arguments)))
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def evaluated(run):
    """Return a function that evaluates files and returns what `--json` prints."""

    def call(*arguments):
        status, out, err = run("eval", *arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out, parse_constant=pytest.fail)

    return call


def meter(x=X, t=T, **options):
    names = ("sample_weight", "group", "reference_logits")
    arrays = {name: options.pop(name) for name in names if name in options}
    return xentrs.CrossEntropyMeter(**options).update(x, t, **arrays)


def is_result(found, right):
    """Assert that a JSON object is what `compute` returned, to the last bit."""
    for name, value in found.items():
        head, _, q = name.rpartition("_")
        if name == "bits_per_byte":
            continue
        if head in ("quantile", "kl_quantile"):
            expected = getattr(right, head)(float(q))
        elif head == "top_k":
            expected = right.top_k[int(q)]
        elif head in ("reliability", "per_class"):
            expected = np.asarray(getattr(getattr(right, head), q), float)
            expected = np.where(np.isfinite(expected), expected, np.nan)  # of `null`
            np.testing.assert_array_equal(np.array(value, float), expected)
            continue
        else:
            expected = getattr(right, name)
        assert value == (expected if np.isfinite(expected) else None), name


# What is read


def to_npy(a, file):
    np.save(file, a, allow_pickle=False)


def to_npz(save, order="C"):
    return lambda a, file: save(file, first=a[:1], second=np.asarray(a, order=order))


def to_safetensors(a, file):
    """Write a tensor at an odd offset, behind one of three bytes."""
    safetensors.save_file({"aa": np.zeros(3, np.uint8), "second": a}, file)
    raw = Path(file).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    tensors = {}
    for name, tensor in sorted(header.items()):
        begin, end = tensor["data_offsets"]
        tensors[name] = raw[8 + length + begin : 8 + length + end]
    data = b""
    for name in ("aa", "second"):
        header[name]["data_offsets"] = [len(data), len(data) + len(tensors[name])]
        data += tensors[name]
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    Path(file).write_bytes(struct.pack("<Q", len(text)) + text + data)


def lists(a, fixed=False, large=False):
    """Return an Arrow array with a list, nested if need be, for each row of `a`."""
    found = pa.array(a.reshape(-1))
    for size in a.shape[:0:-1]:
        if fixed:
            found = pa.FixedSizeListArray.from_arrays(found, size)
        else:
            kind, dtype = (pa.LargeListArray, np.int64) if large else (pa.ListArray, np.int32)
            found = kind.from_arrays(np.arange(0, len(found) + 1, size, dtype=dtype), found)
    return found


def to_parquet(a, file, fixed=False):
    table = pa.table({"other": np.arange(len(a)), "second": lists(a, fixed)})
    pq.write_table(table, file, row_group_size=11, data_page_size=500)


def to_ipc(open_it, **options):
    def write(a, file):
        table = pa.table({"other": np.arange(len(a)), "second": lists(a, **options)})
        with open_it(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=13)

    return write


FORMATS = {
    "npy": (to_npy, "x.npy"),
    "npy, Fortran order": (lambda a, f: np.save(f, np.asfortranarray(a)), "x.npy"),
    "npz": (to_npz(np.savez), "x.npz:second"),
    "npz, name of the file": (to_npz(np.savez), "x.npz:second.npy"),
    "npz, compressed": (to_npz(np.savez_compressed), "x.npz:second"),
    "npz, compressed, Fortran order": (to_npz(np.savez_compressed, "F"), "x.npz:second"),
    "npz, Fortran order": (to_npz(np.savez, "F"), "x.npz:second"),
    "safetensors": (to_safetensors, "x.safetensors:second"),
    "parquet": (to_parquet, "x.parquet:second"),
    "parquet, fixed lists": (lambda a, f: to_parquet(a, f, fixed=True), "x.parquet:second"),
    "arrow file": (to_ipc(pa.ipc.new_file), "x.arrow:second"),
    "arrow file, fixed lists": (to_ipc(pa.ipc.new_file, fixed=True), "x.arrow:second"),
    "arrow stream, large lists": (to_ipc(pa.ipc.new_stream, large=True), "x.arrows:second"),
}
DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": BFLOAT16,
    "big-endian": ">f4",
}


@pytest.mark.parametrize("block", ["16M", "1000"])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("kind", FORMATS)
def test_formats(here, evaluated, kind, axes, block):
    write, spec = FORMATS[kind]
    x, t = (X, T) if axes == 3 else (X.reshape(-1, C), T.reshape(-1))
    np.save("t.npy", t)
    write(x, spec.partition(":")[0])
    found = evaluated(spec, "--target", "t.npy", "--block-size", block)
    is_result(found, meter().compute())


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if "Fortran" in kind])
def test_many_columns_in_fortran_order(here, monkeypatch, kind):
    """Of each column more is read at once than the rows of a block, but of all no eight blocks."""
    from xentrs._cli import sources

    rows, columns, block = 100, 3000, 24_000  # a block has two rows
    x = RNG.normal(size=(rows, columns)).astype(np.float32)
    write, spec = FORMATS[kind]
    write(x, spec.partition(":")[0])
    read_at, sizes = sources._read_at, []

    def counted(handle, view, at):
        sizes.append(read_at(handle, view, at))
        return sizes[-1]

    monkeypatch.setattr(sources, "_read_at", counted)
    flat, at = x.ravel(), columns
    for step in (columns, 2 * columns, 7 * columns, 5000):
        source = sources.open_source(spec, block)
        source.skip(at)
        sizes.clear()
        while at < x.size:
            count = min(step, x.size - at)
            np.testing.assert_array_equal(source.read(count), flat[at : at + count])
            at += count
        assert len(sizes) < 10 * columns
        assert source._buffer.nbytes <= 8 * block
        source.close()
        at = 0


OF_DTYPES = [
    *((kind, dtype) for kind in ("npy", "npz", "npz, compressed") for dtype in DTYPES),
    *(("safetensors", dtype) for dtype in DTYPES if dtype != "big-endian"),
    *(("arrow file", dtype) for dtype in ("float64", "float16")),
]


@pytest.mark.parametrize(("kind", "dtype"), OF_DTYPES)
def test_dtypes_of_logits(here, evaluated, kind, dtype):
    write, spec = FORMATS[kind]
    x = X.astype(DTYPES[dtype])
    write(x, spec.partition(":")[0])
    is_result(evaluated(spec, "-t", "t.npy", "--block-size", "3K"), meter(x).compute())


TARGET_DTYPES = ("int8", "int64", "float32", "uint16")
OF_TARGETS = [(kind, dtype) for kind in FORMATS for dtype in TARGET_DTYPES]
OF_TARGETS += [(kind, ">i4") for kind in FORMATS if kind.startswith("np")]


@pytest.mark.parametrize(("kind", "dtype"), OF_TARGETS)
def test_targets(here, evaluated, kind, dtype):
    write, spec = FORMATS[kind]
    t = np.where(T < 0, 3, T).astype(dtype)
    write(t, "t" + spec.partition(":")[0])
    found = evaluated("x.npy", "-t", f"t{spec}", "--block-size", "2K", "--shift")
    is_result(found, meter(X[:, :-1], t[:, 1:]).compute())


def test_columns_of_classes(here, evaluated):
    """A column a class, by a pattern or all there are, and a dictionary of words as groups."""
    x, t = X.reshape(-1, C), T.reshape(-1)
    words = np.array(["a", "b", "cc"])[np.arange(t.size) % 3]
    columns = {f"class_{i}": x[:, i] for i in range(C)}
    pq.write_table(pa.table(columns), "x.parquet", row_group_size=50)
    others = {"t": t, "word": pa.array(words).dictionary_encode()}
    pq.write_table(pa.table(others | columns), "all.parquet", row_group_size=40)
    right = meter(x, t, group=words).compute()
    at = ("-t", "all.parquet:t", "--group", "all.parquet:word", "--block-size", "1K")
    is_result(evaluated("all.parquet:class_*", *at), right)
    is_result(evaluated("x.parquet", *at), right)


def index_of(kind, rows):
    """Return an index of pandas: none of these is a class."""
    pandas = pytest.importorskip("pandas")
    numbers = np.arange(rows)[::-1]
    return {
        "range": lambda: pandas.RangeIndex(rows),  # which is no column of the file
        "shuffled": lambda: pandas.Index(numbers),
        "floats": lambda: pandas.Index(numbers / 2),
        "named": lambda: pandas.Index(numbers / 2, name="class_index"),
        "words": lambda: pandas.Index(numbers.astype(str)),
        "levels": lambda: pandas.MultiIndex.from_arrays([numbers / 3, numbers], names=["c", None]),
    }[kind]()


INDEXES = ("range", "shuffled", "floats", "named", "words", "levels")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", INDEXES)
def test_the_index_of_pandas_is_no_class(here, evaluated, kind, suffix):
    """It is stored as columns like others; a pattern that matches it leaves it out too."""
    pandas = pytest.importorskip("pandas")
    x, t, base = X.reshape(-1, C), T.reshape(-1), BASE.reshape(-1, C)
    q = RNG.dirichlet(np.ones(C), N * S).astype(np.float32)
    for name, array in (("x", x), ("base", base), ("q", q)):
        frame = pandas.DataFrame(array, columns=[f"class_{i}" for i in range(C)])
        frame.index = index_of(kind, len(frame))
        if suffix == "parquet":
            frame.to_parquet(f"{name}.parquet")
        else:
            table = pa.Table.from_pandas(frame)
            with pa.ipc.new_file(f"{name}.arrow", table.schema) as writer:
                writer.write_table(table)
    np.save("t.npy", t)
    right = meter(x, t, reference_logits=base).compute()
    for key in ("", ":*", ":class_*"):
        at = (f"x.{suffix}{key}", "--reference", f"base.{suffix}{key}", "--block-size=2K")
        is_result(evaluated(*at, "-t", "t.npy"), right)
    np.save("x.npy", x)
    is_result(evaluated("x.npy", "-t", f"q.{suffix}"), meter(x, q).compute())
    if kind == "named":  # its own name still means it
        found = evaluated("x.npy", "-t", "t.npy", "--sample-weight", f"x.{suffix}:class_index")
        is_result(found, meter(x, t, sample_weight=np.arange(N * S)[::-1] / 2).compute())


def test_columns_of_other_options_are_no_classes(here, run, evaluated):
    """Whatever the option is, with a pattern and without, and by another name of the file."""
    x, t, base = X.reshape(-1, C), T.reshape(-1), BASE.reshape(-1, C)
    classes = {f"class_{i}": x[:, i] for i in range(C)}
    theirs = {f"base_{i}": base[:, i] for i in range(C)}
    columns = {"target": t, "bytes": BYTES, "sample-weight": WEIGHT}
    columns = {name: np.ravel(a).astype(np.float32) for name, a in columns.items()}
    columns["group"] = t // 3
    arrays = {"sample_weight": columns["sample-weight"], "group": columns["group"]}
    options = [part for name in columns for part in (f"--{name}", f"link.parquet:{name}")]
    os.symlink("all.parquet", "link.parquet")
    right = meter(x, t, **arrays).compute()
    for order in (classes | columns, columns | classes):
        pq.write_table(pa.table(order), "all.parquet")
        for key in ("", ":*"):
            found = evaluated(f"all.parquet{key}", *options)
            is_result(found, right)
            assert found["bits_per_byte"] is not None
    pq.write_table(pa.table(columns | theirs | classes), "all.parquet")
    right = meter(x, t, reference_logits=base, **arrays).compute()
    for key in ("", ":*"):
        is_result(evaluated(f"all.parquet{key}", *options, "-r", "all.parquet:base_*"), right)
        found = evaluated("all.parquet:class_*", *options, "-r", f"all.parquet{key}")
        is_result(found, right)
    # A column that another file's option names is a class of this one.
    pq.write_table(pa.table(classes), "x.parquet")
    pq.write_table(pa.table({"class_3": t}), "t.parquet")
    is_result(evaluated("x.parquet", "-t", "t.parquet:class_3"), meter(x, t).compute())
    # What is left may be a single column, of lists.
    pq.write_table(pa.table({"t": t, "x": lists(x)}), "x.parquet")
    is_result(evaluated("x.parquet", "-t", "x.parquet:t"), meter(x, t).compute())
    err = run("eval", "t.parquet:class_*", "-t", "flat.npy", "--group", "x.parquet:t")[2]
    assert "column 'class_3' is int64" in err  # of its own file


def test_a_pattern_of_no_class(here, run):
    """Where nothing is left, the line says what was left out."""
    table = pa.table({"id": X[:, 0, 0], "y": X[:, 0, 1], "a": X[:, 0, 2]})
    table = table.replace_schema_metadata({"pandas": '{"index_columns": ["id"]}'})
    pq.write_table(table, "x.parquet")
    err = "xentrs: x.parquet: has no column 'i*' that is not pandas' index or what other options"
    assert run("eval", "x.parquet:i*", "-t", "flat.npy")[2] == f"{err} name\n"
    err = run("eval", "x.parquet:[iy]*", "-t", "x.parquet:y")[2]
    assert "has no column '[iy]*' that" in err


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"index_columns": 3}', '{"index": [0]}', "[" * 9999]
)
def test_damaged_metadata_of_pandas(here, evaluated, text):
    columns = {f"c{i}": X.reshape(-1, C)[:, i] for i in range(C)}
    pq.write_table(pa.table(columns).replace_schema_metadata({"pandas": text}), "x.parquet")
    is_result(evaluated("x.parquet", "-t", "flat.npy"), meter().compute())


def test_columns_of_one_name(here, run):
    x = [pa.array(a) for a in X.reshape(-1, C)[:, :3].T]
    table = pa.Table.from_arrays([*x, pa.array(T.ravel())], names=["a", "b", "a", "t"])
    with pa.ipc.new_file("x.arrow", table.schema) as writer:
        writer.write_table(table)
    err = "xentrs: x.arrow: has 2 columns of the name 'a', which must differ\n"
    for key in (":*", ":a", ""):
        assert run("eval", f"x.arrow{key}", "-t", "x.arrow:t") == (2, "", err)


NO_FLOATS = {
    "int64": pa.array(np.arange(N * S)),
    "int8": pa.array(np.ones(N * S, np.int8)),
    "uint16": pa.array(np.ones(N * S, np.uint16)),
    "bool": pa.array(np.ones(N * S, bool)),
    "string": pa.array(["a"] * N * S),
    "timestamp[s]": pa.array(np.arange(N * S)).cast(pa.timestamp("s")),
    "decimal128(9, 2)": pa.array([Decimal("1.25")] * N * S, pa.decimal128(9, 2)),
    "dictionary<values=string, indices=int32, ordered=0>": pa.array(
        ["a", "b"] * (N * S // 2)
    ).dictionary_encode(),
    "struct<a: int64>": pa.array([{"a": 1}] * N * S),
    "null": pa.nulls(N * S),
}


@pytest.mark.parametrize("key", ["", ":*", ":c*"])
@pytest.mark.parametrize("kind", NO_FLOATS)
def test_columns_of_logits_that_are_no_floats(here, run, kind, key):
    """Arrow would promote them: the line names the column, and how to choose others."""
    columns = {f"c{i}": X.reshape(-1, C)[:, i] for i in range(C)}
    pq.write_table(pa.table(columns), "x.parquet")
    table = pa.table(columns).add_column(3, "c_other", NO_FLOATS[kind])
    with pa.ipc.new_file("bad.arrow", table.schema) as writer:
        writer.write_table(table)
    for logits in (("bad.arrow" + key,), ("x.parquet", "--reference", "bad.arrow" + key)):
        status, out, err = run("eval", *logits, "-t", "flat.npy")
        assert (status, out, err) == (
            2,
            "",
            f"xentrs: bad.arrow: column 'c_other' is {kind}, but logits must be float16, bfloat16, "
            "float32 or float64: choose the columns of the classes by a pattern, as "
            "bad.arrow:'class_*'\n",
        )


def test_a_dictionary_of_floats_is_a_class(here, evaluated):
    x, t = X.reshape(-1, C), T.reshape(-1)
    columns = {f"c{i}": pa.array(x[:, i]).dictionary_encode() for i in range(C)}
    pq.write_table(pa.table(columns), "x.parquet")
    is_result(evaluated("x.parquet", "-t", "flat.npy"), meter(x, t).compute())


def test_soft_targets(here, evaluated):
    q = RNG.dirichlet(np.ones(C), (N, S))
    np.save("t.npy", q)
    options = ("-t", "t.npy", "--ignore-index", "none", "--block-size", "5K")
    is_result(evaluated("x.npy", *options), meter(t=q, ignore_index=None).compute())
    right = meter(X[:, :-1], q[:, 1:], ignore_index=None).compute()
    is_result(evaluated("x.npy", *options, "--shift"), right)


def test_one_sample(here, evaluated):
    np.save("x.npy", X[0, 3])
    np.save("t.npy", T[0, 3])
    is_result(evaluated("x.npy", "-t", "t.npy"), meter(X[0, 3], T[0, 3]).compute())


def test_no_sample(here, run):
    np.save("x.npy", X[:0])
    np.save("t.npy", T[:0])
    status, out, err = run("eval", "x.npy", "-t", "t.npy", "--json", "--shift")
    found = json.loads(out)
    assert (status, found["count"], found["loss"], err) == (0, 0, None, "")
    assert run("eval", "x.npy", "-t", "t.npy", "--png", "p.png")[0] == 0


def test_a_file_whose_name_has_colons(here, evaluated):
    np.savez("a:b.npz", x=X, t=T)
    is_result(evaluated("a:b.npz:x", "-t", "a:b.npz:t"), meter().compute())


# Options


@pytest.mark.parametrize("block", ["16M", "700", "1"])
def test_everything_at_once(here, evaluated, block):
    """Reference, weights, groups and shift; the blocks change no bit."""
    np.savez_compressed("all.npz", base=BASE, weight=WEIGHT, group=GROUP, v=np.arange(C) / C)
    options = {"label_smoothing": 0.1, "bins": 7, "top_k": (2, 3), "per_class": True}
    options |= {"weight": np.arange(C) / C, "ignore_index": (-100, 4)}
    arguments = ["--label-smoothing=0.1", "--bins=7", "--top-k=2", "--top-k=3", "--per-class"]
    arguments += ["--weight=all.npz:v", "--ignore-index=-100", "--ignore-index=4"]
    arguments += ["--reference=all.npz:base", "--sample-weight=all.npz:weight"]
    arguments += ["--group=all.npz:group", "--block-size", block]
    arrays = {"sample_weight": WEIGHT, "group": GROUP, "reference_logits": BASE}
    found = evaluated("x.npy", "-t", "t.npy", *arguments)
    is_result(found, meter(**options, **arrays).compute())
    assert len(found["per_class_loss"]) == C
    cut = {k: a[:, :-1] if k == "reference_logits" else a[:, 1:] for k, a in arrays.items()}
    found = evaluated("x.npy", "-t", "t.npy", "--shift", *arguments)
    is_result(found, meter(X[:, :-1], T[:, 1:], **options, **cut).compute())


@pytest.mark.parametrize("shift", [False, True])
def test_a_group_for_each_sequence(here, evaluated, shift):
    words = np.array([f"document {i // 4}" for i in range(N)])
    np.save("g.npy", words)
    found = evaluated(
        "x.npy", "-t", "t.npy", "--group", "g.npy", *["--shift"] * shift, "--block-size=1"
    )
    x, t = (X[:, :-1], T[:, 1:]) if shift else (X, T)
    groups = np.broadcast_to(words[:, None], t.shape)
    is_result(found, meter(x, t, group=groups).compute())


@pytest.mark.parametrize("shift", [False, True])
def test_bytes(here, evaluated, shift):
    """A number, a file of bytes per token, or of bytes per class."""
    more = ["--block-size=999", *["--shift"] * shift]
    x, t, b = (X[:, :-1], T[:, 1:], BYTES[:, 1:]) if shift else (X, T, BYTES)
    right = meter(x, t).compute()
    table = np.arange(1, C + 1)
    np.save("b.npy", BYTES)
    np.save("table.npy", table)

    def found(given):
        return evaluated("x.npy", "-t", "t.npy", "--bytes", given, *more)["bits_per_byte"]

    assert found(4321) == right.bits_per_byte(4321)
    assert found("b.npy") == right.bits_per_byte(b[t >= 0].sum())
    assert found("table.npy") == right.bits_per_byte(table[t[t >= 0]].sum())
    assert evaluated("x.npy", "-t", "t.npy")["bits_per_byte"] is None

    np.save("w.npy", WEIGHT * (WEIGHT > 0.5))
    weighted = evaluated("x.npy", "-t", "t.npy", "--sample-weight=w.npy", "--bytes=b.npy", *more)
    w = (WEIGHT * (WEIGHT > 0.5))[:, 1:] if shift else WEIGHT * (WEIGHT > 0.5)
    right = meter(x, t, sample_weight=w).compute()
    assert weighted["bits_per_byte"] == right.bits_per_byte(b[(t >= 0) & (w > 0)].sum())

    q = RNG.dirichlet(np.ones(C), (N, S))
    np.save("q.npy", q)
    soft = evaluated("x.npy", "-t", "q.npy", "--bytes=b.npy", *more)
    right = meter(x, q[:, 1:] if shift else q).compute()
    assert soft["bits_per_byte"] == right.bits_per_byte(b.sum())


@pytest.mark.parametrize(
    ("given", "message"),
    [(-BYTES, "has -"), (BYTES.astype(str), "has dtype <U"), (0 * BYTES, "have no bytes")],
)
def test_wrong_bytes(here, run, given, message):
    np.save("b.npy", given)
    status, out, err = run("eval", "x.npy", "-t", "t.npy", "--bytes", "b.npy", "--save-state=s.npz")
    assert (status, out) == (2, "")
    assert err.startswith("xentrs: b.npy: " if "no bytes" not in message else "xentrs: ")
    assert message in err
    assert not Path("s.npz").exists()


def test_json_is_flat_and_standard(here, run):
    """Of loss +inf and of nothing to compare with: null, which every parser reads."""
    x = X.copy()
    x[0, 3, T[0, 3]] = -np.inf
    np.save("x.npy", x)
    status, out, _ = run("eval", "x.npy", "-t", "t.npy", "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert status == 0
    assert out.count("\n") == 1
    assert found["loss"] is None
    assert found["kl"] is None
    assert found["perplexity"] is None
    assert found["count"] == (T >= 0).sum()
    for value in found.values():
        parts = value if isinstance(value, list) else [value]
        assert all(part is None or isinstance(part, int | float) for part in parts)
    names = (
        "loss stderr bits perplexity count accuracy brier entropy calibration_error kl same_top "
    )
    names += "delta_loss delta_stderr prior_loss bits_per_byte top_k_1 top_k_5 quantile_0.5"
    assert set(names.split()) <= set(found)


def test_report(here):
    np.save("base.npy", BASE)
    done = call("eval", "x.npy", "-t", "t.npy", "-r", "base.npy", "--bytes", 5000)
    assert (done.returncode, done.stderr) == (0, "")
    right = meter(reference_logits=BASE).compute()
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    shown = {
        "samples": f"{right.count}",
        "loss": f"{right.loss:.5g}",
        "perplexity": f"{right.perplexity:.5g}",
        "bits per byte": f"{right.bits_per_byte(5000):.5g}",
        "accuracy": f"{100 * right.accuracy:.2f} %",
        "calibration error": f"{right.calibration_error:.5g}",
        "KL divergence": f"{right.kl:.5g}",
        "same top class": f"{100 * right.same_top:.2f} %",
        "loss - reference": f"{right.delta_loss:+.5g}",
    }
    for name, value in shown.items():
        assert f" {value} " in rows[name] + " ", name
    assert "\x1b" not in done.stdout


def test_report_of_nan(here, run):
    """What a NaN makes unknown is shown as such, and what is known is shown."""
    x = X.copy()
    x[1, 3, 4] = np.nan
    np.save("x.npy", x)
    np.save("base.npy", BASE)
    status, out, _ = run("eval", "x.npy", "-t", "t.npy", "-r", "base.npy")
    rows = {name: rest.split() for name, _, rest in (r.partition("  ") for r in out.splitlines())}
    assert status == 0
    assert " ".join(rows["loss"]) == "- the loss of at least one sample is NaN"
    for name in ("entropy", "Brier score", "calibration error", "KL divergence"):
        assert rows[name][0] == "-", name
    assert rows["loss - reference"][0] == "-"
    right = meter(x, reference_logits=BASE).compute()
    assert rows["same top class"] == [f"{100 * right.same_top:.2f}", "%"]


def test_png(here, python):
    """It is drawn, and nothing that draws is imported without."""
    np.save("base.npy", BASE)
    script = """
    import sys
    from xentrs._cli.commands import run
    assert run(["eval", "x.npy", "-t", "t.npy", "-r", "base.npy", "--json"]) == 0
    assert not {"matplotlib", "pyarrow", "torch", "pandas"} & set(sys.modules)
    assert run(["eval", "x.npy", "-t", "t.npy", "-r", "base.npy", "--json", "--png", "p.png"]) == 0
    assert "matplotlib.pyplot" not in sys.modules
    """
    python(script)
    image = pytest.importorskip("matplotlib.image").imread("p.png")
    assert image.shape[0] > 300
    assert image.shape[1] > 3 * 300
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 20


@pytest.mark.parametrize("largest", [3e38, 1e39, 1e300, np.finfo(np.float64).max, np.inf])
def test_losses_of_any_size(here, run, largest):
    """They have a report and a picture, and nothing but these."""
    x = X[0].astype(np.float64)
    x[:, 0] = largest
    if np.isinf(largest):
        x[:, :2] = 0.0, -np.inf
    np.save("x.npy", x)
    np.save("base.npy", X[0])
    np.save("t.npy", np.full(S, 1))
    status, out, err = run("eval", "x.npy", "-t", "t.npy", "-r", "base.npy", "--png", "p.png")
    assert (status, err) == (0, "")
    (row,) = (line.split() for line in out.splitlines() if line.startswith("    99.9 %"))
    assert float(row[2]) == pytest.approx(largest, rel=1 / 64)
    assert 0 < float(row[3]) <= largest
    assert np.isinf(float(row[3])) == np.isinf(largest)
    assert Path("p.png").stat().st_size > 10_000


# States


def test_merge(here, run, evaluated):
    """Halves merge to the whole, in any order: the same report and the same state."""
    np.save("base.npy", BASE)
    for name, part in (("a", slice(11)), ("b", slice(11, None))):
        np.savez(f"{name}.npz", x=X[part], t=T[part], r=BASE[part])
        at = (f"{name}.npz:x", "-t", f"{name}.npz:t", "-r", f"{name}.npz:r")
        evaluated(*at, "--save-state", f"{name}.state")
    whole = evaluated(
        "x.npy", "-t", "t.npy", "-r", "base.npy", "--save-state", "all.state", "--bytes=99"
    )
    out = {}
    for order in (("a.state", "b.state"), ("b.state", "a.state"), ("all.state",)):
        status, text, err = run("merge", *order, "--json", "--save-state", "m.state", "--bytes", 99)
        assert (status, err) == (0, "")
        out[order] = json.loads(text)
        assert Path("m.state").read_bytes() == Path("all.state").read_bytes()
    assert all(found == whole for found in out.values())
    with np.load("m.state", allow_pickle=False) as state:
        assert (
            xentrs.CrossEntropyMeter.from_state(state).compute()
            == meter(reference_logits=BASE).compute()
        )
    status, text, _ = run("merge", "a.state", "b.state", "--png", "p.png")
    assert status == 0
    assert "KL divergence" in text
    assert Path("p.png").stat().st_size > 10_000


def test_merge_into_one_of_the_states(here, run, evaluated):
    evaluated("x.npy", "-t", "t.npy", "--save-state", "s.npz")
    shutil.copy("s.npz", "equal.npz")  # of other samples, for all that is known
    assert run("merge", "s.npz", "equal.npz", "--save-state", "s.npz")[0] == 0
    with np.load("s.npz") as state:
        assert xentrs.CrossEntropyMeter.from_state(state).compute().count == 2 * (T >= 0).sum()


def test_merge_of_a_state_that_is_given_twice(here, run, evaluated):
    """By whatever names, and wherever the two are: nothing is counted twice, nothing written."""
    evaluated("x.npy", "-t", "t.npy", "--save-state", "a.npz")
    evaluated("x.npy", "-t", "t.npy", "--save-state", "b.npz")
    os.symlink("a.npz", "link.npz")
    os.link("a.npz", "hard.npz")
    os.mkdir("folder")
    os.symlink("..", "folder/up")
    others = ("./a.npz", "folder/../a.npz", "folder/up/a.npz", os.path.abspath("a.npz"))
    for again in ("a.npz", "link.npz", "hard.npz", *others):
        for files in (("a.npz", "b.npz", again), ("b.npz", "a.npz", again)):
            message = f"xentrs: {again}: was given before, as a.npz: its samples would count twice"
            found = run("merge", *files, "--save-state", "s.npz")
            assert found == (2, "", message + "\n")
    assert not Path("s.npz").exists()


# Errors: one line, exit status 2, nothing written


def damaged(file, cut=None, flip=None):
    raw = bytearray(Path(file).read_bytes())
    if flip is not None:
        raw[flip] ^= 0xFF
    Path(file).write_bytes(raw[:cut])


def pickled_array():
    np.save("p.npy", np.array([{}, None], object), allow_pickle=True)


def pickled_member():
    np.savez("p.npz", p=np.array([{}, None], object))


def header(file, text):
    raw = text.encode()
    Path(file).write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw)


def tensors(**header):
    text = json.dumps(header).encode()
    Path("x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))


ERRORS = {
    "no such file": (None, "nothing.npy", "t.npy", "no such file"),
    "no such target": (None, "x.npy", "nothing.npy", "no such file"),
    "no such file, with a key": (None, "nothing.npz:x", "t.npy", "no such file"),
    "a folder": (lambda: os.mkdir("d"), "d", "t.npy", "directory"),
    "empty": (lambda: Path("e.npy").touch(), "e.npy", "t.npy", "empty"),
    "text": (lambda: Path("e.npy").write_text("hello, world"), "e.npy", "t.npy", "none of"),
    "truncated": (lambda: damaged("x.npy", -9), "x.npy", "t.npy", "truncated.*16800 bytes"),
    "truncated target": (lambda: damaged("t.npy", -9), "x.npy", "t.npy", "truncated"),
    "truncated header": (lambda: damaged("x.npy", 50), "x.npy", "t.npy", "truncated"),
    "truncated npz": (
        lambda: (np.savez("x.npz", x=X), damaged("x.npz", -30)),
        "x.npz:x",
        "t.npy",
        "truncated",
    ),
    "damaged npz": (
        lambda: (np.savez_compressed("x.npz", x=X), damaged("x.npz", flip=9000)),
        "x.npz:x",
        "t.npy",
        "damaged",
    ),
    "truncated safetensors": (
        lambda: (to_safetensors(X, "x.safetensors"), damaged("x.safetensors", -1)),
        "x.safetensors:second",
        "t.npy",
        "truncated",
    ),
    "truncated parquet": (
        lambda: (to_parquet(X, "x.parquet"), damaged("x.parquet", -10)),
        "x.parquet:second",
        "t.npy",
        "",
    ),
    "truncated arrow": (
        lambda: (to_ipc(pa.ipc.new_file)(X, "x.arrow"), damaged("x.arrow", -10)),
        "x.arrow:second",
        "t.npy",
        "",
    ),
    "truncated arrow stream": (
        lambda: (to_ipc(pa.ipc.new_stream)(X, "x.arrow"), damaged("x.arrow", -3000)),
        "x.arrow:second",
        "t.npy",
        "",
    ),
    "missing member": (lambda: np.savez("x.npz", a=X, b=X), "x.npz:c", "t.npy", "'c'; it has a, b"),
    "which member": (lambda: np.savez("x.npz", a=X, b=X), "x.npz", "t.npy", "2 members.*a, b"),
    "missing tensor": (
        lambda: to_safetensors(X, "x.safetensors"),
        "x.safetensors:c",
        "t.npy",
        "no tensor 'c'; it has second, aa",
    ),
    "missing column": (lambda: to_parquet(X, "x.parquet"), "x.parquet:c", "t.npy", "no column 'c'"),
    "a key of an array": (None, "x.npy:c", "t.npy", "no member 'c'"),
    "pickled": (pickled_array, "p.npy", "t.npy", "never loaded"),
    "pickled member": (pickled_member, "p.npz:p", "t.npy", "never loaded"),
    "pickled target": (pickled_array, "x.npy", "p.npy", "never loaded"),
    "a pickle": (
        lambda: Path("p.pkl").write_bytes(pickle.dumps(X)),
        "p.pkl",
        "t.npy",
        "never loaded",
    ),
    "integers": (lambda: np.save("i.npy", X.astype(int)), "i.npy", "t.npy", "dtype int64"),
    "uint16": (
        lambda: np.save("i.npy", X.astype(np.uint16)),
        "i.npy",
        "t.npy",
        r"uint16.*\.view\(ml_dtypes\.bfloat16\)",
    ),
    "complex": (lambda: np.save("i.npy", X.astype(complex)), "i.npy", "t.npy", "complex128"),
    "words": (lambda: np.save("i.npy", T.astype(str)), "x.npy", "i.npy", "dtype <U"),
    "no axis": (lambda: np.save("i.npy", X[0, 0, 0]), "i.npy", "t.npy", r"shape \(\)"),
    "no class": (lambda: np.save("i.npy", X[..., :0]), "i.npy", "t.npy", "no classes"),
    "lengths": (
        lambda: np.save("t.npy", T[1:]),
        "x.npy",
        "t.npy",
        r"shape \(29, 7\).*of shape \(30, 7\)",
    ),
    "shape": (lambda: np.save("t.npy", T.ravel()), "x.npy", "t.npy", r"shape \(210,\)"),
    "out of range": (
        lambda: np.save("t.npy", np.where(np.arange(N * S).reshape(N, S) == 38, 20, T)),
        "x.npy",
        "t.npy",
        r"target\[5, 3\] is 20.*\[0, 20\)",
    ),
    "negative": (
        lambda: np.save("t.npy", np.where(np.arange(N * S).reshape(N, S) == 38, -1, T)),
        "x.npy",
        "t.npy",
        r"target\[5, 3\] is -1",
    ),
    "a fraction": (
        lambda: np.save("t.npy", np.where(np.arange(N * S).reshape(N, S) == 38, 1.5, T)),
        "x.npy",
        "t.npy",
        r"target\[5, 3\] is 1.5",
    ),
    "a missing value": (
        lambda: np.save("t.npy", np.where(np.arange(N * S).reshape(N, S) == 38, np.nan, T)),
        "x.npy",
        "t.npy",
        r"target\[5, 3\] is a missing value",
    ),
    "not one-hot": (
        lambda: np.save("t.npy", np.ones(X.shape, int)),
        "x.npy",
        "t.npy",
        r"target\[0, 0, :\] is .*one-hot",
    ),
    "lists of several lengths": (
        lambda: pq.write_table(pa.table({"x": [[1.0] * 20] * 209 + [[1.0]]}), "x.parquet"),
        "x.parquet",
        "flat.npy",
        "rows 204 to 209: .* different lengths",
    ),
    "nulls": (
        lambda: pq.write_table(pa.table({"x": [[1.0, 2.0], None]}), "x.parquet"),
        "x.parquet",
        "t.npy",
        "row 1: column 'x' has a missing value",
    ),
    "a header that is no header": (
        lambda: header("x.npy", "{'descr': '<f4', 'shape': open('/tmp/x', 'w')}\n"),
        "x.npy",
        "t.npy",
        "damaged",
    ),
    "a shape that is no shape": (
        lambda: header("x.npy", "{'descr': '<f4', 'fortran_order': 0, 'shape': (-1, 2)}\n"),
        "x.npy",
        "t.npy",
        "damaged",
    ),
    "offsets that do not fit": (
        lambda: tensors(a={"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}),
        "x.safetensors",
        "t.npy",
        "takes 16 bytes",
    ),
    "an unknown type": (
        lambda: tensors(a={"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}),
        "x.safetensors",
        "t.npy",
        "F8_E4M3",
    ),
    "no tensors": (lambda: tensors(a=3), "x.safetensors", "t.npy", "damaged"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(here, run, case):
    prepare, logits, target, message = ERRORS[case]
    if prepare is not None:
        prepare()
    before = sorted(os.listdir())
    arguments = [logits, "-t", target, "--json", "--save-state", "s.npz", "--png", "p.png"]
    status, out, err = run("eval", *arguments, "--block-size", "999")
    assert (status, out) == (2, "")
    file = (target if case in ("no such target", *TARGETS) else logits).partition(":")[0]
    assert err.startswith(f"xentrs: {file}: "), err
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert sorted(os.listdir()) == before


TARGETS = {
    "truncated target",
    "pickled target",
    "words",
    "lengths",
    "shape",
    "out of range",
    "negative",
    "a fraction",
    "a missing value",
    "not one-hot",
}


def test_errors_of_other_files(here, run):
    """The line names the file that is wrong, whichever option it came by."""
    wrong = {"--reference": X[1:], "--sample-weight": T[:, 1:], "--group": T[1:], "--bytes": T[1:]}
    for option, array in wrong.items():
        np.save("wrong.npy", array)
        status, out, err = run("eval", "x.npy", "-t", "t.npy", option, "wrong.npy")
        assert (status, out) == (2, "")
        assert err.startswith("xentrs: wrong.npy: has shape ")
        assert run("eval", "x.npy", "-t", "t.npy", option, "none.npy")[2] == (
            "xentrs: none.npy: no such file or directory\n"
        )
    np.save("wrong.npy", np.where(np.arange(N * S).reshape(N, S) == 38, -1.0, 1.0))
    err = run("eval", "x.npy", "-t", "t.npy", "--sample-weight", "wrong.npy", "--block-size=999")[2]
    assert err.startswith("xentrs: wrong.npy: sample_weight[5, 3] is -1.0"), err
    err = run("eval", "x.npy", "-t", "t.npy", "--weight", "wrong.npy")[2]
    assert err.startswith("xentrs: wrong.npy: has shape (30, 7)"), err
    np.save("neg.npy", np.arange(C) - 2.0)
    err = run("eval", "x.npy", "-t", "t.npy", "--weight", "neg.npy")[2]
    assert err.startswith("xentrs: neg.npy: weight[0] is -2.0"), err
    np.save("wrong.npy", np.ones(C + 1))
    err = run("eval", "x.npy", "-t", "t.npy", "--weight", "wrong.npy")[2]
    assert err.startswith("xentrs: wrong.npy: has shape (21,)"), err


NULLS = {
    "columns": pa.array,
    "dictionaries": lambda column: pa.array(column).dictionary_encode(),
    "rows of lists": lambda column: pa.array([None if x is None else [x, x] for x in column]),
    "lists": lambda column: pa.array([[1.0, x] for x in column]),
    "large lists": lambda column: pa.array([[1.0, x] for x in column], pa.large_list(pa.float32())),
    "fixed lists": lambda column: pa.array([[1.0, x] for x in column], pa.list_(pa.float32(), 2)),
    "nested lists": lambda column: pa.array([[[1.0], [x]] for x in column]),
}


@pytest.mark.parametrize("row", [0, 3, 150])
@pytest.mark.parametrize("kind", NULLS)
def test_missing_values(here, run, kind, row):
    """The line names the first row that has some, and the columns that have them there."""

    def write(**rows):
        columns = {name: [None if i in rows[name] else 1.0 for i in range(N * S)] for name in rows}
        table = {name: NULLS[kind](column) for name, column in columns.items()}
        pq.write_table(pa.table(table), "x.parquet", row_group_size=40)
        logits = "x.parquet:*" if len(rows) > 1 else "x.parquet"
        return run("eval", logits, "-t", "flat.npy", "--block-size=99")[2]

    np.save("flat.npy", np.zeros((N * S, 2) if kind == "nested lists" else N * S, int))
    one = f"xentrs: x.parquet: row {row}: column 'x' has a missing value\n"
    assert write(x=[row, row + 1]) == one
    if kind in ("columns", "dictionaries"):
        assert write(w=[row + 1], x=[row], y=[row + 2], z=[]) == one
        two = f"xentrs: x.parquet: row {row}: columns 'w', 'y' have missing values\n"
        assert write(w=[row], x=[row + 1], y=[row, row + 2], z=[]) == two


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        ("-t", [1, 1] + [0] * (C - 2), r"target is \[1, 1, .* must be one-hot.*, \(20,\), with"),
        ("-t", np.array(C), r"target is 20, but must be a class in \[0, 20\)"),
        ("--sample-weight", np.array(-1.0), "sample_weight is -1.0, but must be at least 0"),
        ("--group", np.array([1, 2]), r"has shape \(2,\), but must have one entry"),
    ],
)
def test_errors_of_logits_of_one_sample(here, run, option, given, message):
    np.save("x.npy", X[0, 3])
    np.save("t.npy", T[0, 3])
    np.save("wrong.npy", given)
    target = () if option == "-t" else ("-t", "t.npy")
    status, out, err = run("eval", "x.npy", option, "wrong.npy", *target)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.match(f"xentrs: wrong.npy: {message}", err), err


def test_positions_with_shift(here, run):
    """Positions are those in the file of targets, not those in a block."""
    np.save("t.npy", np.where(np.arange(N * S).reshape(N, S) == 38, 99, T))
    err = run("eval", "x.npy", "-t", "t.npy", "--shift", "--block-size=999")[2]
    assert err.startswith("xentrs: t.npy: target[5, 3] is 99,")
    t = np.where(np.arange(N * S)[:, None] == 38, 1, np.eye(C, dtype=int)[np.maximum(T, 0).ravel()])
    np.save("t.npy", t.reshape(X.shape))
    options = ("--ignore-index=none", "--block-size=2K")
    for shift in ((), ("--shift",)):
        err = run("eval", "x.npy", "-t", "t.npy", *options, *shift)[2]
        assert err.startswith("xentrs: t.npy: target[5, 3, :] is [1, 1, "), err


@pytest.mark.parametrize(
    "argument", ["--label-smoothing=2", "--bins=0", "--top-k=0", "--oh", "--bins=x"]
)
def test_wrong_options(here, run, argument):
    status, out, err = run("eval", "x.npy", "-t", "t.npy", argument)
    assert (status, out, err.count("\n"), err[:8]) == (2, "", 1, "xentrs: ")
    assert argument.strip("-").split("=")[0].replace("-", "_") in err.replace("-", "_")


def test_wrong_states(here, run, evaluated):
    evaluated("x.npy", "-t", "t.npy", "--save-state", "a.npz")
    evaluated("x.npy", "-t", "t.npy", "--save-state", "b.npz", "--bins=3")
    Path("cut.npz").write_bytes(Path("a.npz").read_bytes()[:-40])
    Path("text.npz").write_text("hello")
    Path("empty.npz").touch()
    np.savez("other.npz", a=np.zeros(3))
    pickled_member()
    messages = {
        "b.npz": "does not go with a.npz: bins",
        "cut.npz": "cannot be read, damaged?",
        "text.npz": "is no state",
        "empty.npz": "is empty",
        "other.npz": "is no state",
        "p.npz": "is no state",
        "x.npy": "is an array",
        "none.npz": "no such file",
    }
    for file, message in messages.items():
        status, out, err = run("merge", "a.npz", file, "--json", "--save-state", "out.npz")
        assert (status, out) == (2, "")
        assert err.startswith(f"xentrs: {file}: {message}"), err
        assert err.count("\n") == 1
        assert not Path("out.npz").exists()


def test_where_nothing_can_be_written(here, run):
    """Is said before the work, and an old file stays as it was when the work fails."""
    status, _, err = run("eval", "x.npy", "-t", "t.npy", "--save-state", "no/s.npz")
    assert (status, err) == (2, "xentrs: no/s.npz: cannot be written: there is no folder no\n")
    assert run("eval", "x.npy", "-t", "t.npy", "--png", ".")[2] == "xentrs: .: is a directory\n"
    assert run("eval", "x.npy", "-t", "t.npy", "--save-state", "s.npz")[0] == 0
    before = Path("s.npz").read_bytes()
    np.save("t.npy", np.where(np.arange(N * S).reshape(N, S) == 200, 99, T))
    assert run("eval", "x.npy", "-t", "t.npy", "--save-state", "s.npz", "--block-size=1")[0] == 2
    assert Path("s.npz").read_bytes() == before
    assert sorted(os.listdir()) == ["flat.npy", "s.npz", "t.npy", "x.npy"]


def test_an_output_that_is_an_input(here, run):
    os.symlink("x.npy", "link.npy")
    before = Path("x.npy").read_bytes()
    for option, output in (("--save-state", "x.npy"), ("--png", "t.npy"), ("--png", "link.npy")):
        err = f"xentrs: {output}: is an input, and would be replaced\n"
        assert run("eval", "x.npy", "-t", "t.npy", option, output) == (2, "", err)
    assert Path("x.npy").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a full device")
@pytest.mark.parametrize("arguments", ["eval x.npy -t t.npy", "eval x.npy -t t.npy --json", "info"])
def test_where_no_output_fits(here, arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "xentrs", *arguments.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
        )
    message = "xentrs: standard output: no space left on device\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a full device")
@pytest.mark.parametrize("option", ["--save-state", "--png"])
def test_a_report_is_not_lost_with_a_file(here, run, option):
    _, report, _ = run("eval", "x.npy", "-t", "t.npy", "--json")
    err = "xentrs: /dev/full: no space left on device\n"
    assert run("eval", "x.npy", "-t", "t.npy", "--json", option, "/dev/full") == (2, report, err)


def test_permissions_of_a_state(here, run):
    """A new file has those that any new file has, another keeps its own; none is left beside it."""
    for name, mode in (("new.npz", None), ("old.npz", 0o604)):
        if mode is None:
            Path("other").touch()
            mode = Path("other").stat().st_mode & 0o777
        else:
            Path(name).touch()
            os.chmod(name, mode)
        Path(f"{name}.{os.getpid()}.tmp").touch()  # of a name that an earlier version took
        assert run("eval", "x.npy", "-t", "t.npy", "--json", "--save-state", name)[0] == 0
        assert Path(name).stat().st_mode & 0o777 == mode
    assert not list(Path.cwd().glob(".xentrs-*"))


PLAIN = {key: value for key, value in ENVIRONMENT.items() if not key.startswith(("LC_", "LANG"))}
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def test_encodings_of_the_output(here, run):
    """An output that cannot encode a character of the report gets another, and no traceback."""
    np.savez("long.npz", **{"k" * 300: T})  # which a table cuts
    report = run("eval", "x.npy", "-t", "t.npy")[1]
    listed = run("info", "long.npz")[1]
    assert "\u00b1" in report
    assert "\u2026" in listed
    for name, variables in ENCODINGS.items():
        codec = "ascii" if name == "C" else name
        options = {"env": PLAIN | variables, "text": False}
        for arguments, text, lost in (
            (("eval", "x.npy", "-t", "t.npy"), report, codec == "ascii"),
            (("info", "long.npz"), listed, codec != "utf-8"),
        ):
            done = call(*arguments, **options)
            expected = text.replace("\u00b1", "+-").replace("\u2026", "...") if lost else text
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout.decode(codec) == expected
    asked = call("eval", "x.npy", "-t", "t.npy", env=PLAIN | {"PYTHONIOENCODING": "ascii:replace"})
    assert (asked.returncode, asked.stdout) == (0, report.replace("\u00b1", "?"))


@pytest.mark.parametrize("name", ["\u00fc\u00b1 \u6a21$x$".encode(), b"\xff$_"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_files_with_any_name(here, encoding, name):
    """A name that the output cannot encode breaks neither report nor picture nor error."""
    name += b".npy"
    file = os.fsdecode(name)
    try:
        os.rename("x.npy", file)
    except OSError:
        pytest.skip("no such name on this system")
    options = {"env": PLAIN | ENCODINGS[encoding], "text": False}
    done = call("eval", file, "-t", "t.npy", "--png=p.png", "--save-state=s.npz", **options)
    assert (done.returncode, done.stderr) == (0, b"")
    assert Path("p.png").stat().st_size > 10_000
    shown = {"ascii": b"\\xfc+- \\u6a21$x$.npy", "latin-1": b"\xfc\xb1 \\u6a21$x$.npy"}
    title = name if name.startswith(b"\xff") else shown.get(encoding, name)
    assert done.stdout.startswith(title + b" (30 x 7 x 20, float32)")
    done = call("eval", file, "-t", "flat.npy", "--group", file, **options)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert done.stderr.startswith(b"xentrs: flat.npy: has shape")
    done = call("eval", file, "-t", file, "--weight", file, **options)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)


CLOSED = [
    "eval x.npy -t t.npy",
    "eval x.npy -t t.npy --json --save-state s.npz",
    "merge m.npz",
    "info x.npy",
    "eval --help",
]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize("command", CLOSED)
def test_closed_streams(here, run, command, closed):
    """Output that is lost is an error, as for `ls >&-`. No file takes its place."""
    assert run("eval", "x.npy", "-t", "t.npy", "--save-state", "m.npz")[0] == 0
    line = f'"{sys.executable}" -m xentrs {command} {closed}'
    done = subprocess.run(
        line, shell=True, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    if closed.startswith(">"):
        error = "" if "2>" in closed else "xentrs: standard output: bad file descriptor\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", error)
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == run(*command.split())[1]
    if "--save-state" in command:
        assert Path("s.npz").read_bytes() == Path("m.npz").read_bytes()


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_errors_where_nobody_reads_them(here, closed):
    line = f'"{sys.executable}" -m xentrs eval none.npy -t t.npy {closed}'
    done = subprocess.run(line, shell=True, env=ENVIRONMENT, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_a_file_that_shrinks(here, run, monkeypatch):
    from xentrs._cli import sources

    def shrink(*arguments, **options):
        found = open_raw(*arguments, **options)
        os.truncate("x.npy", 9000)
        return found

    open_raw = sources._open_raw
    monkeypatch.setattr(sources, "_open_raw", shrink)
    err = run("eval", "x.npy", "-t", "t.npy")[2]
    assert err == "xentrs: x.npy: is truncated: it ends at byte 9000\n"


# The process


def sparse(file, samples, classes):
    """Write bfloat16 logits of 0, at an odd offset, that take no place on the disk."""
    size = samples * classes * 2
    entry = {"dtype": "BF16", "shape": [samples, classes], "data_offsets": [0, size]}
    text = json.dumps({"logits": entry}).encode()
    text += b" " * (1 - len(text) % 2)
    with open(file, "wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + size)


@pytest.mark.parametrize("name", ["x.npy", "columns.npy", "x.npz:x", "x.safetensors:x"])
def test_without_preadv(here, monkeypatch, name):
    """As on Windows, where a file's position is moved before it is read."""
    from xentrs._cli.sources import open_source

    np.save("columns.npy", np.asfortranarray(X.reshape(-1, C)))
    np.savez("x.npz", t=T, x=X)
    safetensors.save_file({"t": T, "x": X}, "x.safetensors")
    monkeypatch.delattr(os, "preadv")
    source = open_source(name, 1000)
    source.skip(C)
    found = np.concatenate([source.read(C).copy() for _ in range(N * S - 1)])
    source.close()
    np.testing.assert_array_equal(found, X.ravel()[C:])


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_a_file_four_times_the_limit_of_the_address_space(here):
    import resource

    limit = 416 << 20
    classes = 4096
    samples = 4 * limit // (2 * classes)
    sparse("big.safetensors", samples, classes)
    np.save("t.npy", np.arange(samples) % classes)
    done = call(
        "eval",
        "big.safetensors",
        "-t",
        "t.npy",
        "--json",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["count"] == samples
    assert found["loss"] == pytest.approx(np.log(classes), rel=1e-12)


# What ends a command, and the exit status that shells expect.
SIGNALS = {"Ctrl-C": (signal.SIGINT, 130), "SIGTERM": (signal.SIGTERM, 143)}


def interrupted(arguments, seconds, number):
    """Send a signal some seconds after the command opened its first file; return how it ended."""
    file = os.path.realpath(arguments[1].partition(":")[0])
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def has_opened():
        try:
            return file in map(os.readlink, Path(f"/proc/{process.pid}/fd").iterdir())
        except OSError:  # closed, while we look
            return False

    while process.poll() is None and not has_opened():
        time.sleep(0.02)
    time.sleep(seconds)
    assert process.poll() is None, "it ended before: the file is too small"
    sent = time.perf_counter()
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err, time.perf_counter() - sent


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", SIGNALS)
def test_interrupt(here, kind):
    """Ends within a second, with the state of what was evaluated."""
    samples, classes = 4_000_000, 4096
    sparse("big.safetensors", samples, classes)
    with open("t.npy", "wb") as file:
        head = {"descr": "|i1", "fortran_order": False, "shape": (samples,)}
        np.lib.format.write_array_header_1_0(file, head)
        file.truncate(file.tell() + samples)
    arguments = [
        "eval",
        "big.safetensors",
        "-t",
        "t.npy",
        "--save-state",
        "s.npz",
        "--png",
        "p.png",
    ]
    number, expected = SIGNALS[kind]
    status, out, err, seconds = interrupted(arguments, 1, number)
    assert (status, out) == (expected, "")
    assert seconds < 1
    with np.load("s.npz", allow_pickle=False) as state:
        found = xentrs.CrossEntropyMeter.from_state(state).compute()
    assert 0 < found.count < samples
    assert found.loss == pytest.approx(np.log(classes), rel=1e-12)
    assert err == f"xentrs: interrupted after {found.count} samples, whose state is in s.npz\n"
    assert sorted(os.listdir()) == ["big.safetensors", "flat.npy", "s.npz", "t.npy", "x.npy"]
    assert interrupted(arguments[:4], 0.3, number)[:2] == (expected, "")


@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("command", ["eval x.npy -t t.npy", "merge m.npz"])
@pytest.mark.parametrize("option", ["--save-state", "--png"])
def test_interrupt_while_a_file_is_written(here, run, monkeypatch, option, command, kind):
    """The file keeps its content, and nothing is left beside it."""
    assert run("eval", "x.npy", "-t", "t.npy", "--save-state=m.npz")[0] == 0
    Path("old").write_text("content")
    before = sorted(os.listdir())
    number, expected = SIGNALS[kind]
    monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), number))
    monkeypatch.setattr(os, "unlink", lambda file: (os.kill(os.getpid(), number), os.remove(file)))
    handlers = [signal.getsignal(number) for number, _ in SIGNALS.values()]
    assert run(*command.split(), "--json", option, "old") == (expected, "", "")
    assert [signal.getsignal(number) for number, _ in SIGNALS.values()] == handlers
    assert (Path("old").read_text(), sorted(os.listdir())) == ("content", before)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", SIGNALS)
def test_interrupt_while_decompressing(here, kind):
    """Reading takes the time here, and ends at once too."""
    with (
        zipfile.ZipFile("big.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        head = {"descr": "<f4", "fortran_order": False, "shape": (500_000, 256)}
        np.lib.format.write_array_header_1_0(member, head)
        zeros = bytes(64 << 20)
        for _ in range(500_000 * 1024 // len(zeros) + 1):
            member.write(zeros)
    np.save("t.npy", np.zeros(500_000, int))
    number, expected = SIGNALS[kind]
    status, out, _, seconds = interrupted(["eval", "big.npz:x", "-t", "t.npy"], 0.3, number)
    assert (status, out) == (expected, "")
    assert seconds < 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_progress_on_a_terminal(here, encoding):
    """Percent, samples and the time left, on standard error alone, and gone at the end."""
    sparse("big.safetensors", 80_000, 4096)
    np.save("t.npy", np.zeros(80_000, np.int32))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "eval", "big.safetensors", "-t", "t.npy", "--json"],
        env=ENVIRONMENT
        | {"TERM": "xterm-256color", "COLUMNS": "100", "PYTHONIOENCODING": encoding},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    out, _ = process.communicate(timeout=30)
    os.close(ours)
    assert process.returncode == 0
    assert json.loads(out)["count"] == 80_000
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"samples .* \d+% +\d+/80000 +\d:\d\d:\d\d", text), text
    assert text.isascii() == (encoding == "ascii")
    assert "\\u" not in text


@pytest.mark.parametrize("command", ["module", "script"])
@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra(here, command, missing):
    """One line that says what to install, and no traceback."""
    Path(f"{missing}.py").write_text(f"raise ModuleNotFoundError('no', name={missing!r})")
    how = {
        "module": ["-m", "xentrs", "info"],
        "script": ["-c", "import sys; from xentrs._cli import main; sys.exit(main())"],
    }
    done = subprocess.run(
        [sys.executable, *how[command]],
        env=ENVIRONMENT | {"PYTHONPATH": f".{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"xentrs: the command line needs {missing}: pip install xentrs[cli]\n"


@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("pyarrow", ["x.parquet", "-t", "t.npy"]),
        ("matplotlib", ["x.npy", "-t", "t.npy", "--png", "p.png"]),
        ("ml_dtypes", ["b.npy", "-t", "t.npy"]),
    ],
)
def test_without_a_library_of_a_format(here, run, monkeypatch, library, arguments):
    Path("x.parquet").write_bytes(b"PAR1" * 9)
    np.save("b.npy", X.astype(BFLOAT16))
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    status, out, err = run("eval", *arguments)
    assert (status, out) == (2, "")
    assert err.endswith(f"needs {library}: pip install xentrs[cli]\n")
    assert err.count("\n") == 1


def test_info(here, run):
    status, out, _ = run("info")
    config = xentrs.show_config(mode="dicts")
    assert status == 0
    assert config["version"] in out
    assert config["simd"]["level"] in out
    assert np.__version__ in out
    np.savez("z.npz", a=X, b=T)
    to_parquet(X, "x.parquet")
    to_safetensors(X, "x.safetensors")
    status, out, _ = run("info", "z.npz", "x.npy", "x.parquet", "x.safetensors")
    assert status == 0
    for text in ("(30, 7, 20)", "(30, 7)", "float32", "second", "f32", "list<"):
        assert text in out
    assert run("info", "none.npz")[2] == "xentrs: none.npz: no such file or directory\n"


def test_info_of_many_arrays(here, run):
    """Three of those that are alike, how many more, and the last one; of a few all are shown."""
    columns = {f"class_{i}": X.ravel()[:5] for i in range(500)}
    pq.write_table(pa.table({"id": T.ravel()[:5]} | columns), "x.parquet")
    np.savez("x.npz", **columns, **{"few[b]_" + str(i): T for i in range(8)})
    safetensors.save_file({f"t{i:03}": X[: 1 + i % 2] for i in range(20)}, "x.safetensors")
    shown = ["class_0", "class_1", "class_2", "\u2026 496 more", "class_499"]
    for file, keys in (
        ("x.parquet", ["id", *shown]),
        ("x.npz", shown + [f"few[b]_{i}" for i in range(8)]),
        ("x.safetensors", [f"t{i:03}" for i in range(20)]),  # each unlike its neighbours
    ):
        status, out, err = run("info", file)
        assert (status, err) == (0, "")
        rows = [line.split(maxsplit=1) for line in out.splitlines()[1:]]
        assert [row[0] for row in rows] == [file] * len(keys)
        assert all(row[1].startswith(key) for row, key in zip(rows, keys, strict=True))


def test_info_as_json(here, run):
    """One line: all arrays, however many; versions as one flat object."""
    names = [f"class_{i}" for i in range(100)]
    np.savez("x.npz", **dict.fromkeys(names, T))
    files = ("t.npy", "none.npy", "x.npz")
    status, out, err = run("info", *files, "--json")
    assert (status, out.count("\n")) == (2, 1)
    assert err == "xentrs: none.npy: no such file or directory\n"
    assert json.loads(out) == [
        {"file": file, "key": key, "shape": [N, S], "type": "int64"}
        for file, key in (("t.npy", None), *(("x.npz", name) for name in names))
    ]
    assert run("info", "none.npy", "--json")[:2] == (2, "[]\n")
    status, out, err = run("info", "--json")
    assert (status, out.count("\n"), err) == (0, 1, "")
    found, config = json.loads(out), xentrs.show_config(mode="dicts")
    assert found["xentrs"] == config["version"]
    assert found["instructions"] == config["simd"]["level"]
    assert found["threads"] == config["threads"]["count"]
    assert found["numpy"] == np.__version__


def test_info_of_good_and_bad_files(here, run):
    """What can be read is shown, whatever comes before and after it; then a line of each error."""
    Path("bad.npy").write_text("hello, world")
    np.savez("some.npz", a=X, p=np.array([{}], object), z=T)
    Path("x.parquet").write_bytes(b"PAR1" * 9)
    bad = ["xentrs: bad.npy: is none of .npy, .npz, .safetensors, Parquet and Arrow IPC"]
    none = ["xentrs: none.npy: no such file or directory"]
    pickled = ["xentrs: some.npz: holds pickled Python objects, which are never loaded"]
    for files, shown, lines in (
        (["x.npy", "bad.npy"], ["x.npy"], bad),
        (["bad.npy", "x.npy"], ["x.npy"], bad),
        (["none.npy", "x.npy", "bad.npy", "t.npy"], ["x.npy", "t.npy"], none + bad),
        (["some.npz", "t.npy"], ["some.npz  a", "some.npz  z", "t.npy"], pickled),
        (["bad.npy", "none.npy"], [], bad + none),
    ):
        status, out, err = run("info", *files)
        assert (status, err.splitlines()) == (2, lines)
        rows = out.splitlines()[1:]
        assert len(rows) == len(shown)
        assert all(row.startswith(start) for row, start in zip(rows, shown, strict=True))
    status, out, err = run("info", "x.npy", "x.parquet")
    assert (status, err.count("\n"), "(30, 7, 20)" in out) == (2, 1, True)


def test_help_and_version(here):
    done = call("--version")
    assert (done.returncode, done.stdout) == (0, f"xentrs {xentrs.__version__}\n")
    for command in ((), ("eval",), ("merge",), ("info",)):
        done = call(*command, "--help")
        assert done.returncode == 0
        assert "Usage: xentrs" in done.stdout
    done = call("eval", "x.npy")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_whoever_reads_the_output_may_stop(here):
    process = subprocess.Popen(
        f"{sys.executable} -m xentrs eval x.npy -t t.npy | true",
        shell=True,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.communicate(timeout=60)[1] == ""
