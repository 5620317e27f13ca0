"""Other choices of k keys than the indexer's, as hooks that rewrite its selection.

A hook is called with rows of selected positions and writes others in their place:
`recent` (four first tokens and the latest), `random_keys`, `given` (an oracle's
choice for one row, per layer) and `recorder`, which only keeps what it sees.
Rows stay ascending, causal and padded with -1 at their end.
"""

import numpy as np

SINKS = 4  # first tokens that a sliding window also keeps, as is usual


def fill(indices, row, chosen):
    indices[row, : len(chosen)] = chosen
    indices[row, len(chosen) :] = -1


def recent(layer, sequence, first, indices):
    k = indices.shape[1]
    for row in range(len(indices)):
        visible = first + row + 1
        if visible <= k:
            fill(indices, row, np.arange(visible))
        else:
            fill(indices, row, np.r_[0:SINKS, visible - k + SINKS : visible])


def random_keys(seed):
    rng = np.random.default_rng(seed)

    def choose(layer, sequence, first, indices):
        k = indices.shape[1]
        for row in range(len(indices)):
            visible = first + row + 1
            fill(indices, row, np.sort(rng.choice(visible, min(k, visible), replace=False)))

    return choose


def given(chosen):
    """chosen [layers]: ascending positions for the one row of the call."""
    def choose(layer, sequence, first, indices):
        fill(indices, 0, chosen[layer])

    return choose


class Recorder:
    """Keeps the selection: {(layer, position): positions}."""

    def __init__(self):
        self.rows = {}

    def __call__(self, layer, sequence, first, indices):
        for row, chosen in enumerate(indices):
            self.rows[layer, first + row] = chosen[chosen >= 0].copy()
