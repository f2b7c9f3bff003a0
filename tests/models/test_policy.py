"""Loading causal LMs, and log-probabilities of tokens against the plain definition."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import GPT2Config, PreTrainedTokenizerFast

from yaoki.errors import NothingThereError, UsageError
from yaoki.models.huggingface import export_model, load_config, load_tokenizer
from yaoki.models.policy import build_causal_lm, load_causal_lm, token_logprobs

from .samples import some_ids


def damaged(tiny: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.mark.parametrize("first", [1, 5, 11])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_against_the_definition(tiny: str, first: int, temperature: float) -> None:
    model = load_causal_lm(tiny, trust_remote_code=False, dropout=0.0).eval()
    ids = some_ids()
    with torch.no_grad():
        logprobs, logits = token_logprobs(model, ids, first, temperature)
        everything = model.double()(input_ids=ids).logits / temperature
    expected = everything.log_softmax(-1)
    assert logprobs.shape == (3, 12 - first)
    assert logits.shape == (3, 12 - first, model.config.vocab_size)
    assert logits.dtype == logprobs.dtype == torch.float32
    for row in range(3):
        for t in range(first, 12):
            wanted = expected[row, t - 1, ids[row, t]].item()
            assert logprobs[row, t - first].item() == pytest.approx(wanted, abs=1e-5)
    torch.testing.assert_close(logits.double(), everything[:, first - 1 : -1], rtol=1e-4, atol=1e-4)


def test_padding_on_the_right_is_not_seen(tiny: str) -> None:
    model = load_causal_lm(tiny, trust_remote_code=False, dropout=0.0).eval()
    ids = some_ids()
    with torch.no_grad():
        plain, _ = token_logprobs(model, ids, 4, 1.0)
        for filler in (0, 261):
            padded = torch.cat([ids, torch.full((3, 7), filler)], dim=1)
            found, _ = token_logprobs(model, padded, 4, 1.0)
            torch.testing.assert_close(found[:, :8], plain, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_weight(tiny: str) -> None:
    model = load_causal_lm(tiny, trust_remote_code=False, dropout=0.0)
    token_logprobs(model, some_ids(), 4, 1.0)[0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_dropout_is_what_was_asked_for(tiny: str) -> None:
    model = load_causal_lm(tiny, trust_remote_code=False, dropout=0.5).train()
    with torch.no_grad():
        one, other = (token_logprobs(model, some_ids(), 1, 1.0)[0] for _ in range(2))
        assert not torch.equal(one, other)
        model.eval()
        one, other = (token_logprobs(model, some_ids(), 1, 1.0)[0] for _ in range(2))
        assert torch.equal(one, other)
    assert load_config(tiny, trust_remote_code=False, dropout=0.0).attention_dropout == 0.0


def test_dropout_where_there_is_none(tmp_path: Path) -> None:
    GPT2Config(n_layer=1).save_pretrained(tmp_path)
    assert load_config(str(tmp_path), trust_remote_code=False, dropout=0.0).model_type == "gpt2"
    with pytest.raises(UsageError, match=r"gpt2.* has no attention_dropout") as caught:
        load_config(str(tmp_path), trust_remote_code=False, dropout=0.1)
    assert "policy.dropout=0" in (caught.value.hint or "")


def test_an_empty_model_is_the_same_once_it_is_filled(tiny: str) -> None:
    loaded = load_causal_lm(tiny, trust_remote_code=False, dropout=0.0).eval()
    built = build_causal_lm(tiny, trust_remote_code=False, dropout=0.0).eval()
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    built.load_state_dict(loaded.state_dict())
    with torch.no_grad():
        assert torch.equal(built(input_ids=some_ids()).logits, loaded(input_ids=some_ids()).logits)


def test_half_precision_weights_become_float32(tiny: str, tmp_path: Path) -> None:
    folder = damaged(tiny, tmp_path)
    half = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    for model in (
        load_causal_lm(str(folder), trust_remote_code=False, dropout=0.0),
        build_causal_lm(str(folder), trust_remote_code=False, dropout=0.0),
    ):
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_what_is_exported_is_what_is_loaded(tiny: str, tmp_path: Path) -> None:
    model = load_causal_lm(tiny, trust_remote_code=False, dropout=0.1)
    trained = {name: tensor + 0.01 for name, tensor in model.state_dict().items()}
    tokenizer = load_tokenizer(tiny, trust_remote_code=False)
    export_model(model, trained, tokenizer, tmp_path / "out")
    again = load_causal_lm(str(tmp_path / "out"), trust_remote_code=False, dropout=0.0).eval()
    with torch.no_grad():
        before = model.eval()(input_ids=some_ids()).logits
        assert torch.equal(again(input_ids=some_ids()).logits, before)
    assert torch.equal(again.state_dict()["lm_head.weight"], trained["lm_head.weight"])
    assert load_tokenizer(str(tmp_path / "out"), trust_remote_code=False)("1<answer>") == tokenizer(
        "1<answer>"
    )
    assert not list((tmp_path / "out").glob("*.bin"))


def test_an_export_needs_every_tensor(tiny: str, tmp_path: Path) -> None:
    model = load_causal_lm(tiny, trust_remote_code=False, dropout=0.0)
    tensors = dict(model.state_dict())
    del tensors["model.norm.weight"]
    with pytest.raises(RuntimeError, match=r"model\.norm\.weight"):
        export_model(model, tensors, load_tokenizer(tiny, trust_remote_code=False), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_such_model(tmp_path: Path) -> None:
    for load in (
        lambda: load_causal_lm(str(tmp_path / "none"), trust_remote_code=False, dropout=0.0),
        lambda: build_causal_lm(str(tmp_path / "none"), trust_remote_code=False, dropout=0.0),
        lambda: load_tokenizer(str(tmp_path / "none"), trust_remote_code=False),
    ):
        with pytest.raises(NothingThereError, match=str(tmp_path / "none")) as caught:
            load()
        assert "builtin:tiny" in (caught.value.hint or "")


def test_weights_in_pickles_are_refused(tiny: str, tmp_path: Path) -> None:
    folder = damaged(tiny, tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(NothingThereError, match="safetensors"):
        load_causal_lm(str(folder), trust_remote_code=False, dropout=0.0)


def test_weights_that_are_cut_short_are_an_error_not_a_surprise(tiny: str, tmp_path: Path) -> None:
    folder = damaged(tiny, tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(NothingThereError) as caught:
        load_causal_lm(str(folder), trust_remote_code=False, dropout=0.0)
    assert str(folder) in caught.value.message


def test_weights_of_another_shape_are_refused(tiny: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "model"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps(config | {"intermediate_size": config["intermediate_size"] // 2})
    )
    with pytest.raises(UsageError, match="other shapes than its config"):
        load_causal_lm(str(path), trust_remote_code=False, dropout=0.0)


def test_missing_weights_are_never_made_up(tiny: str, tmp_path: Path) -> None:
    folder = damaged(tiny, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load_causal_lm(str(folder), trust_remote_code=False, dropout=0.0)


def test_ties_that_the_weights_deny_are_refused(tiny: str, tmp_path: Path) -> None:
    """A model that is built from the architecture alone would have one tensor for both."""
    folder = damaged(tiny, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    load_causal_lm(str(folder), trust_remote_code=False, dropout=0.0)
    save_file(tensors | {"lm_head.weight": head + 1}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"other weights in lm_head\.weight") as caught:
        load_causal_lm(str(folder), trust_remote_code=False, dropout=0.0)
    assert "tie_word_embeddings" in (caught.value.hint or "")


def test_a_tokenizer_must_know_its_end(tmp_path: Path) -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    endless.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no end-of-sequence token") as caught:
        load_tokenizer(str(tmp_path), trust_remote_code=False)
    assert caught.value.hint


def test_code_that_comes_with_a_model_is_not_run(tiny: str, tmp_path: Path) -> None:
    folder = damaged(tiny, tmp_path)
    (folder / "configuration_own.py").write_text(f"open({str(tmp_path / 'was_here')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(NothingThereError, match="trust_remote_code"):
        load_causal_lm(str(folder), trust_remote_code=False, dropout=0.0)
    assert not (tmp_path / "was_here").exists()
