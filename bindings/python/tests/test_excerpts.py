"""tamis.excerpts: budgets, places and order of excerpts, against plain arithmetic; what it refuses."""
import threading

import numpy as np
import pytest
from word_vectors import WordVectors

import tamis
from tamis.excerpts import EmbeddingScorer, Excerpt, Scored, Selector, smoothed

TEXTS = [
    "The cat sat on the mat.\nIt was a warm day in the garden.\nNothing else happened.\n",
    "",
    "Ties between equal scores go to the lower index.\nThis is a promise of the library.\n\nThreads change nothing.",
    "A page holds sixty four tokens.\n    Forks share pages until one of them writes.\nThen the page is copied.\n",
]
QUESTION = "Which index wins when scores tie: the lower?"


def tokens(text):
    return WordVectors().embed(text)[0]


def chosen(budget, texts=TEXTS, question=QUESTION, **options):
    return Selector(WordVectors(), budget, **options).select(question, texts)


@pytest.mark.parametrize("budget", [1, 2, 5, 9, 10, 11, 23, 40, 1000])
def test_the_budget_holds_and_places_are_true(budget):
    found = chosen(budget)
    assert 0 < sum(excerpt.tokens for excerpt in found) <= budget
    for excerpt in found:
        assert isinstance(excerpt, Excerpt) and isinstance(excerpt.score, float)
        assert excerpt.text == TEXTS[excerpt.document][excerpt.start:excerpt.end]
        assert len(tokens(excerpt.text)) == excerpt.tokens
    places = [(excerpt.document, excerpt.start) for excerpt in found]
    assert places == sorted(places)
    for before, after in zip(found, found[1:]):
        assert before.document < after.document or before.end <= after.start


def test_the_answer_comes_first():
    best, = chosen(12)
    assert best.document == 2 and best.text == "Ties between equal scores go to the lower index."


def test_a_budget_below_every_line_takes_the_best_part():
    part, = chosen(4)
    assert part.document == 2 and part.tokens == 4 and part.text in TEXTS[2]
    assert "lower" in part.text or "scores" in part.text


def test_everything_fits_into_a_large_budget():
    found = chosen(10_000)
    assert sum(excerpt.tokens for excerpt in found) == sum(len(tokens(text)) for text in TEXTS)
    assert [excerpt.document for excerpt in found] == [0, 2, 3]
    assert found[2].text == TEXTS[3].rstrip("\n") and found[2].text.count("\n    Forks") == 1


def test_no_documents_give_no_excerpts():
    assert chosen(10, []) == chosen(10, ["", " \n "]) == chosen(10, (), "a question " * 50) == []


def test_documents_may_come_from_anywhere():
    assert Selector(WordVectors(), 20).select(QUESTION, (text for text in TEXTS)) == chosen(20) != []


def test_a_question_longer_than_the_budget():
    assert sum(excerpt.tokens for excerpt in chosen(3, question=QUESTION * 20)) == 3


def test_scores_are_the_indexers():
    """sum_h idf_h max(0, q_h . k - the 95th percentile of q_h . k_s) in numpy's double, nothing for punctuation."""
    embedder, scorer = WordVectors(), EmbeddingScorer(WordVectors())
    got = scorer.score(QUESTION, TEXTS)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) if len(v) else v.reshape(0, 48)
            for v in (np.float64(embedder.embed(text)[1]) for text in [QUESTION, *TEXTS])]
    keys = np.concatenate(unit[1:])
    products = unit[0] @ keys.T
    heads = [QUESTION[begin:end].lower() for begin, end in tokens(QUESTION)]
    lines = [{line[begin:end].lower() for begin, end in tokens(line)}
             for text in TEXTS for line in text.split("\n") if line.strip()]
    holding = np.array([sum(head in line for line in lines) for head in heads])
    idf = np.log(1 + (len(lines) - holding + 0.5) / (holding + 0.5))
    expected = idf @ np.maximum(products - np.quantile(products, 0.95, axis=1, keepdims=True), 0)
    expected *= [text[begin].isalnum() for text in TEXTS for begin, _ in tokens(text)]
    assert np.allclose(np.concatenate([text.scores for text in got]), expected, rtol=1e-4, atol=1e-5)


def test_smoothing_is_a_weighted_mean():
    assert np.allclose(smoothed(np.full(30, 2.5, np.float32), 7), 2.5)
    assert np.allclose(smoothed(np.float32([0, 0, 1, 0, 0]), 3), [0, 1 / 4, 1 / 2, 1 / 4, 0], atol=1e-6)
    assert np.allclose(smoothed(np.float32([3, 1]), 1), [3, 1])
    assert len(smoothed(np.float32([1]), 49)) == 1 and len(smoothed(np.empty(0, np.float32), 49)) == 0


def test_any_scorer_will_do():
    class Forks:
        def score(self, query, documents):
            return [Scored(text, tokens(text), [float("orks" in text[b:e]) for b, e in tokens(text)])
                    for text in documents]

    found, = Selector(Forks(), 9, window=1).select("?", TEXTS)
    assert found.text == "    Forks share pages until one of them writes." and found.score == pytest.approx(1 / 9)


class Wrong:
    """Embeds as asked, with one thing wrong."""

    def __init__(self, change, only=None):
        self.change, self.only = change, only

    def embed(self, text):
        offsets, vectors = WordVectors().embed(text)
        return self.change(offsets, vectors) if self.only in (None, text) else (offsets, vectors)


@pytest.mark.parametrize("change, text", [
    (lambda o, v: (o, v[1:]), r"gave vectors \[\d+, 48\] for the \d+ tokens of query, expected \[\d+, d\]"),
    (lambda o, v: (o, v[:, 0]), r"gave vectors \[\d+\] for"),
    (lambda o, v: (o, v * np.nan), "not finite"),
    (lambda o, v: (o[::-1], v), "do not ascend"),
    (lambda o, v: (o + 10**6, v), "do not ascend within"),
    (lambda o, v: (o.astype(float), v), r"gave offsets float64 \[\d+, 2\] for query, expected integers"),
    (lambda o, v: (o[:, :1], v), "expected integers"),
    (lambda o, v: (o[:0], v[:0]), "query: has no tokens"),
    (lambda o, v: None, r"gave a NoneType for query, expected \(offsets, vectors\)"),
    (lambda o, v: (o, v, v), r"gave a tuple for query, expected \(offsets, vectors\)"),
    (lambda o, v: (o, [["x"]] * len(v)), "gave a tuple for query, expected .*could not convert"),
])
def test_what_an_embedder_must_not_return(change, text):
    with pytest.raises(tamis.Error, match=text):
        Selector(Wrong(change), 5).select(QUESTION, TEXTS)


@pytest.mark.parametrize("change, text", [
    (lambda read: read[:-1], r"expected a list of \d+ Scored, one for each document"),
    (lambda read: None, "expected a list of"),
    (lambda read: [None] * len(read), r"no Scored of documents\[0\]"),
    (lambda read: read[::-1], r"no Scored of documents\[0\]"),
    (lambda read: [Scored(one.text, one.offsets, one.scores[1:]) for one in read], r"gave scores \[\d+\] for"),
    (lambda read: [Scored(one.text, one.offsets, one.scores * np.nan) for one in read], "finite"),
    (lambda read: [Scored(one.text, one.offsets + 10**6, one.scores) for one in read], "do not ascend within"),
])
def test_what_a_scorer_must_not_return(change, text):
    class Changed:
        def score(self, query, documents):
            return change(EmbeddingScorer(WordVectors()).score(query, documents))

    with pytest.raises(tamis.ArgumentError, match=text):
        Selector(Changed(), 5).select(QUESTION, TEXTS)


def test_vectors_of_two_lengths():
    shorter = Wrong(lambda o, v: (o, v[:, :40]), TEXTS[2])
    with pytest.raises(tamis.ArgumentError, match=r"vectors of 40 numbers for documents\[2\] and of 48 for query"):
        Selector(shorter, 5).select(QUESTION, TEXTS)


@pytest.mark.parametrize("call, text", [
    (lambda: chosen(0), "budget: is 0"),
    (lambda: chosen(-3), "budget"),
    (lambda: chosen(2.5), "budget"),
    (lambda: chosen(5, window=0), "window"),
    (lambda: chosen(5, TEXTS[0]), "documents: is a str"),
    (lambda: chosen(5, [TEXTS[0], None]), r"documents\[1\]: is NoneType"),
    (lambda: chosen(5, TEXTS, None), "query: is NoneType"),
    (lambda: chosen(5, None), "documents: is a NoneType"),
    (lambda: chosen(5, {"a": "b"}), "documents: is a dict"),
    (lambda: chosen(5, TEXTS, "  "), "query: is empty"),
    (lambda: Selector("all-MiniLM-L6-v2"), "source is str"),
    (lambda: Selector(WordVectors(), 5).select(QUESTION, TEXTS, 0), "budget: is 0"),
])
def test_what_is_refused(call, text):
    with pytest.raises(tamis.ArgumentError, match=text):
        call()


def test_many_threads_at_once():
    selector, expected, got = Selector(WordVectors(), 20), chosen(20), [None] * 8

    def work(at):
        got[at] = selector.select(QUESTION, TEXTS)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(got))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found == expected for found in got)
