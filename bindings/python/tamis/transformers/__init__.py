"""Hugging Face transformers models with DeepSeek Sparse Attention, made sparse on CPUs.

    model = AutoModelForCausalLM.from_pretrained(...)      # deepseek_v32, glm_moe_dsa, ...: see FAMILIES
    tamis.transformers.accelerate(model)
    model.generate(...)                                    # as before, with less work

transformers runs these models on a CPU as dense attention with a mask: it expands every cached latent and stores every
index score. An accelerated model keeps latents and index keys in Tamis caches, selects without storing scores, and
attends over the selected latents alone. Everything else stays the model's own code in torch. `restore` is the way back.

Owns what is replaced and how it is put back; the caches are `_cache`'s, the arithmetic `_layers`'. Refuses every model
that it does not know, before anything is touched. Inference only: a backward pass through the attention raises.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import Context
from .._errors import error, wrong
from ._cache import IndexedLayer, Layout
from ._layers import FAMILIES, adopt, disown, family_of, put_back, replace
from ._model import run_model

__all__ = ["FAMILIES", "IndexedLayer", "accelerate", "restore"]

INDEX_DTYPES = ("f32", "f16", "bf16", "i8")


class Patch:
    """What one accelerated decoder has in common: where memory comes from, and which layers are ours (by number)."""

    def __init__(self, ctx: Context, layouts: dict[int, Layout]):
        self.ctx, self.layouts = ctx, layouts

    def __deepcopy__(self, _memo: dict) -> Patch:
        """A copied model is accelerated too, in the same context, with caches of its own."""
        return Patch(self.ctx, self.layouts)


def accelerate(model: nn.Module, ctx: Context | None = None, *, index_dtype: str | None = None) -> nn.Module:
    """Makes the sparse attention of `model` sparse, in place. -> the same model

    ctx: threads and memory of the sparse part; None: a context of its own with as many threads as torch uses.
    index_dtype: how index keys are kept, "f32", "f16", "bf16" or "i8"; None: as the model computes them, so that the
        same tokens are selected as without Tamis. "i8" halves their memory and may select others near the boundary.

    Caches, `generate` with sampling, beams and left padding, continued and cropped caches work as before. Attention
    weights are not returned. Raises UnsupportedError for a model without layers that Tamis knows or not on the CPU,
    ArgumentError when it is accelerated already; the model is untouched then.
    """
    if index_dtype is not None and index_dtype not in INDEX_DTYPES:
        raise wrong(f"accelerate: index_dtype {index_dtype!r} is not None or one of {', '.join(INDEX_DTYPES)}")
    decoder, attentions = known(model)
    if hasattr(decoder, "_tamis"):
        raise wrong("accelerate: the model is accelerated already; restore(model) first")
    layouts = {attention.layer_idx: layout(attention, index_dtype) for attention in attentions}
    decoder._tamis = Patch(ctx or Context(threads=torch.get_num_threads()), layouts)
    for attention in attentions:
        adopt(attention, decoder._tamis)
    replace(decoder, forward=run_model.__get__(decoder))
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undoes `accelerate`, in place. -> the same model. Caches made meanwhile are refused by it afterwards."""
    for decoder in model.modules():
        if "_tamis" in vars(decoder):
            put_back(decoder)
            for attention in sparse_attentions(decoder):
                disown(attention)
            del decoder._tamis
            return model
    raise wrong("restore: the model is not accelerated")


def known(model: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """The decoder inside the model and its sparse attentions, all checked."""
    if not isinstance(model, nn.Module):
        raise wrong(f"accelerate: is {type(model).__name__}, expected a torch.nn.Module")
    found = [(module, sparse_attentions(module)) for module in model.modules()
             if isinstance(getattr(module, "layers", None), nn.ModuleList)]
    found = [(module, attentions) for module, attentions in found if attentions]
    if len(found) != 1:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise unsupported(f"{len(found)} decoders with a lightning indexer were found in {kind!r}, expected one of "
                          f"the families {', '.join(FAMILIES)}")
    decoder, attentions = found[0]
    for attention in attentions:
        for name, parameter in attention.named_parameters():
            if parameter.device.type != "cpu":
                raise unsupported(f"{name} lies on {parameter.device}, expected cpu")
        weight = attention.kv_b_proj.weight
        if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise unsupported(f"kv_b_proj.weight is {weight.dtype}, expected float32, float16 or bfloat16")
    return decoder, attentions


def sparse_attentions(decoder: nn.Module) -> list[nn.Module]:
    """The attention modules of a decoder that a lightning indexer steers."""
    attentions = [getattr(layer, "self_attn", None) for layer in getattr(decoder, "layers", ())]
    return [attention for attention in attentions if attention is not None and family_of(attention) is not None]


def layout(attention: nn.Module, index_dtype: str | None) -> Layout:
    """What the layer of this attention keeps for each token."""
    shared = getattr(attention, "is_kv_shared_layer", False)
    return Layout(key_dim=0 if shared else attention.kv_lora_rank + attention.qk_rope_head_dim,
                  value_dim=attention.kv_lora_rank,
                  index_dim=0 if attention.indexer is None else attention.indexer.head_dim, index_dtype=index_dtype)


def unsupported(text: str) -> Exception:
    return error(-6, "TAMIS_E_UNSUPPORTED", f"accelerate: {text}")
