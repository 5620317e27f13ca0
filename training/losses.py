"""The language-model loss, made a block of positions at a time.

Logits of a whole batch in fp32 are the largest array of a small model; here they
exist for 512 positions at once, and the gradients are made in the same pass.
"""

import torch

BLOCK = 512  # positions


class TokenLoss(torch.autograd.Function):
    """Weighted mean of the negative log-likelihoods.

    hidden [n, d], head [vocabulary, d], targets [n], weights [n]; returns the mean
    (by the sum of the weights) and the negative log-likelihood of each target [n].
    """

    @staticmethod
    def forward(context, hidden, head, targets, weights):
        low, matrix = hidden.bfloat16(), head.bfloat16()
        total = weights.sum()
        losses = torch.empty(len(targets))
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = torch.zeros_like(head)
        for start in range(0, len(targets), BLOCK):
            part = slice(start, start + BLOCK)
            logits = (low[part] @ matrix.T).float()
            losses[part] = logits.logsumexp(-1) - logits.gather(1, targets[part, None])[:, 0]
            slope = logits.softmax(-1)
            slope.scatter_add_(1, targets[part, None], -torch.ones(len(slope), 1))
            slope = (slope * (weights[part] / total)[:, None]).bfloat16()
            hidden_gradient[part] = (slope @ matrix).to(hidden.dtype)
            head_gradient += slope.T @ low[part]
        context.save_for_backward(hidden_gradient, head_gradient)
        context.mark_non_differentiable(losses)
        return (losses * weights).sum() / total, losses

    @staticmethod
    def backward(context, slope, _):
        hidden_gradient, head_gradient = context.saved_tensors
        return slope.to(hidden_gradient.dtype) * hidden_gradient, slope * head_gradient, None, None


def token_loss(model, hidden, targets, weights):
    return TokenLoss.apply(hidden.flatten(0, 1), model.lm_head.weight, targets.flatten(), weights.flatten())
