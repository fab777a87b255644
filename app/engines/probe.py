"""Whether a policy generates what it is trained on: a few tokens drawn with a cache, against whole rows."""

import logging
from collections.abc import Callable, Sequence

import torch

from app.engines.engine import Completion, GenerationRequest, PolicyOwner, SamplingSettings
from app.policy.evaluating import evaluation_mode
from app.policy.probe import TOLERANCES, ProbeFailure, family, not_finite, plain_log_probs, probe_rows, refusing, spread
from app.policy.sharding.gathering import whole_parameters
from app.seeds import derive_seed

log = logging.getLogger(__name__)

PROMPTS, NEW_TOKENS = (7, 3), 6
"""Tokens of the prompts, one of which is padded, and of their two completions each."""


Draw = Callable[[Sequence[GenerationRequest], bool], list[list[Completion]]]
"""Completions of requests; the flag says whether prompts of unequal lengths share a batch."""


@torch.no_grad()
def bears_padding(module: PolicyOwner, draw: Draw) -> bool:
    """Whether prompts of unequal lengths may share a batch of this policy's. Collective for a sharded one.

    Raises:
        ProbeFailure: with padding and without, what the policy draws from its cache is not its own distribution.
    """
    policy, found = module.policy, {}
    with whole_parameters(policy), evaluation_mode(policy), refusing(policy, "engine"):
        for pads in (True, False):
            found[pads] = _difference(module, draw, pads)
            log.debug("%s, cached generation, padding %s: %.2g nats a token", family(policy), pads, found[pads])
            if found[pads] <= TOLERANCES[module.compute_dtype]:
                return pads
    raise ProbeFailure(
        f"{family(policy)} is not offered with the transformers engine: what it draws with a cache differs by "
        f"{found[False]:.2g} nats a token from the row evaluated whole; use VLLMEngine, where vLLM knows the family",
        key="engine",
    )


def _difference(module: PolicyOwner, draw: Draw, pads: bool) -> float:
    """Mean difference of the worst completion, in nats a token, at a temperature of the logits' own spread: at 1 a
    policy may be so certain of its tokens that nothing would change them."""
    policy, device = module.policy, module.device
    prompts = probe_rows(module.tokenizer, policy, PROMPTS, room=NEW_TOKENS)
    temperature = spread(policy, prompts[0], device)
    sampling = SamplingSettings(temperature=temperature, max_new_tokens=NEW_TOKENS)
    requests = [GenerationRequest(ids, 2, derive_seed("probe", row), sampling, ()) for row, ids in enumerate(prompts)]
    differences = []
    for request, group in zip(requests, draw(requests, pads), strict=True):
        for completion in group:
            row = [*request.prompt_ids, *completion.token_ids]
            whole = plain_log_probs(policy, row, temperature, device)[len(request.prompt_ids) - 1 :]
            if not_finite(whole):  # of the weights, not of the cache; the rollout or evaluation names it
                return 0.0
            drawn = torch.tensor(completion.log_probs, device=device)
            differences.append(float((drawn - whole).abs().mean()))
    return max(differences)
