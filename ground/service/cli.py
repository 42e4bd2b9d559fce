"""``ground-serve``: the ground service over HTTP."""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from pathlib import Path

from perigee.bitstream.errors import PerigeeError

TOKEN_MIN = 16


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit codes as in ``sysexits.h``."""
    parser = argparse.ArgumentParser(prog="ground-serve", description="Serve POST /decode and its relatives over HTTP.")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port (default %(default)s)")
    parser.add_argument(
        "--profiles", type=Path, action="append", default=[], metavar="DIR", help="more profiles (repeatable)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of a decoding (default: all cores)")
    parser.add_argument(
        "--auth-token-file", type=Path, metavar="FILE", help="file with the bearer token that callers must send"
    )
    parser.add_argument("--no-auth", action="store_true", help="serve another address than loopback without a token")
    parser.add_argument("--max-upload-mib", type=int, default=256, help="largest upload (default %(default)s)")
    parser.add_argument(
        "--max-megasamples", type=int, default=400, help="largest decoded view, pixels x bands (default %(default)s)"
    )
    parser.add_argument("--queue", type=int, default=8, help="decodings that may wait (default %(default)s)")
    parser.add_argument(
        "--jobs", type=Path, metavar="DIR", help="folder that keeps jobs over a restart (default: a temporary one)"
    )
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return os.EX_USAGE if stop.code else os.EX_OK
    if not (0 < args.port < 65536 and args.queue >= 0 and args.max_upload_mib > 0 and (args.threads or 1) > 0):
        print("ground-serve: --port is 1 to 65535, --queue at least 0, sizes and --threads at least 1", file=sys.stderr)
        return os.EX_USAGE
    token = None
    if args.auth_token_file:
        try:
            token = args.auth_token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            print(f"ground-serve: {error}", file=sys.stderr)
            return os.EX_NOINPUT
        if len(token) < TOKEN_MIN:
            print(
                f"ground-serve: the token has {len(token)} characters; at least {TOKEN_MIN} are needed", file=sys.stderr
            )
            return os.EX_CONFIG
    if not _loopback(args.host) and token is None and not args.no_auth:
        print(
            f"ground-serve: {args.host} is not loopback: give --auth-token-file, or --no-auth if you mean it",
            file=sys.stderr,
        )
        return os.EX_USAGE
    try:
        import uvicorn

        from perigee.ground.service.app import Settings, create_app
    except ModuleNotFoundError as error:
        print(f"ground-serve: {error.name} is missing: pip install '.[ground]' in Perigee's checkout", file=sys.stderr)
        return os.EX_UNAVAILABLE
    settings = Settings(
        profiles=tuple(args.profiles),
        threads=args.threads,
        upload_bytes=args.max_upload_mib << 20,
        decoded_samples=args.max_megasamples * 1_000_000,
        waiting=args.queue,
        token=token,
        jobs=args.jobs,
    )
    try:
        app = create_app(settings)
    except PerigeeError as error:
        print(f"ground-serve: {error}", file=sys.stderr)
        return os.EX_CONFIG
    try:
        uvicorn.run(app, host=args.host, port=args.port, log_level="warning")
    except (SystemExit, OSError, UnicodeError) as error:  # uvicorn has said why: most often the port is in use
        print(f"ground-serve: cannot serve on {args.host}:{args.port} ({error})", file=sys.stderr)
        return os.EX_UNAVAILABLE
    return os.EX_OK
