"""What users of boto3 do with a node. Any assertion that fails ends it with a traceback."""

import base64
import io
import json
import zipfile

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

CONFIG = Config(retries={"max_attempts": 1, "mode": "standard"}, parameter_validation=True)
client = boto3.client("lambda", config=CONFIG)
ROLE = "arn:aws:iam::123456789012:role/any"


def package(code):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("main.py", code)
    return buffer.getvalue()


def refused(name, call):
    """Calls, expects this error, and gives back its whole answer."""
    try:
        call()
    except ClientError as error:
        assert error.response["Error"]["Code"] == name, error.response
        assert error.response["Error"]["Message"], error.response
        return error.response
    raise AssertionError(f"{name} did not come")


def create(name, code, **more):
    created = client.create_function(
        FunctionName=name, Runtime="python3.12", Role=ROLE, Handler="main.handler", Code={"ZipFile": package(code)},
        Timeout=3, MemorySize=128, **more)
    client.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})
    return created


ECHO = "def handler(event, context):\n    print('seen', event)\n    return {'event': event, 'name': context.function_name}\n"


def life():
    created = create("echo", ECHO, Description="gives back", Environment={"Variables": {"COLOUR": "blue"}})
    assert created["FunctionName"] == "echo" and created["FunctionArn"].endswith(":function:echo"), created
    assert created["Runtime"] == "python3.12" and created["MemorySize"] == 128, created
    client.get_waiter("function_exists").wait(FunctionName="echo", WaiterConfig={"Delay": 1})
    answer = client.invoke(FunctionName="echo", Payload=b'{"n": 1}', LogType="Tail")
    assert answer["StatusCode"] == 200 and answer["ExecutedVersion"] == "$LATEST" and "FunctionError" not in answer, answer
    assert json.load(answer["Payload"]) == {"event": {"n": 1}, "name": "echo"}
    log = base64.b64decode(answer["LogResult"]).decode()
    assert "seen {'n': 1}" in log and "REPORT RequestId: " + answer["ResponseMetadata"]["RequestId"] in log, log
    assert client.invoke(FunctionName="echo", InvocationType="DryRun")["StatusCode"] == 204
    by_arn = client.invoke(FunctionName=created["FunctionArn"], Payload=b"2")
    assert json.load(by_arn["Payload"])["event"] == 2
    event = refused("NotImplementedException", lambda: client.invoke(FunctionName="echo", InvocationType="Event", Payload=b"1"))
    assert event["ResponseMetadata"]["HTTPStatusCode"] == 501 and "Event" in event["Error"]["Message"], event
    alias = refused("NotImplementedException", lambda: client.create_alias(FunctionName="echo", Name="a", FunctionVersion="1"))
    assert "CreateAlias" in alias["Error"]["Message"], alias


def change():
    before = client.get_function_configuration(FunctionName="echo")
    code = "import os\ndef handler(event, context):\n    return [os.environ['COLOUR'], context.memory_limit_in_mb]\n"
    updated = client.update_function_code(FunctionName="echo", ZipFile=package(code))
    client.get_waiter("function_updated_v2").wait(FunctionName="echo", WaiterConfig={"Delay": 1})
    assert updated["CodeSha256"] != before["CodeSha256"] and updated["RevisionId"] != before["RevisionId"], updated
    result = json.load(client.invoke(FunctionName="echo")["Payload"])
    assert result[0] == "blue" and int(result[1]) == 128, result
    client.update_function_configuration(FunctionName="echo", MemorySize=192, Environment={"Variables": {"COLOUR": "red"}})
    client.get_waiter("function_updated_v2").wait(FunctionName="echo", WaiterConfig={"Delay": 1})
    result = json.load(client.invoke(FunctionName="echo")["Payload"])
    assert result[0] == "red" and int(result[1]) == 192, result
    stale = lambda: client.update_function_code(FunctionName="echo", ZipFile=package(code), RevisionId=before["RevisionId"])
    refused("PreconditionFailedException", stale)
    got = client.get_function(FunctionName="echo")
    assert got["Configuration"]["MemorySize"] == 192 and got["Code"]["RepositoryType"], got
    assert [it["FunctionName"] for it in client.list_functions()["Functions"]] == ["echo"]
    pages = client.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 1})
    assert [it["FunctionName"] for page in pages for it in page["Functions"]] == ["echo"]
    settings = client.get_account_settings()
    assert settings["AccountUsage"]["FunctionCount"] == 1 and settings["AccountLimit"]["TotalCodeSize"], settings


def errors():
    refused("ResourceNotFoundException", lambda: client.get_function(FunctionName="absent"))
    refused("ResourceNotFoundException", lambda: client.invoke(FunctionName="absent"))
    refused("ResourceNotFoundException", lambda: client.delete_function(FunctionName="absent"))
    refused("ResourceConflictException", lambda: create("echo", ECHO))
    assert client.exceptions.ResourceNotFoundException and client.exceptions.ResourceConflictException
    try:
        client.get_function(FunctionName="absent")
    except client.exceptions.ResourceNotFoundException as error:
        assert "absent" in str(error)
    refused("InvalidRequestContentException", lambda: client.invoke(FunctionName="echo", Payload=b"{"))
    refused("InvalidParameterValueException", lambda: client.create_function(
        FunctionName="broken", Runtime="python3.12", Role=ROLE, Handler="main.handler", Code={"ZipFile": b"no zip"}))
    refused("NotImplementedException", lambda: create("layered", ECHO, Layers=["arn:aws:lambda:us-east-1:1:layer:a:1"]))


def payloads():
    create("size", "def handler(event, context):\n    return len(event)\n")
    limit = 6 * 1024 * 1024
    whole = json.dumps("x" * (limit - 2)).encode()
    assert json.load(client.invoke(FunctionName="size", Payload=whole)["Payload"]) == limit - 2
    large = refused("RequestTooLargeException", lambda: client.invoke(FunctionName="size", Payload=whole + b" "))
    assert large["ResponseMetadata"]["HTTPStatusCode"] == 413, large
    create("big", "def handler(event, context):\n    return 'x' * event\n")
    kept = client.invoke(FunctionName="big", Payload=str(limit - 2).encode())
    assert "FunctionError" not in kept and len(kept["Payload"].read()) == limit
    over = client.invoke(FunctionName="big", Payload=str(limit + 1024).encode())
    assert over["FunctionError"] == "Unhandled", over
    assert json.load(over["Payload"])["errorType"] == "Function.ResponseSizeTooLarge"


def guarantee():
    tags = {"takt:rate": "1/min", "takt:max_run_time": "20ms", "takt:start_within": "500ms", "takt:overflow": "reject",
            "team": "a"}
    arn = create("strict", ECHO, Tags=tags)["FunctionArn"]
    assert client.list_tags(Resource=arn)["Tags"].items() >= tags.items(), client.list_tags(Resource=arn)
    first = client.invoke(FunctionName="strict", Payload=b"1")
    headers = first["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-takt-class"] == "guaranteed" and headers["x-takt-conforming"] == "true", headers
    second = refused("TooManyRequestsException", lambda: client.invoke(FunctionName="strict", Payload=b"2"))
    assert second["ResponseMetadata"]["HTTPStatusCode"] == 429, second
    assert 1 <= int(second["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) <= 60, second
    assert second["Reason"] == "ReservedFunctionInvocationRateLimitExceeded", second
    client.tag_resource(Resource=arn, Tags={"takt:rate": "5/s"})
    client.get_waiter("function_updated_v2").wait(FunctionName="strict", WaiterConfig={"Delay": 1})
    assert client.get_function(FunctionName="strict")["Tags"]["takt:rate"] == "5/s"
    greedy = refused("InvalidParameterValueException",
                     lambda: client.tag_resource(Resource=arn, Tags={"takt:rate": "10000/s"}))
    assert "rate" in greedy["Error"]["Message"], greedy
    assert client.list_tags(Resource=arn)["Tags"]["takt:rate"] == "5/s"
    client.untag_resource(Resource=arn, TagKeys=["takt:rate"])
    left = client.list_tags(Resource=arn)["Tags"]
    assert "takt:rate" not in left and left["team"] == "a", left
    plain = client.invoke(FunctionName="strict", Payload=b"3")
    assert plain["ResponseMetadata"]["HTTPHeaders"]["x-takt-class"] == "best-effort", plain


def keys():
    wrong = boto3.client("lambda", config=CONFIG, aws_secret_access_key="wrong" * 8, aws_access_key_id=client._request_signer._credentials.access_key)
    refused("InvalidSignatureException", wrong.list_functions)
    refused("InvalidSignatureException", lambda: wrong.invoke(FunctionName="echo"))
    stranger = boto3.client("lambda", config=CONFIG, aws_access_key_id="AKIASTRANGER", aws_secret_access_key="secret")
    refused("UnrecognizedClientException", stranger.list_functions)


def end():
    for name in [it["FunctionName"] for it in client.list_functions()["Functions"]]:
        client.delete_function(FunctionName=name)
        refused("ResourceNotFoundException", lambda: client.get_function(FunctionName=name))
    assert client.list_functions()["Functions"] == []


for step in (life, change, errors, payloads, guarantee, keys, end):
    print(step.__name__, flush=True)
    step()
