import ctypes
import decimal
import json
import logging
import os
import sys
import threading

print("loading")


class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def inner():
    raise ValueError("wrong\nin two lines")


def handler(event, context):
    do = event["do"]
    if do == "echo":
        return event
    if do == "context":
        assert repr(context)
        context.anything = 1
        return {
            "aws_request_id": context.aws_request_id,
            "log_group_name": context.log_group_name,
            "log_stream_name": context.log_stream_name,
            "function_name": context.function_name,
            "memory_limit_in_mb": context.memory_limit_in_mb,
            "function_version": context.function_version,
            "invoked_function_arn": context.invoked_function_arn,
            "remaining": context.get_remaining_time_in_millis() > 1000000,
            "identity": context.identity.cognito_identity_id,
            "custom": context.client_context and context.client_context.custom,
            "title": context.client_context and context.client_context.client.app_title,
            "w3c": context.w3c(),
            "trace": os.environ.get("_X_AMZN_TRACE_ID"),
            "process_keeps_trace": ctypes.CDLL(None).getenv(b"_X_AMZN_TRACE_ID") != 0,
            "cwd": os.getcwd() == os.environ["LAMBDA_TASK_ROOT"],
            "path": sys.path[0] == os.environ["LAMBDA_TASK_ROOT"],
        }
    if do == "raise":
        inner()
    if do == "closed":
        sys.stdout.close()
        inner()
    if do == "odd":
        raise Odd()
    if do == "unserialisable":
        return {1, 2}
    if do == "surrogate":
        return "\ud800"
    if do == "decimal":
        return [decimal.Decimal("1.5"), decimal.Decimal("7")]
    if do == "bytes":
        return b"\x00\xff"
    if do == "large":
        return "x" * 7000000
    if do == "log":
        logging.warning("careful")
        logging.getLogger("own").error("bad", exc_info=False)
        print("half", end=" ")
        print("line \u00e4")
        return None
    if do == "exit":
        # A thread that never ends must not hold up the end of the process.
        threading.Thread(target=threading.Event().wait).start()
        print("going", end="")
        sys.exit(7)
    return json.dumps("?")
