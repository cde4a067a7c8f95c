"""`genpipe serve`: an HTTP server, with a page for people and APIs for programs."""

import argparse
import logging
import sys
import threading
from typing import Any

from genpipe.cli.options import add_fields, given_fields, option, reader
from genpipe.fields import Kind, Number, Whole, settings_of
from genpipe.spec import ModelSpec

EXAMPLES = """\
examples:
  genpipe serve --open
  genpipe serve --model dreamy.safetensors --lora-dir loras
  GENPIPE_API_KEY=secret genpipe serve --host 0.0.0.0 --port 8080
"""
_LIMITS: dict[str, tuple[Kind, str]] = {
    "pixels": (Whole(64, 2**26, "it is width x height"), "of an image"),
    "steps": (Whole(1, 1000, "150 is the default"), "of an image"),
    "images": (Whole(1, 1000, "16 is the default"), "of a request"),
    "seconds": (Number(86400.0, "600 is the default"), "until a request's images are done"),
    "body": (Whole(1024, 2**30, "it is in bytes"), "of a request, in bytes"),
}


def serve_command(parser: argparse.ArgumentParser) -> None:
    """serve a page and an API, for a team"""
    parser.usage = "%(prog)s [options]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_serve)
    group = parser.add_argument_group("server")
    option(
        group,
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen (default: 127.0.0.1, this machine alone)",
    )
    option(group, "--port", type=reader("port", Whole(0, 65535, "0 takes a free one")), default=8000, metavar="N",
           help="default: 8000")  # fmt: skip
    option(group, "--open", action="store_true", help="open the page in a browser")
    option(group, "--api-key", metavar="KEY", help="that clients have to know (better: the variable GENPIPE_API_KEY)")
    option(group, "--insecure", action="store_true", help="let everybody in who reaches --host")
    option(
        group,
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients call this server by",
    )
    option(
        group,
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="a site whose pages may speak to this server",
    )
    option(group, "--drain-seconds", type=reader("drain_seconds", Number(86400.0, "60 is the default")), default=60.0, metavar="S",
           help="for what was taken before SIGTERM (default: 60)")  # fmt: skip
    option(group, "--log-json", action="store_true", help="log a JSON object per request, without prompts")
    option(group, "--log-prompts", action="store_true", help="log what is drawn, too: prompts, and whom they are from")

    group = parser.add_argument_group("drawing")
    option(
        group,
        "--devices",
        default="auto",
        metavar="LIST",
        help="auto, cpu, cpu:2, cuda or cuda:0,cuda:1: a worker on each",
    )
    option(group, "--batch", type=reader("batch", Whole(1, 64, "left out, it is measured")), metavar="N",
           help="images that a worker draws at a time (default: what is fastest here, measured once)")  # fmt: skip
    option(group, "--deterministic", action="store_true", help="bitwise the same images whatever else is drawn; slower")
    option(group, "--max-waiting", type=reader("max_waiting", Whole(1, 100_000, "256 is the default")), default=256, metavar="N",
           help="images that may wait; more are refused (default: 256)")  # fmt: skip
    for name, (kind, what) in _LIMITS.items():
        option(
            group, f"--max-{name}", type=reader(f"max_{name}", kind), metavar=kind.metavar, help=f"most {name} {what}"
        )

    group = parser.add_argument_group("model")
    add_fields(group, ModelSpec, [name for name in settings_of(ModelSpec) if name not in ("model", "device")])
    option(group, "-m", "--model", "--ckpt", dest="models", action="append", default=[], metavar="NAME",
           help="as of genpipe generate; may be repeated (default: the small one that comes with genpipe)")  # fmt: skip


def _serve(args: argparse.Namespace) -> int:
    from genpipe.server.limits import Limits
    from genpipe.server.options import Options

    limits = {name: value for name in _LIMITS if (value := getattr(args, f"max_{name}")) is not None}
    options = Options(
        models=tuple(args.models),
        spec=ModelSpec.from_dict(given_fields(args, ModelSpec)),
        host=args.host,
        port=args.port,
        devices=args.devices,
        batch=args.batch,
        deterministic=args.deterministic,
        waiting=args.max_waiting,
        limits=Limits(**limits),
        api_key=args.api_key,
        insecure=args.insecure,
        allow_host=tuple(args.allow_host),
        allow_origin=tuple(args.allow_origin),
        drain_seconds=args.drain_seconds,
        log_json=args.log_json,
        log_prompts=args.log_prompts,
    )
    options.check()
    try:
        from genpipe.server.serving import serve
    except ModuleNotFoundError as error:
        raise RuntimeError(f"the server needs {error.name}: pip install 'genpipe[serve]'") from None

    _log_to_stderr()
    serve(options, listening=lambda address: _say(address, opens=args.open))
    return 0


def _say(address: str, *, opens: bool) -> None:
    print(f"genpipe listens at {address}", file=sys.stderr, flush=True)
    if opens:
        threading.Thread(target=_open_page, args=(address,), daemon=True).start()


def _open_page(address: str) -> None:
    import webbrowser

    webbrowser.open(address)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("genpipe.server", "uvicorn.error"):
        logger: Any = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.getLogger("genpipe.server").setLevel(logging.INFO)
