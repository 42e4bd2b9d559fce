# A Ray node with perigee-archive: head, worker, or the command itself. Build from the root of the repository:
#   docker build -f deploy/archive.Dockerfile -t perigee-archive .
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
    && pip install --no-cache-dir "${wheel}[archive]" \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin perigee
USER 10001
ENV TMPDIR=/tmp HOME=/tmp PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["ray", "health-check"]
ENTRYPOINT []
CMD ["ray", "start", "--head", "--block", "--include-dashboard=false", "--object-store-memory=80000000"]
