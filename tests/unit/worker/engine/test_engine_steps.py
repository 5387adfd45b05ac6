"""What the engine answers does not depend on how it got there: chunks, caches, preemption, neighbours, forks."""

import random

import pytest

from tests.unit.worker.engine.fakes import EOS, PLACEHOLDER, FakeModel, Harness, greedy_tokens, make_item, place

pytestmark = pytest.mark.usefixtures("scheduling")


def prompt_of(length, seed=0):
    return [random.Random(seed).randrange(80) for _ in range(length)]


def with_items(prompt, *placed):
    prompt = list(prompt)
    for item in placed:
        for span in item.ranges:
            prompt[span.offset : span.end] = [PLACEHOLDER] * span.length
    return prompt


def test_greedy_text():
    """A prompt is answered token by token with what the model gives for its whole context."""
    harness = Harness()
    prompt = prompt_of(11)
    harness.add("a", prompt)
    assert harness.run()["a", 0] == greedy_tokens(prompt)
    assert harness.ends["a", 0].finish_reason == "length"


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8, 32])
@pytest.mark.parametrize("retain", [True, False])
def test_chunks_cut_inside_items(budget, retain):
    """Every token budget gives the same answer, also where chunks begin and end inside an item; it is encoded once."""
    first, second = make_item(1, 6), make_item(2, 5)
    placed = [place(first, (2, 6)), place(second, (9, 2), (13, 3))]
    prompt = with_items(prompt_of(20), *placed)
    harness = Harness(max_batched_tokens=budget, max_sequences=1, retain_encoded=retain)
    harness.stage(first, second)
    harness.add("a", prompt, placed)
    assert harness.run()["a", 0] == greedy_tokens(prompt, [(first, placed[0]), (second, placed[1])])
    assert len(harness.model.encoded) == 2


def test_positions_of_items_are_kept_while_decoding():
    """Decoded tokens go on from the position that the model gave, not from their index."""
    item = make_item(3, 4)
    placed = place(item, (0, 4))
    prompt = with_items(prompt_of(4), placed)
    harness = Harness()
    harness.stage(item)
    harness.add("a", prompt, [placed], max_tokens=12)
    assert harness.run()["a", 0] == greedy_tokens(prompt, [(item, placed)], 12)


def test_neighbours_do_not_matter():
    """Sixteen requests at once, eight seats, 32 tokens a step: each answers as it does alone."""
    harness = Harness()
    expected = {}
    for number in range(16):
        item = make_item(number % 5, 3 + number % 3)
        placed = place(item, (number % 4, item.grid_thw[2] // 2))
        prompt = with_items(prompt_of(9 + number, number), placed)
        harness.stage(item)
        harness.add(f"r{number}", prompt, [placed], max_tokens=4 + number % 7)
        expected[f"r{number}", 0] = greedy_tokens(prompt, [(item, placed)], 4 + number % 7)
    assert harness.run() == expected
    assert max(len(batch) for batch in harness.model.batches) == 8


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_preemption_is_invisible(prefix_cache):
    """With blocks for the longest request plus two, sequences are preempted and answer the same."""
    harness = Harness(num_blocks=18, enable_prefix_cache=prefix_cache)
    expected = {}
    for number in range(6):
        item = make_item(number, 4)
        placed = place(item, (3, 4))
        prompt = with_items(prompt_of(20, number), placed)
        harness.stage(item)
        harness.add(f"r{number}", prompt, [placed], max_tokens=30)
        expected[f"r{number}", 0] = greedy_tokens(prompt, [(item, placed)], 30)
    assert harness.run() == expected
    assert harness.engine.scheduler.num_preemptions > 0


def test_prefix_cache_hits_full_blocks_and_recomputes_one_token():
    """The second of two equal prompts computes what is past the last full block, and at least one token."""
    harness = Harness()
    prompt = prompt_of(12)
    for name in ("cold", "warm"):
        harness.add(name, prompt)
        harness.run()
    assert harness.tokens["warm", 0] == harness.tokens["cold", 0] == greedy_tokens(prompt)
    assert harness.cached == {"warm": 8}
    assert harness.model.batches[8] == (4,)


def test_own_blocks_are_no_cache_hit():
    """What a preempted sequence finds of its own is not reported as cached."""
    harness = Harness(max_sequences=1, max_batched_tokens=8)
    harness.add("a", prompt_of(20))
    harness.step()
    harness.add("b", prompt_of(4, seed=1), priority=1)
    harness.run()
    assert harness.engine.scheduler.num_preemptions == 1
    assert harness.cached == {}


def test_prefix_cache_can_be_off():
    """Without the flag nothing is kept."""
    harness = Harness(enable_prefix_cache=False)
    for name in ("a", "b"):
        harness.add(name, prompt_of(12))
        harness.run()
    assert harness.cached == {}
    assert harness.engine.load().cached_blocks == 0


def test_prefixes_of_different_items_differ():
    """Equal ids with another picture, or the same picture elsewhere, share nothing past the first difference."""
    items = [make_item(1, 4), make_item(2, 4)]
    harness = Harness()
    for name, item in zip(("a", "b"), items, strict=True):
        placed = place(item, (4, 4))
        prompt = with_items(prompt_of(16), placed)
        harness.stage(item)
        harness.add(name, prompt, [placed])
        harness.run()
        assert harness.tokens[name, 0] == greedy_tokens(prompt, [(item, placed)])
    assert harness.cached == {"b": 4}


@pytest.mark.parametrize(
    ("first", "second", "hit"),
    [
        ([(0, 8)], [(0, 4), (8, 4)], 0),
        ([(0, 2), (8, 6)], [(2, 2), (8, 6)], 0),
        ([(0, 2), (4, 6)], [(0, 3), (4, 5)], 0),
        ([(4, 8)], [(6, 8)], 4),
    ],
)
def test_same_ids_and_item_elsewhere_do_not_hit(first, second, hit):
    """Placeholder ids outside ranges are text: where an item's rows stand is part of a block's key."""
    item = make_item(1, 8)
    harness = Harness()
    harness.stage(item)
    prompt = [PLACEHOLDER] * 14 + prompt_of(3)
    for name, spans in (("a", first), ("b", second)):
        placed = place(item, *spans)
        harness.add(name, prompt, [placed])
        harness.run()
        assert harness.tokens[name, 0] == greedy_tokens(prompt, [(item, placed)])
    assert harness.cached.get("b", 0) == hit


def test_salts_do_not_share():
    """Requests of different salts share neither prefixes nor encoded items; equal ones do."""
    item = make_item(1, 4)
    placed = place(item, (0, 4))
    prompt = with_items(prompt_of(12), placed)
    harness = Harness()
    harness.stage(item)
    for name, salt in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        harness.add(name, prompt, [placed], cache_salt=salt)
        harness.run()
    assert harness.cached == {"c": 8}
    assert len(harness.model.encoded) == 2


def test_prefix_hit_inside_an_item():
    """A cached prefix that ends inside an item leaves the rest of its rows to be read from the encoder cache."""
    item = make_item(1, 6)
    placed = place(item, (2, 6))
    head = with_items(prompt_of(9), placed)
    harness = Harness()
    harness.stage(item)
    harness.add("a", [*head[:7], PLACEHOLDER, 1], [placed])
    harness.run()
    harness.add("b", head[:8] + [2] * 4, [placed])
    harness.run()
    assert harness.tokens["b", 0] == greedy_tokens(head[:8] + [2] * 4, [(item, placed)])


def test_cached_placeholders_need_no_bytes():
    """A prompt whose items lie wholly in the cached prefix runs although their bytes have gone."""
    item = make_item(1, 4)
    placed = place(item, (0, 4))
    prompt = with_items(prompt_of(12), placed)
    harness = Harness(retain_encoded=False)
    harness.stage(item)
    harness.add("a", prompt, [placed])
    harness.run()
    harness.clock.now_s = 1000.0
    harness.step()
    assert harness.engine.load().staged_bytes == 0
    harness.add("b", prompt, [placed])
    harness.run()
    assert harness.tokens["b", 0] == harness.tokens["a", 0]
    assert harness.needs == []


@pytest.mark.parametrize("length", [8, 9, 11])
@pytest.mark.parametrize("num_blocks", [18, 64])
def test_choices_fork_from_one_prefill(length, num_blocks):
    """Several choices run the prompt once, share its full blocks, copy the last, and each equals itself alone."""
    sampling = {"temperature": 1.0, "seed": 7}
    prompt = prompt_of(length)
    harness = Harness(num_blocks=num_blocks)
    harness.add("all", prompt, max_tokens=20, choices=(0, 1, 2, 3), sampling=sampling)
    harness.run()
    assert sum(map(sum, harness.model.batches)) <= length + 4 * 20 or num_blocks == 18
    assert harness.model.batches[0] == (length,)
    answers = [tuple(harness.tokens["all", choice]) for choice in range(4)]
    assert len(set(answers)) == 4
    for choice in range(4):
        alone = Harness()
        alone.add("one", prompt, max_tokens=20, choices=(choice,), sampling=sampling)
        assert tuple(alone.run()["one", choice]) == answers[choice]


def test_more_choices_than_seats():
    """Forks that find no seat wait, and answer the same."""
    sampling = {"temperature": 1.0, "seed": 7}
    answers = []
    for seats in (8, 2):
        harness = Harness(max_sequences=seats)
        harness.add("a", prompt_of(10), choices=(0, 1, 2, 3, 4), sampling=sampling)
        answers.append(harness.run())
    assert answers[0] == answers[1]


def test_choices_end_one_by_one():
    """Each choice has its own end; cancelling the one that the others wait for does not hurt them."""
    sampling = {"temperature": 1.0, "seed": 7}
    whole = Harness()
    whole.add("a", prompt_of(30), choices=(0, 1, 2), sampling=sampling)
    whole.run()
    harness = Harness(max_batched_tokens=8)
    harness.add("a", prompt_of(30), choices=(0, 1, 2), sampling=sampling)
    harness.step()
    harness.engine.cancel(0, "a", 0, choice=0)
    harness.run()
    assert harness.ends["a", 0].finish_reason == "cancelled"
    assert [harness.tokens["a", n] for n in (1, 2)] == [whole.tokens["a", n] for n in (1, 2)]


def test_emitted_tokens_are_continued_and_never_repeated():
    """A request that comes with tokens already emitted goes on after them as if it had never moved."""
    sampling = {"temperature": 0.8, "seed": 11, "frequency_penalty": 0.5, "repetition_penalty": 1.2}
    prompt = prompt_of(10)
    whole = Harness()
    whole.add("a", prompt, max_tokens=12, choices=(0, 1), sampling=sampling)
    whole.run()
    moved = Harness()
    emitted = (tuple(whole.tokens["a", 0][:5]), tuple(whole.tokens["a", 1][:3]))
    moved.add("a", prompt, max_tokens=12, choices=(0, 1), sampling=sampling, emitted=emitted, epoch=1)
    moved.run()
    assert moved.tokens["a", 0] == whole.tokens["a", 0][5:]
    assert moved.tokens["a", 1] == whole.tokens["a", 1][3:]
    assert moved.ends["a", 0].epoch == 1


def test_emitted_tokens_that_are_all():
    """A request whose emitted tokens are already at an end gets its finish and no token."""
    harness = Harness()
    harness.add("a", prompt_of(10), max_tokens=3, emitted=((1, 2, 3),))
    harness.run()
    assert harness.tokens["a", 0] == []
    assert harness.ends["a", 0].finish_reason == "length"


def test_end_of_sequence_stops_and_is_returned():
    """An end-of-sequence token ends the sequence with "stop", is returned, and is named."""
    prompt = prompt_of(10)
    tokens = greedy_tokens(prompt, num_tokens=8)
    harness = Harness(FakeModel(eos_token_ids=(tokens[3], EOS)))
    harness.add("a", prompt)
    harness.add("b", prompt, sampling={"ignore_eos": True})
    harness.run()
    assert harness.tokens["a", 0] == tokens[: tokens.index(tokens[3]) + 1]
    assert harness.ends["a", 0].finish_reason == "stop"
    assert harness.ends["a", 0].matched_stop_token_id == tokens[3]
    assert harness.tokens["b", 0] == tokens
    assert harness.ends["b", 0].matched_stop_token_id is None


def test_stop_token_ids():
    """A stop token of the request ends it, with ignore_eos too."""
    prompt = prompt_of(10)
    tokens = greedy_tokens(prompt)
    harness = Harness()
    harness.add("a", prompt, sampling={"stop_token_ids": frozenset({tokens[2]}), "ignore_eos": True})
    harness.run()
    assert harness.tokens["a", 0] == tokens[: tokens.index(tokens[2]) + 1]
    assert harness.ends["a", 0].finish_reason == "stop"


def test_context_limit():
    """A request may fill the context to its last token."""
    harness = Harness(max_model_len=16, num_blocks=4)
    harness.add("a", prompt_of(10), max_tokens=6)
    assert harness.run()["a", 0] == greedy_tokens(prompt_of(10), num_tokens=6)
