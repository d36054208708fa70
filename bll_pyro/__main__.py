"""``python -m bll_pyro``: the command line where no script is installed."""

import sys

from bll_pyro.cli import main

if __name__ == "__main__":
    sys.exit(main())
