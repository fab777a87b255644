#!/usr/bin/env bash
# lightning 2.6.6: reading Trainer.log_dir is a broadcast, so that reading it on rank 0 alone makes the next broadcast of
# the other ranks receive the folder's name.
#
# It looks like a plain property, and a callback that writes a file on rank 0 alone reads it there: `if
# trainer.is_global_zero: path = trainer.log_dir`. Nothing is raised. Rank 0 has sent one object more than the other
# ranks have taken, and what they take next is that: here rank 1 asks for "weights" and gets the folder. Nothing hangs
# where rank 0 ends without another collective; the numbers are wrong in silence.
#
# Seen on 2026-11-29 (two processes, DDP on gloo):
#   rank 0 sent 'weights', got 'weights'
#   rank 1 got a folder's name in its place: True
#
# Exits with 0 while that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check lightning==2.6.6 torch==2.13.0 tensorboard==2.21.0

cat > "$folder/see.py" <<'PYTHON'
import json
import sys
import warnings
from pathlib import Path

import torch
from lightning import LightningModule, Trainer

warnings.filterwarnings("ignore")
place = Path(sys.argv[1])


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            self.trainer.log_dir
        wanted = "weights" if self.trainer.is_global_zero else None
        got = self.trainer.strategy.broadcast(wanted)
        (place / f"rank{self.trainer.global_rank}.json").write_text(json.dumps(got))


if __name__ == "__main__":
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=1, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(place),
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(4, 1)))
PYTHON

(cd "$folder" && timeout 300 "$folder/venv/bin/python" see.py "$folder" > /dev/null 2>&1) || true
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

first, second = (json.loads((Path(sys.argv[1]) / f"rank{rank}.json").read_text()) for rank in (0, 1))
print(f"rank 0 sent 'weights', got {first!r}")
print(f"rank 1 got a folder's name in its place: {'version_' in second}")
sys.exit(0 if first == "weights" and "version_" in second else 1)
PYTHON
