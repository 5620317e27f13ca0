"""What answers lose when documents are read once and spliced: cached rows turned to other positions, against a prompt
that is read whole, with more or less of each document computed anew.

    python benchmarks/quality/documents.py examples/model --out docs/benchmarks/documents.csv     # minutes

Prompts are documents of 480 tokens, one behind the other. `records`: held-out text with planted records, of which 24
are asked, each alone behind the documents: the share recalled. `unrelated`: pieces of text from different places, and
`cut`: one text cut into documents; both are judged by the bits per byte of the 128 tokens that follow the last document.
`recompute` is how many first tokens of each document `Model.splice` computes anew; every comparison is on the same
tokens, and "whole" is the prompt read in one piece. Prints a table; --out writes a CSV that begins with a machine line.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from intervals import mean_and_half, wilson
from run import Bench, answered, bits_of

LENGTH, FOLLOWING, QUERIES = 480, 128, 24
RECOMPUTE = (0, 1, 4, 16, 64, 240, LENGTH)
# documents in a prompt -> prompts with records (and whether their keys share tokens), prompts of text
FULL = {4: (10, False, 16), 16: (3, True, 4)}
QUICK = {4: (1, False, 2)}
COLUMNS = ("documents", "kind", "recompute", "prompts", "value", "low", "high", "difference", "half")


class Reader:
    """Documents read alone, once; prompts made of them in several ways."""

    def __init__(self, bench, attention):
        self.model, self.cache = bench.model, bench.model.cache()
        self.options = {"attention": attention}

    def read(self, ids):
        sequence = self.cache.sequence()
        self.model.eval(sequence, ids, logits=None, **self.options)
        return sequence

    def ways(self, documents):
        """(recompute or "whole", a sequence that holds the documents) for each way."""
        alone = [self.read(ids) for ids in documents]
        for recompute in RECOMPUTE:
            sequence = self.cache.sequence()
            for ids, document in zip(documents, alone):
                if recompute < len(ids):
                    self.model.splice(sequence, document, recompute=recompute)
                else:
                    self.model.eval(sequence, ids, logits=None, **self.options)
            yield recompute, sequence
        yield "whole", self.read(np.concatenate(documents))

    def best(self, sequence, ids):
        """The best guess and its rivals behind each token of ids: logits [n, vocabulary]."""
        return self.model.eval(sequence, ids, logits="all", **self.options)


def planted(text, count, hard, seed):
    """`count` documents with eight records each, and the queries for some: (documents, queries)."""
    rng = np.random.default_rng([seed, count, hard])
    records, documents = text.records(rng, 8 * count, hard), []
    for number in range(count):
        start = int(rng.integers(0, len(text.tokens) - LENGTH))
        ids = text.tokens[start:start + LENGTH].copy()
        for place, record in zip(rng.permutation(np.arange(1, LENGTH - 8, 8))[:8], records[8 * number:]):
            ids[place:place + len(record.ids)] = record.ids
        documents.append(ids)
    return documents, [records[i] for i in rng.choice(len(records), QUERIES, replace=False)]


def recall(reader, text, count, prompts, hard):
    hits = {}
    for seed in range(prompts):
        documents, queries = planted(text, count, hard, seed)
        for way, sequence in reader.ways(documents):
            hits.setdefault(way, []).extend(answered(reader.model, sequence, queries, **reader.options))
    for way, found in hits.items():
        share, low, high = wilson(sum(found), len(found))
        mean, half = mean_and_half([a - b for a, b in zip(found, hits["whole"])])
        yield count, "records", way, prompts, share, low, high, mean, half


def following(reader, bench, count, prompts, cut):
    text, bits = bench.text, {}
    for seed in range(prompts):
        rng = np.random.default_rng([seed, count, 77])
        if cut:
            start = int(rng.integers(0, len(text.tokens) - count * LENGTH - FOLLOWING))
            starts = [start + LENGTH * i for i in range(count)]
        else:
            starts = rng.integers(0, len(text.tokens) - LENGTH - FOLLOWING, count).tolist()
        documents = [text.tokens[start:start + LENGTH] for start in starts]
        after = text.tokens[starts[-1] + LENGTH - 1:starts[-1] + LENGTH + FOLLOWING]  # with the document's last token
        size = bench.vocabulary_bytes[after[1:]].sum()
        for way, sequence in reader.ways(documents):
            sequence.truncate(len(sequence) - 1)
            bits.setdefault(way, []).append(float(bits_of(reader.best(sequence, after[:-1]), after[1:]).sum() / size))
    for way, values in bits.items():
        mean, half = mean_and_half(values)
        difference, width = mean_and_half([a - b for a, b in zip(values, bits["whole"])])
        yield count, "cut" if cut else "unrelated", way, prompts, mean, mean - half, mean + half, difference, width


def table(rows):
    """Markdown: a row for each way, the share of tokens that it computes, and a column for each kind."""
    kinds = sorted({(row[0], row[1]) for row in rows})
    head = [f"{kind}, {count} documents" for count, kind in kinds]
    lines = ["| computed anew | of the tokens | " + " | ".join(head) + " |", "|---" * (2 + len(kinds)) + "|"]
    for way in (*RECOMPUTE, "whole"):
        cells = []
        for kind in kinds:
            row = next(row for row in rows if (row[0], row[1]) == kind and row[2] == way)
            value, difference, half = row[4], row[7], row[8]
            cells.append(f"{100 * value:.0f} % ({100 * difference:+.0f} ± {100 * half:.0f})" if kind[1] == "records"
                         else f"{value:.3f} ({difference:+.3f} ± {half:.3f})")
        name = {LENGTH: "all, document by document", 0: "nothing"}.get(way, way if way == "whole" else f"first {way}")
        share = 100.0 if way == "whole" else 100 * way / LENGTH
        lines.append(f"| {name} | {share:.0f} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--attention", default="automatic", help='"automatic" (sparse) or "dense"')
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    bench, rows = Bench(given.model), []
    reader = Reader(bench, given.attention)
    for count, (prompts, hard, texts) in (QUICK if given.quick else FULL).items():
        for measure in (recall(reader, bench.text, count, prompts, hard), following(reader, bench, count, texts, False),
                        following(reader, bench, count, texts, True)):
            rows += measure
            print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))
    if given.out:
        with open(given.out, "w", newline="", encoding="utf-8") as file:
            file.write(f"# {bench.model.ctx.describe()}; {bench.model.describe()}; {given.attention}\n")
            csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
