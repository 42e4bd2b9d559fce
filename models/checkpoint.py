"""Reading the checkpoints that training writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from perigee.bitstream.errors import Fault, PerigeeError
from perigee.models.codec.codec import Codec, config_from

WEIGHTS_FILE = "weights.npz"  # of an exported network
HALF_FROM = 4096  # weights with at least so many values are stored in fp16
MESSAGE_MAX = 240  # characters of torch's messages that are shown


class CheckpointError(PerigeeError):
    """A training checkpoint is damaged, is of another kind, or does not fit the networks that are asked for."""

    default_fault = Fault.MISFIT


def brief(error: Exception) -> str:
    """Return the message of an error in one line; torch lists every weight that does not fit on a line of its own."""
    line = " ".join(str(error).split())
    return line if len(line) <= MESSAGE_MAX else f"{line[:MESSAGE_MAX]}..."


def read_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the contents of a checkpoint file with its tensors on ``device``.

    Raises OSError where the file cannot be opened and CheckpointError where it is no checkpoint.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load has no common error for a file of another kind
        raise CheckpointError(f"{path}: not a checkpoint", Fault.UNREADABLE, field=str(path)) from error
    if not isinstance(state, dict):
        found = type(state).__name__
        raise CheckpointError(f"{path}: not a checkpoint but a {found}", Fault.KIND, expected="dict", found=found)
    return state


def write_weights(network: nn.Module, path: Path) -> None:
    """Write the weights of a network by name, large ones in fp16."""
    arrays = {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}
    np.savez(path, **{name: a.astype(np.float16) if a.size >= HALF_FROM else a for name, a in arrays.items()})


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, averaged, or of the folder of an exported network.

    Raises OSError where there is no such file and CheckpointError where it is none.
    """
    if not path.is_dir():
        weights = read_checkpoint(path).get("mean")
        if not isinstance(weights, dict):
            raise CheckpointError(f"{path}: a checkpoint without averaged weights", Fault.MISSING, field="mean")
        return weights
    file = path / WEIGHTS_FILE
    try:
        with np.load(file, allow_pickle=False) as found:
            return {name: torch.from_numpy(found[name]).float() for name in found.files}
    except OSError:
        raise
    except Exception as error:  # numpy has no common error for a damaged file
        raise CheckpointError(f"{file}: no weights", Fault.UNREADABLE, field=str(file)) from error


def load_codec(path: Path) -> tuple[Codec, dict[str, Any]]:
    """Return the codec of a perigee-train checkpoint with its averaged weights, in evaluation mode, and facts of its training.

    The facts are ``config`` (the training configuration), ``steps`` and ``minutes``. Raises OSError where the file cannot be
    opened and CheckpointError where it is not a checkpoint of such a codec.
    """
    state = read_checkpoint(path)
    try:
        codec = Codec(config_from(state["codec_config"]))
        codec.load_state_dict(state["mean"])
        minutes = round(state["seconds"] / 60, 1)
        training = {"config": state["training_config"], "steps": state["step"], "minutes": minutes}
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: not a perigee-train checkpoint ({brief(error)})", field=str(path)) from error
    return codec.eval(), training
