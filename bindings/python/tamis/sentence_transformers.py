"""Token vectors of a sentence-transformers model for `tamis.excerpts`. Owns the cutting of long texts into the model's
window. Loads nothing until the first text."""
from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ._errors import wrong

WINDOWS = 8  # pieces of a long text that pass through the model together


class TokenVectors:
    """A `TokenEmbedder`.

    model: the name or folder of a sentence-transformers model, or a loaded `SentenceTransformer`. Its tokenizer must be
    a fast one, which knows where tokens lie. device: where a named model is loaded.
    """

    def __init__(self, model: Any, device: str = "cpu"):
        self.name, self.device = model if isinstance(model, str) else None, device
        self._model = None if isinstance(model, str) else model
        self._lock = threading.Lock()

    def to_dict(self) -> dict[str, Any]:
        """As Haystack writes objects."""
        if self.name is None:
            raise wrong("TokenVectors: was made from a loaded model, expected its name to write it down")
        return {"type": f"{type(self).__module__}.{type(self).__qualname__}",
                "init_parameters": {"model": self.name, "device": self.device}}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenVectors:
        return cls(**data["init_parameters"])

    def load(self) -> Any:
        """The model; only the first call takes time."""
        with self._lock:
            if self._model is None:
                from sentence_transformers import SentenceTransformer
                self._model = SentenceTransformer(self.name, device=self.device)
            return self._model

    def embed(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(offsets int64 [n, 2], vectors float32 [n, d]), without the tokens that the model puts around a text."""
        import torch
        model = self.load()
        found = model.tokenizer(
            text, truncation=True, max_length=model.max_seq_length, return_overflowing_tokens=True, padding=True,
            return_offsets_mapping=True, return_special_tokens_mask=True, return_tensors="np")
        ours = found["special_tokens_mask"] == 0
        vectors = []
        with torch.inference_mode():
            for at in range(0, len(ours), WINDOWS):
                given = {name: torch.from_numpy(found[name][at:at + WINDOWS]).to(model.device)
                         for name in ("input_ids", "attention_mask")}
                vectors.append(model[0](given)["token_embeddings"].float().cpu().numpy())
        return found["offset_mapping"][ours], np.concatenate(vectors)[ours]
