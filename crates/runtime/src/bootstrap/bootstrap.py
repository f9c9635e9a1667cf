"""Runs one Python function over the AWS Lambda Runtime API (Python 3.9 or later, standard library only).

One connection lives as long as the instance. A result and the question for the next invocation leave in one write, and the
handler's entry is stamped on CLOCK_MONOTONIC right before the handler is called.
"""

import time

_LOADED_NS = time.monotonic_ns()

import gc

gc.disable()  # nothing made while loading is garbage worth looking for; see main()

import json
import os
import sys

import _socket  # the module `socket` itself takes longer to load than all of this file

_API = "/2018-06-01/runtime"
_READ_BYTES = 65536
_SELF = __file__


class Fault(Exception):
    """An error of AWS's own kinds, with the stack trace the function's author shall see."""

    def __init__(self, error_type, message, trace=()):
        super().__init__(message)
        self.error_type = error_type
        self.trace = list(trace)


# --- the wire -----------------------------------------------------------------------------------------------------------


class Wire:
    """The instance's one connection to its Runtime API."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        found = _socket.getaddrinfo(host.strip("[]"), int(port), 0, _socket.SOCK_STREAM)
        family, kind, protocol, _, place = found[0]
        self._socket = _socket.socket(family, kind, protocol)
        self._socket.connect(place)
        self._socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._buffer = b""
        host_line = "Host: {}\r\nUser-Agent: takt-python/1\r\n".format(address)
        self._post = " HTTP/1.1\r\n{}Content-Length: ".format(host_line)
        self._next_line = "GET {}/invocation/next HTTP/1.1\r\n{}".format(_API, host_line)
        self._next = (self._next_line + "\r\n").encode("latin-1")

    def ask_first(self, init_ns):
        self._socket.sendall("{}Takt-Init-Ns: {}\r\n\r\n".format(self._next_line, init_ns).encode("latin-1"))

    def answer_and_ask(self, path, fields, body):
        """Sends an answer and the question for the next invocation together."""
        self._socket.sendall(self._request(path, fields, body) + self._next)
        status, _, reply = self.read()
        if status != 202:
            sys.stderr.write("takt: an answer was refused: {} {}\n".format(status, reply.decode("utf-8", "replace").strip()))

    def answer(self, path, fields, body):
        self._socket.sendall(self._request(path, fields, body))
        self.read()

    def _request(self, path, fields, body):
        lines = "".join(["{}: {}\r\n".format(name, value) for name, value in fields if value])
        head = "POST {}{}{}{}\r\n{}\r\n".format(_API, path, self._post, len(body), lines)
        return head.encode("latin-1", "replace") + body

    def read(self):
        """The next response: status, headers by lower-case name, body."""
        buffer = self._buffer
        while True:
            end = buffer.find(b"\r\n\r\n")
            if 0 <= end:
                break
            buffer += self._receive()
        lines = buffer[:end].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        start = end + 4
        stop = start + int(headers.get("content-length", 0))
        if len(buffer) < stop:
            pieces = [buffer]
            have = len(buffer)
            while have < stop:
                pieces.append(self._receive())
                have += len(pieces[-1])
            buffer = b"".join(pieces)
        self._buffer = buffer[stop:]
        return int(lines[0].split(" ", 2)[1]), headers, buffer[start:stop]

    def _receive(self):
        piece = self._socket.recv(_READ_BYTES)
        if not piece:
            leave(1)  # the node is gone, and nobody is left to be told
        return piece


# --- the context object -------------------------------------------------------------------------------------------------


def _record(name, fields):
    """A class of plain attributes that prints itself as AWS's does."""

    def show(self):
        return "{}([{}])".format(name, ",".join(["{}={}".format(field, getattr(self, field)) for field in fields]))

    return type(name, (), {"__slots__": fields, "__repr__": show})


CognitoIdentity = _record("CognitoIdentity", ("cognito_identity_id", "cognito_identity_pool_id"))
ClientContext = _record("ClientContext", ("custom", "env", "client"))
Client = _record(
    "Client", ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")
)


def _fill(made, values):
    for field in made.__slots__:
        setattr(made, field, values.get(field))
    return made


def _header_json(headers, name, what):
    text = headers.get(name)
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise Fault("Runtime.LambdaContextUnmarshalError", "Unable to parse {} JSON: {}".format(what, error)) from None


class LambdaContext:
    """What a handler is told about its invocation."""

    log_group_name = os.environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
    log_stream_name = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
    function_name = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
    memory_limit_in_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
    function_version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION")

    def __init__(self, headers):
        self.aws_request_id = headers.get("lambda-runtime-aws-request-id")
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn")
        self.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
        self._deadline_ms = int(headers.get("lambda-runtime-deadline-ms", 0))
        self._w3c = {}
        self.client_context = None
        context = _header_json(headers, "lambda-runtime-client-context", "Client Context")
        if isinstance(context, dict):
            w3c = context.pop("w3c", None)
            if isinstance(w3c, dict):
                known = ("traceparent", "tracestate", "baggage")
                self._w3c = {key: w3c[key] for key in known if isinstance(w3c.get(key), str)}
            self.client_context = _fill(ClientContext(), context)
            if isinstance(self.client_context.client, dict):
                self.client_context.client = _fill(Client(), self.client_context.client)
        identity = _header_json(headers, "lambda-runtime-cognito-identity", "Cognito Identity") or {}
        self.identity = CognitoIdentity()
        self.identity.cognito_identity_id = identity.get("cognitoIdentityId")
        self.identity.cognito_identity_pool_id = identity.get("cognitoIdentityPoolId")

    def get_remaining_time_in_millis(self):
        return max(0, self._deadline_ms - int(time.time() * 1000))

    def w3c(self):
        return dict(self._w3c)

    def log(self, message):
        sys.stdout.write(str(message))

    def __repr__(self):
        fields = (
            "aws_request_id",
            "log_group_name",
            "log_stream_name",
            "function_name",
            "memory_limit_in_mb",
            "function_version",
            "invoked_function_arn",
            "client_context",
            "identity",
            "tenant_id",
        )
        return "LambdaContext([{}])".format(",".join(["{}={}".format(field, getattr(self, field)) for field in fields]))


# --- logs ---------------------------------------------------------------------------------------------------------------

_request_id = ""


def _logs_are_json():
    return os.environ.get("AWS_LAMBDA_LOG_FORMAT", "").upper() == "JSON"


def set_up_output():
    for stream in (sys.stdout, sys.stderr):
        # One write per line: what reads the other end never sees half of one, and a kill loses at most the last.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


class LoggingWatch:
    """Gives `logging` AWS's handler when the function first imports it; loading it takes longer than all else here."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "logging":
            return None
        sys.meta_path.remove(LoggingWatch)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        execute = spec.loader.exec_module

        def execute_and_set_up(module):
            execute(module)
            set_up_logging(module)

        spec.loader.exec_module = execute_and_set_up
        return spec


def set_up_logging(logging):
    class LogHandler(logging.Handler):
        def emit(self, record):
            try:
                record.aws_request_id = _request_id
                sys.stdout.write(self.format(record))
            except Exception:
                self.handleError(record)

    plain = frozenset(logging.makeLogRecord({}).__dict__) | {"aws_request_id", "message", "asctime"}

    class JsonFormatter(logging.Formatter):
        def format(self, record):
            message = record.msg if isinstance(record.msg, dict) and not record.args else record.getMessage()
            line = {
                "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"),
                "level": record.levelname,
                "message": message,
                "logger": record.name,
                "requestId": record.aws_request_id or None,
            }
            if record.exc_info and record.exc_info[0]:
                import traceback

                line["stackTrace"] = traceback.format_tb(record.exc_info[2])
                line["errorType"] = record.exc_info[0].__name__
                line["errorMessage"] = str(record.exc_info[1])
                line["location"] = "{}:{}:{}".format(record.pathname, record.funcName, record.lineno)
            for key, value in record.__dict__.items():
                if key not in plain and key not in line:
                    line[key] = value
            line = {key: value for key, value in line.items() if value is not None}
            return json.dumps(line, ensure_ascii=False, default=str) + "\n"

    logging.Formatter.converter = time.gmtime
    handler = LogHandler()
    if _logs_are_json():
        handler.setFormatter(JsonFormatter())
    else:
        line = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n"
        handler.setFormatter(logging.Formatter(line, "%Y-%m-%dT%H:%M:%S"))
    root = logging.getLogger()
    root.addHandler(handler)
    level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper()
    level = {"TRACE": "DEBUG", "FATAL": "CRITICAL"}.get(level, level)
    if level in ("DEBUG", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL"):
        root.setLevel(level)


def _flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # closed by the function; it has nothing more to say


def leave(code):
    """Ends the process with what was written written. Threads the function left behind do not hold it up."""
    if code is not None and not isinstance(code, int):
        sys.stderr.write("{}\n".format(code))
        code = 1
    _flush()
    os._exit((code or 0) & 0xFF)


# --- errors -------------------------------------------------------------------------------------------------------------


def _text(value):
    try:
        return str(value)
    except Exception as error:
        return "<the text of the error raised {}>".format(type(error).__name__)


def _frames(error):
    """The function's own frames: those of this file and of the import machinery above them are left out."""
    import traceback

    frames = [(frame.filename, frame.lineno, frame.name, frame.line) for frame in traceback.extract_tb(error.__traceback__)]
    for at, frame in enumerate(frames):
        if frame[0] != _SELF and not frame[0].startswith("<frozen importlib"):
            return frames[at:]
    return []


def _trace(error):
    import traceback

    return traceback.format_list(_frames(error))


def report(error, request_id=None):
    """AWS's error object."""
    if isinstance(error, Fault):
        made = {"errorMessage": _text(error), "errorType": error.error_type, "stackTrace": error.trace}
    else:
        made = {"errorMessage": _text(error), "errorType": type(error).__name__, "stackTrace": _trace(error)}
    made["requestId"] = request_id or ""
    return made


def _header_text(text):
    """An error type as a header value; a type may be named anything, and the body says it in full."""
    return text if text.isascii() and text.isprintable() else ""


def log_report(made):
    try:
        sys.stdout.write(_report_line(made))
    except Exception:
        pass  # the function closed its output; the report itself still goes to the node


def _report_line(made):
    if _logs_are_json():
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return json.dumps({"timestamp": stamp, "level": "ERROR", **made}) + "\n"
    lines = ["[ERROR] {}: {}".format(made["errorType"], made["errorMessage"]), "Traceback (most recent call last):"]
    for element in made["stackTrace"]:
        for line in element.splitlines():
            bare = line.lstrip(" ")
            lines.append("\u00a0" * (len(line) - len(bare)) + bare)
    # A carriage return keeps the report one record.
    return "\r".join(lines).replace("\n", "\r") + "\n"


# --- values -------------------------------------------------------------------------------------------------------------


def _encode_other(value):
    decimal = sys.modules.get("decimal")  # whoever returns one has imported it
    if decimal is not None and isinstance(value, decimal.Decimal):
        if not value.is_finite():
            return float(value)
        return int(value) if value == value.to_integral_value() else float(value)
    raise TypeError("Object of type {} is not JSON serializable".format(type(value).__name__))


# AWS writes characters beyond ASCII as they are from Python 3.12 on.
_encode = json.JSONEncoder(ensure_ascii=sys.version_info < (3, 12), default=_encode_other).encode


def decode_event(headers, body):
    if headers.get("content-type", "application/json") != "application/json":
        return body
    try:
        return json.loads(body)
    except ValueError as error:
        raise Fault("Runtime.UnmarshalError", "Unable to unmarshal input: {}".format(error)) from None


def encode_result(result):
    if isinstance(result, bytes):
        return result, "application/unknown"
    try:
        return _encode(result).encode("utf-8"), "application/json"
    except Exception as error:
        raise Fault("Runtime.MarshalError", "Unable to marshal response: {}".format(_text(error))) from None


# --- the function -------------------------------------------------------------------------------------------------------


def load_handler(name):
    module_name, dot, function_name = name.rpartition(".")
    if not dot or not module_name or not function_name:
        raise Fault("Runtime.MalformedHandlerName", "Bad handler '{}': it is not of the form module.function".format(name))
    if module_name.split(".")[0] in sys.builtin_module_names:
        text = "Cannot use built-in module {} as a handler module".format(module_name)
        raise Fault("Runtime.BuiltInModuleConflict", text)
    try:
        module_name = module_name.replace("/", ".")
        __import__(module_name)
    except ImportError as error:
        text = "Unable to import module '{}': {}".format(module_name, error)
        raise Fault("Runtime.ImportModuleError", text, _trace(error)) from None
    except SyntaxError as error:
        trace = ['  File "{}" Line {}\n    {}'.format(error.filename, error.lineno, error.text)]
        text = "Syntax error in module '{}': {}".format(module_name, error)
        raise Fault("Runtime.UserCodeSyntaxError", text, trace) from None
    try:
        return getattr(sys.modules[module_name], function_name)
    except AttributeError:
        text = "Handler '{}' missing on module '{}'".format(function_name, module_name)
        raise Fault("Runtime.HandlerNotFound", text) from None


def invoke(handler, headers, body):
    """Runs one invocation: the path, headers and body of its answer."""
    request_id = headers.get("lambda-runtime-aws-request-id", "")
    started_ns = 0
    try:
        context = LambdaContext(headers)
        event = decode_event(headers, body)
        started_ns = time.monotonic_ns()
        result = handler(event, context)
        answer, content_type = encode_result(result)
        path = "/invocation/{}/response".format(request_id)
        fields = []
    except SystemExit as stop:
        leave(stop.code)
    except BaseException as error:
        made = report(error, request_id)
        log_report(made)
        answer, content_type = json.dumps(made).encode("utf-8"), "application/json"
        path = "/invocation/{}/error".format(request_id)
        fields = [("Lambda-Runtime-Function-Error-Type", _header_text(made["errorType"]))]
    fields.append(("Content-Type", content_type))
    fields.append(("Lambda-Runtime-Invocation-Id", headers.get("lambda-runtime-invocation-id")))
    fields.append(("Takt-Started-Ns", started_ns))
    fields.append(("Takt-Ended-Ns", time.monotonic_ns()))
    return path, fields, answer


_TRACE = os.environ.encodekey("_X_AMZN_TRACE_ID")


def tell_trace(told):
    """Puts the trace where code looks for it, in os.environ, and nowhere else.

    The C library keeps every value that was ever put into the process's own environment: with a new one for every
    invocation an instance would grow by 150 bytes each time, until its memory is used up. So programs that a handler starts
    do not inherit the trace.
    """
    if told is None:
        os.environ._data.pop(_TRACE, None)
    else:
        os.environ._data[_TRACE] = os.environ.encodevalue(told)


def serve(wire, handler):
    global _request_id
    while True:
        status, headers, body = wire.read()
        if status != 200:
            sys.stderr.write("takt: no invocation: {} {}\n".format(status, body.decode("utf-8", "replace").strip()))
            leave(1)
        _request_id = headers.get("lambda-runtime-aws-request-id", "")
        tell_trace(headers.get("lambda-runtime-trace-id"))
        answer = invoke(handler, headers, body)
        headers = body = None  # not kept alive while waiting
        _flush()
        wire.answer_and_ask(*answer)
        answer = None


def set_up_path():
    """The function's own code first, in the place of this file's folder; then, as without -S, installed packages."""
    sys.path[0] = os.environ.get("LAMBDA_TASK_ROOT") or os.getcwd()
    if not sys.flags.no_site:
        return
    import builtins

    builtins.exit = builtins.quit = sys.exit
    version = "python{}.{}".format(*sys.version_info[:2])
    for prefix in dict.fromkeys((os.path.dirname(os.path.dirname(sys.executable)), sys.prefix)):
        for folder in ("lib/" + version + "/site-packages", "lib/" + version + "/dist-packages", "lib/python3/dist-packages"):
            path = os.path.join(prefix, folder)
            if path not in sys.path and os.path.isdir(path):
                sys.path.append(path)


def main():
    set_up_path()
    set_up_output()
    sys.meta_path.insert(0, LoggingWatch)
    wire = Wire(os.environ["AWS_LAMBDA_RUNTIME_API"])
    try:
        handler = load_handler(os.environ.get("_HANDLER", ""))
    except SystemExit as stop:
        leave(stop.code)
    except BaseException as error:
        made = report(error)
        log_report(made)
        fields = [("Content-Type", "application/json"), ("Lambda-Runtime-Function-Error-Type", _header_text(made["errorType"]))]
        wire.answer("/init/error", fields, json.dumps(made).encode("utf-8"))
        leave(1)
    # What was loaded lives as long as the instance: collections never look at it again, and a fork shares its pages.
    gc.freeze()
    gc.enable()
    wire.ask_first(time.monotonic_ns() - _LOADED_NS)
    serve(wire, handler)


if __name__ == "__main__":
    main()
