import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlp_dist.console.command import Parser, run
from mlp_dist.console.processes import Interrupted
from mlp_dist.core.errors import BundleError, DataError, MlpDistError, UsageError


def parser() -> Parser:
    parser = Parser(prog="tool")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--mode", choices=("fast", "slow"))
    parser.add_argument("images", nargs="*")
    return parser


def exit_code(action: Callable[[], object]) -> object:
    with pytest.raises(SystemExit) as raised:
        action()
    return raised.value.code


def test_known_arguments_are_parsed() -> None:
    args = parser().parse_args(["--epochs", "3", "--learning-rate=0.5", "one", "two"])
    assert (args.epochs, args.learning_rate, args.mode, args.images) == (3, 0.5, None, ["one", "two"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "3"], "unknown argument '--epoch'; did you mean --epochs?\n"),
        (["--learning_rate=1"], "unknown argument '--learning_rate=1'; did you mean --learning-rate?\n"),
        (["--EPOCHS", "3"], "unknown argument '--EPOCHS'; did you mean --epochs?\n"),
        (["--quite-another"], "unknown argument '--quite-another' (there are: {flags})"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--mode", "odd"], "argument --mode: invalid choice: 'odd' (choose from fast, slow)"),
        (["--mode", "fats"], "argument --mode: invalid choice: 'fats'; did you mean fast? (choose from"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert exit_code(lambda: parser().parse_args(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "error: " + message.format(flags="--help, --debug, --epochs, --learning-rate, --mode")
    )
    assert err.endswith("\n(tool --help tells more)\n")
    assert len(err.splitlines()) == 2


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    code = "from mlp_dist import command; command.run(lambda: print('line\\n' * 10**6))"
    words = f'{sys.executable} -c "{code}" | head -n 1'
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("line\n", "")


def test_help_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: parser().parse_args(["--help"])) == 0
    out, err = capsys.readouterr()
    assert "--learning-rate" in out
    assert err == ""


def raising(error: BaseException) -> Callable[[], int | None]:
    def main() -> int | None:
        raise error

    return main


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_run_exits_as_the_command_returns(
    capsys: pytest.CaptureFixture[str], returned: int | None, code: int
) -> None:
    assert exit_code(lambda: run(lambda: returned)) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("epochs is 0"), 2, "error: epochs is 0\n"),
        (DataError("no such file"), 1, "error: no such file\n"),
        (BundleError("damaged"), 1, "error: damaged\n"),
        (MlpDistError("anything"), 1, "error: anything\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (Interrupted(signal.SIGINT), 130, "\nstopped by SIGINT\n"),
        (Interrupted(signal.SIGTERM), 143, "\nstopped by SIGTERM\n"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_run_tells_errors_once_and_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
    rank: str | None,
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert exit_code(lambda: run(raising(error))) == code
    assert capsys.readouterr() == ("", message if rank != "1" else "")


def test_run_tells_the_notes_of_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    error = Interrupted(signal.SIGTERM)
    error.add_note("2 of 5 epochs are in outputs/run")
    assert exit_code(lambda: run(raising(error))) == 143
    assert capsys.readouterr().err == "\nstopped by SIGTERM\n2 of 5 epochs are in outputs/run\n"


def test_other_ranks_are_silent_about_wrong_arguments(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert exit_code(lambda: parser().parse_args(["--epoch"])) == 2
    assert capsys.readouterr() == ("", "")


def test_a_flag_of_an_action_is_compared_with_those_of_the_action(capsys: pytest.CaptureFixture[str]) -> None:
    tool = parser()
    tool.add_subparsers(dest="action").add_parser("start").add_argument("--port")
    assert exit_code(lambda: tool.parse_args(["start", "--prot", "1"])) == 2
    assert "unknown argument '--prot'; did you mean --port?" in capsys.readouterr().err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_errors_of_the_program_are_told_by_each_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert exit_code(lambda: run(raising(ZeroDivisionError("division by zero")))) == 1
    of_rank = " in the process of rank 1" if rank == "1" else ""
    assert capsys.readouterr().err == (
        f"error: this should not have happened{of_rank}: ZeroDivisionError: division by zero; "
        "--debug shows where it comes from\n"
    )


@pytest.mark.parametrize("error", [ZeroDivisionError("odd"), UsageError("odd"), OSError("odd")])
def test_debug_shows_where_an_error_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(sys, "argv", ["tool", "--debug"])
    assert vars(parser().parse_args(["--debug"])) == vars(parser().parse_args([]))
    assert exit_code(lambda: run(raising(error))) == (2 if isinstance(error, UsageError) else 1)
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in raising" in err or "in main" in err
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore"),
            "the GPU's memory is too",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "this machine's memory"),
        (MemoryError("cannot allocate"), "this machine's memory is too small: cannot allocate"),
    ],
)
def test_too_little_memory_is_told_with_what_needs_less(
    capsys: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    assert exit_code(lambda: run(raising(error))) == 1
    err = capsys.readouterr().err
    assert words in err
    assert "a training needs less with a smaller --batch-size or --hidden-sizes" in err
    assert len(err.splitlines()) == 1


def test_sigterm_removes_what_is_half_written(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from mlp_dist import command
from mlp_dist.core.files import replacing_file

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
