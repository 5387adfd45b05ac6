"""The comments of the protos: every field says what it is, every RPC which errors it gives.

Next: tests/rules/test_errors.py
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from tessera.errors import ERRORS

PROTOS = Path(__file__).parents[2] / "protos"
FILES = sorted(path.relative_to(PROTOS).as_posix() for path in (PROTOS / "tessera/v1").glob("*.proto"))
STATUSES = {error.code.name for error in ERRORS}
# Field numbers inside descriptor.proto, which paths of source info are made of.
MESSAGES, ENUMS, SERVICES, FIELDS, NESTED, NESTED_ENUMS, ONEOFS = 4, 5, 6, 2, 3, 4, 8


@cache
def descriptors() -> dict[str, FileDescriptorProto]:
    """The parsed files, with source info."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.binpb"
        # grpc_tools brings google's own protos.
        include = Path(protoc.__file__).parent / "_proto"
        code = protoc.main(
            ["protoc", f"-I{PROTOS}", f"-I{include}", "--include_source_info", f"--descriptor_set_out={out}", *FILES]
        )
        assert code == 0
        parsed = FileDescriptorSet.FromString(out.read_bytes())
    return {file.name: file for file in parsed.file}


def comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """Comment of each element, by its path."""
    return {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}


def elements(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, path) of all that a reader may want explained."""
    for i, service in enumerate(file.service):
        yield service.name, (SERVICES, i)
        for j, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (SERVICES, i, 2, j)
    for i, enum in enumerate(file.enum_type):
        yield from _enum(enum, enum.name, (ENUMS, i))
    for i, message in enumerate(file.message_type):
        yield from _message(message, message.name, (MESSAGES, i))


def _enum(enum: Any, name: str, path: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name, path
    for i, value in enumerate(enum.value):
        yield value.name, (*path, 2, i)


def _message(message: Any, name: str, path: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name, path
    for i, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*path, FIELDS, i)
    optional = {field.oneof_index for field in message.field if field.proto3_optional}
    for i, oneof in enumerate(message.oneof_decl):
        if i not in optional:
            yield f"{name}.{oneof.name}", (*path, ONEOFS, i)
    for i, enum in enumerate(message.enum_type):
        yield from _enum(enum, f"{name}.{enum.name}", (*path, NESTED_ENUMS, i))
    for i, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(nested, f"{name}.{nested.name}", (*path, NESTED, i))


def sentences(file: str) -> Sequence[tuple[str, str]]:
    """(name, comment) of every element of a file."""
    found = comments(descriptors()[file])
    return [(name, found.get(path, "")) for name, path in elements(descriptors()[file])]


@pytest.mark.parametrize("file", FILES)
def test_everything_has_a_comment(file: str) -> None:
    """Every service, method, message, field, oneof, enum and value says in a sentence what it is."""
    silent = [name for name, comment in sentences(file) if not comment.endswith((".", ")"))]
    assert not silent, "\n".join(silent)


@pytest.mark.parametrize("file", FILES)
def test_every_method_lists_its_errors(file: str) -> None:
    """A method's comment names statuses that exist, or says that it has none of its own."""
    methods = {method for name, method in _methods(file)}
    silent = []
    for name, comment in sentences(file):
        if name in methods and not (_statuses(comment) or re.search(r"Errors as \w+|[Nn]o errors of its own", comment)):
            silent.append(name)
    assert not silent, "\n".join(silent)


def test_the_services_name_every_status_that_a_client_may_see() -> None:
    """What the error table can give, the client's contract speaks of."""
    file = "tessera/v1/inference_service.proto"
    named = set().union(*(_statuses(comment) for _, comment in sentences(file)))
    assert STATUSES - named == set()


@pytest.mark.parametrize("file", FILES)
def test_no_status_is_made_up(file: str) -> None:
    """A capitalised word that looks like a status of gRPC is one of the error table's."""
    grpc_names = {"UNKNOWN", "ABORTED", "DATA_LOSS", "OUT_OF_RANGE", "ALREADY_EXISTS"}
    said = {word for _, comment in sentences(file) for word in re.findall(r"\b[A-Z_]{5,}\b", comment)}
    assert said & grpc_names == set()


def _methods(file: str) -> list[tuple[str, str]]:
    return [(s.name, f"{s.name}.{m.name}") for s in descriptors()[file].service for m in s.method]


def _statuses(comment: str) -> set[str]:
    return STATUSES & set(re.findall(r"\b[A-Z_]+\b", comment))


def _clear_json_names(messages: Sequence[Any]) -> None:
    # protoc fills them in for descriptor sets, not for stubs.
    for message in messages:
        for field in message.field:
            field.ClearField("json_name")
        _clear_json_names(message.nested_type)


def test_generated_stubs_are_those_of_the_protos() -> None:
    """The stubs beside the protos were made from them as they are."""
    from tessera.v1 import inference_service_pb2, types_pb2, worker_service_pb2

    for module in (types_pb2, inference_service_pb2, worker_service_pb2):
        fresh = FileDescriptorProto()
        fresh.CopyFrom(descriptors()[module.DESCRIPTOR.name])
        fresh.ClearField("source_code_info")
        _clear_json_names(fresh.message_type)
        held = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(held)
        assert held == fresh, f"run `make protos`: {module.DESCRIPTOR.name} has changed"
