"""Machines, predictions and prices: what a request will cost, and what tokens, hours and energy cost. Owns names and
units of Python; every figure comes from the C library, money as exact decimals."""
from __future__ import annotations

import ctypes
import dataclasses
import datetime
import decimal
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from . import _c
from ._context import UINT32, UINT64, Context, Handle, Owner
from ._errors import wrong
from ._tensors import integer

if TYPE_CHECKING:
    from ._model import Model

MODES = ("automatic", "sparse", "dense")
PHASES = ("prefill", "decode")
KINDS = {"decode": 1, "prefill": 2, "prompt": 3}
BILLS = ("list", "machine", "energy")
BASES = (None, "measured", "calibrated", "analytic")
Number = int | str | decimal.Decimal


def encoded(text: str | None, name: str) -> bytes | None:
    """Text for a `const char *`."""
    if text is None:
        return None
    if not isinstance(text, str) or "\0" in text:
        raise wrong(f"{name}: is no text without zero characters")
    return text.encode("utf-8", "surrogatepass")


def amount(value: Number | None, name: str) -> bytes | None:
    """A price as decimal text. Binary floats are refused: 0.28 is not 0.28 in one."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, str, decimal.Decimal)):
        raise wrong(f"{name}: is {type(value).__name__}, expected a decimal as str, int or decimal.Decimal")
    return encoded(format(value, "f") if isinstance(value, decimal.Decimal) else str(value), name)


def choice(value: str, names: Iterable[str], name: str) -> int:
    """The place of a name in a list of them."""
    known = tuple(names)
    if value not in known:
        raise wrong(f"{name}: {value!r} is not one of {', '.join(known)}")
    return known.index(value)


def read_text(call: Any, *arguments: Any) -> str:
    """The text that a function writes into a buffer of the caller."""
    needed, capacity = ctypes.c_size_t(), 4096
    while True:
        buffer = ctypes.create_string_buffer(capacity)
        call(*arguments, buffer, capacity, needed)
        if needed.value <= capacity:
            return buffer.value.decode("utf-8", "replace")
        capacity = needed.value + 256


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The shape of a model of the DSA family, as far as work depends on it; the defaults are DeepSeek-V3.2's.

    key_dim, value_dim: of the absorbed (latent) form. expanded_key_dim, expanded_value_dim: of the expanded form, which
    dense prefill uses. index_layers: that score (None: all). pooling: tokens for which one index key stands.
    active_parameters: that one token is multiplied with, held in weight_bytes (None: a byte each); 0: attention alone.
    cache_bytes: keys and values of one token in one layer. index_key_bytes: one index key with its scale.
    index_parameters: of the indexer's own projections, not among the active ones (None: DeepSeek-V3.2's where those are
    its, else none). head_parameters: of the active ones, those that a prompt needs once (0: every token).
    weight_matrices: that the active parameters are in (0: not counted).
    """

    layers: int = 61
    heads: int = 128
    key_dim: int = 576
    value_dim: int = 512
    expanded_key_dim: int = 192
    expanded_value_dim: int = 128
    index_heads: int = 64
    index_dim: int = 128
    index_layers: int | None = None
    top_k: int = 2048
    pooling: int = 1
    active_parameters: float = 36.62e9
    weight_bytes: float | None = None
    cache_bytes: float = 656
    index_key_bytes: float = 132
    index_parameters: float | None = None
    head_parameters: float = 0
    weight_matrices: int = 0

    @staticmethod
    def from_config(config: Mapping[str, Any] | str | os.PathLike[str], *, cache_bytes: float | None = None,
                    bytes_per_weight: float | None = None) -> Architecture:
        """From a Hugging Face `config.json`, its directory or its content, of a model with latent attention and an indexer:
        DeepSeek-V3.2, GLM and their like. Active parameters are those of the linear layers one token passes, the head
        included; the indexer's own projections are counted beside them. cache_bytes: None: as BF16. bytes_per_weight:
        None: as the config's dtype and quantisation say, 1 where they say nothing."""
        if isinstance(config, (str, os.PathLike)):
            path = pathlib.Path(config)
            config = json.loads((path / "config.json" if path.is_dir() else path).read_text("utf-8"))
        try:
            return _from_config(config, cache_bytes, bytes_per_weight)
        except (KeyError, TypeError) as problem:
            raise wrong(f"config: is not of a model with latent attention and an indexer ({problem})") from None

    def _struct(self) -> _c.Architecture:
        sizes = ("layers", "heads", "key_dim", "value_dim", "expanded_key_dim", "expanded_value_dim", "index_heads",
                 "index_dim", "top_k", "pooling")
        fields: dict[str, Any] = {name: integer(getattr(self, name), name, 1, UINT32) for name in sizes}
        fields["index_layers"] = integer(self.index_layers or 0, "index_layers", 0, UINT32)
        if self.active_parameters == 0:
            fields["attention_only"] = 1
        else:
            weight_bytes = self.active_parameters if self.weight_bytes is None else self.weight_bytes
            index = self.index_parameters
            if index is None:
                index = INDEX_PARAMETERS if self.active_parameters == Architecture.active_parameters else 0
            fields.update(active_parameters=self.active_parameters, weight_bytes=weight_bytes, index_parameters=index,
                          head_parameters=self.head_parameters,
                          weight_matrices=integer(self.weight_matrices, "weight_matrices", 0, UINT64))
        return _c.Architecture(cache_bytes=self.cache_bytes, index_key_bytes=self.index_key_bytes, **fields)


INDEX_PARAMETERS = 61 * (1536 * 64 * 128 + 7168 * (128 + 64))  # DeepSeek-V3.2's
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def _from_config(c: Mapping[str, Any], cache_bytes: float | None, bytes_per_weight: float | None) -> Architecture:
    if bytes_per_weight is None:
        dtype = None if c.get("quantization_config") else c.get("dtype", c.get("torch_dtype"))
        bytes_per_weight = WEIGHT_BYTES.get(dtype, 1)
    layers, hidden, heads = c["num_hidden_layers"], c["hidden_size"], c["num_attention_heads"]
    rank, value = c["kv_lora_rank"], c["v_head_dim"]
    rope, plain = c["qk_rope_head_dim"], c["qk_nope_head_dim"]
    q_rank, index_heads, index_dim = c.get("q_lora_rank"), c["index_n_heads"], c["index_head_dim"]
    query = q_rank * (hidden + heads * (plain + rope)) if q_rank else hidden * heads * (plain + rope)
    attention = query + hidden * (rank + rope) + rank * heads * (plain + value) + heads * value * hidden
    dense_layers = min(c.get("first_k_dense_replace", layers), layers) if c.get("n_routed_experts") else layers
    used = c.get("num_experts_per_tok", 0) + (c.get("n_shared_experts") or 0)
    experts = hidden * (3 * used * c.get("moe_intermediate_size", 0) + (c.get("n_routed_experts") or 0))
    head = hidden * c["vocab_size"]
    parameters = (layers * attention + dense_layers * 3 * hidden * c["intermediate_size"]
                  + (layers - dense_layers) * experts + head)
    index = (q_rank or hidden) * index_heads * index_dim + hidden * (index_dim + index_heads)
    # Attention's, with those of all heads as one; three of each network, and the router.
    matrices = layers * (6 if q_rank else 5) + dense_layers * 3 + (layers - dense_layers) * (3 * used + 1) + 1
    return Architecture(
        layers=layers, heads=heads, key_dim=rank + rope, value_dim=rank, expanded_key_dim=plain + rope,
        expanded_value_dim=value, index_heads=index_heads, index_dim=index_dim, top_k=c["index_topk"],
        active_parameters=parameters, weight_bytes=parameters * bytes_per_weight,
        cache_bytes=2 * (rank + rope) if cache_bytes is None else cache_bytes, index_key_bytes=index_dim + 4,
        index_parameters=layers * index, head_parameters=head, weight_matrices=matrices)


class Machine(Owner):
    """What a machine can do: `Machine.measure(ctx)` here in a few seconds, `Machine.published("H800")`, or
    `Machine.load(path)` of a profile that `save` wrote. Predictions and the dense counterfactual rest on it."""

    def __init__(self, handle: Handle):
        self._handle = handle

    @staticmethod
    def measure(ctx: Context, *, name: str | None = None, price_per_hour: Number | None = None, currency: str = "USD",
                date: str | None = None, architecture: Architecture | None = None, model: Model | None = None
                ) -> Machine:
        """Measures this machine with ctx's threads and instruction set, at the architecture's shapes. A few seconds and
        about 300 MB. date: None: today. model: of ctx and of that architecture: some of its steps are timed, too, and
        linear layers and all that is between the operators are predicted by them."""
        home = ctx._open()
        fields: dict[str, Any] = {
            "name": encoded(name, "name"), "price_per_hour": amount(price_per_hour, "price_per_hour"),
            "currency": encoded(currency, "currency"),
            "date": encoded(datetime.date.today().isoformat() if date is None else date, "date")}
        if architecture is not None:
            fields["architecture"] = ctypes.pointer(architecture._struct())
        held = None if model is None else model._open()
        if held is not None:
            fields["model"] = held.pointer
        options = _c.MachineOptions(**fields)
        return Machine(Handle(_c.machine_free, lambda made: _c.machine_measure(home.pointer, options, made)))

    @staticmethod
    def published(name: str = "H800") -> Machine:
        """A machine from a publication: "H800", DeepSeek's Figure 3."""
        text = encoded(name, "name")
        return Machine(Handle(_c.machine_free, lambda made: _c.machine_published(text, made)))

    @staticmethod
    def parse(text: str) -> Machine:
        """From the JSON text of `text()`."""
        data = text.encode()
        return Machine(Handle(_c.machine_free, lambda made: _c.machine_parse(data, len(data), made)))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Machine:
        return Machine.parse(pathlib.Path(path).read_text("utf-8"))

    def save(self, path: str | os.PathLike[str]) -> None:
        pathlib.Path(path).write_text(self.text(), "utf-8")

    def text(self) -> str:
        """The profile as JSON."""
        handle = self._open()
        return read_text(_c.machine_text, handle.pointer)

    @property
    def profile(self) -> dict[str, Any]:
        """The profile as a dictionary: rates, fixed times, `price_per_hour`, `trust` with its `note`."""
        return json.loads(self.text())

    def request(self, input_tokens: int, output_tokens: int = 0, *, cached_tokens: int = 0, mode: str = "automatic",
                architecture: Architecture | None = None, batch: int = 1, chunk: int = 512) -> Prediction:
        """A whole request; input includes cached tokens. mode: "automatic", "sparse" or "dense"."""
        handle, found = self._open(), _c.Prediction()
        request = _c.Request(
            mode=choice(mode, MODES, "mode"), input_tokens=integer(input_tokens, "input_tokens", 0, UINT64),
            cached_tokens=integer(cached_tokens, "cached_tokens", 0, UINT64),
            output_tokens=integer(output_tokens, "output_tokens", 0, UINT64), batch=integer(batch, "batch", 1, UINT32),
            chunk=integer(chunk, "chunk", 1, UINT32))
        _c.predict_request(handle.pointer, _shape(architecture), request, found)
        return Prediction._of(found)

    def token(self, keys: int, phase: str = "decode", *, mode: str = "automatic",
              architecture: Architecture | None = None) -> Prediction:
        """One token that sees `keys` keys. phase: "prefill" or "decode"."""
        handle, found = self._open(), _c.Prediction()
        _c.predict_token(handle.pointer, _shape(architecture), 1 + choice(phase, PHASES, "phase"),
                         choice(mode, MODES, "mode"), integer(keys, "keys", 0, UINT64), found)
        return Prediction._of(found)

    def break_even(self, kind: str = "decode", *, mode: str = "sparse", architecture: Architecture | None = None
                   ) -> BreakEven:
        """From how many tokens of context on `mode` is cheaper than dense. kind: "decode", "prefill" (one token) or
        "prompt" (a whole one)."""
        handle = self._open()
        choice(kind, KINDS, "kind")
        low, mid, high, basis = ctypes.c_double(), ctypes.c_double(), ctypes.c_double(), ctypes.c_uint32()
        _c.predict_break_even(handle.pointer, _shape(architecture), KINDS[kind], choice(mode, MODES, "mode"), mid, low,
                              high, basis)
        tokens = [None if value.value < 0 else value.value for value in (low, mid, high)]
        return BreakEven(*tokens, BASES[basis.value])


def _shape(architecture: Architecture | None) -> _c.Architecture | None:
    return None if architecture is None else architecture._struct()


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds (with low and high), FLOP and bytes; basis: "calibrated" or "analytic"."""

    seconds: float
    low_seconds: float
    high_seconds: float
    prefill_seconds: float
    decode_seconds: float
    flops: float
    bytes: float
    basis: str | None

    @staticmethod
    def _of(found: _c.Prediction) -> Prediction:
        names = [field.name for field in dataclasses.fields(Prediction)][:-1]
        return Prediction(**{name: getattr(found, name) for name in names}, basis=BASES[found.basis])


@dataclasses.dataclass(frozen=True)
class BreakEven:
    """Tokens of context from which on sparse is cheaper than dense; None: not within 2^24."""

    low: float | None
    tokens: float | None
    high: float | None
    basis: str | None


def predict(machine: Machine, input_tokens: int, output_tokens: int = 0, **options: Any) -> Prediction:
    """`machine.request(...)`."""
    return machine.request(input_tokens, output_tokens, **options)


@dataclasses.dataclass(frozen=True)
class Bill:
    """An exact amount. kind: "list", "machine" or "energy"."""

    amount: decimal.Decimal
    currency: str
    kind: str

    def __str__(self) -> str:
        return f"{self.amount:f} {self.currency}"


class Prices(Owner):
    """Prices of up to three kinds. Without any: DeepSeek's list at the V3.2-Exp release.

    input, cached, cache_write, output: for a million tokens; cached and written ones are part of the input and cost
    what input costs unless they say otherwise. cache_storage: for a million tokens kept an hour. tiers: for long inputs,
    dictionaries with `above` and the same names. machine_hour, busy_share: of a machine; kilowatt_hour: of energy.
    Prices are str, int or decimal.Decimal. `Prices.litellm(path, model)` reads litellm's price file.
    """

    def __init__(self, *, input: Number | None = None, cached: Number | None = None, cache_write: Number | None = None,
                 output: Number | None = None, cache_storage: Number | None = None,
                 tiers: Iterable[Mapping[str, Any]] = (), machine_hour: Number | None = None,
                 busy_share: Number | None = None, kilowatt_hour: Number | None = None, currency: str = "USD",
                 name: str = "", source: str = "", date: str = "", _litellm: bytes | None = None,
                 _model: str | None = None):
        self._handle = None
        prices = {"input": input, "cached": cached, "cache_write": cache_write, "output": output,
                  "cache_storage": cache_storage, "machine_hour": machine_hour, "busy_share": busy_share,
                  "kilowatt_hour": kilowatt_hour}
        texts = {"currency": currency, "name": name, "source": source, "date": date, "model": _model}
        fields: dict[str, Any] = {key: amount(value, key) for key, value in prices.items()}
        fields.update({key: encoded(value, key) for key, value in texts.items()})
        further = [_tier(tier) for tier in tiers]
        if further:
            fields.update(tiers=len(further), tier=(_c.PriceTier * len(further))(*further))
        if _litellm is not None:
            fields.update(litellm=_litellm, litellm_bytes=len(_litellm))
        options = _c.PricesOptions(**fields)
        self._handle = Handle(_c.prices_free, lambda made: _c.prices_create(options, made))

    @staticmethod
    def litellm(path: str | os.PathLike[str], model: str, *, date: str | None = None, **others: Any) -> Prices:
        """One entry of litellm's model_prices_and_context_window.json as it is. date: None: that of the file."""
        file = pathlib.Path(path)
        if date is None:
            date = datetime.date.fromtimestamp(file.stat().st_mtime).isoformat()
        return Prices(_litellm=file.read_bytes(), _model=model, date=date, **others)

    def bill(self, cost: Any = None, kind: str = "list", **fields: int) -> Bill:
        """The bill of one kind for a `Cost`, or for fields of one (input_tokens=..., nanoseconds=...)."""
        handle, made = self._open(), _c.Bill()
        number = 1 + choice(kind, BILLS, "kind")
        _c.prices_bill(handle.pointer, number, cost_struct(cost, fields), made)
        return Bill(decimal.Decimal(made.amount.decode()), made.currency.decode(), kind)


def _tier(tier: Mapping[str, Any]) -> _c.PriceTier:
    unknown = set(tier) - {"above", "input", "cached", "cache_write", "output"}
    if unknown or "above" not in tier:
        raise wrong(f"tiers: expected above, input, cached, cache_write and output, not {', '.join(map(str, tier))}")
    prices = {key: amount(value, key) for key, value in tier.items() if key != "above"}
    return _c.PriceTier(above=integer(tier["above"], "above", 0, UINT64), **prices)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What work cost: exact counts that only grow in a meter; `after - before` is what happened between.

    The first six are those of `Counters`, all operators together; keys_dense is of attend alone, keys_expanded what
    of it was computed in the expanded form of attention. input_tokens includes cached and written ones. dense_*: what a
    dense attention would have taken for the same calls; dense_nanoseconds rests on `basis` ("measured", "calibrated",
    "analytic") and is 0 while that is None. microjoules: None: not measured.
    """

    calls: int = 0
    queries: int = 0
    keys_scored: int = 0
    keys_selected: int = 0
    keys_attended: int = 0
    keys_dense: int = 0
    keys_expanded: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_token_seconds: int = 0
    output_tokens: int = 0
    flops: int = 0
    bytes: int = 0
    nanoseconds: int = 0
    cpu_nanoseconds: int = 0
    dense_flops: int = 0
    dense_bytes: int = 0
    dense_nanoseconds: int = 0
    microjoules: int | None = None
    basis: str | None = None

    @staticmethod
    def _of(found: _c.Cost) -> Cost:
        counts = {name: getattr(found, name) for name in COUNTS}
        joules = None if found.microjoules < 0 else found.microjoules
        return Cost(**counts, microjoules=joules, basis=BASES[found.basis])

    def __sub__(self, before: Cost) -> Cost:
        counts = {name: getattr(self, name) - getattr(before, name) for name in COUNTS}
        joules = None if self.microjoules is None else self.microjoules - (before.microjoules or 0)
        return Cost(**counts, microjoules=joules, basis=self.basis)

    @property
    def seconds(self) -> float:
        return self.nanoseconds * 1e-9

    @property
    def dense_seconds(self) -> float | None:
        return None if self.basis is None else self.dense_nanoseconds * 1e-9

    @property
    def keys_avoided(self) -> int:
        return max(self.keys_dense - self.keys_attended, 0)


COUNTS = tuple(field.name for field in dataclasses.fields(Cost))[:-2]


def cost_struct(cost: Any, fields: Mapping[str, Any]) -> _c.Cost:
    """struct tamis_cost of a `Cost` (or None) with some fields replaced."""
    cost = Cost() if cost is None else cost
    if not isinstance(cost, Cost):
        raise wrong(f"cost: is {type(cost).__name__}, expected tamis.Cost")
    unknown = set(fields) - {field.name for field in dataclasses.fields(Cost)}
    if unknown:
        raise wrong(f"cost: has no {', '.join(sorted(unknown))}")
    cost = dataclasses.replace(cost, **fields)
    if cost.basis not in BASES:
        raise wrong(f"cost: basis {cost.basis!r} is not one of measured, calibrated, analytic, None")
    counts = {name: integer(getattr(cost, name), name, 0, UINT64) for name in COUNTS}
    joules = -1 if cost.microjoules is None else integer(cost.microjoules, "microjoules", 0, 2**63 - 1)
    return _c.Cost(basis=BASES.index(cost.basis), microjoules=joules, **counts)
