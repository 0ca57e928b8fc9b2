"""Disturbances of a call: a thread that changes its arguments, or too little memory.

Scripts that tests run in a process of their own import this too.
"""

import contextlib
import gc
import sys
import threading


@contextlib.contextmanager
def meanwhile(change):
    """Run `change` again and again in a thread that takes turns with this one all the time."""
    stop = threading.Event()

    def run():
        while not stop.is_set():
            change()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


def address_space():
    """Return the size of this process's address space in bytes (on Linux)."""
    import resource

    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def limited(call, room):
    """Make a call while the address space may grow by `room` bytes only; return its result."""
    import resource

    gc.collect()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + room, hard))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def assert_short_of_memory(call, room=8 << 20):
    """Assert that a call that may use `room` bytes raises `MemoryError`, and leaks nothing."""
    grown = []
    for _ in range(4):
        before = address_space()
        error = None
        try:
            limited(call, room)
        except MemoryError as raised:
            error = str(raised)
        assert error is not None, "had memory enough"
        assert "report" not in error  # that would be the message of an internal error
        gc.collect()
        grown.append(address_space() - before)
    # A thread's first call to the allocator reserves an arena; a leak grows every time.
    assert min(grown) < 4 << 20, grown
