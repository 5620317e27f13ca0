"""Tamis in Haystack: `TamisExcerpts`, a component that keeps the excerpts a question needs.

    pipeline.add_component("excerpts", TamisExcerpts("sentence-transformers/all-MiniLM-L6-v2", budget=512))

A pipeline with it is written by `dumps` and read by `Pipeline.loads(text, allowed_modules=["tamis.*"])`.
Needs haystack-ai (`pip install tamis[haystack]`), and sentence-transformers for a source that is a name.
"""
from __future__ import annotations

import dataclasses
from typing import Any, Optional

from haystack import Document, component, default_from_dict, default_to_dict

from ._errors import wrong
from .excerpts import BIGGEST, Excerpt, Selector
from ._tensors import integer

__all__ = ["TamisExcerpts"]


@component
class TamisExcerpts:
    """Cuts documents to excerpts of at most `budget` tokens together, in the order of the documents.

    Each excerpt is a `Document` with the meta data of its own, and in it "excerpt_start" and "excerpt_end" (characters
    of the given document), "excerpt_tokens", "source_id" (the given document's) and "retrieval_score"; its score is the
    indexer's. Documents without text give nothing.
    """

    def __init__(self, source: Any, budget: int = 512, window: int = 49):
        """
        :param source: the name or folder of a sentence-transformers model, or an object that is a
            `tamis.excerpts.TokenEmbedder` or `Scorer` (with `to_dict` if the pipeline is to be written down).
        :param budget: most tokens that all excerpts of a run have together.
        :param window: tokens over which scores are smoothed.
        """
        self.source = source
        self.budget = integer(budget, "budget", 1, BIGGEST)
        self.window = integer(window, "window", 1, BIGGEST)
        self._selector: Selector | None = None

    def warm_up(self) -> None:
        """Loads a named model."""
        if self._selector is None:
            source = self.source
            if isinstance(source, str):
                from .sentence_transformers import TokenVectors
                source = TokenVectors(source)
                source.load()
            self._selector = Selector(source, self.budget, window=self.window)

    def to_dict(self) -> dict[str, Any]:
        if not isinstance(self.source, str) and not hasattr(self.source, "to_dict"):
            raise wrong(f"TamisExcerpts: source is {type(self.source).__name__} without to_dict, expected a name or an "
                        "object that can be written down")
        return default_to_dict(self, source=self.source, budget=self.budget, window=self.window)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TamisExcerpts:
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], budget: Optional[int] = None) -> dict[str, list[Document]]:
        """
        :param query: the question.
        :param documents: what was retrieved.
        :param budget: tokens for this run; None: the component's own.
        """
        self.warm_up()
        assert self._selector is not None
        found = self._selector.select(query, [document.content or "" for document in documents], budget)
        return {"documents": [excerpt_of(documents[excerpt.document], excerpt) for excerpt in found]}


def excerpt_of(document: Document, excerpt: Excerpt) -> Document:
    meta = {**document.meta, "excerpt_start": excerpt.start, "excerpt_end": excerpt.end,
            "excerpt_tokens": excerpt.tokens, "source_id": document.id, "retrieval_score": document.score}
    return dataclasses.replace(document, id="", content=excerpt.text, meta=meta, score=excerpt.score, embedding=None,
                               sparse_embedding=None)
