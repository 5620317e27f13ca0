"""Token vectors of a sentence-transformers model for `tamis.excerpts`. Owns the cutting of long texts into the model's
window. Loads nothing until the first text."""
from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ._errors import wrong


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
        tokenizer = model.tokenizer
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, around = found["input_ids"], tokenizer.build_inputs_with_special_tokens([])
        before = tokenizer.build_inputs_with_special_tokens([-1]).index(-1)
        window = model.max_seq_length - len(around)
        vectors = []
        with torch.inference_mode():
            for begin in range(0, len(ids), window):
                piece = torch.tensor([tokenizer.build_inputs_with_special_tokens(ids[begin:begin + window])])
                given = {"input_ids": piece, "attention_mask": torch.ones_like(piece)}
                out = model[0]({name: part.to(model.device) for name, part in given.items()})["token_embeddings"][0]
                vectors.append(out[before:before + len(ids[begin:begin + window])].float().cpu().numpy())
        offsets = np.array(found["offset_mapping"], np.int64).reshape(-1, 2)
        return offsets, np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)
