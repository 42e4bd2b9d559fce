# The ground service on an NVIDIA GPU, by ONNX Runtime's CUDA provider. Build from the root of the repository:
#   docker build -f deploy/ground-cuda.Dockerfile -t perigee-ground-cuda .
FROM ubuntu:24.04 AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvidia/cuda:12.6.3-cudnn-runtime-ubuntu24.04
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
# hadolint ignore=DL3013
RUN wheel="$(ls /wheels/perigee-*.whl)" \
    && python3 -m venv /opt/perigee \
    && /opt/perigee/bin/pip install --no-cache-dir "${wheel}[ground-cuda]" \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin perigee \
    && install -d -o perigee /data/scenes /data/jobs
USER 10001
VOLUME ["/data"]
EXPOSE 8080
ENV PATH=/opt/perigee/bin:$PATH TMPDIR=/tmp PYTHONDONTWRITEBYTECODE=1
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=4)"]
ENTRYPOINT ["ground-serve", "--host", "0.0.0.0", "--scenes", "/data/scenes", "--jobs", "/data/jobs"]
CMD ["--auth-token-file", "/run/secrets/token"]
