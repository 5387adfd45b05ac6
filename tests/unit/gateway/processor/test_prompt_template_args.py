"""Template arguments: what a Struct loses is put right."""

import pytest
from google.protobuf import json_format, struct_pb2

from gateway.processor.template_args import template_arguments
from tessera.errors import InvalidArgument


def test_whole_numbers_are_ints() -> None:
    """A Struct's doubles print as a template's author expects: 3, not 3.0."""
    made = template_arguments({"a": 3.0, "b": 2.5, "c": [1.0, {"d": -4.0}], "e": True, "f": 1e300, "g": None})
    assert made == {"a": 3, "b": 2.5, "c": [1, {"d": -4}], "e": True, "f": 1e300, "g": None}
    assert [type(made[k]) for k in "abef"] == [int, float, bool, float]


def test_key_order_does_not_depend_on_the_struct() -> None:
    """A Struct has no order of keys; the template sees one that is always the same, schemas as usually written."""
    function = {"parameters": {"required": [], "properties": {"b": {}, "a": {}}, "type": "object"}, "name": "f"}
    message = struct_pb2.Struct()
    message.update({"tools": [{"function": function, "type": "function"}], "zeta": 1, "alpha": 2})
    made = template_arguments(json_format.MessageToDict(message))
    assert list(made) == ["alpha", "tools", "zeta"]
    assert list(made["tools"][0]) == ["type", "function"]
    assert list(made["tools"][0]["function"]) == ["name", "parameters"]
    assert list(made["tools"][0]["function"]["parameters"]) == ["type", "properties", "required"]
    assert list(made["tools"][0]["function"]["parameters"]["properties"]) == ["a", "b"]


def test_tools_as_json_text_keep_their_order() -> None:
    """Who needs another order of keys gives the tools as text."""
    made = template_arguments({"tools": '[{"z": 1.0, "a": 2}]'})
    assert list(made["tools"][0].items()) == [("z", 1.0), ("a", 2)]


@pytest.mark.parametrize(
    ("arguments", "reason", "field"),
    [
        ({"messages": []}, "TEMPLATE_ARGUMENT_RESERVED", "template_args.messages"),
        ({"add_generation_prompt": True}, "TEMPLATE_ARGUMENT_RESERVED", "template_args.add_generation_prompt"),
        ({"tools": "[{"}, "TEMPLATE_ARGUMENT_INVALID", "template_args.tools"),
        ({"tools": "[" * 100_000}, "TEMPLATE_ARGUMENT_INVALID", "template_args.tools"),
        ({"tools": {"a": 1}}, "TEMPLATE_ARGUMENT_INVALID", "template_args.tools"),
        ({"documents": ["a"]}, "TEMPLATE_ARGUMENT_INVALID", "template_args.documents"),
        ({"enable_thinking": "false"}, "TEMPLATE_ARGUMENT_INVALID", "template_args.enable_thinking"),
        ({"enable_thinking": None}, "TEMPLATE_ARGUMENT_INVALID", "template_args.enable_thinking"),
        ({"add_vision_id": 1.0}, "TEMPLATE_ARGUMENT_INVALID", "template_args.add_vision_id"),
    ],
)
def test_bad_arguments_name_their_field(arguments: dict, reason: str, field: str) -> None:
    """Reserved names and malformed tools are refused with their path."""
    with pytest.raises(InvalidArgument) as caught:
        template_arguments(arguments)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_depth_is_bounded() -> None:
    """Nesting without end is refused."""
    deep: list = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(InvalidArgument) as caught:
        template_arguments({"a": deep})
    assert (caught.value.reason, caught.value.field) == ("NESTED_TOO_DEEPLY", "template_args.a")


def test_none_is_no_tools() -> None:
    """A null list is none at all."""
    assert template_arguments({"tools": None}) == {"tools": None}
