"""Who runs when: items that come late, deadlines, cancellation, priorities, refusals, failures."""

import pytest
import structlog

from tessera.errors import InvalidArgument
from tests.unit.worker.engine.fakes import PLACEHOLDER, FakeModel, Harness, greedy_tokens, item_name, make_item, place
from tests.unit.worker.engine.test_engine_steps import prompt_of, with_items

pytestmark = pytest.mark.usefixtures("scheduling")


def one_item(number=1, tokens=4, length=12, seed=0):
    item = make_item(number, tokens)
    placed = place(item, (2, tokens))
    return item, placed, with_items(prompt_of(length, seed), placed)


def test_items_may_come_after_the_submission():
    """A sequence waits for its items, asks for them once, and others are not held up by it."""
    item, placed, prompt = one_item()
    harness = Harness()
    harness.add("late", prompt, [placed])
    harness.add("text", prompt_of(5))
    for _ in range(9):
        harness.step()
    assert harness.ends["text", 0].finish_reason == "length"
    assert harness.needs == [("late", item.content_hash)]
    assert not harness.step().worked
    harness.stage(item)
    assert harness.run()["late", 0] == greedy_tokens(prompt, [(item, placed)])


def test_items_are_encoded_as_they_come():
    """What has come of a waiting sequence is encoded while the rest is on its way."""
    first, second = make_item(1), make_item(2)
    placed = [place(first, (0, 4)), place(second, (6, 4))]
    prompt = with_items(prompt_of(12), *placed)
    harness = Harness()
    harness.add("a", prompt, placed)
    harness.stage(second)
    harness.step()
    assert len(harness.model.encoded) == 1
    harness.stage(first)
    assert harness.run()["a", 0] == greedy_tokens(prompt, list(zip((first, second), placed, strict=True)))
    assert len(harness.model.encoded) == 2


def test_a_lost_item_is_asked_for_again():
    """An item that was said to be held, and was evicted since, is asked for; the sequence waits and then runs."""
    item, placed, prompt = one_item()
    harness = Harness(retain_encoded=False, enable_prefix_cache=False)
    harness.stage(item)
    harness.add("a", prompt, [placed])
    harness.run()
    assert harness.engine.has_item(item.content_hash)
    harness.clock.advance(100)
    harness.step()
    assert not harness.engine.has_item(item.content_hash)
    harness.add("b", prompt, [placed])
    harness.step()
    assert harness.needs == [("b", item.content_hash)]
    harness.stage(item)
    assert harness.run()["b", 0] == harness.tokens["a", 0]


def test_an_item_of_another_tenant_is_held_until_someone_asks():
    """An item encoded under one salt is said to be held, but not once a sequence of another salt needs the bytes."""
    item, placed, prompt = one_item()
    harness = Harness()
    harness.stage(item)
    harness.add("a", prompt, [placed], cache_salt=b"one")
    harness.run()
    harness.clock.advance(100)
    harness.step()
    assert harness.engine.has_item(item.content_hash)
    harness.add("b", prompt, [placed], cache_salt=b"two")
    harness.step()
    assert harness.needs == [("b", item.content_hash)]
    assert not harness.engine.has_item(item.content_hash)
    harness.stage(item)
    harness.run()
    assert harness.engine.has_item(item.content_hash)


def test_items_evicted_while_prefilling_are_asked_for_again():
    """A sequence whose second item was encoded for another, and is evicted before its chunk comes, asks and goes on."""
    shared, big = make_item(1, 4), make_item(2, 8)
    placed = [place(big, (0, 8)), place(shared, (20, 4))]
    prompt = with_items(prompt_of(30), *placed)
    harness = Harness(encoder_cache_bytes=8 * 32, max_batched_tokens=6, max_sequences=1, enable_prefix_cache=False)
    harness.stage(shared, big)
    harness.add("first", with_items(prompt_of(6), place(shared, (0, 4))), [place(shared, (0, 4))], max_tokens=1)
    harness.run()
    harness.clock.advance(100)
    harness.step()
    harness.stage(big)
    harness.add("a", prompt, placed)
    for _ in range(8):
        harness.step()
    assert harness.needs == [("a", shared.content_hash)]
    harness.stage(shared)
    assert harness.run()["a", 0] == greedy_tokens(prompt, [(big, placed[0]), (shared, placed[1])])


def test_a_small_encoder_cache_cuts_the_chunk():
    """With room for one item at a time, prompts of several advance from item to item."""
    items = [make_item(n, 6) for n in range(4)]
    placed = [place(item, (8 * n, 6)) for n, item in enumerate(items)]
    prompt = with_items(prompt_of(34), *placed)
    harness = Harness(encoder_cache_bytes=6 * 32, max_batched_tokens=64)
    harness.stage(*items)
    for name in ("a", "b", "c"):
        harness.add(name, prompt, placed)
    harness.run()
    expected = greedy_tokens(prompt, list(zip(items, placed, strict=True)))
    assert [harness.tokens[name, 0] for name in ("a", "b", "c")] == [expected] * 3


def test_sequences_that_hold_what_the_other_needs():
    """Two prompts that each hold an item and have no room for their next one: the later one makes way."""
    outers, inners, small = [make_item(n, 4) for n in (1, 2)], [make_item(n, 6) for n in (3, 4)], make_item(5, 3)
    harness = Harness(encoder_cache_bytes=11 * 32, max_batched_tokens=24, enable_prefix_cache=False)
    harness.stage(*outers, *inners, small)
    for name, outer in zip("xy", outers, strict=True):
        placed = place(outer, (0, 4))
        harness.add(name, with_items(prompt_of(5), placed), [placed], max_tokens=1)
        harness.run()
    holder = place(small, (0, 1), (30, 2))
    harness.add("c", with_items(prompt_of(34), holder), [holder])
    expected = {}
    for name, outer, inner in zip("ab", outers, inners, strict=True):
        placed = [place(outer, (0, 2), (20, 2)), place(inner, (4, 6))]
        prompt = with_items(prompt_of(24), *placed)
        harness.add(name, prompt, placed)
        expected[name] = greedy_tokens(prompt, [(outer, placed[0]), (inner, placed[1])])
    harness.run()
    assert {name: harness.tokens[name, 0] for name in "ab"} == expected
    assert harness.engine.scheduler.num_preemptions > 0


def test_a_small_item_does_not_overtake_a_big_one_for_ever():
    """Who came first and finds no room in the encoder cache is not starved by small items that would fit."""
    big, small = make_item(1, 8), [make_item(n, 2) for n in range(2, 8)]
    harness = Harness(encoder_cache_bytes=8 * 32, max_batched_tokens=16, max_sequences=8)
    harness.stage(big, *small)
    for name, item in (("s0", small[0]), ("big", big), *((f"s{n}", small[n]) for n in range(1, 6))):
        placed = place(item, (0, 8)) if item is big else place(item, (0, 1), (28, 1))
        harness.add(name, with_items(prompt_of(30), placed), [placed], max_tokens=1)
    harness.run()
    assert [name for name, _ in harness.ends][:2] == ["s0", "big"]


def test_deadlines_end_sequences_within_one_step():
    """A sequence past its deadline ends with DEADLINE_EXCEEDED in the next step, waiting or running, and frees all."""
    _item, placed, prompt = one_item()
    harness = Harness(max_sequences=1)
    harness.add("runs", prompt_of(20), deadline_s=5.0, max_tokens=40)
    harness.add("waits", prompt_of(10), deadline_s=5.0)
    harness.add("lacks", prompt, [placed], deadline_s=6.0)
    harness.step()
    assert harness.engine.next_deadline_s() == 5.0
    harness.clock.now_s = 5.0
    harness.step()
    assert {key[0]: end.failure.reason for key, end in harness.ends.items()} == {
        "runs": "DEADLINE_EXCEEDED",
        "waits": "DEADLINE_EXCEEDED",
    }
    assert harness.ends["runs", 0].failure.code == 4
    assert harness.engine.load().used_blocks == 0
    harness.clock.now_s = 7.0
    harness.run()
    assert harness.ends["lacks", 0].failure.reason == "DEADLINE_EXCEEDED"
    assert harness.engine.next_deadline_s() is None


def test_cancel_frees_blocks_and_pins():
    """A cancelled request holds nothing after the next step, in the middle of an item's prefill too."""
    item, placed, prompt = one_item(tokens=8, length=20)
    harness = Harness(max_batched_tokens=8)
    harness.stage(item)
    harness.add("a", prompt, [placed], choices=(0, 1))
    harness.step()
    assert harness.engine.load().pinned_items == 1
    harness.engine.cancel(0, "a", 1)
    assert not harness.engine.is_idle
    harness.engine.cancel(0, "a", 0)
    harness.run()
    assert [harness.ends["a", n].failure.reason for n in (0, 1)] == ["CANCELLED"] * 2


def test_losing_a_gateway_drops_its_requests():
    """All requests of a gateway that has gone end without news; those of others go on."""
    harness = Harness()
    harness.add("a", prompt_of(9), owner=1)
    harness.add("a", prompt_of(9), owner=2)
    harness.step()
    harness.engine.drop_owner(1)
    updates = harness.step().updates
    assert {update.owner for update in updates} == {2}
    harness.run()


def test_priorities_and_arrival():
    """Higher priorities run first, even where someone must make way; within one, who came first."""
    harness = Harness(max_sequences=1)
    for name, priority in (("low", -1), ("first", 0), ("second", 0), ("high", 5)):
        harness.add(name, prompt_of(9, seed=len(name)), priority=priority, max_tokens=3)
        if name == "low":
            harness.step()
    harness.run()
    assert [name for name, _ in harness.ends] == ["high", "first", "second", "low"]
    assert harness.tokens["low", 0] == greedy_tokens(prompt_of(9, seed=3), num_tokens=3)


def test_refusals():
    """What can never fit is refused at the door, with the field: context, item, an id in use."""
    harness = Harness()
    harness.add("a", prompt_of(10))
    big = make_item(1, 70)
    cases = [
        ("b", prompt_of(60), [], 5, "CONTEXT_EXCEEDED", "sampling.max_tokens"),
        ("b", prompt_of(64), [], 1, "PROMPT_TOO_LONG", "prompt_token_ids"),
        ("b", prompt_of(10), [place(big, (0, 70))], 1, "ITEM_TOO_LARGE", "items[0]"),
        ("a", prompt_of(10), [], 1, "REQUEST_ID_IN_USE", "request_id"),
    ]
    for name, prompt, items, max_tokens, reason, field in cases:
        with pytest.raises(InvalidArgument) as caught:
            harness.add(name, prompt, items, max_tokens=max_tokens)
        assert (caught.value.reason, caught.value.field) == (reason, field)
    harness.run()


def test_a_failing_forward_ends_its_own_sequence():
    """An exception in a forward ends the sequence that cannot run with INTERNAL; its neighbours answer as ever."""
    model = FakeModel()
    model.broken_tokens = {PLACEHOLDER - 1}
    harness = Harness(model)
    harness.add("good", prompt_of(10))
    harness.add("bad", [PLACEHOLDER - 1, *prompt_of(5)], choices=(0, 1))
    with structlog.testing.capture_logs() as logs:
        harness.run()
    assert harness.tokens["good", 0] == greedy_tokens(prompt_of(10))
    assert [harness.ends["bad", n].failure.reason for n in (0, 1)] == ["INTERNAL"] * 2
    assert "broken" not in harness.ends["bad", 0].failure.message
    assert [entry["event"] for entry in logs] == ["step_failed", "sequence_failed"]


def test_a_failing_encode_ends_its_readers():
    """An exception in an encode ends the sequences that read the item, and no others."""
    model = FakeModel()
    good, bad = one_item(1), one_item(2, seed=1)
    model.broken_items = {item_name(bad[0].array)}
    harness = Harness(model)
    harness.stage(good[0], bad[0])
    harness.add("good", good[2], [good[1]])
    harness.add("bad", bad[2], [bad[1]])
    with structlog.testing.capture_logs():
        harness.run()
    assert harness.tokens["good", 0] == greedy_tokens(good[2], [good[:2]])
    assert harness.ends["bad", 0].failure.reason == "INTERNAL"
