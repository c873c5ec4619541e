"""Print the shell commands that set up the environment for torchserve and mlflow.

  eval "$(python -m serve.environment)"

A checkout's .venv/bin/activate runs it.
"""

import shlex

from mlp_dist.console import command
from serve.torchserve.server_process import CONFIG, find_java_home


def exports() -> list[str]:
    """Shell lines: TorchServe's settings, a Java if the machine's is missing or too old, no telemetry."""
    # The torchserve launcher reads no other settings file.
    lines = [f"export TS_CONFIG_FILE={shlex.quote(str(CONFIG))}"]
    if home := find_java_home():
        lines.append(f"export JAVA_HOME={shlex.quote(home)}")
    return [*lines, 'export MLFLOW_DISABLE_TELEMETRY="${MLFLOW_DISABLE_TELEMETRY:-true}"']


def main() -> None:
    command.Parser(prog="python -m serve.environment", description=__doc__).parse_args()
    print("\n".join(exports()))


if __name__ == "__main__":
    command.run(main)
