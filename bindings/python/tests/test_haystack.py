"""tamis.haystack with the real package: the component runs in a pipeline, which is written down and read again."""
import pytest
from test_excerpts import QUESTION, TEXTS, WordVectors

pytest.importorskip("haystack")
from haystack import Document, Pipeline  # noqa: E402
from haystack.components.joiners import DocumentJoiner  # noqa: E402

import tamis  # noqa: E402
from tamis.haystack import TamisExcerpts  # noqa: E402


def documents():
    return [Document(content=text or None, meta={"page": at}, score=at / 10) for at, text in enumerate(TEXTS)]


def pipeline(source):
    made = Pipeline()
    made.add_component("join", DocumentJoiner(sort_by_score=False))
    made.add_component("excerpts", TamisExcerpts(source, budget=25))
    made.connect("join.documents", "excerpts.documents")
    return made


def run(made):
    return made.run({"join": {"documents": documents()}, "excerpts": {"query": QUESTION}})["excerpts"]["documents"]


def test_documents_become_excerpts():
    found = run(pipeline(WordVectors()))
    assert 0 < sum(document.meta["excerpt_tokens"] for document in found) <= 25
    given = documents()
    for document in found:
        about = document.meta
        assert document.content == TEXTS[about["page"]][about["excerpt_start"]:about["excerpt_end"]]
        assert about["source_id"] == given[about["page"]].id != document.id
        assert about["retrieval_score"] == about["page"] / 10 and isinstance(document.score, float)
    assert len({document.id for document in found}) == len(found)
    fewer = TamisExcerpts(WordVectors(), budget=25).run(QUESTION, given, budget=12)["documents"]
    assert [document.content for document in fewer] == ["Ties between equal scores go to the lower index."]


def test_a_pipeline_is_written_down_and_read_again():
    written = pipeline(WordVectors()).dumps()
    read = Pipeline.loads(written, allowed_modules=["tamis.*", "word_vectors"])
    assert read.dumps() == written and run(read) == run(pipeline(WordVectors()))
    named = pipeline("all-MiniLM-L6-v2")  # nothing is loaded before it runs
    assert Pipeline.loads(named.dumps(), allowed_modules=["tamis.*"]).get_component("excerpts").source == "all-MiniLM-L6-v2"


def test_nothing_in_nothing_out_and_errors():
    assert TamisExcerpts(WordVectors()).run(QUESTION, []) == {"documents": []}
    with pytest.raises(tamis.ArgumentError, match="budget: is 0"):
        TamisExcerpts(WordVectors(), budget=0)
    with pytest.raises(tamis.ArgumentError, match="without to_dict"):
        TamisExcerpts(object()).to_dict()
    with pytest.raises(tamis.ArgumentError, match="source is object"):
        TamisExcerpts(object()).run(QUESTION, documents())
