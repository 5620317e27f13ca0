"""Excerpts by a model's own indexer (the toy checkpoint), counted independently from what `Model.eval` reports."""
import numpy as np
import pytest
from conftest import ROOT

import tamis
from tamis.excerpts import Selector
from tamis._model_scorer import ModelScorer

TOY = ROOT / "Tests" / "Fixtures" / "toy-v32"
TEXTS = ["def area(width, height):\n    return width * height\n", "", "naïve 中文: Größe = 12\n",
         "class Stack:\n    def push(self, item):\n        self.items.append(item)\n"]
QUESTION = "    def push("


@pytest.fixture(scope="module")
def model():
    return tamis.Model(TOY, tamis.Context(threads=2))


def test_offsets_are_places_of_tokens(model):
    scorer = ModelScorer(model)
    for text in TEXTS:
        tokens = scorer._tokens(text)
        offsets = scorer._offsets(text, tokens)
        assert len(offsets) == len(tokens)
        for token, (begin, end) in zip(tokens.tolist(), offsets):
            raw = model.token_bytes([token])
            assert raw in text[begin:end].encode() and (end - begin <= len(raw))
        if len(tokens):
            assert offsets[0, 0] == 0 and offsets[-1, 1] == len(text)


def test_scores_are_shares_of_the_indexers_votes(model):
    got = ModelScorer(model).score(QUESTION, TEXTS)
    ids = [model.tokenize(text, bare=True, special_as_text=True) for text in [*TEXTS, "\n\n", QUESTION]]
    between, asked = ids[-2], ids[-1]
    before = np.concatenate([model.tokenize(""), *(part for text in ids[:-2] for part in (text, between))])
    votes, voters = np.zeros(len(before) + len(asked)), 0

    def count(_layer, _number, first, indices):
        nonlocal voters
        for row in indices:
            votes[row[row >= 0]] += 1
            voters += 1

    sequence = model.cache().sequence()
    model.eval(sequence, before, logits=None)
    model.eval(sequence, asked, logits=None, attention="sparse", top_k=len(before) // 4, selected=count)
    begin = len(model.tokenize(""))
    for text, tokens in zip(got, ids):
        assert np.allclose(text.scores, votes[begin:begin + len(tokens)] / voters)
        begin += len(tokens) + len(between)
    assert max(text.scores.max(initial=0) for text in got) > 0


def test_excerpts_fit_and_documents_are_read_once(model):
    selector = Selector(model, 15)
    first = selector.select(QUESTION, TEXTS)
    assert 0 < sum(excerpt.tokens for excerpt in first) <= 15
    for excerpt in first:
        assert excerpt.text == TEXTS[excerpt.document][excerpt.start:excerpt.end]
    before = model.ctx.counters("attend").queries
    assert selector.select(QUESTION, TEXTS) == first
    layers, asked = model.info.layers, len(model.tokenize(QUESTION, bare=True))
    assert model.ctx.counters("attend").queries - before == layers * asked


def test_too_much_text_is_an_error(model):
    with pytest.raises(tamis.Error):
        Selector(model, 15).select(QUESTION, ["word " * model.info.max_tokens])
