#!/usr/bin/env bash
# What users of the AWS CLI do with a node. Any command that fails, or says something else, ends it.
set -euo pipefail
endpoint=()
case $("$AWS" --version) in # version 2 reads the variable from 2.13 on
aws-cli/2.[0-9].* | aws-cli/2.1[0-2].*) endpoint=(--endpoint-url "$AWS_ENDPOINT_URL_LAMBDA") ;;
esac
aws() { "$AWS" "${endpoint[@]}" "$@"; }

says() {
    local expected=$1
    shift
    local said
    said=$("$@")
    if [[ $said != "$expected" ]]; then
        echo "\`$*\` said: $said; expected: $expected"
        return 1
    fi
}

refused() {
    local name=$1
    shift
    local said
    if said=$("$@" 2>&1); then
        echo "\`$*\` was not refused"
        return 1
    fi
    [[ $said == *"($name)"* ]] || { echo "$said, expected $name"; return 1; }
}

printf 'def handler(event, context):\n    return {"n": event["n"] + 1}\n' >main.py
python3 -m zipfile -c code.zip main.py
printf '{"n": 1}' >event.json
aws lambda create-function --function-name plus --runtime python3.12 --handler main.handler --memory-size 128 \
    --role arn:aws:iam::123456789012:role/any --zip-file fileb://code.zip >created.json
aws lambda wait function-active-v2 --function-name plus
aws lambda wait function-exists --function-name plus
aws lambda invoke --function-name plus --payload fileb://event.json result.json >answer.json
says '{"n": 2}' cat result.json

printf 'def handler(event, context):\n    return {"n": event["n"] + 10}\n' >main.py
python3 -m zipfile -c code.zip main.py
aws lambda update-function-code --function-name plus --zip-file fileb://code.zip >updated.json
aws lambda wait function-updated-v2 --function-name plus
aws lambda invoke --function-name plus --payload fileb://event.json result.json >answer.json
says '{"n": 11}' cat result.json

arn=$(aws lambda get-function --function-name plus --query Configuration.FunctionArn --output text)
aws lambda tag-resource --resource "$arn" --tags takt:rate=2/s,takt:max_run_time=50ms,takt:start_within=500ms
says 2/s aws lambda list-tags --resource "$arn" --query 'Tags."takt:rate"' --output text
says plus aws lambda list-functions --query 'Functions[].FunctionName' --output text
refused ResourceConflictException aws lambda create-function --function-name plus --runtime python3.12 \
    --handler main.handler --role arn:aws:iam::123456789012:role/any --zip-file fileb://code.zip
refused NotImplementedException aws lambda publish-version --function-name plus
aws lambda delete-function --function-name plus
refused ResourceNotFoundException aws lambda get-function --function-name plus
