#!/usr/bin/env python3
"""Develop ComfyUI-Diversity: `python dev.py demo | test | serve | train`. Sets up all it needs, in the folder .dev."""

import sys

OLDEST = (3, 10)

# Before anything is imported that an older Python could not even read.
if sys.version_info < OLDEST:
    sys.exit(  # not an f-string: those are too new, too
        "Python %d.%d or newer is needed; this is %d.%d (%s). Run dev.py with a newer one, such as `python3.12 dev.py`."
        % (OLDEST + tuple(sys.version_info[:2]) + (sys.executable,))
    )

from devtools.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
