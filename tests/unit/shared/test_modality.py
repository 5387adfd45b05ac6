"""Tests of protos/tessera/modality.py."""

import pytest

from tessera.modality import Modality, PayloadKind
from tessera.v1 import types_pb2 as pb


@pytest.mark.parametrize("modality", list(Modality))
def test_a_modality_is_its_name(modality: Modality) -> None:
    """A modality equals and hashes as its lower-case name."""
    assert modality == modality.name.lower()
    assert hash(modality) == hash(modality.name.lower())
    assert {modality.name.lower(): 1}[modality] == 1
    assert str(modality) == modality.name.lower()


@pytest.mark.parametrize("kind", [Modality, PayloadKind])
def test_every_protobuf_value_but_unspecified_has_a_name(kind: type[Modality] | type[PayloadKind]) -> None:
    """The Python names and the protobuf values cover each other."""
    values = set((pb.Modality if kind is Modality else pb.PayloadKind).values()) - {0}
    assert {member.to_proto() for member in kind} == values
    assert [kind.from_proto(member.to_proto()) for member in kind] == list(kind)


@pytest.mark.parametrize("value", [0, 99, -1])
@pytest.mark.parametrize("kind", [Modality, PayloadKind])
def test_unspecified_and_unknown_values_have_none(kind: type[Modality] | type[PayloadKind], value: int) -> None:
    """A value that names nothing is an error, never a default."""
    with pytest.raises(ValueError, match=r"Modality|PayloadKind"):
        kind.from_proto(value)
