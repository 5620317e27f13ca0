#!/usr/bin/env python3
"""Makes the golden vectors of Tamis: vectors.json (an index) and vectors.bin (little-endian numbers).

    pip install numpy ml_dtypes
    python3 Tests/Vectors/make_vectors.py

Everything is computed here in numpy float64 from the formulas of DeepSeek-V3.2-Exp and FlashMLA, by other means
than Tests/Reference uses: number formats by nearest entry of a table, the Hadamard matrix by doubling, selection
by a stable sort, attention by whole matrices with -infinity masks. ml_dtypes, an independent implementation of
the narrow formats, must agree wherever it applies, or this script stops.

The index holds {"cases": {case: parameters}, "tensors": {"case.role": {dtype, shape, offset}}}. dtype is one of
U8 I8 U16 I32 F32 F64 BF16 F8_E4M3 (the last two are stored as their bit patterns). Scores of the selection cases are
separated at the k-th place by more than float rounding, or are exact in float, so every correct engine selects
the same set.
"""
import json
import math
import pathlib

import ml_dtypes
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
E4M3 = ml_dtypes.float8_e4m3fn
BF16 = ml_dtypes.bfloat16

cases = {}
tensors = {}
blob = bytearray()


def emit(case, parameters=None, **roles):
    """Adds tensors of one case, and its parameters."""
    cases.setdefault(case, {}).update(parameters or {})
    names = {"uint8": "U8", "int8": "I8", "uint16": "U16", "int32": "I32", "float32": "F32", "float64": "F64",
             "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}
    for role, array in roles.items():
        array = np.ascontiguousarray(array)
        blob.extend(b"\0" * (-len(blob) % 8))
        tensors[f"{case}.{role}"] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "offset": len(blob)}
        blob.extend(array.tobytes())


# -- number formats ----------------------------------------------------------------------------------------------

def e4m3_table():
    """Value of each code by the definition of the format."""
    values = np.empty(256)
    for code in range(256):
        e, m = (code >> 3) & 15, code & 7
        magnitude = m * 2.0 ** -9 if e == 0 else (8 + m) * 2.0 ** (e - 10)
        values[code] = math.nan if code & 127 == 127 else math.copysign(magnitude, -1 if code & 128 else 1)
    return values


TABLE = e4m3_table()
POSITIVE = TABLE[:127]


def e4m3_encode(x):
    """Nearest of the 127 positive values, ties to the even code; saturating."""
    x = np.asarray(x, np.float64)
    magnitude = np.minimum(np.abs(x), 448.0)
    above = np.clip(np.searchsorted(POSITIVE, magnitude), 1, 126)
    below = above - 1
    to_above, to_below = POSITIVE[above] - magnitude, magnitude - POSITIVE[below]
    nearer = np.where(to_above == to_below, np.where(above % 2 == 0, above, below),
                      np.where(to_above < to_below, above, below))
    codes = nearer.astype(np.uint8) | np.where(np.signbit(x), 0x80, 0).astype(np.uint8)
    return np.where(np.isnan(x), np.uint8(0x7F), codes)


def make_number_formats():
    library = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float64)
    assert np.array_equal(library, TABLE, equal_nan=True)
    emit("e4m3", values=TABLE)

    middles = (POSITIVE[1:] + POSITIVE[:-1]) / 2
    magnitudes = np.concatenate([POSITIVE, middles, [449, 463.9, 464, 465, 1e9, 3e38, np.inf, 1e-30, 2.0 ** -10]])
    magnitudes = magnitudes.astype(np.float32)
    magnitudes = np.concatenate([magnitudes, np.nextafter(magnitudes, np.float32(0)),
                                 np.nextafter(magnitudes, np.float32(np.inf))])
    x = np.concatenate([magnitudes, -magnitudes, np.float32([0.0, -0.0, np.nan])]).astype(np.float32)
    codes = e4m3_encode(x)
    finite = ~np.isnan(x)
    assert np.array_equal(np.clip(x[finite], -448, 448).astype(E4M3).view(np.uint8), codes[finite])
    emit("e4m3_encode", x=x, codes=codes)

    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2 ** 32, 600, dtype=np.uint32)
    special = np.uint32([0, 0x80000000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F7F7FFF, 0x7F7F8000,
                         0x00000001, 0x00008000, 0x00018000, 0x007FFFFF, 0x7F800000, 0xFF800000])
    x = np.concatenate([bits.view(np.float32), special.view(np.float32)])
    x = x[~np.isnan(x)]
    # to the nearest even upper half: add half a step, less one unless the kept part is odd
    raw = x.view(np.uint32).astype(np.uint64)
    bf16 = ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)
    assert np.array_equal(bf16, x.astype(BF16).view(np.uint16))
    emit("bf16_encode", x=x, bits=bf16)

    with np.errstate(over="ignore"):
        scaled = np.float32(rng.standard_normal(400) * 2.0 ** rng.uniform(-26, 18, 400))
        halves = np.arange(0, 0x7C00, 97, dtype=np.uint16).view(np.float16).astype(np.float64)
        nexts = (np.arange(0, 0x7C00, 97, dtype=np.uint16) + 1).view(np.float16).astype(np.float64)
        ties = np.float32((halves + np.where(np.isinf(nexts), 65536.0, nexts)) / 2)
        edges = np.float32([65504, 65519.996, 65520, 65536, 1e30, np.inf, -np.inf, 2 ** -24, 2 ** -25, 3e-8, 6e-8, 0, -0.0])
        x = np.concatenate([scaled, ties, -ties, edges]).astype(np.float32)
        emit("f16_encode", x=x, bits=x.astype(np.float16).view(np.uint16))


# -- quantisation ------------------------------------------------------------------------------------------------

def in_blocks(x, block):
    """[rows, n] -> [rows, blocks, block], the last block filled up with zeros."""
    filled = np.pad(x.astype(np.float64), ((0, 0), (0, -x.shape[1] % block)))
    return filled.reshape(x.shape[0], -1, block)


def e4m3_quantize(x, block, power_of_two):
    """x [rows, n] float32 -> codes [rows, n], scales [rows, ceil(n / block)] float32."""
    groups = in_blocks(x, block)
    amax = np.maximum(np.abs(groups).max(-1), np.float64(np.float32(1e-4)))
    scales = np.float32(amax / 448)
    if power_of_two:
        fraction, exponent = np.frexp(scales)  # scale = fraction * 2^exponent, 0.5 <= fraction < 1
        scales = np.ldexp(np.float32(1), np.where(fraction == 0.5, exponent - 1, exponent))
    exact = groups / scales.astype(np.float64)[..., None]
    codes = e4m3_encode(exact)
    assert np.array_equal(np.clip(exact, -448, 448).astype(E4M3).view(np.uint8), codes)
    single = groups.astype(np.float32) / scales[..., None]  # an engine that divides in float must agree
    assert np.array_equal(e4m3_encode(single), codes)
    return codes.reshape(x.shape[0], -1)[:, :x.shape[1]], scales.astype(np.float32)


def i8_quantize(x, block):
    groups = in_blocks(x, block)
    scales = np.float32(np.abs(groups).max(-1) / 127)
    scales = np.where(scales == 0, np.float32(1), scales)
    exact = groups / scales.astype(np.float64)[..., None]
    codes = np.clip(np.rint(exact), -127, 127).astype(np.int8)
    single = groups.astype(np.float32) / scales[..., None]
    assert np.array_equal(np.clip(np.rint(single), -127, 127).astype(np.int8), codes)
    return codes.reshape(x.shape[0], -1)[:, :x.shape[1]], scales


def make_quantization():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((14, 128)).astype(np.float32)
    x[1] *= 1e4
    x[2] *= 1e-3
    x[3] = 0
    x[4] *= 1e-7                                           # below the floor of 1e-4
    x[5] = np.clip(x[5], -2, 2); x[5, 7] = 448 * 2.0 ** -7   # scale is exactly a power of two
    x[6] = np.clip(x[6], -2, 2); x[6, 7] = np.nextafter(np.float32(3.5), np.float32(4))  # just above one
    x[7] = np.clip(x[7], -2, 2); x[7, 7] = np.nextafter(np.float32(3.5), np.float32(0))  # just below one
    x[8] = 0; x[8, 127] = -5                               # one element, negative
    x[9] *= 1e25
    x[10] = 3                                              # all equal
    x[11] = 1e-4                                           # exactly the floor
    x[12] = np.where(np.arange(128) % 2 == 0, 0.0, -0.0); x[12, 3] = 1
    x[13] = np.arange(128) - 64                            # int8 scale 64/127, many codes
    for block in (32, 48, 128):
        for power_of_two in (False, True):
            codes, scales = e4m3_quantize(x, block, power_of_two)
            emit(f"quantize_e4m3_{block}{'_pow2' if power_of_two else ''}",
                 {"block": block, "power_of_two": power_of_two}, codes=codes, scales=scales)
        codes, scales = i8_quantize(x, block)
        emit(f"quantize_i8_{block}", {"block": block}, codes=codes, scales=scales)
    emit("quantize", x=x)


def hadamard_matrix(n):
    """Sylvester's construction: H_2n = [[H_n, H_n], [H_n, -H_n]]."""
    h = np.ones((1, 1))
    while h.shape[0] < n:
        h = np.block([[h, h], [h, -h]])
    return h / math.sqrt(n)


def make_hadamard():
    rng = np.random.default_rng(3)
    for n in (1, 2, 8, 64, 128, 256):
        x = rng.standard_normal((3, n)).astype(np.float32)
        x[0] = np.arange(n) == n // 3                      # a unit vector shows one column, signs and all
        emit(f"hadamard_{n}", {"n": n}, x=x, y=x.astype(np.float64) @ hadamard_matrix(n))


# -- byte layouts ------------------------------------------------------------------------------------------------

def make_layouts():
    rng = np.random.default_rng(4)
    finite = np.flatnonzero(~np.isnan(TABLE)).astype(np.uint8)

    latent = rng.choice(finite, (3, 512))
    scales = np.float32([[0.5, 2.0 ** -9, 4, 1], [0.0123, 1.7, 3e-5, 11.1], [1, 1, 1, 1]])
    rope = np.float32(rng.standard_normal((3, 64))).astype(BF16)
    tokens = np.concatenate([latent, scales.view(np.uint8), rope.view(np.uint16).view(np.uint8)], axis=1)
    assert tokens.shape == (3, 656)
    keys = np.concatenate([TABLE[latent] * np.repeat(scales.astype(np.float64), 128, axis=1), rope.astype(np.float64)], 1)
    emit("flashmla_token", bytes=tokens, keys=keys)

    codes = rng.choice(finite, (64, 128))
    scales = np.float32(np.exp(rng.uniform(-6, 2, 64)))
    scales[::4] = np.float32(2.0) ** rng.integers(-8, 3, 16)
    page = np.concatenate([codes.reshape(-1), scales.view(np.uint8)])
    assert page.shape == (8448,)
    emit("index_page", {"tokens": 64, "dim": 128}, bytes=page,
         keys=TABLE[codes] * scales.astype(np.float64)[:, None], scales=scales)


# -- index and select --------------------------------------------------------------------------------------------

def index_scores(q, w, k, scale):
    """q [n, h, d], w [n, h], k [m, d], scale [m] -> [n, m]."""
    q, w, k, scale = (np.asarray(a, np.float64) for a in (q, w, k, scale))
    return np.einsum("nh,nhm->nm", w, np.maximum(np.einsum("nhd,md->nhm", q, k), 0)) * scale


def top_k(row, k, visible):
    """Indices of the k best visible entries, ascending, -1 padded; ties to the lower index; NaN as -infinity."""
    rank = np.where(np.isnan(row), -np.inf, row)[:visible]
    best = np.sort(np.argsort(-rank, kind="stable")[:k])
    return np.concatenate([best, np.full(k - len(best), -1)]).astype(np.int32)


def causal(n, m):
    return np.maximum(0, m - n + 1 + np.arange(n))


def select_rows(scores, k, visible):
    return np.stack([top_k(row, k, count) for row, count in zip(scores, visible)])


def check_separated(scores, k, visible):
    for row, count in zip(scores, visible):
        ordered = -np.sort(-row[:count])
        if 0 < k < count:
            both_zero = ordered[k - 1] == 0 and ordered[k] == 0  # nothing passed the ReLU: exact in every engine
            assert both_zero or ordered[k - 1] - ordered[k] > 2e-6 * np.abs(row).max(), "too close: another seed"


def make_select(name, q, w, k, scale, counts, exact=False, visible=None, stored=None):
    """One set of scores and its selections for several k. `stored`: codes of q and k where they are not numbers."""
    n, h, d = q.shape
    m = k.shape[0]
    scores = index_scores(q, w, k, scale)
    bounds = causal(n, m) if visible is None else np.asarray(visible)
    roles = {}
    for count in counts:
        if not exact:
            check_separated(scores, count, bounds)
        roles[f"selected_{count}"] = select_rows(scores, count, bounds)
    q_stored, k_stored = stored or (q, k)
    emit(name, {"queries": n, "keys": m, "heads": h, "dim": d, "k": list(counts)},
         q=q_stored, w=np.float32(w), k=k_stored, key_scale=np.float32(scale), scores=scores,
         visible=bounds.astype(np.int32), **roles)


def make_selection():
    rng = np.random.default_rng(5)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    # DeepSeek-V3.2's shape with int8 codes: the integer dot products are exact in every engine.
    q, k = (np.clip(np.rint(normal(*s) * 40), -127, 127).astype(np.int8) for s in ((2, 64, 128), (96, 128)))
    make_select("select_64x128_i8", q, normal(2, 64) * 0.01, k, np.exp(normal(96) * 0.3).astype(np.float32) / 40,
                (1, 16, 95, 96, 200))
    # GLM's shape with e4m3 codes.
    q, k = (e4m3_encode(normal(*s) * 100) for s in ((4, 32, 128), (80, 128)))
    make_select("select_32x128_e4m3", TABLE[q], normal(4, 32) * 0.01, TABLE[k], np.exp(normal(80) * 0.2).astype(np.float32) / 90,
                (7, 64, 79, 128), stored=(q.view(E4M3), k.view(E4M3)))
    # Four heads of 64 in bfloat16, more queries than in a decode step; rows see fewer keys than k, some none.
    q, k = normal(9, 4, 64).astype(BF16), normal(60, 64).astype(BF16)
    make_select("select_4x64_bf16", q, normal(9, 4), k, np.ones(60), (3, 8, 60), visible=[0, 1, 2, 3, 8, 9, 30, 59, 60])
    # Odd numbers of everything.
    q, k = normal(7, 3, 37).astype(BF16), normal(23, 37).astype(BF16)
    make_select("select_3x37_bf16", q, normal(7, 3), k, np.exp(normal(23)).astype(np.float32), (1, 5, 17, 23))
    # More queries than keys: the first rows see nothing.
    q, k = normal(6, 5, 16).astype(BF16), normal(4, 16).astype(BF16)
    make_select("select_more_queries_bf16", q, normal(6, 5), k, np.ones(4), (2, 4, 6))
    # Integers so small that scores repeat: ties everywhere, all exact.
    q, k = rng.integers(-1, 2, (6, 4, 8)).astype(np.int8), rng.integers(-1, 2, (90, 8)).astype(np.int8)
    make_select("select_ties_i8", q, rng.integers(-2, 3, (6, 4)), k, np.ones(90), (1, 4, 32, 64, 89), exact=True)
    # Most products negative: a plateau of exact zeros, cut in its middle.
    q = rng.integers(0, 20, (4, 8, 32)).astype(np.int8)
    k = rng.integers(-20, 0, (70, 32)).astype(np.int8)
    k[[3, 11, 40, 69]] = rng.integers(1, 20, (4, 32))
    make_select("select_zero_plateau_i8", q, np.abs(rng.integers(1, 5, (4, 8))), k, np.ones(70), (2, 4, 10, 66), exact=True)
    # Only negative weights: zero is the best score and must not be confused with padding.
    q, k = normal(5, 6, 32).astype(BF16), normal(50, 32).astype(BF16)
    make_select("select_negative_weights_bf16", q, -np.abs(normal(5, 6)) - 0.1, k, np.ones(50), (3, 20, 49), exact=False,
                visible=[50, 30, 21, 20, 3])
    # Scores as small as 1e-8 must be told apart like any others.
    q, k = normal(2, 4, 32).astype(BF16), normal(64, 32).astype(BF16)
    make_select("select_tiny_scores_bf16", q, normal(2, 4) * 1e-8, k, np.ones(64), (5, 33))

    inf, nan = np.inf, np.nan
    rows = np.float32([
        [1, 3, 2, 3, 3, 0, -1, 3, 2, 2],
        [0, -0.0, 0, -0.0, 0, -0.0, 1, 0, -0.0, 0],
        [nan, 1, nan, -inf, 2, -inf, nan, -5, 0, nan],
        [inf, 1, inf, 2, inf, -inf, 3, 4, 5, 6],
        [-1, -2, -3, -4, -5, -6, -7, -8, -9, -10],
        [nan] * 10,
        [1e-45, 2e-45, 0, -1e-45, 3e-45, 0, 1e-45, 1e-38, 1.1e-38, -2e-45],
        [7] * 10,
    ])
    for k in (1, 3, 6, 10, 12):
        for visible in (10, 5):
            emit(f"topk_{k}_of_{visible}", {"k": k, "visible": visible},
                 selected=select_rows(rows, k, [visible] * len(rows)))
    emit("topk", scores=rows)


# -- rope and norms ----------------------------------------------------------------------------------------------

def yarn(dim=64, theta=10000.0, factor=40.0, original=4096, fast=32, slow=1):
    i = np.arange(dim // 2)
    base = theta ** (-2 * i / dim)
    low, high = (dim * math.log(original / (2 * math.pi * r)) / (2 * math.log(theta)) for r in (fast, slow))
    low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
    keep = 1 - np.clip((i - low) / (high - low), 0, 1)
    return base / factor * (1 - keep) + base * keep


def rotate(x, positions, frequencies, interleaved):
    """x [..., t, 2 * pairs]: complex multiplication by exp(i * position * frequency)."""
    pairs = len(frequencies)
    turn = np.exp(1j * np.outer(positions, frequencies))
    if interleaved:
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)
    z = (x[..., :pairs] + 1j * x[..., pairs:]) * turn
    return np.concatenate([z.real, z.imag], axis=-1)


def layer_norm(x, weight, bias, epsilon=1e-6):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * weight + bias


def make_layers():
    rng = np.random.default_rng(6)
    frequencies = yarn()
    scale = 192 ** -0.5 * (0.1 * math.log(40) + 1) ** 2
    assert abs(scale - 0.1352338) < 5e-8
    emit("yarn", {"softmax_scale": scale}, frequencies=frequencies)

    positions = np.int32([0, 1, 5, 4095, 4096, 100000, 163839])
    x = rng.standard_normal((len(positions), 64)).astype(np.float32)
    emit("rope", positions=positions, x=x, interleaved=rotate(x.astype(np.float64), positions, frequencies, True),
         half_split=rotate(x.astype(np.float64), positions, frequencies, False))

    x = np.float32(rng.standard_normal((4, 128)) * [[1], [1e-3], [30], [1e-2]] + [[0], [0], [5], [100]])
    weight, bias = np.float32(1 + 0.1 * rng.standard_normal(128)), np.float32(rng.standard_normal(128))
    wide = x.astype(np.float64)
    emit("norms", x=x, weight=weight, bias=bias,
         rms=wide / np.sqrt((wide ** 2).mean(-1, keepdims=True) + 1e-6) * weight,
         layer=layer_norm(wide, weight.astype(np.float64), bias.astype(np.float64)))


def make_indexer():
    """The whole indexer at toy size: projections, LayerNorm with bias, half-split rope, Hadamard, e4m3, selection."""
    rng = np.random.default_rng(7)
    tokens, hidden, latent, heads, dim, rotary, k, first = 28, 40, 24, 4, 32, 16, 6, 300
    x = np.float32(rng.standard_normal((tokens, hidden)))
    qr = np.float32(rng.standard_normal((tokens, latent)))
    wq_b = np.float32(rng.standard_normal((heads * dim, latent)) / math.sqrt(latent))
    wk = np.float32(rng.standard_normal((dim, hidden)) / math.sqrt(hidden) + 0.1)
    gain, bias = np.float32(1 + 0.1 * rng.standard_normal(dim)), np.float32(0.5 * rng.standard_normal(dim))
    weights_proj = np.float32(rng.standard_normal((heads, hidden)) / math.sqrt(hidden))

    wide = [a.astype(np.float64) for a in (x, qr, wq_b, wk, gain, bias, weights_proj)]
    frequencies, positions = yarn(dim=rotary), first + np.arange(tokens)
    q = (wide[1] @ wide[2].T).reshape(tokens, heads, dim).transpose(1, 0, 2)
    key = layer_norm(wide[0] @ wide[3].T, wide[4], wide[5])
    scores, parts = None, []
    for vectors in (q, key[None]):
        turned = np.concatenate([rotate(vectors[..., :rotary], positions, frequencies, False), vectors[..., rotary:]], -1)
        turned = turned @ hadamard_matrix(dim)
        amax = np.maximum(np.abs(turned).max(-1), 1e-4)
        scales = 2.0 ** np.ceil(np.log2(amax / 448))
        parts.append((e4m3_encode(turned / scales[..., None]), scales))
    (q8, q_scale), (k8, k_scale) = parts
    q8, q_scale = q8.transpose(1, 0, 2), q_scale.T
    folded = (wide[0] @ wide[6].T) * heads ** -0.5 * q_scale * dim ** -0.5
    scores = index_scores(TABLE[q8], folded, TABLE[k8[0]], k_scale[0])
    visible = causal(tokens, tokens)
    check_separated(scores, k, visible)
    emit("indexer", {"tokens": tokens, "hidden": hidden, "latent": latent, "heads": heads, "dim": dim,
                     "rotary": rotary, "k": k, "first_position": first},
         x=x, qr=qr, wq_b=wq_b, wk=wk, k_norm_weight=gain, k_norm_bias=bias, weights_proj=weights_proj,
         query_codes=q8, query_scales=np.float32(q_scale), key_codes=k8[0], key_scales=np.float32(k_scale[0]),
         scores=scores, selected=select_rows(scores, k, visible))


# -- attend and merge --------------------------------------------------------------------------------------------

def attention(q, k, v, scale, mask, sink=None):
    """q [n, h, d], k [m, g, d], v [m, g, e], mask [n, m] of multiplicities -> out [n, h, e], lse [n, h]."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.einsum("nhd,mhd->nhm", q, k) * scale + np.log(mask)[:, None, :]
        top = logits.max(-1, initial=-np.inf)
        safe = np.where(np.isinf(top), 0, top)
        p = np.exp(logits - safe[..., None])
        total = p.sum(-1)
        denominator = total if sink is None else total + np.exp(np.asarray(sink, np.float64)[None] - safe)
        lse = np.where(denominator > 0, safe + np.log(denominator), -np.inf)
        out = np.einsum("nhm,mhe->nhe", p, v) / np.where(denominator > 0, denominator, 1)[..., None]
    return out, lse


def list_mask(indices, m):
    mask = np.zeros((len(indices), m))
    for t, row in enumerate(indices):
        for s in row[row >= 0]:
            mask[t, s] += 1
    return mask


def visible_mask(visible, m):
    return (np.arange(m)[None] < np.asarray(visible)[:, None]).astype(float)


def make_attend(name, rng, n, m, heads, key_heads, d, e, scale, mla=False, indices=None, visible=None, sink=None, size=1.0):
    q = (size * rng.standard_normal((n, heads, d))).astype(np.float32).astype(BF16)
    k = (size * rng.standard_normal((m, key_heads, d))).astype(np.float32).astype(BF16)
    v = k[..., :e] if mla else rng.standard_normal((m, key_heads, e)).astype(np.float32).astype(BF16)
    if indices is None:
        bounds = causal(n, m) if visible is None else np.asarray(visible)
        mask, roles = visible_mask(bounds, m), {"visible": bounds.astype(np.int32)}
    else:
        mask, roles = list_mask(indices, m), {"indices": indices.astype(np.int32)}
    if not mla:
        roles["v"] = v
    if sink is not None:
        roles["sink"] = np.float32(sink)
    out, lse = attention(q, k, v, scale, mask, roles.get("sink"))
    emit(name, {"queries": n, "keys": m, "heads": heads, "key_heads": key_heads, "key_dim": d, "value_dim": e,
                "scale": scale}, q=q, k=k, out=out, lse=lse, **roles)


def random_indices(rng, n, m, k, counts):
    rows = [np.concatenate([np.sort(rng.permutation(m)[:c]), np.full(k - c, -1)]) for c in counts]
    assert len(rows) == n
    return np.stack(rows)


def make_attention():
    rng = np.random.default_rng(8)
    make_attend("attend_mla_sparse", rng, 2, 40, 8, 1, 576, 512, 0.1352338, mla=True, size=0.7,
                indices=random_indices(rng, 2, 40, 16, (16, 11)))
    make_attend("attend_mla_dense", rng, 5, 9, 4, 1, 24, 16, 0.25, mla=True)
    make_attend("attend_mla_more_queries", rng, 5, 3, 4, 1, 24, 16, 0.25, mla=True)
    scattered = random_indices(rng, 4, 20, 7, (7, 0, 3, 1))
    scattered[2] = [-1, 19, -1, -1, 2, 2, -1]              # holes, no order, one key twice
    make_attend("attend_mla_sparse_sink", rng, 4, 20, 4, 1, 24, 16, 0.25, mla=True, indices=scattered,
                sink=[0.5, -3, 4, 0])
    make_attend("attend_gqa_dense", rng, 3, 17, 6, 2, 20, 12, 0.3, visible=[0, 17, 4])
    make_attend("attend_gqa_dense_sink", rng, 3, 17, 6, 2, 20, 12, 0.3, sink=[1, 2, -1, 0, 5, -20])
    make_attend("attend_gqa_sparse", rng, 3, 33, 6, 3, 20, 12, 0.3, indices=random_indices(rng, 3, 33, 5, (5, 4, 0)))
    make_attend("attend_mqa_odd", rng, 2, 11, 5, 1, 7, 3, 0.4)
    make_attend("attend_mha", rng, 2, 11, 4, 4, 16, 16, 0.25)
    make_attend("attend_large_logits", rng, 3, 12, 2, 1, 16, 8, 60.0, mla=True, size=3)

    n, m, heads, d, e = 4, 24, 3, 16, 10
    q, k, v = (np.float32(rng.standard_normal(s)) for s in ((n, heads, d), (m, 1, d), (m, 1, e)))
    left = (rng.random((n, m)) < 0.4).astype(float)
    right = 1 - left
    left[1], right[1] = 0, 1                               # nothing on the left
    left[2], right[2] = 1, 0                               # nothing on the right
    left[3], right[3] = 0, 0                               # nothing at all
    results = {}
    for side, mask in (("a", left), ("b", right), ("both", left + right)):
        results[f"out_{side}"], results[f"lse_{side}"] = attention(q, k, v, 1.0, mask)
    emit("merge", {"queries": n, "heads": heads, "value_dim": e}, **results)


def main():
    make_number_formats()
    make_quantization()
    make_hadamard()
    make_layouts()
    make_selection()
    make_layers()
    make_indexer()
    make_attention()
    (HERE / "vectors.bin").write_bytes(bytes(blob))
    index = {"about": "Golden vectors of Tamis, made by make_vectors.py; numbers lie in vectors.bin, little endian.",
             "cases": cases, "tensors": tensors}
    lines = json.dumps(index, indent=None, separators=(",", ":")).replace('},"', '},\n"')
    (HERE / "vectors.json").write_text(lines + "\n")
    print(f"{len(cases)} cases, {len(tensors)} tensors, {len(blob)} bytes")


if __name__ == "__main__":
    main()
