"""The critic: where its head starts, what its columns mean, and where it can be loaded from."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from yaoki.errors import NothingThereError, UsageError
from yaoki.models.critic import VALUE_HEAD, build_critic, init_value_head, load_critic, token_values
from yaoki.models.huggingface import export_model, load_tokenizer
from yaoki.models.policy import load_causal_lm

from .samples import some_ids

HIDDEN = 128


def loaded(source: str, head_seed: int = 5) -> torch.nn.Module:
    return load_critic(source, trust_remote_code=False, dropout=0.0, head_seed=head_seed).eval()


def test_the_head_is_small_even_and_has_no_bias(tiny: str) -> None:
    critic = loaded(tiny)
    head = critic.get_parameter(VALUE_HEAD)
    assert head.shape == (1, HIDDEN)
    assert critic.get_submodule("score").bias is None
    wide = torch.nn.Linear(20_000, 1, bias=False)
    model = torch.nn.Module()
    model.score = wide
    init_value_head(model, 3)
    bound = math.sqrt(5) / 20_000
    weights = wide.weight.detach().double()
    assert 0.99 * bound < weights.abs().max() <= bound
    assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert weights.mean().item() == pytest.approx(0, abs=0.02 * bound)
    assert head.abs().max() <= math.sqrt(5) / HIDDEN


def test_the_head_depends_on_its_seed_alone(tiny: str) -> None:
    before = torch.get_rng_state()
    first = loaded(tiny).get_parameter(VALUE_HEAD)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(first, loaded(tiny).get_parameter(VALUE_HEAD))
    assert not torch.equal(first, loaded(tiny, head_seed=6).get_parameter(VALUE_HEAD))
    assert loaded(tiny, head_seed=2**64 - 1).get_parameter(VALUE_HEAD).isfinite().all()


def test_the_backbone_is_the_policys(tiny: str) -> None:
    policy = load_causal_lm(tiny, trust_remote_code=False, dropout=0.0).state_dict()
    critic = loaded(tiny).state_dict()
    assert critic.keys() - policy.keys() == {VALUE_HEAD}
    assert all(torch.equal(critic[name], policy[name]) for name in critic.keys() & policy.keys())


def test_first_values_say_i_do_not_know(tiny: str) -> None:
    with torch.no_grad():
        values = token_values(loaded(tiny), some_ids(8, 30))
    assert values.abs().max() < 0.6


def test_a_column_holds_the_value_before_its_token(tiny: str) -> None:
    critic, ids = loaded(tiny), some_ids()
    with torch.no_grad():
        values = token_values(critic, ids)
        hidden = critic.base_model(input_ids=ids).last_hidden_state
    expected = (hidden.double() @ critic.get_parameter(VALUE_HEAD)[0].double())[:, :-1]
    assert values.shape == ids.shape
    assert values.dtype == torch.float32
    assert values[:, 0].tolist() == [0.0] * 3
    torch.testing.assert_close(values[:, 1:].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_value_does_not_know_its_own_token(tiny: str) -> None:
    critic, ids = loaded(tiny), some_ids()
    changed = ids.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 262
    with torch.no_grad():
        before, after = token_values(critic, ids), token_values(critic, changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=1e-5, atol=1e-6)
    assert (before[:, 7:] != after[:, 7:]).all()


def test_padding_on_the_right_is_not_seen(tiny: str) -> None:
    critic, ids = loaded(tiny), some_ids()
    padded = torch.cat([ids, torch.zeros(3, 9, dtype=torch.long)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(
            token_values(critic, padded)[:, :12], token_values(critic, ids), rtol=1e-5, atol=1e-6
        )


def test_every_weight_learns(tiny: str) -> None:
    critic = loaded(tiny)
    token_values(critic, some_ids()).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in critic.parameters())


def test_an_exported_critic_comes_back_with_its_head(tiny: str, tmp_path: Path) -> None:
    critic = loaded(tiny)
    trained = {name: tensor + 0.01 for name, tensor in critic.state_dict().items()}
    export_model(critic, trained, load_tokenizer(tiny, trust_remote_code=False), tmp_path / "critic")
    again = loaded(str(tmp_path / "critic"), head_seed=999)
    assert again.state_dict().keys() == trained.keys()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in again.state_dict().items())
    with torch.no_grad():
        assert torch.equal(token_values(again, some_ids()), token_values(critic, some_ids()))


def test_an_empty_critic_is_the_same_once_it_is_filled(tiny: str, tmp_path: Path) -> None:
    critic = loaded(tiny)
    critic.config.save_pretrained(tmp_path)
    built = build_critic(str(tmp_path), trust_remote_code=False, dropout=0.0).eval()
    built.load_state_dict(critic.state_dict())
    with torch.no_grad():
        assert torch.equal(token_values(built, some_ids()), token_values(critic, some_ids()))


def test_a_backbone_with_holes_is_refused(tiny: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"layers\.1\.mlp\.up_proj\.weight") as caught:
        loaded(str(folder))
    assert "critic.init_from" in (caught.value.hint or "")


def test_no_such_critic(tmp_path: Path) -> None:
    with pytest.raises(NothingThereError):
        loaded(str(tmp_path / "none"))
