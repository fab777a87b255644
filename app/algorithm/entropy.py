"""Learning from the tokens alone at which the policy was undecided.

Shapes: B rows, T completion tokens, N tokens. Annotations name them, and are checked at every call in the tests.
"""

from jaxtyping import Float
from torch import Tensor


def top_entropy_threshold(entropy: Float[Tensor, " N"], share: float) -> Float[Tensor, ""]:
    """The smallest entropy among the 1 + ⌊share·(N − 1)⌋ largest; infinity without tokens.

    As many tokens reach it as reach torch's (1 − share)-quantile, which is interpolated and takes no more than 2^24
    numbers.

    Args:
        entropy: of all tokens that are compared, on all ranks.
        share: in (0, 1].

    Source: the 80/20 rule of Wang et al., arXiv 2506.01939, with share 0.2.
    """
    if not len(entropy):
        return entropy.new_full((), float("inf"))
    count = 1 + int(share * (len(entropy) - 1))
    return entropy.kthvalue(len(entropy) + 1 - count).values
