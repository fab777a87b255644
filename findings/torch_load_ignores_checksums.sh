#!/bin/sh
# torch.save writes a CRC-32 beside every tensor, and torch.load does not look at it.
#
# torch 2.13.0: a checkpoint is a ZIP archive whose table has the CRC-32 of each record (torch.serialization even has a
# setting for computing it, get_crc32_options() is True by default). A bit that flips on the disk, or a page that is
# zeroed, is loaded in silence all the same, mapped (mmap=True) or not, and training goes on from other weights. Python's
# own zipfile names the damaged record. Whoever wants to know has to compare the checksums before the load.
#
# Seen:
#   torch 2.13.0+cpu, checksums are computed on save: True
#   torch.load: 1.0 became 2.0 without an error
#   torch.load(mmap=True): 1.0 became 2.0 without an error
#   zipfile: Bad CRC-32 for file 'last/data/0'
# Exits with 1 if this has changed.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
cat > "$folder/check.py" <<'PYTHON'
import sys
import zipfile

import torch
from torch.serialization import get_crc32_options

path = sys.argv[1]
torch.save({"weights": torch.ones(64)}, path)
data = bytearray(open(path, "rb").read())
start = data.index(torch.ones(64).numpy().tobytes())
data[start : start + 4] = torch.tensor(2.0).numpy().tobytes()
open(path, "wb").write(data)
print(f"torch {torch.__version__}, checksums are computed on save: {get_crc32_options()}")
silent = True
for name, options in (("torch.load", {}), ("torch.load(mmap=True)", {"mmap": True})):
    try:
        print(f"{name}: 1.0 became {torch.load(path, **options)['weights'][0].item()} without an error")
    except RuntimeError as error:
        silent = False
        print(f"{name}: {error}")
try:
    with zipfile.ZipFile(path) as archive:
        for record in archive.namelist():
            archive.read(record)
    noticed = False
except zipfile.BadZipFile as error:
    noticed = True
    print("zipfile:", error)
sys.exit(0 if silent and noticed else 1)
PYTHON
"$folder/venv/bin/python" "$folder/check.py" "$folder/last.ckpt"
