"""`python -m cellkit`: the command line, see `cellkit.commands_main`."""

import sys

from cellkit.commands_main import main

if __name__ == "__main__":
    sys.exit(main())
