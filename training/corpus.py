"""The corpus: the standard library (`stdlib.py`), tokenised, written as token arrays.

    python corpus.py FOLDER

The tokenizer sees training text only.  Writes into FOLDER:
`tokenizer.json`, `train.npy` and `validation.npy` (uint16 ids, documents between
begin and end tokens), `bytes.npy` (bytes of text per token id), `corpus.json`.
Nothing of the text itself is written anywhere else.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stdlib import documents

VOCABULARY = 4096
SPECIAL = ["<|begin|>", "<|end|>", "<|record|>", "<|stop|>", "<|copy|>"]
BEGIN, END, RECORD, STOP, COPY = range(len(SPECIAL))


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < VOCABULARY:
        raise ValueError(f"corpus: its text makes {tokenizer.get_vocab_size()} tokens only, {VOCABULARY} are wanted")
    return tokenizer


def bytes_per_token(tokenizer):
    """Byte-level BPE writes one character for one byte; special tokens stand for no text."""
    pieces = {number: piece for piece, number in tokenizer.get_vocab().items()}
    return np.array([0 if i < len(SPECIAL) else len(pieces[i]) for i in range(VOCABULARY)], np.int32)


def prepare(folder, share=1.0):
    """Writes the corpus; `share` < 1 keeps that part of the training files (the smoke run's)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"train": [], "validation": []}
    groups = {"train": set(), "validation": set()}
    for side, group, text in documents():
        sides[side].append(text)
        groups[side].add(group)
    order = np.random.default_rng(0)
    for side, texts in sides.items():
        kept = order.permutation(len(texts))[: max(8, int(share * len(texts)))]
        sides[side] = [texts[i] for i in kept]
    tokenizer = train_tokenizer(sides["train"][:800])
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = bytes_per_token(tokenizer)
    np.save(folder / "bytes.npy", sizes)
    report = {"source": f"CPython {platform.python_version()} standard library", "licence": "PSF-2.0",
              "vocabulary": VOCABULARY, "validation_groups": sorted(groups["validation"])}
    for side, texts in sides.items():
        ids = []
        for encoding in tokenizer.encode_batch(texts):
            ids += [BEGIN, *encoding.ids, END]
        ids = np.array(ids, np.uint16)
        np.save(folder / f"{side}.npy", ids)
        report[side] = {"files": len(texts), "groups": len(groups[side]), "tokens": len(ids),
                        "bytes": int(sizes[ids].sum())}
    (folder / "corpus.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    print(json.dumps(prepare(sys.argv[1]), indent=1))
