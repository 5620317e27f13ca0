"""A run of a few steps through all phases with a tiny model: it must train, resume, stay causal and export."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from batches import COPIED, RECALL, Data  # noqa: E402
from corpus import RECORD, STOP  # noqa: E402
from export import export  # noqa: E402
from model import Config, Model, MoE, attend  # noqa: E402
from sparse import TopK  # noqa: E402
from train import Run  # noqa: E402


@pytest.fixture(scope="module")
def config():
    config = json.loads((HERE / "config.json").read_text())
    config["model"] |= {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32,
                        "num_hidden_layers": 3, "q_lora_rank": 48, "kv_lora_rank": 48, "v_head_dim": 32}
    config["corpus_share"] = 0.06
    config["dense"] |= {"steps": 12, "rise": 2, "windows": [[0.5, 256, 4], [1.0, 512, 2]]}
    config["extend"] |= {"steps": 2, "windows": [[1.0, 1024, 1]]}
    config["warmup"] |= {"steps": 6, "windows": [[0.5, 512, 2], [1.0, 700, 1]], "rows": 32}
    config["sparse"] |= {"steps": 2, "windows": [[1.0, 512, 2]], "rows": 32, "top_k": 32}
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    run = Run(folder, config)
    run.train()
    return run


def lines(run):
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


def test_every_phase_reports_and_learns(config, finished, tmp_path):
    log = lines(finished)
    (tmp_path / "data").symlink_to(finished.folder / "data")
    start = Run(tmp_path, config).measure()["bits_per_byte"]
    measures = {line["phase"]: line for line in log if "bits_per_byte" in line}
    assert set(measures) == {"dense", "extend", "warmup", "sparse"}
    assert measures["dense"]["bits_per_byte"] < start - 0.15
    assert measures["warmup"]["mass_indexer"] <= measures["warmup"]["mass_oracle"] + 1e-6


def test_a_finished_run_stays_and_has_one_configuration(config, finished):
    after = finished.model.state_dict()
    again = Run(finished.folder, config)
    again.train()
    assert all(torch.equal(value, after[name]) for name, value in again.model.state_dict().items())
    with pytest.raises(ValueError, match="another configuration"):
        Run(finished.folder, config | {"seed": 2})


def test_experts_and_attention_are_what_they_stand_for(config):
    """Only chosen experts are computed, attention goes by blocks: the same values and gradients as plainly written."""
    torch.manual_seed(4)
    moe = MoE(Config(config["model"]))
    for weight in moe.parameters():
        torch.nn.init.normal_(weight, 0, 0.2)
    x = torch.randn(2, 9, 64, requires_grad=True)
    weights, _ = moe.route(x)
    experts = moe.routed
    inner = torch.nn.functional.silu(torch.einsum("btd,eid->btei", x, experts.gate_proj))
    inner = inner * torch.einsum("btd,eid->btei", x, experts.up_proj)
    plain = torch.einsum("btei,edi,bte->btd", inner, experts.down_proj, weights) + moe.shared_experts(x)
    sources = [x, *moe.parameters()]
    torch.testing.assert_close(moe(x), plain, rtol=1e-4, atol=1e-5)
    for got, want in zip(torch.autograd.grad(moe(x).square().sum(), sources),
                         torch.autograd.grad(plain.square().sum(), sources)):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)

    q, k, v, slope = (torch.randn(1, 2, 600, 32).bfloat16() for _ in range(4))
    later = torch.ones(600, 600, dtype=torch.bool).triu(1)
    some = later | (torch.rand(600, 600) < 0.6) & ~torch.eye(600, dtype=torch.bool)
    for hidden in (None, some[None]):
        low, full = ([t.detach().clone().requires_grad_() for t in (q, k, v)] for _ in range(2))
        full = [t.detach().float().requires_grad_() for t in full]
        got = attend(*low, 0.2, hidden)
        bias = torch.zeros(600, 600).masked_fill(later if hidden is None else some, -torch.inf)
        want = torch.nn.functional.scaled_dot_product_attention(*full, attn_mask=bias, scale=0.2)
        torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.02)
        for a, b in zip(torch.autograd.grad(got, low, slope), torch.autograd.grad(want, full, slope.float())):
            assert (a.float() - b).norm() < 0.02 * b.norm()


def test_warmup_trains_the_indexer_only(config, finished, tmp_path):
    (tmp_path / "data").symlink_to(finished.folder / "data")
    run = Run(tmp_path, config)
    run.phase = "warmup"
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.warmup_step()
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("indexer" in name for name in changed)


def test_a_run_goes_on_where_it_stopped(config, finished, tmp_path):
    """Same place, weights and momenta; the next step then agrees to rounding (which memory alignment decides)."""
    (tmp_path / "data").symlink_to(finished.folder / "data")
    stopped = Run(tmp_path, config)
    stopped.run_phase(3)
    stopped.save()
    resumed = Run(tmp_path, config)
    assert (resumed.phase, resumed.step, resumed.tokens) == ("dense", 3, stopped.tokens)
    for old, new in zip(stopped.main + [stopped.indexer], resumed.main + [resumed.indexer]):
        for group, again in zip(old.param_groups, new.param_groups):
            assert group["lr"] == again["lr"]
            for weight, same in zip(group["params"], again["params"]):
                assert torch.equal(weight, same)
                for name, value in old.state[weight].items():
                    assert torch.equal(torch.as_tensor(value), torch.as_tensor(new.state[same][name])), name
    (text, count), (again, counted) = stopped.dense_step()["text"], resumed.dense_step()["text"]
    assert count == counted and abs(text - again) < 1e-3 * text


def test_recalled_values_are_those_shown_before(finished):
    data = Data(finished.folder / "data")
    rng, asked = np.random.default_rng(3), 0
    for _ in range(30):
        ids, weight, kind = data.sample(rng, 512, 1.0)
        assert weight.max() <= 2 and not (weight[kind != 0] == 0).any()
        known = {}
        for start in np.flatnonzero(ids == RECORD):
            stop = start + int(np.flatnonzero(ids[start:] == STOP)[0])
            answer = start + int(np.argmax(kind[start : stop + 1] == RECALL))
            if kind[answer] == RECALL:
                key, value = ids[start + 1 : answer].tobytes(), ids[answer:stop].tobytes()
                assert any(old == key + value for old in known)
                asked += 1
            known[ids[start + 1 : stop].tobytes()] = start
    assert asked > 50
    assert COPIED != RECALL


@pytest.mark.parametrize("k", [None, 16])
def test_no_position_sees_a_later_one(finished, k):
    read = TopK(k) if k else None
    ids = torch.randint(5, 4000, (1, 96), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[:, 60:] = 7
    with torch.no_grad():
        a, b = (finished.model.trunk(x, read)[:, :60] for x in (ids, other))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_export_is_what_transformers_reads(config, finished, tmp_path):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "DeepseekV32ForCausalLM"):
        pytest.skip("this transformers has no deepseek_v32")
    from check import compare

    export(finished.folder, config, tmp_path)
    for k, largest, close, _, _ in compare(tmp_path, (2048, 32)):
        assert close > 0.98, (k, largest)
    assert Model(json.loads((tmp_path / "config.json").read_text())).config.num_hidden_layers == 3


def test_a_dense_export_has_no_indexers(config, finished, tmp_path):
    from safetensors.torch import load_file

    shutil.copyfile(finished.folder / "state.pt", tmp_path / "kept.pt")
    export(finished.folder, config, tmp_path / "dense", tmp_path / "kept.pt", dense=True)
    export(finished.folder, config, tmp_path / "whole")
    dense, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("dense", "whole"))
    assert set(dense) == {name for name in whole if ".indexer." not in name} != set(whole)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in dense.items())
    settings = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert settings["model_type"] == "deepseek_v3" and not any(name.startswith("index_") for name in settings)
