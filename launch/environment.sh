# Sourced at the end of .venv/bin/activate, so that torchserve and mlflow work as they stand.

# torchserve reads its settings only from the file that this names.
export TS_CONFIG_FILE="${VIRTUAL_ENV%/*}/serve/config.properties"

# A Java for TorchServe, where the machine has none of 17 or newer.
eval "$("$VIRTUAL_ENV/bin/python" -m serve.java)"

# MLflow reports usage unless told not to; a choice made before stands.
export MLFLOW_DISABLE_TELEMETRY="${MLFLOW_DISABLE_TELEMETRY:-true}"
