# A worker, for the CPU or a GPU. Build from the repository's root:
#
#   docker build -f deploy/worker.Dockerfile -t tessera-worker .
#
# torch comes from PyPI, whose build for Linux brings CUDA with it (several
# gigabytes). For a small CPU image give the CPU wheel index of PyTorch:
#
#   --build-arg TORCH_INDEX=<URL of the CPU wheel index of PyTorch>
#
# Next: ../docker-compose.yml.

FROM debian:bookworm-slim AS base
# Debian keeps one version of a package a release: pinning it would only break the next build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/*

# What builds, and stays behind.
FROM base AS tools
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src

# What is to be installed, as files of their own: an edit elsewhere in pyproject.toml then installs nothing anew.
FROM base AS wanted
WORKDIR /src
COPY deploy/requirements.py pyproject.toml requirements.lock ./
RUN python3 requirements.py worker < pyproject.toml > wanted.txt \
    && python3 requirements.py cuda-build < pyproject.toml > nvcc.txt \
    && grep '^grpcio-tools==' requirements.lock > tools.txt \
    && grep '^torch==' requirements.lock > torch.txt

FROM tools AS stubs
COPY --from=wanted /src/tools.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /venv && /venv/bin/pip install -r tools.txt
COPY protos protos
RUN /venv/bin/python -m grpc_tools.protoc -Iprotos --python_out=protos --grpc_python_out=protos protos/tessera/v1/*.proto

FROM tools AS packages
ARG TORCH_INDEX=""
# torch first and by its exact version: it is the largest layer, and the only one that may come from elsewhere.
COPY --from=wanted /src/torch.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/venv && /opt/venv/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r torch.txt
COPY --from=wanted /src/wanted.txt /src/requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/venv/bin/pip install -c requirements.lock -r wanted.txt

FROM packages AS native
# CUDA targets as in sm_<target>, such as "80 90a"; without any, the CUDA ops are left out.
ARG CUDA_ARCHITECTURES=""
COPY --from=wanted /src/nvcc.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$CUDA_ARCHITECTURES" ]; then /opt/venv/bin/pip install -r nvcc.txt; fi
COPY kernels/build.py kernels/
COPY kernels/csrc kernels/csrc
COPY kernels/include kernels/include
RUN /opt/venv/bin/python kernels/build.py --architectures "$CUDA_ARCHITECTURES"

FROM base
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --home-dir /var/lib/tessera --create-home tessera \
    && install -d -o tessera -g tessera /var/lib/tessera/huggingface
COPY --from=packages /opt/venv /opt/venv
COPY models/shapes/checkpoint /opt/tessera/models/shapes
COPY --from=stubs /src/protos /opt/tessera/protos
COPY kernels/tessera_kernels /opt/tessera/kernels/tessera_kernels
COPY --from=native /src/kernels/tessera_kernels/lib /opt/tessera/kernels/tessera_kernels/lib
COPY worker /opt/tessera/worker
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/tessera:/opt/tessera/protos:/opt/tessera/kernels \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/var/lib/tessera/huggingface \
    TESSERA_MODEL=/opt/tessera/models/shapes \
    TESSERA_HOST=0.0.0.0 \
    TESSERA_PORT=50061
USER 10001:10001
WORKDIR /var/lib/tessera
EXPOSE 50061
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --start-interval=1s \
    CMD ["python", "-m", "tessera.healthcheck", "localhost:50061"]
ENTRYPOINT ["python", "-m", "worker"]
