"""No setting without effect: every field of the config is read somewhere outside of yaoki.config."""

from pathlib import Path

import pytest

import yaoki
from yaoki.config.load import setting_names

from .field_reads import settings_read

SOURCE = Path(yaoki.__file__).parent
FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path.parent != SOURCE / "config"]


def test_every_setting_is_read() -> None:
    read = set().union(*(settings_read(path.read_text("utf-8")) for path in FILES))
    assert sorted(set(setting_names()) - read) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(config: Config): return config.algorithm.gamma", {"algorithm.gamma"}),
        ("def f(config): return config.algorithm.gamma", set()),
        ("def f(algorithm): return algorithm.gamma", set()),
        ("def f(config: Config):\n  train = config.train\n  return train.steps", {"train.steps"}),
        ("def f(config: Config):\n  train = config.train\n  train = 3\n  return train.steps", set()),
        ("def f(config: Config):\n  a, b = config.run, config.kl\n  b.use", {"kl.use"}),
        ("def f(config: Config):\n  def g(): return config.kl.use\n  return g", {"kl.use"}),
        ("def f(config: Config): return [config.kl.use for _ in range(3)]", {"kl.use"}),
        ("def f(config: NetworkConfig): return config.lr", {"policy.lr", "critic.lr"}),
        ("def f(config: CriticConfig): return config.lr", {"critic.lr"}),
        ("def f(*, kl: KLConfig): return kl.coef", {"kl.coef"}),
        ("def f(config: Config): return config.kl.needs_reference",
         {"kl.coef", "kl.measure", "kl.controller"}),
        ("class A:\n  config: Config\n  def f(self): return self.config.eval.num_tasks", {"eval.num_tasks"}),
        ("class A:\n  def __init__(self, config: KLConfig): self._kl = config\n"
         "  def f(self): return self._kl.use", {"kl.use"}),
        ("class A:\n  def f(self): return self._config.kl.use", set()),
        ("class A:\n  kl: KLConfig\ndef f(a: A): return a.kl.use", {"kl.use"}),
        ("class A:\n  config: Config\nclass B:\n  def __init__(self, a: A): self._a = a\n"
         "  def f(self):\n    kl = self._a.config.kl\n    return kl.use", {"kl.use"}),
        ("class A:\n  kl: int\ndef f(a: A): return a.kl.use", set()),
        ("class A:\n  config: Config\n  def f(self): return self.progress.train.steps", set()),
        ("from yaoki.config.load import load_config\nconfig = load_config(path)\nconfig.train.steps",
         {"train.steps"}),
        ("from yaoki.config.load import load_config as load\nconfig = load(path)\nconfig.train.steps",
         {"train.steps"}),
        ("config = load_config(path)\nconfig.train.steps", set()),
        ("def f() -> tuple[int, Config]: ...\nn, c = f()\nc.train.steps", {"train.steps"}),
        ("def f() -> tuple[int, Config]: ...\nn, c = f()\nn.train.steps", set()),
        ("def f(config: Config): config.train.steps = 3", set()),
        ("def f(config: Config): return config.model_dump()", set()),
        ("# config.algorithm.gamma\n'config.algorithm.gamma'", set()),
    ],
)  # fmt: skip
def test_what_counts_as_a_read(source: str, expected: set[str]) -> None:
    assert settings_read(source) == expected
