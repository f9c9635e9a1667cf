// What users of the JavaScript SDK do with a node. Any assertion that fails ends it with its place.
"use strict";
const assert = require("node:assert");
const { deflateRawSync, crc32 } = require("node:zlib");
const sdk = require("@aws-sdk/client-lambda");

const client = new sdk.LambdaClient({ maxAttempts: 1 });
const send = (Command, input) => client.send(new Command(input));

function checksum(bytes) {
  if (crc32) return crc32(bytes);
  let sum = ~0;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit += 1) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return ~sum >>> 0;
}

// A zip archive of one file, by the format's definition.
function zip(name, text) {
  const content = Buffer.from(text);
  const packed = deflateRawSync(content);
  const common = Buffer.alloc(26);
  common.writeUInt16LE(20, 0);
  common.writeUInt16LE(8, 4);
  common.writeUInt16LE(0x21, 8);
  common.writeUInt32LE(checksum(content), 10);
  common.writeUInt32LE(packed.length, 14);
  common.writeUInt32LE(content.length, 18);
  common.writeUInt16LE(name.length, 22);
  const local = Buffer.concat([Buffer.from("PK\x03\x04"), common, Buffer.from(name), packed]);
  const tail = Buffer.alloc(14);
  const central = Buffer.concat([Buffer.from("PK\x01\x02\x14\x00"), common, tail, Buffer.from(name)]);
  const end = Buffer.alloc(18);
  end.writeUInt16LE(1, 4);
  end.writeUInt16LE(1, 6);
  end.writeUInt32LE(central.length, 8);
  end.writeUInt32LE(local.length, 12);
  return Buffer.concat([local, central, Buffer.from("PK\x05\x06"), end]);
}

async function refused(name, call) {
  await assert.rejects(call, (error) => error.name === name && error instanceof sdk.LambdaServiceException);
}

async function main() {
  const code = "exports.handler = async (event, context) => ({ n: event.n + 1, name: context.functionName });\n";
  const created = await send(sdk.CreateFunctionCommand, {
    FunctionName: "plus", Runtime: "nodejs22.x", Handler: "main.handler", MemorySize: 128, Timeout: 3,
    Role: "arn:aws:iam::123456789012:role/any", Code: { ZipFile: zip("main.js", code) },
  });
  assert.strictEqual(created.FunctionName, "plus");
  const waiting = { client, maxWaitTime: 60, minDelay: 1, maxDelay: 1 };
  await sdk.waitUntilFunctionActiveV2(waiting, { FunctionName: "plus" });
  await sdk.waitUntilFunctionExists(waiting, { FunctionName: "plus" });
  const answer = await send(sdk.InvokeCommand, { FunctionName: "plus", Payload: '{"n": 1}', LogType: "Tail" });
  assert.deepStrictEqual(JSON.parse(answer.Payload.transformToString()), { n: 2, name: "plus" });
  assert.match(Buffer.from(answer.LogResult, "base64").toString(), /REPORT RequestId/);

  const tags = { "takt:rate": "1/min", "takt:max_run_time": "50ms", "takt:start_within": "500ms", "takt:overflow": "reject" };
  await send(sdk.TagResourceCommand, { Resource: created.FunctionArn, Tags: tags });
  await sdk.waitUntilFunctionUpdatedV2(waiting, { FunctionName: "plus" });
  assert.strictEqual((await send(sdk.ListTagsCommand, { Resource: created.FunctionArn })).Tags["takt:rate"], "1/min");
  await send(sdk.InvokeCommand, { FunctionName: "plus", Payload: '{"n": 1}' });
  await refused("TooManyRequestsException", () => send(sdk.InvokeCommand, { FunctionName: "plus", Payload: '{"n": 1}' }));
  await refused("NotImplementedException",
    () => send(sdk.InvokeCommand, { FunctionName: "plus", InvocationType: "Event", Payload: "{}" }));

  const changed = "exports.handler = async () => { throw new RangeError('no'); };\n";
  await send(sdk.UpdateFunctionCodeCommand, { FunctionName: "plus", ZipFile: zip("main.js", changed) });
  await sdk.waitUntilFunctionUpdatedV2(waiting, { FunctionName: "plus" });
  await send(sdk.UntagResourceCommand, { Resource: created.FunctionArn, TagKeys: ["takt:rate"] });
  await sdk.waitUntilFunctionUpdatedV2(waiting, { FunctionName: "plus" });
  const failed = await send(sdk.InvokeCommand, { FunctionName: "plus", Payload: "{}" });
  assert.strictEqual(failed.FunctionError, "Unhandled");
  assert.strictEqual(JSON.parse(failed.Payload.transformToString()).errorType, "RangeError");
  await send(sdk.DeleteFunctionCommand, { FunctionName: "plus" });
  await refused("ResourceNotFoundException", () => send(sdk.GetFunctionCommand, { FunctionName: "plus" }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
