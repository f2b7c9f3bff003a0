"""From prompts to rewarded rollouts: order, seeds, micro-batches, and what the verifier is asked."""

from collections.abc import Sequence
from typing import Any

import pytest

from yaoki.errors import StopRequested
from yaoki.journal.columns import pack
from yaoki.journal.journal import NullJournal
from yaoki.ranks.world import Channel, World, alone
from yaoki.rollout.collect import Collector
from yaoki.rollout.engine import OnFinished, Request
from yaoki.rollout.engines.scripted import ScriptedEngine
from yaoki.seeding import Purpose, seed, step_seed
from yaoki.types import (
    Completion,
    FinishReason,
    JudgedCompletion,
    Poll,
    Prompt,
    Rollout,
    RolloutKey,
    Task,
    Verdict,
    VerdictReason,
)

STEP, RUN_SEED = 9, 5

PROMPTS = [
    Prompt(Task(f"u{index}", f"problem {index}", str(index), "test"), f"text {index}", (index, 7))
    for index in range(3)
]
KEYS = [RolloutKey(STEP, index, sample) for index in range(3) for sample in range(2)]


def seed_of(key: RolloutKey) -> int:
    return step_seed(RUN_SEED, Purpose.ROLLOUT, *key)


class RecordingVerifier:
    """Says that everything is right, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []

    def verify(self, jobs: Sequence[tuple[Task, str]], poll: Poll) -> list[Verdict]:
        self.calls.append([(task.uid, text) for task, text in jobs])
        return [Verdict(1.0, VerdictReason.CORRECT, text) for _, text in jobs]


class RecordingEngine(ScriptedEngine):
    """Keeps the micro-batches that it was given."""

    def __init__(
        self, truncated_seeds: frozenset[int] = frozenset(), *, batch_invariant: bool = False
    ) -> None:
        super().__init__(self._answer, batch_invariant=batch_invariant)
        self._truncated = truncated_seeds
        self.batches: list[list[Request]] = []

    def generate(
        self, requests: Sequence[Request], poll: Poll, on_finished: OnFinished | None = None
    ) -> list[Completion]:
        self.batches.append(list(requests))
        return super().generate(requests, poll, on_finished)

    def _answer(self, request: Request) -> Completion:
        reason = FinishReason.LENGTH if request.seed in self._truncated else FinishReason.STOP
        return Completion(
            (request.seed % 1000,), (-0.5,), f"answer to {request.prompt_ids[0]} by {request.seed}", reason
        )


def collector(
    engine: ScriptedEngine,
    verifier: RecordingVerifier,
    *,
    num_samples: int = 2,
    batch_size: int = 4,
    poll: Poll = lambda: None,
    **options: Any,
) -> Collector:
    fields: dict[str, Any] = {"journal": NullJournal(), "world": alone(), "ranks_per_engine": 1, **options}
    return Collector(
        engine=engine,
        verifier=verifier,
        run_seed=RUN_SEED,
        group_size=num_samples,
        num_eval_samples=num_samples,
        batch_size=batch_size,
        poll=poll,
        **fields,
    )


def gather(
    engine: ScriptedEngine,
    verifier: RecordingVerifier,
    *,
    prompts: Sequence[Prompt] = PROMPTS,
    progress: list[tuple[int, int]] | None = None,
    **options: Any,
) -> list[Rollout]:
    """The rollouts of STEP."""

    def on_progress(done: int, total: int) -> None:
        if progress is not None:
            progress.append((done, total))

    return collector(engine, verifier, **options).training(prompts, STEP, on_progress)


def test_order_seeds_and_contents() -> None:
    engine, verifier = RecordingEngine(), RecordingVerifier()
    engine.load_weights([], 4)
    rollouts = gather(engine, verifier)
    assert [rollout.key for rollout in rollouts] == KEYS
    for rollout in rollouts:
        assert rollout.completion.text == f"answer to {rollout.key.prompt} by {seed_of(rollout.key)}"
        assert rollout.verdict == Verdict(1.0, VerdictReason.CORRECT, rollout.completion.text)
        assert rollout.prompt is PROMPTS[rollout.key.prompt]
        assert rollout.policy_version == 4


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [1] * 6), (4, [4, 2]), (5, [5, 1]), (6, [6]), (100, [6])]
)
def test_members_of_a_micro_batch(batch_size: int, sizes: list[int]) -> None:
    """By coordinates alone: consecutive places, whatever the completions are."""
    engine, verifier = RecordingEngine(), RecordingVerifier()
    progress: list[tuple[int, int]] = []
    rollouts = gather(engine, verifier, batch_size=batch_size, progress=progress)
    assert [len(batch) for batch in engine.batches] == sizes
    assert [len(call) for call in verifier.calls] == sizes
    assert [request for batch in engine.batches for request in batch] == [
        Request(PROMPTS[key.prompt].token_ids, seed_of(key)) for key in KEYS
    ]
    assert progress == [(sum(sizes[: n + 1]), 6) for n in range(len(sizes))]
    assert rollouts == gather(RecordingEngine(), RecordingVerifier(), batch_size=6)


def test_what_was_cut_off_is_never_judged() -> None:
    cut = {KEYS[1], KEYS[4], KEYS[5]}
    engine, verifier = RecordingEngine(frozenset(map(seed_of, cut))), RecordingVerifier()
    rollouts = gather(engine, verifier)
    assert [len(batch) for batch in engine.batches] == [4, 2]
    for rollout in rollouts:
        if rollout.key in cut:
            assert rollout.verdict == Verdict(0.0, VerdictReason.TRUNCATED)
        else:
            assert rollout.verdict.reward == 1.0
            assert rollout.verdict.extracted == rollout.completion.text
    asked = [uid for call in verifier.calls for uid, _ in call]
    assert asked == ["u0", "u1", "u1"]


def test_the_end_of_sequence_counts_as_an_end() -> None:
    engine = ScriptedEngine(lambda request: Completion((1,), (0.0,), "x", FinishReason.EOS))
    assert all(rollout.verdict.reward == 1.0 for rollout in gather(engine, RecordingVerifier()))


def test_other_steps_samples_and_purposes_have_other_seeds() -> None:
    engine = RecordingEngine()
    asked = collector(engine, RecordingVerifier(), num_samples=3, batch_size=9)
    for step in (1, 2):
        asked.training(PROMPTS, step, lambda done, total: None)
    asked.evaluation(PROMPTS, lambda done, total: None)
    assert len({request.seed for batch in engine.batches for request in batch}) == 27


def test_an_evaluation_has_the_same_seeds_every_time_and_is_not_journaled() -> None:
    engine, journal = RecordingEngine(), Journal()
    asked = collector(engine, RecordingVerifier(), batch_size=6, journal=journal)
    first = asked.evaluation(PROMPTS, lambda done, total: None)
    assert asked.evaluation(PROMPTS, lambda done, total: None) == first
    assert [rollout.key for rollout in first] == [key._replace(step=0) for key in KEYS]
    expected = [seed(RUN_SEED, Purpose.EVALUATION, 0, key.prompt, key.sample) for key in KEYS]
    assert [[request.seed for request in batch] for batch in engine.batches] == [expected, expected]
    assert journal.appended == []


def test_more_samples_leave_the_first_ones_as_they_are() -> None:
    few = gather(RecordingEngine(), RecordingVerifier(), num_samples=2)
    many = gather(RecordingEngine(), RecordingVerifier(), num_samples=3)
    assert [rollout for rollout in many if rollout.key.sample < 2] == few


def test_a_stop_comes_through() -> None:
    polled = 0

    def poll() -> None:
        nonlocal polled
        polled += 1
        if polled == 5:
            raise StopRequested("enough")

    verifier = RecordingVerifier()
    with pytest.raises(StopRequested):
        gather(RecordingEngine(), verifier, poll=poll)
    assert len(verifier.calls) == 1


class Journal(NullJournal):
    """In memory; each call of `append` is one list."""

    def __init__(self) -> None:
        self.appended: list[list[RolloutKey]] = []
        self.judged: dict[RolloutKey, JudgedCompletion] = {}

    def find(self, keys: Sequence[RolloutKey]) -> list[JudgedCompletion] | None:
        return [self.judged[key] for key in keys] if set(keys) <= self.judged.keys() else None

    def append(self, rollouts: Sequence[Rollout]) -> None:
        self.appended.append([rollout.key for rollout in rollouts])
        self.judged |= {rollout.key: rollout.judged for rollout in rollouts}


def test_an_engine_without_micro_batches_keeps_each_completion_as_it_finishes() -> None:
    """Stopped before the last one: what was finished is in the journal and is not asked for again."""
    engine, journal, num_polls = RecordingEngine(batch_invariant=True), Journal(), 0

    def poll() -> None:
        nonlocal num_polls
        num_polls += 1
        if num_polls == 5:
            raise StopRequested("enough")

    with pytest.raises(StopRequested):
        gather(engine, RecordingVerifier(), poll=poll, journal=journal)
    assert journal.appended == [[KEYS[5]], [KEYS[4]], [KEYS[3]], [KEYS[2]]]  # it finishes the last ones first
    rollouts = gather(engine, RecordingVerifier(), journal=journal)
    assert [len(batch) for batch in engine.batches] == [6, 2]
    assert rollouts == gather(RecordingEngine(), RecordingVerifier())


def test_with_micro_batches_only_whole_ones_are_kept() -> None:
    engine, journal = RecordingEngine(), Journal()
    polls = [None] * 5
    with pytest.raises(IndexError):
        gather(engine, RecordingVerifier(), poll=polls.pop, journal=journal)
    assert journal.appended == [KEYS[:4]]


def test_a_verifier_that_fails_beside_the_generation_fails_the_step() -> None:
    class Broken(RecordingVerifier):
        def verify(self, jobs: Sequence[tuple[Task, str]], poll: Poll) -> list[Verdict]:
            raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError):
        gather(RecordingEngine(batch_invariant=True), Broken())


def test_no_prompts_no_rollouts() -> None:
    engine, verifier = RecordingEngine(), RecordingVerifier()
    assert gather(engine, verifier, prompts=[]) == []
    assert engine.batches == verifier.calls == []


class Others(Channel):
    """The other ranks, which have sampled all of the rest."""

    def __init__(self, size: int, rest: Sequence[Rollout], reason: str | None = None) -> None:
        super().__init__(0, size)
        self._rest, self._reason = rest, reason

    def any_reason(self, mine: str | None) -> str | None:
        return mine or self._reason

    def gather(self, message: bytes) -> list[bytes]:
        return [pack(self._rest), message]


def rank_of(rank: int, size: int, rest: Sequence[Rollout], reason: str | None = None) -> World:
    channel = Others(size, rest, reason)
    return World(rank, size, rank, channel, channel)


@pytest.mark.parametrize("ranks_per_engine", [1, 2])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_what_is_missing_is_dealt_out_to_the_engines_in_turn(
    *, batch_invariant: bool, ranks_per_engine: int
) -> None:
    """By micro-batches or single completions; together they are the whole, and each rank gets all of it.
    Neighbouring ranks that share an engine ask it for the same."""
    whole = gather(RecordingEngine(), RecordingVerifier())
    unit = 1 if batch_invariant else 2
    for num_engines in (1, 2, 4):
        asked: list[int] = []
        for rank in range(num_engines * ranks_per_engine):
            engine = RecordingEngine(batch_invariant=batch_invariant)
            world = rank_of(rank, num_engines * ranks_per_engine, whole)
            options = {"batch_size": 2, "world": world, "ranks_per_engine": ranks_per_engine}
            assert gather(engine, RecordingVerifier(), **options) == whole
            own = [request.seed for batch in engine.batches for request in batch]
            share = rank // ranks_per_engine
            numbers = [number for number in range(6) if number // unit % num_engines == share]
            assert own == [seed_of(KEYS[number]) for number in numbers]
            asked += own
        assert len(set(asked)) == len(whole)
        assert len(asked) == len(whole) * ranks_per_engine


class SecondPartner(RecordingEngine):
    """The engine as seen by the second of two ranks that share it: `on_finished` is not called there."""

    def generate(
        self, requests: Sequence[Request], poll: Poll, on_finished: OnFinished | None = None
    ) -> list[Completion]:
        return super().generate(requests, poll)


def test_the_second_rank_of_a_shared_engine_judges_and_journals_nothing() -> None:
    whole, journal = gather(RecordingEngine(), RecordingVerifier()), Journal()
    engine, verifier = SecondPartner(batch_invariant=True), RecordingVerifier()
    world = rank_of(1, 2, whole)
    assert gather(engine, verifier, journal=journal, world=world, ranks_per_engine=2) == whole
    assert [len(batch) for batch in engine.batches] == [6]
    assert journal.appended == verifier.calls == []


def test_a_stop_of_another_rank_is_one_here() -> None:
    """What this rank has finished is kept."""
    journal = Journal()
    world = rank_of(0, 2, [], "over there")
    with pytest.raises(StopRequested, match="over there"):
        gather(RecordingEngine(), RecordingVerifier(), journal=journal, world=world)
    assert journal.appended == [KEYS[:4]]
