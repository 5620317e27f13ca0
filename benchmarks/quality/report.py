"""Writes docs/quality.md and its plots from the results of `run.py`.

    python benchmarks/quality/report.py docs/quality.json docs/quality.md

Results of sections that were run apart may come in several files.  Every number of a table comes from the results; the sentences between the tables
say what a table shows.  What the results mean is written by a person, in
`reading.md` beside this file, and stands first.
"""

import json
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

NAMES = {"dense": "dense", "indexer": "indexer", "recent": "sinks + window", "random": "random", "oracle": "oracle"}
COLOURS = {"dense": "black", "indexer": "tab:blue", "recent": "tab:orange", "random": "tab:grey",
           "oracle": "tab:green"}
DTYPES = {"f32": "F32", "bf16": "BF16", "i8": "INT8", "index132": "FP8 E4M3"}


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def signed(row, digits=4):
    spread = "" if math.isnan(row["half"]) else f" ± {row['half']:.{digits}f}"  # one window has none
    return f"{row['difference']:+.{digits}f}{spread}"


def named(row):
    return NAMES[row["mode"]] + (f" {row['k']}" if row["k"] else "")


def text_table(rows):
    cells = []
    for row in rows:
        share = f"{100 * row['difference'] / (row['mean'] - row['difference']):+.2f} %"
        cells.append((row["length"], named(row), f"{100 * row['k'] / row['length']:.1f} %" if row["k"] else "all",
                      f"{row['mean']:.4f}", "" if row["mode"] == "dense" else signed(row),
                      "" if row["mode"] == "dense" else share))
    return table(("tokens", "keys read", "share", "bits per byte", "from dense (95 %)", "relative"), cells)


def interval(row):
    return f"{100 * row['share']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def recall_table(rows, hard):
    cells, dense = [], None
    for row in (row for row in rows if row["hard"] == hard):
        dense = row if row["mode"] == "dense" else dense
        same = row is not dense and row["queries"] == dense["queries"]
        cells.append((row["length"], named(row), f"{100 * row['k'] / row['length']:.1f} %" if row["k"] else "all",
                      interval(row), row["queries"], f"{100 * row['hits'] / dense['hits']:.1f} %" if same else "",
                      "" if row is dense else row["as_dense"]))
    return table(("tokens", "keys read", "share", "recalled (95 %)", "queries", "of dense's", "as dense"), cells)


def mass_table(found):
    by = {(row["mode"], row["k"]): row for row in found["mass"]}
    bits = {(row["mode"], row["k"]): row for row in found["bits"]}
    ks = sorted({k for _, k in by})
    rows = []
    for k in ks:
        oracle = by["oracle", k]["mean"]
        shares = [f"{by[kind, k]['mean']:.3f} ({100 * by[kind, k]['mean'] / oracle:.1f} %)"
                  for kind in ("indexer", "recent", "random")]
        rows.append((k, f"{oracle:.3f}", *shares, signed(bits["indexer", k]), signed(bits["oracle", k])))
    return table(("k", "oracle", "indexer (of oracle)", "sinks + window", "random", "bits a token from dense: indexer",
                  "oracle"), rows)


def layer_table(found):
    by = {(row["mode"], row["k"]): row for row in found["mass"]}
    layers = len(found["mass"][0]["layers"])
    rows = [(k, *(f"{100 * by['indexer', k]['layers'][i] / by['oracle', k]['layers'][i]:.1f} %"
                  for i in range(layers))) for k in sorted({k for _, k in by})]
    return table(("k", *(f"layer {i}" for i in range(layers))), rows)


def key_table(rows):
    return table(("stored as", "k", "same keys as F32", "bits per byte", "from F32 (95 %)", "hard recall (95 %)"), [
        (DTYPES[row["dtype"]], row["k"], f"{100 * row['overlap']:.1f} %", f"{row['mean']:.4f}", signed(row),
         f"{100 * row['recall']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]") for row in rows])


def draw_text(rows, picture):
    shortest = min(row["length"] for row in rows)
    rows = [row for row in rows if row["length"] == shortest]
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for mode in ("indexer", "recent", "random"):
        line = [row for row in rows if row["mode"] == mode]
        axes.plot([row["k"] for row in line], [row["mean"] for row in line], marker="o", color=COLOURS[mode],
                  label=NAMES[mode])
    axes.axhline(rows[0]["mean"], color="black", linestyle="--", label="dense")
    axes.set_xscale("log", base=2)
    axes.set(xlabel=f"keys read of {shortest}", ylabel="bits per byte of held-out text")
    finish(figure, axes, picture)


def draw_recall(rows, picture):
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    widest = {row["length"]: max(r["k"] for r in rows if r["k"] and r["length"] == row["length"]) for row in rows}
    for axes, hard in zip(panels, (False, True)):
        for mode in ("dense", "indexer", "recent", "random"):
            line = [row for row in rows if row["hard"] == hard and row["mode"] == mode
                    and row["k"] in (None, widest[row["length"]])]
            share = [row["share"] for row in line]
            errors = [[max(0, s - row["low"]) for s, row in zip(share, line)],  # 0: of all or none, to rounding
                      [max(0, row["high"] - s) for s, row in zip(share, line)]]
            axes.errorbar([row["length"] for row in line], share, errors, marker="o", capsize=3, color=COLOURS[mode],
                          label=NAMES[mode])
        axes.set_xscale("log", base=2)
        axes.set(xlabel="context, tokens", ylim=(-0.03, 1.03),
                 title="128 records, keys that share tokens" if hard else "32 records, one-token keys")
    panels[0].set_ylabel("planted facts recalled, 1/16 of the keys")
    finish(figure, panels[0], picture)


def draw_mass(found, picture):
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for mode in ("oracle", "indexer", "recent", "random"):
        line = sorted((row["k"], row["mean"]) for row in found["mass"] if row["mode"] == mode)
        axes.plot(*zip(*line), marker="o", color=COLOURS[mode], label=NAMES[mode])
    axes.set_xscale("log", base=2)
    axes.set(xlabel="keys of 2048", ylabel="share of dense attention's mass", ylim=(0, 1))
    finish(figure, axes, picture)


def finish(figure, axes, picture):
    axes.legend()
    for panel in figure.axes:
        panel.grid(alpha=0.3)
    figure.savefig(picture, metadata={"Date": None})
    plt.close(figure)


def page(found, pictures, source):
    machines = {}
    for section, machine in found["machines"].items():
        machines.setdefault(machine, []).append(section)
    machines = "; ".join(f"{machine} ({', '.join(sections)})" for machine, sections in machines.items())
    spread = ", ".join(f"`{name}`" for name in found["held_out"]["modules"])
    reading = Path(__file__).with_name("reading.md").read_text().strip()
    return f"""# What selecting keys costs in quality

Measured by Tamis on the example model ({found['model']}), on text that the model was not trained on and facts planted
in it. One small model, one corpus, one seed: it shows whether selection keeps what *this* model does with dense
attention, not what a large model would do.

    {found['command']} --out docs/{source}
    python benchmarks/quality/report.py docs/{source} docs/quality.md

Run by: {machines}. Held-out text: the modules {spread} of Python {found['python']}'s standard
library ({found['held_out']['tokens']} tokens, {found['held_out']['bytes_per_token']:.2f} bytes a token).

{reading}

In every table *indexer* is the model's own choice of k keys; *sinks + window* the four first and the latest ones;
*random* as many anywhere. The whole context is read in that way, not only the last token. Index keys are stored as
INT8 where nothing else is said.

## Text

Bits per byte, and the difference from dense on the same windows.

{text_table(found['text'])}

![Bits per byte against k]({pictures['text'].name})

## Planted facts

Records `<|record|> key value <|stop|>` written over the text at random places, some of them asked at its end. A query
counts when every token of the value is the best guess. *Of dense's*: recalled in proportion to what dense attention
recalls; *as dense*: queries where the outcome is that of dense. Queries of one context are not independent of each
other, so the intervals are rather too narrow; window and random were asked in fewer contexts.

32 records, keys and values of one token:

{recall_table(found['recall'], False)}

128 records, keys of two or three tokens that share them, values of two or three:

{recall_table(found['recall'], True)}

![Recall against context length]({pictures['recall'].name})

## Attention captured

Behind a dense context of 2,048 tokens, {found['mass']['rows']} tokens of text: the share of the dense attention's mass
(averaged over heads and layers) that lies on the k keys of each choice. The *oracle* takes the keys with the most mass,
so it is the most that any choice could capture. The last columns read the k keys, and say what that costs.

{mass_table(found['mass'])}

The indexer's share of the oracle's, by layer:

{layer_table(found['mass'])}

![Mass against k]({pictures['mass'].name})

## Types of index keys

The same model with its index keys stored in fewer bits. FP8 is DeepGEMM's 132-byte row, INT8 has one scale a row.

{key_table(found['keys'])}
"""


def main(*paths):
    *sources, target = map(Path, paths)
    found, folder = {}, target.parent
    for source in sources:
        found |= json.loads(source.read_text())
    pictures = {name: folder / f"{target.stem}-{name}.svg" for name in ("text", "recall", "mass")}
    draw_text(found["text"], pictures["text"])
    draw_recall(found["recall"], pictures["recall"])
    draw_mass(found["mass"], pictures["mass"])
    links = {name: path.relative_to(folder) for name, path in pictures.items()}
    target.write_text(page(found, links, sources[0].name))


if __name__ == "__main__":
    main(*sys.argv[1:])
