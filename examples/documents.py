"""A document is read once. Every later question about it, also in another process or after a restart, starts from the
file that the store keeps of it.

    python examples/documents.py MODEL-DIRECTORY STORE-DIRECTORY DOCUMENT [QUESTION...]
"""
import pathlib
import sys
import time

import tamis

directory, folder, document, *questions = sys.argv[1:]
model = tamis.Model(directory)
store = tamis.Store(model.ctx, folder, tamis.fingerprint(directory), max_bytes=10 << 30)
cache = model.cache()

tokens = model.tokenize(pathlib.Path(document).read_text())
began = time.perf_counter()
sequence = store.match(cache, tokens)  # what is known of its beginning: all of it, from the second time on
known = len(sequence)
if known < len(tokens):
    model.eval(sequence, tokens[known:], logits=None)
    store.put(sequence)
print(f"{len(tokens)} tokens, {known} of them from the store: {time.perf_counter() - began:.3f} s")

for question in questions or ["\n# In short:"]:
    with sequence.fork() as branch:  # shares the document's pages
        answer = model.generate(model.tokenize(question, bare=True), sequence=branch, max_tokens=40)
        print(f"{question}{''.join(answer)}\n[{answer.prefill_seconds:.3f} s to the first token]")
print(store.stats())
