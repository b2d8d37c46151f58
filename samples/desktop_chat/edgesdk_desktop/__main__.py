"""`python -m edgesdk_desktop`: the window, or with --engine the process that it talks to."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if sys.argv[1:] == ["--engine"]:
        from edgesdk_desktop.engine_process import main
    else:
        from edgesdk_desktop.app import main
    sys.exit(main())
