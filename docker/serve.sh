#!/usr/bin/env bash
# What the image for serving runs in its directory: TorchServe with model_store/mlp.mar, until SIGTERM.
set -euo pipefail
# For golden.png, which the health check asks about.
python -m zipfile --extract model_store/mlp.mar unpacked
eval "$(python -m serve.environment)"
export TS_CONFIG_FILE=config.properties
# TorchServe's launcher passes no signal on, and as a container's first process would not even get one.
stopped=
trap 'stopped=1; torchserve --stop' TERM INT
torchserve --start --foreground --ncs --models mlp.mar &
wait $! || [[ $stopped ]]
wait
