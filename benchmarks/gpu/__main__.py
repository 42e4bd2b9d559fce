"""Everything that needs a GPU to be measured, in one command: ``python -m perigee.benchmarks.gpu --out gpu.json``.

It needs no network, and of packages numpy, onnx, onnxruntime and torch alone. Streams are the golden ones of the tests. With ``--device cpu`` the
same code runs on a CPU, where its figures mean little. The report is written after each part, and a part that fails says why, so that an hour
on a borrowed machine is not lost.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perigee.benchmarks.gpu import exactness, speed
from perigee.benchmarks.gpu.machine import described
from perigee.engines import ground_choice
from perigee.engines.backend import CPU_DEVICE, Backend

STREAMS = Path(__file__).resolve().parents[2] / "tests" / "golden"


def engines(device: str) -> tuple[dict[str, Any], list[Backend]]:
    """Which engines of the ground pass their self-test on the device, and why the others do not."""
    report: dict[str, Any] = {}
    passed = []
    for name in ground_choice.ENGINES:
        if name == "onnxruntime" and device != CPU_DEVICE:
            continue
        start = time.perf_counter()
        try:
            passed.append(ground_choice.load(name, device))
        except Exception as error:  # a GPU library raises anything
            report[name] = {"passed": False, "reason": str(error)}
            continue
        report[name] = {"passed": True, "device": passed[-1].device, "seconds": round(time.perf_counter() - start, 1)}
    return report, passed


def main() -> int:
    """Entry point; 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="0", help="number of the GPU, or cpu (default %(default)s)")
    parser.add_argument("--streams", type=Path, default=STREAMS, help="folder of .peri streams")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each speed (default %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="(default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"))
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": described(args.device)}
    streams = sorted(args.streams.glob("v1_*.peri"))
    failed = False

    def part(name: str, run: Callable[[], Any]) -> None:
        nonlocal failed
        print(name, file=sys.stderr, flush=True)
        try:
            report[name] = run()
        except Exception as error:
            failed = True
            report[name] = {"failed": f"{type(error).__name__}: {error}"}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    found, passed = engines(args.device)
    report["engines"] = found
    timed = speed.Timed(args.seconds, tuple(args.batches))
    part("symbols on torch", lambda: exactness.symbols(streams, args.device))
    part("analysis on torch", lambda: exactness.analyses(streams, args.device))
    for backend in passed:
        where = f"on {backend.engine_name}"
        part(f"pixels {where}", lambda b=backend: exactness.pixels(streams, b))  # type: ignore[misc]
        part(f"synthesis {where}", lambda b=backend: speed.synthesis(b, timed, args.device))  # type: ignore[misc]
        part(f"restoring {where}", lambda b=backend: speed.restoring(b, timed))  # type: ignore[misc]
    part("half precision on torch", lambda: exactness.half(args.device, timed))
    print(json.dumps(report, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
