"""From options to a server that listens, until it is told to end."""

import asyncio
import logging
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from types import FrameType

import uvicorn

from genpipe.server.app import create_app
from genpipe.server.engine import Engine
from genpipe.server.options import Options

_log = logging.getLogger("genpipe.server")
# Seconds that a connection without requests stays open: longer than proxies (Caddy: 120) and clients keep theirs, or a request
# would now and then be sent into one that is being closed.
KEPT_ALIVE = 130


class _Server(uvicorn.Server):
    """A server that finishes what it has taken before SIGTERM ends it; Ctrl-C ends it at once."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining = False
        self.interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End when what was taken is done, at the first SIGTERM; at the next signal, at once."""
        if sig != signal.SIGTERM or self._draining:
            self.interrupted = True
            super().handle_exit(sig, frame)
            return
        self._draining = True
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        self._drain()
        self.should_exit = True


def serve(options: Options, *, listening: Callable[[str], None] = lambda address: None) -> None:
    """Serve until a signal ends it: SIGTERM when what was taken is done, or after `drain_seconds`; Ctrl-C at once.

    Args:
        options: what is served, and where.
        listening: called with the address when the server draws: what cannot be served is found before that.

    Raises:
        KeyboardInterrupt: a signal ended it at once.
        ValueError: an option is out of its range, or a model cannot be loaded as it was asked for.
        OSError: the address cannot be listened at.
        RuntimeError: the workers cannot run.
    """
    options.check()
    engine = Engine(
        options.specs(),
        devices=options.devices,
        most=options.batch,
        deterministic=options.deterministic,
        waiting=options.waiting,
    )
    listener = _listen(options.host, options.port)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        create_app(
            engine,
            limits=options.limits,
            lora_dir=options.lora_dir,
            key=options.api_key,
            hosts=options.allow_host,
            origins=options.allow_origin,
            json_log=options.log_json,
            log_prompts=options.log_prompts,
        ),
        access_log=False,
        log_config=None,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=KEPT_ALIVE,
    )
    server = _Server(config, lambda: _drained(engine, options.drain_seconds))
    failed: list[Exception] = []

    def watch() -> None:
        try:
            if engine.wait():
                listening(options.address(listener.getsockname()[1]))
        except (ValueError, RuntimeError) as error:
            failed.append(error)
            server.should_exit = True

    warnings.simplefilter("ignore")  # they quote prompts; those who ask are told
    engine.open()
    threading.Thread(target=watch, daemon=True).start()
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        engine.close()
    if failed:
        raise failed[0]
    if server.interrupted:
        # uvicorn only raises the signal again, which does nothing where the process was started with it ignored.
        raise KeyboardInterrupt


def _drained(engine: Engine, seconds: float) -> None:
    if not engine.close(seconds):
        _log.warning("not everything was done within %g s", seconds)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # from now on nobody who knows the address is turned away
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise OSError(f"cannot listen at {host}:{port}: {reason}; give another --port, or end what is there") from None
    listener.setblocking(False)
    return listener
