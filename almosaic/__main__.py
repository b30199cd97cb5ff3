"""`python -m almosaic` (and `torchrun ... -m almosaic train ...`) is the `almosaic` command."""

import sys

from almosaic.cli import main

if __name__ == "__main__":
    sys.exit(main())
