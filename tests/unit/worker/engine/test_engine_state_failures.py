"""A step that fails may have moved states on: its sequences run again from states that are right, one by one."""

import pytest
import structlog

from tests.unit.worker.engine.fakes import make_item, place
from tests.unit.worker.engine.stateful import StatefulHarness, StatefulModel, stateful_tokens, text
from tests.unit.worker.engine.test_engine_steps import with_items

POISON = 200

pytestmark = pytest.mark.usefixtures("scheduling")


def run_quietly(harness):
    """Run to the end; return what was logged."""
    with structlog.testing.capture_logs() as logs:
        harness.run()
    return [entry["event"] for entry in logs]


@pytest.mark.parametrize(
    "overrides", [{}, {"state_checkpoints": 0}, {"enable_prefix_cache": False}, {"num_blocks": 16}]
)
@pytest.mark.parametrize("steps", [0, 1, 5, 9])
def test_a_step_that_fails_once_harms_nobody(overrides, steps):
    """After a failure that does not come back every sequence answers as if nothing had been, forks too."""
    harness = StatefulHarness(**overrides)
    sampling = {"temperature": 1.0, "seed": 7}
    expected = {}
    for number in range(3):
        harness.add(f"r{number}", text(5 + 4 * number, seed=number), max_tokens=12)
        expected[f"r{number}", 0] = stateful_tokens(text(5 + 4 * number, seed=number), num_tokens=12)
    harness.add("all", text(10, seed=4), choices=(0, 1), sampling=sampling, max_tokens=5)
    alone = StatefulHarness()
    alone.add("all", text(10, seed=4), choices=(0, 1), sampling=sampling, max_tokens=5)
    expected |= alone.run()
    for _ in range(steps):
        harness.step()
    harness.model.glitch = True
    assert run_quietly(harness) == ["step_failed"]
    assert harness.tokens == expected


def test_the_guilty_one_alone_fails():
    """Of a step that fails again and again the sequence to blame ends with INTERNAL, its choices with it."""
    model = StatefulModel()
    model.broken_tokens = {POISON}
    harness = StatefulHarness(model)
    for name in ("first", "second"):
        harness.add(name, text(10, seed=len(name)))
    harness.add("bad", [*text(5), POISON], choices=(0, 1))
    events = run_quietly(harness)
    assert events == ["step_failed", "step_failed", "sequence_failed"]
    for name in ("first", "second"):
        assert harness.tokens[name, 0] == stateful_tokens(text(10, seed=len(name)))
    for choice in (0, 1):
        failure = harness.ends["bad", choice].failure
        assert (failure.reason, "broken" in failure.message) == ("INTERNAL", False)


def test_suspects_run_alone_until_they_are_past_it():
    """After a failed step its sequences run one at a time, each until it has passed where it was, and then together."""
    harness = StatefulHarness(max_batched_tokens=16)
    for number in range(3):
        harness.add(f"r{number}", text(4, seed=number), max_tokens=4)
    harness.step()
    harness.model.glitch = True
    with structlog.testing.capture_logs():
        assert harness.step().worked
    for _ in range(3):
        assert harness.has_suspects
        harness.step()
    assert not harness.has_suspects
    harness.run()
    assert harness.model.batches[:6] == [(4, 4, 4), (1,), (1,), (1,), (1, 1, 1), (1, 1, 1)]


def test_a_suspect_that_begins_anew_runs_alone_in_chunks():
    """A suspect without a checkpoint runs alone, chunk by chunk, until it is where it was."""
    harness = StatefulHarness(max_batched_tokens=16, state_checkpoints=0)
    harness.add("a", text(20), max_tokens=4)
    harness.add("b", text(2, seed=1), max_tokens=8)
    for _ in range(3):
        harness.step()
    harness.model.glitch = True
    run_quietly(harness)
    assert harness.model.batches[:7] == [(16,), (4, 2), (1, 1), (16,), (6,), (4,), (1, 1)]
    assert harness.tokens["a", 0] == stateful_tokens(text(20), num_tokens=4)


def test_nobody_overtakes_a_suspect_that_needs_room():
    """While a suspect waits for blocks that others hold, none that came later is let in before it."""
    item = make_item(1, 4)
    placed = place(item, (2, 4))
    prompt = with_items(text(40), placed)
    harness = StatefulHarness(num_blocks=16, retain_encoded=False, enable_prefix_cache=False, staged_ttl_s=1.0)
    harness.stage(item)
    harness.add("suspect", prompt, [placed])
    harness.step()
    harness.clock.advance(10)
    harness.model.glitch = True
    with structlog.testing.capture_logs():
        harness.step()
    harness.add("first", text(28), max_tokens=20)
    harness.step()
    harness.stage(item)
    harness.add("late", text(3), max_tokens=1)
    harness.run()
    assert [name for name, _ in harness.ends] == ["first", "late", "suspect"]
    assert harness.model.batches[-9:-6] == [(32,), (8,), (1, 3)]


def test_a_suspect_comes_back_from_its_checkpoint():
    """What is computed again begins at the newest block boundary, not at the first token."""
    harness = StatefulHarness()
    harness.add("a", text(21), max_tokens=8)
    for _ in range(6):
        harness.step()
    harness.model.glitch = True
    run_quietly(harness)
    assert harness.tokens["a", 0] == stateful_tokens(text(21), num_tokens=8)
    # 21 and 4 tokens computed; the 26th failed, and runs again with the one after the boundary at 24.
    assert harness.model.batches[6:] == [(2,), (1,), (1,)]


def test_a_suspect_whose_item_has_gone_waits_for_it():
    """A suspect that needs bytes again asks for them; the others go on meanwhile, and new ones too."""
    item = make_item(1, 4)
    placed = place(item, (2, 4))
    prompt = with_items(text(16), placed)
    harness = StatefulHarness(max_batched_tokens=8, retain_encoded=False, enable_prefix_cache=False, staged_ttl_s=1.0)
    harness.stage(item)
    harness.add("item", prompt, [placed])
    harness.add("text", text(5))
    harness.step()
    harness.clock.advance(10)
    harness.model.glitch = True
    with structlog.testing.capture_logs():
        harness.step()
    harness.add("new", text(6, seed=1))
    for _ in range(20):
        harness.step()
    assert harness.tokens["text", 0] == stateful_tokens(text(5))
    assert harness.tokens["new", 0] == stateful_tokens(text(6, seed=1))
    assert ("item", 0) not in harness.ends
    assert harness.needs == [("item", item.content_hash)]
    assert not harness.step().worked
    harness.stage(item)
    assert harness.run()["item", 0] == stateful_tokens(prompt, [(item, placed)])


def test_a_suspect_may_be_cancelled():
    """Cancelling or losing a suspect, before it has run again, frees what it held and lets the others go on."""
    harness = StatefulHarness()
    for name in ("a", "b", "c"):
        harness.add(name, text(9, seed=ord(name)))
    harness.step()
    harness.model.glitch = True
    with structlog.testing.capture_logs():
        harness.step()
    harness.engine.cancel(0, "a", 0)
    harness.run()
    assert harness.ends["a", 0].failure.reason == "CANCELLED"
    for name in ("b", "c"):
        assert harness.tokens[name, 0] == stateful_tokens(text(9, seed=ord(name)))


def test_a_failing_draw_counts_as_a_failing_step():
    """Where the arithmetic was right and the draw fails, the sequence is to blame that fails alone."""
    harness = StatefulHarness()
    harness.add("good", text(9))
    harness.add("bad", text(9, seed=1), sampling={"logit_bias": ((10_000, 1.0),)})
    events = run_quietly(harness)
    assert events == ["step_failed", "step_failed", "sequence_failed"]
    assert harness.tokens["good", 0] == stateful_tokens(text(9))
    assert harness.ends["bad", 0].failure.reason == "INTERNAL"


def test_all_fail_where_the_model_is_gone():
    """Where every step fails each sequence ends, after its second try, and nothing is held."""
    model = StatefulModel()
    model.broken_tokens = set(range(100))
    harness = StatefulHarness(model)
    for number in range(4):
        harness.add(f"r{number}", text(9, seed=number))
    run_quietly(harness)
    assert {end.failure.reason for end in harness.ends.values()} == {"INTERNAL"}
    assert len(harness.ends) == 4
