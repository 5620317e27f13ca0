"""Many requests on one model at a time. Owns the handle of a scheduler, which thread steps, and the pieces of each request
until they are read; who runs when, and what everyone gets, are the C library's."""
from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence as Many
from typing import Any

from . import _c
from ._cache import Cache, Sequence
from ._context import INT32, UINT32, UINT64, Handle, Owner
from ._errors import CancelledError, Error, error, wrong
from ._evaluate import ATTENTION, as_tokens, int32s, sampler
from ._generate import STOP, generate_options
from ._meter import Meter
from ._model import Model
from ._tensors import integer


@dataclasses.dataclass(frozen=True)
class SchedulerStats:
    """waiting, running (with pages) and untaken (ended, and nobody was told): now. The others since the beginning:
    requests submitted, finished, cancelled, failed; preemptions; steps and the seconds spent in them; tokens evaluated
    (of prompts and texts), of these again after a preemption, and chosen."""

    waiting: int
    running: int
    untaken: int
    submitted: int
    finished: int
    cancelled: int
    failed: int
    preemptions: int
    steps: int
    evaluated_tokens: int
    repeated_tokens: int
    output_tokens: int
    step_seconds: float


class Request(Iterator[str], AsyncIterator[str]):
    """A request in a scheduler: iterating (`for`, or `async for`) gives its pieces of text as soon as they are certain.

    number: as the scheduler counts. tokens: ids chosen so far. stop: None while it goes on, else "end_token", "text",
    "max_tokens", "full", "caller" (it was cancelled) or "failed" (iterating then raises why). prompt_tokens,
    prefix_tokens, output_tokens, preemptions. waiting_seconds, first_seconds and seconds: from its submission until it
    began, to its first token, and to its latest one.
    """

    def __init__(self, scheduler: Scheduler, number: int, held: Any):
        self.number = number
        self.tokens: list[int] = []
        self.stop: str | None = None
        self._scheduler, self._held = scheduler, held
        self._text: list[str] = []
        self._pieces: deque[str] = deque()
        self._failure: BaseException | None = None
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future]] = []
        self._counts = _c.Served()

    def _take(self, served: _c.Served) -> None:
        """What came, under the scheduler's condition."""
        self._counts = served
        self.tokens += served.tokens[:served.token_count]
        if served.bytes:
            piece = ctypes.string_at(served.text, served.bytes).decode()
            self._text.append(piece)
            self._pieces.append(piece)
        if served.stop != _c.STOP["STOP_NONE"]:
            self.stop = STOP[served.stop]
            if served.stop == _c.STOP["STOP_FAILED"]:
                self._failure = error(served.status, _c.status_name(served.status).decode(), served.error.decode())
            self._held = None
        self._wake()

    def _fail(self, failure: BaseException) -> None:
        self._failure, self.stop = failure, self.stop or "failed"
        self._wake()

    def _wake(self) -> None:
        for loop, waiter in self._waiters:
            loop.call_soon_threadsafe(lambda one=waiter: one.done() or one.set_result(None))
        self._waiters.clear()

    @property
    def _has_news(self) -> bool:
        return bool(self._pieces) or self.stop is not None

    def _piece(self, ended: type[Exception]) -> str | None:
        """The next one; None while there is none yet. Raises what it failed with, or that it has ended. Under the
        scheduler's condition."""
        if self._pieces:
            return self._pieces.popleft()
        if self._failure is not None:
            raise self._failure
        if self.stop is not None:
            raise ended
        return None

    def __next__(self) -> str:
        while True:
            with self._scheduler._changed:
                if (piece := self._piece(StopIteration)) is not None:
                    return piece
            self._scheduler._advance(self)

    def __aiter__(self) -> Request:
        return self

    async def __anext__(self) -> str:
        loop = asyncio.get_running_loop()
        while True:
            with self._scheduler._changed:
                if (piece := self._piece(StopAsyncIteration)) is not None:
                    return piece
                waiter = loop.create_future()
                self._waiters.append((loop, waiter))
            if self._scheduler._thread is None:
                await loop.run_in_executor(None, self._scheduler._advance, self)
            else:
                await waiter

    def cancel(self) -> None:
        """It ends with the next step; from any thread."""
        self._scheduler._cancel(self.number)

    def finish(self) -> str:
        """The whole text, made to its end."""
        for _ in self:
            pass
        return self.text

    @property
    def text(self) -> str:
        """What came so far."""
        return "".join(self._text)

    def __getattr__(self, name: str) -> Any:
        if name in ("prompt_tokens", "prefix_tokens", "output_tokens", "preemptions", "waiting_seconds",
                    "first_seconds", "seconds"):
            return getattr(self._counts, name)
        raise AttributeError(name)


class Scheduler(Owner):
    """Many requests on one model and one cache, together: each gets the tokens it would get alone.

        with tamis.Scheduler(model, threaded=True) as scheduler:
            requests = [scheduler.submit(prompt, max_tokens=64) for prompt in prompts]
            for piece in requests[0]:                      # or: async for
                print(piece, end="", flush=True)

    cache: of this model; None: one of its own, which is `cache`. max_running: requests that hold pages at a time (0: 64).
    max_waiting: requests that may wait (0: 4096). step_tokens: most tokens that a step evaluates (0: 256): fewer for an
    even pace, more for faster prompts. max_bytes: of the cache's pages; 0: no limit. attention, top_k: as in `Model.eval`,
    for all requests. threaded: a thread of this object's steps while there is something to do, and `close` (or the end of
    `with`) ends it. False: whoever iterates over a request steps for all, or the host calls `step`.

    submit, cancel and iterating are for any thread at any time.
    """

    def __init__(self, model: Model, cache: Cache | None = None, *, max_running: int = 0, max_waiting: int = 0,
                 step_tokens: int = 0, max_bytes: int = 0, attention: str = "automatic", top_k: int = 0,
                 threaded: bool = False):
        self._handle = None
        if attention not in ATTENTION:
            raise wrong(f"attention: {attention!r} is not one of {', '.join(ATTENTION)}")
        options = _c.SchedulerOptions(
            max_running=integer(max_running, "max_running", 0, UINT32),
            max_waiting=integer(max_waiting, "max_waiting", 0, UINT32),
            step_tokens=integer(step_tokens, "step_tokens", 0, UINT32),
            max_bytes=integer(max_bytes, "max_bytes", 0, UINT64), attention=ATTENTION[attention],
            top_k=integer(top_k, "top_k", 0, UINT32))
        self.model = model
        self.cache = model.cache() if cache is None else cache
        home, pages = model._open(), self.cache._open()
        self._handle = Handle(
            _c.scheduler_free,
            lambda made: _c.scheduler_create(home.pointer, pages.pointer, options, made), home, pages)
        self.left = 0
        """Requests that waited or ran after the latest step."""
        self._requests: dict[int, Request] = {}
        self._stepping = threading.Lock()
        self._changed = threading.Condition()  # also guards _requests and what requests have
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name="tamis.Scheduler", daemon=True)
            self._thread.start()

    def submit(self, prompt: str | bytes | Any, *, prefix: Sequence | None = None, tenant: int = 0, priority: int = 0,
               meter: Meter | None = None, max_tokens: int = 0, temperature: float = 0.0, top_k: int = 0,
               top_p: float = 1.0, seed: int = 0, stop: str | Many[str] = (), stop_tokens: Any = (),
               ignore_end: bool = False) -> Request:
        """A prompt to be continued, a text or token ids of at least one token.

        prefix: a sequence of the same cache that comes before the prompt, such as a document; its pages are shared.
        tenant: on whose behalf (a number); tenants get equal shares. priority: within a tenant the higher one begins
        first, and among all the lower one gives way first. meter: pays for the request's part of every step and its
        tokens. The others as in `Model.generate`.
        """
        if isinstance(prompt, (str, bytes)):
            prompt = self.model.tokenize(prompt)
        ids = as_tokens(prompt)
        generate = generate_options(max_tokens, sampler(temperature, top_k, top_p, seed), stop, stop_tokens, ignore_end)
        before, payer = prefix and prefix._open(), meter and meter._open()
        options = _c.SubmitOptions(
            priority=integer(priority, "priority", -INT32 - 1, INT32), tenant=integer(tenant, "tenant", 0, UINT64),
            prefix=before and before.pointer, meter=payer and payer.pointer, generate=ctypes.pointer(generate))
        handle, number = self._open(), ctypes.c_uint64()
        with self._changed:
            _c.scheduler_submit(handle.pointer, int32s(ids), len(ids), options, number)
            made = self._requests[number.value] = Request(self, number.value, (before, payer))
            self.left += 1
            self._changed.notify_all()
        return made

    def step(self) -> list[Request]:
        """One iteration; the requests that have news. `left` then says whether there is more to do."""
        with self._stepping:
            return self._step()

    def _step(self) -> list[Request]:
        handle, left, found = self._open(), ctypes.c_uint64(), []
        _c.scheduler_step(handle.pointer, left)
        with self._changed:
            self.left = left.value
            while True:
                served = _c.Served()
                _c.scheduler_next(handle.pointer, served)
                if served.request == 0:
                    break
                request = self._requests.get(served.request)
                if request is None:  # closed meanwhile
                    continue
                request._take(served)
                if request.stop is not None:
                    del self._requests[served.request]
                found.append(request)
            # Those that came while the step ran are not in `left`.
            self.left = max(self.left, len(self._requests))
            self._changed.notify_all()
        return found

    def _advance(self, request: Request) -> None:
        """Until the request has news; without a thread at most one step."""
        if self._thread is not None:
            with self._changed:
                self._changed.wait_for(lambda: request._has_news)
            return
        with self._stepping:
            if not request._has_news:
                self._step()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.left > 0 or self._handle is None)
                if self._handle is None:
                    return
            try:
                self.step()
            except CancelledError:
                continue  # nothing has changed
            except Error as failure:
                with self._changed:
                    if self._handle is not None:
                        self._end(failure)
                return

    def _cancel(self, number: int) -> None:
        handle = self._handle
        if handle is not None:
            _c.scheduler_cancel(handle.pointer, number)

    def _end(self, failure: BaseException) -> None:
        for request in self._requests.values():
            request._fail(failure)
        self._requests.clear()
        self._changed.notify_all()

    def stats(self) -> SchedulerStats:
        read = _c.SchedulerStats()
        _c.scheduler_read_stats(self._open().pointer, read)
        return SchedulerStats(**{field.name: getattr(read, field.name) for field in dataclasses.fields(SchedulerStats)})

    def close(self) -> None:
        """Requests that have not ended fail; a second call does nothing."""
        with self._changed:
            super().close()
            self._end(wrong("Scheduler: is closed"))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
