"""One decode step of DeepSeek Sparse Attention from numpy: index -> select -> attend over 32,768 keys, beside dense
attention over all of them, and the counters that prove what was saved. Random numbers stand in for a model's.

    python examples/select_keys.py
"""
import numpy as np
import tamis

KEYS, HEADS, INDEX_HEADS, K = 32768, 128, 64, 2048
random = np.random.default_rng(1).standard_normal

with tamis.Context() as ctx:
    print(ctx.describe())
    index_keys = ctx.quantize(random((KEYS, 128), np.float32), "i8")
    latents = ctx.quantize(random((KEYS, 1, 576), np.float32), "bf16")  # [keys, 1, 576]; a value is the first 512
    index_q, weights = random((1, INDEX_HEADS, 128), np.float32), random((1, INDEX_HEADS), np.float32)
    q = random((1, HEADS, 576), np.float32)

    def sparse():
        chosen = ctx.select(index_q, weights, index_keys, K)
        return chosen, ctx.attend(q, latents, latents[..., :512], indices=chosen)

    def milliseconds(step):
        """The best of five, by the context's own clock."""
        marks = [ctx.counters().wall_seconds for _ in range(6) if step() is not None]
        return min(1000 * (b - a) for a, b in zip(marks, marks[1:]))

    chosen, out = sparse()
    print(f"keys chosen: {chosen[0, 0]} {chosen[0, 1]} {chosen[0, 2]} ... {chosen[0, -1]} (of {KEYS}, ascending)")
    before = ctx.counters("select"), ctx.counters("attend")
    fast = milliseconds(sparse)
    select, attend = ctx.counters("select") - before[0], ctx.counters("attend") - before[1]
    slow = milliseconds(lambda: ctx.attend(q, latents, latents[..., :512]))
    print(f"one step: sparse {fast:.2f} ms, dense {slow:.2f} ms, {slow / fast:.1f} times faster")
    print(f"counted in {select.calls} steps: {select.keys_scored} keys scored, {select.keys_selected} selected; "
          f"attend compared {attend.keys_attended}, dense attention would have compared {attend.keys_dense}")
