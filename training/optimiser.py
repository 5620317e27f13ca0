"""Two optimisers: Muon for matrices inside the layers, Adam for everything else.

Muon replaces the momentum of a matrix by the nearest matrix with orthonormal
rows or columns (five Newton-Schulz steps).  A stack of matrices [n, rows, columns]
is treated matrix by matrix.
"""

import torch


def orthogonal(matrix, steps=5):
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True).bfloat16() + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters, lr, momentum=0.95, decay=0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                momentum = state.setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(momentum, group["momentum"]))
                shape = max(1, weight.shape[-2] / weight.shape[-1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"] * shape)


def is_matrix(name, weight):
    """What Muon trains: matrices of the layers, without the router and the indexer."""
    return weight.dim() >= 2 and name.startswith("layers") and ".gate.weight" not in name and "indexer" not in name


def optimisers(model, rates):
    """Main weights: Muon and Adam.  Learning rates per kind from the configuration."""
    named = [(n, p) for n, p in model.named_parameters() if "indexer" not in n]
    matrices = [p for n, p in named if is_matrix(n, p)]
    rest = [(n, p) for n, p in named if not is_matrix(n, p)]
    kinds = {"embedding": "embed_tokens", "head": "lm_head", "router": ".gate.weight"}
    groups, taken = [], set()
    for kind, mark in kinds.items():
        groups.append({"params": [p for n, p in rest if mark in n], "lr": rates[kind]})
        taken |= {n for n, _ in rest if mark in n}
    groups.append({"params": [p for n, p in rest if n not in taken], "lr": rates["norm"]})
    return [Muon(matrices, rates["matrix"], decay=0.02), torch.optim.Adam(groups, betas=(0.85, 0.95))]


def indexer_optimiser(model, rate):
    return torch.optim.Adam([p for n, p in model.named_parameters() if "indexer" in n], lr=rate, betas=(0.9, 0.98))


def set_rate(optimiser, share):
    """Sets every group's learning rate to `share` of the configured one."""
    for group in optimiser.param_groups:
        group.setdefault("full", group["lr"])
        group["lr"] = group["full"] * share
