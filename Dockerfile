# An image of the repository and its environment: docker build -t stem_torchrec . makes one for CPU,
# docker build --build-arg DEVICE=cuda -t stem_torchrec . one for NVIDIA GPUs. docs/launch.md tells how jobs take it.
ARG DEVICE=cpu

FROM python:3.11-slim-bookworm AS cpu
# PyPI's torch for x86 brings CUDA along.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

# PyPI's torch and fbgemm-gpu bring CUDA along; the host has the driver.
FROM python:3.11-slim-bookworm AS cuda

# hadolint ignore=DL3006
FROM ${DEVICE}
ARG DEVICE
# Lines of a run appear at once in the log of the job.
ENV PYTHONUNBUFFERED=1
WORKDIR /stem_torchrec

# What the installation reads, so that a change of other files does not install torch again. The package is installed
# editable: a job that brings a newer copy of the repository (TorchX's workspace) runs that copy.
COPY pyproject.toml README.md LICENSE ./
COPY stem_torchrec/__init__.py stem_torchrec/
COPY launch/components.py launch/
COPY datasets datasets
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "pip>=25.1" \
    && pip install --no-cache-dir --editable ".[${DEVICE},s3,serve]" \
    && pip install --no-cache-dir --no-deps --group torchrec

COPY . .
CMD ["stem-train", "--help"]
