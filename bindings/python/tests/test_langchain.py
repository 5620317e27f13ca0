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
    with pytest.raises(tamis.ArgumentError, match="TamisCompressor: budgt is not supported"):
        TamisCompressor(source=WordVectors(), budgt=5)
    with pytest.raises(tamis.ArgumentError, match="budget: is str"):
        TamisCompressor(source=WordVectors(), budget="many")


def test_a_budget_may_be_changed():
    compressor = TamisCompressor(source=WordVectors(), budget=1000)
    assert len(compressor.compress_documents(documents(), QUESTION)) > 1
    compressor.budget = 7
    assert sum(found.metadata["excerpt_tokens"] for found in compressor.compress_documents(documents(), QUESTION)) == 7
    compressor.budget = 0
    with pytest.raises(tamis.ArgumentError, match="budget: is 0"):
        compressor.compress_documents(documents(), QUESTION)


# ------------------------------------------------- The model -------------------------------------------------

from langchain_core.caches import InMemoryCache  # noqa: E402
from langchain_core.callbacks import get_usage_metadata_callback  # noqa: E402
from langchain_core.language_models import BaseChatModel  # noqa: E402
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage  # noqa: E402
from langchain_core.prompts import ChatPromptTemplate  # noqa: E402
from test_answers import FIRST, SECOND, TOY, plain  # noqa: E402

from tamis.langchain import ChatTamis  # noqa: E402

TURNS = [SystemMessage("You know this code.\n" + FIRST + "\n" + SECOND), HumanMessage("What does push do?")]


@pytest.fixture(scope="module")
def chat():
    return ChatTamis(model=str(TOY), template=plain, max_tokens=12)


def test_a_chat_model_answers(chat):
    assert isinstance(chat, BaseChatModel) and chat._llm_type == "tamis"
    answer = chat.invoke(TURNS, documents=[Document(page_content=SECOND), FIRST])
    assert isinstance(answer, AIMessage) and answer.content
    about = answer.usage_metadata
    assert about["output_tokens"] == 12 and about["total_tokens"] == about["input_tokens"] + 12
    again = chat.invoke(TURNS)
    assert again.content == answer.content
    assert again.usage_metadata["input_token_details"]["cache_read"] == about["input_tokens"] - 1
    assert answer.response_metadata["finish_reason"] == "length" and again.response_metadata["sources"] is None
    assert all(0 < share < 1 for share in answer.response_metadata["sources"])


def test_it_streams(chat):
    chunks = list(chat.stream(TURNS, max_tokens=6))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert len(chunks) > 2 and whole.content == chat.invoke(TURNS, max_tokens=6).content
    assert whole.usage_metadata["output_tokens"] == 6 and whole.response_metadata["finish_reason"] == "length"

    async def later():
        return [chunk.content async for chunk in chat.astream(TURNS, max_tokens=6)]
    assert "".join(asyncio.run(later())) == whole.content


def test_stop_sequences_and_chains(chat):
    whole = chat.invoke(TURNS).content
    stop = whole[4:7]
    stopped = chat.invoke(TURNS, stop=[stop])
    assert stopped.content == whole[:whole.find(stop)] and stopped.response_metadata["finish_reason"] == "stop"
    chain = ChatPromptTemplate.from_messages([("system", TURNS[0].content.replace("{", "{{").replace("}", "}}")),
                                              ("human", "{question}")]) | chat.bind(stop=[stop])
    assert chain.invoke({"question": TURNS[1].content}).content == stopped.content


def test_what_the_chat_refuses(chat):
    with pytest.raises(tamis.ArgumentError, match="presence_penalty is not supported"):
        chat.invoke(TURNS, presence_penalty=1)
    with pytest.raises(tamis.ArgumentError, match="type 'tool' is not supported"):
        chat.invoke([*TURNS, ToolMessage("1", tool_call_id="a")])
    with pytest.raises(tamis.ArgumentError, match="is not in the prompt"):
        chat.invoke(TURNS, documents=["somewhere else"])
    picture = HumanMessage([{"type": "text", "text": "a"}, {"type": "image", "url": "data:image/png;base64,AA"}])
    with pytest.raises(tamis.ArgumentError, match="content of type 'image' is not supported"):
        chat.invoke([picture])
    called = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])
    with pytest.raises(tamis.ArgumentError, match="messages with tool calls are not supported"):
        chat.invoke([*TURNS, called])
    with pytest.raises(tamis.UnsupportedError, match="tools are not supported"):
        chat.bind_tools([])
    with pytest.raises(tamis.UnsupportedError, match="tools are not supported"):
        chat.with_structured_output({"title": "Answer", "type": "object", "properties": {}})
    with pytest.raises(tamis.ArgumentError, match="ChatTamis: max_token is not supported"):
        ChatTamis(model=str(TOY), max_token=3)
    with pytest.raises(tamis.ArgumentError, match="model is missing"):
        ChatTamis()


def test_thoughts_are_not_part_of_what_was_said(chat):
    thought = AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Yes."}])
    assert chat.invoke([*TURNS, thought]).content == chat.invoke([*TURNS, AIMessage("Yes.")]).content


def test_usage_is_counted_by_model(chat):
    with get_usage_metadata_callback() as counted:
        answers = [chat.invoke(TURNS), *chat.batch([TURNS, TURNS])]
        "".join(chunk.text for chunk in chat.stream(TURNS))
    usage, = counted.usage_metadata.values()
    assert list(counted.usage_metadata) == ["toy-v32"] and usage["output_tokens"] == 4 * 12
    assert usage["input_tokens"] == 4 * answers[0].usage_metadata["input_tokens"]
    assert usage["input_token_details"]["cache_read"] >= usage["input_tokens"] / 4


def test_tokens_are_the_models(chat):
    text = "def area(width, height):"
    assert chat.get_token_ids(text) == tamis.Model(TOY).tokenize(text, bare=True).tolist() != []
    assert chat.get_num_tokens(text) == len(chat.get_token_ids(text))


def test_langchain_remembers_answers_of_one_model(chat, tmp_path):
    """What LangChain's cache knows of a model tells models, templates and stop sequences apart."""
    other = tmp_path / "other"
    other.symlink_to(TOY)
    first = dict(model=TOY, template=plain, max_tokens=4, cache=InMemoryCache())
    answer = ChatTamis(**first).invoke(TURNS)
    counted = tamis.Model(TOY)
    again = ChatTamis(**{**first, "model": counted})
    assert again.invoke(TURNS).content == answer.content and counted.ctx.counters("attend").queries == 0
    for change in ({"model": other}, {"template": lambda turns: plain(turns)}, {"stop": ["\n"]}, {"seed": 3}):
        differs = ChatTamis(**{**first, **change})
        differs.invoke(TURNS)
        assert differs._reader.model.ctx.counters("attend").queries > 0, change
