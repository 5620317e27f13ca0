"""Tamis in Haystack: `TamisChatGenerator`, a local model, and `TamisExcerpts`, a component that keeps the excerpts a
question needs.

    pipeline.add_component("excerpts", TamisExcerpts("sentence-transformers/all-MiniLM-L6-v2", budget=512))
    pipeline.add_component("generator", TamisChatGenerator("DeepSeek-V3.2"))

A pipeline with them is written by `dumps` and read by `Pipeline.loads(text, allowed_modules=["tamis.*"])`.
Needs haystack-ai (`pip install tamis[haystack]`), and sentence-transformers for a source that is a name.
"""
from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import pathlib
from typing import Any, Optional

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.dataclasses import (ChatMessage, ComponentInfo, StreamingCallbackT, StreamingChunk,
                                  select_streaming_callback)
from haystack.utils import deserialize_callable, serialize_callable

from ._context import UINT32, Context
from ._errors import known, wrong
from ._model import Model
from ._tensors import integer
from .answers import Answer, Reader
from .excerpts import BIGGEST, Excerpt, Selector

__all__ = ["TamisChatGenerator", "TamisExcerpts"]


@component
class TamisExcerpts:
    """Cuts documents to excerpts of at most `budget` tokens together, in the order of the documents.

    Each excerpt is a `Document` with the meta data of its own, and in it "excerpt_start" and "excerpt_end" (characters
    of the given document), "excerpt_tokens", "source_id" (the given document's) and "retrieval_score"; its score is the
    indexer's. Documents without text give nothing.
    """

    def __init__(self, source: Any, budget: int = 512, window: int = 99, threads: int = 0):
        """
        :param source: the name or folder of a sentence-transformers model, the directory of a checkpoint whose own
            indexer is to choose, or an object that is a `tamis.excerpts.TokenEmbedder` or `Scorer` (with `to_dict` if
            the pipeline is to be written down).
        :param budget: most tokens that all excerpts of a run have together.
        :param window: tokens over which scores are smoothed.
        :param threads: most threads that Tamis uses; 0: all that this process may use.
        """
        self.source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.budget = integer(budget, "budget", 1, BIGGEST)
        self.window = integer(window, "window", 1, BIGGEST)
        self.threads = integer(threads, "threads", 0, UINT32)
        self._selector: Selector | None = None

    def warm_up(self) -> None:
        """Loads a named model."""
        if self._selector is None:
            ctx = Context(threads=self.threads)
            source = named(self.source, ctx) if isinstance(self.source, str) else self.source
            self._selector = Selector(source, self.budget, window=self.window, ctx=ctx)

    def to_dict(self) -> dict[str, Any]:
        if not isinstance(self.source, str) and not hasattr(self.source, "to_dict"):
            raise wrong(f"TamisExcerpts: source is {type(self.source).__name__} without to_dict, expected a name or an "
                        "object that can be written down")
        return default_to_dict(self, source=self.source, budget=self.budget, window=self.window, threads=self.threads)

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


def named(source: str, ctx: Context) -> Any:
    """A checkpoint directory as a model, everything else as a sentence-transformers model, loaded."""
    folder = pathlib.Path(source)
    if (folder / "config.json").exists() and not (folder / "modules.json").exists():
        return Model(source, ctx)
    from .sentence_transformers import TokenVectors
    vectors = TokenVectors(source)
    vectors.load()
    return vectors


def excerpt_of(document: Document, excerpt: Excerpt) -> Document:
    meta = {**document.meta, "excerpt_start": excerpt.start, "excerpt_end": excerpt.end,
            "excerpt_tokens": excerpt.tokens, "source_id": document.id, "retrieval_score": document.score}
    return dataclasses.replace(document, id="", content=excerpt.text, meta=meta, score=excerpt.score, embedding=None,
                               sparse_embedding=None)


@component
class TamisChatGenerator:
    """A model of the DSA family on this machine's CPU. It streams, and remembers the beginnings of prompts it has read.

    A reply's meta has "finish_reason", "usage" (with the tokens read before as "cached_tokens" of
    "prompt_tokens_details") and "sources": [{"id": ..., "share": ...}, ...], the share of attention that the answer
    gave to each document.
    """

    def __init__(self, model: str | os.PathLike[str], template: Optional[Any] = None,
                 generation_kwargs: Optional[dict[str, Any]] = None,
                 streaming_callback: Optional[StreamingCallbackT] = None, threads: int = 0):
        """
        :param model: the directory of a checkpoint.
        :param template: makes the prompt of a conversation, as text, from [{"role": ..., "content": ...}, ...]; None:
            deepseek_v32's own encoding.
        :param generation_kwargs: max_tokens, temperature, top_k, top_p, seed, stop.
        :param streaming_callback: called with each piece of the answer.
        :param threads: most threads that Tamis uses; 0: all that this process may use.
        """
        self.model = os.fspath(model) if isinstance(model, os.PathLike) else model
        self.template = template
        self.generation_kwargs = generation_kwargs or {}
        self.streaming_callback = streaming_callback
        self.threads = integer(threads, "threads", 0, UINT32)
        self._reader: Reader | None = None

    def warm_up(self) -> None:
        """Opens the model."""
        if self._reader is None:
            model = self.model if isinstance(self.model, Model) else Model(self.model, Context(threads=self.threads))
            self._reader = Reader(model, template=self.template)

    def to_dict(self) -> dict[str, Any]:
        functions = {"template": self.template, "streaming_callback": self.streaming_callback}
        return default_to_dict(
            self, model=self.model, generation_kwargs=self.generation_kwargs, threads=self.threads,
            **{name: function and serialize_callable(function) for name, function in functions.items()})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TamisChatGenerator:
        given = dict(data["init_parameters"])
        for name in ("template", "streaming_callback"):
            if given.get(name) is not None:
                given[name] = deserialize_callable(given[name])
        return default_from_dict(cls, {**data, "init_parameters": given})

    @component.output_types(replies=list[ChatMessage])
    def run(self, messages: list[ChatMessage] | str, documents: Optional[list[Document]] = None,
            streaming_callback: Optional[StreamingCallbackT] = None,
            generation_kwargs: Optional[dict[str, Any]] = None) -> dict[str, list[ChatMessage]]:
        """
        :param messages: the conversation, or what a user says.
        :param documents: those that stand in the conversation, for "sources".
        :param streaming_callback: instead of the component's own.
        :param generation_kwargs: on top of the component's own.
        """
        tell = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=False)
        given = [document for document in documents or [] if document.content]
        answer = self._begin(messages, given, generation_kwargs)
        for piece in answer:
            if tell is not None:
                tell(self._chunk(answer, piece))
        reply = self._reply(answer, given)
        if tell is not None:
            tell(self._chunk(answer, "", reply.meta))
        return {"replies": [reply]}

    @component.output_types(replies=list[ChatMessage])
    async def run_async(self, messages: list[ChatMessage] | str, documents: Optional[list[Document]] = None,
                        streaming_callback: Optional[StreamingCallbackT] = None,
                        generation_kwargs: Optional[dict[str, Any]] = None) -> dict[str, list[ChatMessage]]:
        """As `run`, with the work in threads; the callback, a coroutine's too, is called in the event loop."""
        tell = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=True)
        given = [document for document in documents or [] if document.content]
        answer = await asyncio.to_thread(self._begin, messages, given, generation_kwargs)
        while (piece := await asyncio.to_thread(next, answer, None)) is not None:
            if tell is not None:
                await told(tell, self._chunk(answer, piece))
        reply = self._reply(answer, given)
        if tell is not None:
            await told(tell, self._chunk(answer, "", reply.meta))
        return {"replies": [reply]}

    def _begin(self, messages: list[ChatMessage] | str, documents: list[Document],
               generation_kwargs: Optional[dict[str, Any]]) -> Answer:
        self.warm_up()
        assert self._reader is not None
        named = {**self.generation_kwargs, **(generation_kwargs or {})}
        known("generation_kwargs", named, ("max_tokens", "temperature", "top_k", "top_p", "seed", "stop"))
        said = [ChatMessage.from_user(messages)] if isinstance(messages, str) else messages
        return self._reader.answer([turn(message) for message in said],
                                   documents=[document.content or "" for document in documents], **named)

    def _chunk(self, answer: Answer, piece: str, meta: Optional[dict[str, Any]] = None) -> StreamingChunk:
        """A piece of an answer; with its meta data the end of it."""
        return StreamingChunk(
            content=piece, meta=meta or {}, component_info=ComponentInfo.from_component(self), index=0,
            start=bool(piece) and piece == answer.text, finish_reason=answer.finish_reason if meta else None)

    def _reply(self, answer: Answer, documents: list[Document]) -> ChatMessage:
        assert self._reader is not None
        sources = [{"id": document.id, "share": share} for document, share in zip(documents, answer.sources or [])]
        return ChatMessage.from_assistant(answer.text, meta={
            "model": self._reader.name, "index": 0, "finish_reason": answer.finish_reason, "usage": answer.usage,
            "sources": sources})


async def told(tell: StreamingCallbackT, chunk: StreamingChunk) -> None:
    result = tell(chunk)
    if inspect.isawaitable(result):
        await result


def turn(message: ChatMessage) -> dict[str, str]:
    """A message whose text is all of it; what a model has thought is left out."""
    for name in ("tool_calls", "tool_call_results", "images", "files"):
        if getattr(message, name, None):
            raise wrong(f"TamisChatGenerator: {name} of messages are not supported, expected text")
    return {"role": message.role.value, "content": "".join(message.texts)}
