"""A web server for the tests of media that come by URL.

Next: tests/e2e/test_sources.py
"""

import base64
import http.server
import threading
from collections.abc import Mapping


class Site:
    """A web server on loopback that serves good files, large ones, slow ones and redirects.

    Args:
        files: bytes by path; more may be put there later.
    """

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.asked: list[str] = []
        self.open = 0
        self.release = threading.Event()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                site.open += 1
                try:
                    site.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    return
                finally:
                    site.open -= 1

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """Serve one path."""
        if handler.path.startswith("/to/"):
            handler.send_response(302)
            handler.send_header("Location", base64.urlsafe_b64decode(handler.path[4:]).decode())
            handler.end_headers()
        elif handler.path in self.files:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(self.files[handler.path])))
            handler.end_headers()
            handler.wfile.write(self.files[handler.path])
        elif handler.path in ("/slow", "/endless"):
            handler.send_response(200)
            handler.end_headers()
            while not self.release.wait(0.01):
                handler.wfile.write(bytes(1 if handler.path == "/slow" else 65536))
                handler.wfile.flush()
        else:
            handler.send_error(404)

    def put(self, data: bytes) -> str:
        """Serve bytes and return their address."""
        path = f"/put/{len(self.files)}"
        self.files[path] = data
        return self.url(path)

    def url(self, path: str) -> str:
        """The address of a path."""
        return f"http://localhost:{self.port}{path}"

    def redirect_to(self, target: str) -> str:
        """The address of a redirect."""
        return self.url("/to/" + base64.urlsafe_b64encode(target.encode()).decode())

    def stop(self) -> None:
        """End the server."""
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
