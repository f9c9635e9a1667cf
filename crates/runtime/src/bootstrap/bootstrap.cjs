// Runs one Node.js function over the AWS Lambda Runtime API (Node.js 18 or later, no dependencies).
//
// One connection lives as long as the instance. A result and the question for the next invocation leave in one write, and
// the handler's entry is stamped on CLOCK_MONOTONIC right before the handler is called.
'use strict';

const loadedNs = process.hrtime.bigint();

const fs = require('fs');
const net = require('net');
const path = require('path');
const { createRequire } = require('module');
const { pathToFileURL } = require('url');
const { Writable } = require('stream');
const util = require('util');

const API = '/2018-06-01/runtime';
const env = process.env;

// --- the wire -----------------------------------------------------------------------------------------------------------

/** The instance's one connection to its Runtime API. Responses come in the order of the requests. */
class Wire {
  constructor(address, onBroken) {
    const at = address.lastIndexOf(':');
    const host = address.slice(0, at).replace(/^\[|\]$/g, '');
    this.hostLine = `Host: ${address}\r\nUser-Agent: takt-nodejs/1\r\n`;
    this.nextLine = `GET ${API}/invocation/next HTTP/1.1\r\n${this.hostLine}`;
    this.next = `${this.nextLine}\r\n`;
    this.pieces = [];
    this.have = 0;
    this.want = 0; // bytes of the response at the front, zero while its head is incomplete
    this.response = null;
    this.waiting = [];
    this.socket = net.connect({ host, port: Number(address.slice(at + 1)), noDelay: true });
    this.socket.on('data', (piece) => this.receive(piece));
    this.socket.on('error', onBroken);
    this.socket.on('end', onBroken);
  }

  askFirst(initNs, onInvocation) {
    this.waiting.push(onInvocation);
    this.socket.write(`${this.nextLine}Takt-Init-Ns: ${initNs}\r\n\r\n`);
  }

  /** Sends an answer and the question for the next invocation together. */
  answerAndAsk(target, fields, body, onInvocation) {
    this.waiting.push(onAnswered, onInvocation);
    this.send(target, fields, body, this.next);
  }

  answer(target, fields, body, onDone) {
    this.waiting.push(onDone);
    this.send(target, fields, body, '');
  }

  send(target, fields, body, after) {
    const head = `POST ${API}${target} HTTP/1.1\r\n${this.hostLine}${fields}Content-Length: `;
    if (typeof body === 'string') {
      this.socket.write(`${head}${Buffer.byteLength(body)}\r\n\r\n${body}${after}`);
    } else {
      this.socket.write(Buffer.concat([Buffer.from(`${head}${body.length}\r\n\r\n`), body, Buffer.from(after)]));
    }
  }

  receive(piece) {
    this.pieces.push(piece);
    this.have += piece.length;
    while (this.want === 0 ? 0 < this.have : this.want <= this.have) {
      const all = this.pieces.length === 1 ? this.pieces[0] : Buffer.concat(this.pieces, this.have);
      this.pieces = [all];
      if (this.want === 0) {
        const end = all.indexOf('\r\n\r\n');
        if (end < 0) return;
        this.response = parseHead(all.latin1Slice(0, end));
        this.bodyAt = end + 4;
        this.want = this.bodyAt + Number(this.response.headers['content-length'] || 0);
        if (this.have < this.want) return;
      }
      const { response } = this;
      response.body = all.subarray(this.bodyAt, this.want);
      const rest = all.subarray(this.want);
      this.pieces = rest.length === 0 ? [] : [rest];
      this.have = rest.length;
      this.want = 0;
      this.waiting.shift()(response);
    }
  }
}

function parseHead(text) {
  const lines = text.split('\r\n');
  const headers = Object.create(null);
  for (let at = 1; at < lines.length; at += 1) {
    const colon = lines[at].indexOf(':');
    headers[lines[at].slice(0, colon).toLowerCase()] = lines[at].slice(colon + 1).trim();
  }
  return { status: Number(lines[0].split(' ', 2)[1]), headers, body: null };
}

function onAnswered(response) {
  if (response.status !== 202) {
    process.stderr.write(`takt: an answer was refused: ${response.status} ${response.body.toString().trim()}\n`);
  }
}

// --- errors -------------------------------------------------------------------------------------------------------------

/** An error of AWS's own kinds. */
class Fault extends Error {
  constructor(type, message, cause) {
    super(message);
    this.name = type;
    if (cause && cause.stack) this.stack = cause.stack;
  }
}

/** The lines of a stack down to the function's own lowest frame; below it lie this file and Node.js. */
function trimStack(stack) {
  const lines = String(stack || '').split('\n');
  while (0 < lines.length && /\(node:|at node:/.test(lines[lines.length - 1].replace(__filename, '(node:'))) lines.pop();
  return lines;
}

/** AWS's error object, as text. */
function report(error) {
  try {
    if (util.types.isNativeError(error) || error instanceof Error) {
      const trace = trimStack(error.stack);
      return JSON.stringify({ errorType: String(error.name), errorMessage: String(error.message), trace });
    }
    return JSON.stringify({ errorType: typeof error, errorMessage: String(error), trace: [] });
  } catch (second) {
    return JSON.stringify({ errorType: 'handled', errorMessage: 'callback called with an error that has no text', trace: [] });
  }
}

function errorFields(text) {
  const type = JSON.parse(text).errorType;
  const line = /^[!-~]{1,256}$/.test(type) ? `Lambda-Runtime-Function-Error-Type: ${type}\r\n` : '';
  return `Content-Type: application/json\r\n${line}`;
}

const headerText = (text) => (/^[ -~]{1,256}$/.test(text) ? text : 'application/octet-stream');

// --- logs ---------------------------------------------------------------------------------------------------------------

let requestId;

function setUpLogs() {
  const json = (env.AWS_LAMBDA_LOG_FORMAT || '').toUpperCase() === 'JSON';
  const levels = { trace: 'TRACE', debug: 'DEBUG', log: 'INFO', info: 'INFO', warn: 'WARN', error: 'ERROR', fatal: 'FATAL' };
  const order = ['TRACE', 'DEBUG', 'INFO', 'WARN', 'ERROR', 'FATAL'];
  const least = order.indexOf((env.AWS_LAMBDA_LOG_LEVEL || '').toUpperCase());
  for (const [method, level] of Object.entries(levels)) {
    if (order.indexOf(level) < least) {
      console[method] = () => {};
      continue;
    }
    console[method] = (...values) => {
      const timestamp = new Date().toISOString();
      if (json) {
        const message = values.length === 1 && typeof values[0] === 'object' ? values[0] : util.format(...values);
        process.stdout.write(`${jsonLine({ timestamp, level, requestId, message })}\n`);
      } else {
        // A carriage return keeps a message of several lines one record.
        const text = util.format(...values).replace(/\n/g, '\r');
        process.stdout.write(`${timestamp}\t${requestId}\t${level}\t${text}\n`);
      }
    };
  }
}

function jsonLine(line) {
  try {
    if (util.types.isNativeError(line.message)) {
      const { name, message, stack } = line.message;
      return JSON.stringify({ ...line, message, errorType: name, errorMessage: message, stackTrace: String(stack).split('\n') });
    }
    return JSON.stringify(line);
  } catch (error) {
    return JSON.stringify({ ...line, message: util.inspect(line.message) });
  }
}

// --- the trace ----------------------------------------------------------------------------------------------------------

const TRACE = '_X_AMZN_TRACE_ID';
let trace;

/**
 * Has `process.env` tell the trace of the invocation without putting it into the process's own environment. The C library
 * keeps every value that was ever put there: with a new one for every invocation an instance would grow by 150 bytes each
 * time, until its memory is used up.
 */
function setUpTrace() {
  process.env = new Proxy(env, {
    get: (target, name) => (name === TRACE ? trace : target[name]),
    set(target, name, value) {
      if (name === TRACE) tellTrace(`${value}`);
      else target[name] = value;
      return true;
    },
    deleteProperty(target, name) {
      if (name === TRACE) tellTrace(undefined);
      return delete target[name];
    },
    getOwnPropertyDescriptor(target, name) {
      const found = Object.getOwnPropertyDescriptor(target, name);
      return found && name === TRACE ? { ...found, value: trace } : found;
    },
  });
}

function tellTrace(told) {
  if ((told === undefined) !== (trace === undefined)) {
    if (told === undefined) delete env[TRACE];
    else env[TRACE] = ''; // that it is there; what it says, the proxy knows
  }
  trace = told;
}

// --- the function -------------------------------------------------------------------------------------------------------

/** Splits `dir/module.export.inner`. */
function splitHandler(name) {
  const slash = name.lastIndexOf('/') + 1;
  const dot = name.indexOf('.', slash);
  if (dot <= slash || dot === name.length - 1 || name.includes('..')) {
    throw new Fault('Runtime.MalformedHandlerName', `Bad handler '${name}': it is not of the form module.export`);
  }
  return { file: name.slice(0, dot), exported: name.slice(dot + 1) };
}

function isModuleFolder(dir) {
  for (let at = dir; ; at = path.dirname(at)) {
    const file = path.join(at, 'package.json');
    if (fs.existsSync(file)) {
      try {
        return JSON.parse(fs.readFileSync(file, 'utf8')).type === 'module';
      } catch (error) {
        throw new Fault('Runtime.ImportModuleError', `Error: ${file} is not valid JSON`, error);
      }
    }
    if (at === path.dirname(at)) return false;
  }
}

async function loadModule(root, name) {
  const base = path.resolve(root, name);
  for (const extension of ['', '.js', '.mjs', '.cjs']) {
    const file = base + extension;
    if (!fs.existsSync(file) || !fs.statSync(file).isFile()) continue;
    const esm = file.endsWith('.mjs') || (file.endsWith('.js') && isModuleFolder(path.dirname(file)));
    return esm ? import(pathToFileURL(file)) : createRequire(file)(file);
  }
  return createRequire(path.join(root, 'index.js'))(name.includes('/') ? base : `./${name}`);
}

async function loadHandler(root, name) {
  const { file, exported } = splitHandler(name);
  let found;
  try {
    found = await loadModule(root, file);
  } catch (error) {
    if (error instanceof Fault) throw error;
    if (error instanceof SyntaxError) throw new Fault('Runtime.UserCodeSyntaxError', `${error}`, error);
    if (error && /^(ERR_)?MODULE_NOT_FOUND$/.test(error.code)) {
      throw new Fault('Runtime.ImportModuleError', `${error}`, error);
    }
    throw error;
  }
  const parts = exported.split('.');
  const inside = (start) => parts.reduce((at, part) => (at === undefined || at === null ? undefined : at[part]), start);
  const handler = inside(found) ?? inside(found && found.default);
  if (handler === undefined) throw new Fault('Runtime.HandlerNotFound', `${name} is undefined or not exported`);
  if (typeof handler !== 'function') throw new Fault('Runtime.HandlerNotFound', `${name} is not a function`);
  return handler;
}

// --- response streaming -------------------------------------------------------------------------------------------------

const STREAMING = Symbol('streaming');

/** What a streaming handler writes to. It is collected and leaves as a whole. */
class ResponseStream extends Writable {
  constructor() {
    super();
    this.pieces = [];
    this.contentType = 'application/octet-stream';
    this.prelude = null;
  }

  setContentType(type) {
    this.contentType = type;
  }

  _write(piece, encoding, done) {
    this.pieces.push(typeof piece === 'string' ? Buffer.from(piece, encoding) : piece);
    done();
  }

  whole() {
    return Buffer.concat(this.prelude === null ? this.pieces : [Buffer.from(this.prelude), Buffer.alloc(8), ...this.pieces]);
  }
}

globalThis.awslambda = {
  streamifyResponse(streaming) {
    streaming[STREAMING] = true;
    return streaming;
  },
  HttpResponseStream: {
    from(stream, metadata) {
      stream.setContentType('application/vnd.awslambda.http-integration-response');
      stream.prelude = JSON.stringify(metadata);
      return stream;
    },
  },
};

function callStreaming(invocation, event, context) {
  const stream = new ResponseStream();
  invocation.waitsForEmptyLoop = false;
  stream.on('error', (error) => settle(invocation, error));
  stream.on('finish', () => settle(invocation, null, stream));
  invocation.startedNs = process.hrtime.bigint();
  const result = handler(event, stream, context);
  // A stream that is never ended is what was written when nothing is left to do.
  invocation.fallback = stream;
  if (result && typeof result.then === 'function') {
    result.then(undefined, (error) => settle(invocation, error === undefined || error === null ? 'handled' : error));
  }
}

// --- invocations --------------------------------------------------------------------------------------------------------

let wire;
let handler;
let running = null; // the invocation that is not yet answered

function headerJson(headers, name, what) {
  if (!headers[name]) return undefined;
  try {
    return JSON.parse(headers[name]);
  } catch (error) {
    throw new Fault('Runtime.LambdaContextUnmarshalError', `Unable to parse ${what} JSON: ${error.message}`);
  }
}

/** What a handler is told about its invocation, and the ways it has to end it. */
function makeContext(invocation) {
  const { headers } = invocation;
  const deadlineMs = Number(headers['lambda-runtime-deadline-ms'] || 0);
  const end = (error, result) => {
    invocation.waitsForEmptyLoop = false;
    settle(invocation, error, result);
  };
  const context = {
    get callbackWaitsForEmptyEventLoop() {
      return invocation.waitsForEmptyLoop;
    },
    set callbackWaitsForEmptyEventLoop(value) {
      invocation.waitsForEmptyLoop = Boolean(value);
    },
    done: end,
    succeed: (result) => end(null, result),
    fail: (error) => end(error === undefined || error === null ? 'handled' : error),
    functionVersion: env.AWS_LAMBDA_FUNCTION_VERSION,
    functionName: env.AWS_LAMBDA_FUNCTION_NAME,
    memoryLimitInMB: env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: env.AWS_LAMBDA_LOG_STREAM_NAME,
    clientContext: headerJson(headers, 'lambda-runtime-client-context', 'Client Context'),
    identity: headerJson(headers, 'lambda-runtime-cognito-identity', 'Cognito Identity'),
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    awsRequestId: invocation.id,
    tenantId: headers['lambda-runtime-aws-tenant-id'],
    getRemainingTimeInMillis: () => Math.max(0, deadlineMs - Date.now()),
  };
  return context;
}

/** The first outcome counts; it is sent at once or, in callback style, when nothing is left to do. */
function settle(invocation, error, result) {
  if (invocation !== running) return;
  invocation.outcome = invocation.outcome || { error, result };
  if (!invocation.waitsForEmptyLoop) send(invocation);
}

function send(invocation) {
  if (invocation !== running) return;
  running = null;
  const { error, result } = invocation.outcome;
  const failed = error !== undefined && error !== null;
  const body = failed ? reportAndLog(error) : encode(result);
  if (body instanceof Fault) {
    answer(invocation, 'error', reportAndLog(body));
    return;
  }
  answer(invocation, failed ? 'error' : 'response', body);
}

function answer(invocation, how, answered, onDone) {
  let body = answered;
  let kind = 'Content-Type: application/json\r\n';
  if (how === 'error') {
    kind = errorFields(body);
  } else if (answered instanceof ResponseStream) {
    body = answered.whole();
    kind = `Content-Type: ${headerText(answered.contentType)}\r\nLambda-Runtime-Function-Response-Mode: streaming\r\n`;
  }
  const attempt = invocation.headers['lambda-runtime-invocation-id'];
  const delivery = attempt ? `Lambda-Runtime-Invocation-Id: ${attempt}\r\n` : '';
  const stamps = `Takt-Started-Ns: ${invocation.startedNs}\r\nTakt-Ended-Ns: ${process.hrtime.bigint()}\r\n`;
  const fields = `${kind}${delivery}${stamps}`;
  const target = `/invocation/${invocation.id}/${how}`;
  wire.socket.ref();
  if (onDone) wire.answer(target, fields, body, onDone);
  else wire.answerAndAsk(target, fields, body, onInvocation);
}

function encode(result) {
  if (result instanceof ResponseStream) return result;
  try {
    const text = JSON.stringify(result === undefined ? null : result);
    return text === undefined ? 'null' : text;
  } catch (error) {
    return new Fault('Runtime.MarshalError', `Unable to stringify response body: ${error.message}`, error);
  }
}

function reportAndLog(error) {
  const body = report(error);
  console.error('Invoke Error', body);
  return body;
}

function onInvocation(response) {
  if (response.status !== 200) {
    process.stderr.write(`takt: no invocation: ${response.status} ${response.body.toString().trim()}\n`);
    process.exit(1);
  }
  const { headers } = response;
  const id = headers['lambda-runtime-aws-request-id'];
  const invocation = { id, headers, startedNs: 0n, waitsForEmptyLoop: true, outcome: null, fallback: null };
  running = invocation;
  requestId = id;
  tellTrace(headers['lambda-runtime-trace-id']);
  // From here on only what the handler starts keeps the loop alive.
  wire.socket.unref();
  try {
    call(invocation, response.body);
  } catch (error) {
    invocation.waitsForEmptyLoop = false;
    settle(invocation, error === undefined || error === null ? 'handled' : error);
  }
}

function call(invocation, body) {
  const context = makeContext(invocation);
  const json = (invocation.headers['content-type'] || 'application/json') === 'application/json';
  let event = body;
  if (json) {
    try {
      event = JSON.parse(body);
    } catch (error) {
      throw new Fault('Runtime.UnmarshalError', `Unable to unmarshal input: ${error.message}`);
    }
  }
  if (handler[STREAMING]) {
    callStreaming(invocation, event, context);
    return;
  }
  const callback = (error, result) => settle(invocation, error, result);
  invocation.startedNs = process.hrtime.bigint();
  const result = handler(event, context, callback);
  if (result && typeof result.then === 'function') {
    result.then(context.succeed, context.fail);
  }
}

/** Nothing is left to do: the outcome of a callback-style handler is final, and is `null` when it named none. */
function onEmptyLoop() {
  if (!running) return;
  running.outcome = running.outcome || { error: null, result: running.fallback };
  send(running);
}

/** An error that nobody caught ends the instance, after its invocation or its start was told of it. */
function onUncaught(type, code) {
  return (error) => {
    const body = report(type ? new Fault(type, util.types.isNativeError(error) ? `${error}` : String(error), error) : error);
    const leave = () => process.exit(code);
    console.error(type ? 'Unhandled Promise Rejection' : 'Uncaught Exception', body);
    if (running) {
      const invocation = running;
      running = null;
      answer(invocation, 'error', body, leave);
    } else if (!handler) {
      wire.answer('/init/error', errorFields(body), body, leave);
    } else {
      leave();
    }
  };
}

async function main() {
  setUpLogs();
  setUpTrace();
  wire = new Wire(env.AWS_LAMBDA_RUNTIME_API, () => process.exit(1));
  process.on('uncaughtException', onUncaught(null, 129));
  process.on('unhandledRejection', onUncaught('Runtime.UnhandledPromiseRejection', 128));
  process.on('beforeExit', onEmptyLoop);
  let loaded;
  try {
    loaded = await loadHandler(env.LAMBDA_TASK_ROOT || process.cwd(), env._HANDLER || '');
  } catch (error) {
    const body = report(error);
    console.error('Init Error', body);
    wire.answer('/init/error', errorFields(body), body, () => process.exit(1));
    return;
  }
  handler = loaded;
  wire.askFirst(process.hrtime.bigint() - loadedNs, onInvocation);
}

main();
