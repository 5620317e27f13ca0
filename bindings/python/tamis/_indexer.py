"""Lightning indexers for attentions that never had one: capture what an attention does, fit an indexer to it, see how
much of it k keys capture. Owns handles and shapes; the C library checks, learns and measures."""
from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import _c
from ._context import INT32, UINT32, UINT64, Context, Handle, Owner, new_or
from ._errors import CancelledError, wrong
from ._tensors import integer, optional, shape_of, tensor, vector

WARNINGS = {"few sequences": _c.WARN["WARN_FEW_SEQUENCES"], "few rows": _c.WARN["WARN_FEW_ROWS"],
            "nothing learnt": _c.WARN["WARN_NOTHING_LEARNT"]}


def named_warnings(bits: int) -> tuple[str, ...]:
    return tuple(name for name, bit in WARNINGS.items() if bits & bit)


@dataclasses.dataclass(frozen=True)
class FitReport:
    """What a fit did. Losses: mean divergence from the attention in nats, over the first and the last sixteenth of the
    steps. flops: of the steps' matrix products. warnings: "few sequences" (below 8), "few rows" (below 1,024), "nothing
    learnt" (no nearer to the attention than equal shares for all keys). closed_start: it began in closed form."""

    steps: int
    sequences: int
    rows: int
    first_loss: float
    last_loss: float
    seconds: float
    flops: float
    warnings: tuple[str, ...]
    closed_start: bool = False


@dataclasses.dataclass(frozen=True)
class MassAt:
    """The attention mass (1: all of it) that k keys capture, mean over rows: the attention's own best k (oracle), the
    indexer's, the nearest (recency), k at random (expected); recall: the share of the oracle's keys that the indexer
    chooses."""

    k: int
    oracle: float
    indexer: float
    recency: float
    random: float
    recall: float


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """How sparse an attention is and how much of it an indexer finds. divergence: mean, in nats. oracle_k, indexer_k:
    the smallest k that captures `mass` on average. Captured mass is no measure of a model's answers."""

    sequences: int
    rows: int
    divergence: float
    mass: float
    oracle_k: int
    indexer_k: int
    at: tuple[MassAt, ...]
    warnings: tuple[str, ...]
    text: str = dataclasses.field(repr=False)

    def json(self) -> str:
        """One JSON object."""
        return self.text

    def __str__(self) -> str:
        lines = ["     k  oracle indexer recency  random  recall"]
        lines += [f"{at.k:6} {at.oracle:7.3f} {at.indexer:7.3f} {at.recency:7.3f} {at.random:7.3f} {at.recall:7.3f}"
                  for at in self.at]
        lines.append(f"mass {self.mass:g} takes {self.oracle_k} keys, by the indexer {self.indexer_k}; {self.rows} "
                     f"rows of {self.sequences} sequences, divergence {self.divergence:.3f} nats")
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


class Capture(Owner):
    """What a host model's layer does, a sequence at a time: hidden states, query features, attention.

    ctx: where the copies live; None: a context of its own. One thread at a time (BusyError).
    """

    def __init__(self, ctx: Context | None = None):
        self._handle = None
        self._ctx = Context() if ctx is None else ctx
        home = self._ctx._open()
        self._handle = Handle(_c.capture_free, lambda made: _c.capture_create(home.pointer, made), home)
        self._sizes: tuple[int, int] | None = None

    def add(self, x: Any, attention: Any = None, *, r: Any = None, q: Any = None, key: Any = None,
            positions: Any = None, softmax_scale: float | None = None, visible: str | None = None) -> None:
        """Copies one sequence of m tokens of which n rows are queries; float32, float16 or bfloat16.

        x [m, width]: what the attention reads. r [n, features]: what index queries are made from; None: x of the rows.
        attention [n, m] or [H, n, m]: probabilities, each row summing to 1 over what it sees; or q [n, H, e] and
        key [m, g, e] after their rope, from which they are computed when needed and never stored; softmax_scale
        None: 1 / sqrt(e). positions int32 [n]: where the rows are; None: row i is position i.
        visible: None: each row sees the tokens up to its own; "all": every row sees all.
        """
        if visible not in (None, "all"):
            raise wrong(f"visible: is {visible!r}, expected None or 'all'")
        handle, options, alive = self._open(), _c.CaptureOptions(all_visible=visible == "all"), []
        for name, array, field in (("q", q, "queries"), ("key", key, "keys")):
            if array is not None:
                alive.append(tensor(array, name))
                setattr(options, field, ctypes.pointer(alive[-1]))
        if softmax_scale is not None:
            options.softmax_scale = softmax_scale
        if positions is not None:
            rows = shape_of(attention, "attention")[-2] if attention is not None else shape_of(q, "q", 3)[0]
            options.positions, owner = vector(positions, "positions", "int32", rows)
            alive.append(owner)
        _c.capture_add(handle.pointer, tensor(x, "x"), optional(r, "r"), optional(attention, "attention"), options)
        width = shape_of(x, "x", 2)[1]
        self._sizes = (width, width if r is None else shape_of(r, "r", 2)[1])

    def size(self) -> tuple[int, int, int]:
        """Sequences, query rows and bytes held."""
        handle, found = self._open(), [ctypes.c_uint64() for _ in range(3)]
        _c.capture_size(handle.pointer, *found)
        return tuple(each.value for each in found)


class Indexer(Owner):
    """One layer's lightning indexer, with random parameters until it is fitted or loaded.

    width, features: of x and r (features None: width). heads, dim: of the index queries; dim also of the key, a
    multiple of 16. rope_dim: the first dims, turned with the position, None: half of dim, 0: none. rope_frequencies:
    float32 [rope_dim / 2], radians for each position; None: from rope_base. One thread at a time (BusyError).
    """

    def __init__(self, width: int, features: int | None = None, *, ctx: Context | None = None, heads: int = 4,
                 dim: int = 64, rope_dim: int | None = None, rope_base: float = 10000.0, rope_frequencies: Any = None,
                 seed: int = 0):
        self._handle = None
        options, _alive = rope_options(rope_dim, rope_base, rope_frequencies, dim)
        options.width = integer(width, "width", 1, UINT32)
        options.features = 0 if features is None else integer(features, "features", 1, UINT32)
        options.heads = integer(heads, "heads", 1, UINT32)
        options.dim = integer(dim, "dim", 1, UINT32)
        options.seed = integer(seed, "seed", 0, UINT64)
        self._made(ctx, lambda home, made: _c.indexer_create(home.pointer, options, made))

    def _made(self, ctx: Context | None, create: Callable[[Handle, Any], None]) -> None:
        self._ctx = Context() if ctx is None else ctx
        home = self._ctx._open()
        self._handle = Handle(_c.indexer_free, lambda made: create(home, made), home)
        info = _c.IndexerOptions()
        _c.indexer_info(self._handle.pointer, info)
        self.width, self.features, self.heads, self.dim = info.width, info.features, info.heads, info.dim
        self.rope_dim = max(info.rope_dim, 0)

    @classmethod
    def load(cls, path: str | os.PathLike[str], prefix: str = "", *, ctx: Context | None = None,
             rope_dim: int | None = None, rope_base: float = 10000.0, rope_frequencies: Any = None) -> Indexer:
        """From a safetensors file with DeepSeek-V3.2's names behind `prefix`, such as
        "model.layers.0.self_attn.indexer."; what rotary positions it was made with is not in the file."""
        options, _alive = rope_options(rope_dim, rope_base, rope_frequencies, None)
        made = cls.__new__(cls)
        made._handle = None
        made._made(ctx, lambda home, to: _c.indexer_load(
            home.pointer, os.fsencode(path), prefix.encode(), options, to))
        return made

    def save(self, path: str | os.PathLike[str], prefix: str = "") -> None:
        """Writes a safetensors file of this indexer alone; `save_indexers` writes those of many layers."""
        save_indexers(path, {prefix: self})

    def project(self, x: Any, r: Any = None, *, positions: Any = None) -> tuple[Any, Any, Any]:
        """(q [n, heads, dim], w [n, heads], key [n, dim]), float32, as `select` takes them. x [n, width]; r
        [n, features], None: x; positions int32 [n], None: 0, 1, ..."""
        handle, n = self._open(), shape_of(x, "x", 2)[0]
        where, _alive = (None, None) if positions is None else vector(positions, "positions", "int32", n)
        q, w, key = (new_or(None, shape) for shape in ((n, self.heads, self.dim), (n, self.heads), (n, self.dim)))
        _c.indexer_project(handle.pointer, tensor(x, "x"), optional(r, "r"), where, tensor(q, "q", True),
                           tensor(w, "w", True), tensor(key, "key", True))
        return q, w, key

    def fit(self, capture: Capture, *, steps: int = 400, rows: int = 128, learning_rate: float = 0.01,
            selected: int = 0, seed: int = 0, on_step: Callable[[int, int, float], Any] | None = None,
            random_start: bool = False) -> FitReport:
        """Learns the captured attention. rows: query rows of a step. selected: 0: over everything a row sees; k: over
        the k keys that the indexer chooses (DeepSeek-V3.2's sparse stage). on_step(step, steps, loss): after each
        step; a true result stops the fit (CancelledError), an exception stops it and is raised. A fit that fails,
        diverges (ArgumentError) or is stopped leaves the indexer as it was; a second one goes on from the first.
        random_start: an indexer that has learnt nothing yet begins with its random parameters; otherwise in closed
        form (docs/indexer.md) where it has two heads, unturned dims and no more than 8,192 inputs."""
        handle, shown, raised = self._open(), capture._open(), []

        def step(_user: Any, number: int, count: int, loss: float) -> int:
            try:
                return bool(on_step(number, count, loss))
            except BaseException as problem:
                raised.append(problem)
                return 1

        report = _c.FitReport()
        options = _c.FitOptions(
            steps=integer(steps, "steps", 1, UINT32), rows=integer(rows, "rows", 1, UINT32),
            learning_rate=learning_rate, selected=integer(selected, "selected", 0, UINT32),
            seed=integer(seed, "seed", 0, UINT64), random_start=bool(random_start))
        if learning_rate == 0:
            raise wrong("learning_rate: is 0, expected more")
        if on_step is not None:
            options.on_step = _c.OnStep(step)
        try:
            _c.indexer_fit(handle.pointer, shown.pointer, options, report)
        except CancelledError:
            if raised:
                raise raised[0] from None
            raise
        return FitReport(report.steps, report.sequences, report.rows, report.first_loss, report.last_loss,
                         report.seconds, report.flops, named_warnings(report.warnings), bool(report.closed_start))

    def diagnose(self, capture: Capture, k: Any = (), *, mass: float = 0.9, least_visible: int | None = None
                 ) -> Diagnosis:
        """How much of a captured attention k keys hold (k: numbers, up to 64). mass: for which the smallest k is
        looked for. least_visible: rows that see fewer keys are left out; None: half of the longest sequence, and more
        than the largest k."""
        numbers = [integer(each, "k", 1, INT32) for each in np.atleast_1d(np.asarray(k, dtype=object)).tolist()]
        at = (_c.MassAt * max(len(numbers), 1))(*(_c.MassAt(k=number) for number in numbers))
        options = _c.DiagnosisOptions(
            mass=mass, least_visible=0 if least_visible is None else integer(least_visible, "least_visible", 1, UINT32))
        if mass == 0:
            raise wrong("mass: is 0, expected more")
        found = _c.Diagnosis()
        handle, shown = self._open(), capture._open()
        _c.indexer_diagnose(handle.pointer, shown.pointer, options, at, len(numbers), found)
        needed = ctypes.c_size_t()
        _c.diagnosis_text(found, at, len(numbers), None, 0, needed)
        text = ctypes.create_string_buffer(needed.value)
        _c.diagnosis_text(found, at, len(numbers), text, needed.value, None)
        return Diagnosis(
            found.sequences, found.rows, found.divergence, found.mass, found.oracle_k, found.indexer_k,
            tuple(MassAt(each.k, each.oracle, each.indexer, each.recency, each.random, each.recall)
                  for each in at[:len(numbers)]), named_warnings(found.warnings), text.value.decode())


def rope_options(rope_dim: int | None, base: float, frequencies: Any, dim: int | None) -> tuple[_c.IndexerOptions, Any]:
    """Options with the rope fields, and what keeps their memory alive."""
    options = _c.IndexerOptions(rope_base=base)
    if base == 0:
        raise wrong("rope_base: is 0, expected more than 1")
    if rope_dim is not None:
        options.rope_dim = integer(rope_dim, "rope_dim", 0, INT32) or -1
    if frequencies is None:
        return options, None
    if rope_dim is None and dim is None:
        raise wrong("rope_frequencies: needs rope_dim")
    options.rope_frequencies, owner = vector(
        frequencies, "rope_frequencies", "float32", (dim // 4 * 2 if rope_dim is None else rope_dim) // 2)
    return options, owner


def save_indexers(path: str | os.PathLike[str], indexers: Mapping[str, Indexer]) -> None:
    """Writes the indexers of many layers, by prefix, into one safetensors file, all or nothing."""
    handles = [indexer._open() for indexer in indexers.values()]
    _c.indexer_save((ctypes.c_void_p * len(handles))(*(handle.pointer for handle in handles)),
                    (ctypes.c_char_p * len(handles))(*(prefix.encode() for prefix in indexers)), len(handles),
                    os.fsencode(path))


def fit(capture: Capture, *, heads: int = 4, dim: int = 64, rope_dim: int | None = None, rope_base: float = 10000.0,
        rope_frequencies: Any = None, seed: int = 0, **how: Any) -> tuple[Indexer, FitReport]:
    """A new indexer, fitted to a capture in the capture's context. how: the arguments of `Indexer.fit`."""
    if capture._sizes is None:
        raise wrong("capture: is empty")
    width, features = capture._sizes
    indexer = Indexer(width, features, ctx=capture._ctx, heads=heads, dim=dim, rope_dim=rope_dim, rope_base=rope_base,
                      rope_frequencies=rope_frequencies, seed=seed)
    return indexer, indexer.fit(capture, seed=seed, **how)
