"""``ground-serve``: the ground service over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from perigee.bitstream.errors import Fault, ProfileError
from perigee.engines.backend import CPU_BACKEND
from perigee.ground.arguments import add_engine, backend_of, device, devices
from perigee.ground.environment import own_environment
from perigee.support.command import (
    INTERRUPTED,
    Parser,
    complain,
    ending_signals,
    exit_on_signals,
    not_negative,
    positive,
    prepare_streams,
    run,
)
from perigee.support.findings import tell

if TYPE_CHECKING:
    import uvicorn

PROGRAM = "ground-serve"
TOKEN_MIN = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def build_parser() -> Parser:
    """The command line of ``ground-serve``."""
    parser = Parser(
        prog=PROGRAM,
        description="Serve decoding, inspection and jobs over HTTP. `ground-serve doctor` examines the machine instead.",
        epilog="Exit codes: 0 the service was ended, 64 usage, 66 the token file is missing, 69 the engine or the address is unavailable, "
        "73 the folder of jobs cannot be used, 78 unusable profile or token.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default %(default)s)")
    parser.add_argument("--port", type=_port, default=8080, help="port, 1 to 65535 (default %(default)s)")
    parser.add_argument(
        "--profiles",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a profile or compensator of your own, or a folder of several (repeatable)",
    )
    add_engine(parser)
    parser.add_argument(
        "--devices",
        type=devices,
        default=(),
        metavar="N,N,...",
        help="a worker process for each of these devices instead of decoding in the service's own: numbers of GPUs, or cpu, which may "
        "be repeated",
    )
    parser.add_argument(
        "--auth-token-file", type=Path, metavar="FILE", help="file with the bearer token that callers must send"
    )
    parser.add_argument("--no-auth", action="store_true", help="allow an address other than loopback without a token")
    parser.add_argument(
        "--max-upload-mib", type=positive, default=256, metavar="N", help="largest upload in MiB (default %(default)s)"
    )
    parser.add_argument(
        "--max-megasamples",
        type=positive,
        default=400,
        metavar="N",
        help="largest decoded view in millions of samples, pixels times bands; a reduced tile of a scene may be made of four times as many "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--shutdown-seconds",
        type=not_negative,
        default=10,
        metavar="N",
        help="seconds that requests may go on after SIGTERM (default %(default)s)",
    )
    parser.add_argument(
        "--write-seconds",
        type=positive,
        default=60,
        metavar="N",
        help="end an answer of which the client has read nothing for N seconds (default %(default)s)",
    )
    parser.add_argument(
        "--queue",
        type=not_negative,
        default=8,
        metavar="N",
        help="largest number of requests that wait; more are answered with 503 (default %(default)s)",
    )
    parser.add_argument(
        "--jobs", type=Path, metavar="DIR", help="folder in which jobs survive a restart (default: a temporary one)"
    )
    parser.add_argument(
        "--scenes",
        type=Path,
        metavar="DIR",
        help="folder of the streams that are served under /scenes (default: a temporary one)",
    )
    parser.add_argument("--scenes-read-only", action="store_true", help="refuse to put and delete scenes")
    parser.add_argument(
        "--scenes-gib", type=positive, default=8, metavar="N", help="quota of all scenes in GiB (default %(default)s)"
    )
    parser.add_argument(
        "--scenes-days",
        type=positive,
        metavar="N",
        help="delete scenes so many days after they were put (default: keep them)",
    )
    parser.add_argument(
        "--cache-mib",
        type=positive,
        default=256,
        metavar="N",
        help="memory for decoded tiles of scenes in MiB (default %(default)s)",
    )
    parser.add_argument(
        "--host-name",
        action="append",
        default=[],
        metavar="NAME",
        help="answer under this name alone (repeatable; default: on loopback localhost, 127.0.0.1 and ::1, elsewhere any)",
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        type=_origin,
        metavar="ORIGIN",
        help="let pages of this origin, such as https://maps.example.org, use the service (repeatable; default: none)",
    )
    return parser


def build_doctor_parser() -> Parser:
    """The command line of ``ground-serve doctor``."""
    parser = Parser(
        prog="ground-serve doctor",
        description="Say what this machine has, which engines pass their self-tests, and how fast they decode and restore.",
        epilog="Exit codes: 0 all is well, 69 something failed.",
    )
    parser.add_argument(
        "--device",
        type=device,
        metavar="N|cpu",
        help="number of the GPU that is examined, or cpu (default: the first GPU)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON line for each finding")
    return parser


def _doctor(argv: list[str]) -> int:
    args = build_doctor_parser().parse_args(argv)

    def body() -> int:
        from perigee.ground.health import examine

        return tell("ground-serve doctor", examine(args.device, args.threads), args.json)

    return run(PROGRAM, "ground", body)


def _origin(text: str) -> str:
    """An origin without a path, as browsers send it. Raises ArgumentTypeError."""
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is no origin such as https://maps.example.org")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _port(text: str) -> int:
    value = positive(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port from 1 to 65535")
    return value


def _token(path: Path) -> str:
    """The token in a file. Raises ProfileError where it is too short or not text, OSError."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path} is not text ({error})", Fault.TEXT, field="token") from error
    if len(token) < TOKEN_MIN:
        raise ProfileError(
            f"the token has {len(token)} characters; at least {TOKEN_MIN} are needed",
            Fault.SIZE,
            field="token",
            expected=f"at least {TOKEN_MIN}",
            found=len(token),
        )
    return token


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit codes as in ``sysexits.h``."""
    prepare_streams()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["doctor"]:
        return _doctor(argv[1:])
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.devices and args.device is not None:
        parser.error("--device and --devices exclude each other")
    if not _loopback(args.host) and args.auth_token_file is None and not args.no_auth:
        parser.error(f"{args.host} is not loopback: give --auth-token-file, or --no-auth if you mean it")
    exit_on_signals()
    own_environment(PROGRAM)
    return run(PROGRAM, "ground", lambda: _serve(args))


def _serve(args: argparse.Namespace) -> int:
    token = _token(args.auth_token_file) if args.auth_token_file else None
    import uvicorn

    from perigee.ground.service.app import create_app
    from perigee.ground.service.connections import Seldom, connection_limits, connections_of
    from perigee.ground.service.limits import Settings
    from perigee.ground.service.scenes import SceneLimits
    from perigee.ground.service.workspace import close_all

    backend = CPU_BACKEND if args.devices else backend_of(args, PROGRAM)
    # A GPU is used by a process of its own in any case, so that one which fails does not take the service along.
    chosen = args.devices or (() if backend.on_cpu else (args.device or "0",))
    settings = Settings(
        profiles=tuple(args.profiles),
        threads=args.threads,
        backend=backend,
        devices=chosen,
        engine=args.engine if args.devices else backend.engine_name,
        upload_bytes=args.max_upload_mib << 20,
        decoded_samples=args.max_megasamples * 1_000_000,
        waiting=args.queue,
        token=token,
        hosts=tuple(name.lower().rstrip(".") for name in args.host_name)
        or (LOOPBACK_NAMES if _loopback(args.host) else ()),
        cors_origins=tuple(args.cors_origin),
        scenes=args.scenes,
        scene_limits=SceneLimits(
            args.scenes_gib << 30,
            args.scenes_days,
            args.scenes_read_only,
            args.cache_mib << 20,
            4_000_000 * args.max_megasamples,
        ),
        jobs=args.jobs,
        write_s=args.write_seconds,
        shutdown_s=args.shutdown_seconds,
    )
    connections, accepted_at_once = connection_limits()
    logging.getLogger("uvicorn.error").addFilter(_OneLine())
    logging.getLogger("asyncio").addFilter(Seldom())
    try:
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(settings),
                host=args.host,
                port=args.port,
                http=connections_of(settings, connections),
                ws="none",
                backlog=accepted_at_once,
                log_level="info",
                access_log=False,
                timeout_graceful_shutdown=settings.shutdown_s,
            )
        )
        # uvicorn takes SIGTERM and SIGINT while it serves, and raises them again when it has ended
        for number in ending_signals():
            signal.signal(number, server.handle_exit)
        code = _run(server, f"{args.host}:{args.port}")
    finally:
        close_all()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        # a decoding that cannot be interrupted would hold the process; its workspace is gone, and a job begins again
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(server: uvicorn.Server, address: str) -> int:
    """Serve until a signal ends the service; the exit code."""
    try:
        server.run()
    except KeyboardInterrupt:  # SIGINT ended the service, or came before it began
        return os.EX_OK if server.started else INTERRUPTED
    except (SystemExit, OSError, UnicodeError) as error:  # uvicorn has said why: most often the port is in use
        complain(f"{PROGRAM}: cannot serve on {address} ({error})")
        return os.EX_UNAVAILABLE
    return os.EX_OK if server.started else os.EX_UNAVAILABLE


class _OneLine(logging.Filter):
    """Requests that are cut off when the service ends, or because nobody reads their answer, are no faults: one line each."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, (asyncio.CancelledError, TimeoutError)):
            record.msg, record.args, record.exc_info, record.exc_text = "a request was cut off", (), None, None
        return True
