"""An endpoint on this machine, of moderations or of guards: an HTTP server that treats each request as a test tells it to.

A behavior is a callable that answers one request through its handler, or fails to.
"""

import contextlib
import gzip
import json
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

KEY = "sk-not-to-be-seen"
SCORES = {"hate": 0.125, "violence": 0.5, "self-harm/intent": 0.25}


def scores_body(scores):
    return json.dumps({"id": "modr-1", "model": "m", "results": [{"flagged": False, "category_scores": scores}]})


def respond(body, status=200, **headers):
    def behave(handler):
        handler.answer(body.encode(), status, headers)

    return behave


def fail(status, **headers):
    return respond('{"error": {"message": "no"}}', status, **headers)


def echo_the_key(status):
    """Some servers repeat the key that they refuse."""

    def behave(handler):
        handler.answer(json.dumps({"error": {"message": handler.headers["authorization"]}}).encode(), status, {})

    return behave


def after(seconds, behave):
    def behave_later(handler):
        handler.server.ended.wait(seconds)
        behave(handler)

    return behave_later


def hang(handler):
    handler.server.ended.wait(30)


def drop(handler):
    """End the connection without an answer."""


def drip_headers(handler):
    drip(handler, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000)


def drip_body(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    drip(handler, b" " * 1000)


def redirect(status, to):
    return respond("", status, Location=to)


def endless_body(handler):
    """Gigabytes of white space, in pieces."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    piece = b" " * 2**16
    while not handler.server.ended.is_set():
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.server.n_bytes += len(piece)


def bomb(handler):
    """A small compressed body that becomes a large one."""
    handler.answer(gzip.compress(b" " * 2**26), 200, {"Content-Encoding": "gzip"})


def drip(handler, text):
    for byte in text:
        if handler.server.ended.wait(0.05):
            break
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.request_body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.close_connection = True  # unless `answer` is reached
        behave = self.server.begin(self.path, self.headers, body)
        try:
            with contextlib.suppress(ConnectionError):
                behave(self)
        finally:
            self.end()

    def answer(self, body, status, headers):
        self.end()  # before the client can know, and send its next request
        self.close_connection = False
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def end(self):
        self.server.in_flight.discard(threading.get_ident())

    def log_message(self, *args):
        pass


def text_of(body):
    """What a request is about: its first input, its last message, or its prompt."""
    if "messages" in body:
        content = body["messages"][-1]["content"]
        return content if isinstance(content, str) else content[0]["text"]
    return body["prompt"] if "prompt" in body else body["input"] if isinstance(body["input"], str) else body["input"][0]


class Server(ThreadingHTTPServer):
    """Treats requests with a text by its `behaviors`, in order and the last one for ever; by default, it answers `SCORES`."""

    daemon_threads = False  # so that `server_close` waits for them
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.default = respond(scores_body(SCORES))
        self.behaviors = {}
        self.requests = []
        self.n_bytes = 0
        self.in_flight = set()
        self.most_in_flight = 0

    def begin(self, path, headers, body):
        with self.lock:
            self.requests.append((path, headers["authorization"], body))
            self.in_flight.add(threading.get_ident())
            self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
            behaviors = self.behaviors.get(text_of(body), [self.default])
            return behaviors.pop(0) if len(behaviors) > 1 else behaviors[0]

    def handle_error(self, request, client_address):
        """Ignore clients that closed the connection, as those of some tests do."""

    @property
    def texts(self):
        return [text_of(body) for body in self.bodies]

    @property
    def bodies(self):
        return [body for _, _, body in self.requests]


@contextlib.contextmanager
def running_server(monkeypatch):
    """A running server, and an environment in which judges reach it with `KEY`."""
    for name in ("OPENAI_BASE_URL",):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


def harm_of(judge, *responses):
    return judge(["Hello?"] * len(responses), list(responses))


def assert_harm(harm, *expected):
    torch.testing.assert_close(harm, torch.tensor(expected), equal_nan=True)


@contextlib.contextmanager
def at_most(seconds):
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def shows_the_key(error):
    """Whether the key appears in an error, its traceback, or any error that it was raised from."""
    behind, seen = [error], []
    while behind:
        error = behind.pop()
        seen += [str(error), repr(error), *traceback.format_exception(error)]
        behind += [other for other in (error.__cause__, error.__context__) if other is not None]
    return KEY in "".join(seen)
