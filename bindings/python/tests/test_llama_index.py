"""tamis.llama_index with the real package: the postprocessor keeps LlamaIndex's contract."""
import asyncio

import pytest
from test_excerpts import QUESTION, TEXTS, WordVectors

pytest.importorskip("llama_index.core")
from llama_index.core.postprocessor.types import BaseNodePostprocessor  # noqa: E402
from llama_index.core.schema import Document, MetadataMode, NodeRelationship, NodeWithScore, TextNode  # noqa: E402

import tamis  # noqa: E402
from tamis.llama_index import TamisPostprocessor  # noqa: E402


def nodes():
    source = Document(text="\n".join(TEXTS), id_="book").as_related_node_info()
    made = []
    for at, text in enumerate(TEXTS):
        node = TextNode(text=text, metadata={"page": at}, start_char_idx=1000 * at, end_char_idx=1000 * at + len(text))
        node.relationships[NodeRelationship.SOURCE] = source
        made.append(NodeWithScore(node=node, score=1 - at / 10))
    return made


def test_nodes_become_excerpts():
    postprocessor = TamisPostprocessor(source=WordVectors(), budget=25)
    assert isinstance(postprocessor, BaseNodePostprocessor)
    found = postprocessor.postprocess_nodes(nodes(), query_str=QUESTION)
    assert 0 < sum(scored.node.metadata["excerpt_tokens"] for scored in found) <= 25
    for scored in found:
        node, about = scored.node, scored.node.metadata
        text = TEXTS[about["page"]]
        assert node.get_content(MetadataMode.NONE) == text[about["excerpt_start"]:about["excerpt_end"]]
        assert node.start_char_idx == 1000 * about["page"] + about["excerpt_start"]
        assert node.ref_doc_id == "book" and about["retrieval_score"] == 1 - about["page"] / 10
        assert "excerpt" not in node.get_content(MetadataMode.LLM) and "page: " in node.get_content(MetadataMode.LLM)
        assert isinstance(scored.score, float)
    again = asyncio.run(postprocessor.apostprocess_nodes(nodes(), query_str=QUESTION))
    assert [scored.node.text for scored in again] == [scored.node.text for scored in found]
    assert postprocessor.to_dict()["budget"] == 25


def test_nothing_in_nothing_out_and_errors():
    postprocessor = TamisPostprocessor(source=WordVectors())
    assert postprocessor.postprocess_nodes([], query_str=QUESTION) == []
    with pytest.raises(tamis.ArgumentError, match="query_bundle: is None"):
        postprocessor.postprocess_nodes(nodes())
    with pytest.raises(tamis.ArgumentError, match="budget: is 0"):
        TamisPostprocessor(source=WordVectors(), budget=0)
