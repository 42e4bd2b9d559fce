"""Writes ``docs/cli.md`` from the parsers of all commands and ``docs/api.md`` from the service's OpenAPI description.

``python docs/reference.py`` writes both pages; with ``--check`` it writes nothing and exits with 1 where a page is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from perigee.archive import cli as archive
from perigee.engines import cli as export_engine
from perigee.export import cli as export_profile
from perigee.export import compensation_cli as export_compensator
from perigee.export import components_cli as export_components
from perigee.ground import cli as ground_decode
from perigee.ground import enhance_cli as ground_enhance
from perigee.ground.service import cli as ground_serve
from perigee.ground.service.app import create_app
from perigee.onboard import arguments as onboard_arguments
from perigee.onboard import cli as onboard_encode
from perigee.training import cli as train
from perigee.training import compensation_cli as train_compensator
from perigee.training import components_cli as train_components
from perigee.training import enhancement_cli as train_enhancer
from perigee.training import map_guidance_cli as train_map_guide
from perigee.training import segmenter_cli as train_segmenter

EXAMPLE = """Where the service was started with `--auth-token-file`, every request but those to `/healthz`, `/readyz` and the page's own files must
carry `Authorization: Bearer TOKEN`, or it is answered with 401. A request under a name that the service does not
answer to gets 421, and a change that a page of another origin asks for gets 403. Every error is a problem document, `application/problem+json`.

```sh
curl --data-binary @TILE.peri -H 'Content-Type: application/octet-stream' 'localhost:8080/decode?scale=1/4' -o PREVIEW.tif
curl --data-binary @TILE.peri -H 'Content-Type: application/octet-stream' localhost:8080/jobs      # names the job: "id"
curl localhost:8080/jobs/ID                                                                        # its state
curl localhost:8080/jobs/ID/result -o PRODUCT.tif                                                  # its product, once it is done
curl -T TILE.peri -H 'Content-Type: application/octet-stream' localhost:8080/scenes/TILE           # keeps it as a scene
gdalinfo /vsicurl/http://localhost:8080/scenes/TILE.tif                                            # which GDAL and QGIS read
```"""
FOLDER = Path(__file__).resolve().parent
MADE = "<!-- Made by docs/reference.py; change the parsers or the routes instead. -->"
PARSERS = (
    onboard_arguments.build_parser,
    onboard_encode.build_doctor_parser,
    ground_decode.build_parser,
    ground_enhance.build_parser,
    ground_serve.build_parser,
    ground_serve.build_doctor_parser,
    archive.build_parser,
    export_engine.build_parser,
    train.build_parser,
    export_profile.build_parser,
    train_components.build_parser,
    export_components.build_parser,
    train_compensator.build_parser,
    export_compensator.build_parser,
    train_enhancer.build_parser,
    train_segmenter.build_parser,
    train_map_guide.build_parser,
)


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    values = {"prog": parser.prog} | vars(action)
    return (action.help or "") % values


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        shown = action.metavar or action.dest
        return f"`{shown if isinstance(shown, str) else ' '.join(shown)}`"
    value = ""
    if action.nargs != 0:
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices is not None else None
        shown = action.metavar or choices or action.dest.upper()
        value = " " + (shown if isinstance(shown, str) else " ".join(shown))
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def _usage(parser: argparse.ArgumentParser) -> str:
    """The usage line on one line, with the arguments that are required and those that may be repeated."""
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=10_000)
    return parser.format_usage().removeprefix("usage: ").replace(" [-h] [--version]", "").strip()


def _with_kinds(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser, and those of the kinds of work that its command has."""
    kinds = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [parser, *(kind for action in kinds for kind in action.choices.values())]


def cli_page() -> str:
    """All commands with their arguments as Markdown."""
    lines = ["# Commands", "", MADE, ""]
    lines.append(
        "Every command explains itself with `--help` and names its release with `--version`. Exit codes are those of `sysexits.h`."
    )
    for parser in [one for build in PARSERS for one in _with_kinds(build())]:
        lines += ["", f"## {parser.prog}", "", parser.description or "", "", "```text", _usage(parser), "```", ""]
        lines += ["| argument | meaning |", "| --- | --- |"]
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                lines += [
                    f"| `{name}` | {_cell(kind.help)} |"
                    for name, kind in zip(action.choices, action._choices_actions, strict=True)
                ]
                continue
            if action.help == argparse.SUPPRESS or {"--help", "--version"} & set(action.option_strings):
                continue
            lines.append(f"| {_cell(_name(action))} | {_cell(_help(parser, action))} |")
        if parser.epilog:
            lines += ["", parser.epilog]
    return "\n".join(lines) + "\n"


def _parameters(operation: dict[str, Any]) -> list[str]:
    rows = []
    for parameter in operation.get("parameters", []):
        schema = parameter["schema"]
        kinds = [schema.get("type"), *(option.get("type") for option in schema.get("anyOf", []))]
        kind = " or ".join(k for k in kinds if k and k != "null")
        default = f"; default {schema['default']}" if schema.get("default") is not None else ""
        text = parameter.get("description") or schema.get("description") or ""
        rows.append(f"| `{parameter['name']}` | {parameter['in']}, {kind}{default} | {_cell(text)} |")
    return rows


def api_page() -> str:
    """All routes of the service with their parameters and answers as Markdown."""
    schema = create_app().openapi()
    lines = ["# The ground service", "", MADE, "", schema["info"]["description"], ""]
    lines.append(
        "`ground-serve` serves these routes. `/openapi.json` describes them; `/docs` shows them in a browser that can load its "
        "viewer from the internet."
    )
    lines += ["", EXAMPLE]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            lines += ["", f"## {method.upper()} {path}", "", operation.get("description", "")]
            rows = _parameters(operation)
            if rows:
                lines += ["", "| parameter | where and type | meaning |", "| --- | --- | --- |", *rows]
            body = operation.get("requestBody", {}).get("content", {})
            if body:
                lines += ["", "Body: " + " or ".join(f"`{kind}`" for kind in body) + "."]
            lines += ["", "| answer | meaning | media types |", "| --- | --- | --- |"]
            for status, answer in operation["responses"].items():
                if answer["description"] == "Validation Error":  # FastAPI's entry for a name that may be any text
                    continue
                kinds = ", ".join(f"`{kind}`" for kind in answer.get("content", {}))
                lines.append(f"| {status} | {_cell(answer['description'])} | {kinds} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of date")
    args = parser.parse_args()
    stale = []
    for name, text in (("cli.md", cli_page()), ("api.md", api_page())):
        path = FOLDER / name
        if args.check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"out of date: {', '.join(stale)}; python docs/reference.py writes them", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
