"""numpy and PyTorch doing the engine's work as a competent user would write it: one function for each that returns a
step to be timed. Owns no measuring; refuses nothing (shapes are engine_layer's)."""

from __future__ import annotations

import numpy as np

# Query rows of one matrix product in prefill: the scores of 8 rows x 64 heads over 32,768 keys are 64 MiB of float32.
BLOCK = 8


def numpy_sparse(layer, k):
    """float32 with OpenBLAS: scores, argpartition, gather, two matrix products for each row."""
    value, scale = layer.value_dim, layer.key_dim**-0.5
    heads = layer.index_q.shape[1]
    products = np.empty((layer.keys, min(BLOCK, layer.queries) * heads), np.float32)

    def attend(row, chosen):
        rows = layer.latent_f32[chosen]
        logits = layer.q_f32[row] @ rows.T * scale
        p = np.exp(logits - logits.max(1, keepdims=True))
        return (p / p.sum(1, keepdims=True)) @ rows[:, :value]

    def step():
        for first in range(0, layer.queries, BLOCK):
            q = layer.index_q[first : first + BLOCK]
            np.matmul(layer.index_f32, q.reshape(-1, q.shape[2]).T, out=products)
            np.maximum(products, 0, out=products)
            for i in range(len(q)):
                seen = layer.keys - layer.queries + first + i + 1
                scores = products[:seen, i * heads : (i + 1) * heads] @ layer.weights[first + i]
                attend(first + i, np.argpartition(scores, seen - k)[seen - k :] if k < seen else np.arange(seen))

    return step


def torch_steps(torch, layer, k):
    """bfloat16 (oneDNN), the fastest plain formulation found -> (sparse step, dense step)."""
    index = torch.from_numpy(layer.index_f32).bfloat16()
    latent = torch.from_numpy(layer.latent_f32).bfloat16()
    index_q, q = torch.from_numpy(layer.index_q).bfloat16(), torch.from_numpy(layer.q_f32).bfloat16()
    w = torch.from_numpy(layer.weights).bfloat16()
    scale = layer.key_dim**-0.5

    def attend(rows, heads, mask=None):
        logits = (heads @ rows.T).float() * scale
        if mask is not None:
            logits.masked_fill_(mask, -torch.inf)
        return torch.softmax(logits, -1).bfloat16() @ rows[:, : layer.value_dim]

    def sparse():
        for first in range(0, layer.queries, BLOCK):
            rows = index_q[first : first + BLOCK]
            products = torch.relu_(index @ rows.flatten(0, 1).T).view(layer.keys, *rows.shape[:2])
            for i in range(len(rows)):
                seen = layer.keys - layer.queries + first + i + 1
                scores = products[:seen, i] @ w[first + i]
                chosen = torch.topk(scores, min(k, seen), sorted=False).indices
                attend(latent[chosen], q[first + i])

    def dense():
        positions = torch.arange(layer.keys)
        for first in range(0, layer.queries, BLOCK):
            rows = q[first : first + BLOCK]
            mask = None
            if layer.queries > 1:
                last = layer.keys - layer.queries + first + torch.arange(len(rows))
                mask = (positions[None] > last[:, None]).repeat_interleave(rows.shape[1], 0)
            attend(latent, rows.flatten(0, 1), mask)

    return sparse, dense


def torch_linear(torch, x, weight):
    """x [rows, inputs] and weight [outputs, inputs] as float32 arrays -> a step in bfloat16."""
    x, weight = torch.from_numpy(x).bfloat16(), torch.from_numpy(weight).bfloat16()
    return lambda: torch.nn.functional.linear(x, weight)
