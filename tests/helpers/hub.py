"""A stand-in for huggingface.co, which serves one repository from a folder to Hugging Face's own client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

REPOSITORY = "someone/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `folder` as the only commit of `REPOSITORY` while in use as a context.

    With `refuses`, a status and headers, that is the answer to every request for a file; with `silent`, there is none
    until the end; `sends` makes what is sent of a file's content instead of all. `served` are the files sent.
    """

    def __init__(
        self,
        folder: Path,
        refuses: tuple[int, dict[str, str]] | None = None,
        silent: bool = False,
        sends: Callable[[str, bytes], bytes] = lambda name, content: content,
    ):
        self.folder = folder
        self.refuses = refuses
        self.silent = silent
        self.sends = sends
        self.served: list[str] = []
        self.ended = Event()

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, send: bool) -> None:
        path = self.path.split("?")[0]
        api, resolve = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/{COMMIT}/"
        if not path.startswith((api, resolve)):
            self._reply(404, b"", {"X-Error-Code": "RepoNotFound"}, send)
        elif "/revision/" in path and not path.endswith(("/main", COMMIT)):
            self._reply(404, b"", {"X-Error-Code": "RevisionNotFound"}, send)
        elif path.startswith(f"{api}/tree/"):
            self._reply(200, json.dumps([self._entry(name) for name in self.hub.files()]).encode(), {}, send)
        elif path.startswith(api):
            siblings = [{"rfilename": name} for name in self.hub.files()]
            self._reply(200, json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode(), {}, send)
        elif self.hub.silent:
            self.hub.ended.wait()
        elif self.hub.refuses:
            self._reply(self.hub.refuses[0], b"", self.hub.refuses[1], send)
        else:
            name = path.removeprefix(resolve)
            content = (self.hub.folder / name).read_bytes()
            if send:
                self.hub.served.append(name)
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            headers["Content-Length"] = str(len(content))
            sent = self.hub.sends(name, content)
            self._reply(200, sent, headers, send)
            self.close_connection = len(sent) < len(content)  # else the client would wait for the rest

    def _entry(self, name: str) -> dict[str, object]:
        content = (self.hub.folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _reply(self, status: int, content: bytes, headers: dict[str, str], send: bool) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
