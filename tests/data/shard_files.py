"""Shards for tests: tars of small images, and a server that sends parts of files."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image


def jpeg(colour: str = "red", side: int = 24) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "JPEG")
    return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    """A tar of files with these bytes, or of members as they are given."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


class _Parts(SimpleHTTPRequestHandler):
    """Sends the part of a file that is asked for, as object stores do; counts what it sends."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, asked = path.read_bytes(), self.headers.get("Range")
        self.server.count(1)  # type: ignore[attr-defined]
        self.server.asked.append((path.name, asked))  # type: ignore[attr-defined]
        if not asked or not self.server.parts:  # type: ignore[attr-defined]
            self.send_response(200)
        else:
            first, last = (int(word) for word in asked.removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}")
            content = content[first : last + 1]
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.server.count(-1)  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    """Lets each request wait a moment for others, and counts how many are there at once."""

    parts = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Parts, directory=str(folder)))
        self.asked: list[tuple[str, str | None]] = []
        self.active = self.most = 0
        self.wait = 0.0
        self.changed = threading.Condition()

    def count(self, step: int) -> None:
        with self.changed:
            self.active += step
            self.most = max(self.most, self.active)
            self.changed.notify_all()
            if step > 0 and self.wait:
                self.changed.wait_for(lambda: self.most > 1, self.wait)


class Server:
    """`url` of a folder; `asked`: (file, range) of each request; `most`: requests that were there at once."""

    def __init__(self, server: _Server) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.asked = server.asked

    @property
    def most(self) -> int:
        return self.server.most

    def let_wait(self, seconds: float) -> None:
        """From now on a request waits so long for a second one, until two have been there at once."""
        self.server.wait = seconds


@contextmanager
def served(folder: Path, parts: bool = True) -> Iterator[Server]:
    """Serve a folder over HTTP to this machine; with `parts` off whole files only."""
    server = _Server(folder)
    server.parts = parts
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Server(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
