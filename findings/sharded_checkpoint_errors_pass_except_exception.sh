#!/bin/sh
# A sharded checkpoint that cannot be loaded passes every `except Exception`.
#
# torch 2.13.0: torch.distributed.checkpoint raises CheckpointException, which derives from BaseException as
# KeyboardInterrupt does, not from Exception. A trainer that tries the newest checkpoint, catches Exception and takes the
# one before, or that prints one line for any error, ends with a traceback of about forty lines instead, though all that
# happened is that one name is not in the checkpoint. (torch.load raises RuntimeError and pickle.UnpicklingError.)
#
# Seen:
#   torch 2.13.0+cpu
#   caught by except Exception: False
#   its bases: CheckpointException, BaseException, object
#   the real error inside: RuntimeError Missing key in checkpoint state_dict: bias.
# Exits with 1 if this has changed.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
cat > "$folder/check.py" <<'PYTHON'
import logging
import sys
import warnings

import torch
import torch.distributed.checkpoint as dcp

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
folder = sys.argv[1]
dcp.save({"weight": torch.ones(3)}, checkpoint_id=folder)
caught, error = False, None
try:
    try:
        dcp.load({"weight": torch.zeros(3), "bias": torch.zeros(3)}, checkpoint_id=folder)
    except Exception as found:
        caught, error = True, found
except BaseException as found:
    error = found
print("torch", torch.__version__)
print("caught by except Exception:", caught)
print("its bases:", ", ".join(each.__name__ for each in type(error).__mro__))
inner = next(cause for cause, _ in error.failures.values())
print("the real error inside:", type(inner).__name__, " ".join(str(inner).split())[:60])
sys.exit(1 if caught or not isinstance(error, BaseException) else 0)
PYTHON
"$folder/venv/bin/python" "$folder/check.py" "$folder/checkpoint"
