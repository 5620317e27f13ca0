"""Models: a checkpoint directory as tokens in, logits out, and where attention looked. Owns handles, the shapes of new
outputs and callbacks; what is computed is the C library's. `_generate` has what makes text from it."""
from __future__ import annotations

import ctypes
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence as Many
from typing import Any

import numpy as np

from . import _c
from ._cache import Cache, Sequence, token_ids
from ._context import UINT32, Context, Handle, Owner, new_or
from ._errors import wrong
from ._evaluate import Options, Trace, as_tokens, int32s, sampler
from ._generate import Generation, messages
from ._tensors import integer, tensor

DTYPE_NAMES = {number: name.lower() for name, number in _c.DTYPE.items()}


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


class Model(Owner):
    """A decoder of the DSA family from a Hugging Face checkpoint directory (deepseek_v32, deepseek_v3, glm_moe_dsa).
    Weights are mapped, never copied whole. Usable from many threads at once.

    directory: with config.json, model.safetensors or its shards, and tokenizer.json where text is wanted.
    ctx: threads and memory; None: a new Context(), which is `model.ctx`.
    widen: matrices as float32 in memory and float products, for comparing with float implementations.
    step_tokens: most tokens that pass through the layers together; 0: what 128 MiB hold, 16 to 512. The result is the
        same but for rounding.
    one_form: long prompts take the same form of attention as all other tokens, so that any cut of a prompt into calls
        gives the same bits; slower prompts. Without it a cut changes at most the last bits (float32: within 1e-4 of
        the largest logit).

    Raises FileError, FormatError (with the tensor or byte offset), UnsupportedError (another model).
    """

    def __init__(self, directory: str | os.PathLike[str], ctx: Context | None = None, *, widen: bool = False,
                 step_tokens: int = 0, one_form: bool = False):
        self._handle = None
        self.ctx = Context() if ctx is None else ctx
        if not isinstance(directory, (str, os.PathLike)):
            raise wrong(f"directory: is {type(directory).__name__}, expected a path")
        home, where = self.ctx._open(), os.fsencode(directory)
        if b"\0" in where:
            raise wrong("directory: contains a zero byte")
        options = _c.ModelOptions(
            widen=bool(widen), step_tokens=integer(step_tokens, "step_tokens", 0, UINT32), one_form=bool(one_form))
        self._handle = Handle(
            _c.model_free, lambda made: _c.model_open(home.pointer, where, options, made), home)
        self.directory = os.fsdecode(where)
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

    def splice(self, sequence: Sequence, document: Sequence, first: int = 0, count: int | None = None, *,
               recompute: int = 0) -> None:
        """Appends rows of a document that this model has read to another sequence, turned to their new positions: as if
        it had been read there without a look at what stands before. Approximate: measure your answers.

        recompute: so many of the first rows are computed anew instead, with a look at what stands before."""
        handle, seq, other = self._open(), sequence._open(), document._open()
        wanted = -1 if count is None else integer(count, "count", 0, 2**63 - 1)
        _c.model_splice(handle.pointer, seq.pointer, other.pointer, integer(first, "first", 0, 2**63 - 1), wanted,
                        integer(recompute, "recompute", 0, 2**63 - 1))

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
        options = Options({"attention": attention, "top_k": top_k, "selected": selected, "trace": trace}, len(seqs),
                          all_logits=logits == "all")
        if logits is not None:
            out = new_or(out, (len(ids) if logits == "all" else len(seqs), self.info.vocabulary))
        pointers = (ctypes.c_void_p * len(seqs))(*(seq.pointer for seq in seqs))
        options.run(lambda: _c.model_eval(
            handle.pointer, pointers, int32s(ids), int32s(counts), len(seqs), options.c,
            None if logits is None else tensor(out, "out", True)))
        return out

    # Generation

    def generate(self, prompt: str | bytes | Any, *, sequence: Sequence | None = None, max_tokens: int = 0,
                 temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, stop: str | Many[str] = (),
                 stop_tokens: Any = (), ignore_end: bool = False, evaluation: Mapping[str, Any] | None = None
                 ) -> Generation:
        """Continues a prompt, a text or token ids of at least one token; iterating over the result gives pieces of text.

            for piece in model.generate("def fibonacci(n):", max_tokens=64):
                print(piece, end="", flush=True)

        sequence: what comes before the prompt; None: nothing, in a cache of its own.
        max_tokens: 0: as many as the model has positions for.
        temperature 0: the best token each time; else drawn from the top_k best (0: all) that reach probability top_p
            together. The same prompt, options and seed: the same tokens.
        stop: texts that end it and are not handed out. stop_tokens: ids that end it, beside the model's own end
            tokens, which ignore_end switches off.
        evaluation: `attention`, `top_k`, `selected`, `trace` as in `eval`.
        """
        if isinstance(prompt, (str, bytes)):
            prompt = self.tokenize(prompt)
        return Generation(self, prompt, sequence, max_tokens, sampler(temperature, top_k, top_p, seed), stop,
                          stop_tokens, ignore_end, evaluation or {})

    def chat(self, turns: Many[Mapping[str, Any]], *, thinking: bool = False) -> np.ndarray:
        """A conversation as the prompt that a deepseek_v32 model answers. -> int32 [n], begin mark included

        turns: [{"role": "system", "user", "assistant", "tool" or "developer", "content": text}, ...], in OpenAI's form: a
        system may have "tools" and "response_format", an assistant "tool_calls", and "reasoning_content" in a thinking
        conversation; each call is answered by a "tool", in order. thinking: the model is to think before it answers.
        Special tokens written in a content are those tokens.
        """
        handle, made, count = self._open(), messages(turns), ctypes.c_size_t()
        tokens = np.empty(256, np.int32)
        while True:
            _c.model_chat(handle.pointer, made, len(made), bool(thinking), int32s(tokens), len(tokens), count)
            if count.value <= len(tokens):
                return tokens[:count.value].copy()
            tokens = np.empty(count.value, np.int32)

    def parse(self, reply: str | bytes | Any, *, thinking: bool = False) -> dict[str, Any]:
        """What a deepseek_v32 model wrote behind `chat`, taken apart: {"role": "assistant", "content": text,
        "reasoning_content": text, "tool_calls": [{"type": "function", "function": {"name": ..., "arguments": JSON}}, ...]},
        which is a turn that `chat` takes.

        reply: the token ids, or their text with its special tokens; the end token may be missing. thinking: as in `chat`.
        Nothing is mended: FormatError names the byte where something else was expected.
        """
        handle = self._open()
        if not isinstance(reply, (str, bytes)):
            reply = self.token_bytes(reply)
        raw = reply.encode("utf-8", "replace") if isinstance(reply, str) else bytes(reply)
        return json.loads(text_of(lambda *room: _c.model_parse(handle.pointer, raw, len(raw), bool(thinking), *room)))


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
