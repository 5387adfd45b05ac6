"""`python -m tessera_client` is the command `tessera`."""

import sys

from tessera_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
