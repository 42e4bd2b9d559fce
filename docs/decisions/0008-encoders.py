"""One run of decision 0008, from scratch: ``0008-encoders.py PRESET MINUTES FOLDER [--seed N] [--exclude SOURCE ...]``.

All runs have the same data, prior, synthesis, schedule and one thread; only the analysis differs.
"""

import argparse
import sys
from pathlib import Path

import torch

from perigee.bitstream.prior import Widths
from perigee.models.codec.codec import CodecConfig
from perigee.models.codec.flight import PRESETS
from perigee.training.data import load_folders, split
from perigee.training.loop import Trainer, TrainingConfig

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("preset", choices=PRESETS)
parser.add_argument("minutes", type=float)
parser.add_argument("folder", type=Path)
parser.add_argument("--data", type=Path, action="append", required=True)
parser.add_argument("--exclude", action="append", default=[])
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

torch.set_num_threads(1)
weak = ["oam7cm_kampala", "oam10cm_5dded5bc"]  # licence evidence too weak to learn from
training, validation = split(load_folders(args.data, [*weak, *args.exclude]), 0.02)
codec = CodecConfig(
    (args.preset,),
    prior=Widths(latents=320, context=64, head=128, slices=(16, 24, 40, 112, 128)),
    synthesis_widths=(96, 64, 32, 16),
    synthesis_blocks=(1, 1, 1, 1),
)
config = TrainingConfig(minutes=args.minutes, seed=args.seed, checkpoint_minutes=args.minutes / 4)
args.folder.mkdir(parents=True, exist_ok=True)
trainer = Trainer(codec, config, args.folder)
trainer.start(training)
trainer.run(training, validation, {}, sys.stderr.isatty())
