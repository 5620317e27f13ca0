"""Continues a text with a checkpoint directory, and says which lines of the prompt the continuation attended to.

    python examples/generate.py [DIRECTORY [PROMPT]]
"""
import pathlib
import sys

import tamis

directory = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "model"

prompt = sys.argv[2] if len(sys.argv) > 2 else "import os\n\n\ndef read_lines(path):\n    with open(path) as file:\n"
model = tamis.Model(directory)
print(model.describe())

# One span of positions for each line of the prompt: its tokens are where its text begins and ends.
lines = prompt.splitlines(keepends=True)
pieces = [model.tokenize(line, bare=position > 0) for position, line in enumerate(lines)]
ends = [sum(map(len, pieces[:i + 1])) for i in range(len(pieces))]
spans = list(zip([0, *ends], ends))

with tamis.Trace(model.ctx, spans) as trace, model.cache() as cache:
    sequence = cache.sequence()
    tokens = [token for piece in pieces for token in piece]
    model.eval(sequence, tokens[:-1], logits=None)  # the prompt itself is not traced
    text = model.generate(tokens[-1:], sequence=sequence, max_tokens=40, evaluation={"trace": trace})
    print(prompt, end="")
    for piece in text:
        print(piece, end="", flush=True)
    print(f"\n[{len(text.tokens)} tokens, {text.stop}; {len(text.tokens) / text.decode_seconds:.0f} tokens/s]\n")
    for line, mass in zip(lines, trace.mass / trace.mass.sum()):
        print(f"{mass:5.0%}  {line.rstrip()}")
