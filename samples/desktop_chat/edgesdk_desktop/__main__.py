"""`python -m edgesdk_desktop`: the window, or one of the processes that work for it."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if sys.argv[1:] == ["--engine"]:
        from edgesdk_desktop import engine_process

        sys.exit(engine_process.main())
    elif sys.argv[1:2] == ["--export"]:
        from edgesdk_desktop import export_process

        sys.exit(export_process.main(sys.argv[2]))
    else:
        from edgesdk_desktop import app

        sys.exit(app.main())
