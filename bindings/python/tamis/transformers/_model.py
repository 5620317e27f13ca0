"""The forward pass of an accelerated decoder: checks cache and mask, makes room in the cache, runs the model's own
forward, and takes everything back when that fails. No mask of queries by keys is ever made for sparse layers."""
from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicIndexedLayer
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .. import Context
from .._errors import error
from ._cache import IndexedLayer, Layout, Step, refuse
from ._layers import CACHE, original_forward

SPARSE = "indexed_attention"
MASKS = {"sliding_attention": create_sliding_window_causal_mask, "full_attention": create_causal_mask}


class Patch:
    """What one accelerated decoder has in common: where memory comes from, and which layers are ours (by number).

    empty: the cache layer that transformers makes for ours. others: other layers need masks of their own."""

    empty: type[CacheLayerMixin] = DynamicIndexedLayer
    others = True

    def __init__(self, ctx: Context, layouts: dict[int, Layout]):
        self.ctx, self.layouts = ctx, layouts

    def __deepcopy__(self, _memo: dict) -> Patch:
        """A copied model is accelerated too, in the same context, with caches of its own."""
        return Patch(self.ctx, self.layouts)


def run_model(self: nn.Module, *arguments: Any, **named: Any) -> Any:
    """In the place of a decoder's forward, with its arguments and result."""
    forward = original_forward(self)
    given = dict(zip(inspect.signature(forward).parameters, arguments), **named)
    use_cache = given.get("use_cache")
    keep = self.config.use_cache if use_cache is None else use_cache
    caller_cache = given.pop("past_key_values", None)
    caller_cache = given.get(CACHE) if caller_cache is None else caller_cache
    cache = caller_cache if caller_cache is not None else DynamicCache(config=self.config)
    layers = our_layers(self, cache)
    states = given.get("inputs_embeds")
    states = given.get("input_ids") if states is None else states
    if states is None:
        return forward(**given)  # raises the model's own error
    batch, width = states.shape[:2]
    past = cache.get_seq_length()
    if past and len(layers[0].sequences) != batch:
        raise refuse(f"holds {len(layers[0].sequences)} sequences, expected {batch}")
    if given.get("position_ids") is None:
        given["position_ids"] = torch.arange(past, past + width).unsqueeze(0)
    mask = given.get("attention_mask")
    real = real_tokens(mask, batch, width, layers[0])
    refuse_packed(given["position_ids"], mask, caller_cache)
    given["attention_mask"] = masks(self, mask, states, cache, given["position_ids"])
    given[CACHE] = cache
    dtype = states.dtype if states.is_floating_point() else self.get_input_embeddings().weight.dtype
    try:
        step = Step.of(batch, width, past, real)
        for layer in layers:
            if past and real is not None:
                layer.forget(real[:, :past])
            layer.begin(step, dtype)
        result = forward(**given)
    except BaseException:
        for layer in layers:
            layer.back_to(past)
        raise
    for layer in layers:
        layer.end()
    return result if keep or caller_cache is not None else without_cache(result, cache)


def our_layers(decoder: nn.Module, cache: Any) -> list[IndexedLayer]:
    """The cache's layers of this decoder. An empty `DynamicCache`, as `generate` makes it, becomes ours here."""
    if type(cache) is not DynamicCache:
        raise refuse(f"is {type(cache).__name__}, expected a DynamicCache")
    patch = decoder._tamis
    if not cache.layers:
        vars(cache).update(layers=DynamicCache(config=decoder.config).layers, layer_class_to_replicate=None)
    for number, layout in patch.layouts.items():
        if not (layout.key_dim or layout.index_dim):
            continue
        layer = cache.layers[number] if number < len(cache.layers) else None
        if isinstance(layer, IndexedLayer):
            if layer.patch is not patch:
                raise refuse("belongs to another model")
            if layer.layout != layout:
                raise refuse(f"was begun while layer {number} was in another mode")
        elif isinstance(layer, patch.empty) and layer.get_seq_length() == 0:
            cache.layers[number] = IndexedLayer(patch, number)
        else:
            raise refuse("was filled without Tamis, or belongs to another model")
    return [layer for layer in cache.layers if isinstance(layer, IndexedLayer)]


def real_tokens(mask: Any, batch: int, width: int, layer: IndexedLayer) -> torch.Tensor | None:
    """Which positions so far, with the new ones, are tokens and not padding: bool [batch, past + width]; None: all."""
    total = layer.length + width
    if mask is None:
        if layer.real is not None:
            raise refuse_mask("is None, but some cached tokens are padding")
        return None
    if not isinstance(mask, torch.Tensor) or tuple(mask.shape) != (batch, total):
        found = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise refuse_mask(f"is {found}, expected [{batch}, {total}]")
    real = mask != 0
    if layer.real is not None and bool((real[:, :layer.length] & ~layer.real).any()):
        raise refuse_mask("names cached tokens that were padding when they came")
    return real if layer.real is not None or not bool(real.all()) else None


def refuse_packed(positions: torch.Tensor, mask: Any, cache: Any) -> None:
    """Several sequences in one row, which transformers recognises by positions that jump, are not supported."""
    if mask is None and cache is None and bool((positions.diff(dim=-1) != 1).any()):
        raise error(-6, "TAMIS_E_UNSUPPORTED", "position_ids: several packed sequences in a row are not supported")


def masks(decoder: nn.Module, mask: Any, states: torch.Tensor, cache: Any, positions: torch.Tensor) -> Any:
    """The mask of each kind of layer. That of sparse layers only has the rank which their code expects: what a row
    may see is known to the cache."""
    if not decoder._tamis.others:
        return torch.ones((1, 1, 1, 1), dtype=torch.bool)
    kinds = set(decoder.config.layer_types) - {SPARSE}
    embedded = decoder.get_input_embeddings().weight.new_empty((*states.shape[:2], 1)) if kinds else None
    made = {kind: MASKS[kind](config=decoder.config, inputs_embeds=embedded, attention_mask=mask,
                              position_ids=positions, **{CACHE: cache}) for kind in kinds}
    return made | {SPARSE: torch.ones((1, 1, 1, 1), dtype=torch.bool)}


def without_cache(result: Any, cache: Any) -> Any:
    """The result of a call that did not ask for a cache."""
    if isinstance(result, tuple):
        return tuple(part for part in result if part is not cache)
    return type(result)(**{name: part for name, part in result.items() if part is not cache})


def refuse_mask(text: str) -> Exception:
    return error(-1, "TAMIS_E_ARGUMENT", f"attention_mask: {text}")
