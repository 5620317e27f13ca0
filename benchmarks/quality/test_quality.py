"""The measuring itself: selections are legal, tasks ask what was planted, and the example model answers."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import selections  # noqa: E402
from intervals import mean_and_half, wilson  # noqa: E402

MODEL = HERE.parents[1] / "examples" / "model"


@pytest.mark.parametrize("choose", [selections.recent, selections.random_keys(3)])
@pytest.mark.parametrize("first", [0, 5, 90])
def test_selections_are_causal_ascending_and_full(choose, first):
    rows, k = 12, 8
    indices = np.full((rows, k), 77, np.int32)
    choose(0, 0, first, indices)
    for row, chosen in enumerate(indices):
        count = min(k, first + row + 1)
        assert (chosen[count:] == -1).all()
        assert (np.diff(chosen[:count]) > 0).all() and chosen[0] >= 0 and chosen[count - 1] <= first + row


def test_the_window_keeps_the_first_tokens_and_the_row_itself():
    indices = np.zeros((1, 10), np.int32)
    selections.recent(0, 0, 50, indices)
    assert indices[0].tolist() == [0, 1, 2, 3, 45, 46, 47, 48, 49, 50]


def test_intervals():
    share, low, high = wilson(8, 10)
    assert share == 0.8 and math.isclose(low, 0.49016, abs_tol=1e-4) and math.isclose(high, 0.94332, abs_tol=1e-4)
    assert wilson(24, 24)[2] == pytest.approx(1.0)
    mean, half = mean_and_half([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(1.96 / math.sqrt(3))


@pytest.fixture(scope="module")
def bench():
    pytest.importorskip("tamis")
    if not MODEL.exists():
        pytest.skip("no example model")
    from run import Bench

    return Bench(MODEL)


def test_queries_ask_for_records_of_the_context(bench):
    task = bench.text.recall(1024, 16, 8, True, seed=1)
    assert len(task.context) == 1016 and len(task.queries) == 8
    for query in task.queries:
        assert query.ids[0] == bench.text.record and query.ids[-1] == bench.text.stop
        assert query.ids.tobytes() in task.context.tobytes()
        assert 2 <= query.value.start - 1 <= 3 and 2 <= len(query.ids[query.value]) <= 3


def test_reading_every_key_is_dense_attention(bench):
    window = bench.text.windows(256, 1, seed=2)[0]
    dense, all_keys = (bench.losses(window, mode) for mode in (("dense",), ("indexer", 256)))
    np.testing.assert_array_equal(dense, all_keys)


def test_the_model_recalls_what_the_window_cannot_see(bench):
    tasks = [bench.text.recall(1024, 16, 12, True, seed) for seed in range(3)]
    dense, indexer, recent = (sum(sum(bench.recalled(task, mode)) for task in tasks)
                              for mode in (("dense",), ("indexer", 64), ("recent", 64)))
    assert indexer >= 24 and indexer >= dense - 2 and recent <= 9
