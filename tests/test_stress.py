"""Crowds of threads, forks, signals, want of memory, huge arrays, files that shrink.

Each test takes seconds. Those that take minutes, or gigabytes of memory, run with
XENTRS_STRESS=1: `make stress`.
"""

import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import xentrs
from losses import LOSSES, assert_same_bits

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
large = pytest.mark.skipif(
    not os.environ.get("XENTRS_STRESS"),
    reason="takes minutes, or gigabytes of memory: make stress",
)
pytestmark = pytest.mark.timeout(300)

# ---------------------------------------------------------------------------------- many threads

CROWD = 64
SHAPES = [(3000, 10), (60, 1500), (9, 5), (2, 30_000), (5000, 2)]


def crowd(work):
    """Call `work` with the numbers of 64 threads, which begin at once."""
    barrier, failures = threading.Barrier(CROWD), []

    def run(number):
        try:
            barrier.wait()
            work(number)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(CROWD)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
        assert not worker.is_alive()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("count", [1, 5])
def test_a_crowd_with_arrays_of_its_own(count, threads):
    """Every loss, layout and type at the same time: the bits are those of calls in turn."""
    threads(count)
    cases = []
    for number in range(CROWD):
        rng, loss = np.random.default_rng(number), LOSSES[number % len(LOSSES)]
        dtype = [np.float32, np.float64, np.float16][number % 3]
        case = loss.case(rng, SHAPES[number % len(SHAPES)], dtype, loss.option_sets[-1])
        if number % 2:
            case = case.but(scores=np.asfortranarray(case.scores))
        cases.append(case)
    expected = [case.all() for case in cases]

    def work(number):
        for _ in range(15):
            assert_same_bits(cases[number].all(), expected[number])

    crowd(work)


@pytest.mark.parametrize("shape", [(20_000, 10), (100, 4000)], ids=str)
def test_a_crowd_with_the_same_logits(shape, threads):
    """The inputs are shared, and so are the blocks of one array of gradients."""
    threads(3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    target = rng.integers(0, shape[1], shape[0])
    right = xentrs.cross_entropy_with_grad(x, target)
    rows = rng.permutation(shape[0]).reshape(20, -1)
    parts = [xentrs.cross_entropy_with_grad(x[r], target[r], denominator=9.0) for r in rows]
    together = np.empty((len(parts), *parts[0][1].shape), np.float32)

    def work(number):
        for i in range(number, number + 4):
            assert_same_bits(xentrs.cross_entropy_with_grad(x, target), right)
            if number < len(parts):  # beside the gradients that others write
                r, out = rows[number], together[number]
                got = xentrs.cross_entropy_with_grad(x[r], target[r], denominator=9.0, out=out)
                assert_same_bits(got, parts[number])
            assert xentrs.cross_entropy(x[i:], target[i:]) == xentrs.cross_entropy(
                x[i:].copy(), target[i:]
            )

    crowd(work)
    assert_same_bits(together, np.stack([grad for _, grad in parts]))


def test_a_crowd_with_one_meter_each(threads):
    """Merged, they are the meter of all samples, to the last bit."""
    threads(2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CROWD, 50, 300)).astype(np.float32)
    target = rng.integers(0, 300, (CROWD, 50))
    meters = [xentrs.CrossEntropyMeter() for _ in range(CROWD)]
    crowd(lambda number: meters[number].update(x[number], target[number]))
    merged = xentrs.CrossEntropyMeter()
    for meter in meters:
        merged.merge(meter)
    whole = xentrs.CrossEntropyMeter()
    whole.update(x, target)
    assert (merged.compute().loss, merged.compute().stderr) == (
        whole.compute().loss,
        whole.compute().stderr,
    )


# --------------------------------------------------------------------------------- more processes

CALLS = """
    import os, signal, sys, threading, time, warnings
    import numpy as np, xentrs
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    rows = [(40_000, 10), (60, 5000), (20_000, 3), (300, 700)]
    logits = [rng.normal(size=shape).astype(np.float32) for shape in rows]
    targets = [rng.integers(0, x.shape[1], len(x)) for x in logits]
    xentrs.set_num_threads(4)

    def results():
        return [
            call(x, t) for x, t in zip(logits, targets)
            for call in (xentrs.cross_entropy_with_grad, xentrs.poly_loss_with_grad)
        ]

    right = results()

    def check():
        for (loss, grad), (expected, expected_grad) in zip(results(), right):
            assert loss == expected and np.array_equal(grad, expected_grad)
"""


@linux
def test_forks_by_many_threads_while_others_compute(python):
    """Whichever thread forks: its child computes, forks in turn, and ends."""
    script = (
        CALLS
        + """
    failures, stop = [], threading.Event()

    def fork(generations):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(60)  # a deadlock ends in SIGALRM
                check()
                if generations:
                    fork(generations - 1)
                code = 0
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        if status:
            failures.append(status)

    def compute():
        while not stop.is_set():
            check()

    computing = [threading.Thread(target=compute) for _ in range(4)]
    forking = [
        threading.Thread(target=lambda: [fork(i % 2) for i in range(6)]) for _ in range(4)
    ]
    for thread in computing + forking:
        thread.start()
    for thread in forking:
        thread.join()
    stop.set()
    for thread in computing:
        thread.join()
    assert not failures, failures
    check()
    """
    )
    python(script, timeout=200)


def test_spawned_processes(python):
    """As on Windows and macOS: started anew while threads of the parent compute."""
    script = (
        CALLS
        + """
    import functools, multiprocessing
    stop = threading.Event()

    def compute():
        while not stop.is_set():
            check()

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            got = pool.starmap_async(xentrs.cross_entropy_with_grad, zip(logits, targets)).get(120)
    finally:
        stop.set()
        thread.join()
    for (loss, grad), (expected, expected_grad) in zip(got, right[::2]):
        assert loss == expected and np.array_equal(grad, expected_grad)
    """
    )
    python(script, timeout=200)


# ---------------------------------------------------------------------------------------- signals

LONG = """
    import mmap, os, signal, sys, threading, time
    import numpy as np, xentrs

    NORESERVE = 0x4000  # mmap.MAP_NORESERVE, from Python 3.12 on

    def zeros(shape, dtype=np.float32):
        # Zeros that take no memory: pages that are only read, of which none is reserved.
        size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        return np.frombuffer(mmap.mmap(-1, size, flags, mmap.PROT_READ), dtype).reshape(shape)

    def repeated(row, samples):
        return np.broadcast_to(row, (samples, *row.shape))

    # A shell that starts a job in the background has it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sent = []

    def send(after, number=signal.SIGINT):
        def run():
            time.sleep(after)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), number)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def interrupted(call, raises=KeyboardInterrupt):
        # Seconds from the signal to the exception.
        thread = send(0.3)
        try:
            call()
        except raises:
            end = time.perf_counter()
        else:
            thread.join()
            raise SystemExit(f"{call} was not interrupted")
        thread.join()
        return end - sent[-1]
"""

# Calls of many seconds. What they read takes little memory.
MINUTES = {
    "rows": "xentrs.cross_entropy(repeated(row(1000), 1 << 25), zeros(1 << 25, np.int8))",
    "rows of many classes": """xentrs.cross_entropy(
        repeated(row(1 << 20), 1 << 14), zeros(1 << 14, np.int8))""",
    "few classes": "xentrs.cross_entropy(zeros((1 << 29, 10)), zeros(1 << 29, np.int8))",
    "columns": "xentrs.cross_entropy(zeros((1000, 1 << 22)), zeros(1 << 22, np.int8), axis=0)",
    "smoothing": """xentrs.cross_entropy(
        repeated(row(1000), 1 << 25), zeros(1 << 25, np.int8), label_smoothing=0.1)""",
    "binary": """xentrs.binary_cross_entropy_with_logits(
        zeros(1 << 32), zeros(1 << 32, bool))""",
    "divergence": "xentrs.kl_divergence(*[repeated(row(1000), 1 << 25)] * 2)",
    "softmax_entropy": "xentrs.softmax_entropy(repeated(row(1000), 1 << 25))",
    "half": "xentrs.cross_entropy(zeros((1 << 22, 1000), np.float16), zeros(1 << 22, np.int8))",
}


@linux
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", MINUTES)
def test_ctrl_c_ends_a_long_call(kind, count, python):
    script = (
        LONG
        + f"""
    def row(classes):
        return np.random.default_rng(0).normal(size=classes).astype(np.float32)

    xentrs.set_num_threads({count})
    for attempt in range(3):  # a busy machine may not run this process for a second
        seconds = interrupted(lambda: {MINUTES[kind]})
        if seconds < 1:
            break
    print(seconds)
    # The next call is as good as any.
    x, t = row(30_000).reshape(-1, 10), zeros(3000, int)
    xentrs.set_num_threads(1)
    right = xentrs.cross_entropy(x, t)
    xentrs.set_num_threads({count})
    assert xentrs.cross_entropy(x, t) == right
    """
    )
    assert float(python(script, timeout=200).stdout) < 1


# A slow loss that takes most of a second, with a gradient whose rows are all the same.
WRITES = (
    LONG
    + """
    row, other = np.float16([0.75, -1.5]), np.float16([-0.25, 1])
    options = dict(reduction="sum")
    right = xentrs.js_divergence_with_grad(row[None], other[None], **options)[1][0]

    def prepared(samples, in_place=False):
        global logits, teacher, out, guarded
        guarded = np.full(2 * samples + 2000, 7, np.float16)
        out = guarded[1000:-1000].reshape(samples, 2)
        logits, teacher = repeated(row, samples), repeated(other, samples)
        if in_place:
            out[:] = row
            logits = out

    def call():
        return xentrs.js_divergence_with_grad(logits, teacher, out=out, **options)

    xentrs.set_num_threads(int(sys.argv[1]))
    samples, seconds = 1 << 20, 0
    while seconds < 0.7:
        prepared(samples)
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        samples = int(samples * min(8, 1 / seconds))
    samples = len(out)
"""
)


@linux
@pytest.mark.parametrize("count", [1, 2])
def test_what_an_interrupted_call_leaves(count, python):
    """Each row of `out` is what it was, or the gradient; nothing changes beside `out`."""
    python(
        WRITES
        + """
    for in_place in (False, True):
        prepared(samples, in_place)
        before = out[0].copy()
        assert interrupted(call) < 1
        time.sleep(0.05)  # no thread writes after the call
        done = (out == right).all(1)
        assert (done | (out == before).all(1)).all()
        assert 0 < done.sum() < samples, done.sum()
        assert (guarded[[*range(1000), *range(-1000, 0)]] == 7).all()
        prepared(samples, in_place)
        call()
        assert (out == right).all()
        """,
        arguments=[count],
        timeout=200,
    )


@linux
@pytest.mark.parametrize("count", [1, 2])
def test_handlers_that_return_or_raise(count, python):
    """A handler runs during a call, which goes on if it returns, and raises what it raises."""
    python(
        WRITES
        + """
    loss, _ = call()
    handled = []

    def handle(*_):
        handled.append(time.perf_counter())
        inner = xentrs.cross_entropy_with_grad(np.ones((1 << 16, 10)), zeros(1 << 16, np.int8))[0]
        assert abs(inner - np.log(10)) < 1e-12  # a call within a call

    signal.signal(signal.SIGUSR1, handle)
    thread = send(0.1, signal.SIGUSR1)
    assert call()[0] == loss
    end = time.perf_counter()
    thread.join()
    assert (out == right).all()
    assert handled and handled[0] < end - 0.05, (handled, end)

    class Enough(Exception):
        pass

    def refuse(*_):
        raise Enough

    signal.signal(signal.SIGINT, refuse)
    assert interrupted(call, Enough) < 1
    signal.signal(signal.SIGINT, signal.default_int_handler)

    # Another thread's call is not the main thread's: it goes on.
    results = []
    worker = threading.Thread(target=lambda: results.append(call()[0]))
    worker.start()
    assert interrupted(lambda: time.sleep(20)) < 1
    worker.join()
    assert results == [loss] and (out == right).all()
        """,
        arguments=[count],
        timeout=200,
    )


@linux
def test_an_interrupted_update_leaves_the_meter_as_it_was(python):
    python(
        LONG
        + """
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(50, 400)).astype(np.float32), rng.integers(0, 400, 50)
    meter = xentrs.CrossEntropyMeter()
    meter.update(x, t)
    before = meter.to_state()
    many = repeated(x[0], 1 << 24)
    assert interrupted(lambda: meter.update(many, zeros(1 << 24, np.int8))) < 1
    after = meter.to_state()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    meter.update(x, t)
    assert meter.compute().count == 100
        """,
        timeout=200,
    )


# --------------------------------------------------------------------------------- want of memory


@pytest.fixture(scope="module")
def failing_malloc(tmp_path_factory):
    """Return a library that makes one call of the allocator fail."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("malloc") / "failing_malloc.so"
    source = Path(__file__).parent / "failing_malloc.c"
    command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", library, source], check=True)
    return library


@linux
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="stands before glibc's allocator")
@pytest.mark.parametrize("count", [1, 3])
def test_each_allocation_fails_in_turn(count, failing_malloc, python):
    """All that grow with the arguments: a `MemoryError`, or the call does without the memory."""
    script = """
        import ctypes, gc, sys
        from concurrent.futures import ThreadPoolExecutor
        import numpy as np, xentrs
        from xentrs import _xentrs
        from losses import LOSSES, assert_same_bits

        malloc = ctypes.CDLL(None)
        malloc.fail.argtypes = [ctypes.c_long, *[ctypes.c_size_t] * 4]
        malloc.failed.restype = ctypes.c_long
        spans = [
            [int(end, 16) for end in line.split()[0].split("-")]
            for line in open("/proc/self/maps") if _xentrs.__file__ in line
        ]
        module = min(spans)[0], max(spans)[1]

        def each_in_turn(call, right, others=1 << 16):
            errors = number = 0
            while True:
                number += 1
                error = None
                malloc.fail(number, *module, 1024, others)
                try:
                    # In a thread that has kept no memory of earlier calls.
                    with ThreadPoolExecutor(1) as fresh:
                        result = fresh.submit(call).result()
                except MemoryError as raised:
                    error = raised
                finally:
                    size = malloc.failed()
                if error is None:
                    assert_same_bits(result, right)
                    if not size:
                        return errors
                errors += error is not None
                assert_same_bits(call(), right)

        def measured(x, t):
            meter = xentrs.CrossEntropyMeter(per_class=True)
            meter.update(x, t, reference_logits=x)
            return meter

        rng = np.random.default_rng(0)
        xentrs.set_num_threads(int(sys.argv[1]))
        errors = {}
        for loss in LOSSES:
            for shape in ((4000, 10), (40, 1500)):
                for dtype in (np.float32, np.float16):
                    case = loss.case(rng, shape, dtype, loss.option_sets[-1], reduction="none")
                    if "ignore_index" in case.options:
                        chosen = np.atleast_1d(case.options["ignore_index"]).tolist()
                        case = case.but(ignore_index=(*range(-900, 1), *chosen))
                    for layout in (np.ascontiguousarray, np.asfortranarray):
                        this = case.but(scores=layout(case.scores))
                        errors[loss.id, shape, dtype, layout] = each_in_turn(this.all, this.all())
        x = rng.normal(size=(300, 1500)).astype(np.float32)
        t = rng.integers(0, 1500, 300)
        top = np.sort(x)[:, :400]
        where = np.argsort(x)[:, :400]
        calls = {
            "pair": lambda: xentrs.cross_entropy_with_grad(x, (where, top)),
            "softmax": lambda: xentrs.softmax(x.T, 0),
            "logsumexp": lambda: xentrs.logsumexp(x, 0),
            "entropy": lambda: xentrs.entropy(abs(x), 0),
            "linear": lambda: xentrs.linear_cross_entropy_with_grad(x, x[:200], t % 200)[0],
            "meter": lambda: measured(x, t).compute().loss,
            "partial": lambda: xentrs.PartialCrossEntropy.of(x, t, first_class=0).loss(),
        }
        for name, call in calls.items():
            # OpenBLAS ends the process where it has no memory.
            others = sys.maxsize if name == "linear" else 1 << 16
            errors[name] = each_in_turn(call, call(), others)
        assert all(errors.values()), errors  # or nothing failed, and nothing was tested
        print(sum(errors.values()))
        """
    done = python(script, arguments=[count], timeout=280, LD_PRELOAD=failing_malloc)
    assert int(done.stdout) > 500


# ------------------------------------------------------------------------------------ huge arrays

# More than 2^31 numbers and 2^32 bytes. What is zero takes no memory.
HUGE = (
    LONG
    + """
    def spotted(shape, dtype, spots):
        # Zeros but for some rows: only pages that are written take memory.
        size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        a = np.frombuffer(mmap.mmap(-1, size, flags), dtype).reshape(shape)
        for place, value in spots.items():
            a[place] = value
        return a

    n = (1 << 21) + 3
    x = spotted((n, 1024), np.float16, {(0, 5): 9, (-1, 5): 9, (-1, 1023): 4, (n // 2, 7): -3})
    t = spotted(n, np.int16, {0: 5, -1: 1023, n // 2: 7})
"""
)


@linux
def test_more_numbers_than_32_bits_count(python):
    """Losses of rows, few classes and elements: the last numbers are as good as the first."""
    python(
        HUGE
        + """
    some = [0, -1, n // 2]
    right = xentrs.cross_entropy(x[some], t[some], reduction="sum") + (n - 3) * np.log(1024)
    got = xentrs.cross_entropy(x, t, reduction="sum")
    assert abs(got - right) < 1e-9 * right
    spots = xentrs.cross_entropy(x[some], t[some], reduction="sum", weight=np.arange(1024.0))
    got = xentrs.cross_entropy(x, t, reduction="sum", weight=np.arange(1024.0))
    assert abs(got - spots) < 1e-9 * spots  # class 0, of all others, has no weight

    n = (1 << 28) + 3
    x = spotted((n, 8), np.float16, {(-1, 3): 9, (-2, 7): 5})
    t = spotted(n, np.int8, {-1: 2, -2: 7})
    some = [-1, -2]
    weight = np.array([0, *[1.0] * 7])
    right = xentrs.cross_entropy(x[some], t[some], reduction="sum", weight=weight)
    assert abs(xentrs.cross_entropy(x, t, reduction="sum", weight=weight) - right) < 1e-9 * right

    n = (1 << 31) + 7
    x = spotted(n, np.float16, {-1: 9, 0: -2})
    t = spotted(n, np.bool_, {-1: True})
    where = spotted(n, np.bool_, {-1: True, 0: True})
    right = xentrs.binary_cross_entropy_with_logits(x[[0, -1]], t[[0, -1]])
    assert abs(xentrs.binary_cross_entropy_with_logits(x, t, where=where) - right) < 1e-9 * right
        """,
        timeout=280,
    )


@linux
@large
def test_huge_gradients(python):
    """In place, more than 2^32 bytes: 4.3 GB."""
    python(
        HUGE
        + """
    some = [0, -1, n // 2, 1, -2]
    options = dict(denominator=1.0)
    right = xentrs.cross_entropy_with_grad(x[some], t[some], **options)[1]
    _, grad = xentrs.cross_entropy_with_grad(x, t, out=x, **options)
    assert grad is x
    assert np.array_equal(grad[some], right)
    for start in range(0, n, 1 << 16):
        part = grad[start : start + (1 << 16)]
        plain = np.flatnonzero((part != right[-1]).any(1)) + start
        assert set(plain) <= {0, n // 2, n - 1}
        """,
        timeout=280,
    )


# --------------------------------------------------------------------- files that another shortens

MAPPED = """
    import os, sys
    import numpy as np, xentrs
    np.save("logits.npy", np.zeros((40_000, 100), np.float32))
    t = np.zeros(40_000, np.int64)
    x = np.load("logits.npy", mmap_mode="r")
    """


@linux
def test_a_file_shortened_while_it_is_mapped(python, tmp_path, monkeypatch):
    """The system ends the process, as docs/usage.md says. A file that is replaced is safe."""
    monkeypatch.chdir(tmp_path)
    done = python(
        MAPPED
        + """
    os.truncate("logits.npy", 4096)
    xentrs.cross_entropy(x, t)
        """,
        check=False,
    )
    assert done.returncode == -signal.SIGBUS
    python(
        MAPPED
        + """
    right = xentrs.cross_entropy(x, t)
    np.save("shorter.npy", np.zeros((1, 100), np.float32))
    os.replace("shorter.npy", "logits.npy")
    assert xentrs.cross_entropy(x, t) == right
        """
    )
