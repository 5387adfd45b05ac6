"""Tools, thinking and system prompts over gRPC, rendered as transformers renders the checkpoint's own template."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tessera.v1 import inference_service_pb2 as pb
from tests.e2e.harness import Pair
from tests.parity.cases import SMALL, Case, Turn, chat_request, user
from tests.parity.interns1_pro_oracle import intern_tokenizer
from tests.parity.oracle import Oracle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
OracleOf, PairOf = Callable[[str], Oracle], Callable[..., Pair]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_shapes",
            "description": 'Finds <shapes> & colours, "quoted" or not: ü, 形.',
            "parameters": {
                "type": "object",
                "properties": {"n": {"type": "integer"}, "at": {"enum": ["left", 2, 0.5]}},
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "parameters": {}}},
]
TURNS = (
    Turn("system", ("  Be brief.\n",)),
    user(" Look: ", SMALL, " what is it? "),
    Turn("assistant", ("<think>\nhm\n</think>\n\na red circle.",)),
    Turn("tool", ('{"n": 1}',)),
    user("And now?\n"),
)
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "thinking": {"enable_thinking": True},
    "not_thinking": {"enable_thinking": False},
    "tools": {"tools": TOOLS},
    "tools_and_not_thinking": {"tools": TOOLS, "enable_thinking": False},
}


@pytest.mark.parametrize("going_on", [True, False], ids=["answer", "no_answer"])
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("family", ["qwen3_5", "glm4v", "interns1_pro"])
def test_rendered_as_transformers(family: str, name: str, going_on: bool, oracle: OracleOf, pair_of: PairOf) -> None:
    """The prompt is transformers', to the character, whatever is switched; so are its ids."""
    renderer = intern_tokenizer() if family == "interns1_pro" else oracle(family).processor
    tokenizer = renderer if family == "interns1_pro" else renderer.tokenizer
    content = {turn: _content(turn) for turn in TURNS}
    messages = [{"role": turn.role, "content": content[turn]} for turn in TURNS]
    expected = renderer.apply_chat_template(messages, tokenize=False, add_generation_prompt=going_on, **SWITCHES[name])
    request = chat_request(Case("switched", TURNS))
    request.add_generation_prompt = going_on
    request.template_args.update({key: json.dumps(v) if key == "tools" else v for key, v in SWITCHES[name].items()})
    prepared = pair_of(family).stub.Prepare(pb.PrepareRequest(chat=request))
    assert prepared.rendered_prompt == expected
    [span] = prepared.items[0].ranges
    short = [i for at, i in enumerate(prepared.token_ids) if not span.offset < at < span.offset + span.length]
    assert short == tokenizer(expected, add_special_tokens=False)["input_ids"]


def _content(turn: Turn) -> Any:
    if all(isinstance(part, str) for part in turn.parts):
        return "".join(map(str, turn.parts))
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.parts]
