"""tamis.llama_index with the real package: the postprocessor keeps LlamaIndex's contract."""
import asyncio
import threading

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
    with pytest.raises(tamis.ArgumentError, match="TamisPostprocessor: budgt is not supported"):
        TamisPostprocessor(source=WordVectors(), budgt=5)


def test_a_budget_may_be_changed():
    postprocessor = TamisPostprocessor(source=WordVectors(), budget=1000)
    postprocessor.budget = 7
    found = postprocessor.postprocess_nodes(nodes(), query_str=QUESTION)
    assert sum(scored.node.metadata["excerpt_tokens"] for scored in found) == 7


# ------------------------------------------------- The model -------------------------------------------------

from llama_index.core import PromptTemplate  # noqa: E402
from llama_index.core.base.llms.types import ChatMessage, ImageBlock  # noqa: E402
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler  # noqa: E402
from llama_index.core.instrumentation import get_dispatcher  # noqa: E402
from llama_index.core.instrumentation.event_handlers import BaseEventHandler  # noqa: E402
from llama_index.core.llms import LLM  # noqa: E402
from llama_index.core.response_synthesizers import get_response_synthesizer  # noqa: E402
from test_answers import FIRST, SECOND, TOY, plain  # noqa: E402

from tamis.answers import Answer  # noqa: E402
from tamis.llama_index import TamisLLM  # noqa: E402

TURNS = [ChatMessage(role="system", content="You know this code.\n" + FIRST + "\n" + SECOND),
         ChatMessage(role="user", content="What does push do?")]


@pytest.fixture(scope="module")
def llm():
    return TamisLLM(model=str(TOY), template=plain, max_tokens=12)


def test_a_model_completes_and_chats(llm):
    assert isinstance(llm, LLM) and llm.metadata.context_window == 2048 and llm.metadata.num_output == 12
    done = llm.complete(FIRST + "\n" + SECOND, documents=[SECOND, NodeWithScore(node=TextNode(text=FIRST))])
    about = done.additional_kwargs
    assert done.text and about["completion_tokens"] == 12 and about["finish_reason"] == "length"
    assert len(about["sources"]) == 2 and all(0 < share < 1 for share in about["sources"])
    said = llm.chat(TURNS)
    assert said.message.role == "assistant" and said.message.content
    again = llm.chat(TURNS)
    assert again.message.content == said.message.content
    assert again.additional_kwargs["cached_tokens"] == said.additional_kwargs["prompt_tokens"] - 1


def test_it_streams(llm):
    pieces = list(llm.stream_chat(TURNS))
    assert len(pieces) > 2 and "".join(piece.delta for piece in pieces) == llm.chat(TURNS).message.content
    assert pieces[-1].additional_kwargs["completion_tokens"] == 12
    completed = list(llm.stream_complete(FIRST, max_tokens=5))
    assert completed[-1].text == llm.complete(FIRST, max_tokens=5).text == "".join(piece.delta for piece in completed)
    assert asyncio.run(llm.achat(TURNS)).message.content == pieces[-1].message.content


def test_stop_sequences_and_synthesis(llm):
    whole = llm.complete(FIRST).text
    assert llm.complete(FIRST, stop=[whole[4:7]]).text == whole[:whole.find(whole[4:7])]
    synthesizer = get_response_synthesizer(llm=llm, text_qa_template=PromptTemplate("{context_str}\n{query_str}\n"))
    answered = synthesizer.synthesize(QUESTION, nodes()[2:])
    assert str(answered) and len(answered.source_nodes) == 2


def test_what_the_model_refuses(llm):
    with pytest.raises(tamis.ArgumentError, match="logit_bias is not supported"):
        llm.complete(FIRST, logit_bias={})
    with pytest.raises(tamis.ArgumentError, match="is not in the prompt"):
        llm.complete(FIRST, documents=[SECOND])
    with pytest.raises(tamis.ArgumentError, match="max_token is not supported"):
        TamisLLM(model=str(TOY), max_token=3)
    for message, text in ((ChatMessage(role="tool", content="1"), "message of role 'tool'"),
                          (ChatMessage(role="user", blocks=[ImageBlock(url="http://x/y.png")]), "type 'image'"),
                          (ChatMessage(role="assistant", additional_kwargs={"tool_calls": [1]}), "with tool calls")):
        with pytest.raises(tamis.ArgumentError, match=text):
            llm.chat([*TURNS, message])


def test_names_of_roles(llm):
    said = [[*TURNS, ChatMessage(role=role, content="Yes.")] for role in ("assistant", "chatbot", "model")]
    first, *others = [llm.chat(turns).message.content for turns in said]
    assert others == [first] * 2


class Heard(BaseEventHandler):
    names: list = []

    def handle(self, event, **_):
        self.names.append(type(event).__name__)


def test_listeners_and_counters_are_told(llm):
    heard, counter = Heard(), TokenCountingHandler(tokenizer=str.split)
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(heard)
    llm.callback_manager = CallbackManager([counter])
    try:
        usage = llm.chat(TURNS).raw["usage"]
        completed = llm.complete(FIRST).raw["usage"]
        pieces = list(llm.stream_chat(TURNS))
        said = asyncio.run(llm.achat(TURNS))
    finally:
        dispatcher.event_handlers.remove(heard)
        llm.callback_manager = CallbackManager()
    chats, completions = ["LLMChatStartEvent", "LLMChatEndEvent"], ["LLMCompletionStartEvent", "LLMCompletionEndEvent"]
    streamed = [chats[0], *["LLMChatInProgressEvent"] * len(pieces), chats[1]]
    assert heard.names == [*chats, *completions, *streamed, *chats]
    assert usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
    assert counter.prompt_llm_token_count == 3 * usage["prompt_tokens"] + completed["prompt_tokens"]
    assert counter.completion_llm_token_count == 4 * 12
    assert said.message.content == pieces[-1].message.content


def test_an_event_loop_is_not_held_up(llm, monkeypatch):
    """While a token is made, the loop goes on: here the token waits for it."""
    asked, gone_on = threading.Event(), threading.Event()
    following = Answer.__next__

    def waits(answer):
        asked.set()
        assert gone_on.wait(30)
        return following(answer)

    async def goes_on():
        while not asked.is_set():
            await asyncio.sleep(0.001)
        gone_on.set()

    async def both(call):
        asked.clear(), gone_on.clear()
        return (await asyncio.gather(call, goes_on()))[0]

    async def collected(pieces):
        return "".join([piece.delta async for piece in await pieces])

    whole = llm.chat(TURNS).message.content, llm.complete(FIRST).text
    monkeypatch.setattr(Answer, "__next__", waits)
    assert asyncio.run(both(llm.achat(TURNS))).message.content == whole[0]
    assert asyncio.run(both(llm.acomplete(FIRST))).text == whole[1]
    assert asyncio.run(both(collected(llm.astream_chat(TURNS)))) == whole[0]
    assert asyncio.run(both(collected(llm.astream_complete(FIRST)))) == whole[1]
