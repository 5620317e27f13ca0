"""The network that is trained: DeepSeek-V3.2's architecture at a small size.

This file owns the forward pass: multi-head latent attention, the lightning
indexer beside it, and the feed-forward layers (one dense, then mixtures of
experts with the sigmoid router and its balancing bias).  What attention may
read is decided by the functions of `sparse.py`; here it is causal and dense
unless one is given.  It owns no data, no optimiser and no file format.

Shapes: b sequences, t positions, h heads, d hidden width, e experts.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


BLOCK = 256  # rows of dense attention at a time
PLACES = 64  # an expert computes multiples of so many tokens


class Config(dict):
    """The keys of a `deepseek_v32` config.json, readable as attributes."""

    __getattr__ = dict.__getitem__


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        x = x.float()
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return (x * scale * self.weight).to(torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype)


def inverse_frequencies(config):
    """Rotary frequencies [rope / 2]; with YaRN the slow ones are interpolated."""
    dim, base = config.qk_rope_head_dim, config.rope_theta
    frequencies = base ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    scaling = config.get("rope_scaling")
    if not scaling:
        return frequencies
    original = scaling["original_max_position_embeddings"]

    def dimension(rotations):
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension(scaling["beta_fast"])), 0)
    high = min(math.ceil(dimension(scaling["beta_slow"])), dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)
    ramp = ramp.clamp(0, 1)
    return frequencies / scaling["factor"] * ramp + frequencies * (1 - ramp)


def rotary_tables(config, length):
    """cos and sin, each [length, rope / 2]."""
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse_frequencies(config))
    return angles.cos(), angles.sin()


def rotate_pairs(x, tables):
    """Main attention: neighbours (0,1), (2,3) ... form the rotated pairs.  x [b, t, h, rope]."""
    cos, sin = (table[None, :, None, :] for table in tables)
    a, b = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def rotate_halves(x, tables):
    """Indexer: element i pairs with element i + rope / 2.  x [b, t, h, rope]."""
    cos, sin = (table[None, :, None, :] for table in tables)
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Indexer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.width = config.index_n_heads, config.index_head_dim
        self.rope = config.qk_rope_head_dim
        self.wq_b = nn.Linear(config.q_lora_rank, self.heads * self.width, bias=False)
        self.wk = nn.Linear(config.hidden_size, self.width, bias=False)
        self.k_norm = nn.LayerNorm(self.width, eps=1e-6)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)

    def keys(self, x, tables):
        """[b, t, width]."""
        keys = self.k_norm(self.wk(x).float())
        return torch.cat((rotate_halves(keys[:, :, None, : self.rope], tables)[:, :, 0],
                          keys[..., self.rope:]), -1)

    def scores(self, x, latent, tables, rows, keys=None):
        """Index scores of some query rows against every position (or some keys), [b, rows, t], not masked."""
        batch, keys = len(x), self.keys(x, tables) if keys is None else keys
        at_rows = tuple(table[rows] for table in tables)
        queries = self.wq_b(latent[:, rows]).view(batch, -1, self.heads, self.width).float()
        queries = torch.cat((rotate_halves(queries[..., : self.rope], at_rows),
                             queries[..., self.rope:]), -1)
        with torch.autocast("cpu", enabled=False):
            weights = F.linear(x[:, rows].float(), self.weights_proj.weight)
            weights = weights * (self.heads * self.width) ** -0.5
        low = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        queries, keys, total = queries.to(low), keys.to(low).mT, 0
        for head in range(self.heads):
            total = total + (queries[:, :, head] @ keys).relu() * weights[..., head, None]
        return total


class Causal(torch.autograd.Function):
    """Attention over earlier positions, a block of rows at a time, its probabilities kept for the gradient.

    q, k, v [n, t, width]; hidden [n or 1, t, t] (True: not read) or None.  On a CPU with AVX-512 and without AMX this
    takes about two thirds of the fused operator's time.
    """

    @staticmethod
    def forward(context, q, k, v, scale, hidden):
        length, out, kept = q.shape[1], torch.empty_like(v), []
        for start in range(0, length, BLOCK):
            stop = min(start + BLOCK, length)
            scores = (q[:, start:stop] * scale) @ k[:, :stop].mT
            if hidden is None:
                scores[..., start:] += torch.full((stop - start, stop - start), -math.inf, dtype=q.dtype).triu(1)
            else:
                scores.unflatten(0, (len(hidden), -1)).masked_fill_(hidden[:, None, start:stop, :stop], -math.inf)
            kept.append(scores.softmax(-1))
            out[:, start:stop] = kept[-1] @ v[:, :stop]
        context.save_for_backward(q, k, v, *kept)
        context.scale = scale
        return out

    @staticmethod
    def backward(context, slope):
        q, k, v, *kept = context.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, shares in enumerate(kept):
            start, stop = block * BLOCK, block * BLOCK + shares.shape[1]
            part = slope[:, start:stop]
            dv[:, :stop].baddbmm_(shares.mT, part)
            scores = torch._softmax_backward_data(part @ v[:, :stop].mT, shares, -1, shares.dtype)
            torch.baddbmm(dq[:, start:stop], scores, k[:, :stop], beta=0, alpha=context.scale, out=dq[:, start:stop])
            dk[:, :stop].baddbmm_(scores.mT, q[:, start:stop], alpha=context.scale)
        return dq, dk, dv, None, None


def attend(q, k, v, scale, hidden=None):
    """Causal attention, [b, h, t, width]; hidden [b, t, t] is True where a row does not read a key."""
    if torch.is_grad_enabled() and q.dtype == torch.bfloat16:
        parts = (x.flatten(0, 1) for x in (q, k, v))
        return Causal.apply(*parts, scale, hidden).unflatten(0, q.shape[:2])
    if hidden is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    bias = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, -math.inf)[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.nope, self.rope, self.value = (config.qk_nope_head_dim, config.qk_rope_head_dim,
                                            config.v_head_dim)
        self.latent = config.kv_lora_rank
        d, h, eps = config.hidden_size, self.heads, config.rms_norm_eps
        self.q_a_proj = nn.Linear(d, config.q_lora_rank, bias=False)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps)
        self.q_b_proj = nn.Linear(config.q_lora_rank, h * (self.nope + self.rope), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(d, self.latent + self.rope, bias=False)
        self.kv_a_layernorm = RMSNorm(self.latent, eps)
        self.kv_b_proj = nn.Linear(self.latent, h * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(h * self.value, d, bias=False)
        self.indexer = Indexer(config)
        self.config = config

    @property
    def scale(self):
        scale, scaling = (self.nope + self.rope) ** -0.5, self.config.get("rope_scaling")
        if scaling:
            scale *= (0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1) ** 2
        return scale

    def project(self, x, tables):
        """The query latent [b, t, q_lora], and queries, keys, values [b, h, t, width]."""
        batch, length, _ = x.shape
        latent = self.q_a_layernorm(self.q_a_proj(x))
        q = self.q_b_proj(latent).view(batch, length, self.heads, -1)
        low = q.dtype
        q = torch.cat((q[..., : self.nope], rotate_pairs(q[..., self.nope:], tables).to(low)), -1)
        kv = self.kv_a_proj_with_mqa(x)
        shared = rotate_pairs(kv[:, :, None, self.latent:], tables).to(low)
        kv = self.kv_b_proj(self.kv_a_layernorm(kv[..., : self.latent]))
        kv = kv.view(batch, length, self.heads, -1)
        k = torch.cat((kv[..., : self.nope], shared.expand(-1, -1, self.heads, -1)), -1)
        v = kv[..., self.nope:]
        return latent, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x, tables, read=None):
        """read(attention, x, latent, q, k, v, tables) -> [b, h, t, value]; None: all earlier positions."""
        latent, q, k, v = self.project(x, tables)
        if read is None:
            out = attend(q, k, v, self.scale)
        else:
            out = read(self, x, latent, q, k, v, tables)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gather(torch.autograd.Function):
    """Rows of x [n, d] by number, [m, d]; with `back` [n, c], the places of each row among them that count, the
    gradient is a gather too, which is many times faster here than adding row by row."""

    @staticmethod
    def forward(context, x, rows, back):
        context.save_for_backward(back)
        return x[rows]

    @staticmethod
    def backward(context, slope):
        back, = context.saved_tensors
        return slope[back].sum(1), None, None


class Scatter(torch.autograd.Function):
    """The inverse: sums of the rows of y [m, d] that belong together, [n, d]; what does not count must not depend
    on its gradient."""

    @staticmethod
    def forward(context, y, rows, back):
        context.save_for_backward(rows)
        return y[back].sum(1)

    @staticmethod
    def backward(context, slope):
        rows, = context.saved_tensors
        return slope[rows], None, None


class Experts(nn.Module):
    """The routed experts; each computes the tokens that chose it."""

    def __init__(self, experts, width, inner):
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))

    def forward(self, x, weights, taken):
        """x [b, t, d]; weights and whether each expert was taken, [b, t, e] -> [b, t, d].

        An expert's tokens fill multiples of PLACES; what is empty holds the first token with weight zero. A product of
        a shape that was never seen before costs its library more than the arithmetic of the empty places does.
        """
        taken, weights = taken.flatten(0, 1).T, weights.flatten(0, 1).T  # [e, n]
        experts, tokens = taken.nonzero().T  # in the order of experts
        counts = taken.sum(-1).long()
        places = (counts + PLACES - 1) // PLACES * PLACES
        at = torch.arange(len(tokens)) + (places - counts).cumsum(0).roll(1).index_fill(0, torch.tensor(0), 0)[experts]
        rows = torch.zeros(int(places.sum()), dtype=torch.long).index_copy(0, at, tokens)
        back = at[tokens.argsort(stable=True)].unflatten(0, (taken.shape[1], -1))
        scale = torch.zeros(len(rows), dtype=x.dtype).index_copy(0, at, weights[experts, tokens])[:, None]
        places = places.tolist()
        parts = Gather.apply(x.flatten(0, 1), rows, back).split(places)
        gates, ups, downs = (m.to(x.dtype).unbind() for m in (self.gate_proj, self.up_proj, self.down_proj))
        inner = (torch.cat([part @ gate.T for part, gate in zip(parts, gates)]),
                 torch.cat([part @ up.T for part, up in zip(parts, ups)]))
        scaled = F.silu(inner[0]) * inner[1] * scale
        out = torch.cat([part @ down.T for part, down in zip(scaled.split(places), downs)])
        return Scatter.apply(out, rows, back).view_as(x)


class MoE(nn.Module):
    """Routed experts beside a shared one."""

    def __init__(self, config):
        super().__init__()
        self.experts, inner = config.n_routed_experts, config.moe_intermediate_size
        self.chosen, self.groups, self.open_groups = (config.num_experts_per_tok, config.n_group,
                                                      config.topk_group)
        self.scaling = config.routed_scaling_factor
        d = config.hidden_size
        self.gate = nn.Linear(d, self.experts, bias=False)
        self.routed = Experts(self.experts, d, inner)
        self.shared_experts = MLP(d, inner * config.n_shared_experts)
        self.register_buffer("bias", torch.zeros(self.experts))
        self.register_buffer("load", torch.zeros(self.experts), persistent=False)

    def route(self, x):
        """Weights of every expert, zero where not chosen, and whether it was, [b, t, e]."""
        with torch.autocast("cpu", enabled=False):
            scores = F.linear(x.float(), self.gate.weight).sigmoid()
        with torch.no_grad():
            biased = scores + self.bias
            grouped = biased.unflatten(-1, (self.groups, -1))
            best = grouped.topk(min(2, grouped.shape[-1]), -1)[0].sum(-1)
            closed = torch.ones_like(best, dtype=torch.bool)
            closed.scatter_(-1, best.topk(self.open_groups, -1)[1], False)
            biased = grouped.masked_fill(closed[..., None], -math.inf).flatten(-2)
            taken = torch.zeros_like(scores).scatter_(-1, biased.topk(self.chosen, -1)[1], 1.0)
            self.load.copy_(taken.sum((0, 1)))
        weights = scores * taken
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.scaling, taken

    def forward(self, x):
        weights, taken = self.route(x)
        return self.shared_experts(x) + self.routed(x, weights.to(x.dtype), taken)


class Layer(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = number < config.first_k_dense_replace
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if dense else MoE(config)

    def forward(self, x, tables, read=None):
        x = x + self.self_attn(self.input_layernorm(x), tables, read)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config = Config(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.initialise()

    def initialise(self):
        """Normal weights; what adds to the residual stream starts at zero; the head starts as the embedding."""
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, 0, 0.5 * weight.shape[-1] ** -0.5)
            if "o_proj" in name or "down_proj" in name:
                nn.init.zeros_(weight)
        nn.init.normal_(self.embed_tokens.weight, 0, 0.5)
        with torch.no_grad():
            self.lm_head.weight.copy_(self.embed_tokens.weight * 0.05)
        for layer in self.layers:
            indexer = layer.self_attn.indexer
            nn.init.normal_(indexer.wq_b.weight, 0, indexer.wq_b.in_features ** -0.5)
            nn.init.normal_(indexer.wk.weight, 0, indexer.wk.in_features ** -0.5)
            nn.init.normal_(indexer.weights_proj.weight, 0, 0.02)

    def trunk(self, ids, read=None):
        """Normed hidden states [b, t, d] of token ids [b, t]."""
        tables = rotary_tables(self.config, ids.shape[1])
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, tables, read)
        return self.norm(x)

    def forward(self, ids, read=None):
        return self.lm_head(self.trunk(ids, read))
