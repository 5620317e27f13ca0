"""Two optimisers: Muon for matrices inside the layers, Adam for everything else.

Muon replaces the momentum of a matrix by the nearest matrix with orthonormal
rows or columns (five Newton-Schulz steps).  A stack of matrices [..., rows, columns]
is treated matrix by matrix.
"""

import torch


def orthogonal(matrices, steps=5):
    """[n, rows, columns]."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True).bfloat16() + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Matrices of one shape are made orthogonal together: many small products in one call."""

    def __init__(self, parameters, lr, momentum=0.95, decay=0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(weight.shape, []).append(weight)
            for shape, weights in alike.items():
                self.update(group, weights, max(1, shape[-2] / shape[-1]) ** 0.5)

    def update(self, group, weights, scale):
        momenta = [self.state[weight].setdefault("momentum", torch.zeros_like(weight)) for weight in weights]
        grads = [weight.grad for weight in weights]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        mixed = torch.stack(torch._foreach_lerp(grads, momenta, group["momentum"]))
        updates = orthogonal(mixed.flatten(0, -3)).view_as(mixed)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["decay"])
        torch._foreach_add_(weights, list(updates.unbind()), alpha=-group["lr"] * scale)


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
    """Adam; matrices with more than 128 inputs go slower, by the root of their number, as in `TamisFit`."""
    groups = {}
    for name, weight in model.named_parameters():
        if "indexer" in name:
            inputs = weight.shape[1] if weight.dim() > 1 else 1
            groups.setdefault(min(1.0, (128 / inputs) ** 0.5), []).append(weight)
    return torch.optim.Adam([{"params": group, "lr": rate * share} for share, group in groups.items()],
                            betas=(0.9, 0.98))


def set_rate(optimiser, share):
    """Sets every group's learning rate to `share` of the configured one."""
    for group in optimiser.param_groups:
        group.setdefault("full", group["lr"])
        group["lr"] = group["full"] * share
