"""LangChain's own tests of chat models (langchain-tests) over ChatTamis with the example model."""
import pytest
from conftest import ROOT

pytest.importorskip("langchain_tests")
pytest.importorskip("langchain_core")
from langchain_tests.integration_tests import ChatModelIntegrationTests  # noqa: E402
from langchain_tests.unit_tests import ChatModelUnitTests  # noqa: E402
from test_answers import plain  # noqa: E402

from tamis.langchain import ChatTamis  # noqa: E402

# The suite's coroutines say nothing of how to run them; its other tests would be warned about the mark.
pytestmark = [pytest.mark.asyncio, pytest.mark.filterwarnings("ignore:.*is marked with '@pytest.mark.asyncio'")]


class Chat:
    chat_model_class = ChatTamis
    has_tool_calling = False
    has_structured_output = False

    @property
    def chat_model_params(self):
        return {"model": str(ROOT / "examples" / "model"), "template": plain}


class TestUnits(Chat, ChatModelUnitTests):
    pass


class TestAnswers(Chat, ChatModelIntegrationTests):
    @property
    def chat_model_params(self):
        return {**super().chat_model_params, "max_tokens": 12}
