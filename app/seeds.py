"""Seeds as pure functions of what they are for, so that a resumed run draws what the uninterrupted one would have."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order, and on nothing else.

    Example: ``derive_seed(run_seed, "rollout", iteration, prompt_index)``. Equal on every machine and process.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
