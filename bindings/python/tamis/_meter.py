"""Meters, budgets and their exports. Owns `with` (charge this block's calls, hold this amount) and the parsing of exported
JSON; counting, limits and texts are the C library's."""
from __future__ import annotations

import ctypes
import dataclasses
import decimal
import json
import time
from collections.abc import Iterable
from typing import Any

from . import _c
from ._context import UINT64, Context, Handle, Owner
from ._errors import wrong
from ._plan import Bill, Cost, Machine, Number, Prices, amount, choice, cost_struct, encoded, read_text
from ._tensors import integer

FORMATS = ("json", "prometheus", "opentelemetry", "openai", "langchain", "csv")


@dataclasses.dataclass(frozen=True)
class Amount:
    """What budgets limit, reservations hold and settlements spend; None: this unit does not count.

    money: str, int or decimal.Decimal, in `currency`. tokens: input and output together.
    """

    money: Number | None = None
    tokens: int | None = None
    flops: int | None = None
    nanoseconds: int | None = None
    currency: str = "USD"

    def _struct(self) -> _c.Amount:
        fields: dict[str, Any] = {}
        units = 0
        if self.money is not None:
            text, code = amount(self.money, "money"), encoded(self.currency, "currency")
            if len(text) > 63 or len(code) > 7:
                raise wrong("money: the amount or its currency is too long")
            fields.update(money=text, currency=code)
            units |= _c.UNIT["UNIT_MONEY"]
        for name in ("tokens", "flops", "nanoseconds"):
            value = getattr(self, name)
            if value is not None:
                fields[name] = integer(value, name, 0, UINT64)
                units |= _c.UNIT["UNIT_" + name.upper()]
        return _c.Amount(units=units, **fields)

    @staticmethod
    def _of(found: _c.Amount) -> Amount:
        fields: dict[str, Any] = {}
        if found.units & _c.UNIT["UNIT_MONEY"]:
            fields.update(money=decimal.Decimal(found.money.decode()), currency=found.currency.decode())
        for name in ("tokens", "flops", "nanoseconds"):
            if found.units & _c.UNIT["UNIT_" + name.upper()]:
                fields[name] = getattr(found, name)
        return Amount(**fields)

    def _nothing(self) -> Amount:
        """Zero in the same units."""
        counts = {name: 0 for name in ("money", "tokens", "flops", "nanoseconds") if getattr(self, name) is not None}
        return Amount(currency=self.currency, **counts)


@dataclasses.dataclass(frozen=True)
class Budget:
    """A meter's limit, what open reservations hold, and what is spent."""

    limit: Amount
    reserved: Amount
    spent: Amount


class Meter(Owner):
    """A record of what work cost, with a label. Charges its parents, too.

        root = tamis.Meter.of(ctx)
        tenant = tamis.Meter("acme", root, budget=tamis.Amount(money="5"), machine=machine)
        with tenant:                                  # this thread's calls are charged to it
            ctx.attend(...)
        tenant.charge(input_tokens=4000, output_tokens=500)
        print(tenant.read(), tenant.prometheus(prices=tamis.Prices()))

    parent: a Meter, a Context (its root meter) or None. machine: estimates what a dense attention would have taken.
    budget: limits of what may be reserved here and below. energy: read the processor's energy (RAPL) while a `with` block
    runs; it is the whole machine's, so of two such blocks at a time neither is measured.
    Usable from many threads at once.
    """

    def __init__(self, label: str = "", parent: Meter | Context | None = None, *, budget: Amount | None = None,
                 machine: Machine | None = None, energy: bool = False):
        self._handle = None
        if isinstance(parent, Context):
            parent = Meter.of(parent)
        above = None if parent is None else parent._open()
        model = None if machine is None else machine._open()
        fields: dict[str, Any] = {"label": encoded(label, "label"), "energy": bool(energy)}
        if model is not None:
            fields["machine"] = model.pointer
        if budget is not None:
            fields["budget"] = ctypes.pointer(budget._struct())
        options = _c.MeterOptions(**fields)
        self.label = label
        self._handle = Handle(_c.meter_free, lambda made: _c.meter_create(above and above.pointer, options, made))

    @staticmethod
    def of(ctx: Context) -> Meter:
        """The root meter of a context: all its calls."""
        home = ctx._open()
        made = Meter.__new__(Meter)
        made.label = ""
        made._handle = Handle(_c.meter_free, lambda meter: _c.ctx_meter(home.pointer, meter))
        return made

    def __enter__(self) -> Meter:
        """From here to the end of the block this thread's calls are charged to this meter."""
        _c.meter_enter(self._open().pointer)
        return self

    def __exit__(self, *_: object) -> None:
        handle = self._handle  # a meter may be closed inside its block
        _c.meter_leave(handle and handle.pointer)

    def charge(self, cost: Cost | None = None, **fields: int) -> None:
        """Adds a Cost, or fields of one: charge(input_tokens=4000, cached_tokens=3600, output_tokens=500)."""
        _c.meter_charge(self._open().pointer, cost_struct(cost, fields))

    def read(self) -> Cost:
        """What was charged so far."""
        found = _c.Cost()
        _c.meter_read(self._open().pointer, found)
        return Cost._of(found)

    def bill(self, prices: Prices, kind: str = "list") -> Bill:
        """The bill of one kind, "list", "machine" or "energy", for what was charged so far."""
        return prices.bill(self.read(), kind)

    # -- budgets

    def budget(self) -> Budget:
        handle, found = self._open(), [_c.Amount() for _ in range(3)]
        _c.meter_budget(handle.pointer, *found)
        return Budget(*map(Amount._of, found))

    def set_budget(self, budget: Amount) -> None:
        """New limits, in the units of the old ones."""
        _c.meter_set_budget(self._open().pointer, budget._struct())

    def reserve(self, held: Amount | None = None, **fields: Any) -> Reservation:
        """Holds an upper bound before the work, or raises BudgetError.

            with meter.reserve(money="0.01", tokens=5000) as held:
                ...
                held.settle(money="0.004", tokens=4321)

        A block that does not settle, or fails, spends all that it reserved: the work may have been done.
        """
        wanted = Amount(**fields) if held is None else dataclasses.replace(held, **fields)
        handle, number = self._open(), ctypes.c_uint64()
        _c.meter_reserve(handle.pointer, wanted._struct(), number)
        return Reservation(handle, number.value, wanted)

    # -- exports

    def json_line(self, **about: Any) -> str:
        """One JSON object and a line feed. about: model (a name), prices, time_unix_nanoseconds (None: now)."""
        return export([self], "json", **about)

    def prometheus(self, **about: Any) -> str:
        """Prometheus' text format."""
        return export([self], "prometheus", **about)

    def opentelemetry(self, **about: Any) -> dict[str, Any]:
        """Span attributes: gen_ai.usage.* and tamis.*."""
        return json.loads(export([self], "opentelemetry", **about), parse_float=_figure)

    def openai_usage(self) -> dict[str, Any]:
        """The `usage` of an OpenAI chat completion."""
        return json.loads(export([self], "openai"))

    def langchain_usage(self) -> dict[str, Any]:
        """LangChain's `usage_metadata`."""
        return json.loads(export([self], "langchain"))

    def csv(self, *, header: bool = True, **about: Any) -> str:
        return export([self], "csv", header=header, **about)


def _figure(text: str) -> float:
    """A span attribute is a binary number; exact money is in the other exports."""
    return float(text)


def export(meters: Iterable[Meter], format: str, *, model: str = "", prices: Prices | None = None,
           time_unix_nanoseconds: int | None = None, header: bool = True) -> str:
    """The records of some meters as text: "json" (a line for each), "prometheus", "csv", or of one meter
    "opentelemetry", "openai" or "langchain" (a JSON object)."""
    number = 1 + choice(format, FORMATS, "format")
    handles = [meter._open() for meter in meters]
    home = None if prices is None else prices._open()
    now = time.time_ns() if time_unix_nanoseconds is None else time_unix_nanoseconds
    options = _c.ExportOptions(
        no_header=not header, model=encoded(model, "model"), prices=home and home.pointer,
        time_unix_nanoseconds=integer(now, "time_unix_nanoseconds", 0, UINT64))
    pointers = (ctypes.c_void_p * max(len(handles), 1))(*[handle.pointer for handle in handles])
    return read_text(_c.meter_export, pointers, len(handles), number, options)


class Reservation:
    """An amount that a meter holds; `with` spends it at the end unless it was settled."""

    def __init__(self, handle: Handle, number: int, held: Amount):
        self._handle, self._number = handle, number
        self.held = held
        self.settled = False

    def settle(self, actual: Amount | None = None, **fields: Any) -> None:
        """Replaces the reservation by what the work took, in the same units and at most as much."""
        if actual is None:
            actual = Amount(currency=self.held.currency, **fields) if fields else self.held
        _c.meter_settle(self._handle.pointer, self._number, actual._struct())
        self.settled = True

    def release(self) -> None:
        """Gives all back: nothing was done."""
        self.settle(self.held._nothing())

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.settled:
            self.settle()
