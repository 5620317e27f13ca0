"""The measuring of spliced documents: what is planted is asked, and computing everything anew is reading the prompt."""

import numpy as np
from documents import LENGTH, QUERIES, Reader, planted
from test_quality import bench  # noqa: F401  (a fixture)


def test_queries_ask_for_records_of_the_documents(bench):  # noqa: F811
    documents, queries = planted(bench.text, 4, True, seed=1)
    assert [len(ids) for ids in documents] == [LENGTH] * 4 and len(queries) == QUERIES
    everything = b"".join(ids.tobytes() for ids in documents)
    assert all(query.ids.tobytes() in everything for query in queries)


def test_all_tokens_computed_anew_are_the_prompt_read_whole(bench):  # noqa: F811
    pieces = [bench.text.tokens[at:at + 90] for at in (100, 5000, 9000)]
    reader, logits = Reader(bench, "dense"), {}
    for way, sequence in reader.ways(pieces):
        assert len(sequence) == 270
        logits[way] = reader.best(sequence, pieces[0][:5])
    assert np.abs(logits[LENGTH] - logits["whole"]).max() < 0.05 * np.abs(logits["whole"]).max()
    assert np.abs(logits[0] - logits["whole"]).max() > np.abs(logits[LENGTH] - logits["whole"]).max()
