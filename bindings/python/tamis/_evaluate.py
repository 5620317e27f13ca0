"""What a call that evaluates says: options, callbacks, token ids, samplers; and traces. Owns what those keep alive and
the exceptions of callbacks; `_model` and `_generate` make the calls."""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import _c
from ._context import INT32, UINT32, UINT64, Context, Handle, Owner
from ._errors import wrong
from ._tensors import integer, number, tensor

ATTENTION = {name[10:].lower(): number for name, number in _c.ATTENTION.items()}


class Trace(Owner):
    """Where answers look: the attention mass that traced tokens give to spans of positions, summed over tokens and
    layers. A token gives 1 in each layer, in and outside the spans together.

    ctx: whose memory it uses. spans: [(begin, end), ...] of positions, ascending and disjoint.
    layers: 0: summed over layers; the model's number of layers: a line for each.
    """

    def __init__(self, ctx: Context, spans: Any, *, layers: int = 0):
        self._handle = None
        bounds = np.ascontiguousarray(spans, np.int64)
        if bounds.ndim != 2 or bounds.shape[1] != 2 or not len(bounds):
            raise wrong(f"spans: has shape {list(bounds.shape)}, expected [n, 2], a begin and an end for each")
        pointer = bounds.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
        home, lines = ctx._open(), integer(layers, "layers", 0, UINT32)
        self._handle = Handle(
            _c.trace_free, lambda made: _c.trace_create(home.pointer, pointer, len(bounds), lines, made), home)
        self._shape = (layers, len(bounds)) if layers else (len(bounds),)

    @property
    def mass(self) -> np.ndarray:
        """float64 [spans], or [layers, spans]: sums of all calls so far."""
        handle, mass = self._open(), np.empty(self._shape)
        _c.trace_read(handle.pointer, mass.ctypes.data_as(ctypes.POINTER(ctypes.c_double)), None)
        return mass

    @property
    def tokens(self) -> int:
        """How many tokens gave it."""
        handle, tokens = self._open(), ctypes.c_uint64()
        _c.trace_read(handle.pointer, None, tokens)
        return tokens.value

    def clear(self) -> None:
        """Forgets what was traced."""
        handle = self._open()
        _c.trace_clear(handle.pointer)


class Options:
    """The tamis_eval_options of a call, what keeps them alive, and the exception of a callback."""

    def __init__(self, wanted: Mapping[str, Any], count: int, all_logits: bool = False):
        """wanted: attention, top_k, selected and trace as in Model.eval; count: sequences of the call."""
        unknown = set(wanted) - {"attention", "top_k", "selected", "trace"}
        if unknown:
            raise wrong(f"evaluation: has no option {', '.join(sorted(unknown))}")
        attention, top_k = wanted.get("attention", "automatic"), wanted.get("top_k", 0)
        selected, trace = wanted.get("selected"), wanted.get("trace")
        if attention not in ATTENTION:
            raise wrong(f"attention: {attention!r} is not one of {', '.join(ATTENTION)}")
        fields: dict[str, Any] = {"attention": ATTENTION[attention], "top_k": integer(top_k, "top_k", 0, UINT32),
                                  "all_logits": all_logits}
        self._failure: BaseException | None = None
        self._held: list[Any] = []
        if selected is not None:
            fields["selected"] = _c.Selected(self._hook(selected))
        if trace is not None:
            traces = [trace] if isinstance(trace, Trace) else list(trace)
            if len(traces) != count:
                raise wrong(f"trace: has {len(traces)} entries for {count} sequences")
            self._held = [None if one is None else one._open() for one in traces]
            fields["traces"] = (ctypes.c_void_p * count)(*(one and one.pointer for one in self._held))
        self.c = _c.EvalOptions(**fields)

    def _hook(self, selected: Callable[[int, int, int, np.ndarray], Any]) -> Callable[..., int]:
        def called(_user: Any, layer: int, number: int, first: int, rows: int, k: int, indices: Any) -> int:
            try:
                selected(layer, number, first, np.ctypeslib.as_array(indices, (rows, k)))
            except BaseException as failure:  # noqa: BLE001 - it goes on behind the C call
                self._failure = failure
                return 1
            return 0
        return called

    def run(self, call: Callable[[], Any]) -> Any:
        """The call; an exception of a callback takes the place of its own."""
        try:
            return call()
        except BaseException:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure from None
            raise


def sample(logits: Any, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0,
           draws: int = 0, ctx: Context | None = None) -> int:
    """A token drawn from logits float32 [vocabulary]: a pure function of the arguments. temperature 0: the best.
    draws: how many tokens were drawn with this seed before."""
    token = ctypes.c_int32()
    handle = None if ctx is None else ctx._open()
    _c.sample(handle and handle.pointer, tensor(logits, "logits"), sampler(temperature, top_k, top_p, seed),
              integer(draws, "draws", 0, UINT64), token)
    return token.value


def sampler(temperature: float, top_k: int, top_p: float, seed: int) -> _c.SamplerOptions:
    """tamis_sampler_options; a top_p of 0, which would mean its default there, is refused here."""
    share = number(top_p, "top_p")
    if not 0 < share <= 1:
        raise wrong(f"top_p: is {top_p}, expected above 0 and up to 1")
    return _c.SamplerOptions(temperature=number(temperature, "temperature"), top_k=integer(top_k, "top_k", 0, UINT32),
                             top_p=share, seed=integer(seed, "seed", 0, UINT64))


def as_tokens(tokens: Any) -> np.ndarray:
    """Token ids as int32 [n]: one integer, a list of them, or an integer array of any width."""
    ids = np.atleast_1d(np.asarray(tokens))
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise wrong(f"tokens: is {ids.dtype} {list(ids.shape)}, expected integers [n]")
    if len(ids) and not -INT32 - 1 <= int(ids.min()) <= int(ids.max()) <= INT32:
        raise wrong("tokens: an id is beyond 32 bits")
    return np.ascontiguousarray(ids, np.int32)


def int32s(array: np.ndarray) -> Any:
    """The array as int32_t *."""
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
