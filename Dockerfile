# Serve a model over HTTP, by default the embedded ImageNet classifier:
#   docker build -t sppnet .
#   docker run --rm -p 8000:8000 sppnet
#   docker run --rm -p 8000:8000 -v "$PWD/runs:/runs" sppnet serve cats --host 0.0.0.0
# pip reads the index from its own configuration. The default index has the CUDA builds of PyTorch, which also run on the
# CPU; for smaller CPU builds: --build-arg PIP_INDEX_URL=URL, with the URL that PyTorch's installation page gives.
# For a GPU: --build-arg PACKAGES="gcc libc6-dev", and `docker run --gpus all`.

FROM python:3.12-slim AS build
# Extras of pyproject.toml, separated by commas. Detectors with selective search also need `detect`, and `--runtime onnx`
# needs `export`.
ARG EXTRAS=serve
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
# PyTorch is large and rarely changes, so it has its own layer, the only one that uses another index.
ARG PIP_INDEX_URL
RUN python -m venv /opt/sppnet \
    && /opt/sppnet/bin/pip install torch torchvision
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
RUN env -u PIP_INDEX_URL /opt/sppnet/bin/pip install ".[$EXTRAS]"

FROM python:3.12-slim
# For a GPU, whose kernels are compiled at first use: gcc libc6-dev; for --runtime compiled: g++.
ARG PACKAGES=
RUN [ -z "$PACKAGES" ] || { apt-get update && apt-get install -y --no-install-recommends $PACKAGES \
    && rm -rf /var/lib/apt/lists/*; }
RUN useradd --create-home --uid 10001 sppnet \
    && install --directory --owner sppnet /runs
COPY --from=build /opt/sppnet /opt/sppnet
# Kernels are compiled for the processor at first use and cached here.
ENV PATH=/opt/sppnet/bin:$PATH NUMBA_CACHE_DIR=/home/sppnet/.cache/numba PYTHONUNBUFFERED=1
USER 10001
WORKDIR /runs
VOLUME /runs
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["sppnet"]
CMD ["serve", "imagenet", "--host", "0.0.0.0"]
