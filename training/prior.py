"""A starting point from which recall is learnt in minutes: the induction prior.

From plain random weights a small model finds the circuit that copies from far
away (a head that looks one token back, and a head one layer up that looks for
"whose previous token is the present one") only after a long plateau.  This file
writes that circuit into the *initial* weights of head 0 of the first two layers.
Nothing is frozen: every weight is trained afterwards.  A model trained with it
is no evidence that training would have found retrieval by itself; the model card
says so, and the control run trains without it.
"""

import math

import torch
import torch.nn.functional as F

from model import inverse_frequencies

PAIRS = 6  # rotary pairs that make head 0 look one token back
BACK = 8.5  # sharpness of looking back
MATCH = 1.5  # sharpness of matching
COPY = 3.0  # strength with which the matched token is written


def orthonormal(rows, columns):
    q, _ = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))
    return q if rows >= columns else q.T


@torch.no_grad()
def write_induction(model):
    config = model.config
    d, heads, nope = config.hidden_size, config.num_attention_heads, config.qk_nope_head_dim
    latent, query_rank, rope, value = (config.kv_lora_rank, config.q_lora_rank, config.qk_rope_head_dim,
                                       config.v_head_dim)
    first, second = model.layers[0].self_attn, model.layers[1].self_attn
    width = nope  # dimensions that carry a token's identity to the match

    # A direction that every embedding shares: the constant that positions are compared with.
    constant = F.normalize(torch.randn(d), dim=0)
    embedding = model.embed_tokens.weight
    embedding += 4.0 * constant
    normed = F.rms_norm(embedding, (d,), None, config.rms_norm_eps)

    # Layer 0, head 0: the previous token, by rotary pairs whose query is turned back by one position.
    keys = first.kv_a_proj_with_mqa.weight
    queries = first.q_b_proj.weight.view(heads, nope + rope, -1)
    keys[latent:] = 0
    keys[latent : latent + 2 * PAIRS : 2] = constant * BACK / (normed @ constant).mean()
    first.q_a_proj.weight[0] = constant
    carried = F.rms_norm(normed @ first.q_a_proj.weight.T, (query_rank,), None, config.rms_norm_eps)[:, 0].mean()
    queries[0] = 0
    for pair, frequency in enumerate(inverse_frequencies(config)[:PAIRS].tolist()):
        queries[0, nope + 2 * pair, 0] = BACK / carried * math.cos(frequency)
        queries[0, nope + 2 * pair + 1, 0] = -BACK / carried * math.sin(frequency)

    # It writes the previous token's identity, [width] numbers, into the residual stream.
    identity = orthonormal(latent, d)
    identity -= (identity @ constant)[:, None] * constant
    keys[:latent] = identity
    squeeze, write = orthonormal(width, latent), orthonormal(d, width)
    first.kv_b_proj.weight.view(heads, nope + value, -1)[0, nope : nope + width] = squeeze
    first.o_proj.weight[:, :width] = write * 1.2
    code = F.rms_norm(normed @ identity.T, (latent,), None, config.rms_norm_eps) @ squeeze.T
    code -= code.mean(0)

    # Layer 1, head 0: queries with the present token's code, keys with the previous token's.
    ridge = torch.cat((normed, 3 * torch.eye(d)))
    solved = torch.linalg.lstsq(ridge, torch.cat((code, torch.zeros(d, width)))).solution.T
    second.q_a_proj.weight[:width] = solved / (normed @ solved.T).std()
    copied = min(value, latent - width)  # dimensions of the token that is copied
    copy = orthonormal(copied, d)
    copy -= (copy @ constant)[:, None] * constant
    second.kv_a_proj_with_mqa.weight[:width] = write.T
    second.kv_a_proj_with_mqa.weight[width : width + copied] = copy
    queries = second.q_b_proj.weight.view(heads, nope + rope, -1)
    expand = second.kv_b_proj.weight.view(heads, nope + value, -1)
    queries[0], expand[0] = 0, 0
    for i in range(width):
        queries[0, i, i] = MATCH
        expand[0, i, i] = MATCH
    for i in range(copied):
        expand[0, nope + i, width + i] = 1
    second.o_proj.weight[:, :copied] = copy.T * COPY
