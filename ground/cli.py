"""``ground-decode``: a Perigee stream to a Cloud-Optimised GeoTIFF or PNG, or a look at what it holds."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from perigee.bitstream.errors import (
    BitstreamError,
    CompensationError,
    EngineError,
    LimitError,
    PerigeeError,
    ProfileError,
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Usage errors exit with 64, not argparse's 2."""
        self.print_usage(sys.stderr)
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\n")


def _numbers(text: str, count: int | None = None) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        raise argparse.ArgumentTypeError(f"{text!r} is not {count or 'a list of'} whole numbers with commas between")
    return values


def _window(text: str) -> list[int]:
    return _numbers(text, 4)


def _scale(text: str) -> int:
    """``1/4`` as 4."""
    if text == "1":
        return 1
    top, _, bottom = text.partition("/")
    if top != "1" or bottom not in ("2", "4", "8", "16"):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1, 1/2, 1/4, 1/8 or 1/16")
    return int(bottom)


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit codes as in ``sysexits.h``."""
    parser = _Parser(
        prog="ground-decode",
        description="Decode a Perigee stream to a Cloud-Optimised GeoTIFF or PNG.",
        epilog="Exit codes: 0 done, 64 usage, 65 the stream is invalid, 66 input missing, 69 engine unavailable, 73 output cannot be created, "
        "78 unusable or unknown profile.",
    )
    parser.add_argument("stream", type=Path, metavar="IN.peri")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="OUT.tif|.png", help="product (default: beside the stream, .tif)"
    )
    parser.add_argument(
        "--info", action="store_true", help="print what the stream says of itself as JSON; decode nothing"
    )
    parser.add_argument("--window", type=_window, metavar="TOP,LEFT,ROWS,COLS", help="only this part, in pixels")
    parser.add_argument("--bands", type=_numbers, metavar="1,2,...", help="only these bands, counted from 1")
    parser.add_argument("--scale", type=_scale, default=1, metavar="1/2..1/16", help="reduced size")
    parser.add_argument(
        "--profiles", type=Path, action="append", default=[], metavar="DIR", help="more profiles (repeatable)"
    )
    parser.add_argument(
        "--compensation",
        default="none",
        metavar="NAME[:METHOD]",
        help="add generated detail where the codec lost it, by this compensator (default: none, what was measured alone)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of the diffusion (default: the compensator's)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the noise that detail is made of (default 0)"
    )
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="0..1", help="share of the detail that is added (default 1)"
    )
    parser.add_argument(
        "--trust",
        type=Path,
        metavar="OUT.tif",
        help="also write how far to trust the pixels: half the width of their 90 %% interval, and where detail was generated; "
        "with --strength 0 for the base image",
    )
    parser.add_argument("--stac", type=Path, metavar="OUT.json", help="also write a STAC item of the product")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument(
        "--damaged", action="store_true", help="decode what is sound of a damaged stream and report the rest"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing product")
    args = parser.parse_args(argv)
    if args.threads is not None and args.threads < 1:
        parser.error("--threads must be at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    out: Path = args.out or args.stream.with_suffix(".tif")
    if out.suffix.lower() not in (".tif", ".tiff", ".png"):
        parser.error(f"{out}: the product's suffix must be .tif, .tiff or .png")
    try:
        from perigee.bitstream import format as fmt
        from perigee.ground.compensation.decoder import CompensatedDecoder, Compensation
        from perigee.ground.library import Library, inspect
        from perigee.support.files import replacing, write_atomically

        if not args.info:
            from tqdm import tqdm

            from perigee.ground.decoder import Region
            from perigee.ground.products import check_trust, view_of, write_cog, write_png, write_trust
            from perigee.ground.stac import stac_item
    except ModuleNotFoundError as error:
        print(f"ground-decode: {error.name} is missing: pip install '.[ground]' in Perigee's checkout", file=sys.stderr)
        return os.EX_UNAVAILABLE
    try:
        data = args.stream.read_bytes()
        stream = fmt.parse(data, damaged=args.damaged)
        if args.info:
            print(json.dumps(inspect(stream, len(data)), indent=1))
            return os.EX_OK
        if out.exists() and not args.overwrite:
            print(f"ground-decode: {out} exists; --overwrite replaces it", file=sys.stderr)
            return os.EX_CANTCREAT
        if out.exists() and (not out.is_file() or out.samefile(args.stream)):
            print(f"ground-decode: {out} is the stream itself or not a regular file", file=sys.stderr)
            return os.EX_CANTCREAT
        if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
            print(f"ground-decode: the folder {out.parent} does not exist or cannot be written to", file=sys.stderr)
            return os.EX_CANTCREAT
        for extra in (args.trust, args.stac):
            if extra is None:
                continue
            others = [args.stream, out, *(p for p in (args.trust, args.stac) if p is not None and p is not extra)]
            taken = any(extra.resolve() == other.resolve() for other in others)
            if taken or (extra.exists() and not (args.overwrite and extra.is_file())) or not extra.parent.is_dir():
                print(
                    f"ground-decode: {extra} exists or cannot be created there; --overwrite replaces files",
                    file=sys.stderr,
                )
                return os.EX_CANTCREAT
        start = time.perf_counter()
        wanted = Compensation(steps=args.steps, seed=args.seed, strength=args.strength)
        decoder = Library(args.profiles, args.threads).decoder(stream, args.damaged, args.compensation, wanted)
        if args.trust and not isinstance(decoder, CompensatedDecoder):
            raise CompensationError("--trust needs the compensator that estimates it: --compensation NAME")
        view = view_of(decoder, Region(*args.window) if args.window else None, args.bands, args.scale)
        if args.trust and isinstance(decoder, CompensatedDecoder):
            check_trust(decoder, view)
        write = write_png if out.suffix.lower() == ".png" else write_cog
        with tqdm(unit="px", unit_scale=True, disable=not sys.stderr.isatty(), leave=False) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            with replacing(out) as temporary:
                write(temporary, decoder, view, progress)
            if args.trust and isinstance(decoder, CompensatedDecoder):
                with replacing(args.trust) as temporary:
                    write_trust(temporary, decoder, view, progress)
            if args.stac:
                item = stac_item(decoder, view, out, args.trust)
                write_atomically(args.stac, (json.dumps(item, indent=1) + "\n").encode())
        seconds = time.perf_counter() - start
    except KeyboardInterrupt:
        return 130
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        print(f"ground-decode: {error.strerror}: {error.filename}", file=sys.stderr)
        return os.EX_NOINPUT
    except ProfileError as error:
        print(f"ground-decode: {error}", file=sys.stderr)
        return os.EX_CONFIG
    except CompensationError as error:
        print(f"ground-decode: {error}", file=sys.stderr)
        return os.EX_USAGE
    except EngineError as error:
        print(f"ground-decode: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    except (LimitError, BitstreamError, PerigeeError) as error:
        print(f"ground-decode: {args.stream}: {error}", file=sys.stderr)
        unknown = type(error).__name__ == "UnknownProfileError"
        return (
            os.EX_CONFIG
            if unknown
            else os.EX_USAGE
            if isinstance(error, LimitError) and (args.window or args.bands)
            else os.EX_DATAERR
        )
    except OSError as error:
        print(f"ground-decode: {error}", file=sys.stderr)
        return os.EX_IOERR
    rows, cols = view.size
    print(f"{args.stream} -> {out}: {cols}x{rows} pixels, {len(view.bands)} bands, {seconds:.2f} s")
    if isinstance(decoder, CompensatedDecoder) and decoder.left_alone:
        print(decoder.left_alone, file=sys.stderr)
    for unit, passes in decoder.report.cut.items():
        print(f"segment {unit} was cut short: {passes} passes decoded", file=sys.stderr)
    for reason in [
        *stream.damage,
        *(f"segment {u}: {r}" for u, r in decoder.report.lost.items()),
        *decoder.report.notes,
    ]:
        print(f"damage: {reason}", file=sys.stderr)
    return os.EX_OK
