"""A hub on this machine, with one repository or several."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants

ID, COMMIT = "owner/tiny", "0" * 39 + "1"


class Hub:
    """A hub with one repository; `sent` lists the files that were fetched, `asked` counts all requests.

    Args:
        root: of the repository's files.
        others: roots of further ones, by their ids.
    """

    def __init__(self, root: Path, **others: Path) -> None:
        self.root, self.sent, self.asked = root, [], 0
        self.roots = {ID: root, **others}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                hub.asked += 1
                path, _, query = self.path.partition("?")
                if path.startswith("/api/models/"):
                    about = path.removeprefix("/api/models/")
                    named = "/".join(about.split("/")[:2])
                    if (root := hub.roots.get(named)) is None:
                        return self.reply(error="RepoNotFound")
                    if "/tree/" not in path:
                        return self.reply(hub.info(named, root))
                    _, _, folder = about.partition("/tree/")[2].partition("/")
                    return self.reply(hub.tree(root, folder, whole="recursive=true" in query.lower()))
                repository, _, rest = self.path[1:].partition("/resolve/")
                revision, _, name = rest.partition("/")
                if (root := hub.roots.get(repository)) is None:
                    return self.reply(error="RepoNotFound")
                if revision not in ("main", COMMIT):
                    return self.reply(error="RevisionNotFound")
                if not (root / name).is_file():
                    return self.reply(error="EntryNotFound")
                if body:
                    hub.sent.append(name)
                self.reply((root / name).read_bytes(), body=body)

            def reply(self, content: bytes = b"", *, body: bool = True, error: str | None = None) -> None:
                self.send_response(404 if error else 200)
                headers = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}
                headers |= {"X-Error-Code": error} if error else {"ETag": f'"{hash(content) & 0xFFFFFFFF:08x}"'}
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content if body else b"")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def tree(self, root: Path, folder: str, *, whole: bool) -> bytes:
        inside = (root / folder).rglob("*") if whole else (root / folder).iterdir()
        files = [path.relative_to(root) for path in sorted(inside) if path.is_file()]
        return json.dumps([{"type": "file", "path": str(each), "size": 1, "oid": "0"} for each in files]).encode()

    def info(self, name: str, root: Path) -> bytes:
        files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        return json.dumps({"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}).encode()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def point_at(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
