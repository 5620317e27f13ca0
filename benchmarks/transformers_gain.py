"""What `tamis.transformers.accelerate` gains: a deepseek_v32 layer stack with V3.2's attention shapes, random weights
in bfloat16, the unpatched model of transformers beside the accelerated one, each in a process of its own.

For every context length it prints the time of one decoded token (one attention layer with and without its
projections, and the whole step), of a chunk of prompt, and the peak of memory above weights. The cache is filled with
random latents and index keys instead of by a prompt, which the unpatched model would need hours for. A measurement that
would not fit into memory is left out, and said. The outputs of both models are compared too: their largest difference
relative to the largest number.

    python benchmarks/transformers_gain.py                      # 4K, 16K, 32K, 64K (most of an hour on two cores)
    python benchmarks/transformers_gain.py --contexts 4096 --layers 1

The feed-forward network is dense with V3.2's 18,432, which is what its eight experts of 2,048 and the shared one come
to per token; the vocabulary is small. Needs torch and transformers >= 5.23.
"""
from __future__ import annotations

import argparse
import csv
import json
import pathlib
import statistics
import subprocess
import sys
import time

COLUMNS = ("context", "what", "unpatched", "tamis", "gain")


def config(layers):
    """V3.2 in everything that attention sees."""
    from transformers import DeepseekV32Config
    return DeepseekV32Config(num_hidden_layers=layers, first_k_dense_replace=layers, vocab_size=1024,
                             tie_word_embeddings=False, attn_implementation="sdpa")


def build(layers):
    """The model with weights that are a random block repeated: drawing billions of numbers would take longer than the
    measurement."""
    import torch
    from transformers import DeepseekV32ForCausalLM
    torch.manual_seed(0)
    with torch.device("meta"):
        model = DeepseekV32ForCausalLM(config(layers)).to(torch.bfloat16)
    rotary = type(model.model.rotary_emb)(config=model.config)
    model = model.to_empty(device="cpu").eval()
    model.model.rotary_emb = rotary
    block = torch.randn(1 << 20) * 0.02
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            flat = parameter.data.view(-1)
            for begin in range(0, len(flat), len(block)):
                flat[begin:begin + len(block)] = block[:len(flat) - begin]
    for layer in model.model.layers:
        layer.self_attn.indexer.weights_proj.float()  # as from_pretrained keeps it
    return model


def fill(model, cache, tokens):
    """Random latents, rotary keys and index keys for every layer; the same for both models."""
    import torch
    from tamis.transformers import IndexedLayer
    from tamis.transformers._cache import Step
    source = torch.Generator().manual_seed(1)
    step = Step.of(1, tokens, 0, None)
    for number, layer in enumerate(cache.layers):
        ours = isinstance(layer, IndexedLayer)
        if ours:
            layer.begin(step, torch.bfloat16)
        latent, rope, index = (torch.randn((1, tokens, width), generator=source).bfloat16() for width in (512, 64, 128))
        cache.update(latent[:, None], rope[:, None], number)
        cache.update_indexer(index, number)
        if ours:
            layer.end()


class Clock:
    """Seconds inside some modules, summed."""

    def __init__(self, modules):
        self.seconds = 0.0
        for module in modules:
            module.register_forward_pre_hook(self.start)
            module.register_forward_hook(self.stop)

    def start(self, *_):
        self.began = time.perf_counter()

    def stop(self, *_):
        self.seconds += time.perf_counter() - self.began


def projections(attention):
    """The linear layers that any attention of this shape has to read. Not `kv_b_proj`, which the unpatched model applies
    to the whole cache and Tamis, in two halves, to the new tokens: that is part of the attention."""
    import torch
    return [module for name, module in attention.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "kv_b_proj"]


def status(name):
    """A line of /proc/self/status in bytes."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) * 1024


def forget_peak():
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def child(mode, layers, context, chunk, repeats):
    """Measures one model at one context length; prints JSON."""
    import torch
    from transformers import DynamicCache
    import tamis.transformers
    model = build(layers)
    weights = status("VmRSS")
    if mode == "tamis":
        tamis.transformers.accelerate(model)
    attentions = [layer.self_attn for layer in model.model.layers]
    whole, linear, found = Clock(attentions), Clock(sum(map(projections, attentions), [])), {}
    cache = DynamicCache(config=model.config)
    if mode == "tamis":
        tamis.transformers._model.our_layers(model.model, cache)
    fill(model, cache, context)

    def forward(tokens):
        """Seconds of the whole pass, of an attention layer, and of that without its projections; the cache is as before
        afterwards."""
        ids = torch.arange(tokens)[None] % model.config.vocab_size
        whole.seconds, linear.seconds, began = 0.0, 0.0, time.perf_counter()
        with torch.no_grad():
            logits = model(ids, past_key_values=cache).logits[0, -1]
        took = time.perf_counter() - began
        cache.crop(-tokens)
        return took, whole.seconds / layers, (whole.seconds - linear.seconds) / layers, logits

    for what, tokens in (("decode", 1), ("prefill", chunk)):
        if mode == "tamis":
            forward(tokens)  # pages and scratch exist from now on
        forget_peak()
        runs = [forward(tokens) for _ in range(repeats if mode == "tamis" else 1)]
        found[what] = {"step": statistics.median(run[0] for run in runs),
                       "layer": statistics.median(run[1] for run in runs),
                       "sparse": statistics.median(run[2] for run in runs),
                       "peak": status("VmHWM") - weights, "logits": runs[-1][3].float().tolist()}
    print(json.dumps(found))


def needed(context, chunk):
    """Bytes that the unpatched model is going to need above its weights: what it took at 32K (11.6 GiB for a token: keys
    and values expanded, joined, repeated and cut for the product) and two copies of the chunk's index scores."""
    return context * 128 * 1488 * 2 + 2 * chunk * 64 * context * 4


def available():
    text = pathlib.Path("/proc/meminfo").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("MemAvailable")).split()[1]) * 1024


def measure(mode, options, context):
    """One child process; None when it does not fit or fails."""
    if mode == "unpatched" and needed(context, options.chunk) + options.layers * (2 << 30) > available():
        print(f"{context:7} unpatched: left out, it needs about {needed(context, options.chunk) >> 30} GiB above "
              f"weights and {available() >> 30} GiB are free")
        return None
    command = [sys.executable, __file__, "--child", mode, "--layers", str(options.layers), "--contexts", str(context),
               "--chunk", str(options.chunk), "--repeats", str(options.repeats)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"{context:7} {mode}: failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
        return None
    return json.loads(done.stdout)


def rows(context, chunk, plain, ours):
    """The table's rows of one context length."""
    for what, path, unit in (("decode: index, select, attend alone, ms", ("decode", "sparse"), 1e3),
                             ("decode: attention layer, ms", ("decode", "layer"), 1e3),
                             ("decode: whole step, ms", ("decode", "step"), 1e3),
                             (f"prefill of {chunk}: index, select, attend alone, ms", ("prefill", "sparse"), 1e3),
                             (f"prefill of {chunk}: attention layer, ms", ("prefill", "layer"), 1e3),
                             (f"prefill of {chunk}: whole pass, ms", ("prefill", "step"), 1e3),
                             ("decode: peak above weights, MiB", ("decode", "peak"), 2**-20),
                             (f"prefill of {chunk}: peak above weights, MiB", ("prefill", "peak"), 2**-20)):
        a, b = (None if found is None else found[path[0]][path[1]] * unit for found in (plain, ours))
        yield context, what, a, b, None if a is None or b is None else a / b


def text(number):
    return "-" if number is None else f"{number:.3g}" if number < 100 else f"{number:.0f}"


def times(gain):
    return "not run" if gain is None else f"{text(gain)}x"


def difference(plain, ours):
    pairs = zip(plain["decode"]["logits"], ours["decode"]["logits"])
    return max(abs(a - b) for a, b in pairs) / max(map(abs, plain["decode"]["logits"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 16384, 32768, 65536])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=256, help="tokens of prompt in one pass")
    parser.add_argument("--repeats", type=int, default=9, help="passes of the accelerated model; the median counts")
    parser.add_argument("--csv", help="write the table here")
    parser.add_argument("--child", choices=("unpatched", "tamis"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.layers, options.contexts[0], options.chunk, options.repeats)
        return
    import tamis
    import torch
    import transformers
    with tamis.Context() as ctx:
        machine = f"{ctx.describe()}; torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{machine}\n{options.layers} layers\n")
    print("{:>7} {:46} {:>10} {:>10} {:>8}".format(*COLUMNS))
    table = []
    for context in options.contexts:
        ours = measure("tamis", options, context)
        plain = measure("unpatched", options, context)
        for row in rows(context, options.chunk, plain, ours):
            print(f"{row[0]:7} {row[1]:46} {text(row[2]):>10} {text(row[3]):>10} {times(row[4]):>8}", flush=True)
            table.append(row)
        if plain and ours:
            print(f"{context:7} largest difference of the logits, relative: {difference(plain, ours):.1e}")
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            print(f"# {machine}; {options.layers} layers", file=file)
            csv.writer(file).writerows([COLUMNS, *table])


if __name__ == "__main__":
    main()
