"""The tiny base model: the same bits everywhere, cached by everything it depends on, an ordinary folder."""

import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from yaoki.models import builtin
from yaoki.models.builtin import END_OF_TEXT, MARKS, Pretraining, cache_directory, tiny_base, tiny_random

from .samples import SHORT, example, no_example

NOTHING = Pretraining(steps=0)
TOKENIZER = builtin.tiny_tokenizer()


def ignore(done: int, total: int) -> None:
    pass


RACE = """
import sys, time
from pathlib import Path
import torch
from yaoki.models.builtin import Pretraining, tiny_base
from tests.models.samples import SHORT, example

torch.set_num_threads(2)
torch.rand(int(sys.argv[1]))
meeting = Path(sys.argv[2])

def meet(done, total):
    "Both have seen an empty cache before either of them writes."
    if done == total:
        (meeting / sys.argv[1]).touch()
        while len(list(meeting.iterdir())) < 2:
            time.sleep(0.01)

print(tiny_base(example, "texts", SHORT, meet))
"""


@pytest.mark.processes
def test_two_processes_that_make_it_at_once_make_the_same(cache: Path, tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(number), str(meeting)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    folders = {racer.communicate(timeout=300)[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0]
    assert len(folders) == 1
    assert [str(path) for path in cache.iterdir()] == list(folders)
    (theirs,) = map(Path, folders)

    cache.rename(tmp_path / "theirs")
    progress: list[tuple[int, int]] = []
    ours = tiny_base(example, "texts", SHORT, lambda done, total: progress.append((done, total)))
    assert ours == theirs
    assert progress == [(1, 2), (2, 2)]
    files = {path.name for path in ours.iterdir()}
    assert files == {path.name for path in (tmp_path / "theirs" / ours.name).iterdir()}
    for name in files:
        assert (ours / name).read_bytes() == (tmp_path / "theirs" / ours.name / name).read_bytes(), name


def test_training_changes_the_weights_and_depends_on_the_texts(cache: Path) -> None:
    folders = [
        tiny_base(example, "texts", NOTHING, ignore),
        tiny_base(example, "texts", replace(SHORT, steps=1), ignore),
        tiny_base(lambda index: example(index + 1), "other", replace(SHORT, steps=1), ignore),
    ]
    embeddings = [load_file(folder / "model.safetensors")["model.embed_tokens.weight"] for folder in folders]
    assert not torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[1], embeddings[2])


def test_more_training_gives_a_lower_loss() -> None:
    """On the completion alone: the prompt is given, not learnt."""
    plan = Pretraining(steps=12, batch_size=8, warmup_steps=1)
    ids, targets = builtin._collate(TOKENIZER, [example(index) for index in range(8)])
    prompt = TOKENIZER(example(0)[0])["input_ids"]
    assert targets[0, : len(prompt)].tolist() == [-100] * len(prompt)
    assert targets[0, len(prompt) :].tolist()[0] == ids[0, len(prompt)]
    losses = []
    for steps in (1, plan.steps):
        model = builtin._pretrain(replace(plan, steps=steps), TOKENIZER, example, ignore)
        losses.append(float(model(input_ids=ids, labels=targets).loss.detach()))
    assert losses[1] < 0.7 * losses[0]


def test_a_model_in_the_cache_is_not_made_again(cache: Path) -> None:
    folder = tiny_base(example, "texts", replace(SHORT, steps=1), ignore)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    again = tiny_base(
        no_example, "texts", replace(SHORT, steps=1), lambda done, total: pytest.fail("trained")
    )
    assert again == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_it_is_made_on_one_thread_whatever_is_set(cache: Path) -> None:
    found = []

    def look(done: int, total: int) -> None:
        found.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))

    torch.set_num_threads(2)
    before = torch.are_deterministic_algorithms_enabled()
    tiny_base(example, "texts", replace(SHORT, steps=1), look)
    assert found == [(1, True)]
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (2, before)


def test_what_was_not_finished_leaves_nothing(cache: Path) -> None:
    with pytest.raises(AssertionError, match="a random model reads no text"):
        tiny_base(no_example, "texts", SHORT, ignore)
    assert list(cache.iterdir()) == []


def test_the_digest_covers_everything(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(plan: Pretraining = SHORT, source: str = "texts") -> str:
        return builtin._digest(plan, source)

    found = [digest(), digest(source="other texts")]
    found += [
        digest(replace(SHORT, **change))
        for change in ({"steps": 3}, {"batch_size": 9}, {"lr": 1e-3}, {"warmup_steps": 1}, {"seed": 1})
    ]
    for target, attribute, value in [
        (torch, "__version__", "0.0"),
        (builtin.transformers, "__version__", "0.0"),
        (platform, "machine", lambda: "abacus"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "NONE"),
        (builtin.inspect, "getsource", lambda module: "other code"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(target, attribute, value)
            found.append(digest())
    assert len(set(found)) == len(found)
    assert digest() == found[0]
    assert digest() in str(tiny_base(example, "texts", SHORT, ignore))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YAOKI_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == Path.home() / ".cache" / "yaoki"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_directory() == Path("/x/yaoki")
    monkeypatch.setenv("YAOKI_CACHE", "/y")
    assert cache_directory() == Path("/y")


def test_it_is_an_ordinary_folder(tiny: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert model.config.model_type == "qwen2"
    assert 500_000 < model.num_parameters() < 1_500_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)
    text = "12+3=<think>\u00e9</think><answer>\\boxed{15}</answer>"
    assert tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert {path.suffix for path in Path(tiny).iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert "auto_map" not in json.loads((Path(tiny) / "config.json").read_text())
    expected = tiny_random(builtin.seed(0, builtin.Purpose.BASE_MODEL)).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())


def test_random_weights_are_the_same_for_the_same_seed_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (tiny_random(seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


pieces = st.text() | st.sampled_from(
    [*MARKS, END_OF_TEXT, " ", "\n", "\r\n", "\x00", "\U0001f9ee", "e\u0301"]
)


@given(st.lists(pieces, max_size=6).map("".join))
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("mark", [*MARKS, END_OF_TEXT])
def test_a_mark_is_one_token(mark: str) -> None:
    (token,) = TOKENIZER(mark)["input_ids"]
    for text in (f"x{mark}y", f" {mark} ", f"{mark}{mark}", f"<{mark}>"):
        assert TOKENIZER(text)["input_ids"].count(token) == text.count(mark)
    assert TOKENIZER.decode([token]) == mark
    assert TOKENIZER.decode([token], skip_special_tokens=True) == ("" if mark == END_OF_TEXT else mark)
