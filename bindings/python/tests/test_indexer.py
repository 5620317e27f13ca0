"""Capture, fit and diagnosis from Python: numbers against numpy, errors, callbacks, files, and use with select."""
import json

import numpy as np
import pytest
from conftest import ROOT

import tamis

TOKENS, WIDTH, KINDS = 96, 24, 6


def kinds_host(seed):
    """Tokens of a few kinds that attend to their own kind: x [m, width], p [m, m]."""
    centres = np.random.default_rng(5).standard_normal((KINDS, WIDTH))
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, KINDS, TOKENS)
    x = (centres[kind] + 0.3 * rng.standard_normal((TOKENS, WIDTH))).astype(np.float32)
    p = np.tril(np.where(kind[:, None] == kind[None], np.exp(4.0), 1.0))
    return x, (p / p.sum(1, keepdims=True)).astype(np.float32)


def capture_of(ctx, seeds):
    capture = tamis.Capture(ctx)
    for seed in seeds:
        capture.add(*kinds_host(seed))
    return capture


@pytest.fixture(scope="module")
def fitted():
    ctx = tamis.Context(threads=2)
    return (*tamis.fit(capture_of(ctx, range(12)), dim=16, steps=150), capture_of(ctx, range(100, 108)))


def test_a_fit_finds_held_out_attention(fitted):
    indexer, report, held_out = fitted
    assert report.last_loss < 0.3 * report.first_loss
    assert (report.steps, report.sequences, report.rows, report.warnings) == (150, 12, 12 * TOKENS, ())
    assert report.flops > 0 and report.seconds > 0
    found = indexer.diagnose(held_out, [8, 16])
    assert found.at[0].indexer > 0.9 * found.at[0].oracle > 2 * found.at[0].recency
    assert found.oracle_k <= found.indexer_k <= TOKENS and found.rows == 8 * (TOKENS - TOKENS // 2 + 1)
    told = json.loads(found.json())
    assert told["at"][1]["k"] == 16 and told["at"][1]["oracle"] == found.at[1].oracle
    assert told["warnings"] == list(found.warnings) == ["few rows"]
    assert "oracle indexer recency" in str(found) and "warning: few rows" in str(found)


def test_diagnosis_is_that_of_its_own_projections(fitted):
    """select over project's output chooses the keys whose mass diagnose reports."""
    indexer, _, _ = fitted
    x, p = kinds_host(100)
    one = tamis.Capture()
    one.add(x, p)
    q, w, key = indexer.project(x)
    chosen = tamis.select(q, w, key, k=10)
    rows = np.arange(50, TOKENS)
    mass = np.take_along_axis(p[rows], chosen[rows], 1).sum(1).mean()
    recall = np.mean([len(np.intersect1d(np.argsort(-p[t, :t + 1], kind="stable")[:10], chosen[t])) / 10 for t in rows])
    at = indexer.diagnose(one, [10], least_visible=51).at[0]
    assert at.indexer == pytest.approx(mass, abs=1e-5)
    assert at.recall == pytest.approx(recall, abs=1e-3)


def test_heads_are_averaged_and_queries_and_keys_are_the_same_attention(rng):
    x, _ = kinds_host(3)
    q = rng.standard_normal((TOKENS, 4, 8)).astype(np.float32)
    key = rng.standard_normal((TOKENS, 2, 8)).astype(np.float32)
    scores = np.einsum("thd,shd->hts", q, np.repeat(key, 2, 1)) * 0.7
    scores[:, ~np.tri(TOKENS, dtype=bool)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p = np.ascontiguousarray(p / p.sum(-1, keepdims=True), dtype=np.float32)
    found = []
    for arguments in ({"attention": p}, {"attention": p.mean(0)}, {"q": q, "key": key, "softmax_scale": 0.7}):
        capture = tamis.Capture()
        capture.add(x, **arguments)
        found.append(tamis.Indexer(WIDTH, dim=16).diagnose(capture, [5]).at[0])
    for other in found[1:]:
        assert other.oracle == pytest.approx(found[0].oracle, abs=1e-5)
        assert other.indexer == pytest.approx(found[0].indexer, abs=1e-5)


def test_the_same_seed_gives_the_same_bits():
    capture = capture_of(None, range(2))
    one, two, other = (tamis.fit(capture, dim=16, steps=5, seed=seed)[0].project(kinds_host(0)[0])[2]
                       for seed in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_what_stops_a_fit_leaves_the_indexer_as_it_was():
    capture = capture_of(None, range(2))
    indexer = tamis.Indexer(WIDTH, dim=16)
    x = kinds_host(0)[0]
    before = indexer.project(x)[2]
    seen = []
    with pytest.raises(tamis.CancelledError):
        indexer.fit(capture, on_step=lambda step, steps, loss: seen.append((step, steps)) or step == 3)
    assert seen == [(1, 400), (2, 400), (3, 400)]
    with pytest.raises(ZeroDivisionError):
        indexer.fit(capture, on_step=lambda *_: 1 / 0)
    with pytest.raises(tamis.ArgumentError, match="diverged"):
        indexer.fit(capture, learning_rate=1e20)
    assert np.array_equal(indexer.project(x)[2], before)


def test_wrong_input_is_refused():
    x, p = kinds_host(0)
    capture = tamis.Capture()
    with pytest.raises(tamis.ArgumentError, match="empty"):
        tamis.fit(capture)
    with pytest.raises(tamis.ArgumentError, match="sums to"):
        capture.add(x, p * 0.5)
    with pytest.raises(tamis.ArgumentError, match="NaN"):
        capture.add(np.where(x > 1, np.nan, x).astype(np.float32), p)
    with pytest.raises(tamis.ArgumentError, match="neither"):
        capture.add(x)
    with pytest.raises(tamis.ArgumentError, match="visible"):
        capture.add(x, p, visible="some")
    with pytest.raises(tamis.ArgumentError, match="positions"):
        capture.add(x, p, positions=np.zeros(3, np.int32))
    assert capture.size() == (0, 0, 0)
    capture.add(x, p)
    assert capture.size()[:2] == (1, TOKENS)
    with pytest.raises(tamis.ArgumentError, match="takes 30"):
        tamis.Indexer(30).fit(capture)
    for wrong in ({"dim": 20}, {"heads": 0}, {"rope_dim": 5}, {"rope_base": 0}, {"seed": -1}):
        with pytest.raises(tamis.ArgumentError):
            tamis.Indexer(WIDTH, **wrong)
    with pytest.raises(tamis.ArgumentError):
        tamis.Indexer(WIDTH).diagnose(capture, [0])
    capture.close()
    with pytest.raises(tamis.ArgumentError, match="closed"):
        capture.size()


def test_files(tmp_path, fitted):
    indexer, _, _ = fitted
    other = tamis.Indexer(WIDTH, heads=2, dim=32, rope_dim=0)
    tamis.save_indexers(tmp_path / "both", {"one.": indexer, "two.": other})
    x = kinds_host(1)[0]
    again = tamis.Indexer.load(tmp_path / "both", "one.")
    assert (again.heads, again.dim, again.rope_dim) == (4, 16, 8)
    for mine, read in zip(indexer.project(x), again.project(x)):
        assert np.array_equal(mine, read)
    assert np.array_equal(tamis.Indexer.load(tmp_path / "both", "two.", rope_dim=0).project(x)[2], other.project(x)[2])
    other.save(tmp_path / "alone")
    assert tamis.Indexer.load(tmp_path / "alone", rope_dim=0).dim == 32
    with pytest.raises(tamis.FormatError, match="three.wk|three.wq_b"):
        tamis.Indexer.load(tmp_path / "both", "three.")
    with pytest.raises(tamis.FileError):
        tamis.Indexer.load(tmp_path / "none")


def test_a_trained_checkpoints_indexer_loads():
    toy = ROOT / "Tests" / "Fixtures" / "toy-v32" / "model.safetensors"
    indexer = tamis.Indexer.load(toy, "model.layers.2.self_attn.indexer.")
    assert (indexer.width, indexer.features, indexer.heads, indexer.dim, indexer.rope_dim) == (192, 96, 4, 64, 32)
    frequencies = (10000.0 ** (-np.arange(16) / 16)).astype(np.float32)
    given = tamis.Indexer.load(toy, "model.layers.2.self_attn.indexer.", rope_dim=32, rope_frequencies=frequencies)
    x = np.random.default_rng(0).standard_normal((300, 192)).astype(np.float32)
    assert np.allclose(indexer.project(x, x[:, :96].copy())[2], given.project(x, x[:, :96].copy())[2], atol=1e-4)
