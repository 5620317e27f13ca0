"""Compares an exported checkpoint with transformers' own DeepSeek-V3.2, both in fp32.

    python check.py CHECKPOINT [K ...]

Loads the checkpoint into this folder's model and into `DeepseekV32ForCausalLM`
(transformers >= 5.23), asserts that no tensor is missing, unexpected or of
another shape, and prints the difference of logits, dense and for each top-k.
Exits with 1 when more than a hundredth of the rows differ by over 1e-3 in a logit,
unless the first of them is one where two index scores at the edge of the selection
are within 1e-4 of each other: rounding decides there, and later rows read that row.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from model import Model
from sparse import TopK, later

LENGTH = 1024
TIE = 1e-4


class Edges(TopK):
    """TopK that keeps how near the last chosen score of each row is to the next one, over all layers, [t]."""

    def __init__(self, k):
        super().__init__(k)
        self.gaps = torch.ones(LENGTH)

    def selected(self, attention, x, latent, tables):
        rows = torch.arange(LENGTH)
        scores = attention.indexer.scores(x, latent, tables, rows)[0].masked_fill(later(rows, LENGTH), -torch.inf)
        edge = scores.topk(self.k + 1, -1)[0][self.k :, self.k - 1 :]
        gaps = (edge[:, 0] - edge[:, 1]) / edge[:, 0].abs().clamp_min(1e-9)
        self.gaps[self.k :] = torch.minimum(self.gaps[self.k :], gaps)
        return super().selected(attention, x, latent, tables)


def load(folder):
    """This folder's model with an exported checkpoint's weights, fp32."""
    folder = Path(folder)
    model = Model(json.loads((folder / "config.json").read_text()))
    public = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    state = {}
    for name, value in model.state_dict().items():
        key = name if name.startswith("lm_head") else "model." + name
        if name.endswith("mlp.bias"):
            state[name] = public[key.removesuffix("bias") + "gate.e_score_correction_bias"]
        elif ".routed." in name:
            before, matrix = key.split(".routed.")
            state[name] = torch.stack([public[f"{before}.experts.{i}.{matrix}.weight"] for i in range(len(value))])
        else:
            state[name] = public[key]
    model.load_state_dict(state)
    return model


def compare(folder, top_ks=(2048, 128, 64)):
    """[(k, largest difference, share of rows within 1e-3, share of equal argmaxes, gap of the first row beyond)]."""
    ids = torch.from_numpy(np.random.default_rng(5).integers(5, 2000, LENGTH))[None]
    ids[:, LENGTH // 2 :] = ids[:, : LENGTH // 2]  # repeated, so that attention reads far
    ours, found = load(folder), []
    for k in top_ks:
        config = AutoConfig.from_pretrained(folder)
        config.index_topk = k
        theirs, info = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32,
                                                            output_loading_info=True)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not info[kind], (kind, info[kind])
        with torch.no_grad():
            expected = theirs.eval()(ids).logits[0]
            read = Edges(k) if k < LENGTH else None
            actual = ours(ids, read)[0]
        rows = (expected - actual).abs().amax(-1)
        same = (expected.argmax(-1) == actual.argmax(-1)).float().mean().item()
        beyond = (rows >= 1e-3).nonzero()[:, 0]
        gap = read.gaps[beyond[0]].item() if read and len(beyond) else 1.0
        found.append((k, rows.max().item(), (rows < 1e-3).float().mean().item(), same, gap))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = compare(sys.argv[1], [int(k) for k in sys.argv[2:]] or (2048, 128, 64))
    for k, largest, close, same, gap in results:
        edge = f", first other row at a gap of {gap:.1e} between index scores" if close < 1 else ""
        print(f"k={k}: largest |d logit| {largest:.2e}, rows within 1e-3 {close:.4f}, equal argmax {same:.4f}{edge}")
    sys.exit(any(close < 0.99 and gap > TIE for _, _, close, _, gap in results))
