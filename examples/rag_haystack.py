"""A RAG with Haystack over this repository's documents: retrieve by BM25, cut to excerpts by a model's own indexer,
build the prompt, answer, and say where the answer looked. The pipeline is written down as YAML and read again before it
runs.

    pip install tamis[haystack]
    python examples/rag_haystack.py [MODEL ["question"]]

MODEL is a checkpoint directory; without one, the toy in Tests/Fixtures, whose answers are no answers. Without Haystack
the example says so and ends with status 77 (skipped).
"""
import os
import pathlib
import sys

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
try:
    from haystack import Document, Pipeline
    from haystack.components.builders import ChatPromptBuilder
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
    from haystack.dataclasses import ChatMessage
    from haystack.document_stores.in_memory import InMemoryDocumentStore
except ImportError as problem:
    print(f"skipped: Haystack is not installed (pip install tamis[haystack]): {problem}")
    sys.exit(77)

from tamis.haystack import TamisChatGenerator, TamisExcerpts

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOY = ROOT / "Tests" / "Fixtures" / "toy-v32"
TEMPLATE = "{% for document in documents %}{{ document.content }}\n\n{% endfor %}{{ query }}"


def toy_prompt(turns):
    """For models that were never taught to chat."""
    return "".join(turn["content"] + "\n" for turn in turns)


question = sys.argv[2] if len(sys.argv) > 2 else "Which key is chosen when two scores are equal?"
model = sys.argv[1] if len(sys.argv) > 1 else str(TOY)
store = InMemoryDocumentStore()
store.write_documents([Document(content=text, meta={"file": file.name})
                       for file in sorted((ROOT / "docs").glob("*.md"))
                       for text in dict.fromkeys(file.read_text().split("\n\n")) if len(text) < 900])

pipeline = Pipeline()
pipeline.add_component("excerpts", TamisExcerpts(model, budget=160))
pipeline.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user(TEMPLATE)], required_variables="*"))
template = None if len(sys.argv) > 1 else toy_prompt
pipeline.add_component("model", TamisChatGenerator(model, template, {"max_tokens": 24}))
pipeline.connect("excerpts.documents", "prompt.documents")
pipeline.connect("excerpts.documents", "model.documents")
pipeline.connect("prompt.prompt", "model.messages")
pipeline = Pipeline.loads(pipeline.dumps(), allowed_modules=["tamis.*", "__main__"])

retrieved = InMemoryBM25Retriever(store, top_k=5).run(question)["documents"]
done = pipeline.run({"excerpts": {"query": question, "documents": retrieved}, "prompt": {"query": question}},
                    include_outputs_from={"excerpts"})
reply, excerpts = done["model"]["replies"][0], done["excerpts"]["documents"]

print(f"question: {question}\nanswer:   {reply.text.strip()!r}")
for excerpt, source in zip(excerpts, reply.meta["sources"]):
    print(f"  {100 * source['share']:5.1f} % of attention: {excerpt.meta['file']}, characters "
          f"{excerpt.meta['excerpt_start']} to {excerpt.meta['excerpt_end']} of a paragraph: "
          f"{' '.join(excerpt.content.split())[:60]}...")
print(f"{sum(excerpt.meta['excerpt_tokens'] for excerpt in excerpts)} tokens of excerpts; {reply.meta['usage']}")
