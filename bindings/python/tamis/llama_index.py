"""Tamis in LlamaIndex: `TamisLLM`, a local model, and `TamisPostprocessor`, a node postprocessor that keeps the
excerpts a question needs.

    postprocessor = TamisPostprocessor(source=TokenVectors("sentence-transformers/all-MiniLM-L6-v2"), budget=512)
    index.as_query_engine(llm=TamisLLM(model="DeepSeek-V3.2"), node_postprocessors=[postprocessor])

Needs llama-index-core (`pip install tamis[llama-index]`).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, List, Optional, Sequence

from llama_index.core.base.llms.types import (ChatMessage, ChatResponse, ChatResponseGen, CompletionResponse,
                                              CompletionResponseGen, LLMMetadata, MessageRole)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeRelationship, NodeWithScore, QueryBundle, TextNode

from ._errors import wrong
from .answers import Answer, Reader
from .excerpts import Excerpt, Selector

__all__ = ["TamisLLM", "TamisPostprocessor"]

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
    window: int = 99
    _selector: Selector = PrivateAttr()

    def __init__(self, source: Any, budget: int = 512, window: int = 99, **named: Any):
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


SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "seed")


class TamisLLM(CustomLLM):
    """A model of the DSA family on this machine's CPU. It streams, and remembers the beginnings of prompts it has read.

    model: a `tamis.Model`, or the directory of one. template: makes the prompt of a conversation, as text, from
    [{"role": ..., "content": ...}, ...]; None: deepseek_v32's own encoding.

    Calls take max_tokens, temperature, top_k, top_p, seed and stop, and `documents`: the texts or nodes that stand in
    the prompt. The response's `additional_kwargs` have "prompt_tokens", "completion_tokens", "total_tokens",
    "cached_tokens" (read before), "finish_reason" and "sources", the share of attention for each document.
    """

    model: Any = Field(exclude=True)
    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: List[str] = Field(default_factory=list)
    template: Optional[Callable[[Any], str]] = Field(default=None, exclude=True)
    _reader: Reader = PrivateAttr()

    def __init__(self, model: Any, **named: Any):
        super().__init__(model=model, **named)
        self._reader = Reader(model, template=self.template)

    @classmethod
    def class_name(cls) -> str:
        return "TamisLLM"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=self._reader.model.info.max_tokens, num_output=self.max_tokens,
                           is_chat_model=True, model_name=self._reader.model.describe())

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **named: Any) -> CompletionResponse:
        answer = self._answer(prompt, named)
        return CompletionResponse(text=answer.finish(), additional_kwargs=about(answer))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **named: Any) -> CompletionResponseGen:
        answer = self._answer(prompt, named)

        def pieces() -> CompletionResponseGen:
            for piece in answer:
                yield CompletionResponse(text=answer.text, delta=piece)
            yield CompletionResponse(text=answer.text, delta="", additional_kwargs=about(answer))
        return pieces()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **named: Any) -> ChatResponse:
        answer = self._answer([turn(message) for message in messages], named)
        return ChatResponse(message=said(answer.finish()), additional_kwargs=about(answer))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **named: Any) -> ChatResponseGen:
        answer = self._answer([turn(message) for message in messages], named)

        def pieces() -> ChatResponseGen:
            for piece in answer:
                yield ChatResponse(message=said(answer.text), delta=piece)
            yield ChatResponse(message=said(answer.text), delta="", additional_kwargs=about(answer))
        return pieces()

    def _answer(self, prompt: Any, named: dict[str, Any]) -> Answer:
        documents = [document if isinstance(document, str) else getattr(document, "node", document).get_content(
            metadata_mode=MetadataMode.NONE) for document in named.pop("documents", None) or []]
        sampling = {name: named.pop(name, getattr(self, name)) for name in SAMPLING}
        stop = named.pop("stop", None) or self.stop
        if named:
            raise wrong(f"TamisLLM: {', '.join(sorted(named))} is not supported")
        return self._reader.answer(prompt, documents=documents, stop=stop, **sampling)


def turn(message: ChatMessage) -> dict[str, str]:
    return {"role": message.role.value, "content": message.content or ""}


def said(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def about(answer: Answer) -> dict[str, Any]:
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens,
            "total_tokens": answer.prompt_tokens + answer.tokens, "cached_tokens": answer.cached_tokens,
            "finish_reason": answer.finish_reason, "sources": answer.sources}
