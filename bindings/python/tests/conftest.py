"""What the tests share: the package from this checkout, contexts for every instruction set, the golden vectors."""
import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bindings" / "python"))

import tamis  # noqa: E402


def usable_isas():
    """The instruction sets of this machine, from the context's own description: "... X of a b c, ..."."""
    with tamis.Context() as ctx:
        return ctx.describe().split(" of ")[1].split(",")[0].split()


@pytest.fixture(params=usable_isas())
def ctx(request):
    """A context of one instruction set, two threads."""
    with tamis.Context(threads=2, isa=request.param) as made:
        yield made


@pytest.fixture
def best():
    """A context of the best instruction set."""
    with tamis.Context() as made:
        yield made


@pytest.fixture
def rng():
    return np.random.default_rng(7)


class Vectors:
    """Tests/Vectors: arrays by name, parameters of cases."""

    TYPES = {"U8": np.uint8, "I8": np.int8, "U16": np.uint16, "BF16": np.uint16, "F8_E4M3": np.uint8, "I32": np.int32,
             "F32": np.float32, "F64": np.float64}

    def __init__(self):
        folder = ROOT / "Tests" / "Vectors"
        self.index = json.loads((folder / "vectors.json").read_text())
        self.data = (folder / "vectors.bin").read_bytes()

    def __contains__(self, name):
        return name in self.index["tensors"]

    def __getitem__(self, name):
        about = self.index["tensors"][name]
        count = int(np.prod(about["shape"]))
        array = np.frombuffer(self.data, self.TYPES[about["dtype"]], count, about["offset"])
        return array.reshape(about["shape"])

    def operand(self, name, scale=None):
        """The tensor as an operator takes it."""
        kind = {"BF16": "bf16", "F8_E4M3": "f8e4m3", "I8": "i8"}.get(self.index["tensors"][name]["dtype"])
        return self[name] if kind is None else tamis.Quantized(self[name], kind, scale)


VECTORS = Vectors()


def cases(prefix):
    """The golden cases that begin so and have parameters."""
    return sorted(name for name, about in VECTORS.index["cases"].items() if name.startswith(prefix) and about)


@pytest.fixture
def vectors():
    return VECTORS


# ---------------------------------- Small models of transformers, where torch is -----------------------------------

VOCABULARY = 97


def prompt(length, batch=1, pads=()):
    """Token ids [batch, length] and their mask; row b begins with pads[b] of padding."""
    import torch
    ids = torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length + batch))
    mask = torch.ones_like(ids)
    for row, pad in enumerate(pads):
        ids[row, :pad], mask[row, :pad] = 0, 0
    return ids, mask


def logits(model, ids, mask=None, **named):
    import torch
    with torch.no_grad():
        return model(ids, attention_mask=mask, **named).logits


def difference(a, b, mask=None):
    """Largest difference relative to the largest number."""
    seen = slice(None) if mask is None else mask.bool()
    return float((a[seen] - b[seen]).abs().max() / b[seen].abs().max())
