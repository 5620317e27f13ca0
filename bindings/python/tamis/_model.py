"""Models: a checkpoint directory as tokens in, logits out, and where attention looked. Owns handles, the shapes of new
outputs and callbacks; what is computed is the C library's. `_generate` has what makes text from it."""
from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence as Many
from typing import Any

import numpy as np

from . import _c
from ._cache import Cache, Sequence, token_ids
from ._context import INT32, UINT32, UINT64, Context, Handle, Owner, new_or
from ._errors import wrong
from ._tensors import integer, tensor

DTYPE_NAMES = {number: name.lower() for name, number in _c.DTYPE.items()}
ATTENTION = {name[10:].lower(): number for name, number in _c.ATTENTION.items()}


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a model is. key_dim, value_dim: of a cached key and of its first part, the value. index_heads 0: no
    indexer. top_k: tokens that a token attends to. experts 0: no mixtures. token_count 0: no tokenizer.json.
    begin_token, end_token: None where there is none. active_parameters: that one token is multiplied with."""

    layers: int
    vocabulary: int
    hidden: int
    heads: int
    key_dim: int
    value_dim: int
    index_heads: int
    index_dim: int
    index_layers: int
    top_k: int
    experts: int
    experts_per_token: int
    max_tokens: int
    token_count: int
    begin_token: int | None
    end_token: int | None
    parameters: int
    active_parameters: int
    weight_bytes: int


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


class Model(Owner):
    """A decoder of the DSA family from a Hugging Face checkpoint directory (deepseek_v32, deepseek_v3, glm_moe_dsa).
    Weights are mapped, never copied whole. Usable from many threads at once.

    directory: with config.json, model.safetensors or its shards, and tokenizer.json where text is wanted.
    ctx: threads and memory; None: a new Context(), which is `model.ctx`.
    widen: matrices as float32 in memory and float products, for comparing with float implementations.
    step_tokens: most tokens that pass through the layers together; 0: 128. The result is the same.

    Raises FileError, FormatError (with the tensor or byte offset), UnsupportedError (another model).
    """

    def __init__(self, directory: str | os.PathLike[str], ctx: Context | None = None, *, widen: bool = False,
                 step_tokens: int = 0):
        self._handle = None
        self.ctx = Context() if ctx is None else ctx
        home, where = self.ctx._open(), os.fsencode(directory)
        if b"\0" in where:
            raise wrong("directory: contains a zero byte")
        options = _c.ModelOptions(widen=bool(widen), step_tokens=integer(step_tokens, "step_tokens", 0, UINT32))
        self._handle = Handle(
            _c.model_free, lambda made: _c.model_open(home.pointer, where, options, made), home)
        self.info = self._read_info()

    def _read_info(self) -> ModelInfo:
        read = _c.ModelInfo()
        _c.model_read_info(self._open().pointer, read)
        fields = {field.name: getattr(read, field.name) for field in dataclasses.fields(ModelInfo)}
        for name in ("begin_token", "end_token"):
            fields[name] = None if fields[name] < 0 else fields[name]
        return ModelInfo(**fields)

    def describe(self) -> str:
        """One line: the model_type, its size and its indexer."""
        handle = self._open()
        return text_of(lambda *room: _c.model_describe(handle.pointer, *room)).decode()

    def cache(self, **changes: Any) -> Cache:
        """A cache that fits the model, bf16 latents and i8 index keys; kv_dtype, index_dtype, page_tokens and
        max_tokens may be changed."""
        handle, wanted = self._open(), _c.CacheOptions()
        _c.model_cache_options(handle.pointer, wanted)
        fields = {name: getattr(wanted, name) for name, _ in wanted._fields_[1:]}
        fields["kv_dtype"] = DTYPE_NAMES[fields["kv_dtype"]]
        fields["index_dtype"] = DTYPE_NAMES.get(fields["index_dtype"])
        return Cache(self.ctx, **{**fields, **changes})

    # Text

    def tokenize(self, text: str | bytes, *, bare: bool = False, special_as_text: bool = False) -> np.ndarray:
        """The token ids of a text, the same as Hugging Face's tokenizers makes. -> int32 [n]

        bare: without the tokens that the tokenizer puts around a text (a begin mark).
        special_as_text: special tokens written in the text are plain text: for text that is not trusted.
        """
        handle, count = self._open(), ctypes.c_size_t()
        raw = text.encode("utf-8", "replace") if isinstance(text, str) else bytes(text)
        options = _c.TokenizeOptions(bare=bool(bare), special_as_text=bool(special_as_text))
        tokens = np.empty(max(len(raw), 16), np.int32)
        while True:
            _c.model_tokenize(handle.pointer, raw, len(raw), options, int32s(tokens), len(tokens), count)
            if count.value <= len(tokens):
                return tokens[:count.value].copy()
            tokens = np.empty(count.value, np.int32)

    def token_bytes(self, tokens: Any, *, skip_special: bool = False) -> bytes:
        """The exact bytes of tokens; a token may be half a character."""
        handle, (pointer, count, _ids) = self._open(), token_ids(as_tokens(tokens))
        return text_of(lambda *room: _c.model_detokenize(handle.pointer, pointer, count, bool(skip_special), *room))

    def detokenize(self, tokens: Any, *, skip_special: bool = False) -> str:
        """The text of tokens; what is no whole character becomes U+FFFD. skip_special: without begin, end and role
        marks."""
        return self.token_bytes(tokens, skip_special=skip_special).decode("utf-8", "replace")

    # Evaluation

    def eval(self, sequences: Sequence | Many[Sequence], tokens: Any, *, logits: str | None = "last",
             attention: str = "automatic", top_k: int = 0,
             selected: Callable[[int, int, int, np.ndarray], Any] | None = None,
             trace: Trace | Many[Trace | None] | None = None, out: Any = None) -> Any:
        """Extends a sequence by token ids (int32 [n]), or several of one cache, each by its own (a list of them), and
        gives logits. -> float32 [vocabulary] for one sequence, [sequences, vocabulary] for a list

        logits: "last": after each sequence's last token; "all": after every token, [all tokens, vocabulary]; None.
        attention: "automatic": sparse where a token sees more tokens than it may choose; "dense"; "sparse".
        top_k: tokens that a token attends to; 0: as the model was trained.
        selected: called as selected(layer, sequence number, first position, indices) where keys are chosen, before
            attention; indices is int32 [rows, k], ascending, -1 behind, and may be changed in place; an exception
            ends the call. trace: where the tokens of each sequence look.
        A failed call leaves every sequence as it was.
        """
        if isinstance(sequences, Sequence):
            one = self.eval([sequences], [tokens], logits=logits, attention=attention, top_k=top_k, selected=selected,
                            trace=None if trace is None else [trace], out=None if out is None else rows_of(out))
            return one[0] if logits == "last" and out is None else (one if out is None else out)
        if logits not in ("last", "all", None):
            raise wrong(f"logits: {logits!r} is not 'last', 'all' or None")
        handle = self._open()
        seqs = [sequence._open() for sequence in sequences]
        pieces = [as_tokens(piece) for piece in tokens]
        if len(pieces) != len(seqs):
            raise wrong(f"tokens: has {len(pieces)} arrays for {len(seqs)} sequences")
        ids = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        counts = np.array([len(piece) for piece in pieces], np.int32)
        with Options(attention, top_k, selected, trace, len(seqs), all_logits=logits == "all") as options:
            if logits is not None:
                rows = len(ids) if logits == "all" else len(seqs)
                out = new_or(out, (rows, self.info.vocabulary))
            pointers = (ctypes.c_void_p * len(seqs))(*(seq.pointer for seq in seqs))
            options.run(lambda: _c.model_eval(
                handle.pointer, pointers, int32s(ids), int32s(counts), len(seqs), options.c,
                None if logits is None else tensor(out, "out", True)))
        return out


class Options:
    """The tamis_eval_options of a call, what keeps them alive, and the exception of a callback."""

    def __init__(self, attention: str, top_k: int, selected: Any, trace: Any, count: int, all_logits: bool = False):
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

    def __enter__(self) -> Options:
        return self

    def __exit__(self, *_: object) -> None:
        self._held = []

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
    if not 0 < top_p <= 1:
        raise wrong(f"top_p: is {top_p}, expected above 0 and up to 1")
    return _c.SamplerOptions(temperature=temperature, top_k=integer(top_k, "top_k", 0, UINT32), top_p=top_p,
                             seed=integer(seed, "seed", 0, UINT64))


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


def rows_of(out: Any) -> Any:
    """[vocabulary] as [1, vocabulary]."""
    return out[None] if len(out.shape) == 1 else out


def text_of(call: Callable[..., Any]) -> bytes:
    """What a call writes into text[capacity], without its final zero."""
    needed, capacity = ctypes.c_size_t(), 256
    while True:
        room = ctypes.create_string_buffer(capacity)
        call(room, capacity, needed)
        if needed.value <= capacity:
            return room.raw[:needed.value - 1]
        capacity = needed.value
