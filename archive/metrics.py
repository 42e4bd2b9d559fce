"""Prometheus metrics of work on an archive, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from perigee.archive.records import Record


class Metrics:
    """What is counted; names and labels are part of the command's interface."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._objects = Counter(
            "perigee_archive_objects_total", "Objects by what came of them", ["status"], registry=self.registry
        )
        self._read = Counter("perigee_archive_read_bytes_total", "Bytes read", registry=self.registry)
        self._written = Counter("perigee_archive_written_bytes_total", "Bytes of products", registry=self.registry)
        self._pixels = Counter("perigee_archive_pixels_total", "Pixels of products", registry=self.registry)
        self._seconds = Histogram("perigee_archive_object_seconds", "Time for an object", registry=self.registry)

    def add(self, record: Record) -> None:
        """Count a record."""
        self._objects.labels(record.status).inc()
        self._read.inc(record.bytes_read)
        self._written.inc(record.bytes_written)
        self._pixels.inc(record.pixels)
        self._seconds.observe(record.seconds)

    def serve(self, port: int) -> None:
        """Serve them on loopback. Raises OSError where the port is in use."""
        start_http_server(port, "127.0.0.1", self.registry)
