"""Prints what one room needs, from pyproject.toml, for `pip install -r`: so an image's packages are a layer of their
own, made again only when they change.

    python3 deploy/requirements.py gateway < pyproject.toml

Next: gateway.Dockerfile.
"""

import sys
import tomllib


def main() -> None:
    """Print the requirements of the contract and of the rooms that are named."""
    project = tomllib.loads(sys.stdin.read())["project"]
    for requirement in project["dependencies"]:
        print(requirement)
    for room in sys.argv[1:]:
        for requirement in project["optional-dependencies"][room]:
            print(requirement)


if __name__ == "__main__":
    main()
