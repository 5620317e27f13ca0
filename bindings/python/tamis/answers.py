"""Answers of a model, with what they cost and where they looked: what the chat classes of the frameworks share.

    reader = tamis.answers.Reader("DeepSeek-V3.2")
    answer = reader.answer([{"role": "user", "content": documents + question}], documents=[first, second])
    for piece in answer:
        print(piece, end="")
    print(answer.cached_tokens, answer.sources)

A prompt is read once: what it shares with one that was answered before is neither read nor computed again. `sources`
are the shares of attention that the answer gave to each document, summed over layers and heads. Owns that memory and
the places of documents in a prompt; generation is the model's.
"""
from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence as Many
from typing import Any

import numpy as np

from ._cache import Sequence
from ._errors import wrong
from ._evaluate import Trace
from ._generate import Generation
from ._model import Model
from ._tensors import integer, strings

Turns = Many[Mapping[str, Any]]


class Answer(Iterator[str]):
    """A text in the making; iterating gives its pieces.

    text: what was given so far. stop: None while it goes on, else "end_token", "text", "max_tokens" or "full".
    prompt_tokens, cached_tokens: of the prompt, and of those the ones that were not read again. tokens: answered so
    far. sources: for each document the share of attention, 0 to 1, that the answer's tokens gave to it; None when no
    documents were named. Closing it, or giving it up, is fine at any time.
    """

    def __init__(self, reader: Reader, generation: Generation, prompt: np.ndarray, cached: int, trace: Trace | None,
                 order: list[int | None], seconds: float):
        self._reader, self._generation, self._trace, self._order = reader, generation, trace, order
        self._seconds = seconds
        self.prompt_tokens, self.cached_tokens = len(prompt), cached

    def __next__(self) -> str:
        try:
            return next(self._generation)
        except StopIteration:
            self._reader._keep(self._generation.sequence)
            raise

    def finish(self) -> str:
        """The whole text, made to its end."""
        for _ in self:
            pass
        return self.text

    @property
    def text(self) -> str:
        return self._generation.text

    @property
    def stop(self) -> str | None:
        return self._generation.stop

    @property
    def finish_reason(self) -> str | None:
        """`stop` in the words of chat services: "stop" or "length"; None while it goes on."""
        return {None: None, "end_token": "stop", "text": "stop"}.get(self.stop, "length")

    @property
    def tokens(self) -> int:
        return len(self._generation.tokens)

    @property
    def usage(self) -> dict[str, Any]:
        """The counts in the words of OpenAI's API."""
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens,
                "total_tokens": self.prompt_tokens + self.tokens,
                "prompt_tokens_details": {"cached_tokens": self.cached_tokens}}

    @property
    def prefill_seconds(self) -> float:
        """For what was read of the prompt."""
        return self._seconds + self._generation.prefill_seconds

    @property
    def decode_seconds(self) -> float:
        return self._generation.decode_seconds

    @property
    def sources(self) -> list[float] | None:
        if not self._order:
            return None
        if self._trace is None or not self._trace.tokens:
            return [0.0] * len(self._order)
        shares = self._trace.mass / (self._trace.tokens * self._reader.model.info.layers)
        return [0.0 if place is None else float(shares[place]) for place in self._order]


class Reader:
    """A model that remembers what it read. Usable from many threads, each with its own answers.

    model: a `tamis.Model`, or the directory of one. template: makes the prompt of a conversation, as text, from
    [{"role": ..., "content": ...}, ...]; None: the encoding that deepseek_v32 models were trained with.
    keep: how many conversations stay in memory for those that begin like them.
    """

    def __init__(self, model: Model | str | os.PathLike[str], *, template: Callable[[Turns], str] | None = None,
                 keep: int = 8):
        if template is not None and not callable(template):
            raise wrong(f"template: is {type(template).__name__}, expected a function")
        self.model = model if isinstance(model, Model) else Model(model)
        self.template = template
        self._cache = self.model.cache()
        self._kept: collections.deque[Sequence] = collections.deque(maxlen=integer(keep, "keep", 1, 1 << 16))
        self._lock = threading.Lock()

    def answer(self, prompt: str | Turns, *, documents: Many[str] = (), max_tokens: int = 0, temperature: float = 0.0,
               top_k: int = 0, top_p: float = 1.0, seed: int = 0, stop: str | Many[str] = ()) -> Answer:
        """Answers a conversation, or continues a text. The prompt is read before this returns.

        documents: texts that stand in the prompt, in any order; the answer's `sources` are for them. stop: texts that
        end the answer and are not part of it. The others: as in `Model.generate`.
        Raises ArgumentError for a document that is not in the prompt; a failed call remembers nothing.
        """
        ids = self.tokens(prompt)
        if not len(ids):
            raise wrong("prompt: has no tokens")
        spans = self._places(ids, strings(documents, "documents"))
        with self._lock:
            sequence = self._cache.match(ids)
        if len(sequence) == len(ids):
            sequence.truncate(len(ids) - 1)
        cached, began = len(sequence), time.perf_counter()
        if cached < len(ids) - 1:  # without the trace, which is for the answer
            self.model.eval(sequence, ids[cached:-1], logits=None)
        seconds = time.perf_counter() - began
        found = sorted({span for span in spans if span is not None})
        trace = Trace(self.model.ctx, found) if found else None
        generation = self.model.generate(
            ids[-1:], sequence=sequence, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            seed=seed, stop=stop, evaluation=None if trace is None else {"trace": trace})
        order = [None if span is None else found.index(span) for span in spans]
        return Answer(self, generation, ids, cached, trace, order, seconds)

    def tokens(self, prompt: str | Turns) -> np.ndarray:
        """The token ids of a prompt."""
        if not isinstance(prompt, str):
            if not isinstance(prompt, Many) or not all(isinstance(turn, Mapping) for turn in prompt):
                raise wrong(f"prompt: is {type(prompt).__name__}, expected a text or a list of turns")
            if self.template is None:
                return self.model.chat(prompt)
            prompt = self.template(prompt)
            if not isinstance(prompt, str):
                raise wrong(f"template: gave {type(prompt).__name__}, expected str")
        return self.model.tokenize(prompt)

    @property
    def name(self) -> str:
        """The model's: that of its folder."""
        return os.path.basename(os.path.abspath(self.model.directory))

    def _keep(self, sequence: Sequence) -> None:
        with self._lock:
            if not any(sequence is kept for kept in self._kept):
                self._kept.append(sequence)

    def _places(self, ids: np.ndarray, documents: list[str]) -> list[tuple[int, int] | None]:
        """Which positions of the prompt hold each document; None for an empty one."""
        if not documents:
            return []
        pieces = [self.model.token_bytes([token]) for token in ids.tolist()]
        raw, ends = b"".join(pieces), np.cumsum([len(piece) for piece in pieces])
        spans: list[tuple[int, int] | None] = []
        for number, text in enumerate(documents):
            wanted = text.strip().encode()
            spans.append(None if not wanted else place(raw, ends, wanted, spans, number))
        return spans


def place(raw: bytes, ends: np.ndarray, wanted: bytes, taken: list[tuple[int, int] | None], number: int
          ) -> tuple[int, int]:
    """The first place of a document's bytes, in tokens, that no other document has."""
    begin = raw.find(wanted)
    while begin >= 0:
        first = int(np.searchsorted(ends, begin, side="right"))
        span = beside(first, int(np.searchsorted(ends, begin + len(wanted), side="left")) + 1, taken)
        if span is not None:
            return span
        begin = raw.find(wanted, begin + 1)
    raise wrong(f"documents[{number}]: is not in the prompt, or only where another one is")


def beside(first: int, last: int, taken: list[tuple[int, int] | None]) -> tuple[int, int] | None:
    """The span without a token that it shares with a neighbour (one token may end one text and begin the next); None
    where it shares more."""
    for begin, end in (other for other in taken if other is not None):
        if first < end and begin < last:
            if first == end - 1:
                first = end
            elif last - 1 == begin:
                last = begin
            else:
                return None
    return (first, last) if first < last else None
