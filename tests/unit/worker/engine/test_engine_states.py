"""A model with recurrent state is served as any other: where states are saved, found, copied and given back."""

import pytest

from tests.unit.worker.engine.fakes import FakeModel, Harness, make_item, place
from tests.unit.worker.engine.stateful import StatefulHarness, StatefulModel, stateful_tokens, text
from tests.unit.worker.engine.test_engine_steps import with_items
from worker.engine.config import EngineConfig
from worker.engine.sampling_params import SamplingParams
from worker.engine.schedule import Chunk, Schedule
from worker.engine.sequence import Sequence, SequenceGroup
from worker.engine.state_ledger import StateLedger
from worker.engine.state_pool import StatePool

pytestmark = pytest.mark.usefixtures("scheduling")


def num_computed(harness):
    return sum(map(sum, harness.model.batches))


def test_a_prompt_stops_at_its_last_full_block():
    """Prefill ends where the prompt's last full block does, whose state is kept, and then goes on."""
    harness = StatefulHarness()
    harness.add("a", text(11), max_tokens=1)
    assert harness.run()["a", 0] == stateful_tokens(text(11), num_tokens=1)
    assert harness.model.batches == [(8,), (3,)]
    assert harness.engine.states.num_checkpoints == 1


@pytest.mark.parametrize(("length", "hit"), [(3, 0), (4, 0), (5, 4), (11, 8), (12, 8), (13, 12)])
def test_the_same_prompt_again(length, hit):
    """The second of two equal prompts begins at the last full block, and computes one token at least."""
    harness = StatefulHarness()
    for name in ("cold", "warm"):
        harness.add(name, text(length), max_tokens=2)
        harness.run()
        assert harness.tokens[name, 0] == stateful_tokens(text(length), num_tokens=2)
    assert harness.cached.get("warm", 0) == hit
    assert harness.model.batches[-2:] == [(length - hit,), (1,)]


def test_blocks_without_a_state_are_no_hit():
    """KV blocks whose state has been pushed out are computed again, as far as the last state that is left."""
    harness = StatefulHarness(state_checkpoints=1)
    first, second = text(13), text(13, seed=1)
    for number, prompt in enumerate((first, second, first)):
        harness.add(f"r{number}", prompt, max_tokens=1)
        assert harness.run()[f"r{number}", 0] == stateful_tokens(prompt, num_tokens=1)
    assert harness.cached == {}


@pytest.mark.parametrize("overrides", [{"state_checkpoints": 0}, {"enable_prefix_cache": False}])
def test_without_checkpoints_nothing_is_cut_or_kept(overrides):
    """Where states cannot be found again, prompts run whole and each begins at its first token."""
    harness = StatefulHarness(**overrides)
    for name in ("a", "b"):
        harness.add(name, text(11), max_tokens=1)
        assert harness.run()[name, 0] == stateful_tokens(text(11), num_tokens=1)
    assert harness.model.batches == [(11,), (11,)]
    assert (harness.cached, harness.engine.states.num_checkpoints) == ({}, 0)


def test_long_prefills_stop_on_block_boundaries():
    """Chunks end on block boundaries, so that their states can be kept; the budget that is left goes to the next."""
    harness = StatefulHarness(max_batched_tokens=14)
    harness.add("a", text(31), max_tokens=1)
    harness.add("b", text(7, seed=1), max_tokens=1)
    harness.run()
    assert harness.model.batches == [(12, 2), (12, 2), (4, 3), (3,)]


@pytest.mark.parametrize("budget", [1, 2, 3, 5])
def test_tiny_budgets_advance(budget):
    """A budget below a block is used up all the same, and states are saved where chunks come to a boundary."""
    harness = StatefulHarness(max_batched_tokens=budget, max_sequences=1)
    for name in ("a", "b"):
        harness.add(name, text(22), max_tokens=3)
        assert harness.run()[name, 0] == stateful_tokens(text(22), num_tokens=3)
    assert harness.cached == {"b": 20}
    assert len(harness.model.batches[:-1]) <= 6 * -(-4 // budget) + 2 + 2 + 2


def test_the_next_turn_goes_on_where_the_answer_ended():
    """A conversation's next prompt begins at the last block boundary that the answer before it has passed."""
    harness = StatefulHarness()
    harness.add("one", text(9), max_tokens=11)
    prompt = [*text(9), *harness.run()["one", 0], *text(4, seed=5)]
    harness.add("two", prompt)
    assert harness.run()["two", 0] == stateful_tokens(prompt)
    assert harness.cached == {"two": 16}


def test_an_answer_takes_one_checkpoint_however_long():
    """The checkpoint of a growing answer moves along with it, and stays at its end beside the prompt's."""
    harness = StatefulHarness()
    harness.add("a", text(9), max_tokens=50)
    while not harness.engine.is_idle:
        harness.step()
        assert harness.engine.states.num_checkpoints <= 2
    assert harness.engine.states.num_passing == 1


def test_answers_do_not_push_prompts_out():
    """Answers share what is theirs; a prompt's state outlives any number of them."""
    harness = StatefulHarness(state_checkpoints=4, num_blocks=200)
    harness.add("prompt", text(13), max_tokens=1)
    harness.run()
    for number in range(6):
        harness.add(f"r{number}", text(2, seed=number), max_tokens=20)
    harness.run()
    harness.add("again", text(13), max_tokens=1)
    harness.run()
    assert harness.cached == {"again": 12}


def test_prompts_that_part():
    """The second prompt with the same beginning leaves a state where it parts from the first; the third finds it."""
    harness = StatefulHarness()
    head = text(18)
    for number in range(3):
        prompt = head + text(10, seed=number + 1)
        harness.add(f"r{number}", prompt, max_tokens=1)
        assert harness.run()[f"r{number}", 0] == stateful_tokens(prompt, num_tokens=1)
    assert harness.model.batches == [(24,), (4,), (16,), (8,), (4,), (8,), (4,)]
    assert harness.cached == {"r2": 16}


def test_a_checkpoint_that_others_use_is_kept():
    """An answer's checkpoint that a next turn has begun from is no longer the first to go."""
    harness = StatefulHarness(state_checkpoints=4, num_blocks=200)
    harness.add("one", text(9), max_tokens=11)
    head = [*text(9), *harness.run()["one", 0]]
    for name in ("two", "three"):
        harness.add(name, [*head, *text(2, seed=5)], max_tokens=1, choices=(0,))
        harness.run()
        for number in range(3):
            harness.add(f"{name}{number}", text(2, seed=number), max_tokens=20, cache_salt=name.encode())
        harness.run()
    assert harness.cached == {"two": 16, "three": 20}
    harness.add("four", [*head[:17], *text(2, seed=6)], max_tokens=1)
    harness.run()
    assert harness.cached["four"] == 16


def test_a_prompt_that_ends_where_another_passes():
    """A boundary that two sequences come to in one step is saved once, and kept if one of their prompts ends there."""
    pool = StatePool(2, 4, 4)
    ledger = StateLedger(EngineConfig(max_model_len=64, num_blocks=64, block_size=4), pool)
    long, short = [
        Sequence(SequenceGroup("r", tuple(text(length)), SamplingParams(max_tokens=1)), 0, text(31)[:length], 0)
        for length in (31, 9)
    ]
    plan = Schedule()
    for sequence in (long, short):
        ledger.start(sequence, plan)
    for sequence in (long, short):
        ledger.complete(Chunk(sequence, 0, 8), plan)
    assert (plan.state_saves, pool.num_checkpoints, pool.num_passing) == ([(long.state_slot, 2)], 1, 0)


def test_a_preempted_sequence_resumes_from_its_last_boundary():
    """Who made way computes again no more than what is past its newest checkpoint."""
    harness = StatefulHarness(max_sequences=1)
    harness.add("a", text(9), max_tokens=20)
    for _ in range(12):
        harness.step()
    before = num_computed(harness)
    assert before == 9 + 10
    harness.add("b", text(3, seed=1), priority=1, max_tokens=1)
    harness.run()
    assert harness.engine.scheduler.num_preemptions == 1
    assert harness.tokens["a", 0] == stateful_tokens(text(9), num_tokens=20)
    assert num_computed(harness) == 9 + 19 + 3 + (before - 16)


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_preemption_is_invisible(prefix_cache):
    """With blocks for the longest request plus two, sequences are preempted and answer the same."""
    harness = StatefulHarness(num_blocks=18, enable_prefix_cache=prefix_cache)
    expected = {}
    for number in range(6):
        item = make_item(number, 4)
        placed = place(item, (3, 4))
        prompt = with_items(text(20, number), placed)
        harness.stage(item)
        harness.add(f"r{number}", prompt, [placed], max_tokens=30)
        expected[f"r{number}", 0] = stateful_tokens(prompt, [(item, placed)], 30)
    assert harness.run() == expected
    assert harness.engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize("length", [3, 8, 9, 11])
@pytest.mark.parametrize("seats", [8, 2])
def test_forks_copy_the_state(length, seats):
    """Several choices run the prompt once and each goes on from a copy of its state, or recomputes without a seat."""
    sampling = {"temperature": 1.0, "seed": 7}
    harness = StatefulHarness(max_sequences=seats)
    harness.add("all", text(length), max_tokens=12, choices=(0, 1, 2, 3), sampling=sampling)
    harness.run()
    answers = [tuple(harness.tokens["all", choice]) for choice in range(4)]
    assert len(set(answers)) == 4
    if seats == 8:
        assert num_computed(harness) == length + 4 * 11
    for choice in range(4):
        alone = StatefulHarness(enable_prefix_cache=False)
        alone.add("one", text(length), max_tokens=12, choices=(choice,), sampling=sampling)
        assert tuple(alone.run()["one", choice]) == answers[choice]


def test_a_lead_that_ends_at_once_leaves_its_state():
    """Forks have their copies before the lead's slot is given away, also where it ends with its first token."""
    prompt, sampling = text(10), {"temperature": 1.0, "seed": 7}
    whole = StatefulHarness()
    whole.add("a", prompt, choices=(0, 1, 2), sampling=sampling)
    whole.run()
    stop = {"stop_token_ids": frozenset({whole.tokens["a", 0][0]})}
    harness = StatefulHarness(max_sequences=3)
    harness.add("a", prompt, choices=(0, 1, 2), sampling=sampling | stop)
    harness.add("b", text(7, seed=3))
    harness.run()
    assert harness.tokens["a", 0] == whole.tokens["a", 0][:1]
    for choice in (1, 2):
        found = harness.tokens["a", choice]
        assert found == whole.tokens["a", choice][: len(found)]
    assert harness.tokens["b", 0] == stateful_tokens(text(7, seed=3))


def test_different_salts_and_items_share_no_state():
    """A state belongs to a prefix with its items and its salt, as blocks do."""
    item, other = make_item(1, 4), make_item(2, 4)
    harness = StatefulHarness()
    harness.stage(item, other)
    cases = [("a", item, b"one"), ("b", item, b"two"), ("c", other, b"one"), ("d", item, b"one")]
    for name, chosen, salt in cases:
        placed = place(chosen, (0, 4))
        prompt = with_items(text(12), placed)
        harness.add(name, prompt, [placed], cache_salt=salt)
        assert harness.run()[name, 0] == stateful_tokens(prompt, [(chosen, placed)])
    assert harness.cached == {"d": 8}


def test_slots_are_reported():
    """The load tells slots in all, of running sequences, and of checkpoints."""
    harness = StatefulHarness(state_checkpoints=5)
    harness.add("a", text(10))
    for _ in range(2):
        load = harness.step().load
    assert (load.total_state_slots, load.running_state_slots, load.state_checkpoints) == (8 + 5, 1, 1)


def test_a_model_without_state_is_not_touched():
    """Without recurrent state prompts run whole, batches name no slots, and the load tells none."""
    seen = []

    class Model(FakeModel):
        def forward(self, batch, kv_cache):
            seen.append((batch.state_slots, kv_cache.states))
            return super().forward(batch, kv_cache)

    harness = Harness(Model(), max_batched_tokens=14)
    harness.add("a", text(31), max_tokens=1)
    harness.add("b", text(7, seed=1), max_tokens=1)
    harness.run()
    assert harness.model.batches == [(14,), (14,), (3, 7)]
    assert set(seen) == {(None, None)}
    assert harness.engine.load().total_state_slots == 0


def test_a_copy_that_fails_leaves_no_checkpoint():
    """Where saving a state fails, the step fails as a whole, and no state that was not copied is ever found."""
    harness = StatefulHarness()
    harness.add("a", text(11), choices=(0, 1))
    states = harness.engine.runner.kv_cache.states
    whole, states.copy = states.copy, None
    with pytest.raises(TypeError):
        harness.engine.step()
    harness.engine.drop_all()
    harness.run()
    assert harness.engine.load().state_checkpoints == 0
    states.copy = whole
    harness.add("b", text(11))
    assert harness.run()["b", 0] == stateful_tokens(text(11))


def test_the_fake_notices():
    """The stateful fake's answer changes with any token that its state has missed."""
    assert stateful_tokens(text(11)) != stateful_tokens(text(11)[1:])
    harness = StatefulHarness(StatefulModel())
    harness.add("a", text(11), max_tokens=6)
    harness.step()
    harness.engine.runner.kv_cache.states.recurrent.add_(1)
    assert harness.run()["a", 0] != stateful_tokens(text(11), num_tokens=6)
