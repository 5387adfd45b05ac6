"""`python -m tessera_client` is the command `tessera`.

Next: cli/program.py.
"""

import sys

from tessera_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
