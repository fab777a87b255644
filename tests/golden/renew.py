"""``python -m tests.golden.renew [NAME …]`` runs the methods again and writes what is kept of them.

Look at ``git diff tests/golden`` before you commit it: a refactoring changes no value, a change of the method those
alone that it is meant to change. All runs are renewed where none is named.
"""

import json
import sys
from collections.abc import Sequence

from tests.golden.runs import METHODS, differences, path, read, run_method, run_warm_start


def main(names: Sequence[str]) -> int:
    known = [*METHODS, "warm_start"]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"error: no golden run is called {unknown[0]}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or known:
        found = run_warm_start() if name == "warm_start" else run_method(name)
        changed = differences(read(name), found) if path(name).exists() else ["new"]
        path(name).write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {len(changed)} values changed" if changed != ["new"] else f"{name}: new")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
