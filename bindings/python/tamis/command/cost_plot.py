"""The plot of `tamis cost --plot`: DeepSeek's published Figure 3, the prediction beside it, and a measured machine's own
curve. Needs matplotlib."""
from __future__ import annotations

import pathlib
from typing import Any

from .. import Architecture, Machine
from .._errors import UnsupportedError

# The vertices of the four curves of Figure 3 (DeepSeek_V3_2.pdf), read from its vector paths: token position, USD for a
# million tokens on an H800 at 2 USD an hour.
FIGURE_3 = {
    ("prefill", "dense"): [(0, 0.0528728), (131071, 0.6657690)],
    ("prefill", "sparse"): [(0, 0.0611133), (6747, 0.0999181), (131071, 0.1871200)],
    ("decode", "dense"): [(0, 0.0704971), (131071, 2.1543440)],
    ("decode", "sparse"): [(0, 0.0951906), (2105, 0.1457189), (131071, 0.2490993)]}
COLOURS = {"dense": "tab:red", "sparse": "tab:blue"}
CONTEXTS = [131071 * i // 128 for i in range(129)]


def draw(path: pathlib.Path, own: Machine, architecture: Architecture) -> None:
    """Figure 3 and its prediction, prefill and decode, above; a measured machine below."""
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError("--plot: matplotlib is not installed (pip install tamis[plot])") from None
    rcParams.update({"svg.hashsalt": "tamis", "svg.fonttype": "none"})
    figure = Figure(figsize=(9, 7), layout="constrained")
    published = Machine.published("H800")
    for axis, phase in zip(figure.subplots(2, 2)[0], ("prefill", "decode")):
        figure_3(axis, published, phase)
    for axis, phase in zip(figure.axes[2:], ("prefill", "decode")):
        own_machine(axis, own, architecture, phase)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def figure_3(axis: Any, machine: Machine, phase: str) -> None:
    for mode, colour in COLOURS.items():
        x, y = zip(*FIGURE_3[phase, mode])
        axis.plot([value / 1024 for value in x], y, "o-", color=colour, alpha=0.35, linewidth=4, label=f"{mode}, published")
        predicted = [machine.token(keys, phase, mode=mode).seconds * 2 / 3600 * 1e6 for keys in CONTEXTS]
        axis.plot([keys / 1024 for keys in CONTEXTS], predicted, "--", color=colour, label=f"{mode}, predicted")
    finish(axis, f"H800, {phase}: Figure 3 and its prediction", "USD per million tokens")


def own_machine(axis: Any, machine: Machine, architecture: Architecture, phase: str) -> None:
    profile = machine.profile
    for mode, colour in (*COLOURS.items(), ("automatic", "tab:green")):
        found = [machine.token(keys, phase, mode=mode, architecture=architecture) for keys in CONTEXTS]
        axis.plot([keys / 1024 for keys in CONTEXTS], [one.seconds for one in found], "--" if mode == "automatic" else "-",
                  color=colour if mode != "automatic" else "tab:green", label=f"{mode}, predicted from rates measured here")
        if mode != "automatic":
            axis.fill_between([keys / 1024 for keys in CONTEXTS], [one.low_seconds for one in found],
                              [one.high_seconds for one in found], color=colour, alpha=0.12, linewidth=0)
    finish(axis, f"{profile['name']}, {phase}", "seconds per token, all layers")


def finish(axis: Any, title: str, unit: str) -> None:
    axis.set(xlabel="tokens of context (K)", ylabel=unit, xlim=(0, 128), ylim=(0, None))
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
