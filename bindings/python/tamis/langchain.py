"""Tamis in LangChain: `TamisCompressor`, a document compressor that keeps the excerpts a question needs.

    compressor = TamisCompressor(source=TokenVectors("sentence-transformers/all-MiniLM-L6-v2"), budget=512)
    compressor.compress_documents(documents, "Which key wins a tie?")

Needs langchain-core (`pip install tamis[langchain]`).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, PrivateAttr

from .excerpts import Excerpt, Selector

__all__ = ["TamisCompressor"]


class TamisCompressor(BaseDocumentCompressor):
    """Cuts retrieved documents to excerpts of at most `budget` tokens together, in the order of the documents.

    source: a `tamis.excerpts.TokenEmbedder` or `Scorer`. window: tokens over which scores are smoothed.
    Each excerpt is a `Document` with the metadata of its own, and in it "excerpt_start" and "excerpt_end" (characters of
    the given document), "excerpt_tokens" and "relevance_score"; "start_index", where a splitter set it, moves along.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    source: Any
    budget: int = 512
    window: int = 49
    _selector: Selector = PrivateAttr()

    def __init__(self, source: Any, budget: int = 512, window: int = 49, **named: Any):
        super().__init__(source=source, budget=budget, window=window, **named)
        self._selector = Selector(source, budget, window=window)

    def compress_documents(self, documents: Sequence[Document], query: str,
                           callbacks: Callbacks | None = None) -> Sequence[Document]:
        found = self._selector.select(query, [document.page_content for document in documents])
        return [excerpt_of(documents[excerpt.document], excerpt) for excerpt in found]


def excerpt_of(document: Document, excerpt: Excerpt) -> Document:
    metadata = {**document.metadata, "excerpt_start": excerpt.start, "excerpt_end": excerpt.end,
                "excerpt_tokens": excerpt.tokens, "relevance_score": excerpt.score}
    if isinstance(metadata.get("start_index"), int):
        metadata["start_index"] += excerpt.start
    return Document(page_content=excerpt.text, metadata=metadata, id=document.id)
