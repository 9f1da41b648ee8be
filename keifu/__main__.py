"""`python -m keifu` is the keifu command, as launchers of many processes want it."""

import sys

from keifu.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
