# Sourced at the end of .venv/bin/activate: sets up torchserve and mlflow.
eval "$("$VIRTUAL_ENV/bin/python" -m serve.environment)"
