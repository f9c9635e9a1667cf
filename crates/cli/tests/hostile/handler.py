"""A function that misbehaves in the way its event asks for."""

import http.client
import os
import signal
import socket
import subprocess
import threading
import time

API = os.environ["AWS_LAMBDA_RUNTIME_API"]
KEPT = []


def handler(event, context):
    return globals()["do_" + event["do"]](event, context)


def connect(wait=5.0):
    host, port = API.split(":")
    return socket.create_connection((host, int(port)), timeout=wait)


def do_ok(event, context):
    return {"id": context.aws_request_id, "instance": context.log_stream_name}


def do_spin(event, context):
    while True:
        pass


def do_burn(event, context):
    """Uses so much CPU time."""
    enough = time.thread_time() + event["ms"] / 1000
    while time.thread_time() < enough:
        pass


def do_ignore(event, context):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    while True:
        signal.pause()


def do_allocate(event, context):
    while True:
        KEPT.append(bytearray(os.urandom(4096)) * 1024)


def do_fork(event, context):
    forked = 0
    try:
        while True:
            if os.fork() == 0:
                signal.pause()
            forked += 1
    except OSError as error:
        return {"forked": forked, "errno": error.errno}


def do_children(event, context):
    for _ in range(3):
        subprocess.Popen(["/bin/sh", "-c", "setsid sleep %d & sleep %d" % (event["mark"], event["mark"])])
    return "left"


def do_children_and_ignore(event, context):
    do_children(event, context)
    do_ignore(event, context)


def do_log(event, context):
    lines = (b"x" * 1023 + b"\n") * 64
    for _ in range(event["bytes"] // len(lines)):
        os.write(1, lines)
    return "written"


def do_write(event, context):
    written = []
    for top, folders, _ in os.walk("/"):
        if top.startswith(("/proc", "/tmp")):
            folders[:] = []
            continue
        try:
            open(os.path.join(top, "x"), "w").close()
            written.append(top)
        except OSError:
            pass
    return written


def do_fill(event, context):
    written = 0
    try:
        with open("/tmp/fill", "wb", 0) as file:
            while True:
                written += file.write(b"x" * (1 << 20))
    except OSError as error:
        os.remove("/tmp/fill")
        return {"written": written, "errno": error.errno}


def do_look(event, context):
    names = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            names.append(open(f"/proc/{process}/environ").read())
        except OSError:
            pass
    return {
        "processes": [process for process in os.listdir("/proc") if process.isdigit()],
        "environments": "".join(names),
        "tmp": os.listdir("/tmp"),
        "root": sorted(os.listdir("/")),
        "user": os.getuid(),
    }


def do_mark(event, context):
    open("/tmp/mark", "w").close()
    return do_ok(event, context)


def do_read(event, context):
    try:
        return open(event["path"]).read(1000)
    except OSError as error:
        return "errno %d" % error.errno


def do_raw(event, context):
    """Sends bytes to the Runtime API and returns the start of what comes back."""
    with connect() as stream:
        try:
            stream.sendall(event["data"].encode("latin1"))
            return stream.recv(4096).decode("latin1")
        except OSError as error:
            return "errno %s" % error.errno


def do_flood(event, context):
    with connect() as stream:
        while True:
            stream.sendall(b"GET /2018-06-01/nothing HTTP/1.1\r\nHost: x\r\n\r\n")
            if not stream.recv(65536):
                signal.pause()


def do_connections(event, context):
    served = 0
    for _ in range(event["count"]):
        stream = connect()
        KEPT.append(stream)
        try:
            stream.sendall(b"GET /2018-06-01/nothing HTTP/1.1\r\nHost: x\r\n\r\n")
            served += 1 if stream.recv(10) else 0
        except OSError:
            pass
    KEPT.clear()
    return served


def do_foreign(event, context):
    """Answers an invocation that is not its own."""
    connection = http.client.HTTPConnection(API)
    connection.request("POST", "/2018-06-01/runtime/invocation/%s/response" % event["id"], b'"stolen"')
    return connection.getresponse().status


def do_slow(event, context):
    """Begins a request and never ends it; the connection stays open behind its back."""
    stream = connect()
    stream.sendall(b"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx")
    KEPT.append(stream)
    return "begun"


def do_big(event, context):
    return "x" * event["bytes"]


def do_tcp(event, context):
    """Says hello and returns everything that comes back, or the error."""
    try:
        with socket.create_connection((event["host"], event["port"]), timeout=3) as stream:
            stream.sendall(b"hello %d\n" % event.get("bytes", 0))
            if event.get("half"):
                stream.shutdown(socket.SHUT_WR)
            count, first = 0, b""
            while piece := stream.recv(65536):
                count += len(piece)
                first = first or piece[:20]
            return {"bytes": count, "first": first.decode()}
    except OSError as error:
        return {"error": type(error).__name__}


def do_upload(event, context):
    """Sends as much as is taken from it to a peer that does not read."""
    sent = 0
    stream = socket.create_connection((event["host"], event["port"]), timeout=3)
    stream.settimeout(0.5)
    KEPT.append(stream)
    try:
        while sent < event["bytes"]:
            sent += stream.send(b"x" * 65536)
    except OSError:
        pass
    return sent


def do_udp(event, context):
    stream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stream.settimeout(1)
    try:
        stream.sendto(b"hello", (event["host"], event["port"]))
        return stream.recv(100).decode()
    except OSError as error:
        return type(error).__name__


def do_resolve(event, context):
    try:
        return socket.getaddrinfo(event["name"], 80, socket.AF_INET)[0][4][0]
    except OSError as error:
        return type(error).__name__


def do_exit(event, context):
    os._exit(3)


def do_mute(event, context):
    """Answers itself, and never asks for more."""
    host, port = API.split(":")
    api = http.client.HTTPConnection(host, int(port), timeout=5)
    api.request("POST", f"/2018-06-01/runtime/invocation/{context.aws_request_id}/response", b'"said"')
    api.getresponse().read()
    threading.Event().wait()
