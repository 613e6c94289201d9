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

    def log_message(self, *_: object) -> None:
        pass


class Server:
    """`url` of a folder; `asked`: (file, range) of each request."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.asked: list[tuple[str, str | None]] = server.asked  # type: ignore[attr-defined]


@contextmanager
def served(folder: Path, parts: bool = True) -> Iterator[Server]:
    """Serve a folder over HTTP to this machine; with `parts` off whole files only."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Parts, directory=str(folder)))
    server.asked, server.parts = [], parts  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Server(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
