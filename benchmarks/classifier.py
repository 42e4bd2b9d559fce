"""A land-use classifier for :mod:`perigee.benchmarks.downstream`: a network that knows natural images, and least squares.

SqueezeNet 1.1 as trained on ImageNet, not changed; means and deviations of its maps after the sixth and the last of its
eight fire modules; and least squares with a Gaussian kernel on these 1,792 numbers, standardised. The network is the one
inside the ONNX file of LPIPS (squeeze). All is float64 beyond the network and depends on nothing random.

Chosen on UC Merced's training tiles alone, before any tile to be judged was seen. Five-fold cross-validation: 96 %. One
fold after JPEG 2000 at 0.5, 0.25 and 0.1 bpp: 97 % of 252 originals, then 91, 81 and 59 %. Local binary patterns,
orientations and colours made by hand: 90 % by cross-validation, but on half of the same fold 83 % of the originals, then
62, 46 and 18 %: they look at the grain that every codec removes first, and do not judge what an image shows. A network
trained from nothing on 1,260 tiles would cost some sixteen minutes of processor time instead of half a minute and was
expected to do worse; it was not tried.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import Pixels

Floats = npt.NDArray[np.float64]
FIRES, TAPS = 8, (5, 7)  # fire modules of the network, and the numbers (from 0) of those whose maps are used
SIDE_MIN = 32
RIDGE = 0.05


class Backbone:
    """SqueezeNet's maps as 1,792 numbers, from the ONNX file of LPIPS with SqueezeNet."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Raises SystemExit where ``onnx`` is missing or the file holds another network."""
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise SystemExit("onnx is missing: pip install '.[export]' in Perigee's checkout") from error
        import onnxruntime as ort

        data = path.read_bytes()
        self.digest = hashlib.sha256(data).hexdigest()[:16]
        model = onnx.load_from_string(data)
        graph = model.graph
        first = [value for value in graph.input if value.name == "ref"]
        reached = {"ref"}
        fires: list[str] = []
        for node in graph.node:
            sources = set(node.input) - {constant.name for constant in graph.initializer}
            if sources and sources <= reached:
                reached |= set(node.output)
                fires += node.output if node.op_type == "Concat" else []
        if not first or len(fires) != FIRES:
            raise SystemExit(
                f"{path}: {len(fires)} fire modules behind an input 'ref'; LPIPS with SqueezeNet has {FIRES}"
            )
        wanted, kept = {fires[tap] for tap in TAPS}, []
        outputs = [onnx.helper.make_tensor_value_info(fires[tap], onnx.TensorProto.FLOAT, None) for tap in TAPS]
        for node in reversed(graph.node):
            if wanted & set(node.output):
                kept.append(node)
                wanted |= set(node.input)
        constants = [constant for constant in graph.initializer if constant.name in wanted]
        part = onnx.helper.make_graph(kept[::-1], "backbone", first, outputs, constants)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        kind = {"opset_imports": model.opset_import, "ir_version": model.ir_version}
        data = onnx.helper.make_model(part, **kind).SerializeToString()
        self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def features(self, pixels: Pixels) -> Floats:
        """float64 [1792] of an image uint8 [row, col, 3] with sides of at least 32; ValueError for less."""
        if min(pixels.shape[:2]) < SIDE_MIN:
            raise ValueError(
                f"an image of {pixels.shape[1]}x{pixels.shape[0]}; accepted are sides of at least {SIDE_MIN}"
            )
        image = (pixels.astype(np.float32) / np.float32(127.5) - 1).transpose(2, 0, 1)[None]
        maps = [m[0].astype(np.float64) for m in self._session.run(None, {"ref": image})]
        return np.concatenate([part for m in maps for part in (m.mean((1, 2)), m.std((1, 2)))])


@dataclass(frozen=True)
class Classifier:
    """Least squares with a Gaussian kernel. ``examples`` [n, features] are standardised, ``weights`` [n, classes]."""

    names: tuple[str, ...]
    mean: Floats
    scale: Floats
    width: float
    examples: Floats
    weights: Floats

    def predict(self, features: Floats) -> npt.NDArray[np.intp]:
        """Class numbers [m] of features [m, features]."""
        near = _distances((features - self.mean) / self.scale, self.examples)
        return np.asarray((np.exp(-near / self.width) @ self.weights).argmax(1))

    def save(self, path: Path, made_from: str) -> None:
        """Write as .npz; ``made_from`` says what of, for :func:`load_classifier`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, made_from=made_from, names=np.array(self.names), mean=self.mean, scale=self.scale,
                 width=self.width, examples=self.examples, weights=self.weights)  # fmt: skip


def load_classifier(path: Path, made_from: str) -> Classifier | None:
    """A saved classifier; None where there is none, or one made from something else."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as data:
        if str(data["made_from"]) != made_from:
            return None
        names = tuple(str(name) for name in data["names"])
        return Classifier(names, data["mean"], data["scale"], float(data["width"]), data["examples"], data["weights"])


def _distances(a: Floats, b: Floats) -> Floats:
    """Squared distances [len(a), len(b)]."""
    out: Floats = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)
    return out


def fit(features: Floats, labels: list[str]) -> Classifier:
    """Classifier of features [n, features] with a label each. Raises ValueError for fewer than two classes."""
    names, numbers = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} class among {len(labels)} examples; at least two are needed")
    mean, scale = features.mean(0), features.std(0) + 1e-6
    examples = (features - mean) / scale
    between = _distances(examples, examples)
    width = float(np.median(between)) or 1.0
    kernel = np.exp(-between / width) + RIDGE * np.eye(len(examples))
    weights: Floats = np.linalg.solve(kernel, 2 * np.eye(len(names))[numbers] - 1).astype(np.float64)
    return Classifier(tuple(str(name) for name in names), mean, scale, width, examples, weights)


def cross_validate(features: Floats, labels: list[str], folds: int = 5) -> float:
    """Accuracy on examples left out in turn: every fifth of the list for five folds."""
    fold = np.arange(len(labels)) % folds
    right = 0
    for k in range(folds):
        classifier = fit(features[fold != k], [label for label, f in zip(labels, fold, strict=True) if f != k])
        predicted = classifier.predict(features[fold == k])
        right += sum(
            classifier.names[p] == labels[i] for p, i in zip(predicted, np.flatnonzero(fold == k), strict=True)
        )
    return right / len(labels)
