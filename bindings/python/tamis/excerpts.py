"""Excerpts for a question: the passages of some documents that fit into a budget of tokens.

    selector = tamis.excerpts.Selector(embedder, budget=512)
    for excerpt in selector.select("Which key wins a tie?", texts):
        print(excerpt.document, excerpt.start, excerpt.end, excerpt.score, excerpt.text)

The lightning indexer does the choosing: each token of the question is one head, weighted by how rare it is, and the
tokens of the documents are the keys. Loose tokens help nobody, so scores are smoothed along the text and whole lines
are taken. Owns that, and the budget. Refuses to embed: any object with `embed` does (`TokenEmbedder`). An embedding
that was never trained as an indexer finds passages; it is not a better retriever than its pooled vectors.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ._context import Context
from ._errors import wrong
from ._model import Model
from ._tensors import integer, strings

BIGGEST = 2**31 - 1
HEARD = 0.95  # the share of all tokens below a head's threshold


@runtime_checkable
class TokenEmbedder(Protocol):
    """Anything that turns a text into tokens with a vector each."""

    def embed(self, text: str) -> tuple[Any, Any]:
        """(offsets, vectors): int [n, 2], where each token begins and ends in the text in characters, ascending; and
        float32 [n, d]. Texts may be of any length: an embedder with a limited window cuts them itself."""


@runtime_checkable
class Scorer(Protocol):
    """Anything that says of each token of some texts what it is worth for a question."""

    def score(self, query: str, documents: Sequence[str]) -> list[Scored]:
        """One `Scored` for each document."""


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """Consecutive lines (or a part of one) of a document: `text` is `documents[document][start:end]`.

    score: the mean over its tokens of what the indexer said, comparable within one call. tokens: what it takes of
    the budget."""

    document: int
    start: int
    end: int
    text: str
    score: float
    tokens: int


class Scored:
    """One text in tokens, with a score each: offsets int64 [n, 2], scores float32 [n], lines int64 [n], the line that
    each token begins in."""

    def __init__(self, text: str, offsets: Any = (), scores: Any = ()):
        self.text, self.offsets = text, np.asarray(offsets, np.int64).reshape(-1, 2)
        self.scores = np.asarray(scores, np.float32)
        self.breaks = np.array([at for at, character in enumerate(text) if character == "\n"], np.int64)
        self.lines = np.searchsorted(self.breaks, self.offsets[:, 0])

    def __len__(self) -> int:
        return len(self.offsets)

    def line(self, token: int) -> tuple[int, int]:
        """Where the line that a token begins in begins and ends, without its line break."""
        bounds = np.concatenate(([-1], self.breaks, [len(self.text)]))
        return int(bounds[self.lines[token]]) + 1, int(bounds[self.lines[token] + 1])

    def words(self) -> list[str]:
        return [self.text[begin:end].strip().lower() for begin, end in self.offsets]


class Selector:
    """Selects excerpts. Usable from many threads at once if what scores is.

    source: a `TokenEmbedder`, a `tamis.Model`, whose own indexer chooses, or another `Scorer`. budget: most tokens (of
    the source) that all excerpts of a call have together. window: tokens over which scores are smoothed. ctx: where an
    embedder's scores are computed; None: a context of its own.
    """

    def __init__(self, source: TokenEmbedder | Model | Scorer, budget: int = 512, *, window: int = 99,
                 ctx: Context | None = None):
        if isinstance(source, Model):
            from ._model_scorer import ModelScorer
            source = ModelScorer(source)
        if not isinstance(source, (TokenEmbedder, Scorer)):
            raise wrong(f"Selector: source is {type(source).__name__}, expected a tamis.Model or an object with "
                        "embed(text) or score(query, documents)")
        self.scorer = source if isinstance(source, Scorer) else EmbeddingScorer(source, ctx)
        self.budget = integer(budget, "budget", 1, BIGGEST)
        self.window = integer(window, "window", 1, BIGGEST)

    def select(self, query: str, documents: Sequence[str], budget: int | None = None) -> list[Excerpt]:
        """The excerpts for a question, in the order of the documents and within each from beginning to end.

        Never more than `budget` tokens; everything when the documents are shorter. Lines are taken best first, as
        long as they fit; when not even the best one fits, its best part. No documents, or only empty ones: none.
        Raises ArgumentError for a question without tokens and for what an embedder should not return.
        """
        budget = self.budget if budget is None else integer(budget, "budget", 1, BIGGEST)
        if not isinstance(query, str):
            raise wrong(f"query: is {type(query).__name__}, expected str")
        texts = strings(documents, "documents")
        if not query.strip():
            raise wrong("query: is empty")
        if not any(text.strip() for text in texts):
            return []
        read = checked(self.scorer.score(query, texts), texts)
        scores = [smoothed(text.scores, self.window) for text in read]
        return [excerpt for number, kept in enumerate(within(budget, read, scores))
                for excerpt in excerpts(number, read[number], scores[number], kept)]


def checked(read: Any, texts: list[str]) -> list[Scored]:
    """What a scorer says, if it says something of every token of every text."""
    if not isinstance(read, Sequence) or len(read) != len(texts):
        raise wrong(f"score: expected a list of {len(texts)} Scored, one for each document")
    for at, (found, text) in enumerate(zip(read, texts)):
        if not isinstance(found, Scored) or found.text != text:
            raise wrong(f"score: gave no Scored of documents[{at}]")
        if found.scores.shape != (len(found),) or not np.isfinite(found.scores).all():
            raise wrong(f"score: gave scores {list(found.scores.shape)} for documents[{at}], expected [{len(found)}], "
                        "finite")
        if not ascend(found.offsets, text):
            raise wrong(f"score: gave offsets that do not ascend within documents[{at}]")
    return list(read)


def ascend(offsets: np.ndarray, text: str) -> bool:
    """Whether tokens lie within a text, none begins before the one before it."""
    begins, ends = offsets[:, 0], offsets[:, 1]
    return not len(offsets) or bool(
        begins[0] >= 0 and (begins <= ends).all() and (ends <= len(text)).all() and (begins[1:] >= begins[:-1]).all())


class EmbeddingScorer:
    """The lightning indexer over the vectors of a `TokenEmbedder` that was never trained as one: a question's token is
    a head, weighted by how rare it is, and hears only the nearest 5 % of all tokens, which its threshold sees to (with
    raw embeddings nearly every product is positive). Punctuation counts as nothing."""

    def __init__(self, embedder: TokenEmbedder, ctx: Context | None = None):
        self.embedder, self.ctx = embedder, ctx or Context()

    def score(self, query: str, documents: Sequence[str]) -> list[Scored]:
        asked, queries = self._read(query, "query")
        if not len(asked):
            raise wrong("query: has no tokens")
        read = [self._read(text, f"documents[{at}]") for at, text in enumerate(documents)]
        for at, (_, vectors) in enumerate(read):
            if len(vectors) and vectors.shape[1] != queries.shape[1]:
                raise wrong(f"embed: gave vectors of {vectors.shape[1]} numbers for documents[{at}] and of "
                            f"{queries.shape[1]} for query")
        keys = np.concatenate([vectors for _, vectors in read if len(vectors)] or [queries[:0]])
        texts = [text for text, _ in read]
        scores = self._scores(queries, rarity(asked.words(), texts), keys) if len(keys) else np.empty(0, np.float32)
        parts = np.split(scores, np.cumsum([len(text) for text in texts])[:-1]) if texts else []
        for text, part in zip(texts, parts):
            text.scores = part * np.array([any(map(str.isalnum, word)) for word in text.words()], bool)
        return texts

    def _scores(self, queries: np.ndarray, weights: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """queries [heads, d], weights [heads], keys [n, d] -> float32 [n]. A head's threshold is one more dim of its
        query, where every key has 1."""
        threshold = np.quantile(queries @ keys.T, HEARD, axis=1).astype(np.float32)
        queries = np.concatenate((queries, -threshold[:, None]), 1)
        keys = np.concatenate((keys, np.ones((len(keys), 1), np.float32)), 1)
        return self.ctx.index_scores(queries[None], weights[None], keys, visible="all")[0]

    def _read(self, text: str, name: str) -> tuple[Scored, np.ndarray]:
        """A text in tokens, and their vectors of length 1, everything that the embedder says checked."""
        if not text.strip():
            return Scored(text), np.empty((0, 0), np.float32)
        given = self.embedder.embed(text)
        try:
            offsets, vectors = given
            offsets, vectors = np.asarray(offsets), np.asarray(vectors, np.float32)
        except (TypeError, ValueError) as problem:
            raise wrong(f"embed: gave a {type(given).__name__} for {name}, expected (offsets, vectors): "
                        f"{problem}") from None
        if offsets.size == 0:
            return Scored(text), np.empty((0, 0), np.float32)
        if offsets.ndim != 2 or offsets.shape[1] != 2 or offsets.dtype.kind not in "iu":
            raise wrong(f"embed: gave offsets {offsets.dtype} {list(offsets.shape)} for {name}, expected integers "
                        "[n, 2]")
        if vectors.ndim != 2 or len(vectors) != len(offsets) or not vectors.shape[1]:
            raise wrong(f"embed: gave vectors {list(vectors.shape)} for the {len(offsets)} tokens of {name}, expected "
                        f"[{len(offsets)}, d]")
        if not np.isfinite(vectors).all():
            raise wrong(f"embed: gave a number that is not finite for {name}")
        if not ascend(offsets, text):
            raise wrong(f"embed: gave offsets that do not ascend within {name}")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return Scored(text, offsets, np.zeros(len(offsets))), vectors / np.maximum(lengths, 1e-12)


def rarity(words: list[str], texts: list[Scored]) -> np.ndarray:
    """How rare each word of the question is among the lines of the texts: its idf, float32 [words]."""
    lines, containing = 0, dict.fromkeys(words, 0)
    for text in texts:
        seen = set(zip(text.lines.tolist(), text.words()))
        lines += len(np.unique(text.lines))
        for _, word in seen:
            if word in containing:
                containing[word] += 1
    return np.float32([np.log(1 + (lines - containing[word] + 0.5) / (containing[word] + 0.5)) for word in words])


def smoothed(scores: np.ndarray, window: int) -> np.ndarray:
    """A weighted mean over `window` tokens around each, Hann's, of what there is of it."""
    if not len(scores):
        return scores
    shape = np.hanning(min(window, 2 * len(scores) - 1) + 2)[1:-1]
    sums = np.convolve(scores, shape, "full")
    norms = np.convolve(np.ones(len(scores)), shape, "full")
    begin = (len(shape) - 1) // 2
    return np.float32(sums[begin:begin + len(scores)] / norms[begin:begin + len(scores)])


def within(budget: int, read: list[Scored], scores: list[np.ndarray]) -> list[np.ndarray]:
    """Which tokens of each text are kept: bool [tokens]. Whole lines, best first, while they fit."""
    kept = [np.zeros(len(tokens), bool) for tokens in read]
    lines = []
    for number, tokens in enumerate(read):
        if len(tokens):
            first = np.flatnonzero(np.diff(tokens.lines, prepend=-1))
            ends = [*first[1:].tolist(), len(tokens)]
            means = np.add.reduceat(scores[number], first) / (ends - first)
            lines += zip((-means).tolist(), [number] * len(first), first.tolist(), ends)
    left = budget
    for _, number, begin, end in sorted(lines):
        if end - begin > left and left == budget:  # not even the best line fits
            middle = begin + int(scores[number][begin:end].argmax())
            begin = min(max(middle - left // 2, begin), end - left)
            end = begin + left
        if end - begin <= left:
            kept[number][begin:end] = True
            left -= end - begin
    return kept


def excerpts(number: int, tokens: Scored, scores: np.ndarray, kept: np.ndarray) -> list[Excerpt]:
    """The runs of kept tokens of one text. One that begins or ends with its line takes the blanks there too."""
    places, text = np.flatnonzero(kept), tokens.text
    found = []
    for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []:
        start, end = int(tokens.offsets[run[0], 0]), int(tokens.offsets[run, 1].max())
        if run[0] == 0 or tokens.lines[run[0]] != tokens.lines[run[0] - 1]:
            start = tokens.line(run[0])[0]
        if run[-1] == len(tokens) - 1 or tokens.lines[run[-1]] != tokens.lines[run[-1] + 1]:
            end = tokens.line(run[-1])[1]
        found.append(Excerpt(number, start, end, text[start:end], float(scores[run].mean()), len(run)))
    return found
