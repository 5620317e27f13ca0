"""Tamis in LlamaIndex: `TamisPostprocessor`, a node postprocessor that keeps the excerpts a question needs.

    postprocessor = TamisPostprocessor(source=TokenVectors("sentence-transformers/all-MiniLM-L6-v2"), budget=512)
    index.as_query_engine(node_postprocessors=[postprocessor])

Needs llama-index-core (`pip install tamis[llama-index]`).
"""
from __future__ import annotations

from typing import Any, List, Optional

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeRelationship, NodeWithScore, QueryBundle, TextNode

from ._errors import wrong
from .excerpts import Excerpt, Selector

__all__ = ["TamisPostprocessor"]

ADDED = ("excerpt_start", "excerpt_end", "excerpt_tokens", "retrieval_score")


class TamisPostprocessor(BaseNodePostprocessor):
    """Cuts retrieved nodes to excerpts of at most `budget` tokens together, in the order of the nodes.

    source: a `tamis.excerpts.TokenEmbedder` or `Scorer`. window: tokens over which scores are smoothed.
    Each excerpt is a `TextNode` with the indexer's score. Its metadata has the node's and "excerpt_start",
    "excerpt_end" (characters of the node's text), "excerpt_tokens" and "retrieval_score", which neither prompts nor
    embeddings show; its source is the node's, and `start_char_idx` moves along.
    """

    source: Any = Field(exclude=True)
    budget: int = 512
    window: int = 49
    _selector: Selector = PrivateAttr()

    def __init__(self, source: Any, budget: int = 512, window: int = 49, **named: Any):
        super().__init__(source=source, budget=budget, window=window, **named)
        self._selector = Selector(source, budget, window=window)

    @classmethod
    def class_name(cls) -> str:
        return "TamisPostprocessor"

    def _postprocess_nodes(self, nodes: List[NodeWithScore],
                           query_bundle: Optional[QueryBundle] = None) -> List[NodeWithScore]:
        if query_bundle is None:
            raise wrong("query_bundle: is None, expected the question")
        texts = [scored.node.get_content(metadata_mode=MetadataMode.NONE) for scored in nodes]
        return [excerpt_of(nodes[excerpt.document], excerpt)
                for excerpt in self._selector.select(query_bundle.query_str, texts)]


def excerpt_of(scored: NodeWithScore, excerpt: Excerpt) -> NodeWithScore:
    node = scored.node
    begin = getattr(node, "start_char_idx", None)
    added = dict(zip(ADDED, (excerpt.start, excerpt.end, excerpt.tokens, scored.score)))
    made = TextNode(
        text=excerpt.text, metadata={**node.metadata, **added},
        excluded_embed_metadata_keys=[*node.excluded_embed_metadata_keys, *ADDED],
        excluded_llm_metadata_keys=[*node.excluded_llm_metadata_keys, *ADDED],
        relationships={NodeRelationship.SOURCE: node.source_node or node.as_related_node_info()},
        start_char_idx=None if begin is None else begin + excerpt.start,
        end_char_idx=None if begin is None else begin + excerpt.end)
    return NodeWithScore(node=made, score=excerpt.score)
