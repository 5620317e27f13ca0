"""What goes in and out: nothing is copied, every kind of array works, and what cannot be viewed is refused."""
import ctypes
import os
import pathlib
import subprocess
import sys
import tracemalloc
import types
import weakref

import numpy as np
import pytest
from numpy_reference import bf16_bits, close, from_bf16_bits

import tamis
from tamis import _tensors


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def address(x):
    return x.__array_interface__["data"][0]


def test_a_view_points_at_the_callers_memory(rng):
    x = normal(rng, 6, 4, 8)
    for array in (x, x[1:], x[::2], x[:, 1:3], x[..., :5], x[2:3]):
        t = _tensors.tensor(array, "x")
        assert t.data == address(array)
        assert tuple(t.shape[:3]) == array.shape
        steps = [stride // 4 for stride, size in zip(array.strides, array.shape) if size > 1]
        assert steps == [stride for stride, size in zip(t.stride, array.shape) if size > 1]


def test_strided_views_give_the_same_result(best, rng):
    x, q = normal(rng, 60, 2, 48), normal(rng, 4, 6, 48)
    key, value = x[::3, :, 8:40], x[::3, :, 40:]
    q = q[1::2, :, :32]
    copies = [array.copy() for array in (q, key, value)]
    assert np.array_equal(best.attend(q, key, value), best.attend(*copies))


def test_large_inputs_are_not_copied(best, rng):
    key = normal(rng, 40000, 128)
    strided = key[::2, :64]
    q, w, out = normal(rng, 1, 2, 64), normal(rng, 1, 2), np.empty((1, 16), np.int32)
    best.select(q, w, strided, 16, out=out)
    tracemalloc.start()
    best.select(q, w, strided, 16, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000  # numpy reports its arrays to tracemalloc; the keys are 5 MB


def test_results_go_to_out(best, rng):
    q, w, key = normal(rng, 2, 4, 32), normal(rng, 2, 4), normal(rng, 60, 32)
    room = np.full((2, 3, 9), -7, np.int32)
    out = room[:, 1]
    assert best.select(q, w, key, 9, out=out) is out
    assert np.array_equal(out, best.select(q, w, key, 9))
    assert (room[:, [0, 2]] == -7).all()
    half = np.empty((2, 4, 32), np.float16)
    assert best.attend(q, key[:, None], key[:, None], out=half) is half
    assert np.array_equal(half, best.attend(q, key[:, None], key[:, None]).astype(np.float16))


def test_an_object_with_an_array_interface(best, rng):
    x = normal(rng, 3, 8)
    wrapped = types.SimpleNamespace(__array_interface__=x.__array_interface__)
    close(best.project(wrapped, x), x @ x.T, 1e-5)


class OnlyDLPack:
    """An array of another library."""

    def __init__(self, array, device=1):
        self.array, self.device = array, device

    @property
    def shape(self):
        return self.array.shape

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, **_):
        return self.array.__dlpack__()


def test_dlpack_is_used_in_place_and_given_back(best, rng):
    x = normal(rng, 6, 2, 16)
    strided = x[::2, 1, :8]
    t = _tensors.tensor(OnlyDLPack(strided), "x")
    assert t.data == address(strided) and list(t.stride[:2]) == [64, 1]
    del t
    before = sys.getrefcount(x)
    for _ in range(100):
        best.project(OnlyDLPack(strided), OnlyDLPack(x[:, 0, :8]))
    assert sys.getrefcount(x) == before
    close(best.project(OnlyDLPack(strided), x[:, 0, :8]), strided @ x[:, 0, :8].T, 1e-5)
    out = np.zeros((3, 6), np.float32)
    best.project(strided, x[:, 0, :8], out=OnlyDLPack(out))
    close(out, strided @ x[:, 0, :8].T, 1e-5)


class Capsule:
    """A DLPack producer made by hand: what numpy and torch never export."""

    def __init__(self, array, shape, strides, code, bits, offset=0, lanes=1):
        self.array, self.shape = array, shape
        axes = ctypes.c_int64 * len(shape)
        self.managed = _tensors.DLTensor(array.ctypes.data, 1, 0, len(shape), code, bits, lanes, axes(*shape),
                                         axes(*strides) if strides else None, offset)
        self.new = ctypes.pythonapi.PyCapsule_New
        self.new.restype, self.new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self):
        return self.new(ctypes.addressof(self.managed), b"dltensor", None)


def test_every_field_of_dlpack(best):
    bits = np.arange(1, 25, dtype=np.uint16) << 8
    given = Capsule(bits, (2, 3), (8, 1), code=4, bits=16, offset=4)  # bfloat16, 2 elements in
    expected = from_bf16_bits(bits[2:].reshape(-1)[[[0, 1, 2], [8, 9, 10]]])
    assert np.array_equal(best.dequantize(given), expected)
    given = Capsule(bits, (2, 3), None, code=4, bits=16)  # no strides: row major
    assert np.array_equal(best.dequantize(given), from_bf16_bits(bits[:6].reshape(2, 3)))
    for wrong in ({"code": 4, "bits": 16, "lanes": 2}, {"code": 5, "bits": 64}, {"code": 2, "bits": 64}):
        with pytest.raises(tamis.ArgumentError, match="x: dtype .* is not one of"):
            best.dequantize(Capsule(bits, (1, 1), None, **wrong))


def test_what_dlpack_lends_is_held_during_the_call(rng):
    class Array(np.ndarray):
        """One that can be watched."""

    class Lender(OnlyDLPack):
        """Lends a copy that nobody else holds."""

        def __dlpack__(self, **_):
            copy = self.array.copy().view(Array)
            self.watched = weakref.ref(copy)
            return copy.__dlpack__()

    lender = Lender(normal(rng, 3, 4))
    t = _tensors.tensor(lender, "x")
    assert lender.watched() is not None and t.data == address(lender.watched())
    del t
    assert lender.watched() is None


def test_ml_dtypes_are_understood_without_being_needed(best, rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = normal(rng, 4, 8)
    assert np.array_equal(best.dequantize(x.astype(ml_dtypes.bfloat16)), from_bf16_bits(bf16_bits(x)))
    assert np.array_equal(best.dequantize(x.astype(ml_dtypes.float8_e4m3fn)), x.astype(ml_dtypes.float8_e4m3fn)
                          .astype(np.float32))


def test_importing_needs_neither_torch_nor_ml_dtypes():
    program = "import sys; sys.modules.update(torch=None, ml_dtypes=None, transformers=None); import tamis"
    package = str(pathlib.Path(tamis.__file__).parents[1])
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": package})


def test_torch_tensors(best, rng):
    torch = pytest.importorskip("torch")
    x = normal(rng, 50, 1, 32)
    latent = torch.from_numpy(x).to(torch.bfloat16)
    q = torch.from_numpy(normal(rng, 2, 4, 32)).to(torch.bfloat16)
    t = _tensors.tensor(latent, "key")
    assert t.data == latent.data_ptr() and t.dtype == 3
    view = latent[..., :16]
    assert _tensors.tensor(view, "value").data == latent.data_ptr()
    bits = [array.view(torch.int16).numpy().view(np.uint16) for array in (q, latent)]
    from_numpy = best.attend(tamis.Quantized(bits[0], "bf16"), tamis.Quantized(bits[1], "bf16"),
                             tamis.Quantized(bits[1], "bf16")[..., :16])
    assert np.array_equal(best.attend(q, latent, view), from_numpy)
    out = torch.empty((2, 4, 16), dtype=torch.float32)
    assert best.attend(q, latent, view, out=out) is out
    assert np.array_equal(out.numpy(), from_numpy)
    with pytest.raises(tamis.ArgumentError, match="x: cannot be shared through DLPack"):
        best.dequantize(torch.zeros(3, 4, requires_grad=True))
    with pytest.raises(tamis.ArgumentError, match="last axis is not contiguous"):
        best.dequantize(latent[:, 0].t())


def test_torch_int8_with_scales(best, rng):
    torch = pytest.importorskip("torch")
    made = best.quantize(normal(rng, 30, 64), "i8")
    both = tamis.Quantized(torch.from_numpy(made.data), "i8", torch.from_numpy(made.scale))
    q, w = normal(rng, 1, 4, 64), normal(rng, 1, 4)
    assert np.array_equal(best.select(q, w, both, 5), best.select(q, w, made, 5))


def test_torch_fp8(best, rng):
    torch = pytest.importorskip("torch")
    made = best.quantize(normal(rng, 30, 64), "f8e4m3")
    native = torch.from_numpy(made.data).view(torch.float8_e4m3fn)
    both = tamis.Quantized(native, "f8e4m3", torch.from_numpy(made.scale))
    assert np.array_equal(best.dequantize(both), best.dequantize(made))
    assert np.array_equal(best.dequantize(native), native.float().numpy())


def test_quantized_slices_are_views(best, rng):
    key = best.quantize(normal(rng, 20, 32), "i8", block=16)
    part = key[5:9]
    assert address(part.data) == address(key.data) + 5 * 32 and address(part.scale) == address(key.scale) + 5 * 8
    assert np.array_equal(best.dequantize(part), best.dequantize(key)[5:9])
    flat = tamis.Quantized(key.data, "i8", np.ones(20, np.float32))
    assert np.array_equal(best.dequantize(flat[2:4]), key.data[2:4].astype(np.float32))
    assert len(key) == 20 and part.shape == (4, 32)


def test_broadcast_and_empty_arrays(best, rng):
    row = normal(rng, 1, 8)
    same = np.broadcast_to(row, (5, 8))  # stride 0 is a legal input
    assert np.array_equal(best.dequantize(same), same)
    assert best.dequantize(np.empty((0, 8), np.float32)).shape == (0, 8)
    everywhere = np.broadcast_to(np.float32(1), (3, 4))  # all strides 0 would mean "row major" in C
    with pytest.raises(tamis.ArgumentError, match="last axis is not contiguous"):
        best.dequantize(everywhere)
    single = np.lib.stride_tricks.as_strided(row, (1, 1), (0, 0))
    assert best.dequantize(single) == row[0, 0]


X = np.zeros((4, 8), np.float32)
BAD = {
    "a list": (lambda: [[1.0]], "x: is list, expected a numpy array"),
    "None": (lambda: None, "x: is NoneType"),
    "float64": (lambda: X.astype(np.float64), "x: dtype float64 is not one of"),
    "raw bits": (lambda: X.astype(np.uint16), "raw bits need tamis.Quantized"),
    "complex": (lambda: X.astype(np.complex64), "x: dtype complex64"),
    "byte order": (lambda: X.astype(">f4"), "x: has foreign byte order"),
    "transposed": (lambda: X.T, "x: the last axis is not contiguous"),
    "reversed": (lambda: X[::-1], "x: stride -32 bytes of axis 0 is negative"),
    "every second": (lambda: X[:, ::2], "x: the last axis is not contiguous"),
    "0 axes": (lambda: np.float32(1).reshape(()), "x: ndim is 0"),
    "5 axes": (lambda: np.zeros((1, 1, 1, 1, 1), np.float32), "x: ndim is 5"),
    "record field": (lambda: np.zeros((4, 3), [("a", "f4"), ("b", "i1")])["a"], "x: the last axis is not contiguous"),
    "misaligned": (lambda: np.zeros(4 * 8 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(4, 8), "not aligned to 4"),
    "another device": (lambda: OnlyDLPack(X, device=2), "x: lies on another device"),
    "wrong tag": (lambda: tamis.Quantized(X, "bf16"), "x: an array of float32 cannot be 'bf16'"),
    "unknown tag": (lambda: tamis.Quantized(X, "fp4"), "x: an array of float32 cannot be 'fp4'"),
    "scale dtype": (lambda: tamis.Quantized(X.astype(np.int8), "i8", np.ones(4)), r"x.scale: is float64 \[4\]"),
    "scale shape": (lambda: tamis.Quantized(X.astype(np.int8), "i8", np.ones(3, np.float32)),
                    r"x.scale: is float32 \[3\], expected float32 \[4, 1\]"),
    "scale blocks": (lambda: tamis.Quantized(X.astype(np.int8), "i8", np.ones((4, 1), np.float32), block=4),
                     r"expected float32 \[4, 2\]"),
    "scale gaps": (lambda: tamis.Quantized(X.astype(np.int8), "i8", np.ones(8, np.float32)[::2]),
                   "x.scale: is not contiguous"),
    "token bytes": (lambda: tamis.Quantized(np.zeros((4, 655), np.uint8), "mla656"), "mla656 has shape"),
    "page bytes": (lambda: tamis.Quantized(np.zeros((4, 132), np.uint8), "index132"), "index132 has contiguous bytes"),
    "page rows": (lambda: tamis.Quantized(np.zeros((1, 8448), np.uint8), "index132", rows=65), "rows is 65"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_viewed_is_refused(best, case):
    make, text = BAD[case]
    with pytest.raises(tamis.ArgumentError, match=text) as raised:
        best.dequantize(make(), out=np.empty((4, 8), np.float32))
    assert isinstance(raised.value, ValueError) and raised.value.status == -1
    assert best.counters().calls == 0


def test_read_only_outputs_are_refused(best):
    out = np.empty((4, 8), np.float32)
    out.flags.writeable = False
    with pytest.raises(tamis.ArgumentError, match="out: is read-only"):
        best.dequantize(X, out=out)
    frozen = X.copy()
    frozen.flags.writeable = False
    assert best.dequantize(frozen).shape == X.shape  # inputs may be


def test_no_silent_integer_overflow(best):
    scores = np.zeros((1, 8), np.float32)
    for k in (0, -1, 2**32 + 1, 2.5, None):
        with pytest.raises(tamis.ArgumentError, match="k: is"):
            best.topk(scores, k)
    for threads in (-1, 2**32):
        with pytest.raises(tamis.ArgumentError, match="threads: is"):
            tamis.Context(threads=threads)


def test_the_librarys_own_refusals_come_through(best, rng):
    q, w, key = normal(rng, 2, 4, 32), normal(rng, 2, 4), normal(rng, 60, 32)
    for call, text in [
        (lambda: best.select(q, w, key[:, :16], 4), "^tamis_select: "),
        (lambda: best.select(q, w[:1], key, 4), "^tamis_select: w"),
        (lambda: best.attend(q, key[:, None], key[:, None], indices=np.array([[60], [0]], np.int32)),
         "^tamis_attend: indices"),
        (lambda: best.attend(q, key[:, None]), "^tamis_attend: value is NULL"),
        (lambda: best.dequantize(key, out=key), "^tamis_dequantize: out: shares memory with x"),
        (lambda: best.quantize(np.full((1, 4), np.nan, np.float32), "i8"), "^tamis_quantize: "),
        (lambda: tamis.Context(isa="avx1024"), "^tamis_ctx_create: "),
    ]:
        with pytest.raises(tamis.ArgumentError, match=text) as raised:
            call()
        assert raised.value.name == "TAMIS_E_ARGUMENT" and "\n" not in str(raised.value)
    with pytest.raises(tamis.ArgumentError, match="visible: is int64"):
        best.select(q, w, key, 4, visible=np.array([1, 2]))
    with pytest.raises(tamis.ArgumentError, match="visible: is 'some'"):
        best.select(q, w, key, 4, visible="some")
    with pytest.raises(tamis.ArgumentError, match=r"sink: is float32 \[3\], expected contiguous float32 \[4\]"):
        best.attend(q, key[:, None], key[:, None], sink=np.zeros(3, np.float32))
