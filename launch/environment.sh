# Sourced at the end of .venv/bin/activate, so that torchserve and mlflow work as they stand.
eval "$("$VIRTUAL_ENV/bin/python" -m serve.environment)"
