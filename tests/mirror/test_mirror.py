"""The thread: when it copies, what becomes of failures, how it ends."""

import threading
from pathlib import Path

import pytest

from yaoki.errors import RefusedError, YaokiError
from yaoki.mirror import mirror as module
from yaoki.mirror.mirror import Mirror

from .samples import (
    URL,
    FaultyFileSystem,
    do_step,
    nothing_happens,
    save,
    start_run,
    stored,
    whole_checkpoints,
)

NEVER_S = 1e6


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = start_run(tmp_path / "run")
    do_step(path, 1)
    return path


def fail(verb: str, name: str) -> None:
    raise ConnectionError("gone")


def ignore(text: str) -> None:
    pass


def test_it_copies_by_itself(run: Path) -> None:
    seen = threading.Event()
    FaultyFileSystem.after = staticmethod(lambda verb, name: seen.set() if "manifest" in name else None)
    with Mirror(run, URL, 0.001, ignore):
        save(run, 1)
        assert seen.wait(60)
    assert whole_checkpoints() == [1]


def test_sync_means_everything_up_to_now(run: Path) -> None:
    with Mirror(run, URL, NEVER_S, ignore) as mirror:
        save(run, 1)
        mirror.sync()
        assert whole_checkpoints() == [1]
        do_step(run, 2)
        save(run, 2)
        mirror.sync()
        assert whole_checkpoints() == [1, 2]


def test_a_sync_during_a_pass_waits_for_the_next_one(run: Path) -> None:
    in_pass, go_on = threading.Event(), threading.Event()

    def hold(verb: str, name: str) -> None:
        in_pass.set()
        assert go_on.wait(60)

    with Mirror(run, URL, NEVER_S, ignore) as mirror:
        FaultyFileSystem.before = staticmethod(hold)
        first = threading.Thread(target=mirror.sync)
        first.start()
        assert in_pass.wait(60)
        save(run, 1)  # after the pass has looked
        second = threading.Thread(target=mirror.sync)
        second.start()
        go_on.set()
        first.join()
        second.join()
        assert whole_checkpoints() == [1]


def test_leaving_copies_what_is_left(run: Path) -> None:
    with Mirror(run, URL, NEVER_S, ignore):
        save(run, 1)
    assert whole_checkpoints() == [1]


def test_failures_are_warnings_until_there_are_too_many(run: Path) -> None:
    warnings: list[str] = []
    with Mirror(run, URL, NEVER_S, warnings.append) as mirror:
        FaultyFileSystem.before = staticmethod(fail)
        for _ in range(4):
            with pytest.raises(YaokiError, match=r"is behind the run: .*ConnectionError: gone"):
                mirror.sync()
            mirror.poll()
        with pytest.raises(YaokiError, match="is behind the run"):
            mirror.sync()
        with pytest.raises(YaokiError, match="is behind the run"):
            mirror.poll()
        assert len(warnings) == 5
        nothing_happens()
        mirror.sync()
        mirror.poll()
    assert len(warnings) == 5


def test_a_url_that_cannot_be_written_is_found_out_at_once(run: Path) -> None:
    FaultyFileSystem.before = staticmethod(fail)
    with pytest.raises(YaokiError, match=r"cannot write .*/trial: ConnectionError: gone"):
        Mirror(run, URL, NEVER_S, ignore).__enter__()


def test_a_url_that_cannot_be_written_later_does_not_keep_a_run_from_going_on(run: Path) -> None:
    with Mirror(run, URL, NEVER_S, ignore):
        pass
    FaultyFileSystem.before = staticmethod(fail)
    with pytest.raises(YaokiError, match="is behind the run"), Mirror(run, URL, NEVER_S, ignore) as mirror:
        mirror.poll()


def test_behind_at_the_end_is_an_error(run: Path) -> None:
    with pytest.raises(YaokiError, match="is behind the run"), Mirror(run, URL, NEVER_S, ignore):
        FaultyFileSystem.before = staticmethod(fail)


def test_it_does_not_hide_another_error(run: Path) -> None:
    warnings: list[str] = []

    def fail_twice() -> None:
        with Mirror(run, URL, NEVER_S, warnings.append):
            FaultyFileSystem.before = staticmethod(fail)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail_twice()
    assert "is behind" in warnings[-1]


def test_storage_that_hangs_does_not_keep_the_process(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FINISH_TIMEOUT_S", 0.01)
    never = threading.Event()
    with pytest.raises(YaokiError, match=r"after 0\.01 s"), Mirror(run, URL, NEVER_S, ignore):
        FaultyFileSystem.before = staticmethod(lambda verb, name: never.wait(60) and None)
    never.set()
    nothing_happens()


def test_a_mistake_on_the_thread_is_raised(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake(self: object) -> None:
        raise TypeError("a mistake")

    monkeypatch.setattr(module.Copier, "copy", mistake)
    with pytest.raises(TypeError, match="a mistake"), Mirror(run, URL, NEVER_S, ignore):
        pass


def test_another_runs_url_is_refused_before_anything_is_sent(run: Path, tmp_path: Path) -> None:
    with Mirror(run, URL, NEVER_S, ignore):
        pass
    before = stored()
    other = start_run(tmp_path / "other", "run-8")
    with pytest.raises(RefusedError), Mirror(other, URL, NEVER_S, ignore):
        pass
    assert stored() == before
