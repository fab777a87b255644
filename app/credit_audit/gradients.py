"""The policy gradient that each variant's credit gives, held against the one of the audited advantages.

Both are −∇ of the same sum over tokens, credit · log π_θ, under the run's reduction; the audited one has D̂ in the place
of the credit, for every token of a segment. At the policy that was sampled from, no clip acts, and with the "constant"
reduction the audited gradient is in expectation the gradient of the expected reward: V(s_(j+1)) is a one-sample
estimate of the state-action value of each token of segment j, and V(s_j), which knows none of them, a baseline. (That
asks that the place of a cut does not depend on what comes after it; see :mod:`app.credit_audit.plan`.)

What is estimated are means over problems, μ of a variant and μ* of the audit. Products of gradients of *different*
problems estimate their lengths and their angle without bias, for they share no sample and no noise.

Shapes: P problems, V variants, the audited one last; M rows, T tokens, R draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.algorithm.objective import ObjectiveSettings
from app.algorithm.reductions import reduce
from app.credit_audit.resampling import RESAMPLES, draw_weights, interval, root
from app.evaluation.intervals import Interval
from app.policy.logprobs import token_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from app.policy.packing import TokenBatch

AUDITED = "audited"
LARGEST_BYTES = 4 * 2**30
"""Of all gradients together, which are held at once."""


@dataclass(frozen=True)
class GradientAgreement:
    """Of one variant's gradient, means over problems.

    Attributes:
        cosine: between μ and μ*: the bias in direction that no number of samples takes away.
        norm_ratio: |μ| / |μ*|.
        noise: variance of a problem's gradient over |μ|²: so many problems make noise and mean equally long.
        cosine_seen: between the two gradients over this audit's problems, noise and all.
    """

    cosine: Interval
    norm_ratio: Interval
    noise: Interval
    cosine_seen: Interval


def gradient_bytes(problems: int, variants: int, parameters: int) -> int:
    """Memory of :func:`problem_gradients` over all problems, the audited gradient beside those of the variants."""
    return problems * (variants + 1) * parameters * 4


def problem_gradients(
    policy: "PreTrainedModel",
    tokens: "TokenBatch",
    credits_by_name: Mapping[str, Tensor],
    mask: Tensor,
    settings: ObjectiveSettings,
    temperature: float,
) -> Tensor:
    """[V, parameters] float32 on the CPU: the ascent direction that each of V credits gives for the rows of a problem.

    The policy's ``.grad`` are left alone.

    Args:
        policy: in the mode in which it is to be evaluated.
        tokens: the problem's M rows, on the policy's device.
        credits_by_name: [M, T] each.
        mask: [M, T], true on the tokens that the loss counts.
        settings: of which the reduction is read.
        temperature: of sampling.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    found = []
    # `validate` runs in inference mode, in which nothing can be differentiated.
    with torch.inference_mode(False), torch.enable_grad():
        log_probs = token_log_probs(policy, _fresh(tokens), temperature).log_probs
        for credit in credits_by_name.values():
            each = credit.to(log_probs)[:, : log_probs.shape[1]]
            total = reduce(each * log_probs, mask.clone()[:, : log_probs.shape[1]], settings, None)
            gradients = torch.autograd.grad(total, trained, retain_graph=True, allow_unused=True)
            found.append(_flat(gradients, trained))
    return torch.stack(found)


def _fresh(tokens: "TokenBatch") -> "TokenBatch":
    """Copies that are no inference tensors."""
    names = ("input_ids", "attention_mask", "position_ids", "completion_mask")
    return replace(tokens, **{name: getattr(tokens, name).clone() for name in names})


def _flat(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    whole = [torch.zeros_like(x) if each is None else each for each, x in zip(gradients, like, strict=True)]
    return torch.cat([each.detach().flatten().float().cpu() for each in whole])


def products(gradients: Tensor) -> Tensor:
    """[V, V, P, P] inner products of [P, V, parameters], in float64."""
    problems, variants, _ = gradients.shape
    flat = gradients.flatten(0, 1)
    found = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for part in flat.split(65536, dim=1):
        found += part.double() @ part.double().T
    return found.view(problems, variants, problems, variants).permute(1, 3, 0, 2)


def compare_gradients(
    gram: Tensor, names: Sequence[str], seed: int, resamples: int = RESAMPLES
) -> dict[str, GradientAgreement]:
    """The agreement of each of ``names`` with the audited gradient, from :func:`products`; itself is there for its
    noise.

    Args:
        gram: [V, V, P, P], the audited gradient last.
        names: of the V variants, :data:`AUDITED` last.
        seed: of the draws of problems.
        resamples: R.
    """
    weights = draw_weights(gram.shape[-1], seed, resamples)
    last = len(names) - 1
    return {name: _agreement(gram, index, last, weights) for index, name in enumerate(names)}


def _agreement(gram: Tensor, index: int, last: int, weights: Tensor) -> GradientAgreement:
    own, audited, product = gram[index, index], gram[last, last], gram[index, last]
    across = [_across(each, weights) for each in (own, audited, product)]
    whole = [_whole(each, weights) for each in (own, audited, product)]
    squares = (weights @ own.diagonal()) / weights.sum(1)
    return GradientAgreement(
        cosine=interval(across[2] / (root(across[0]) * root(across[1]))),
        norm_ratio=interval(root(across[0]) / root(across[1])),
        noise=interval((squares - across[0]) / root(across[0]).square()),
        cosine_seen=interval(whole[2] / (root(whole[0]) * root(whole[1]))),
    )


def _across(products_PP: Tensor, weights: Tensor) -> Tensor:
    """[1 + R] mean product of two different problems' gradients; a problem that was drawn twice is no other one."""
    together = _whole(products_PP, weights) - weights.square() @ products_PP.diagonal()
    pairs = weights.sum(1).square() - weights.square().sum(1)
    return together / torch.where(pairs > 0, pairs, torch.nan)


def _whole(products_PP: Tensor, weights: Tensor) -> Tensor:
    """[1 + R] Σ_ij w_i·w_j·products_ij."""
    return ((weights @ products_PP) * weights).sum(1)
