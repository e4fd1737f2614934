"""`python -m cellkit`: the command line, see `cellkit.commands.main`."""

import sys

from cellkit.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
