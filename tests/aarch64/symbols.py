"""What streams decode to on a machine, and whether machines agree. ``run.sh`` calls it on both.

``decode REPORT WAY STREAMS...`` decodes folders of streams, and runs the profile's self-test, by WAY: ``compiled`` (prior and
coder from csrc/) or ``plain`` (what serves where they are not installed). ``compare REPORTS STREAMS`` counts what differs.
"""

import json
import platform
import sys
import zlib
from importlib import metadata
from itertools import combinations
from pathlib import Path

import numpy as np

import perigee
from perigee.bitstream import compiled
from perigee.bitstream import format as fmt
from perigee.bitstream.coders import available_coders
from perigee.bitstream.contract import HYPER_BLOCK
from perigee.bitstream.entropy import decode_symbols
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile
from perigee.engines.ground import GroundEngine

PACKAGES = ("numpy", "onnxruntime", "tifffile", "imagecodecs", "tqdm", "constriction")


def version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def decode(report, way, folders):
    """Symbols of every segment to ``report``, with the CRC-32 of the prior's answers and the facts of this machine."""
    profile = find_profile(DEFAULT_PROFILE)
    contract = profile.contract
    if way == "compiled":
        prior, coder = compiled.NativePrior(contract.widths, contract.layers), "native"
    else:
        if platform.machine() != "x86_64" and compiled.library is not None:
            sys.exit("the compiled library is here: this is not an installation without a compiler")
        prior = GroundEngine(profile, 1, check=False, use_compiled_prior=False).prior
        coder = next(name for name in available_coders() if name != "native")
    tested = {"numpy int64": contract.reference(np.int64)}
    if way == "compiled":
        for packing in compiled.packings():
            tested[compiled.PACKING_NAMES[packing]] = compiled.NativePrior(contract.widths, contract.layers, packing)
    else:
        tested["ONNX Runtime"] = prior
    for candidate in tested.values():
        profile.self_test(candidate)
    facts = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "perigee": perigee.__version__,
        **{package: version(package) for package in PACKAGES},
        "profile": f"{profile.name} {contract.digest.hex()}",
        "prior": compiled.PACKING_NAMES[prior.packing] if way == "compiled" else "ONNX Runtime",
        "coder": coder,
        **{f"self-test of {name}": "passed" for name in tested},
    }
    arrays = {}
    for path in sorted(p for folder in folders for p in Path(folder).rglob("*.peri")):
        stream = parse_stream(path.read_bytes())
        if stream.header.contract != contract.digest:  # a default that changed during the run would look like damage
            sys.exit(f"{path} is of contract {stream.header.contract.hex()}, {profile.name} is {contract.digest.hex()}")
        for unit, segment in sorted(stream.segments.items()):
            _, _, _, rows, cols = stream.header.unit_region(unit)
            size = (-(-rows // HYPER_BLOCK), -(-cols // HYPER_BLOCK))
            offsets = None if stream.offsets is None else stream.offsets[unit % stream.header.groups]
            found = decode_symbols(
                contract.widths, contract.tables, prior, segment.words, segment.quality_step, size,
                kind=coder, latents=segment.latents, offsets=offsets,
            )  # fmt: skip
            if fmt.checksum_of(found.q) != segment.checksum:
                sys.exit(f"{path}: segment {unit} does not decode to the symbols that were encoded")
            name = f"{path.relative_to('streams')} {unit}"
            arrays[f"q {name}"] = found.q.astype(np.int16)
            answers = [zlib.crc32(part.astype("<i4").tobytes()) for part in (found.mean, found.scale_index)]
            arrays[f"answers {name}"] = np.array(answers, np.uint32)
    np.savez_compressed(report, facts=json.dumps(facts), **arrays)


def show(rows):
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


def compare(reports, streams):
    """Tables for people; returns how many symbols and answers differ."""
    found = {path.stem: dict(np.load(path)) for path in sorted(Path(reports).glob("*.npz"))}
    facts = {name: json.loads(str(arrays.pop("facts"))) for name, arrays in found.items()}
    known = dict.fromkeys(name for machine in facts.values() for name in machine)
    show([["", *facts], *([name, *(machine.get(name, "") for machine in facts.values())] for name in known)])

    wrong = 0
    rows = [["encoded on", "decoded on", "patches", "symbols", "differing symbols", "patches with other answers"]]
    encoders = sorted(folder.name for folder in Path(streams).iterdir())
    for encoder in encoders:
        names = [name for name in found[encoder] if name.startswith(f"q {encoder}/")]
        for decoder, arrays in found.items():
            if names[0] not in arrays:  # streams of the later installation are not decoded by the earlier
                continue
            pairs = [(found[encoder][name], arrays[name]) for name in names]
            answers = [name.replace("q ", "answers ", 1) for name in names]
            other = sum(not np.array_equal(found[encoder][name], arrays[name]) for name in answers)
            differing = sum(int((a != b).sum()) for a, b in pairs)
            wrong += differing + other
            rows.append([encoder, decoder, len(names), sum(a.size for a, _ in pairs), differing, other])
    show(rows)

    rows = [["encoded on", "and on", "streams", "of the same bytes", "symbols that the encoders chose otherwise"]]
    for one, two in combinations(encoders, 2):
        paths = sorted(path.relative_to(Path(streams, one)) for path in Path(streams, one).rglob("*.peri"))
        same = sum(Path(streams, one, p).read_bytes() == Path(streams, two, p).read_bytes() for p in paths)
        names = [n.removeprefix(f"q {one}/") for n in found[one] if n.startswith(f"q {one}/")]
        chosen = sum(int((found[one][f"q {one}/{n}"] != found[two][f"q {two}/{n}"]).sum()) for n in names)
        rows.append([one, two, len(paths), same, chosen])
    show(rows)
    return wrong


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "decode":
        decode(arguments[0], arguments[1], arguments[2:])
    else:
        differing = compare(*arguments)
        print("the machines agree" if not differing else f"{differing} DIFFERENCES")
        sys.exit(bool(differing))
