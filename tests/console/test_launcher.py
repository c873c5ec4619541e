"""What accelerate launch was asked for is followed or refused, from its words, its YAML and its variables."""

import os
import sys
from pathlib import Path

import pytest

from mlp_dist.cli import train
from mlp_dist.console import launcher
from mlp_dist.core.errors import UsageError

LAUNCH = "/venv/bin/python /venv/bin/accelerate launch"
SCRIPT = ["--epochs", "3", "--gradient_clipping", "7"]
"""The script's own words, which are not the launcher's."""

DEFAULT = "home/accelerate/default_config.yaml"
FILES = {
    DEFAULT: "deepspeed_config:\n  gradient_accumulation_steps: 4\n  gradient_clipping: 0.5\n",
    "empty.yaml": "distributed_type: 'NO'\n",
    "xla.yaml": "distributed_type: XLA\n",
}


@pytest.fixture(autouse=True)
def nothing_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ACCELERATE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", "home")
    monkeypatch.setattr(sys, "argv", ["train.py", *SCRIPT])
    monkeypatch.chdir(tmp_path)
    Path(DEFAULT).parent.mkdir(parents=True)
    for name, text in FILES.items():
        Path(name).write_text(text)


def start(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `line` have started this process; words like A=B before it are Accelerate's variables."""
    words = line.split()
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    words += ["launch/train.py", *SCRIPT]
    monkeypatch.setattr(launcher, "parent_process", lambda what: [*words, ""])


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        (f"{LAUNCH} --cpu", ""),
        (f"MIXED_PRECISION=no DYNAMO_BACKEND=NO {LAUNCH} --cpu --mixed_precision no", ""),
        (f"MIXED_PRECISION=bf16 {LAUNCH} --cpu", "--mixed-precision bf16"),
        (f"DYNAMO_BACKEND=INDUCTOR DYNAMO_MODE=default {LAUNCH} --cpu", "--compile"),
        (f"{LAUNCH} --cpu --gradient-accumulation-steps=4", "--accumulation-steps 4"),
        (f"{LAUNCH} --cpu --gradient_clipping 7 --gradient_clipping 0.5", "--clip-norm 0.5"),
        (f"{LAUNCH} --cpu --gradient_accumulation_steps 1 --gradient_clipping 0", ""),
        ("python -m accelerate.commands.launch --cpu --gradient_clipping 2 -m", "--clip-norm 2"),
        ("bash --gradient_clipping 0.5", ""),
        ("GRADIENT_ACCUMULATION_STEPS=2 bash", "--accumulation-steps 2"),
        (LAUNCH, "--accumulation-steps 4 --clip-norm 0.5"),
        (f"{LAUNCH} --gradient_clipping 2", "--accumulation-steps 4 --clip-norm 2"),
        (f"{LAUNCH} --config_file empty.yaml", ""),
        (f"{LAUNCH} --cpu --config_file={DEFAULT}", "--accumulation-steps 4 --clip-norm 0.5"),
    ],
)
def test_what_is_followed(line: str, flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start(line, monkeypatch)
    assert launcher.launcher_flags() == flags.split()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"USE_FSDP=true {LAUNCH}", "to FSDP, which mlp_dist does not support; use --multi_gpu or"),
        (f"USE_DEEPSPEED=true {LAUNCH}", "to DeepSpeed, which"),
        (f"USE_MEGATRON_LM=true {LAUNCH}", "to Megatron-LM, which"),
        (f"USE_PARALLELISM_CONFIG=true {LAUNCH}", "to a parallelism config, which"),
        (f"{LAUNCH} --tpu", "to XLA, which mlp_dist does not support; use a GPU or the CPU"),
        (f"{LAUNCH} --config_file xla.yaml", "to XLA, which"),
        (
            f"MIXED_PRECISION=fp8 {LAUNCH}",
            "to mixed_precision fp8, .*; use --mixed_precision bf16",
        ),
        (f"DYNAMO_BACKEND=EAGER {LAUNCH}", "to dynamo_backend eager, which mlp_dist does not support; use"),
        (f"DYNAMO_BACKEND=INDUCTOR DYNAMO_MODE=max-autotune {LAUNCH}", "to dynamo_mode max-autotune, which"),
        (f"{LAUNCH} --gradient_clipping -1", "clip-norm is -1.0; it must be a number, above 0"),
    ],
)
def test_what_is_refused(line: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start(line, monkeypatch)
    with pytest.raises(UsageError, match=message):
        train.configure([])


def test_flags_win_and_both_are_compared_on_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    start(f"MIXED_PRECISION=bf16 {LAUNCH}", monkeypatch)
    _, config, given = train.configure(["--mixed-precision", "no", "--lr", "0.1"])
    assert (config.mixed_precision, config.accumulation_steps, config.clip_norm) == ("no", 4, 0.5)
    assert given == {"mixed_precision", "lr", "accumulation_steps", "clip_norm"}
    assert train.configure([])[1].mixed_precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert train.configure(["--recipe", "mnist-best"])[1].mixed_precision == "bf16"
