"""What ``onboard-encode`` says of a scene that it has encoded: a JSON-ready report, and a line for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perigee.bitstream.samples import quality_of
from perigee.onboard.bounded_encoder import BoundedEncoder
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.encoder import EncodedScene, Encoder
from perigee.onboard.pace import QualityChange
from perigee.onboard.source import SourceInfo


def report_of(
    tile: Path,
    out: Path,
    info: SourceInfo,
    encoder: Encoder | ComponentEncoder | BoundedEncoder,
    scene: EncodedScene,
    left_behind: list[str],
    total_ms: float,
    changes: list[QualityChange] | None = None,
) -> dict[str, Any]:
    """The report of one scene; ``left_behind`` is what its file has and the stream does not, ``changes`` those of the quality of lines that could not
    wait."""
    measured: dict[str, Any] = {}
    if scene.errors:
        measured = {
            "errors": {
                name: [round(value, 4) for value in values.tolist()] for name, values in scene.errors._asdict().items()
            }
        }
    if changes is not None:
        measured["quality_changes"] = [change._asdict() for change in changes]
    return {
        "file": str(tile),
        "output": str(out),
        "bytes": scene.size,
        "bpp": round(8 * scene.size / (info.width * info.height), 5),
        "width": info.width,
        "height": info.height,
        "bands": info.bands,
        "dtype": info.dtype,
        "patches": scene.header.patches,
        "predicted_patches": scene.predicted,
        "quality": None if isinstance(encoder, BoundedEncoder) else quality_of(scene.quality_step),
        "profile": encoder.profile.name,
        "contract": encoder.profile.contract.digest.hex(),
        "format_version": 1 if isinstance(encoder, Encoder) else 2,
        **_codec(encoder),
        "upsets": scene.upsets,
        "left_behind": left_behind,
        **measured,
        "ms": {name: round(value, 2) for name, value in scene.timings.ms.items()},
        "total_ms": round(total_ms, 2),
    }


def _codec(encoder: Encoder | ComponentEncoder | BoundedEncoder) -> dict[str, str]:
    """What analyses the scene, and the engine that runs it."""
    if isinstance(encoder, BoundedEncoder):
        return {"analysis": "prediction", "engine": "integers"}
    analysis = encoder.engine.analysis if isinstance(encoder, Encoder) else "lapped"
    return {"analysis": analysis, "engine": encoder.engine.name}


def summary(report: dict[str, Any]) -> str:
    """One human line."""
    line = (
        f"{report['file']} -> {report['output']}: {report['bytes']} bytes, {report['bpp']:.4f} bpp, "
        f"{report['patches']} patches, {report['total_ms']:.0f} ms"
    )
    if errors := report.get("errors"):
        bands = zip(errors["rms"], errors["largest"], errors["bias"], strict=True)
        line += "; RMS error / largest / bias: " + ", ".join(f"{r:.2f} / {m} / {b:+.3f}" for r, m, b in bands)
    if changes := report.get("quality_changes"):
        lowest = min(change["quality"] for change in changes)
        line += f"; {len(changes)} changes of quality, down to {lowest:g}, since lines could not wait"
    return line
