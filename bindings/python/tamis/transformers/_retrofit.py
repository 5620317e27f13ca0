"""Fits lightning indexers to a dense model of Hugging Face transformers and makes its attention sparse with them. Owns
the choice of text windows and rows, what is fitted and measured in which order, which mode a layer gets, and the files.
It touches the model only when everything has succeeded."""
from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import Architecture, Capture, Context, Indexer, Machine, save_indexers
from .._errors import error, wrong
from .._report import LayerReport, Report, layer_costs
from ._dense import Steering, Watch, adopt_dense, adopt_steered, check_modes, features, latent, layout
from ._layers import disown, replace
from ._model import run_model

CAPTURE_BYTES = 2 << 30  # of what is captured at once; the text is read again for the layers that do not fit
HELD_OUT = 5  # every fifth window is not fitted to but measured
BATCH_TOKENS = 4096  # of one forward pass
SETTINGS = "retrofit.json"
TENSORS = "indexers.safetensors"


def prefix(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.indexer."


class Retrofit:
    """The indexers of a retrofitted model: what they find (`report`, None when they were loaded), how many keys a token
    attends to (`k`), what each layer does (`modes`)."""

    def __init__(self, steering: Steering, attentions: list[nn.Module], report: Report | None):
        self._steering, self._attentions, self.report = steering, attentions, report

    @property
    def k(self) -> int:
        return self._steering.k

    @property
    def modes(self) -> tuple[str, ...]:
        """For each layer "dense", "sparse", or "shared": it attends to what the layer before has chosen."""
        return tuple(self._steering.modes)

    @property
    def indexers(self) -> tuple[Indexer | None, ...]:
        return tuple(self._steering.indexers)

    def switch(self, modes: str | Sequence[str] | Mapping[int, str]) -> None:
        """Another mode for all layers, for each, or for those named. Caches begun before are refused where that changes
        what a layer keeps."""
        steering, wanted = self._steering, list(self._steering.modes)
        if isinstance(modes, str):
            wanted = [modes] * len(wanted)
        elif isinstance(modes, Mapping):
            if any(number not in range(len(wanted)) for number in modes):
                raise wrong(f"modes: names layers {sorted(modes)}, expected 0 to {len(wanted) - 1}")
            wanted = [modes.get(number, mode) for number, mode in enumerate(wanted)]
        else:
            wanted = list(modes)
            if len(wanted) != len(steering.modes):
                raise wrong(f"modes: names {len(wanted)} layers, expected {len(steering.modes)}")
        check_modes(wanted, steering.indexers)
        steering.modes[:] = wanted
        for number, mode in enumerate(wanted):
            dim = steering.indexers[number].dim if mode == "sparse" else 0
            steering.layouts[number] = dataclasses.replace(steering.layouts[number], index_dim=dim)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the indexers (`indexers.safetensors`, with the names they have in a DeepSeek-V3.2 checkpoint), what
        else is needed to use them again (`retrofit.json`), and the report (`report.json`)."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        made = {prefix(number): indexer for number, indexer in enumerate(self.indexers) if indexer is not None}
        save_indexers(folder / TENSORS, made)
        dims = {number: indexer.rope_dim for number, indexer in enumerate(self.indexers) if indexer is not None}
        settings = {"model_type": self._attentions[0].config.model_type, "k": self.k, "modes": list(self.modes),
                    "rope_dim": dims, "rope_frequencies": self._steering.frequencies}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        if self.report is not None:
            self.report.save(folder / "report.json")


def apply(decoder: nn.Module, attentions: list[nn.Module], steering: Steering) -> None:
    """Makes the decoder sparse. Nothing of this can fail half way: it only sets attributes."""
    decoder._tamis = steering
    for attention in attentions:
        adopt_steered(attention, steering)
    replace(decoder, forward=run_model.__get__(decoder))


def steering_of(ctx: Context, attentions: list[nn.Module], indexers: list[Indexer | None], modes: list[str], k: int,
                frequencies: list[float], index_dtype: str | None) -> Steering:
    check_modes(modes, indexers)
    layouts = {attention.layer_idx: layout(attention, indexer.dim if mode == "sparse" else 0, index_dtype)
               for attention, indexer, mode in zip(attentions, indexers, modes)}
    return Steering(ctx, layouts, indexers, modes, k, frequencies)


# ------------------------------------------------------- Files -------------------------------------------------------


def load(folder: str | os.PathLike[str], attentions: list[nn.Module], ctx: Context, index_dtype: str | None
         ) -> Steering:
    """What `Retrofit.save` wrote, checked against the model."""
    folder = pathlib.Path(folder)
    try:
        settings = json.loads((folder / SETTINGS).read_text("utf-8"))
        k, modes = settings["k"], list(settings["modes"])
        dims = {int(number): int(dim) for number, dim in settings["rope_dim"].items()}
        frequencies = [float(each) for each in settings["rope_frequencies"]]
        kind = settings["model_type"]
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k is {k!r}")
    except OSError as problem:
        raise error(-4, "TAMIS_E_IO", f"retrofit: {folder / SETTINGS}: {problem.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise error(-5, "TAMIS_E_FORMAT", f"retrofit: {folder / SETTINGS}: {problem}") from None
    if kind != attentions[0].config.model_type or len(modes) != len(attentions):
        raise wrong(f"retrofit: {folder} is of a {kind!r} with {len(modes)} layers, the model a "
                    f"{attentions[0].config.model_type!r} with {len(attentions)}")
    indexers: list[Indexer | None] = []
    for number, attention in enumerate(attentions):
        if number not in dims:
            indexers.append(None)
            continue
        turns = np.asarray(frequencies[:dims[number] // 2], np.float32)
        indexers.append(Indexer.load(folder / TENSORS, prefix(number), ctx=ctx, rope_dim=dims[number],
                                     rope_frequencies=turns if dims[number] else None))
        wanted = (attention.config.hidden_size, features(attention))
        if (indexers[-1].width, indexers[-1].features) != wanted:
            raise wrong(f"retrofit: layer {number} of {folder} takes {indexers[-1].width} and {indexers[-1].features} "
                        f"numbers, the model has {wanted[0]} and {wanted[1]}")
    return steering_of(ctx, attentions, indexers, modes, k, frequencies, index_dtype)


# -------------------------------------------------------- Text -------------------------------------------------------


def windows_of(texts: Iterable[Any], tokenizer: Callable[..., Any] | None, length: int, most: int, seed: int
               ) -> list[torch.Tensor]:
    """Token ids, each [tokens up to length]: texts cut into windows; `most` of them at random places when there are
    more. Ends of texts shorter than half of the longest window are left out."""
    windows: list[torch.Tensor] = []
    if isinstance(texts, (str, bytes)):
        raise wrong("texts: is one text, expected a list of texts or of lists of token ids")
    for text in texts:
        if isinstance(text, str):
            if tokenizer is None:
                raise wrong("texts: are strings, which need a tokenizer (tokenizer=...)")
            text = tokenizer(text)
            text = text["input_ids"] if hasattr(text, "keys") else text
        ids = torch.as_tensor(np.asarray(text))
        if ids.ndim != 1 or ids.is_floating_point():
            raise wrong(f"texts: a text is {ids.dtype} {list(ids.shape)}, expected integers [tokens]")
        windows += [part.long() for part in ids.split(length)]
    longest = max(map(len, windows), default=0)
    if longest < 16:
        raise wrong(f"texts: the longest window has {longest} tokens, expected at least 16")
    windows = [window for window in windows if 2 * len(window) >= longest]
    order = np.random.default_rng(seed).permutation(len(windows))[:most]
    if len(order) < 2:
        raise wrong("texts: hold one window of tokens, expected two or more: one is not fitted to but measured")
    return [windows[number] for number in sorted(order)]


def held_out(count: int) -> set[int]:
    """Which of the windows are not fitted to but measured: every fifth, or the last."""
    return set(range(HELD_OUT - 1, count, HELD_OUT)) or {count - 1}


def batches(windows: list[torch.Tensor]) -> Iterator[list[int]]:
    """Numbers of windows in a row that are equally long, and not too many."""
    batch: list[int] = []
    for number, window in enumerate(windows):
        if batch and (len(windows[batch[0]]) != len(window) or (len(batch) + 1) * len(window) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(number)
    yield batch


def rows_of(window: torch.Tensor, count: int, rng: np.random.Generator) -> torch.Tensor:
    """Some of a window's positions, ascending; not the first sixteenth, which see little."""
    first = len(window) // 16
    return torch.from_numpy(np.sort(rng.permutation(np.arange(first, len(window)))[:count]))


# ------------------------------------------------------ Capturing ----------------------------------------------------


class Layer:
    """One layer while it is fitted: captures to fit and to measure, held-out states for the selections."""

    def __init__(self, ctx: Context):
        self.shown, self.held_out = Capture(ctx), Capture(ctx)
        self.states: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []


@contextmanager
def watching(decoder: nn.Module, attentions: list[nn.Module], watch: Watch) -> Iterator[None]:
    """The model's attention is seen while this lasts; afterwards the model is as it was."""
    training = [module for module in decoder.modules() if module.training]
    try:
        for module in training:
            module.training = False
        for attention in attentions:
            adopt_dense(attention, watch, "tamis_watched")
        with torch.no_grad():
            yield
    finally:
        for attention in attentions:
            disown(attention)
        for module in training:
            module.training = True


def capture(decoder: nn.Module, attentions: list[nn.Module], numbers: list[int], windows: list[torch.Tensor],
            measured: set[int], rows: int, ctx: Context, seed: int) -> dict[int, Layer]:
    """Runs the model over the windows, densely, and keeps what the layers `numbers` do. measured: which windows are not
    fitted to."""
    found = {number: Layer(ctx) for number in numbers}
    rng, batch = np.random.default_rng(seed), []

    def see(number: int, one: int, x: torch.Tensor, r: torch.Tensor, attention: torch.Tensor) -> None:
        places, layer = watch.rows[one], found[number]
        to = layer.held_out if batch[one] in measured else layer.shown
        to.add(x, attention, r=r, positions=places.to(torch.int32))
        if batch[one] in measured:
            layer.states.append((x.clone(), r.clone(), places))

    watch = Watch(decoder.config._attn_implementation, set(numbers), see)
    with watching(decoder, attentions, watch):
        for batch in batches(windows):
            watch.rows = [rows_of(windows[number], rows, rng) for number in batch]
            decoder(input_ids=torch.stack([windows[number] for number in batch]), use_cache=False)
    return found


def groups(attentions: list[nn.Module], windows: list[torch.Tensor], rows: int) -> list[list[int]]:
    """Layers by number, as many together as CAPTURE_BYTES allow."""
    tokens, sampled = sum(map(len, windows)), sum(min(rows, len(window)) for window in windows)
    width = attentions[0].config.hidden_size
    each = 4 * (tokens * width + sampled * (features(attentions[0]) + max(map(len, windows))))
    together = max(1, CAPTURE_BYTES // each)
    return [list(range(first, min(first + together, len(attentions)))) for first in range(0, len(attentions), together)]


# ------------------------------------------------------- Fitting -----------------------------------------------------


@dataclasses.dataclass
class Plan:
    """How to fit."""

    k: int
    heads: int
    dim: int
    steps: int
    seed: int
    dense_below: float
    share_above: float
    on_step: Callable[[int, int, int, float], Any] | None
    machine: Machine | None


def rotary(decoder: nn.Module, attention: nn.Module, dim: int) -> tuple[int, list[float]]:
    """The rotary dims of an index head and their frequencies: the model's. Latent attention lends all of them, as
    DeepSeek-V3.2's indexer has them; others a part, evenly, for half of the head."""
    frequencies = decoder.rotary_emb.inv_freq.float().tolist()
    if latent(attention):
        if 2 * len(frequencies) > dim:
            raise wrong(f"retrofit: dim is {dim}, expected at least the model's {2 * len(frequencies)} rotary dims")
        return 2 * len(frequencies), frequencies
    count = min(dim // 4, len(frequencies))
    return 2 * count, [frequencies[i * len(frequencies) // count] for i in range(count)]


def fit_layers(decoder: nn.Module, attentions: list[nn.Module], windows: list[torch.Tensor], rows: int, ctx: Context,
               plan: Plan) -> tuple[list[Indexer], list[float], Report]:
    """Captures, fits and measures every layer. The model is as it was."""
    rope_dim, frequencies = rotary(decoder, attentions[0], plan.dim)
    context = max(map(len, windows))
    ks = sorted({k for k in (plan.k // 4, plan.k // 2, plan.k, 2 * plan.k, 4 * plan.k) if 1 <= k < context})
    indexers: list[Indexer] = []
    layers: list[LayerReport] = []
    before: list[np.ndarray] | None = None
    for numbers in groups(attentions, windows, rows):
        found = capture(decoder, attentions, numbers, windows, held_out(len(windows)), rows, ctx, plan.seed)
        for number in numbers:
            layer = found.pop(number)
            how = dict(heads=plan.heads, dim=plan.dim, rope_dim=rope_dim, seed=plan.seed + number,
                       rope_frequencies=np.asarray(frequencies, np.float32) if rope_dim else None)
            indexer = Indexer(decoder.config.hidden_size, features(attentions[number]), ctx=ctx, **how)
            unfitted = indexer.diagnose(layer.held_out, ks)
            report = indexer.fit(layer.shown, steps=plan.steps, seed=plan.seed + number, on_step=step_of(plan, number))
            own = [selection(indexer, states, plan.k, ctx) for states in layer.states]
            overlap = None if before is None else shared_part(own, before)
            cost = layer_costs(architecture(attentions[number], indexer, ctx), context, ks, plan.machine)
            made = LayerReport(f"{number}", indexer.diagnose(layer.held_out, ks), unfitted, report, cost,
                               overlap=overlap)
            mode = mode_of(made, plan, layers[-1].mode if layers else "dense")
            # what the next layer would share is what this one attends to
            before = before if mode == "shared" else own
            indexers.append(indexer)
            layers.append(dataclasses.replace(made, mode=mode))
    return indexers, frequencies, Report(tuple(layers), plan.k, context)


def step_of(plan: Plan, number: int) -> Callable[[int, int, float], Any] | None:
    told = plan.on_step
    return None if told is None else lambda step, steps, loss: told(number, step, steps, loss)


def mode_of(layer: LayerReport, plan: Plan, before: str) -> str:
    if layer.overlap is not None and before != "dense" and layer.overlap >= plan.share_above:
        return "shared"
    return "sparse" if layer.share(plan.k) >= plan.dense_below else "dense"


def selection(indexer: Indexer, states: tuple[torch.Tensor, torch.Tensor, torch.Tensor], k: int, ctx: Context
              ) -> np.ndarray:
    """The k keys that each sampled row of a window would attend to, int32 [rows, k]."""
    x, r, rows = states
    key = indexer.project(x, x if indexer.features == indexer.width else x.new_zeros((len(x), indexer.features)))[2]
    q, w, _ = indexer.project(x[rows].contiguous(), r, positions=rows.to(torch.int32))
    return ctx.select(q, w, key, k, visible=(rows + 1).to(torch.int32))


def shared_part(own: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The mean share of a row's chosen keys that the other choice has too, over rows that see more than k."""
    shares = [len(np.intersect1d(a, b)) / len(a) for one, two in zip(own, other) for a, b in zip(one, two)
              if a[-1] >= len(a)]
    return float(np.mean(shares)) if shares else 0.0


def architecture(attention: nn.Module, indexer: Indexer, ctx: Context) -> Architecture:
    """One layer, as the meter counts it."""
    kept = layout(attention, indexer.dim, None)
    plain = kept.kv_heads > 0
    size = attention.o_proj.weight.element_size()
    numbers = kept.kv_heads * (kept.key_dim + kept.value_dim) if plain else kept.key_dim
    return Architecture(
        layers=1, heads=attention.config.num_attention_heads, key_dim=kept.key_dim, value_dim=kept.value_dim,
        expanded_key_dim=kept.key_dim if plain else attention.qk_head_dim,
        expanded_value_dim=kept.value_dim if plain else attention.v_head_dim, index_heads=indexer.heads,
        index_dim=indexer.dim, active_parameters=0, cache_bytes=size * numbers, index_key_bytes=size * indexer.dim)
