"""Views of the caller's arrays as tamis_tensor, without copies. Owns what an array is: numpy arrays, anything with
`__dlpack__` (torch, JAX) or `__array_interface__`, and `Quantized` for what numpy has no dtype for. Refuses what a
view cannot express (other devices, other byte orders, a last axis with gaps) instead of copying it."""
from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from . import _c
from ._errors import wrong

# The array that holds a dtype of tamis when the library's caller did not bring one.
STORAGE = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "f8e4m3": np.uint8, "i8": np.int8,
           "i32": np.int32, "mla656": np.uint8, "index132": np.uint8}
# numpy's names of element types that need no tag (the last two are ml_dtypes').
NATIVE = {"float32": "f32", "float16": "f16", "int8": "i8", "int32": "i32", "bfloat16": "bf16",
          "float8_e4m3fn": "f8e4m3"}
# The element types in which an array of each dtype may come.
KINDS = {dtype: {np.dtype(storage).name} | {kind for kind, native in NATIVE.items() if native == dtype}
         for dtype, storage in STORAGE.items()}
# DLPack's (type code, bits).
DLPACK = {(2, 32): "float32", (2, 16): "float16", (0, 8): "int8", (0, 32): "int32", (4, 16): "bfloat16",
          (10, 8): "float8_e4m3fn", (1, 8): "uint8", (1, 16): "uint16"}
ITEMSIZE = {"float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "uint16": 2, "int8": 1, "uint8": 1,
            "float8_e4m3fn": 1}


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized:
    """An array whose element type numpy cannot name, with its scales: the view that operators take.

    data: the raw array. "bf16": uint16; "f8e4m3": uint8; "i8": int8; "f16", "f32": float16, float32;
        "mla656": uint8 [m, 656] or [m, 1, 656]; "index132": uint8 [pages, block * 132].
    dtype: one of those names.
    scale: float32, C-contiguous, [leading axes, ceil(last / block)] ("f8e4m3" and "i8"), or None: 1.
    block: elements of the last axis that share a scale, 0 for all of them; "index132": tokens in a page, 0 for 64.
    rows: tokens of an "index132" array, None: as many as its pages hold.

    Nothing is copied or checked here; operators check when they are called. Slicing along leading axes
    (`key[:100]`), and of the last axis when there is no scale (`latent[..., :512]`), gives a view.
    """

    data: Any
    dtype: str
    scale: Any = None
    block: int = 0
    rows: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that operators see: "mla656" has 576 numbers in a row, "index132" 128."""
        shape = tuple(self.data.shape)
        if self.dtype == "mla656":
            return (*shape[:-1], 576)
        if self.dtype == "index132":
            return (self.rows if self.rows is not None else math.prod(shape) // 132, 128)
        return shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Quantized:
        if self.dtype in ("mla656", "index132"):
            raise wrong(f"Quantized: {self.dtype} cannot be sliced; slice its bytes")
        if self.scale is None:
            return dataclasses.replace(self, data=self.data[key])
        data = self.data[key]
        if len(data.shape) == 0 or data.shape[-1] != self.data.shape[-1]:
            raise wrong("Quantized: the last axis of an array with scales cannot be sliced")
        scale = self.scale
        if len(scale.shape) < len(self.data.shape):
            scale = scale[..., None]
        return dataclasses.replace(self, data=data, scale=scale[key])


@dataclasses.dataclass
class View:
    """Where an array lies: strides in bytes; `owner` keeps the memory alive."""

    address: int
    kind: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    writable: bool
    owner: Any


class DLTensor(ctypes.Structure):
    """DLPack's tensor, the beginning of what a "dltensor" capsule points to."""

    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype, capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def view(array: Any, name: str) -> View:
    """An array of any accepted kind."""
    if not isinstance(array, np.ndarray):
        if hasattr(array, "__dlpack__"):
            return dlpack_view(array, name)
        if not hasattr(array, "__array_interface__"):
            raise wrong(f"{name}: is {type(array).__name__}, expected a numpy array, tamis.Quantized, or an object "
                        "with __dlpack__ or __array_interface__")
        array = np.asarray(array)
    if not array.dtype.isnative:
        raise wrong(f"{name}: has foreign byte order")
    address = array.__array_interface__["data"][0]
    return View(address, kind_name(array.dtype), array.shape, array.strides, array.flags.writeable, array)


@functools.lru_cache(64)
def kind_name(dtype: np.dtype) -> str:
    """numpy's name of an element type, which it computes anew each time."""
    return dtype.name


def dlpack_view(array: Any, name: str) -> View:
    """Anything that speaks DLPack, such as a torch tensor. Its capsule is only looked at: dropping it gives it back."""
    device = array.__dlpack_device__()[0]
    if device != 1:
        raise wrong(f"{name}: lies on another device (DLPack type {int(device)}), expected CPU memory")
    try:
        capsule = array.__dlpack__()
    except Exception as problem:
        raise wrong(f"{name}: cannot be shared through DLPack: {problem}") from problem
    t = DLTensor.from_address(capsule_pointer(capsule, b"dltensor"))
    kind = DLPACK.get((t.code, t.bits), f"DLPack type {t.code} of {t.bits} bits") if t.lanes == 1 else "a vector type"
    shape = tuple(t.shape[i] for i in range(t.ndim))
    itemsize = t.bits // 8
    if t.strides:
        strides = tuple(t.strides[i] * itemsize for i in range(t.ndim))
    else:
        strides = tuple(math.prod(shape[i + 1:]) * itemsize for i in range(t.ndim))
    return View((t.data or 0) + t.byte_offset, kind, shape, strides, True, (array, capsule))


def tensor(array: Any, name: str, output: bool = False) -> _c.Tensor:
    """The tamis_tensor of an argument; it holds on to the memory. Raises ArgumentError."""
    given = array if isinstance(array, Quantized) else None
    seen = view(array if given is None else given.data, name)
    dtype = NATIVE.get(seen.kind) if given is None else given.dtype
    if dtype is None:
        raise wrong(f"{name}: dtype {seen.kind} is not one of {', '.join(NATIVE)}; raw bits need tamis.Quantized")
    if seen.kind not in KINDS.get(dtype, ()):
        raise wrong(f"{name}: an array of {seen.kind} cannot be {dtype!r}")
    if output and not seen.writable:
        raise wrong(f"{name}: is read-only")
    made = _c.Tensor(data=seen.address or None, dtype=_c.DTYPE[dtype.upper()])
    made.owner = [seen.owner]
    if dtype == "index132":
        set_pages(made, seen, given, name)
    else:
        set_axes(made, seen, name, 576 if dtype == "mla656" else None)
        if given is not None and given.scale is not None:
            set_scale(made, seen.shape, given, name, output)
    return made


def set_axes(made: _c.Tensor, seen: View, name: str, packed: int | None) -> None:
    """Shape and strides in elements. `packed`: the numbers in a row whose elements are bytes (mla656)."""
    rank, itemsize = len(seen.shape), ITEMSIZE[seen.kind]
    if not 1 <= rank <= 4:
        raise wrong(f"{name}: ndim is {rank}, expected 1 to 4")
    made.ndim = rank
    made.shape[:rank] = seen.shape
    dense = 1
    for axis in reversed(range(rank)):
        size, stride = seen.shape[axis], seen.strides[axis]
        if size <= 1 or 0 in seen.shape:  # never stepped over: any stride means the same
            made.stride[axis] = dense
        else:
            if axis == rank - 1 and stride != itemsize:
                raise wrong(f"{name}: the last axis is not contiguous (stride {stride} bytes); nothing is copied "
                            "silently, so pass numpy.ascontiguousarray of it")
            if stride < 0 or stride % itemsize:
                raise wrong(f"{name}: stride {stride} bytes of axis {axis} is negative or not a multiple of {itemsize}")
            made.stride[axis] = stride // itemsize
        dense = made.stride[axis] * max(size, 1)
    if packed is not None:
        if seen.shape[-1] != 656:
            raise wrong(f"{name}: mla656 has shape [m, 656] or [m, 1, 656] in bytes")
        made.shape[rank - 1] = packed


def set_pages(made: _c.Tensor, seen: View, given: Quantized | None, name: str) -> None:
    """Pages of index132: bytes [pages, block * 132] as [rows, 128]."""
    block = (given.block if given else 0) or 64
    if len(seen.shape) != 2 or seen.shape[1] != block * 132 or (seen.shape[1] and seen.strides[1] != 1):
        raise wrong(f"{name}: index132 has contiguous bytes [pages, {block} * 132], not {list(seen.shape)}")
    capacity = seen.shape[0] * block
    rows = capacity if given is None or given.rows is None else given.rows
    if not 0 <= rows <= capacity:
        raise wrong(f"{name}: rows is {rows}, but the pages hold 0 to {capacity}")
    made.ndim, made.block = 2, block
    made.shape[:2] = rows, 128
    made.stride[0] = seen.strides[0] if seen.shape[0] > 1 else 0


def set_scale(made: _c.Tensor, shape: tuple[int, ...], given: Quantized, name: str, output: bool) -> None:
    """One float for each block; the C library cannot know how many there are, so they are counted here."""
    seen = view(given.scale, f"{name}.scale")
    blocks = -(-shape[-1] // given.block) if given.block > 0 else 1
    wanted = (*shape[:-1], blocks)
    if seen.kind != "float32" or seen.shape not in (wanted, wanted[:-1] if blocks == 1 else wanted):
        raise wrong(f"{name}.scale: is {seen.kind} {list(seen.shape)}, expected float32 {list(wanted)}")
    if not row_major(seen):
        raise wrong(f"{name}.scale: is not contiguous")
    if output and not seen.writable:
        raise wrong(f"{name}.scale: is read-only")
    made.scale = ctypes.cast(ctypes.c_void_p(seen.address), ctypes.POINTER(ctypes.c_float))
    made.block = given.block
    made.owner.append(seen.owner)


def row_major(seen: View) -> bool:
    """Are there no gaps between the elements?"""
    dense = ITEMSIZE[seen.kind]
    for size, stride in zip(reversed(seen.shape), reversed(seen.strides)):
        if size > 1 and stride != dense:
            return 0 in seen.shape
        dense *= size
    return True


def optional(array: Any, name: str, output: bool = False) -> _c.Tensor | None:
    """The same, where None means that the caller does not have or want it."""
    return None if array is None else tensor(array, name, output)


def vector(array: Any, name: str, kind: str, length: int) -> tuple[Any, Any]:
    """(pointer, owner) of a contiguous array [length], such as `visible` or `sink`."""
    seen = view(array, name)
    if seen.kind != kind or seen.shape != (length,) or not row_major(seen):
        raise wrong(f"{name}: is {seen.kind} {list(seen.shape)}, expected contiguous {kind} [{length}]")
    pointer = ctypes.c_int32 if kind == "int32" else ctypes.c_float
    return ctypes.cast(ctypes.c_void_p(seen.address), ctypes.POINTER(pointer)), seen.owner


def shape_of(array: Any, name: str, rank: int | None = None) -> tuple[int, ...]:
    """The shape of an input that decides the shape of a new output."""
    shape = getattr(array, "shape", None)
    if shape is None:
        shape = view(array, name).shape
    if rank is not None and len(shape) != rank:
        raise wrong(f"{name}: ndim is {len(shape)}, expected {rank}")
    return tuple(shape)


def integer(value: Any, name: str, low: int, high: int) -> int:
    """A Python integer that fits the C field; ctypes itself would cut it silently."""
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong(f"{name}: is {type(value).__name__}, expected an integer") from None
    if not low <= number <= high:
        raise wrong(f"{name}: is {number}, expected {low} to {high}")
    return number


def number(value: Any, name: str) -> float:
    """A Python float."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong(f"{name}: is {value!r:.40}, expected a number") from None


def strings(values: Any, name: str) -> list[str]:
    """A list of texts, and not one text, which is a sequence of texts too."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise wrong(f"{name}: is a {type(values).__name__}, expected a list of texts")
    texts = list(values)
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong(f"{name}[{at}]: is {type(text).__name__}, expected str")
    return texts
