"""A RAG with LlamaIndex over this repository's documents: a query engine whose nodes are cut to excerpts by the model's
own indexer, and whose answers come from the same model.

    pip install tamis[llama-index]
    python examples/rag_llama_index.py [MODEL ["question"]]

MODEL is a checkpoint directory; without one, the toy in Tests/Fixtures, whose answers are no answers. Without
LlamaIndex the example says so and ends with status 77 (skipped).
"""
import pathlib
import sys

try:
    from llama_index.core import PromptTemplate, get_response_synthesizer
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, TextNode
except ImportError as problem:
    print(f"skipped: LlamaIndex is not installed (pip install tamis[llama-index]): {problem}")
    sys.exit(77)

import tamis
from tamis.llama_index import TamisLLM, TamisPostprocessor

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOY = ROOT / "Tests" / "Fixtures" / "toy-v32"


class WordRetriever(BaseRetriever):
    """The paragraphs that have the most words of the question."""

    def __init__(self, nodes, k=5):
        self.nodes, self.k = nodes, k
        super().__init__()

    def _retrieve(self, query_bundle):
        asked = set(query_bundle.query_str.lower().split())
        scored = [NodeWithScore(node=node, score=len(asked & set(node.text.lower().split()))) for node in self.nodes]
        return sorted(scored, key=lambda node: -node.score)[:self.k]


def toy_prompt(turns):
    """For models that were never taught to chat."""
    return "".join(turn["content"] + "\n" for turn in turns)


question = sys.argv[2] if len(sys.argv) > 2 else "Which key is chosen when two scores are equal?"
model = tamis.Model(sys.argv[1] if len(sys.argv) > 1 else TOY)
nodes = [TextNode(text=text, metadata={"file": file.name}, excluded_llm_metadata_keys=["file"])
         for file in sorted((ROOT / "docs").glob("*.md"))
         for text in file.read_text().split("\n\n") if len(text) < 900]

llm = TamisLLM(model=model, max_tokens=24, template=None if len(sys.argv) > 1 else toy_prompt)
engine = RetrieverQueryEngine(
    WordRetriever(nodes), node_postprocessors=[TamisPostprocessor(source=model, budget=160)],
    response_synthesizer=get_response_synthesizer(
        llm=llm, text_qa_template=PromptTemplate("{context_str}\n\n{query_str}\n")))
response = engine.query(question)

print(f"question: {question}\nanswer:   {str(response).strip()!r}")
# The engine's answer has no room for where it looked; the same prompt again, which the model remembers, does.
context = "\n\n".join(scored.node.text for scored in response.source_nodes)
answer = llm.complete(f"{context}\n\n{question}\n", documents=response.source_nodes).additional_kwargs
for scored, share in zip(response.source_nodes, answer["sources"]):
    about = scored.node.metadata
    print(f"  {100 * share:5.1f} % of attention: {about['file']}, characters {about['excerpt_start']} to "
          f"{about['excerpt_end']} of a paragraph: {' '.join(scored.node.text.split())[:60]}...")
print(f"{answer['prompt_tokens']} tokens in ({answer['cached_tokens']} of them read before), "
      f"{answer['completion_tokens']} out")
