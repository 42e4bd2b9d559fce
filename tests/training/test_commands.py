"""The training and export commands: parsers, usage errors and exit codes; the recipes can be run."""

import json
import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from perigee.export import cli as export_cli
from perigee.export import compensation_cli as export_compensator_cli
from perigee.training import cli, compensation_cli
from perigee.training.recipes import grow_flight, join_runs, restore_checkpoint

COMMANDS = {
    "perigee-train": cli,
    "perigee-train-compensator": compensation_cli,
    "export-profile": export_cli,
    "export-compensator": export_compensator_cli,
}
RECIPES = [
    "grow_flight",
    "grow_flight2",
    "join_runs",
    "restore_checkpoint",
    "train_encoders",
]


@pytest.mark.parametrize("program", COMMANDS)
def test_a_parser_names_its_program_and_exit_codes(program, capsys):
    parser = COMMANDS[program].build_parser()
    assert parser.prog == program and parser.epilog.startswith("Exit codes: 0 ")
    with pytest.raises(SystemExit) as stopped:
        COMMANDS[program].main(["--help"])
    assert stopped.value.code == 0 and "Exit codes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (cli, ["run"], "--data"),
        (cli, ["run", "--data", "x", "--crop", "100"], "100 is not a positive multiple of 64"),
        (cli, ["run", "--data", "x", "--weight", "naip"], "naip is not of the form SOURCE=NUMBER"),
        (cli, ["run", "--data", "x", "--batch", "0"], "at least 1"),
        (compensation_cli, ["run", "--stage", "sharpen"], "no stage 'sharpen'; accepted are one-step"),
        (compensation_cli, ["run", "--stage", "scale=soon"], "soon is not a number of minutes"),
        (export_cli, ["checkpoint.pt"], "--out"),
        (export_compensator_cli, [], "CHECKPOINT"),
    ],
)
def test_wrong_usage_exits_with_64(module, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        module.main(arguments)
    assert stopped.value.code == os.EX_USAGE and message in capsys.readouterr().err


def test_each_kind_of_failure_has_its_exit_code(tmp_path, capsys):
    text, other, out = tmp_path / "text.pt", tmp_path / "other.pt", tmp_path / "out"
    text.write_text("no checkpoint")
    torch.save({"something": 1}, other)
    assert export_cli.main([str(tmp_path / "none.pt"), "-o", str(out)]) == os.EX_NOINPUT
    assert export_cli.main([str(text), "-o", str(out)]) == os.EX_DATAERR
    assert export_cli.main([str(other), "-o", str(out)]) == os.EX_DATAERR
    assert export_compensator_cli.main([str(other), "-o", str(out)]) == os.EX_DATAERR
    assert export_compensator_cli.main([str(other), "-o", str(out), "--profile", "none"]) == os.EX_CONFIG
    card = tmp_path / "card.json"
    card.write_text(json.dumps(["one-step"]))
    assert export_compensator_cli.main([str(other), "-o", str(out), "--card", str(card)]) == os.EX_DATAERR
    out.mkdir()
    (out / "manifest.json").write_text("{}")
    assert export_cli.main([str(other), "-o", str(out)]) == os.EX_CANTCREAT
    assert export_compensator_cli.main([str(other), "-o", str(out)]) == os.EX_CANTCREAT
    (tmp_path / "empty").mkdir()
    assert cli.main([str(tmp_path / "run"), "--data", str(tmp_path / "empty")]) == os.EX_DATAERR
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 9 and all(line.startswith(("export-", "perigee-train: ")) for line in lines)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_explains_itself(name, capsys):
    recipe = import_module(f"perigee.training.recipes.{name}")
    assert recipe.build_parser().prog == f"python -m perigee.training.recipes.{name}"
    with pytest.raises(SystemExit) as stopped:
        recipe.main(["--help"])
    assert stopped.value.code == 0 and "Exit codes: 0 " in capsys.readouterr().out


def test_a_recipe_runs_as_a_module():
    command = [sys.executable, "-m", "perigee.training.recipes.join_runs", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("usage: python -m perigee.training.recipes.join_runs")


def test_two_runs_are_joined_where_their_transforms_are_equal(tmp_path, capsys):
    def checkpoint(name, transform, value):
        state = {
            "mean": {
                "analysis.linear.rows": torch.full((2,), float(transform)),
                "prior.weight": torch.full((2,), value),
                "synthesis.weight": torch.full((2,), value),
            },
            "codec_config": {"prior": value, "synthesis_widths": value, "synthesis_blocks": value},
            "training_config": {},
            "step": int(value),
            "seconds": value,
        }
        torch.save(state, tmp_path / name)
        return str(tmp_path / name)

    prior, synthesis, stranger = (
        checkpoint("p.pt", 0, 1.0),
        checkpoint("s.pt", 0, 2.0),
        checkpoint("t.pt", 1, 3.0),
    )
    assert join_runs.main([prior, synthesis, str(tmp_path / "out.pt")]) == 0
    joined = torch.load(tmp_path / "out.pt", weights_only=True)
    assert joined["mean"]["prior.weight"][0] == 1 and joined["mean"]["synthesis.weight"][0] == 2
    assert joined["codec_config"] == {"prior": 1.0, "synthesis_widths": 2.0, "synthesis_blocks": 2.0}
    assert join_runs.main([prior, stranger, str(tmp_path / "out.pt")]) == os.EX_DATAERR
    assert "different transforms" in capsys.readouterr().err


def test_a_recipe_for_older_networks_says_which(tmp_path, tiles, capsys):
    torch.save({"mean": {}}, tmp_path / "old.pt")
    arguments = [str(tmp_path / "old.pt"), str(tmp_path / "new.pt"), str(tiles[0].parent)]
    assert grow_flight.main(arguments) == os.EX_UNAVAILABLE
    assert "release 0.2.0" in capsys.readouterr().err


def test_a_checkpoint_is_restored_from_a_profile_with_four_numbers_of_blocks(capsys):
    with pytest.raises(SystemExit) as stopped:
        restore_checkpoint.main(["flight3", "out.pt", "2", "5"])
    assert stopped.value.code == os.EX_USAGE and "BLOCKS are four numbers, found 2" in capsys.readouterr().err
