# The image that trains, for launch/kubernetes too:
#
#   docker build --file docker/train.Dockerfile --tag mlp-dist .
#   docker run --rm --volume mlp:/app/outputs mlp-dist
#   docker run --rm --gpus all --env MLFLOW_TRACKING_URI=http://HOST:5000 mlp-dist \
#     accelerate launch --config_file launch/configs/multi_gpu.yaml launch/train.py --epochs 20
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS build
WORKDIR /src
COPY constraints.txt pyproject.toml setup.cfg README.md LICENSE ./
COPY launch launch
COPY mlp_dist mlp_dist
COPY serve serve
ENV PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv \
    && pip install --no-cache-dir --constraint constraints.txt setuptools \
    && pip install --no-cache-dir --constraint constraints.txt --no-build-isolation .

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
RUN useradd --create-home --uid 1000 mlp \
    && install --directory --owner=mlp --group=mlp /app /app/data /app/outputs
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY launch launch
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true
USER 1000
# One process without a launcher: it gets the signal of `docker stop` itself, and writes a checkpoint.
CMD ["python", "launch/train.py"]
