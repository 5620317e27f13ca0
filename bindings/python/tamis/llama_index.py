"""Tamis in LlamaIndex: `TamisLLM`, a local model, and `TamisPostprocessor`, a node postprocessor that keeps the
excerpts a question needs.

    postprocessor = TamisPostprocessor(source=TokenVectors("sentence-transformers/all-MiniLM-L6-v2"), budget=512)
    index.as_query_engine(llm=TamisLLM(model="DeepSeek-V3.2"), node_postprocessors=[postprocessor])

Needs llama-index-core (`pip install tamis[llama-index]`).
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, List, Optional, Sequence

from llama_index.core.base.llms.types import (ChatMessage, ChatResponse, ChatResponseAsyncGen, ChatResponseGen,
                                              CompletionResponse, CompletionResponseAsyncGen, CompletionResponseGen,
                                              LLMMetadata, MessageRole)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeRelationship, NodeWithScore, QueryBundle, TextNode

from ._errors import known, wrong
from .answers import Answer, Reader
from .excerpts import Excerpt, Scorer, Selector

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
    _scorer: Scorer = PrivateAttr()

    def __init__(self, source: Any, budget: int = 512, window: int = 99, **named: Any):
        known("TamisPostprocessor", named, type(self).model_fields)
        selector = Selector(source, budget, window=window)
        super().__init__(source=source, budget=budget, window=window, **named)
        self._scorer = selector.scorer

    @classmethod
    def class_name(cls) -> str:
        return "TamisPostprocessor"

    def _postprocess_nodes(self, nodes: List[NodeWithScore],
                           query_bundle: Optional[QueryBundle] = None) -> List[NodeWithScore]:
        if query_bundle is None:
            raise wrong("query_bundle: is None, expected the question")
        texts = [scored.node.get_content(metadata_mode=MetadataMode.NONE) for scored in nodes]
        selector = Selector(self._scorer, self.budget, window=self.window)
        return [excerpt_of(nodes[excerpt.document], excerpt)
                for excerpt in selector.select(query_bundle.query_str, texts)]


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
        known("TamisLLM", named, type(self).model_fields)
        super().__init__(model=model, **named)
        self._reader = Reader(model, template=self.template)

    @classmethod
    def class_name(cls) -> str:
        return "TamisLLM"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=self._reader.model.info.max_tokens, num_output=self.max_tokens,
                           is_chat_model=True, model_name=self._reader.name)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **named: Any) -> CompletionResponse:
        answer = self._answer(prompt, named)
        return CompletionResponse(text=answer.finish(), **about(answer))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **named: Any) -> CompletionResponseGen:
        answer = self._answer(prompt, named)

        def pieces() -> CompletionResponseGen:
            for piece in answer:
                yield CompletionResponse(text=answer.text, delta=piece)
            yield CompletionResponse(text=answer.text, delta="", **about(answer))
        return pieces()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **named: Any) -> ChatResponse:
        answer = self._answer([turn(message) for message in messages], named)
        return ChatResponse(message=said(answer.finish()), **about(answer))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **named: Any) -> ChatResponseGen:
        answer = self._answer([turn(message) for message in messages], named)

        def pieces() -> ChatResponseGen:
            for piece in answer:
                yield ChatResponse(message=said(answer.text), delta=piece)
            yield ChatResponse(message=said(answer.text), delta="", **about(answer))
        return pieces()

    # The same beside an event loop, which CustomLLM's own would hold up. The functions called here tell the callbacks.

    async def acomplete(self, prompt: str, formatted: bool = False, **named: Any) -> CompletionResponse:
        return await asyncio.to_thread(self.complete, prompt, formatted, **named)

    async def astream_complete(self, prompt: str, formatted: bool = False, **named: Any) -> CompletionResponseAsyncGen:
        return beside(await asyncio.to_thread(self.stream_complete, prompt, formatted, **named))

    async def achat(self, messages: Sequence[ChatMessage], **named: Any) -> ChatResponse:
        return await asyncio.to_thread(self.chat, messages, **named)

    async def astream_chat(self, messages: Sequence[ChatMessage], **named: Any) -> ChatResponseAsyncGen:
        return beside(await asyncio.to_thread(self.stream_chat, messages, **named))

    def _answer(self, prompt: Any, named: dict[str, Any]) -> Answer:
        documents = [document if isinstance(document, str) else getattr(document, "node", document).get_content(
            metadata_mode=MetadataMode.NONE) for document in named.pop("documents", None) or []]
        sampling = {name: named.pop(name, getattr(self, name)) for name in SAMPLING}
        stop = named.pop("stop", None) or self.stop
        known("TamisLLM", named)
        return self._reader.answer(prompt, documents=documents, stop=stop, **sampling)


ROLES = {MessageRole.SYSTEM: "system", MessageRole.DEVELOPER: "developer", MessageRole.USER: "user",
         MessageRole.ASSISTANT: "assistant", MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant"}


async def beside(pieces: Iterator[Any]) -> Any:
    """What an iterator gives, each taken in a thread."""
    end = object()
    while (piece := await asyncio.to_thread(next, pieces, end)) is not end:
        yield piece


def turn(message: ChatMessage) -> dict[str, str]:
    """A message whose text is all of it; what a model has thought is left out."""
    if message.role not in ROLES:
        raise wrong(f"TamisLLM: a message of role {message.role.value!r} is not supported, expected "
                    f"{', '.join(role.value for role in ROLES)}")
    if message.additional_kwargs.get("tool_calls"):
        raise wrong("TamisLLM: messages with tool calls are not supported")
    for block in message.blocks:
        if block.block_type not in ("text", "thinking"):
            raise wrong(f"TamisLLM: content of type {block.block_type!r} is not supported, expected text")
    return {"role": ROLES[message.role], "content": message.content or ""}


def said(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def about(answer: Answer) -> dict[str, Any]:
    """What the last response of an answer has besides its text; LlamaIndex's token counter looks into "raw"."""
    usage = answer.usage
    return {"raw": {"usage": usage}, "additional_kwargs": {
        **{name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
        "cached_tokens": answer.cached_tokens, "finish_reason": answer.finish_reason, "sources": answer.sources}}
