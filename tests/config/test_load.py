"""Recipes, overrides, and errors that say which setting was meant."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki.config.load import load_config, read_stored, setting_names, with_overrides
from yaoki.errors import NothingThereError, UsageError

RECIPES = Path(__file__).parents[2] / "recipes"
FAMILY = "data.family=arithmetic"


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_recipe_with_overrides(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        """
        [train]
        steps = 7
        [algorithm]
        gamma = 0.5
        [data]
        files = ["a.json", "b.json"]
        [policy]
        init_from = "model"
        betas = [0.8, 0.9]
        """,
    )
    config = load_config(path, ["train.steps=8", "train.steps = 9", "engine.top_p=0.5", "run.device=cpu"])
    assert (config.train.steps, config.algorithm.gamma) == (9, 0.5)
    assert config.data.files == (Path("a.json").absolute(), Path("b.json").absolute())
    assert config.policy.betas == (0.8, 0.9)
    assert (config.engine.top_p, config.run.device) == (0.5, "cpu")
    assert config.train.num_prompts == 128


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("policy.init_from=builtin:tiny-random", "builtin:tiny-random"),
        ('policy.init_from="quoted"', "quoted"),
        ("policy.init_from=a=b", "a=b"),
        ("policy.init_from=/path/with space", "/path/with space"),
        ("data.problem_column=true story", "true story"),
        ("engine.stop=['x', 'y']", ("x", "y")),
        ("run.deterministic=false", False),
        ("policy.lr=3e-4", 3e-4),
        ("train.seed=1_000", 1000),
    ],
)
def test_what_an_override_means(override: str, value: object) -> None:
    section, _, field = override.partition("=")[0].partition(".")
    config = load_config(None, [FAMILY, override])
    assert getattr(getattr(config, section), field) == value


def test_with_overrides_keeps_the_rest() -> None:
    config = load_config(None, [FAMILY, "algorithm.gamma=0.5"])
    changed = with_overrides(config, ["train.steps=3"])
    assert changed.train.steps == 3
    assert with_overrides(changed, ["train.steps=1000"]) == config
    with pytest.raises(UsageError, match=r"the command line: there is no setting train\.step\n"):
        with_overrides(config, ["train.step=3"])


def test_a_stored_config_is_read_back(tmp_path: Path) -> None:
    config = load_config(None, [FAMILY, "policy.betas=[0.1, 0.2]"])
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json(), "utf-8")
    assert read_stored(path) == config
    path.write_text(config.model_dump_json()[:-5], "utf-8")
    with pytest.raises(UsageError, match="not valid JSON"):
        read_stored(path)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("algorithm.gama=1", "algorithm.gamma"),
        ("train.gamma=1", "algorithm.gamma"),
        ("train.step=1", "train.steps"),
        ("trian.steps=1", "train"),
        ("polcy.lr=1", "policy"),
        ("train.lr=1", "policy.lr or critic.lr"),
        ("train.temperature=1", "engine.temperature"),
        ("data.num_prompts=1", "train.num_prompts"),
        ("checkpoint.keep=1", "checkpoint.keep_last or checkpoint.keep_every or checkpoint.keep_best"),
        ("engine.max_tokens=1", "engine.max_new_tokens"),
    ],
)
def test_did_you_mean(override: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(None, [FAMILY, override])
    assert caught.value.hint == f"did you mean {meant}?"
    assert "there is no setting" in caught.value.message


def test_a_wrong_key_in_a_recipe_names_the_recipe(tmp_path: Path) -> None:
    path = recipe(tmp_path, '[data]\nfamily = "arithmetic"\n[train]\nnum_promts = 3\n')
    with pytest.raises(UsageError, match=r"r\.toml: there is no setting train\.num_promts") as caught:
        load_config(path)
    assert caught.value.hint == "did you mean train.num_prompts?"
    with pytest.raises(UsageError) as caught:
        load_config(path, ["zzz.qqq=1", "train.num_promts=3"])
    assert "zzz" in caught.value.message
    assert "train.num_promts" in caught.value.message


def test_nothing_near() -> None:
    with pytest.raises(UsageError) as caught:
        load_config(None, [FAMILY, "zzz.qqq=1"])
    assert caught.value.hint is not None
    assert "sections are run, train, algorithm, data" in caught.value.hint


@given(st.sampled_from(setting_names()), st.data())
def test_one_letter_too_few_finds_the_setting(name: str, data: st.DataObject) -> None:
    section, _, field = name.partition(".")
    place = data.draw(st.integers(0, len(field) - 1))
    typo = field[:place] + field[place + 1 :]
    if not typo or f"{section}.{typo}" in setting_names():
        return
    with pytest.raises(UsageError) as caught:
        load_config(None, [FAMILY, f"{section}.{typo}=1"])
    hint = caught.value.hint or ""
    assert hint.startswith("did you mean ") or len(field) <= 3, hint


@pytest.mark.parametrize("override", ["steps=1", "a.b.c=1", "=1", ".steps=1", "train.=1", "nonsense"])
def test_what_is_no_override(override: str) -> None:
    with pytest.raises(UsageError, match="cannot read the override") as caught:
        load_config(None, [FAMILY, override])
    assert caught.value.hint == "overrides look like train.steps=200"


def test_a_value_out_of_bounds_is_shown(tmp_path: Path) -> None:
    path = recipe(tmp_path, '[data]\nfamily = "arithmetic"\n[train]\nsteps = -4\n[algorithm]\ngamma = 2.0\n')
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert "train.steps: Input should be greater than or equal to 1, not -4" in caught.value.message
    assert "algorithm.gamma: Input should be less than or equal to 1, not 2.0" in caught.value.message


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(NothingThereError, match="there is no recipe") as caught:
        load_config(tmp_path / "none.toml")
    assert caught.value.hint
    with pytest.raises(UsageError, match="not valid TOML"):
        load_config(recipe(tmp_path, "[train\n"))
    (tmp_path / "latin1.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_config(tmp_path / "latin1.toml")
    with pytest.raises(UsageError, match="cannot read the recipe"):
        load_config(tmp_path)
    with pytest.raises(UsageError, match="train is not a section"):
        load_config(recipe(tmp_path, "train = 3\n"), [FAMILY, "train.steps=3"])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.name)
def test_the_recipes_are_valid_and_hold_only_what_differs(path: Path) -> None:
    config = load_config(path).model_dump(mode="json")
    defaults = load_config(None, [FAMILY]).model_dump(mode="json")
    for section, values in tomllib.loads(path.read_text("utf-8")).items():
        for field in values:
            same = config[section][field] == defaults[section][field]
            # There is no default for where the tasks come from.
            assert not same or (section, field) in {("data", "family"), ("policy", "init_from")}, field
