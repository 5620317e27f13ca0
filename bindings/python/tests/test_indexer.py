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


def best_bilinear(sequences, rank):
    """Q [rank, features], K [rank, width] and c [width] of docs/indexer.md, by numpy's own decompositions, and how far
    another M is from the whole one after whitening. sequences: x [m, width], r [n, features], attention [n, m] and
    positions [n] of each, all float64."""
    cross, query, second, mean = 0, 0, 0, 0
    for x, r, p, positions in sequences:
        seen = np.tri(len(x))[positions]
        cross = cross + r.T @ (p - seen / seen.sum(1, keepdims=True)) @ x / len(r) / len(sequences)
        query = query + r.T @ r / len(r) / len(sequences)
        second = second + x.T @ x / len(x) / len(sequences)
        mean = mean + x.mean(0) / len(sequences)
    lower = [np.linalg.cholesky(c + 1e-3 * np.linalg.eigvalsh(c)[-1] * np.eye(len(c)))
             for c in (query, second - np.outer(mean, mean))]
    white = np.linalg.solve(lower[0], cross) @ np.linalg.inv(lower[1]).T
    u, s, vt = np.linalg.svd(white)
    scores = u[:, :rank] * s[:rank]
    ridge = lower[1] @ lower[1].T + np.outer(mean, mean)
    return (np.linalg.solve(lower[0].T, scores).T, np.linalg.solve(lower[1].T, vt[:rank].T).T,
            np.linalg.solve(ridge, mean), lambda m: np.linalg.norm(lower[0].T @ m @ lower[1] - white))


def start_of(indexer, capture):
    """The parameters that a fit begins with."""
    return indexer.fit(capture, steps=1, learning_rate=1e-30)


def test_a_fit_begins_with_the_best_bilinear_score(tmp_path, rng):
    """Against numpy: the tensors where the rank is that of the host, the captured mass where it is cut."""
    parameters = pytest.importorskip("safetensors.numpy")
    mixing = rng.standard_normal((30, WIDTH))
    sequences, capture = [], tamis.Capture()
    for number in range(6):
        x = rng.standard_normal((TOKENS, WIDTH)) @ np.diag(np.linspace(0.2, 2, WIDTH)) + 0.5
        positions = np.sort(rng.choice(np.arange(10, TOKENS), 40, replace=False)).astype(np.int32)
        r = x[positions] @ mixing.T + 0.1 * rng.standard_normal((40, 30))
        logits = np.where(np.tri(TOKENS)[positions] > 0, r @ mixing @ x.T / 12, -np.inf)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        arrays = [np.ascontiguousarray(array, np.float32) for array in (x, r, p)]
        capture.add(arrays[0], arrays[2], r=arrays[1], positions=positions)
        sequences.append((*(array.astype(float) for array in arrays), positions))
    for dim, rope_dim in ((48, 16), (32, 0), (16, 8), (32, 28)):
        rank = min(dim - rope_dim, WIDTH)
        indexer = tamis.Indexer(WIDTH, 30, dim=dim, rope_dim=rope_dim, heads=3)
        indexer.save(tmp_path / "random")
        assert start_of(indexer, capture).closed_start
        indexer.save(tmp_path / "start")
        random, start = (parameters.load_file(tmp_path / name) for name in ("random", "start"))
        q, k, c, distance = best_bilinear(sequences, rank)
        mine = start["wq_b.weight"].reshape(3, dim, 30).astype(float)
        unturned = slice(rope_dim, rope_dim + rank)
        scale = (3 * dim) ** 0.5
        product = mine[0, unturned].T @ start["wk.weight"][unturned].astype(float) / scale
        if rank == WIDTH:
            assert np.linalg.norm(product - q.T @ k) < 1e-4 * np.linalg.norm(q.T @ k)
        assert distance(product) < 1.01 * distance(q.T @ k) + 1e-5 * distance(0 * product)
        assert np.array_equal(mine[0, unturned], -mine[1, unturned])
        weights = start["weights_proj.weight"]
        assert np.allclose(weights[0], c, rtol=1e-3, atol=1e-4 * np.abs(c).max())
        assert np.array_equal(weights[0], -weights[1])
        # the rest is as random as it was
        assert np.array_equal(weights[2], random["weights_proj.weight"][2])
        assert np.array_equal(mine[2], random["wq_b.weight"].reshape(3, dim, 30)[2])
        assert np.array_equal(start["wk.weight"][:rope_dim], random["wk.weight"][:rope_dim])
        assert np.array_equal(start["k_norm.weight"], np.ones(dim)) and np.abs(start["k_norm.bias"]).max() < 1e-20
        # what it finds is what numpy's finds, up to the basis of the two factors, which LayerNorm sees
        theirs = {name: tensor.copy() for name, tensor in random.items()}
        queries = theirs["wq_b.weight"].reshape(3, dim, 30)
        queries[:2] *= 0.3
        queries[0, unturned], queries[1, unturned] = scale * q, -scale * q
        theirs["wk.weight"][unturned] = k
        theirs["weights_proj.weight"][:2] = c, -c
        parameters.save_file(theirs, tmp_path / "theirs")
        found = [tamis.Indexer.load(tmp_path / name, rope_dim=rope_dim).diagnose(capture, [6], least_visible=20).at[0]
                 for name in ("random", "start", "theirs")]
        assert abs(found[1].indexer - found[2].indexer) < 0.03
        assert found[1].indexer - found[0].indexer > 0.2 * (found[1].oracle - found[0].indexer)


def test_what_has_learnt_begins_with_what_it_has(tmp_path):
    capture = capture_of(None, range(2))
    x = kinds_host(0)[0]

    def key(indexer):
        return indexer.project(x)[2]

    indexer = tamis.Indexer(WIDTH, dim=16)
    before = key(indexer)
    assert not indexer.fit(capture, steps=1, learning_rate=1e-30, random_start=True).closed_start
    assert np.array_equal(key(indexer), before)
    assert not start_of(indexer, capture).closed_start and np.array_equal(key(indexer), before)
    tamis.Indexer(WIDTH, dim=16).save(tmp_path / "random")
    loaded = tamis.Indexer.load(tmp_path / "random")
    assert not start_of(loaded, capture).closed_start and np.array_equal(key(loaded), before)
    for none in ({"heads": 1}, {"rope_dim": 16}):  # two heads and unturned dims are needed
        indexer = tamis.Indexer(WIDTH, dim=16, **none)
        before = key(indexer)
        assert not start_of(indexer, capture).closed_start and np.array_equal(key(indexer), before)
    # a host that says nothing: all tokens are one
    same = tamis.Capture()
    equal = np.tri(TOKENS) / np.arange(1, TOKENS + 1)[:, None]
    same.add(np.ones((TOKENS, WIDTH), np.float32), equal.astype(np.float32))
    report = tamis.Indexer(WIDTH, dim=16).fit(same, steps=3)
    assert np.isfinite(report.last_loss)


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
