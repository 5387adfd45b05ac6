"""What the engine says, as messages."""

import dataclasses

from worker.answers import load_of
from worker.engine.output import LoadReport


def test_all_of_the_load_goes_out():
    """Every number of the load report reaches the gateway under its own name."""
    load = LoadReport(*range(1, 1 + len(dataclasses.fields(LoadReport))))
    assert {field.name: value for field, value in load_of(load).ListFields()} == dataclasses.asdict(load)
