"""What conditions networks beside pixels: a compensator's the acquisition fields as numbers in 0..1, an enhancer's how an image was coded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timezone

import numpy as np

from perigee.bitstream.arrays import BoolArray, FloatArray, Samples
from perigee.bitstream.metadata import Acquisition

FIELDS = (
    "longitude",
    "latitude",
    "year",
    "season",
    "hour",
    "gsd",
    "cloud_cover",
    "off_nadir",
    "target_azimuth",
    "sun_azimuth",
    "sun_elevation",
)
GSD_DECADES = (-2.0, 2.0)  # log10 of metres
DAYS, HOURS = 365.25, 24.0
CODECS = ("jpeg2000", "jpeg", "perigee")  # that an enhancer tells apart; any other is none of them
FILE_CODECS = CODECS[:2]  # of those, what an image file may be coded with
CODING_CONDITIONS = 2 + len(CODECS)  # log2 of the bits per pixel / 4, one number for each codec, log2 of the step / 4
BPP_LEAST, STEP_LEAST = 1e-3, 1 / 256
ROUGH = 1.1  # times the typical step
TYPICAL_STEP, TYPICAL_FALL = (
    9.0,
    -0.9,
)  # grey levels at 1 bit per pixel, and the exponent: measured on aerial images with OpenJPEG
SCALE_PERCENTILES = (1.0, 99.0)
SCALE_MARGIN = 16.0  # grey levels below the low end and above the high end of the widest band
SCALE_LEAST = 16.0  # counts: a band that varies less is not stretched further
COMPENSATION_WINDOW = 256  # pixels on the side of what a compensator's networks see at once


def _circle(turns: float) -> tuple[float, float]:
    """An angle in turns as sine and cosine, moved into 0..1."""
    return 0.5 + 0.5 * math.sin(2 * math.pi * turns), 0.5 + 0.5 * math.cos(2 * math.pi * turns)


def condition_of(acquisition: Acquisition | None) -> tuple[FloatArray, FloatArray]:
    """Values float32 [FIELDS, 2] in 0..1 and which are known, float32 [FIELDS], 1 or 0.

    Angles that close on themselves (longitude, azimuths) and season and hour (UTC) are sine and cosine; the others a single
    number, the second zero. Year counts 1980 to 2100, GSD the decades from 1 cm to 100 m.
    """
    a = acquisition or Acquisition()
    found: dict[str, tuple[float, float] | float] = {}
    if a.longitude_deg is not None and a.latitude_deg is not None:
        found["longitude"] = _circle(a.longitude_deg / 360)
        found["latitude"] = (a.latitude_deg + 90) / 180
    if a.timestamp is not None:
        time = a.timestamp.astimezone(timezone.utc)
        found["year"] = (time.year - 1980) / 120
        found["season"] = _circle((time.timetuple().tm_yday - 1) / DAYS)
        found["hour"] = _circle((time.hour + time.minute / 60) / HOURS)
    if a.gsd_m is not None:
        low, high = GSD_DECADES
        found["gsd"] = (math.log10(a.gsd_m) - low) / (high - low)
    if a.cloud_cover_percent is not None:
        found["cloud_cover"] = a.cloud_cover_percent / 100
    if a.off_nadir_deg is not None:
        found["off_nadir"] = a.off_nadir_deg / 90
    if a.sun_elevation_deg is not None:
        found["sun_elevation"] = (a.sun_elevation_deg + 90) / 180
    for name in ("target_azimuth", "sun_azimuth"):
        degrees = getattr(a, f"{name}_deg")
        if degrees is not None:
            found[name] = _circle(degrees / 360)
    values, known = np.zeros((len(FIELDS), 2), np.float32), np.zeros(len(FIELDS), np.float32)
    for i, name in enumerate(FIELDS):
        if name in found:
            value = found[name]
            values[i] = np.clip(value if isinstance(value, tuple) else (value, 0.0), 0, 1)
            known[i] = 1
    return values, known


@dataclass(frozen=True)
class BandScale:
    """How bands of other sensors are brought to grey levels of an image of 8 bits, for networks that were trained on these.

    ``lows`` are the low ends of the bands, ``gain`` is the number of grey levels of a count; all bands share it, as they share a file's
    quantisation steps.
    """

    lows: tuple[float, ...]
    gain: float

    @staticmethod
    def of(samples: Samples, valid: BoolArray | None = None) -> BandScale:
        """The scale of bands and their validity, both [band, row, col]: the widest of them, between its percentiles, takes most of the grey
        levels."""
        chosen = [band.ravel() if valid is None else band[valid[i]] for i, band in enumerate(samples)]
        ends = [np.percentile(values, SCALE_PERCENTILES) if values.size else np.array([0.0, 1.0]) for values in chosen]
        widest = max(max(float(high - low) for low, high in ends), SCALE_LEAST)
        gain = (255 - 2 * SCALE_MARGIN) / widest
        return BandScale(tuple(float(low) - SCALE_MARGIN / gain for low, _ in ends), gain)

    def grey(self, samples: Samples) -> FloatArray:
        """Bands [band, row, col] in grey levels, float32; values beyond the percentiles may lie outside 0 to 255."""
        lows = np.array(self.lows, np.float32)[:, None, None]
        return np.asarray((samples.astype(np.float32) - lows) * np.float32(self.gain), np.float32)


def typical_step(bits_per_pixel: float) -> float:
    """The step, in grey levels, that JPEG 2000 leaves in effect at a rate on common images; single ones have a quarter of it to four times that."""
    return TYPICAL_STEP * float(max(bits_per_pixel, BPP_LEAST) ** TYPICAL_FALL)


def is_rough(bits_per_pixel: float, step: float) -> bool:
    """Whether an image is rougher than most: at its rate it was quantised with a larger step."""
    return step > ROUGH * typical_step(bits_per_pixel)


def coding_condition(bits_per_pixel: float, codec: str | None, step: float | None = None) -> list[float]:
    """The condition [CODING_CONDITIONS] of an image that took so many bits per pixel, by one of ``CODECS`` or another (None), and was quantised
    with a step of so many grey levels (None: not known)."""
    coarse = typical_step(bits_per_pixel) if step is None else step
    names = (float(codec == name) for name in CODECS)
    return [math.log2(max(bits_per_pixel, BPP_LEAST)) / 4, *names, math.log2(max(coarse, STEP_LEAST)) / 4]
