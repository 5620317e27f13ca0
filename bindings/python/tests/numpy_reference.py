"""The operators in numpy float64, as plainly as they are defined: what the library is compared with."""
import numpy as np


def to_bf16(x):
    """The nearest bfloat16 of each number, as float32 (ties to even)."""
    raw = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((raw + 0x7FFF + (raw >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def bf16_bits(x):
    return (to_bf16(x).view(np.uint32) >> 16).astype(np.uint16)


def from_bf16_bits(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def causal(n, m):
    return np.maximum(0, m - n + 1 + np.arange(n)).astype(np.int32)


def index_scores(q, w, key, visible=None):
    """q [n, h, d], w [n, h], key [m, d] -> [n, m], -infinity where a row does not see the key."""
    q, w, key = (np.asarray(x, np.float64) for x in (q, w, key))
    scores = np.einsum("nh,nhm->nm", w, np.maximum(np.einsum("nhd,md->nhm", q, key), 0))
    bounds = causal(*scores.shape) if visible is None else np.asarray(visible)
    return np.where(np.arange(scores.shape[1]) < bounds[:, None], scores, -np.inf)


def topk(scores, k, visible):
    """Ascending positions of the k best visible ones, ties to the lower, -1 behind."""
    result = np.full((scores.shape[0], k), -1, np.int32)
    for row, (values, count) in enumerate(zip(scores, visible)):
        rank = np.where(np.isnan(values), -np.inf, values)[:count]
        best = np.sort(np.argsort(-rank, kind="stable")[:k])
        result[row, :len(best)] = best
    return result


def attend(q, key, value, scale, indices=None, visible=None, sink=None):
    """q [n, H, d], key [m, g, d], value [m, g, e] -> (out [n, H, e], lse [n, H]), one row and head at a time."""
    q, key, value = (np.asarray(x, np.float64) for x in (q, key, value))
    n, heads = q.shape[:2]
    bounds = causal(n, key.shape[0]) if visible is None else visible
    out, lse = np.zeros((n, heads, value.shape[2])), np.full((n, heads), -np.inf)
    for i in range(n):
        rows = np.arange(bounds[i]) if indices is None else indices[i][indices[i] >= 0]
        for h in range(heads):
            g = h * key.shape[1] // heads
            logits = scale * (key[rows, g] @ q[i, h])
            extra = [] if sink is None else [float(sink[h])]
            everything = np.concatenate([logits, extra])
            if len(everything) == 0:
                continue
            top = everything.max()
            total = np.exp(everything - top).sum()
            lse[i, h] = top + np.log(total)
            out[i, h] = np.exp(logits - top) @ value[rows, g] / total
    return out, lse


def close(actual, expected, tolerance):
    """The largest difference relative to 1 + |expected| is at most `tolerance`; equal infinities differ by nothing."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    same = actual == expected
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0, np.abs(actual - expected) / (1 + np.abs(expected)))
    assert not np.isnan(difference).any()
    assert difference.max(initial=0) <= tolerance, f"differs by {difference.max():.3g}, allowed {tolerance:.3g}"
