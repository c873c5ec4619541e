"""The settings of `accelerate launch` that concern the training itself, and the network interface it uses.

The launcher takes settings from its command line and its YAML. It passes some of them on as environment
variables, and drops others unless it uses DeepSpeed.
"""

import ipaddress
import os
import shlex
import socket
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlp_dist.console.process import SIZES, is_launched, launch_command, parent_process, variable
from mlp_dist.core.errors import UsageError, unknown

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Where gloo and NCCL read the name of the network interface."""

_FAR_AWAY = ("192.0.2.1", "2001:db8::1")
"""Documentation addresses (RFC 5737, RFC 3849): routed like any remote address, used by nobody."""

_OFF = ("", "false", "0")

_DDP = "--multi_gpu or distributed_type MULTI_GPU, which trains with DDP"

_SUPPORTED = (
    ("use_fsdp", "FSDP", _OFF, _DDP),
    ("use_deepspeed", "DeepSpeed", _OFF, _DDP),
    ("use_megatron_lm", "Megatron-LM", _OFF, _DDP),
    ("use_parallelism_config", "a parallelism config", _OFF, _DDP),
    ("mixed_precision", "", ("", "no", "fp16", "bf16"), "--mixed_precision bf16"),
    ("dynamo_backend", "", ("", "no", "inductor"), "--dynamo_backend inductor"),
    ("dynamo_mode", "", ("", "default"), "its default"),
    ("dynamo_use_fullgraph", "", _OFF, "its default"),
    ("dynamo_use_dynamic", "", _OFF, "its default"),
    ("dynamo_use_regional_compilation", "", _OFF, "its default"),
)
"""The launcher's variables, what one stands for if its name does not say it, the values that a training can
follow, and what to use instead of others."""

_DROPPED = (
    ("gradient_accumulation_steps", "--accumulation-steps", ("", "1", "auto")),
    ("gradient_clipping", "--clip-norm", ("", "0", "0.0", "none", "auto")),
)
"""Settings that only DeepSpeed's launcher passes on, our flags, and the values that set nothing."""


def launcher_flags() -> list[str]:
    """The flags of mlp_dist.train that say what the launcher was asked for; its defaults set none.

    Raises UsageError for settings that a training cannot follow.
    """
    words = _words()
    config = _config(words)
    _check(words, config)
    flags = []
    if (precision := _variable("mixed_precision")) not in ("", "no"):
        flags += ["--mixed-precision", precision]
    for name, flag, nothing in _DROPPED:
        section = config.get("deepspeed_config") or {}
        value = _value(words, name) or str(section.get(name, _variable(name)))
        flags += [flag, value] if value not in nothing else []
    return [*flags, "--compile"] if _variable("dynamo_backend") == "inductor" else flags


def check_number() -> None:
    """Raise UsageError if several processes were asked for, but one was started.

    Without --multi_gpu, the launcher sets MASTER_ADDR for several processes, and then starts one silently.
    """
    is_set_by_user = any(entry.startswith("MASTER_ADDR=") for entry in parent_process("environ"))
    if is_launched() and not variable(SIZES, "") and "MASTER_ADDR" in os.environ and not is_set_by_user:
        words = _words()
        number = _value(words, "num_processes") or str(_config(words).get("num_processes", "N"))
        raise UsageError(
            f"accelerate launch was asked for {number} processes but started 1, because --multi_gpu is "
            f"missing. This command starts {number}, on GPUs if there are any, else on the CPU:\n"
            f"  {launch_command(number)} {shlex.join(sys.argv[1:])}"
        )


def check_interfaces() -> None:
    """Raise UsageError if gloo or NCCL was given an interface that does not exist."""
    known = [name for _, name in socket.if_nameindex()]
    for setting in INTERFACES:
        names = os.environ.get(setting, "")
        # NCCL takes prefixes, = before exact names, and ^ before names to avoid.
        for name in [] if names.startswith("^") else names.removeprefix("=").split(","):
            if not any(each.startswith(name) for each in known):
                raise UsageError(f"{setting}: {unknown('network interface', name, known)}")


def choose_interface() -> None:
    """Name the network interface that leads to the main machine to gloo and NCCL, unless the user named one.

    Gloo announces the address of the host name. If that is loopback, as /etc/hosts often has it, other
    machines cannot connect. Called once by a command, since it sets environment variables.
    """
    if variable(SIZES, "1") == os.environ.get("LOCAL_WORLD_SIZE", "1"):
        return
    import psutil

    addresses = {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
    }
    # On the main machine, its own name may lead to loopback.
    own = map(_own_address, (os.environ.get("MASTER_ADDR", ""), *_FAR_AWAY))
    if name := next((addresses[address] for address in own if address in addresses), None):
        # NCCL matches a bare name as a prefix.
        for setting, value in zip(INTERFACES, (name, f"={name}"), strict=True):
            os.environ.setdefault(setting, value)


def _own_address(target: str) -> str:
    """This machine's address on the way to `target`; "" if that is loopback, or unknown."""
    with suppress(OSError, UnicodeError):
        family, kind, protocol, _, address = socket.getaddrinfo(target, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # No packet is sent.
            probe.connect(address)
            found = str(probe.getsockname()[0])
            return "" if ipaddress.ip_address(found).is_loopback else found
    return ""


def _check(words: list[str], config: dict[str, Any]) -> None:
    is_xla = config.get("distributed_type") in ("XLA", "TPU") and not _has(words, "cpu", "multi_gpu")
    if is_xla or _has(words, "tpu"):
        raise _unsupported("XLA", "a GPU or the CPU, with distributed_type MULTI_GPU or NO")
    for name, title, supported, instead in _SUPPORTED:
        if (value := _variable(name)) not in supported:
            raise _unsupported(title or f"{name} {value}", instead)


def _unsupported(what: str, instead: str) -> UsageError:
    return UsageError(f"accelerate launch was set to {what}, which mlp_dist does not support; use {instead}")


def _words() -> list[str]:
    """The launcher's words before the script's own; empty if another program started this process."""
    words = parent_process("cmdline")[:-1]
    is_launcher = any(Path(word).name.startswith("accelerate") for word in words[:3])
    return words[: len(words) - len(sys.argv[1:])] if is_launcher else []


def _config(words: list[str]) -> dict[str, Any]:
    """The launcher's YAML: the one it was given, or the one that `accelerate config` wrote."""
    cache = os.environ.get("HF_HOME", f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/huggingface")
    usual = Path(cache).expanduser() / "accelerate/default_config.yaml"
    named = _value(words, "config_file")
    path = Path(named) if named else usual
    if not words or not path.is_file() or (not named and _has(words, "cpu")):
        return {}
    import yaml

    # The launcher has read it, so it is valid.
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def _variable(name: str) -> str:
    return os.environ.get(f"ACCELERATE_{name.upper()}", "").lower()


def _has(words: list[str], *names: str) -> bool:
    return any(word.replace("-", "_") == f"__{name}" for word in words for name in names)


def _value(words: list[str], name: str) -> str:
    """The value of the last --name VALUE or --name=VALUE, with hyphens or underscores."""
    found = ""
    for word, following in pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        if flag.replace("-", "_") == f"__{name}":
            found = value if equals else following
    return found
