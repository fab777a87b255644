"""Log-ratios of token probabilities: how they are taken, and how far their exponentials go.

Shapes: B rows, T completion tokens. Annotations name them, and are checked at every call in the tests.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Values = Float[Tensor, "*shape"]
PerToken = Float[Tensor, "B T"]
Real = Bool[Tensor, "B T"]
"""True on completion tokens; right-padded."""

# e^20 ≈ 5e8 is past any clip. Beyond it exp is held flat: an overflow would turn the zero gradient of a
# clipped token into 0·inf = NaN, and accumulated ratios do get there. Ratios up to the bound are untouched.
MAX_LOG_RATIO = 20.0


def ratio_of(log_ratio: Values) -> Values:
    """exp, held flat past :data:`MAX_LOG_RATIO`."""
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def difference(minuend: PerToken, subtrahend: PerToken, real: Real) -> PerToken:
    """In float32 at least (bfloat16 differences of log-probs are noise); 0 where masked."""
    working = torch.promote_types(torch.promote_types(minuend.dtype, subtrahend.dtype), torch.float32)
    return (minuend.to(working) - subtrahend.to(working)).where(real, 0.0)


def with_gradient_times(values: PerToken, factors: PerToken) -> PerToken:
    """``values``, bit for bit, whose gradient is multiplied by ``factors``."""
    scaled = values * factors.to(values.dtype)
    return values.detach() + (scaled - scaled.detach())
