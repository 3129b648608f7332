"""The name that images use: `python -m dpmrecon.health`. See hosts/health.py."""

import sys

from .hosts.health import main as main

if __name__ == "__main__":
    sys.exit(main())
