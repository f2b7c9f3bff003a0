"""Padding, picking rows, and cutting a batch into mini-batches and micro-batches."""

from dataclasses import FrozenInstanceError, fields, replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yaoki.errors import YaokiError
from yaoki.rl.batch import Experience, balance_groups, micro_batches, mini_batches, pad_rollouts

from .ragged import checked, seeds

lengths = st.lists(st.integers(1, 40), max_size=30)


def three_rollouts() -> Experience:
    return pad_rollouts(
        prompts=[[5, 6], [7], [5, 6]],
        responses=[[1, 2, 3], [4], [8, 9]],
        rollout_logprobs=[[-0.1, -0.2, -0.3], [-0.4], [-0.5, -0.6]],
        scores=[1.0, 0.0, 1.0],
        groups=[0, 1, 0],
    )


def test_pad_rollouts_aligns_every_column_with_its_token() -> None:
    experience = three_rollouts()
    assert experience.token_ids.tolist() == [[5, 6, 1, 2, 3], [7, 4, 0, 0, 0], [5, 6, 8, 9, 0]]
    assert experience.num_tokens.tolist() == [5, 2, 4]
    yes, no = True, False
    assert experience.loss_mask.tolist() == [
        [no, no, yes, yes, yes],
        [no, yes, no, no, no],
        [no, no, yes, yes, no],
    ]
    logprobs = torch.tensor([[0, 0, -0.1, -0.2, -0.3], [0, -0.4, 0, 0, 0], [0, 0, -0.5, -0.6, 0]])
    assert torch.equal(experience.rollout_logprobs, logprobs)
    assert experience.rewards.tolist() == [1, 0, 1]
    assert experience.group.tolist() == [0, 1, 0]
    assert experience.num_loss_tokens == 6
    assert experience.token_ids.dtype == experience.num_tokens.dtype == experience.group.dtype == torch.int64
    assert experience.rollout_logprobs.dtype == experience.rewards.dtype == torch.float32
    for learned in ("old_logprobs", "ref_logprobs", "values", "advantages", "returns"):
        assert getattr(experience, learned) is None


def test_tokens_that_were_not_sampled_are_context_only() -> None:
    plain = pad_rollouts([[5, 6], [7]], [[1, 2, 3], [4]], [[-0.1, 0.0, -0.3], [-0.4]], [1.0, 0.0], [0, 1])
    found = pad_rollouts(
        [[5, 6], [7]], [[1, 2, 3], [4]], [[-0.1, 0.0, -0.3], [-0.4]], [1.0, 0.0], [0, 1], [[1], []]
    )
    yes, no = True, False
    assert found.loss_mask.tolist() == [[no, no, yes, no, yes], [no, yes, no, no, no]]
    assert found.num_loss_tokens == 3
    for field in fields(Experience):
        if field.name != "loss_mask" and (column := getattr(plain, field.name)) is not None:
            assert torch.equal(column, getattr(found, field.name)), field.name


def test_pad_rollouts_takes_an_empty_response() -> None:
    experience = pad_rollouts([[1, 2]], [[]], [[]], [0.0], [0])
    assert experience.num_loss_tokens == 0
    assert experience.num_tokens.tolist() == [2]


def test_pad_rollouts_refuses_what_does_not_fit() -> None:
    with pytest.raises(YaokiError, match="rollout 0 has an empty prompt"):
        pad_rollouts([[]], [[1]], [[-0.5]], [1.0], [0])
    with pytest.raises(YaokiError, match="rollout 1 has 2 response tokens but 1 rollout_logprobs"):
        pad_rollouts([[1], [1]], [[1], [2, 3]], [[-0.5], [-0.5]], [1.0, 1.0], [0, 0])
    with pytest.raises(YaokiError, match="1 rollouts with 2 scores and 1 group"):
        pad_rollouts([[1]], [[1]], [[-0.5]], [1.0, 0.0], [0])


def test_rows_are_picked_in_order_and_trimmed_to_the_longest() -> None:
    experience = three_rollouts()
    experience = replace(experience, values=experience.token_ids.float())
    picked = experience.rows([2, 1])
    assert picked.token_ids.tolist() == [[5, 6, 8, 9], [7, 4, 0, 0]]
    assert picked.values is not None
    assert picked.values.tolist() == [[5, 6, 8, 9], [7, 4, 0, 0]]
    assert picked.num_tokens.tolist() == [4, 2]
    assert picked.rewards.tolist() == [1, 0]
    assert picked.group.tolist() == [0, 1]
    assert picked.returns is None
    assert picked.num_loss_tokens == 3
    assert picked.token_ids.is_contiguous()


def test_rows_are_copies_and_columns_cannot_be_replaced_in_place() -> None:
    experience = three_rollouts()
    picked = experience.rows([0, 1, 2])
    for field in fields(Experience):
        before, after = getattr(experience, field.name), getattr(picked, field.name)
        if before is not None:
            assert torch.equal(before, after)
            assert before.data_ptr() != after.data_ptr()
    with pytest.raises(FrozenInstanceError):
        experience.values = experience.rollout_logprobs  # type: ignore[misc]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=20), st.integers(1, 4))
def test_whole_groups_are_dealt_out_evenly(rows: list[tuple[int, int]], num_ranks: int) -> None:
    groups, num_tokens = [group for group, _ in rows], [tokens for _, tokens in rows]
    shares = balance_groups(groups, num_tokens, num_ranks)
    assert len(shares) == num_ranks
    assert sorted(row for share in shares for row in share) == list(range(len(rows)))
    assert all(share == sorted(share) for share in shares)
    owners = {(groups[row], rank) for rank, share in enumerate(shares) for row in share}
    assert len(owners) == len(set(groups)), "a group is on one rank"
    sizes = [sum(tokens for g, tokens in rows if g == group) for group in sorted(set(groups))]
    best = min(
        max(
            sum(size for size, at in zip(sizes, ranks, strict=True) if at == rank)
            for rank in range(num_ranks)
        )
        for ranks in product(range(num_ranks), repeat=len(sizes))
    )
    assert max(sum(num_tokens[row] for row in share) for share in shares) <= best * 4 / 3


def test_one_rank_gets_everything_in_its_order() -> None:
    assert balance_groups([2, 0, 2, 1], [5, 9, 1, 1], 1) == [[0, 1, 2, 3]]
    assert balance_groups([2, 0, 2, 1], [5, 9, 1, 1], 3) == [[1], [0, 2], [3]]
    assert balance_groups([0], [5], 3) == [[0], [], []]


def test_micro_batches_by_hand() -> None:
    # Longest first: 9 alone (2 x 9 > 12), then 4 4 4 (12), then 3 2 2 (9; a fourth row would still fit).
    assert micro_batches([4, 9, 2, 4, 3, 4, 2], 12) == [[1], [0, 3, 5], [4, 2, 6]]
    assert micro_batches([20, 1], 12) == [[0], [1]]
    assert micro_batches([], 12) == []


@checked
@given(lengths, st.integers(1, 100))
def test_micro_batches_hold_every_row_once_within_the_budget(num_tokens: list[int], budget: int) -> None:
    batches = micro_batches(num_tokens, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(num_tokens)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(num_tokens[row] for row in batch) <= budget
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * num_tokens[batch[0]] > budget, "the next row would have fitted"
        assert num_tokens[batch[-1]] >= num_tokens[following[0]]
    assert batches == micro_batches(num_tokens, budget)


@checked
@given(st.integers(0, 40), st.integers(1, 50), seeds)
def test_mini_batches_cut_evenly_and_hold_every_row_once(rows: int, parts: int, seed: int) -> None:
    batches = mini_batches(rows, parts, seed)
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert len(batches) == min(rows, parts)
    sizes = {len(batch) for batch in batches}
    assert not sizes or (min(sizes) >= 1 and max(sizes) - min(sizes) <= 1)
    assert batches == mini_batches(rows, parts, seed)


def test_mini_batches_are_shuffled_by_the_seed_but_a_single_one_is_not() -> None:
    assert mini_batches(6, 1, 7) == [[0, 1, 2, 3, 4, 5]]
    first, second = mini_batches(64, 4, 7), mini_batches(64, 4, 8)
    assert first != second
    assert [row for batch in first for row in batch] != list(range(64))
    # Part of the run format: another order would break exact resume across versions.
    assert mini_batches(6, 4, 7) == [[2], [0, 1], [5], [4, 3]]
