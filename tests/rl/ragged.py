"""Ragged batches for property tests: masks of prompt, response and padding, and noise to fill them."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

checked = settings(deadline=None, max_examples=50)


@st.composite
def masks(draw: st.DrawFn, *, max_rows: int = 5) -> Tensor:
    """loss_mask `[N, S]`: prompts of 1-4 tokens, responses of 0-6, up to 3 columns that are padding only."""
    spans = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=max_rows))
    width = max(sum(span) for span in spans) + draw(st.integers(0, 3))
    mask = torch.zeros(len(spans), width, dtype=torch.bool)
    for row, (prompt, response) in enumerate(spans):
        mask[row, prompt : prompt + response] = True
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
