"""Draws the loss curves of runs from their logs.

    python plot.py PICTURE.svg LABEL=log.jsonl ...

Left: held-out bits per byte against tokens.  Right: share of asked recall tokens
predicted with p > 0.6 in training batches.
"""

import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)


def curve(lines, key):
    points = [(line["tokens"] / 1e6, line[key]) for line in lines if key in line]
    return zip(*points) if points else ([], [])


def main(picture, runs):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for label, path in runs:
        with open(path) as file:
            lines = [json.loads(line) for line in file]
        left.plot(*curve(lines, "bits_per_byte"), marker=".", label=label)
        right.plot(*curve(lines, "recall_sure"), label=label)
    left.set(xlabel="million tokens", ylabel="bits per byte, held-out modules (512 tokens)")
    right.set(xlabel="million tokens", ylabel="recall tokens with p > 0.6 (training batches)", ylim=(0, 1.02))
    left.grid(alpha=0.3)
    right.grid(alpha=0.3)
    left.legend()
    figure.savefig(picture)


if __name__ == "__main__":
    main(sys.argv[1], [argument.split("=", 1) for argument in sys.argv[2:]])
