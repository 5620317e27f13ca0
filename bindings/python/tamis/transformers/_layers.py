"""What replaces the parts of one sparse attention module: its indexer's selection, the expansion of latents (nothing
is expanded) and the attention function. Owns the families and their variations; projections, norms, rotations and
gates stay the model's own code. Refuses to be differentiated."""
from __future__ import annotations

import copy
import dataclasses
import inspect
import sys
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import create_causal_mask

from .._errors import error, wrong
from ._cache import IndexedLayer

ROWS = 256  # query rows whose absorbed queries exist at once: [256, heads, latent] is what a long prompt needs
CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"  # before 5.24
FEW = 64  # rows up to which reading a weight is what a projection costs, and Tamis reads it faster than torch does


@dataclasses.dataclass(frozen=True)
class Family:
    """How the indexers of a family differ. interleaved: rotary pairs (2i, 2i+1), else (i, i + half). rotary_last: they
    are the last dims of a head, else the first."""

    interleaved: bool
    rotary_last: bool = False


# By transformers' folder of models.
FAMILIES = {
    "deepseek_v32": Family(interleaved=False),
    "glm_moe_dsa": Family(interleaved=True),
    "axk2": Family(interleaved=False),
    "hy_v4": Family(interleaved=False, rotary_last=True),
    "mistral_large4": Family(interleaved=True),
    "dots3_note": Family(interleaved=True),
}


def family_of(attention: nn.Module) -> Family | None:
    """The family of an attention module with (or steered by) a lightning indexer; None for every other module."""
    package, _, folder = type(attention).__module__.rpartition(".")[0].rpartition(".")
    if package != "transformers.models" or folder not in FAMILIES or not hasattr(attention, "expand_kv"):
        return None
    if attention.indexer is None and not getattr(attention, "skip_topk", False):
        return None  # the sliding-window layers of dots3_note
    return FAMILIES[folder]


# ------------------------------------------------ Replacing, and back ------------------------------------------------


def adopt(attention: nn.Module, patch: Any) -> None:
    """Puts the replacements into one attention module (as attributes of the objects; no class is touched)."""
    config = copy.copy(attention.config)
    config._attn_implementation = "tamis"
    replace(attention, config=config, expand_kv=keep_latents.__get__(attention), _tamis_up=Expansion())
    if attention.indexer is not None:
        replace(attention.indexer, forward=select.__get__(attention.indexer))
    adopt_projections(attention, patch)


def adopt_projections(attention: nn.Module, patch: Any) -> None:
    """The linear layers of an attention module; `kv_b_proj` is never called, only its weight is used."""
    for name, module in attention.named_modules():
        if type(module) is nn.Linear and "forward" not in vars(module) and name != "kv_b_proj":
            replace(module, forward=project.__get__(module), _tamis=patch)


def replace(module: nn.Module, **parts: Any) -> None:
    """Sets attributes of the object, and keeps in mind what it had in their place."""
    module._tamis_saved = {name: vars(module).get(name) for name in parts}
    for name, part in parts.items():
        setattr(module, name, part)


def original_forward(module: nn.Module) -> Any:
    """The forward that `replace` has replaced."""
    return module._tamis_saved["forward"] or type(module).forward.__get__(module)


def put_back(module: nn.Module) -> None:
    """Undoes `replace`."""
    for name, saved in vars(module).pop("_tamis_saved").items():
        if saved is None:
            delattr(module, name)
        else:
            setattr(module, name, saved)


def disown(attention: nn.Module) -> None:
    """Undoes `adopt`."""
    for module in attention.modules():
        if "_tamis_saved" in vars(module):
            put_back(module)


# ----------------------------------------------------- Replacements ---------------------------------------------------


def keep_latents(_self: nn.Module, kv_nope: Any, k_rot: Any) -> tuple[Any, Any]:
    """In the place of `expand_kv`: `IndexedLayer.update` has stored the latents, and they stay as they are."""
    return kv_nope, k_rot


def project(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """In the place of a linear layer's forward: the same, in bfloat16, for a few rows that nobody differentiates."""
    rows = x.numel() // self.in_features
    if x.dtype != torch.bfloat16 or self.weight.dtype != x.dtype or rows > FEW or torch.is_grad_enabled():
        return nn.functional.linear(x, self.weight, self.bias)
    out = x.new_empty((rows, self.out_features))
    self._tamis.ctx.project(x.reshape(rows, self.in_features), self.weight.detach(), out=out)
    return (out if self.bias is None else out + self.bias).view(*x.shape[:-1], self.out_features)


class Expansion:
    """The two halves of `kv_b_proj` for keys and for values, each contiguous, which a batched product needs. Made anew
    when the weight is another one or was written to."""

    def __init__(self) -> None:
        self.made_from: Any = None

    def of(self, module: nn.Module, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[heads, nope, latent] and [heads, value, latent]"""
        source = (weight.data_ptr(), None if weight.is_inference() else weight._version, weight.dtype)
        if source != self.made_from:
            halves = weight.detach().view(module.num_heads, -1, weight.shape[1]).split(
                (module.qk_nope_head_dim, module.v_head_dim), dim=1)
            self.halves, self.made_from = tuple(half.contiguous() for half in halves), source
        return self.halves


@torch.no_grad()
def select(self: nn.Module, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
    """In the place of an indexer's forward. -> int32 [rows, topk]: for each real token, positions among the real
    tokens of its sequence, ascending, -1 behind the last; [rows, 0] while every token sees all before it.

    arguments: the query latent (mistral_large4 has none), (cos, sin), the mask, the position ids; named: the cache.
    """
    layer = named[CACHE].layers[self.layer_idx]
    if hasattr(self, "softmax_scaling"):
        latent, (cos, sin), positions = self.q_input_norm(hidden_states), arguments[0], arguments[2]
    else:
        latent, (cos, sin), positions = arguments[0], arguments[1], None
    q, k = queries_and_keys(self, hidden_states, latent, cos, sin, positions)
    layer.update_indexer(k)
    rows, longest = layer._step().rows, max(map(len, layer.sequences))
    if longest <= self.index_topk:
        return torch.empty((sum(rows), 0), dtype=torch.int32)
    weights = self.weights_proj(hidden_states.to(self.weights_proj.weight.dtype)).float()
    weights = weights * (self.n_heads**-0.5 * self.softmax_scale)
    flat, out = layer._step().flat, torch.empty((sum(rows), self.index_topk), dtype=torch.int32)
    return layer.sequences[0].cache.select(layer.sequences, 0, flat(q), flat(weights), self.index_topk, rows=rows,
                                           out=out)


def queries_and_keys(indexer: nn.Module, hidden: torch.Tensor, latent: torch.Tensor, cos: torch.Tensor,
                     sin: torch.Tensor, positions: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """q [batch, width, heads, dim] and k [batch, width, dim] of the indexer, rotated as the family does."""
    module = sys.modules[type(indexer).__module__]
    family = FAMILIES[module.__name__.split(".")[-2]]
    q = indexer.wq_b(latent).unflatten(-1, (indexer.n_heads, indexer.head_dim))
    if positions is not None:
        q = indexer.softmax_scaling(q, positions, head_dim_first=False)
    k = indexer.wk(hidden)
    k = indexer.k_norm(k.to(indexer.k_norm.weight.dtype)).to(hidden.dtype).unsqueeze(2)
    if getattr(indexer, "use_rope", True):
        rotate = module.apply_rotary_pos_emb_interleave if family.interleaved else module.apply_rotary_pos_emb
        rotary, rest = indexer.qk_rope_head_dim, indexer.head_dim - indexer.qk_rope_head_dim
        parts = (rest, rotary) if family.rotary_last else (rotary, rest)
        q_parts, k_parts = list(q.split(parts, -1)), list(k.split(parts, -1))
        turned = 1 if family.rotary_last else 0
        q_parts[turned], k_parts[turned] = rotate(q_parts[turned], k_parts[turned], cos, sin, unsqueeze_dim=2)
        q, k = torch.cat(q_parts, -1), torch.cat(k_parts, -1)
    return q, k.squeeze(2)


def attend(module: nn.Module, query: torch.Tensor, key: Any, value: Any, attention_mask: Any, scaling: float,
           indices: torch.Tensor | None = None, s_aux: torch.Tensor | None = None, **_: Any
           ) -> tuple[torch.Tensor, None]:
    """The attention function "tamis" of transformers. query [batch, heads, width, dim]; key: the `IndexedLayer` that
    holds latents. -> [batch, width, heads, value dim], and no attention weights."""
    if not isinstance(key, IndexedLayer) or indices is None:
        raise wrong("attn_implementation 'tamis': call tamis.transformers.accelerate(model) instead of naming it")
    return Attend.apply(query, module.kv_b_proj.weight, module, key, scaling, indices, s_aux), None


class Attend(torch.autograd.Function):
    """Attention over cached keys and values, or over latents in its absorbed form (weight: `kv_b_proj`'s); a node of
    the graph only so that a backward pass cannot go past it silently."""

    @staticmethod
    def forward(_ctx: Any, query: torch.Tensor, weight: torch.Tensor | None, module: nn.Module, layer: IndexedLayer,
                scaling: float, indices: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
        form = Plain() if weight is None else Absorbed(module, weight)
        sinks = None if sinks is None else sinks.detach().float().contiguous()
        step, (batch, heads, width, _) = layer._step(), query.shape
        out = query.new_zeros if step.picks else query.new_empty
        out = out((batch, width, heads, form.width(layer.layout.value_dim)))
        for sequences, rows, where, chosen in jobs(layer, indices):
            q = form.query(where.take(query.detach()))
            values = sequences[0].cache.attend(
                sequences, 0, q, rows=rows, indices=chosen if chosen.shape[1] else None, softmax_scale=scaling,
                sink=sinks, out=q.new_empty((*q.shape[:2], layer.layout.value_dim)))
            where.put(out, form.values(values.transpose(0, 1)))
        return out

    @staticmethod
    def backward(_ctx: Any, *_gradients: torch.Tensor) -> Any:
        raise error(-6, "TAMIS_E_UNSUPPORTED", "accelerate: an accelerated model has no backward pass; "
                                               "tamis.transformers.restore(model) before training")


class Plain:
    """Queries and values as they are."""

    def width(self, value_dim: int) -> int:
        return value_dim

    def query(self, query: torch.Tensor) -> torch.Tensor:
        """[heads, rows, dim] -> [rows, heads, dim]"""
        return query.transpose(0, 1).contiguous()

    def values(self, values: torch.Tensor) -> torch.Tensor:
        """[heads, rows, value dim]"""
        return values


class Absorbed:
    """Queries against latents instead of expanded keys, and latents expanded to values after attention."""

    def __init__(self, module: nn.Module, weight: torch.Tensor):
        self.nope, self.value_dim = module.qk_nope_head_dim, module.v_head_dim
        self.key_up, self.value_up = module._tamis_up.of(module, weight)

    def width(self, _value_dim: int) -> int:
        return self.value_dim

    def query(self, query: torch.Tensor) -> torch.Tensor:
        """[heads, rows, nope + rope] -> [rows, heads, latent + rope]"""
        heads, rows, dim = query.shape
        latent = self.key_up.shape[2]
        q = query.new_empty((rows, heads, latent + dim - self.nope))
        q[:, :, :latent] = torch.bmm(query[:, :, :self.nope], self.key_up).transpose(0, 1)
        q[:, :, latent:] = query[:, :, self.nope:].transpose(0, 1)
        return q

    def values(self, latents: torch.Tensor) -> torch.Tensor:
        """[heads, rows, latent] -> [heads, rows, value dim]"""
        return torch.bmm(latents, self.value_up.transpose(1, 2))


@dataclasses.dataclass(frozen=True)
class Whole:
    """All new tokens of all sequences, none of them padding."""

    def take(self, query: torch.Tensor) -> torch.Tensor:
        """[batch, heads, width, dim] -> [heads, rows, dim]"""
        return query.transpose(0, 1).flatten(1, 2)

    def put(self, out: torch.Tensor, values: torch.Tensor) -> None:
        """values [heads, rows, value dim] into out [batch, width, heads, value dim]"""
        out.flatten(0, 1).copy_(values.transpose(0, 1))


@dataclasses.dataclass(frozen=True)
class Part:
    """Some new tokens of one sequence."""

    row: int
    places: Any

    def take(self, query: torch.Tensor) -> torch.Tensor:
        return query[self.row][:, self.places]

    def put(self, out: torch.Tensor, values: torch.Tensor) -> None:
        out[self.row, self.places] = values.transpose(0, 1)


def jobs(layer: IndexedLayer, indices: torch.Tensor) -> Any:
    """Cuts the rows of a forward pass into calls of at most ROWS rows: (sequences, rows of each, where the rows are,
    their indices). A row in the middle of a prompt is attended from a fork that ends with it."""
    step = layer._step()
    if step.picks is None and step.batch * step.width <= ROWS:
        yield layer.sequences, step.rows, Whole(), indices
        return
    first = 0
    for row, (sequence, count) in enumerate(zip(layer.sequences, step.rows)):
        for begin in range(0, count, ROWS):
            end = min(begin + ROWS, count)
            fork = sequence if end == count else sequence.fork(len(sequence) - count + end)
            places = slice(begin, end) if step.picks is None else step.picks[row][begin:end]
            yield [fork], [end - begin], Part(row, places), indices[first + begin:first + end]
        first += count


AttentionInterface.register("tamis", attend)
