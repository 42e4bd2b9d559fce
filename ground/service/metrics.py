"""Prometheus metrics of the service, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """What is counted; names and labels are part of the service's interface."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "perigee_requests_total", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram("perigee_decode_seconds", "Time to decode and write a product", registry=self.registry)
        self.received = Counter("perigee_received_bytes_total", "Bytes of streams received", registry=self.registry)
        self.pixels = Counter("perigee_decoded_pixels_total", "Pixels of products", registry=self.registry)
        self.uploading = Gauge("perigee_uploads", "Uploads under way", registry=self.registry)
        self.queued = Gauge("perigee_queue_length", "Decodings running or waiting", registry=self.registry)
