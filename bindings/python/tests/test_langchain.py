"""tamis.langchain with the real package: the compressor keeps LangChain's contract."""
import asyncio

import pytest
from test_excerpts import QUESTION, TEXTS, WordVectors

pytest.importorskip("langchain_core")
from langchain_core.documents import BaseDocumentCompressor, Document  # noqa: E402

import tamis  # noqa: E402
from tamis.langchain import TamisCompressor  # noqa: E402


def documents():
    return [Document(page_content=text, metadata={"source": f"{at}.txt", "start_index": 100 * at}, id=str(at))
            for at, text in enumerate(TEXTS)]


def test_documents_become_excerpts():
    compressor = TamisCompressor(source=WordVectors(), budget=25)
    assert isinstance(compressor, BaseDocumentCompressor)
    given = documents()
    found = compressor.compress_documents(given, QUESTION)
    assert 0 < sum(document.metadata["excerpt_tokens"] for document in found) <= 25
    for document in found:
        assert isinstance(document, Document)
        about, source = document.metadata, given[int(document.id)]
        assert document.page_content == source.page_content[about["excerpt_start"]:about["excerpt_end"]]
        assert about["source"] == f"{document.id}.txt" and isinstance(about["relevance_score"], float)
        assert about["start_index"] == 100 * int(document.id) + about["excerpt_start"]
    assert [document.id for document in found] == sorted(document.id for document in found)
    assert given == documents()  # the caller's are as before
    assert asyncio.run(compressor.acompress_documents(given, QUESTION)) == found


def test_nothing_in_nothing_out_and_errors():
    assert TamisCompressor(source=WordVectors()).compress_documents([], QUESTION) == []
    with pytest.raises(tamis.ArgumentError, match="budget: is 0"):
        TamisCompressor(source=WordVectors(), budget=0)
    with pytest.raises(tamis.ArgumentError, match="source is str"):
        TamisCompressor(source="a name")
    with pytest.raises(tamis.ArgumentError, match="query: is empty"):
        TamisCompressor(source=WordVectors()).compress_documents(documents(), "")
