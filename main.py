"""Train with ``python main.py fit --config …``, evaluate with ``python main.py validate --config …``."""

import sys

from app.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
