#!/usr/bin/env bash
# lightning 2.6.6: a metric that training_step logs once is logged again at every step that follows.
#
# self.log("rare", 7.0) is called in the second of five steps alone: a rare event, an optional loss, a value that not
# every batch has. One would guess that its curve has one point. Lightning keeps the value until the epoch ends and hands
# it to the loggers, the progress bar and trainer.callback_metrics (what EarlyStopping and ModelCheckpoint monitor) in
# each later step, as if it had just been measured. In a run of one long epoch, as in RL, that is until the run ends, and
# a run that resumes in between, which starts without it, draws another curve.
#
# Seen on 2026-11-29:
#   monitors  [None, 7.0, 7.0, 7.0, 7.0]
#   logged    step 1: 7.0, step 2: 7.0, step 3: 7.0, step 4: 7.0
#
# Exits with 0 while that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "lightning==2.6.6" "torch==2.13.0"

cat > "$folder/see.py" <<'PYTHON'
import csv
import sys
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            self.log("rare", 7.0)
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Monitor(Callback):
    seen = []

    def on_train_batch_end(self, trainer, *_):
        value = trainer.callback_metrics.get("rare")
        self.seen.append(None if value is None else float(value))


logger = CSVLogger(sys.argv[1])
options = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
trainer = Trainer(accelerator="cpu", max_epochs=1, logger=logger, log_every_n_steps=1, callbacks=[Monitor()], **options)
trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(5, 1)))
logged = [(int(row["step"]), float(row["rare"])) for row in csv.DictReader((Path(logger.log_dir) / "metrics.csv").open())]
print("monitors ", Monitor.seen)
print("logged   ", ", ".join(f"step {step}: {value}" for step, value in logged))
sys.exit(0 if Monitor.seen == [None, 7, 7, 7, 7] and logged == [(step, 7.0) for step in (1, 2, 3, 4)] else 1)
PYTHON

"$folder/venv/bin/python" "$folder/see.py" "$folder/logs" 2>/dev/null || { echo "the behaviour has changed"; exit 1; }
