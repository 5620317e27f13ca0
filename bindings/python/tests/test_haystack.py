"""tamis.haystack with the real package: the component runs in a pipeline, which is written down and read again."""
import asyncio

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
    read = Pipeline.loads(named.dumps(), allowed_modules=["tamis.*"])
    assert read.get_component("excerpts").source == "all-MiniLM-L6-v2"


def test_nothing_in_nothing_out_and_errors():
    assert TamisExcerpts(WordVectors()).run(QUESTION, []) == {"documents": []}
    with pytest.raises(tamis.ArgumentError, match="budget: is 0"):
        TamisExcerpts(WordVectors(), budget=0)
    with pytest.raises(tamis.ArgumentError, match="without to_dict"):
        TamisExcerpts(object()).to_dict()
    with pytest.raises(tamis.ArgumentError, match="source is object"):
        TamisExcerpts(object()).run(QUESTION, documents())


# ------------------------------------------------- The model -------------------------------------------------

from haystack.components.builders import ChatPromptBuilder  # noqa: E402
from haystack.dataclasses import ChatMessage, ToolCall  # noqa: E402
from test_answers import FIRST, SECOND, TOY, plain  # noqa: E402

from tamis.haystack import TamisChatGenerator  # noqa: E402

TURNS = [ChatMessage.from_system("You know this code.\n" + FIRST + "\n" + SECOND),
         ChatMessage.from_user("What does push do?")]


@pytest.fixture(scope="module")
def generator():
    return TamisChatGenerator(str(TOY), template=plain, generation_kwargs={"max_tokens": 12})


def test_a_generator_replies(generator):
    known = [Document(content=SECOND), Document(content=FIRST)]
    reply, = generator.run(TURNS, documents=known)["replies"]
    assert isinstance(reply, ChatMessage) and reply.text and reply.meta["finish_reason"] == "length"
    usage = reply.meta["usage"]
    assert usage["completion_tokens"] == 12 and usage["total_tokens"] == usage["prompt_tokens"] + 12
    assert [source["id"] for source in reply.meta["sources"]] == [document.id for document in known]
    assert all(0 < source["share"] < 1 for source in reply.meta["sources"])
    again, = generator.run(TURNS)["replies"]
    assert again.text == reply.text
    assert again.meta["usage"]["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1


def test_it_streams_and_stops(generator):
    heard = []
    reply, = generator.run(TURNS, streaming_callback=heard.append)["replies"]
    assert len(heard) > 2 and "".join(chunk.content for chunk in heard) == reply.text
    assert heard[0].start and heard[-1].finish_reason == "length" and heard[-1].meta == reply.meta
    stop = reply.text[4:7]
    stopped, = generator.run(TURNS, generation_kwargs={"stop": [stop]})["replies"]
    assert stopped.text == reply.text[:reply.text.find(stop)] and stopped.meta["finish_reason"] == "stop"


def test_a_whole_pipeline_is_written_down_and_read_again(generator):
    made = pipeline(WordVectors())
    made.add_component("prompt", ChatPromptBuilder(
        template=[ChatMessage.from_user("{% for d in documents %}{{ d.content }}\n{% endfor %}{{ query }}")],
        required_variables="*"))
    made.add_component("generator", TamisChatGenerator(str(TOY), plain, {"max_tokens": 8}))
    made.connect("excerpts.documents", "prompt.documents")
    made.connect("excerpts.documents", "generator.documents")
    made.connect("prompt.prompt", "generator.messages")
    read = Pipeline.loads(made.dumps(), allowed_modules=["tamis.*", "word_vectors", "test_answers"])
    given = {"join": {"documents": documents()}, "excerpts": {"query": QUESTION}, "prompt": {"query": QUESTION}}
    replies = [one.run(given)["generator"]["replies"][0] for one in (made, read)]
    assert replies[0].text == replies[1].text and len(replies[0].meta["sources"]) == len(run(pipeline(WordVectors())))


def test_what_the_generator_refuses(generator):
    with pytest.raises(tamis.ArgumentError, match="logprobs is not supported"):
        generator.run(TURNS, generation_kwargs={"logprobs": True})
    with pytest.raises(tamis.ArgumentError, match="is not in the prompt"):
        generator.run(TURNS, documents=[Document(content="somewhere else")])
    with pytest.raises(tamis.Error):
        TamisChatGenerator("/nonexistent").run(TURNS)
    call = ToolCall("f", {})
    for message, text in ((ChatMessage.from_assistant(tool_calls=[call]), "tool_calls of messages"),
                          (ChatMessage.from_tool("1", call), "tool_call_results of messages")):
        with pytest.raises(tamis.ArgumentError, match=text):
            generator.run([*TURNS, message])


def test_folders_and_texts(generator):
    """A path instead of a name, what a user says instead of messages."""
    other = TamisChatGenerator(TOY, template=plain, generation_kwargs={"max_tokens": 12})
    assert other.to_dict() == generator.to_dict()
    asked = generator.run([ChatMessage.from_user("def area(")])["replies"]
    assert other.run("def area(")["replies"] == asked and asked[0].meta["model"] == "toy-v32"
    assert TamisExcerpts(TOY).to_dict() == TamisExcerpts(str(TOY)).to_dict()


def test_threads_are_capped():
    excerpts, asked = TamisExcerpts(str(TOY), threads=1), TamisChatGenerator(str(TOY), threads=1)
    read = TamisChatGenerator.from_dict(asked.to_dict())
    for component in (excerpts, asked, read):
        component.warm_up()
    for ctx in (excerpts._selector.scorer.model.ctx, asked._reader.model.ctx, read._reader.model.ctx):
        assert "1 thread" in ctx.describe() and "threads" not in ctx.describe()
    with pytest.raises(tamis.ArgumentError, match="threads: is -1"):
        TamisExcerpts(str(TOY), threads=-1)


def test_beside_an_event_loop(generator):
    """run_async: the same reply, pieces to a coroutine, and the loop goes on meanwhile."""
    heard, expected = [], generator.run(TURNS)["replies"][0]

    async def tell(chunk):
        heard.append(chunk)

    reply, = asyncio.run(generator.run_async(TURNS, streaming_callback=tell))["replies"]
    assert reply.text == expected.text == "".join(chunk.content for chunk in heard)
    assert [chunk.start for chunk in heard].count(True) == 1 and heard[-1].meta == reply.meta
    assert {chunk.component_info.type for chunk in heard} == {"tamis.haystack.TamisChatGenerator"}
    with pytest.raises(ValueError, match="coroutine"):
        generator.run(TURNS, streaming_callback=tell)

    made = Pipeline()
    made.add_component("generator", TamisChatGenerator(str(TOY), plain, {"max_tokens": 12}))
    done = asyncio.run(made.run_async({"generator": {"messages": TURNS}}))
    assert done["generator"]["replies"][0].text == expected.text
