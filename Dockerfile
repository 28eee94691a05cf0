# The server's images. `docker build --target cpu -t recollect:cpu .`, or `--target gpu`.
#
# The base image is named by its exact version. A GPU needs no other one: the CUDA libraries come as wheels
# with FAISS and PyTorch, at the versions of constraints.txt, and the driver's own comes from the host by the
# NVIDIA container runtime. So both images are one system, and a CUDA image's second copy of it all is spared.
FROM python:3.12.12-slim-bookworm AS base

# ---- the source: what the wheel is made of ----
# The same Python and Debian with a C++ compiler, for the CPU engine's kernels. The images have only what comes of it.
FROM python:3.12.12-bookworm AS source
WORKDIR /src
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY client/ client/
COPY service/ service/
COPY model/ model/
# The exact versions hold for what builds the wheel, too. Newer pips read the second name for that.
ENV PIP_CONSTRAINT=/src/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/recollect

# ---- no torch here: a CPU server does not need it ----
FROM source AS build-cpu
RUN /opt/recollect/bin/pip install --no-cache-dir ".[server,otel,cpu]"

FROM source AS build-gpu
RUN /opt/recollect/bin/pip install --no-cache-dir ".[server,otel,torch,gpu]"

# ---- what both images share ----
FROM base AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="recollect" \
      org.opencontainers.image.description="A memory server for memorizing attention" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# By number, so that a policy that forbids root can read it off the image, and volumes keep their owner.
RUN groupadd --gid 10001 recollect \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/recollect \
        --shell /usr/sbin/nologin recollect \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/recollect
# Listening beyond loopback, the server wants TLS, or RECOLLECT_ALLOW_PLAINTEXT_TOKENS by name: without
# either it refuses to start.
ENV PATH=/opt/recollect/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RECOLLECT_ADMIN__LISTEN='["0.0.0.0:8080"]' \
    RECOLLECT_DATA_DIR=/var/lib/recollect \
    RECOLLECT_LISTEN='["0.0.0.0:50051"]'
# The root file system may be read-only: nothing else is written to but this, and /tmp.
VOLUME ["/var/lib/recollect"]
WORKDIR /var/lib/recollect
EXPOSE 50051 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/opt/recollect/healthcheck.py", "8080"]
ENTRYPOINT ["recollect"]
CMD ["serve"]

FROM runtime AS gpu
# Triton compiles the C code that launches a kernel when it first does so. Without a compiler the server leaves
# the fused kernels out, and searches in the other ways. Where there is one nothing is installed.
RUN command -v gcc || { apt-get update \
    && apt-get install --yes --no-install-recommends gcc=4:12.2.* libc6-dev=2.36-* \
    && rm -rf /var/lib/apt/lists/*; }
ENV RECOLLECT_DEVICE=cuda \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all
COPY --from=build-gpu /opt/recollect /opt/recollect
COPY deploy/healthcheck.py /opt/recollect/healthcheck.py
USER 10001:10001

# Last, so that it is what `docker build .` makes.
FROM runtime AS cpu
ENV RECOLLECT_DEVICE=cpu
COPY --from=build-cpu /opt/recollect /opt/recollect
COPY deploy/healthcheck.py /opt/recollect/healthcheck.py
USER 10001:10001
