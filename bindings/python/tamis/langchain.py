"""Tamis in LangChain: `ChatTamis`, a local chat model, and `TamisCompressor`, a document compressor that keeps the
excerpts a question needs.

    compressor = TamisCompressor(source=TokenVectors("sentence-transformers/all-MiniLM-L6-v2"), budget=512)
    documents = compressor.compress_documents(retrieved, "Which key wins a tie?")
    chat = ChatTamis(model="DeepSeek-V3.2", max_tokens=200)
    chat.invoke(prompt, documents=documents).response_metadata["sources"]

Needs langchain-core (`pip install tamis[langchain]`).
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun, Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, PrivateAttr

from ._errors import known, unsupported, wrong
from .answers import Answer, Reader
from .excerpts import Excerpt, Scorer, Selector

__all__ = ["ChatTamis", "TamisCompressor"]

ROLES = {"system": "system", "human": "user", "ai": "assistant"}


class TamisCompressor(BaseDocumentCompressor):
    """Cuts retrieved documents to excerpts of at most `budget` tokens together, in the order of the documents.

    source: a `tamis.excerpts.TokenEmbedder` or `Scorer`. window: tokens over which scores are smoothed.
    Each excerpt is a `Document` with the metadata of its own, and in it "excerpt_start" and "excerpt_end" (characters
    of the given document), "excerpt_tokens" and "relevance_score"; "start_index", where a splitter set it, moves along.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    source: Any
    budget: int = 512
    window: int = 99
    _scorer: Scorer = PrivateAttr()

    def __init__(self, source: Any, budget: int = 512, window: int = 99, **named: Any):
        known("TamisCompressor", named, type(self).model_fields)
        selector = Selector(source, budget, window=window)
        super().__init__(source=source, budget=budget, window=window, **named)
        self._scorer = selector.scorer

    def compress_documents(self, documents: Sequence[Document], query: str,
                           callbacks: Callbacks | None = None) -> Sequence[Document]:
        selector = Selector(self._scorer, self.budget, window=self.window)
        found = selector.select(query, [document.page_content for document in documents])
        return [excerpt_of(documents[excerpt.document], excerpt) for excerpt in found]


def excerpt_of(document: Document, excerpt: Excerpt) -> Document:
    metadata = {**document.metadata, "excerpt_start": excerpt.start, "excerpt_end": excerpt.end,
                "excerpt_tokens": excerpt.tokens, "relevance_score": excerpt.score}
    if isinstance(metadata.get("start_index"), int):
        metadata["start_index"] += excerpt.start
    return Document(page_content=excerpt.text, metadata=metadata, id=document.id)


class ChatTamis(BaseChatModel):
    """A model of the DSA family on this machine's CPU. It streams, and remembers the beginnings of prompts it has read.

    model: a `tamis.Model`, or the directory of one. max_tokens 0: as many as the model has room for. template: makes
    the prompt of a conversation, as text, from [{"role": ..., "content": ...}, ...]; None: deepseek_v32's own encoding.

    `invoke`, `stream` and `bind` take max_tokens, temperature, top_k, top_p, seed and stop, and `documents`: the texts
    or `Document`s that stand in the prompt. The answer's `usage_metadata` has the tokens, with those read before as
    "cache_read"; its `response_metadata` "model_name", "finish_reason" and "sources", the share of attention for each
    document. Tools and contents other than text are refused. What only services have (timeout, max_retries,
    api_key, streaming) is accepted when it is made, and means nothing.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    model: Any
    max_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: list[str] | None = None
    template: Callable[[Any], str] | None = None
    _reader: Reader = PrivateAttr()

    def __init__(self, **named: Any):
        known("ChatTamis", named, [*type(self).model_fields, *OF_SERVICES])
        if "model" not in named:
            raise wrong("ChatTamis: model is missing, expected a tamis.Model or the directory of one")
        super().__init__(**{name: value for name, value in named.items() if name not in OF_SERVICES})
        self._reader = Reader(self.model, template=self.template)

    @property
    def _llm_type(self) -> str:
        return "tamis"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Also what LangChain's caches of answers tell models apart by, beside the "stop" of a call."""
        return {"model": os.path.abspath(self._reader.model.directory), "template": called(self.template),
                "own_stop": self.stop, **{name: getattr(self, name) for name in SAMPLING}}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        return LangSmithParams(**{"ls_model_name": self._reader.name, **params, "ls_provider": "tamis"})

    def get_token_ids(self, text: str) -> list[int]:
        return self._reader.model.tokenize(text, bare=True).tolist()

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        raise unsupported("ChatTamis: tools are not supported")

    def _generate(self, messages: list[BaseMessage], stop: list[str] | None = None,
                  run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any) -> ChatResult:
        answer = self._answer(messages, stop, kwargs)
        for piece in answer:
            if run_manager is not None:
                run_manager.on_llm_new_token(piece)
        message = AIMessage(content=answer.text, usage_metadata=usage(answer), response_metadata=self._about(answer))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages: list[BaseMessage], stop: list[str] | None = None,
                run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        answer = self._answer(messages, stop, kwargs)
        for piece in answer:
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield ChatGenerationChunk(message=AIMessageChunk(
            content="", usage_metadata=usage(answer), response_metadata=self._about(answer), chunk_position="last"))

    def _answer(self, messages: list[BaseMessage], stop: list[str] | None, named: dict[str, Any]) -> Answer:
        documents = [document.page_content if isinstance(document, Document) else document
                     for document in named.pop("documents", None) or []]
        sampling = {name: named.pop(name, getattr(self, name)) for name in SAMPLING}
        known("ChatTamis", named)
        return self._reader.answer([turn(message) for message in messages], documents=documents,
                                   stop=stop or self.stop or [], **sampling)

    def _about(self, answer: Answer) -> dict[str, Any]:
        return {"model_provider": "tamis", "model_name": self._reader.name, "finish_reason": answer.finish_reason,
                "sources": answer.sources}


SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "seed")
OF_SERVICES = ("timeout", "max_retries", "api_key", "streaming")


def called(function: Callable[..., Any] | None) -> str | None:
    """A name that no other function has, as long as it lives."""
    name = getattr(function, "__qualname__", "<")
    return None if function is None else repr(function) if "<" in name else f"{function.__module__}.{name}"


def turn(message: BaseMessage) -> dict[str, str]:
    """A message whose text is all of it; what a model has thought is left out."""
    if message.type not in ROLES:
        raise wrong(f"ChatTamis: a message of type {message.type!r} is not supported, expected {', '.join(ROLES)}")
    if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        raise wrong("ChatTamis: messages with tool calls are not supported")
    for block in message.content_blocks:
        if block["type"] not in ("text", "reasoning"):
            raise wrong(f"ChatTamis: content of type {block['type']!r} is not supported, expected text")
    return {"role": ROLES[message.type], "content": message.text}


def usage(answer: Answer) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=answer.prompt_tokens, output_tokens=answer.tokens,
        total_tokens=answer.prompt_tokens + answer.tokens,
        input_token_details=InputTokenDetails(cache_read=answer.cached_tokens))
