"""What several files compare with."""

from pathlib import Path

import pytest

from tests.distributed.agreement import ENTROPY, HALF_TIED, JOB, LORA, TIED
from tests.distributed.job import run


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs on one process."""
    root = tmp_path_factory.mktemp("single")
    common = {**JOB, "strategy": "single", "ranks": 1}
    run({**common, "folder": str(root / "plain"), "save_every": 2, "export": True})
    run({**common, "folder": str(root / "tied-embeddings"), **TIED})
    run({**common, **HALF_TIED, "folder": str(root / "half-tied")})
    run({**common, **LORA, "folder": str(root / "lora")})
    run({**common, **ENTROPY, "folder": str(root / "entropy")})
    return root
