"""What an index tells of the images it names, and what is made of it."""

import numpy as np
import pytest

from perigee.bitstream.conditions import FIELDS
from perigee.bitstream.errors import RasterError
from perigee.training.acquisitions import conditions_of

HEAD = "file,gsd_m,lat,lon,date,datetime,sun_azimuth,sun_elevation\n"


def written(folder, *rows):
    (folder / "index.csv").write_text(HEAD + "\n".join(rows) + "\n")
    return [folder]


def named(condition):
    values, known = condition
    return {name for name, there in zip(FIELDS, known, strict=True) if there}, dict(zip(FIELDS, values, strict=True))


def test_a_year_is_known_without_season_and_hour_and_a_day_without_hour(tmp_path):
    found = conditions_of(written(tmp_path, "a.tif,0.6,,,2018,,,", "b.tif,0.6,,,2018-07-01,,,"))
    assert named(found["a.tif"])[0] == {"year", "gsd"}
    assert named(found["b.tif"])[0] == {"year", "season", "gsd"}


def test_time_and_sun_are_conditions_and_positions_only_where_asked_for(tmp_path):
    folders = written(tmp_path, "a.tif,10,45,15,,2020-01-13T10:55:00,164.09,24.53", "b.tif,,,,,,,")
    known, values = named(conditions_of(folders)["a.tif"])
    assert known == {"year", "season", "hour", "gsd", "sun_azimuth", "sun_elevation"}
    assert values["sun_elevation"][0] == pytest.approx((24.53 + 90) / 180)
    assert not np.any(values["latitude"])
    assert named(conditions_of(folders, positions=True)["a.tif"])[0] == known | {"longitude", "latitude"}
    assert not named(conditions_of(folders)["b.tif"])[0]


@pytest.mark.parametrize("row", ["a.tif,wide,,,,,,", "a.tif,,,,2018-13-01,,,", "a.tif,,,,,noon,,"])
def test_a_row_that_cannot_be_understood_is_named(tmp_path, row):
    with pytest.raises(RasterError, match="line 3"):
        conditions_of(written(tmp_path, "b.tif,,,,,,,", row))
