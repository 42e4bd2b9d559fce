# The ground service on the CPU. Build from the root of the repository:
#   docker build -f deploy/ground.Dockerfile -t perigee-ground .
FROM python:3.12-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc=4:12.2.0-3 libc6-dev=2.36-9+deb12u* \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
COPY --from=build /wheels /wheels
# hadolint ignore=DL3013
RUN wheel="$(ls /wheels/perigee-*.whl)" \
    && pip install --no-cache-dir "${wheel}[ground]" \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin perigee \
    && install -d -o perigee /data/scenes /data/jobs
USER 10001
VOLUME ["/data"]
EXPOSE 8080
ENV TMPDIR=/tmp PYTHONDONTWRITEBYTECODE=1
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=4)"]
ENTRYPOINT ["ground-serve", "--host", "0.0.0.0", "--scenes", "/data/scenes", "--jobs", "/data/jobs"]
CMD ["--auth-token-file", "/run/secrets/token"]
