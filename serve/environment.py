"""What a shell needs for torchserve and mlflow to work as they stand, as the commands that set it.

  eval "$(python -m serve.environment)"

.venv/bin/activate of a checkout does that.
"""

import shlex

from mlp_dist.console import command
from serve.java import java_home
from serve.torchserve import CONFIG


def exports() -> list[str]:
    """Lines of shell: TorchServe's settings, a Java where the machine has none new enough, no telemetry."""
    # torchserve reads its settings only from the file that this names.
    lines = [f"export TS_CONFIG_FILE={shlex.quote(str(CONFIG))}"]
    if home := java_home():
        lines.append(f"export JAVA_HOME={shlex.quote(home)}")
    # MLflow reports usage unless told not to; a choice made before stands.
    return [*lines, 'export MLFLOW_DISABLE_TELEMETRY="${MLFLOW_DISABLE_TELEMETRY:-true}"']


def main() -> None:
    command.Parser(prog="python -m serve.environment", description=__doc__).parse_args()
    print("\n".join(exports()))


if __name__ == "__main__":
    command.run(main)
