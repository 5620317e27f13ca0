"""A RAG with LangChain over this repository's documents: retrieve, cut to excerpts, answer, and say where the answer
looked. The excerpts are chosen by the model's own indexer, the answer comes from the same model.

    pip install tamis[langchain]
    python examples/rag_langchain.py [MODEL ["question"]]

MODEL is a checkpoint directory; without one, the toy in Tests/Fixtures, whose answers are no answers. Without LangChain
the example says so and ends with status 77 (skipped).
"""
import pathlib
import sys

try:
    from langchain_core.documents import Document
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.retrievers import BaseRetriever
except ImportError as problem:
    print(f"skipped: LangChain is not installed (pip install tamis[langchain]): {problem}")
    sys.exit(77)

import tamis
from tamis.langchain import ChatTamis, TamisCompressor

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOY = ROOT / "Tests" / "Fixtures" / "toy-v32"


class WordRetriever(BaseRetriever):
    """The paragraphs that have the most words of the question."""

    documents: list[Document]
    k: int = 5

    def _get_relevant_documents(self, query, *, run_manager):
        asked = set(query.lower().split())
        return sorted(self.documents, key=lambda d: -len(asked & set(d.page_content.lower().split())))[:self.k]


def toy_prompt(turns):
    """For models that were never taught to chat."""
    return "".join(turn["content"] + "\n" for turn in turns)


question = sys.argv[2] if len(sys.argv) > 2 else "Which key is chosen when two scores are equal?"
model = tamis.Model(sys.argv[1] if len(sys.argv) > 1 else TOY)
paragraphs = [Document(page_content=text, metadata={"source": file.name})
              for file in sorted((ROOT / "docs").glob("*.md"))
              for text in file.read_text().split("\n\n") if len(text) < 900]

retriever = WordRetriever(documents=paragraphs)
compressor = TamisCompressor(source=model, budget=160)
prompt = ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{question}")])
chat = ChatTamis(model=model, max_tokens=24, template=None if len(sys.argv) > 1 else toy_prompt)

retrieved = retriever.invoke(question)
excerpts = compressor.compress_documents(retrieved, question)
context = "\n\n".join(excerpt.page_content for excerpt in excerpts)
answer = chat.invoke(prompt.invoke({"context": context, "question": question}), documents=excerpts)

print(f"question: {question}\nanswer:   {answer.content.strip()!r}")
for excerpt, share in zip(excerpts, answer.response_metadata["sources"]):
    about = excerpt.metadata
    print(f"  {100 * share:5.1f} % of attention: {about['source']}, characters {about['excerpt_start']} to "
          f"{about['excerpt_end']} of a paragraph: {' '.join(excerpt.page_content.split())[:60]}...")
print(f"{sum(excerpt.metadata['excerpt_tokens'] for excerpt in excerpts)} tokens of excerpts from "
      f"{sum(len(model.tokenize(document.page_content)) for document in retrieved)} retrieved; {answer.usage_metadata}")
