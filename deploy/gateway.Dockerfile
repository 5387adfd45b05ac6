# The gateway: no torch, no compiler. Build from the repository's root:
#
#   docker build -f deploy/gateway.Dockerfile -t tessera-gateway .
#
# Next: worker.Dockerfile.

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
RUN python3 requirements.py gateway sound < pyproject.toml > wanted.txt \
    && grep '^grpcio-tools==' requirements.lock > tools.txt

FROM tools AS stubs
COPY --from=wanted /src/tools.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /venv && /venv/bin/pip install -r tools.txt
COPY protos protos
RUN /venv/bin/python -m grpc_tools.protoc -Iprotos --python_out=protos --grpc_python_out=protos protos/tessera/v1/*.proto

FROM tools AS native
COPY kernels/build.py kernels/
COPY kernels/csrc kernels/csrc
RUN python3 kernels/build.py

FROM tools AS packages
COPY --from=wanted /src/wanted.txt /src/requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/venv && /opt/venv/bin/pip install -c requirements.lock -r wanted.txt

FROM base
RUN useradd --uid 10001 --home-dir /var/lib/tessera --create-home tessera \
    && install -d -o tessera -g tessera /var/lib/tessera/huggingface
COPY --from=packages /opt/venv /opt/venv
COPY --from=native /src/kernels/tessera_kernels/lib/libtessera_resize.so /usr/local/lib/tessera/
COPY models/shapes/checkpoint /opt/tessera/models/shapes
COPY --from=stubs /src/protos /opt/tessera/protos
COPY gateway /opt/tessera/gateway
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/tessera:/opt/tessera/protos \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/var/lib/tessera/huggingface \
    TESSERA_MODEL=/opt/tessera/models/shapes \
    TESSERA_HOST=0.0.0.0 \
    TESSERA_PORT=50051
USER 10001:10001
WORKDIR /var/lib/tessera
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --start-interval=1s \
    CMD ["python", "-m", "tessera.healthcheck", "localhost:50051"]
ENTRYPOINT ["python", "-m", "gateway"]
