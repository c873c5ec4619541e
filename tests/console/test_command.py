import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlp_dist.console.command import run
from mlp_dist.console.process import Interrupted
from mlp_dist.core.errors import BundleError, UsageError


def exit_code(action: Callable[[], object]) -> object:
    with pytest.raises(SystemExit) as raised:
        action()
    return raised.value.code


def stop_with_note() -> Interrupted:
    error = Interrupted(signal.SIGTERM)
    error.add_note("2 of 5 epochs are in outputs/run")
    return error


def run_and_fail(error: BaseException) -> object:
    def main() -> None:
        raise error

    return exit_code(lambda: run(main))


def test_closed_stdout_is_no_error() -> None:
    code = "from mlp_dist.console import command; command.run(lambda: print('line\\n' * 10**6))"
    words = f'{sys.executable} -c "{code}" | head -n 1'
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("line\n", "")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("epochs is 0"), 2, "error: epochs is 0\n"),
        (BundleError("damaged"), 1, "error: damaged\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (stop_with_note(), 143, "\nstopped by SIGTERM\n2 of 5 epochs are in outputs/run\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_the_main_process_reports_an_error(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, expected in (("0", message), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert run_and_fail(error) == code
        assert capsys.readouterr() == ("", expected)


def test_unexpected_errors_name_the_rank_and_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "error: unexpected ZeroDivisionError in the process of rank 1: odd"
    assert run_and_fail(ZeroDivisionError("odd")) == 1
    assert capsys.readouterr().err == f"{message}; --debug shows the traceback\n"
    monkeypatch.setattr(sys, "argv", ["tool", "--debug"])
    assert run_and_fail(ZeroDivisionError("odd")) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB\nmore"), "the GPU's memory is too small"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "this machine's memory"),
    ],
)
def test_out_of_memory_errors_suggest_smaller_trainings(
    capsys: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    assert run_and_fail(error) == 1
    err = capsys.readouterr().err
    assert words in err
    assert "a training needs less with a smaller --batch-size or --hidden-sizes" in err
    assert len(err.splitlines()) == 1


def test_sigterm_removes_temporary_files(tmp_path: Path) -> None:
    code = """
import time
from pathlib import Path
from mlp_dist.console import command
from mlp_dist.core.io import replacing_file

def main():
    with replacing_file(Path("file.txt")) as temporary:
        temporary.write_text("half")
        print("writing", flush=True)
        time.sleep(60)

command.run(main)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
