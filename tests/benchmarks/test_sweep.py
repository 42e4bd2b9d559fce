"""The quality sweep sees codecs that do not rise."""

import math
import sys

import pytest

from perigee.benchmarks import sweep
from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import psnr, read_rgb


@pytest.fixture(scope="module")
def folder(tiles, tmp_path_factory):
    """Two real tiles."""
    out = tmp_path_factory.mktemp("tiles")
    for path in tiles[:2]:
        (out / path.name).write_bytes(path.read_bytes())
    return out


class Bent(ArrayCodec):
    """The real codec with another scale of quality."""

    bend = staticmethod(lambda quality: quality)

    def encode(self, pixels, quality):
        return super().encode(pixels, self.bend(quality))


@pytest.fixture(scope="module")
def bent(profile):
    return Bent(profile, threads=1)


def swept(codec, folder, bend, qualities=(0, 30, 60, 100)):
    codec.bend = bend
    return sweep.measure(folder, codec, qualities, None)


def test_rows_hold_real_streams(bent, folder):
    rows = swept(bent, folder, lambda q: q, (50,))
    pixels = read_rgb(sorted(folder.iterdir())[0])
    data = bent.encode(pixels, 50)
    assert len(rows) == 2 and rows[0]["bytes"] == len(data) and rows[0]["bpp"] == len(data) * 8 / 65536
    assert rows[0]["psnr"] == psnr(pixels, bent.decode(data))


def test_a_scale_that_falls_or_stands_still_is_found(bent, folder):
    line = sweep.verdict(swept(bent, folder, {0: 0, 30: 60, 60: 30, 100: 100}.get))
    assert line["strictly increasing"] == "no" and line["images: bytes fall"] == line["images: PSNR falls"] == 2
    assert len(line["faults"]) == 2 and "at quality 30" in line["faults"][0] and "at 60" in line["faults"][0]
    assert sweep.verdict(swept(bent, folder, lambda q: min(q, 60)))["strictly increasing"] == "no"


def test_faults_need_both_to_rise_strictly():
    def mean(*values):
        return [{"quality": i, "bytes": b, "psnr": p} for i, (b, p) in enumerate(values)]

    assert sweep.faults(mean((1, 20.0), (2, 21.0), (3, 22.0))) == []
    assert sweep.faults(mean((1, 20.0), (1, 21.0))) == ["bytes 1.000 at quality 0, 1.000 at 1"]
    assert sweep.faults(mean((1, 20.0), (2, 20.0))) == ["psnr 20.000 at quality 0, 20.000 at 1"]


def test_exact_images_do_not_count_for_the_mean_psnr():
    rows = [
        {"folder": "f", "image": name, "quality": q, "bytes": 10 + q, "bpp": 0.05 + q, "psnr": p}
        for name, q, p in (("a", 0, 20.0), ("a", 5, 30.0), ("blank", 0, 60.0), ("blank", 5, math.inf))
    ]
    assert [(m["psnr"], m["exact"], m["images"]) for m in sweep.means(rows)] == [(20, 1, 2), (30, 1, 2)]
    assert sweep.falling_images(rows, "psnr") == 0
    line = sweep.verdict(rows)
    assert line["strictly increasing"] == "yes" and line["spans"] == "yes" and line["exact"] == 1


def test_the_command_writes_table_points_report_and_plot(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep", "--data", str(folder), "--step", "50", "--limit", "1", "--threads", "1",
                                      "--out", str(tmp_path / "out")])  # fmt: skip
    sweep.main()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"points.csv", "sweep.json", "sweep.png"}
    assert len((tmp_path / "out" / "points.csv").read_text().splitlines()) == 1 + 3  # qualities 0, 50, 100
    assert "strictly increasing" in capsys.readouterr().out
