"""Writes a trained model as a `deepseek_v32` checkpoint that other programs read.

    python export.py FOLDER TARGET [--state FILE] [--dense]

FOLDER is a run of `train.py`.  TARGET receives config.json, model.safetensors
(bf16; the router's bias, the indexer's norm and head weights in fp32),
tokenizer.json, tokenizer_config.json and generation_config.json.  --state: a
copy of the run's state.pt from an earlier phase.  --dense: without indexers, as
a `deepseek_v3`, which the model is until its indexers are trained.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from corpus import SPECIAL

FULL = ("e_score_correction_bias", "weights_proj.weight", "k_norm.weight", "k_norm.bias")


def tensors(state):
    """Our state dictionary under the public names; routed experts one by one."""
    named = {}
    for name, value in state.items():
        public = name if name.startswith("lm_head") else "model." + name
        if name.endswith("mlp.bias"):
            named[public.removesuffix("bias") + "gate.e_score_correction_bias"] = value
        elif ".routed." in name:
            before, matrix = public.split(".routed.")
            for i, expert in enumerate(value):
                named[f"{before}.experts.{i}.{matrix}.weight"] = expert
        else:
            named[public] = value
    return {name: (value.float() if name.endswith(FULL) else value.bfloat16()).contiguous().clone()
            for name, value in named.items()}


def export(folder, config, target, state=None, dense=False):
    folder, target, model = Path(folder), Path(target), config["model"]
    target.mkdir(parents=True, exist_ok=True)
    named = tensors(torch.load(state or folder / "state.pt")["model"])
    if dense:
        named = {name: value for name, value in named.items() if ".indexer." not in name}
        model = {name: value for name, value in model.items() if not name.startswith("index_")} | {
            "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}
    save_file(named, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(model, indent=1) + "\n")
    shutil.copyfile(folder / "data" / "tokenizer.json", target / "tokenizer.json")
    (target / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[1],
         "model_max_length": config["model"]["max_position_embeddings"], "clean_up_tokenization_spaces": False},
        indent=1) + "\n")
    (target / "generation_config.json").write_text(json.dumps(
        {"bos_token_id": config["model"]["bos_token_id"], "eos_token_id": config["model"]["eos_token_id"]},
        indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--dense", action="store_true")
    given = parser.parse_args()
    kept = given.folder / "config.json"
    kept = kept if kept.exists() else Path(__file__).with_name("config.json")
    export(given.folder, json.loads(kept.read_text()), given.target, given.state, given.dense)
