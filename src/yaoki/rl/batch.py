"""Rollouts as padded tensors, and how they are cut into mini-batches and micro-batches.

Every per-token tensor is `[N, S]`: full sequences, prompt then response, padded on the right and aligned
by token index. Column t speaks about token t: its log-probability given the tokens before it, the value
of the state in which it was emitted, its reward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from yaoki import seeding
from yaoki.errors import YaokiError


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """The rollouts of one step, ready for an update. N rollouts, S tokens in the longest.

    Columns are never changed in place; `dataclasses.replace` adds the learner's columns when they are known.
    """

    token_ids: Tensor
    """Prompt then response `[N, S]` int64; padding is arbitrary."""
    num_tokens: Tensor
    """True length of each row `[N]` int64."""
    loss_mask: Tensor
    """True exactly at the tokens that the policy sampled `[N, S]` bool; a row may have gaps; never column
    0."""
    rollout_logprobs: Tensor
    """The engine's log-probability of each response token `[N, S]` float32."""
    rewards: Tensor
    """The verifier's score of each rollout `[N]` float32."""
    group: Tensor
    """Index of the prompt that each rollout answers `[N]` int64."""
    old_logprobs: Tensor | None = None
    """The learner's log-probabilities before the update `[N, S]` float32."""
    ref_logprobs: Tensor | None = None
    """The reference's log-probabilities `[N, S]` float32."""
    values: Tensor | None = None
    """The critic's estimate before each token is emitted `[N, S]` float32."""
    advantages: Tensor | None = None
    """`[N, S]` float32, zero outside of the mask."""
    returns: Tensor | None = None
    """What the critic learns to predict `[N, S]` float32, zero outside of the mask."""

    @property
    def num_loss_tokens(self) -> int:
        """Number of response tokens: what the losses of these rows are divided by."""
        return int(self.loss_mask.sum())

    def rows(self, indices: Sequence[int]) -> "Experience":
        """The named rows (at least one), in that order, trimmed to the longest of them."""
        index = torch.tensor(indices, dtype=torch.int64, device=self.token_ids.device)
        longest = int(self.num_tokens[index].max())
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        picked = {
            name: (column[:, :longest] if column.ndim == 2 else column)[index]
            for name, column in columns.items()
            if column is not None
        }
        return replace(self, **picked)


def pad_rollouts(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    rollout_logprobs: Sequence[Sequence[float]],
    scores: Sequence[float],
    groups: Sequence[int],
    not_sampled: Sequence[Sequence[int]] | None = None,
) -> Experience:
    """Experience without the learner's columns from one prompt, response, ... per rollout.

    prompts, responses: token ids; rollout_logprobs: one number per response token; not_sampled: positions in
    each response that are context only, None for none at all. Padding is token 0. Raises YaokiError when a
    prompt is empty or a response and its log-probabilities differ in length.
    """
    num_tokens = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    shape = (len(num_tokens), max(num_tokens, default=0))
    token_ids = np.zeros(shape, dtype=np.int64)
    loss_mask = np.zeros(shape, dtype=np.bool_)
    logprobs = np.zeros(shape, dtype=np.float32)
    triples = zip(prompts, responses, rollout_logprobs, strict=True)
    for row, (prompt, response, response_logprobs) in enumerate(triples):
        _check_rollout(row, prompt, response, response_logprobs)
        start, end = len(prompt), num_tokens[row]
        token_ids[row, :start] = prompt
        token_ids[row, start:end] = response
        loss_mask[row, start:end] = True
        logprobs[row, start:end] = response_logprobs
        if not_sampled is not None:
            loss_mask[row, [start + place for place in not_sampled[row]]] = False
    if not shape[0] == len(scores) == len(groups):
        raise YaokiError(
            f"{shape[0]} rollouts with {len(scores)} scores and {len(groups)} group indices",
            hint="give one score and one group index per rollout",
        )
    return Experience(
        token_ids=torch.from_numpy(token_ids),
        num_tokens=torch.tensor(num_tokens, dtype=torch.int64),
        loss_mask=torch.from_numpy(loss_mask),
        rollout_logprobs=torch.from_numpy(logprobs),
        rewards=torch.tensor(scores, dtype=torch.float32),
        group=torch.tensor(groups, dtype=torch.int64),
    )


def _check_rollout(
    row: int, prompt: Sequence[int], response: Sequence[int], logprobs: Sequence[float]
) -> None:
    if len(prompt) == 0:
        raise YaokiError(
            f"rollout {row} has an empty prompt, so its first response token has no log-probability",
            hint="put at least one token (such as the beginning-of-sequence token) into every prompt",
        )
    if len(response) != len(logprobs):
        raise YaokiError(
            f"rollout {row} has {len(response)} response tokens but {len(logprobs)} rollout_logprobs",
            hint="the engine must return one log-probability per sampled token",
        )


def balance_groups(groups: Sequence[int], num_tokens: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Rows for each rank: whole groups, balanced by tokens; every row exactly once, in its given order.

    groups, num_tokens: of each row. The largest group goes to the rank that has the fewest tokens so far (the
    first of these). A rank may get nothing. Source: Graham 1969, "Bounds on Multiprocessing Timing
    Anomalies": no rank gets more than 4/3 of what is the least possible.
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    sizes = {group: sum(num_tokens[row] for row in rows) for group, rows in members.items()}
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for group in sorted(members, key=lambda group: (-sizes[group], group)):
        rank = loads.index(min(loads))
        shares[rank] += members[group]
        loads[rank] += sizes[group]
    return [sorted(share) for share in shares]


def micro_batches(num_tokens: Sequence[int], token_budget: int) -> list[list[int]]:
    """Rows grouped so that rows x longest row stays within `token_budget`; every row exactly once.

    num_tokens: length of each row. A row that is longer than the budget stands alone. Longest first, so
    that the first micro-batch needs the most memory and equal lengths share one.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(num_tokens)), key=lambda r: -num_tokens[r]):
        if batches and (len(batches[-1]) + 1) * num_tokens[batches[-1][0]] <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def mini_batches(num_rows: int, num_mini_batches: int, seed_value: int) -> list[list[int]]:
    """range(num_rows) shuffled by `seed_value` and cut into parts whose sizes differ by at most one.

    More mini-batches than rows give one row each. A single mini-batch keeps the natural order: its
    gradient does not depend on the order, so there is nothing to shuffle.
    """
    count = min(num_mini_batches, num_rows)
    if count == 1:
        return [list(range(num_rows))]
    order: list[int] = seeding.permutation(num_rows, seed_value).tolist()
    return [order[i * num_rows // count : (i + 1) * num_rows // count] for i in range(count)]
