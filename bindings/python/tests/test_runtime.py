"""Threads, fork, exit, memory, logs: what a host process sees."""
import ctypes
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from conftest import ROOT

import tamis
from tamis import _c, _library


def work(seed=0, keys=4000):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 8, 64), (4, 8), (keys, 64))]


def python(code, **environment):
    """A new interpreter that sees this package and library."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "python"), "TAMIS_LIBRARY": _c.library._name,
                **environment}
    return subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=120)


def test_describe_and_options():
    with tamis.Context(threads=3, isa="portable") as ctx:
        assert ctx.describe().startswith(f"tamis {tamis.__version__}, portable of ") and "3 threads" in ctx.describe()
    with pytest.raises(tamis.ArgumentError, match="Context: is closed"):
        ctx.counters()
    with pytest.raises(tamis.ArgumentError, match="op 'everything' is not one of"):
        tamis.Context().counters("everything")


def test_limits_are_measured():
    limits = tamis.Context().limits()
    assert limits.threads == 1
    assert min(limits.i8_macs_per_second, limits.bf16_macs_per_second, limits.f32_macs_per_second) > 1e8
    assert limits.memory_bytes_per_second > 1e8


def test_max_bytes_and_trim():
    q, w, key = work()
    with tamis.Context(threads=1, max_bytes=1000) as ctx:
        with pytest.raises(tamis.BudgetError, match="tamis_select"):
            ctx.select(q, w, key, 2048)
        assert ctx.bytes()[1] <= 1000
    with tamis.Context(threads=1) as ctx:
        ctx.select(q, w, key, 100)
        now, peak = ctx.bytes()
        assert 0 < now <= peak
        ctx.trim()
        assert ctx.bytes() == (0, peak)


def test_errors_are_a_hierarchy():
    classes = [error for error in vars(tamis).values() if isinstance(error, type) and issubclass(error, tamis.Error)]
    assert {error.__name__ for error in classes} == {
        "Error", "ArgumentError", "OutOfMemoryError", "FullError", "FileError", "FormatError", "UnsupportedError",
        "CancelledError", "BudgetError", "BusyError", "InternalError"}
    from tamis import _errors
    assert sorted(_errors.CLASSES) == sorted(number for number in _c.STATUS.values() if number)
    for number, made in _errors.CLASSES.items():
        name = _c.status_name(number).decode()
        error = _errors.error(number, name, "text")
        assert (type(error), error.status, error.name, str(error)) == (made, number, name, "text")
        assert _c.STATUS[name.removeprefix("TAMIS_")] == number


def test_counters_subtract():
    a, b = tamis.Counters(calls=5, wall_nanoseconds=30), tamis.Counters(calls=2, wall_nanoseconds=10)
    assert a - b == tamis.Counters(calls=3, wall_nanoseconds=20)
    assert (a - b).wall_seconds == 20e-9


class Slow:
    """A call of some seconds on one thread: float32 attention by the portable kernels."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.ctx = tamis.Context(threads=1, isa="portable")
        self.q = rng.standard_normal((128, 16, 128)).astype(np.float32)
        self.key = rng.standard_normal((16384, 1, 128)).astype(np.float32)

    def run(self):
        return self.ctx.attend(self.q, self.key, self.key)


def test_cancel_from_another_thread_and_the_gil_is_free():
    slow, ticks, ended = Slow(), [], []

    def call():
        try:
            slow.run()
            ended.append(None)
        except tamis.CancelledError as error:
            ended.append(error)

    calling = threading.Thread(target=call)
    calling.start()
    for _ in range(20):  # this thread runs Python while the other one is inside the library
        time.sleep(0.005)
        ticks.append(calling.is_alive())
    while calling.is_alive():
        slow.ctx.cancel()
        time.sleep(0.001)
    calling.join()
    assert sum(ticks) >= 3
    assert isinstance(ended[0], tamis.CancelledError) and ended[0].name == "TAMIS_E_CANCELLED"
    assert slow.ctx.counters().calls == 0
    assert slow.ctx.select(*work(keys=50), 5).shape == (4, 5)  # later calls are not affected


def test_closing_while_a_call_runs_frees_nothing_under_it():
    slow, ended = Slow(), []
    slow.q = slow.q[:16]
    expected = slow.run()
    slow.ctx.trim()  # so that scratch memory shows when the call has begun
    calling = threading.Thread(target=lambda: ended.append(slow.run()))
    calling.start()
    while slow.ctx.bytes()[0] == 0 and calling.is_alive():
        time.sleep(0.001)
    handle = weakref.ref(slow.ctx._handle)
    slow.ctx.close()
    assert handle() is not None or not calling.is_alive()
    calling.join()
    assert np.array_equal(ended[0], expected) and handle() is None


def test_many_threads_share_a_context():
    q, w, key = work()
    with tamis.Context(threads=2) as ctx:
        keys = ctx.quantize(key, "i8")
        expected, results = ctx.select(q, w, keys, 50), []
        threads = [threading.Thread(target=lambda: results.extend(ctx.select(q, w, keys, 50) for _ in range(20)))
                   for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 80 and all(np.array_equal(result, expected) for result in results)
        assert ctx.counters("select").calls == 81


def test_errors_belong_to_their_thread():
    wrong = []

    def fail(column):
        for _ in range(200):
            try:
                tamis.project(np.zeros((2, column), np.float32), np.zeros((3, column + 1), np.float32))
            except tamis.ArgumentError as error:
                if str(column + 1) not in str(error):
                    wrong.append(str(error))

    threads = [threading.Thread(target=fail, args=(100 * i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def child_answer(ctx, cache_sequence, inputs):
    q, w, key = inputs
    chosen = ctx.select(q, w, key, 20)
    cache_sequence.extend(3)
    return chosen.tobytes(), len(cache_sequence)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_objects_work_after_os_fork():
    inputs = work()
    ctx = tamis.Context(threads=2)
    sequence = tamis.Cache(ctx, key_dim=16, value_dim=16, index_dim=16).sequence()
    sequence.extend(5)
    expected = ctx.select(*inputs, 20).tobytes()  # starts the workers that the child will not have
    for _ in range(3):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = 0 if child_answer(ctx, sequence, inputs) == (expected, 8) else 2
                sequence.close()
                ctx.close()
                os.write(writing, b"done")
            finally:
                os._exit(status)
        os.close(writing)
        text = os.read(reading, 10)
        os.close(reading)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and text == b"done"
    assert len(sequence) == 5 and ctx.select(*inputs, 20).tobytes() == expected


def in_a_process(how):
    return tamis.Context(threads=2).select(*work(how), 20).tobytes()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method):
    expected = [in_a_process(seed) for seed in range(3)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(in_a_process, range(3)) == expected


EXIT = """
import threading, atexit, numpy as np, tamis
ctx = tamis.Context(threads=2, log=lambda level, text: None)
cache = tamis.Cache(ctx)
sequence = cache.sequence(); sequence.extend(100); fork = sequence.fork()
x = np.ones((8192, 128), np.float32); q = np.ones((64, 8, 128), np.float32)
atexit.register(lambda: print(len(fork), ctx.counters().calls >= 0))
slow = tamis.Context(threads=2, isa="portable")
threading.Thread(target=lambda: [slow.attend(q, x[:, None], x[:, None]) for _ in range(100)], daemon=True).start()
loop = [ctx, cache, sequence]; loop.append(loop)
slow.project(x[:4], x[:4])
"""


def test_interpreter_exit_with_living_objects_and_a_running_thread():
    for _ in range(3):
        done = python(EXIT)
        assert (done.returncode, done.stdout, done.stderr) == (0, "100 True\n", "")


def test_nothing_is_printed_and_no_thread_is_started_by_importing():
    done = python("import os, tamis\nctx = tamis.Context()\nprint(len(os.listdir('/proc/self/task')))\n"
                  "import sys; assert 'torch' not in sys.modules and 'ml_dtypes' not in sys.modules",
                  OPENBLAS_NUM_THREADS="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_are_capped_by_the_argument(threads):
    done = python("import os, numpy as np, tamis\n"
                  f"with tamis.Context(threads={threads}) as ctx:\n"
                  "    x = np.ones((8192, 128), np.float32)\n"
                  "    ctx.attend(np.ones((64, 8, 128), np.float32), x[:, None], x[:, None])\n"
                  "    print(len(os.listdir('/proc/self/task')))", OPENBLAS_NUM_THREADS="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{threads}\n", "")


def test_symbols_stay_local():
    with pytest.raises(AttributeError):
        ctypes.CDLL(None).tamis_version


def test_a_missing_library_is_one_clear_error(tmp_path):
    package = tmp_path / "tamis"
    package.mkdir()
    for source in (ROOT / "bindings" / "python" / "tamis").glob("*.py"):
        (package / source.name).write_text(source.read_text())
    for library, text in (("", "libtamis.so was not found"), (str(tmp_path / "no.so"), "no.so): install a wheel")):
        done = python("import tamis", PYTHONPATH=str(tmp_path), TAMIS_LIBRARY=library)
        assert done.returncode == 1 and "ImportError" in done.stderr and text in done.stderr
    (package / "lib").mkdir()
    os.symlink(os.path.abspath(_c.library._name), package / "lib" / "libtamis.so.0")
    done = python("import tamis; print(tamis._c.library._name)", PYTHONPATH=str(tmp_path), TAMIS_LIBRARY="")
    assert done.stdout.strip() == str(package / "lib" / "libtamis.so.0")


def test_another_version_is_refused():
    class Function:
        def __init__(self, number):
            self.number, self.restype = number, None

        def __call__(self):
            return self.number

    class Library:
        def __init__(self, number):
            self.tamis_version = Function(number)

    assert _library.checked(Library(1 << 8 | 7), "x.so")
    with pytest.raises(ImportError, match="x.so is version 0.2, expected 0.1"):
        _library.checked(Library(2 << 8), "x.so")
    with pytest.raises(ImportError, match="is not libtamis"):
        _library.checked(object(), "x.so")


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow():
    q, w, key = work()
    room = np.empty((4, 8, 64), np.float32)

    def round_trip():
        with tamis.Context(threads=2, log=lambda level, text: None) as ctx:
            keys = ctx.quantize(key, "i8")
            chosen = ctx.select(q, w, keys, 100)
            ctx.attend(q, key[:, None], key[:, None], indices=chosen, out=room)
            with tamis.Cache(ctx, key_dim=64, value_dim=64, index_dim=64) as cache, cache.sequence() as sequence:
                sequence.extend(200)
                sequence.fork().truncate(3)
            for _ in range(10):
                with pytest.raises(tamis.ArgumentError):
                    ctx.select(q, w, key, 0)
                with pytest.raises(tamis.ArgumentError):
                    ctx.select(q, w[:1], key, 5)

    for _ in range(20):
        round_trip()
    gc.collect()
    before = resident()
    for _ in range(100):
        round_trip()
    gc.collect()
    assert resident() - before < 4 << 20


def test_handles_are_freed_with_their_objects():
    ctx = tamis.Context()
    cache = tamis.Cache(ctx)
    sequence = cache.sequence()
    sequence.extend(1000)
    assert cache.bytes()[0] > 0
    del sequence
    assert cache.bytes()[0] == 0
    fork = cache.sequence()
    fork.extend(10)
    del cache
    assert ctx.bytes()[0] > 0
    del fork
    ctx.trim()
    assert ctx.bytes()[0] == 0


def test_the_log_callback_is_called_with_text():
    heard = []
    with tamis.Context(threads=2, log=lambda level, text: heard.append((level, text))) as ctx:
        ctx.select(*work(), 10)
        handle = ctx._open()
        made = handle.needs[1]
        made(None, 2, "über".encode())  # as the library calls it
    assert heard[-1] == (2, "über") and all(level in (1, 2, 3) for level, _ in heard)
