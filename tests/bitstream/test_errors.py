"""The tree of errors is drawn complete, and every error carries its data."""

import re

import pytest

from perigee.bitstream import errors
from perigee.bitstream.errors import Fault, FormatError, PerigeeError, UnknownProfileError
from perigee.ground.service.problems import problem_of
from perigee.support.command import EXIT_CODES, exit_code


def descendants(kind):
    return {kind} | {found for child in kind.__subclasses__() for found in descendants(child)}


CLASSES = {kind for kind in descendants(PerigeeError) if kind.__module__ == errors.__name__}


def test_the_drawing_is_the_tree():
    drawn, parents = {}, []
    for line in errors.__doc__.splitlines():
        found = re.match(r"^([│├└─ ]*)(\w+Error)\b", line)
        if found:
            depth = len(found[1]) // 4
            parents[depth:] = [found[2]]
            drawn[found[2]] = parents[depth - 1] if depth else "Exception"
    assert drawn == {kind.__name__: kind.__base__.__name__ for kind in CLASSES}


def test_data_are_plain_values():
    error = FormatError("a message", Fault.RANGE, field="bands", expected=(1, 2), found=float("nan"), offset_bytes=7)
    assert error.data() == {
        "error": "FormatError", "fault": "range", "field": "bands", "expected": "(1, 2)", "found": "nan", "offset_bytes": 7
    }  # fmt: skip
    assert str(error) == "a message (at byte 7)"


def test_an_unknown_contract_names_its_remedy():
    error = UnknownProfileError("00" * 8, {"a": "11" * 8})
    assert "--profiles DIR" in str(error) and error.data()["known"] == {"a": "11" * 8}


@pytest.mark.parametrize("kind", sorted(CLASSES - {PerigeeError}, key=lambda kind: kind.__name__))
def test_every_error_has_an_exit_code_and_a_status(kind):
    if kind is UnknownProfileError:
        error = kind("00", {})
    elif kind is errors.BusyError:
        error = kind("full", 5)
    else:
        error = kind("a message")
    assert 64 <= exit_code(error) <= 78 and exit_code(error) != 70
    assert 400 <= problem_of(error).status < 600
    assert EXIT_CODES
