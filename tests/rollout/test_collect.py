"""From prompts to rewarded rollouts: order, seeds, micro-batches, and what the verifier is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from yaoki.errors import StopRequested
from yaoki.ranks.world import alone
from yaoki.rollout.collect import JudgedCompletion, NoLog, Peers, Place, RolloutLog, collect
from yaoki.rollout.engine import OnFinished, Poll, Request, keep_none
from yaoki.rollout.engines.scripted import ScriptedEngine
from yaoki.seeding import Purpose, seed
from yaoki.train.exchange import RolloutExchange
from yaoki.types import Completion, FinishReason, Prompt, Rollout, Task, Verdict, VerdictReason

PROMPTS = [
    Prompt(Task(f"u{index}", f"problem {index}", str(index), "test"), f"text {index}", (index, 7))
    for index in range(3)
]


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
        self, requests: Sequence[Request], poll: Poll, on_finished: OnFinished = keep_none
    ) -> list[Completion]:
        self.batches.append(list(requests))
        return super().generate(requests, poll, on_finished)

    def _answer(self, request: Request) -> Completion:
        reason = FinishReason.LENGTH if request.seed in self._truncated else FinishReason.STOP
        return Completion(
            (request.seed % 1000,), (-0.5,), f"answer to {request.prompt_ids[0]} by {request.seed}", reason
        )


def gather(
    engine: ScriptedEngine,
    verifier: RecordingVerifier,
    *,
    num_samples: int = 2,
    batch_size: int = 4,
    prompts: Sequence[Prompt] = PROMPTS,
    poll: Poll = lambda: None,
    progress: list[tuple[int, int]] | None = None,
    log: RolloutLog | None = None,
    peers: Peers | None = None,
) -> list[Rollout]:
    return collect(
        engine,
        verifier,
        prompts,
        purpose=Purpose.ROLLOUT,
        run_seed=5,
        step=9,
        num_samples=num_samples,
        batch_size=batch_size,
        poll=poll,
        on_progress=lambda done, total: None if progress is None else progress.append((done, total)),
        log=log or NoLog(),
        peers=peers or RolloutExchange(alone()),
    )


def test_order_seeds_and_contents() -> None:
    engine, verifier = RecordingEngine(), RecordingVerifier()
    engine.load_weights([], 4)
    rollouts = gather(engine, verifier)
    assert [(r.key.prompt, r.key.sample) for r in rollouts] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    for rollout in rollouts:
        place = seed(5, Purpose.ROLLOUT, 9, rollout.key.prompt, rollout.key.sample)
        assert rollout.completion.text == f"answer to {rollout.key.prompt} by {place}"
        assert rollout.verdict == Verdict(1.0, VerdictReason.CORRECT, rollout.completion.text)
        assert rollout.prompt is PROMPTS[rollout.key.prompt]
        assert (rollout.step, rollout.policy_version) == (9, 4)


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
    places = [(index, sample) for index in range(3) for sample in range(2)]
    assert [request for batch in engine.batches for request in batch] == [
        Request(PROMPTS[index].token_ids, seed(5, Purpose.ROLLOUT, 9, index, sample))
        for index, sample in places
    ]
    assert progress == [(sum(sizes[: n + 1]), 6) for n in range(len(sizes))]
    assert rollouts == gather(RecordingEngine(), RecordingVerifier(), batch_size=6)


def test_what_was_cut_off_is_never_judged() -> None:
    cut = {(0, 1), (2, 0), (2, 1)}
    seeds = frozenset(seed(5, Purpose.ROLLOUT, 9, *place) for place in cut)
    engine, verifier = RecordingEngine(seeds), RecordingVerifier()
    rollouts = gather(engine, verifier)
    assert [len(batch) for batch in engine.batches] == [4, 2]
    for rollout in rollouts:
        if (rollout.key.prompt, rollout.key.sample) in cut:
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
    def seeds(purpose: Purpose, step: int) -> list[int]:
        engine = RecordingEngine()
        collect(
            engine,
            RecordingVerifier(),
            PROMPTS,
            purpose=purpose,
            run_seed=5,
            step=step,
            num_samples=3,
            batch_size=9,
            poll=lambda: None,
            on_progress=lambda done, total: None,
            log=NoLog(),
            peers=RolloutExchange(alone()),
        )
        return [request.seed for request in engine.batches[0]]

    places = [seeds(Purpose.ROLLOUT, 0), seeds(Purpose.ROLLOUT, 1), seeds(Purpose.EVALUATION, 0)]
    assert len({value for found in places for value in found}) == 27


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


class Log:
    """In memory; each call of `append` is one list."""

    def __init__(self) -> None:
        self.appended: list[list[tuple[int, int]]] = []
        self.rollouts: dict[tuple[int, int], Rollout] = {}

    def find(self, places: Sequence[tuple[int, int]]) -> list[Rollout] | None:
        return [self.rollouts[p] for p in places] if set(places) <= self.rollouts.keys() else None

    def append(self, rollouts: Sequence[Rollout]) -> None:
        self.appended.append([(r.key.prompt, r.key.sample) for r in rollouts])
        self.rollouts |= {(r.key.prompt, r.key.sample): r for r in rollouts}


def test_an_engine_without_micro_batches_keeps_each_completion_as_it_finishes() -> None:
    """Stopped before the last one: what was finished is in the log and is not asked for again."""
    engine, log, num_polls = RecordingEngine(batch_invariant=True), Log(), 0

    def poll() -> None:
        nonlocal num_polls
        num_polls += 1
        if num_polls == 5:
            raise StopRequested("enough")

    with pytest.raises(StopRequested):
        gather(engine, RecordingVerifier(), poll=poll, log=log)
    assert log.appended == [[(2, 1)], [(2, 0)], [(1, 1)], [(1, 0)]]  # it finishes the last ones first
    rollouts = gather(engine, RecordingVerifier(), log=log)
    assert [len(batch) for batch in engine.batches] == [6, 2]
    assert rollouts == gather(RecordingEngine(), RecordingVerifier())


def test_with_micro_batches_only_whole_ones_are_kept() -> None:
    engine, log = RecordingEngine(), Log()
    polls = [None] * 5
    with pytest.raises(IndexError):
        gather(engine, RecordingVerifier(), poll=polls.pop, log=log)
    assert log.appended == [[(0, 0), (0, 1), (1, 0), (1, 1)]]


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


class Others:
    """The other ranks, which have sampled all of the rest."""

    def __init__(
        self, share: int, num_shares: int, rest: Sequence[Rollout], reason: str | None = None
    ) -> None:
        self.share, self.num_shares = share, num_shares
        self._rest, self._reason = rest, reason

    def any_reason(self, mine: str | None) -> str | None:
        return mine or self._reason

    def exchange(self, rollouts: Sequence[Rollout]) -> Mapping[Place, JudgedCompletion]:
        return {(r.key.prompt, r.key.sample): r for r in (*self._rest, *rollouts)}


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_shares_are_dealt_out_in_turn(*, batch_invariant: bool) -> None:
    """By micro-batches or single completions; together they are the whole, and each rank gets all of it."""
    whole = gather(RecordingEngine(), RecordingVerifier())
    unit = 1 if batch_invariant else 2
    for num_shares in (1, 2, 4):
        asked: list[int] = []
        for share in range(num_shares):
            engine = RecordingEngine(batch_invariant=batch_invariant)
            peers = Others(share, num_shares, whole)
            assert gather(engine, RecordingVerifier(), batch_size=2, peers=peers) == whole
            mine = [request.seed for batch in engine.batches for request in batch]
            numbers = [number for number in range(6) if number // unit % num_shares == share]
            assert mine == [
                seed(5, Purpose.ROLLOUT, 9, whole[n].key.prompt, whole[n].key.sample) for n in numbers
            ]
            asked += mine
        assert len(set(asked)) == len(asked) == len(whole)


class SecondPartner(RecordingEngine):
    """Shares its engine with a rank that is handed everything."""

    def generate(
        self, requests: Sequence[Request], poll: Poll, on_finished: OnFinished = keep_none
    ) -> list[Completion]:
        return super().generate(requests, poll)


def test_a_rank_that_is_handed_nothing_judges_and_logs_nothing() -> None:
    whole, log = gather(RecordingEngine(), RecordingVerifier()), Log()
    engine, verifier = SecondPartner(batch_invariant=True), RecordingVerifier()
    assert gather(engine, verifier, log=log, peers=Others(0, 1, whole)) == whole
    assert [len(batch) for batch in engine.batches] == [6]
    assert log.appended == verifier.calls == []


def test_a_stop_of_another_rank_is_one_here() -> None:
    log = Log()
    with pytest.raises(StopRequested, match="over there"):
        gather(RecordingEngine(), RecordingVerifier(), log=log, peers=Others(0, 1, [], "over there"))
    assert len(log.rollouts) == 6


@pytest.mark.parametrize(("ranks_per_engine", "shares"), [(1, [0, 1, 2, 3]), (2, [0, 0, 1, 1]), (4, [0] * 4)])
def test_neighbours_that_share_an_engine_have_the_same_share(
    ranks_per_engine: int, shares: list[int]
) -> None:
    peers = [RolloutExchange(replace(alone(), rank=rank, size=4), ranks_per_engine) for rank in range(4)]
    assert [each.share for each in peers] == shares
    assert {each.num_shares for each in peers} == {4 // ranks_per_engine}
