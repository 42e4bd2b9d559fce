"""Prometheus metrics of the service, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from perigee.ground.service.devices import loads
from perigee.ground.service.workers import Workers

LABELS = ["worker", "device"]


class Metrics:
    """What is counted; names and labels are part of the service's interface."""

    def __init__(self, workers: Workers) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_OfWorkers(workers))
        self.requests = Counter(
            "perigee_requests_total", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram("perigee_decode_seconds", "Time to decode and write a product", registry=self.registry)
        self.received = Counter("perigee_received_bytes_total", "Bytes of streams received", registry=self.registry)
        self.pixels = Counter("perigee_decoded_pixels_total", "Pixels of products", registry=self.registry)
        self.uploading = Gauge("perigee_uploads", "Uploads under way", registry=self.registry)
        self.reading = Gauge(
            "perigee_scene_readings", "Readings of scenes under way or waiting", registry=self.registry
        )
        self.queued = Gauge("perigee_queue_length", "Decodings running or waiting", registry=self.registry)


class _OfWorkers(Collector):
    """The worker processes as they are when they are asked for; nothing where the service has none."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """The metrics of each worker, by its number and device."""
        up = GaugeMetricFamily("perigee_worker_up", "Whether the worker is ready for tasks", labels=LABELS)
        busy = GaugeMetricFamily("perigee_worker_busy", "Whether the worker is at a task", labels=LABELS)
        tasks = CounterMetricFamily("perigee_worker_tasks", "Tasks that the worker has done", labels=LABELS)
        restarts = CounterMetricFamily("perigee_worker_restarts", "Times the worker was started again", labels=LABELS)
        for number, status in enumerate(self._workers.statuses()):
            labels = [str(number), status.device]
            up.add_metric(labels, status.state == "up")
            busy.add_metric(labels, status.busy)
            tasks.add_metric(labels, status.tasks)
            restarts.add_metric(labels, status.restarts)
        share = GaugeMetricFamily(
            "perigee_gpu_utilisation", "Share of time in which the GPU computed", labels=["device"]
        )
        used = GaugeMetricFamily("perigee_gpu_memory_used_bytes", "Memory of the GPU that is in use", labels=["device"])
        total = GaugeMetricFamily("perigee_gpu_memory_bytes", "Memory of the GPU", labels=["device"])
        for load in loads(status.device for status in self._workers.statuses()):
            share.add_metric([load.device], load.utilisation)
            used.add_metric([load.device], load.memory_used)
            total.add_metric([load.device], load.memory_total)
        yield from (up, busy, tasks, restarts, share, used, total)
