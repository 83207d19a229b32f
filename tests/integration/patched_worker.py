"""A worker with something about it changed: ``patched_worker.py PATCHES CELERY_OPTION...``.

PATCHES is JSON: what to set, by ``module:name``; what is by ``exec`` is run. A name must be looked up where
it is set: its process may be forked, and modules that import it by name have it by then.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module


def main() -> None:
    for place, value in json.loads(sys.argv.pop(1)).items():
        if place == "exec":
            exec(value, {})
            continue
        module, _, name = place.partition(":")
        owner = import_module(module)
        if not hasattr(owner, name):
            sys.exit(f"{place} does not exist")
        setattr(owner, name, value)
    from workers.__main__ import main as worker

    worker()


if __name__ == "__main__":
    main()
