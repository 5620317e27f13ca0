"""What a model's own lightning indexer finds worth reading: a `tamis.excerpts.Scorer` over `tamis.Model`. Owns the
prompt, the places of tokens in texts, and the counting of what was chosen."""
from __future__ import annotations

import threading
from collections.abc import Sequence as Many

import numpy as np

from ._errors import wrong
from ._model import Model
from .excerpts import Scored

BETWEEN = "\n\n"


class ModelScorer:
    """The share of (question token, layer) pairs whose indexer chose a token of the texts.

    The model reads the documents, one after the other, and the question. Each question token chooses a quarter of what
    was read, at most as many tokens as the model does anyway. What was read is kept until the next call: the same
    documents at the beginning are not read again. Usable from many threads.
    """

    def __init__(self, model: Model):
        if not model.info.index_heads:
            raise wrong("ModelScorer: the model has no indexer")
        self.model, self._cache, self._lock = model, model.cache(), threading.Lock()
        self._read = self._cache.sequence()
        self._bytes: dict[int, bytes] = {}

    def score(self, query: str, documents: Many[str]) -> list[Scored]:
        between = self._tokens(BETWEEN)
        texts = [self._tokens(text) for text in documents]
        prompt = [self.model.tokenize("")]  # a begin mark, where the model has one
        begins = []
        for text in texts:
            begins.append(sum(map(len, prompt)))
            prompt += [text, between]
        before, asked = np.concatenate(prompt), self._tokens(query)
        votes = np.zeros(len(before) + len(asked), np.int64)
        chosen = self._choose(before, asked, votes)
        return [Scored(text, self._offsets(text, tokens), votes[begin:begin + len(tokens)] / max(chosen, 1))
                for text, tokens, begin in zip(documents, texts, begins)]

    def _choose(self, before: np.ndarray, asked: np.ndarray, votes: np.ndarray) -> int:
        """Counts who is chosen by the question; the number of those who choose."""
        with self._lock:
            sequence = self._cache.match(before)
        if len(sequence) < len(before):
            self.model.eval(sequence, before[len(sequence):], logits=None)
        with self._lock:
            self._read = sequence.fork(len(before))
        voters = 0

        def count(_layer: int, _number: int, _first: int, indices: np.ndarray) -> None:
            nonlocal voters
            voters += len(indices)
            np.add.at(votes, indices[indices >= 0], 1)

        few = min(self.model.info.top_k, max(len(before) // 4, 1))
        self.model.eval(sequence, asked, logits=None, attention="sparse", top_k=few, selected=count)
        return voters

    def _tokens(self, text: str) -> np.ndarray:
        return self.model.tokenize(text, bare=True, special_as_text=True)

    def _offsets(self, text: str, tokens: np.ndarray) -> np.ndarray:
        """Where each token lies in the text, in characters: int64 [n, 2]."""
        sizes = [len(self._token_bytes(token)) for token in tokens.tolist()]
        ends = np.cumsum([0, *sizes])
        raw = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
        if ends[-1] != len(raw):
            raise wrong("ModelScorer: the model's tokens are not the bytes of the text")
        starts = np.concatenate(([0], np.cumsum((raw & 0xC0) != 0x80)))  # characters begun before each byte
        inside = np.concatenate(((raw & 0xC0) == 0x80, [False]))[ends[:-1]]
        return np.stack((starts[ends[:-1]] - inside, starts[ends[1:]]), 1)

    def _token_bytes(self, token: int) -> bytes:
        if token not in self._bytes:
            self._bytes[token] = self.model.token_bytes([token])
        return self._bytes[token]
