"""Ragged batches for property tests: masks of prompt, response and padding, and noise to fill them."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

checked = settings(deadline=None, max_examples=50)


@st.composite
def masks(draw: st.DrawFn, *, max_rows: int = 5, gaps: bool = True) -> Tensor:
    """loss_mask `[N, S]`: prompts of 1-4 tokens, responses of 0-6, up to 3 columns that are padding only.

    With `gaps`, some tokens of a response were not sampled.
    """
    sampled = st.booleans() if gaps else st.just(True)
    row_of = st.tuples(st.integers(1, 4), st.lists(sampled, max_size=6))
    rows = draw(st.lists(row_of, min_size=1, max_size=max_rows))
    width = max(prompt + len(response) for prompt, response in rows) + draw(st.integers(0, 3))
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, response) in enumerate(rows):
        mask[row, prompt : prompt + len(response)] = torch.tensor(response, dtype=torch.bool)
    return mask


seeds = st.integers(0, 2**31)


def noise(mask: Tensor, seed: int, scale: float = 1.0, *, outside: float = float("nan")) -> Tensor:
    """Normal float32 numbers inside of the mask, `outside` elsewhere (NaN: it must reach no result)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = scale * torch.randn(mask.shape, generator=generator)
    return torch.where(mask, drawn, outside)


def widen(x: Tensor, extra: int) -> Tensor:
    """`x` `[N, S]` with columns of NaN (False for a mask) added on the right."""
    fill = False if x.dtype == torch.bool else float("nan")
    return torch.cat([x, torch.full((x.shape[0], extra), fill, dtype=x.dtype)], dim=1)


def long_mask() -> Tensor:
    """7 rows of up to 61 tokens: enough that sums and vector instructions would notice the width."""
    mask = torch.zeros(7, 61, dtype=torch.bool)
    for row in range(7):
        mask[row, 1 + row : 20 + 6 * row] = True
    return mask


def with_gaps(mask: Tensor) -> Tensor:
    """The mask without every third column, as if a tool had answered there."""
    return mask & (torch.arange(mask.shape[1]) % 3 > 0)


def without_gaps(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The masked elements of each row of `x` side by side, NaN after them; and the mask of these."""
    together = torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True)
    squeezed = torch.full_like(x, float("nan"))
    squeezed[together] = x[mask]
    return squeezed, together
