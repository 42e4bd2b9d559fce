"""Integer frequency tables for the entropy coder.

Latents have discretised logistic distributions; hyper-latents have the mixtures that were trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from perigee.bitstream.prior import MEAN_FRACTIONS, SCALE_COUNT, Z_CLAMP
from perigee.bitstream.tables import FREQUENCY_TOTAL, Tables
from perigee.models.codec.codec import SPREAD_MAX, SPREAD_MIN, HyperPrior

SUPPORT = 10.0  # what a table covers to either side of the mean, in spreads


def integer_frequencies(probabilities: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Return uint16 frequencies of at least 1 that sum to 65536 and are close to ``probabilities`` [K].

    What rounding leaves over goes to the largest of them.
    """
    share = probabilities / probabilities.sum()
    out = np.floor(share * (FREQUENCY_TOTAL - len(share))).astype(np.int64) + 1
    out[out.argmax()] += FREQUENCY_TOTAL - out.sum()
    return np.asarray(out, np.uint16)


def latent_tables(spreads: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Return radius and frequencies of logistic distributions of these spreads, 16 tables each.

    The probability outside a table's support is that of the escape symbol.
    """
    radius = np.maximum(1, np.ceil(SUPPORT * spreads)).astype(np.uint16)
    rows = []
    for spread, reach in zip(spreads, radius.astype(int), strict=True):
        edges = np.arange(-reach, reach + 3) - 0.5
        for fraction in range(MEAN_FRACTIONS):
            cdf = torch.sigmoid(torch.from_numpy((edges - fraction / MEAN_FRACTIONS) / spread)).numpy()
            inside = np.diff(cdf)
            rows.append(integer_frequencies(np.append(inside, max(1 - inside.sum(), 1e-9))))
    return radius, np.concatenate(rows)


def z_tables(hyper_prior: HyperPrior) -> npt.NDArray[np.uint16]:
    """Return the frequencies of the hyper-latents, [bands * channels, 129]."""
    bands, channels = hyper_prior.bands.shape[:2]
    z = torch.arange(-Z_CLAMP, Z_CLAMP + 1, dtype=torch.float32).reshape(1, 1, -1, 1)
    with torch.no_grad():
        likelihood = hyper_prior.likelihood(z.expand(bands, channels, -1, 1), torch.arange(bands))
    mass = likelihood.reshape(bands * channels, -1).double().cpu().numpy()
    return np.stack([integer_frequencies(row) for row in mass])


def make_tables(hyper_prior: HyperPrior) -> Tables:
    """Return all tables of a contract."""
    spreads = SPREAD_MIN * np.exp(np.arange(SCALE_COUNT) * (np.log(SPREAD_MAX / SPREAD_MIN) / (SCALE_COUNT - 1)))
    return Tables(*latent_tables(spreads), z_tables(hyper_prior))
