"""The golden vectors of Tests/Vectors, made by an independent implementation, through the Python package."""
import numpy as np
import pytest
from conftest import VECTORS, cases
from numpy_reference import close, from_bf16_bits

import tamis


@pytest.mark.parametrize("case", cases("quantize_"))
def test_quantize(ctx, vectors, case):
    about = vectors.index["cases"][case]
    kind = "i8" if "_i8_" in case else "f8e4m3"
    made = ctx.quantize(vectors["quantize.x"], kind, block=about["block"],
                        power_of_two=about.get("power_of_two", False))
    assert np.array_equal(made.scale, vectors[f"{case}.scales"])
    assert np.array_equal(made.data, vectors[f"{case}.codes"])


@pytest.mark.parametrize("case", cases("hadamard_"))
def test_hadamard(ctx, vectors, case):
    close(ctx.quantize(vectors[f"{case}.x"], "f32", hadamard=True).data, vectors[f"{case}.y"], 1e-5)


def test_number_formats(ctx, vectors):
    every = tamis.Quantized(np.arange(256, dtype=np.uint8), "f8e4m3")
    assert np.array_equal(ctx.dequantize(every), vectors["e4m3.values"].astype(np.float32), equal_nan=True)
    x = vectors["bf16_encode.x"]
    assert np.array_equal(ctx.quantize(x, "bf16").data, vectors["bf16_encode.bits"])
    assert np.array_equal(ctx.quantize(vectors["f16_encode.x"], "f16").data.view(np.uint16), vectors["f16_encode.bits"])


def test_packed_layouts(ctx, vectors):
    token = tamis.Quantized(np.array(vectors["flashmla_token.bytes"]), "mla656")
    close(ctx.dequantize(token), vectors["flashmla_token.keys"], 1e-6)
    page = tamis.Quantized(vectors["index_page.bytes"].reshape(1, -1).copy(), "index132")
    close(ctx.dequantize(page), vectors["index_page.keys"], 1e-6)


@pytest.mark.parametrize("case", cases("select_"))
def test_select(ctx, vectors, case):
    key, q = vectors.operand(f"{case}.k", vectors[f"{case}.key_scale"]), vectors.operand(f"{case}.q")
    if key.dtype != "bf16":  # the codes themselves are the queries
        q = tamis.Quantized(q.data, q.dtype, np.ones(q.data.shape[:2], np.float32))
    elif (key.scale == 1).all():
        key = tamis.Quantized(key.data, "bf16")
    else:  # bfloat16 keys have no scales in the C interface: the products as float32 keys
        key = from_bf16_bits(key.data) * key.scale[:, None]
    w, visible = vectors[f"{case}.w"], vectors[f"{case}.visible"]
    expected = vectors[f"{case}.scores"]
    hidden = np.arange(expected.shape[1]) >= visible[:, None]
    scores = ctx.index_scores(q, w, key, visible=visible)
    size = np.abs(expected).max() or 1
    close(scores / size, np.where(hidden, -np.inf, expected) / size, 1e-5)
    for k in vectors.index["cases"][case]["k"]:
        assert np.array_equal(ctx.select(q, w, key, k, visible=visible), vectors[f"{case}.selected_{k}"])
        assert np.array_equal(ctx.topk(scores, k, visible=visible), vectors[f"{case}.selected_{k}"])


@pytest.mark.parametrize("case", cases("topk_"))
def test_topk(ctx, vectors, case):
    about, scores = vectors.index["cases"][case], vectors["topk.scores"]
    visible = np.full(len(scores), about["visible"], np.int32)
    assert np.array_equal(ctx.topk(scores, about["k"], visible=visible), vectors[f"{case}.selected"])


@pytest.mark.parametrize("case", cases("attend_"))
def test_attend(ctx, vectors, case):
    about = vectors.index["cases"][case]
    key = vectors.operand(f"{case}.k")
    value = vectors.operand(f"{case}.v") if f"{case}.v" in VECTORS else key[..., :about["value_dim"]]
    optional = {name: vectors[f"{case}.{name}"] for name in ("indices", "visible", "sink")
                if f"{case}.{name}" in VECTORS}
    expected, lse = vectors[f"{case}.out"], np.empty(vectors[f"{case}.lse"].shape, np.float32)
    out = ctx.attend(vectors.operand(f"{case}.q"), key, value, softmax_scale=about["scale"], lse=lse, **optional)
    close(out, expected, 0.02)
    close(lse, vectors[f"{case}.lse"], 0.005)


def test_merge(ctx, vectors):
    out, lse, other, other_lse = (vectors[f"merge.{name}"].astype(np.float32)
                                  for name in ("out_a", "lse_a", "out_b", "lse_b"))
    ctx.merge(other, other_lse, out, lse)
    close(out, vectors["merge.out_both"], 1e-5)
    close(lse, vectors["merge.lse_both"], 1e-5)
