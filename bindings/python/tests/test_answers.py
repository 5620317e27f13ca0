"""tamis.answers on the toy checkpoint: what is read again, where documents are, whose attention is counted."""
import os
import threading

import numpy as np
import pytest
from conftest import ROOT

import tamis
from tamis.answers import Reader, place

TOY = ROOT / "Tests" / "Fixtures" / "toy-v32"
FIRST = "def area(width, height):\n    return width * height\n"
SECOND = "class Stack:\n    def push(self, item):\n        self.items.append(item)\n"
PROMPT = f"# Größe\n{FIRST}\n{SECOND}\n    def pop(self):\n"


def plain(turns):
    """A template for models that were never taught to chat."""
    return "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns) + "assistant:"


@pytest.fixture(scope="module")
def model():
    return tamis.Model(TOY, tamis.Context(threads=2))


def test_an_answer_is_what_the_model_generates(model):
    expected = model.generate(PROMPT, max_tokens=20)
    answer = Reader(model).answer(PROMPT, max_tokens=20)
    pieces = list(answer)
    assert len(pieces) > 1 and "".join(pieces) == answer.text == expected.finish()
    assert (answer.stop, answer.finish_reason, answer.tokens) == ("max_tokens", "length", 20)
    assert (answer.prompt_tokens, answer.cached_tokens) == (len(model.tokenize(PROMPT)), 0)
    assert answer.sources is None
    drawn = dict(max_tokens=9, temperature=1.5, top_k=50, top_p=0.9, seed=4)
    assert Reader(model).answer(PROMPT, **drawn).finish() == model.generate(PROMPT, **drawn).finish()


def test_stop_texts(model):
    whole = Reader(model).answer(PROMPT, max_tokens=20).finish()
    stop = whole[5:8]
    answer = Reader(model).answer(PROMPT, max_tokens=20, stop=[stop])
    assert answer.finish() == whole[:whole.find(stop)] and answer.finish_reason == "stop"


def test_what_was_read_is_not_read_again(model):
    reader = Reader(model)
    first = reader.answer(PROMPT, max_tokens=5)
    text = first.finish()
    evaluated = model.ctx.counters("attend").queries
    again = reader.answer(PROMPT, max_tokens=5)
    assert again.cached_tokens == again.prompt_tokens - 1 and again.finish() == text
    assert model.ctx.counters("attend").queries - evaluated == model.info.layers * 5
    longer = reader.answer(PROMPT + text + "\n# and then", max_tokens=5)
    assert longer.cached_tokens >= first.prompt_tokens
    assert longer.finish() == Reader(model).answer(PROMPT + text + "\n# and then", max_tokens=5).finish()
    other = Reader(model, keep=1)
    for prompt in (PROMPT, "something else " * 9, PROMPT):
        last = other.answer(prompt, max_tokens=2)
        last.finish()
    assert last.cached_tokens < 3  # only the last conversation was kept


def test_sources_are_shares_of_attention(model):
    documents = [SECOND, "", FIRST]
    answer = Reader(model).answer(PROMPT, documents=documents, max_tokens=6)
    answer.finish()
    # the same from the mass at every single position, traced for the tokens that the answer came from
    ids = model.tokenize(PROMPT)
    sequence, trace = model.cache().sequence(), tamis.Trace(model.ctx, [(at, at + 1) for at in range(len(ids) + 5)])
    model.eval(sequence, ids[:-1], logits=None)
    tokens = model.generate(PROMPT, max_tokens=6)
    tokens.finish()
    model.eval(sequence, np.concatenate((ids[-1:], tokens.tokens[:-1])), logits=None, trace=trace)
    mass = trace.mass / (trace.tokens * model.info.layers)
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    pieces = [model.token_bytes([token]) for token in ids.tolist()]
    for text, share in zip(documents, answer.sources):
        begin = b"".join(pieces).find(text.strip().encode())
        ends = np.cumsum([len(piece) for piece in pieces])
        inside = (ends > begin) & (ends - [len(piece) for piece in pieces] < begin + len(text.strip().encode()))
        assert share == pytest.approx(mass[:len(ids)][inside].sum() if text else 0, abs=1e-3)
    assert sum(answer.sources) <= 1 and answer.sources[0] > 0


def test_conversations(model):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a tamis?"}]
    reader = Reader(model, template=plain)
    assert reader.answer(turns, max_tokens=4).finish() == model.generate(plain(turns), max_tokens=4).finish()


def test_places_of_documents():
    raw, ends = b"aabbccbb", np.arange(1, 9)
    assert place(raw, ends, b"bb", [], 0) == (2, 4)
    assert place(raw, ends, b"bb", [(2, 4)], 1) == (6, 8)
    assert place(raw, np.array([1, 3, 5, 8]), b"abb", [], 0) == (1, 3)
    assert place(raw, np.array([1, 3, 5, 8]), b"bcc", [(1, 3)], 1) == (3, 4)  # the token that ends the first is its
    for wanted, taken in ((b"x", []), (b"aabb", [(1, 3)])):
        with pytest.raises(tamis.ArgumentError, match=r"documents\[7\]: is not in the prompt"):
            place(raw, ends, wanted, taken, 7)


def test_what_is_refused(model):
    reader = Reader(model, template=plain)
    for call, text in ((lambda: reader.answer(PROMPT, documents=["not there"]), r"documents\[0\]: is not in the prom"),
                       (lambda: reader.answer(PROMPT, documents=FIRST), "documents: is a str"),
                       (lambda: reader.answer(PROMPT, top_p=0), "top_p"),
                       (lambda: reader.answer("x " * model.info.max_tokens), "tokens"),
                       (lambda: Reader(model, keep=0), "keep: is 0"),
                       (lambda: Reader(5), "directory: is int, expected a path"),
                       (lambda: Reader(model, template="chatml"), "template: is str, expected a function"),
                       (lambda: Reader(model, template=len).answer([]), "template: gave int, expected str"),
                       (lambda: reader.answer(None), "prompt: is NoneType, expected a text or a list of turns"),
                       (lambda: reader.answer(["def f"]), "prompt: is list, expected a text or a list of turns"),
                       (lambda: reader.answer(""), "prompt: has no tokens"),
                       (lambda: reader.answer(PROMPT, documents=[5]), r"documents\[0\]: is int, expected str"),
                       (lambda: reader.answer(PROMPT, documents=None), "documents: is a NoneType"),
                       (lambda: reader.answer(PROMPT, stop=5), "stop: is a int, expected a list of texts"),
                       (lambda: reader.answer(PROMPT, stop=["a", 5]), r"stop\[1\]: is int, expected str"),
                       (lambda: reader.answer(PROMPT, temperature="hot"), "temperature: is 'hot', expected a number"),
                       (lambda: reader.answer(PROMPT, top_p=None), "top_p: is None, expected a number"),
                       (lambda: reader.answer(PROMPT, max_tokens=-1), "max_tokens: is -1")):
        with pytest.raises(tamis.ArgumentError, match=text):
            call()
    with pytest.raises(tamis.Error):
        Reader("/nonexistent")
    assert reader.answer(PROMPT, max_tokens=5).finish() == model.generate(PROMPT, max_tokens=5).finish()


def test_names_of_models(model):
    assert Reader(model).name == Reader(TOY).name == "toy-v32"
    assert Reader(TOY).answer(PROMPT, max_tokens=5).finish() == Reader(model).answer(PROMPT, max_tokens=5).finish()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_reader_works_after_a_fork(model):
    """As servers fork that have loaded a model: the child goes on with what was read, and the parent too."""
    reader = Reader(model)
    expected = reader.answer(PROMPT, max_tokens=6).finish()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            answer = reader.answer(PROMPT, max_tokens=6, documents=[FIRST])
            good = answer.finish() == expected and answer.cached_tokens == answer.prompt_tokens - 1
            status = 0 if good and answer.sources[0] > 0 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reader.answer(PROMPT, max_tokens=6).finish() == expected


def test_many_threads(model):
    reader, got = Reader(model), [None] * 4
    expected = [Reader(model).answer(PROMPT + str(at), max_tokens=6).finish() for at in range(4)]

    def work(at):
        got[at] = reader.answer(PROMPT + str(at), max_tokens=6).finish()

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected
