"""Text from models, as an iterator. Owns the handle of a generation and the options it needs while it lives; choosing,
stopping and holding back what is not certain yet are the C library's."""
from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping, Sequence as Many
from typing import TYPE_CHECKING, Any

from . import _c
from ._cache import Sequence
from ._context import UINT32, Handle, Owner
from ._errors import wrong
from ._evaluate import Options, as_tokens, int32s
from ._tensors import integer, strings

if TYPE_CHECKING:
    from ._model import Model

STOP = {number: name[5:].lower() for name, number in _c.STOP.items()}
ROLES = {name[5:].lower(): number for name, number in _c.ROLE.items()}


class Generation(Owner, Iterator[str]):
    """A text in the making: iterating gives its pieces, whole characters, as soon as they are certain (`Model.generate`
    makes one). An iteration that was ended early can be taken up again, also after an exception of memory, budget or
    cancel.

    tokens: ids chosen so far, the end token included. stop: None while it goes on, else "end_token", "text",
    "max_tokens" or "full". prompt_tokens, prefill_seconds, decode_seconds. sequence: where it lies; afterwards it
    holds the prompt and the tokens without the last one.
    """

    def __init__(self, model: Model, prompt: Any, sequence: Sequence | None, max_tokens: int, sampling: _c.SamplerOptions,
                 stop: Many[str], stop_tokens: Any, ignore_end: bool, evaluation: Mapping[str, Any]):
        self._handle = None
        self.tokens: list[int] = []
        self.stop: str | None = None
        self.sequence = model.cache().sequence() if sequence is None else sequence
        self._text: list[str] = []
        self._evaluation = Options(evaluation, 1)
        ids = as_tokens(prompt)
        options = generate_options(max_tokens, sampling, stop, stop_tokens, ignore_end)
        options.eval = ctypes.pointer(self._evaluation.c)
        home, seq = model._open(), self.sequence._open()
        self._evaluation.run(lambda: self._create(home, seq, ids, options))
        self._step = _c.Generated(prompt_tokens=len(ids))

    def _create(self, home: Handle, seq: Handle, ids: Any, options: _c.GenerateOptions) -> None:
        self._handle = Handle(
            _c.generation_free,
            lambda made: _c.generation_create(home.pointer, seq.pointer, int32s(ids), len(ids), options, made),
            home, seq, self._evaluation)

    def __next__(self) -> str:
        while self.stop is None:
            handle, step = self._open(), self._step
            self._evaluation.run(lambda: _c.generation_next(handle.pointer, step))
            if step.token >= 0:
                self.tokens.append(step.token)
            text = ctypes.string_at(step.text, step.bytes).decode() if step.bytes else ""
            if step.stop != _c.STOP["STOP_NONE"]:
                self.stop = STOP[step.stop]
            if text:
                self._text.append(text)
                return text
        raise StopIteration

    @property
    def text(self) -> str:
        """What was handed out so far."""
        return "".join(self._text)

    @property
    def prompt_tokens(self) -> int:
        return self._step.prompt_tokens

    @property
    def prefill_seconds(self) -> float:
        return self._step.prefill_seconds

    @property
    def decode_seconds(self) -> float:
        return self._step.decode_seconds

    def finish(self) -> str:
        """The whole text, made to its end."""
        for _ in self:
            pass
        return self.text


def generate_options(max_tokens: int, sampling: _c.SamplerOptions, stop: str | Many[str], stop_tokens: Any,
                     ignore_end: bool) -> _c.GenerateOptions:
    """tamis_generate_options; it keeps what it points to alive."""
    ends, texts = as_tokens(stop_tokens), [stop] if isinstance(stop, str) else strings(stop, "stop")
    if any("\0" in text for text in texts):
        raise wrong("stop: a text contains a zero character")
    return _c.GenerateOptions(
        max_tokens=integer(max_tokens, "max_tokens", 0, UINT32), sampler=ctypes.pointer(sampling),
        stop_tokens=int32s(ends), stop_token_count=len(ends),
        stop_texts=(ctypes.c_char_p * len(texts))(*(text.encode() for text in texts)),
        stop_text_count=len(texts), ignore_end=bool(ignore_end))


def messages(turns: Many[Mapping[str, Any]]) -> Any:
    """Turns as tamis_message [n]; it keeps the texts alive."""
    made = (_c.Message * len(turns))()
    for message, turn in zip(made, turns):
        if turn.get("role") not in ROLES:
            raise wrong(f"messages: role {turn.get('role')!r} is not one of {', '.join(ROLES)}")
        message.role = ROLES[turn["role"]]
        for key, value in turn.items():
            if key in PARTS:
                text = PARTS[key](value).encode() if value else b""
                name = "reasoning" if key == "reasoning_content" else key
                setattr(message, name, text)
                setattr(message, name + "_bytes", len(text))
            elif key not in IGNORED:
                raise wrong(f"messages: {key!r} is not one of {', '.join(PARTS)}")
    return made


def dumped(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise wrong(f"messages: {error}") from None


# What a turn may have, and how it becomes a text; the results of tools come in the order of their calls.
PARTS = {"content": str, "reasoning_content": str, "tools": dumped, "tool_calls": dumped, "response_format": dumped}
IGNORED = {"role", "tool_call_id", "name"}
