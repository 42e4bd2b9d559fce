"""Published figures beside ours: LDM-RSIC (2024), table I, UC Merced, against JPEG 2000.

The settings differ, and :data:`DIFFERENCES` goes wherever the table goes.
"""

from __future__ import annotations

from typing import Any

from perigee.benchmarks.anchors import ANCHORS
from perigee.benchmarks.summary import Group, set_mean_gain

LDM_RSIC = {  # codec: BD-rate in %, BD-PSNR in dB
    "BPG": (-30.85, 1.46),
    "VVC": (-51.38, 3.05),
    "Entroformer": (-44.21, 1.98),
    "STF": (-53.12, 2.90),
    "LIC-TCM": (-54.24, 3.18),
    "ELIC": (-53.69, 2.94),
    "LDM-RSIC": (-54.43, 3.01),
    "JPEG2000 + LDM-RSIC's enhancement": (-29.30, 1.24),
}
COLUMNS = ["codec", "from", "set mean BD-rate %", "BD-PSNR dB"]
DIFFERENCES = """\
Not the same test. Theirs: 420 tiles (a fifth of each class, list not available to us); ours: {count}. ELIC and LDM-RSIC are
five models, one for each rate, and ELIC takes about 22 GMACs a tile on board; ours is one model for all rates. How their
JPEG 2000 and VVC were set and which rates were compared is not known to us, and a set mean moves by 17 to 29 points with
how JPEG 2000 spends its bytes over the images. So compare the codecs within one source; across the two, the distance
to BPG or HEVC (BPG is HEVC intra) and to VVC says more than the figures themselves."""


def beside_ldm_rsic(found: Group) -> list[dict[str, Any]]:
    """Rows of table I and of every codec of ``found``, against JPEG 2000; best first. Ours needs JPEG 2000's points."""
    gains: list[tuple[str, str, float, float]] = [(name, "paper", *gain) for name, gain in LDM_RSIC.items()]
    for codec in found.curves:
        if codec == "jpeg2000" or "jpeg2000" not in found.curves:
            continue
        luma_only = codec in ANCHORS and ANCHORS[codec].luma_only
        rate, gain = set_mean_gain(found, codec, "jpeg2000", "luma_psnr" if luma_only else "psnr")
        gains.append((codec + (" (luma)" if luma_only else ""), "this run", rate, gain))
    gains.sort(key=lambda row: row[2])
    return [dict(zip(COLUMNS, (*row[:2], f"{row[2]:.1f}", f"{row[3]:.2f}"), strict=True)) for row in gains]
