const fs = require('fs');

exports.nested = { handler: async (event, context) => exports.async(event, context) };

exports.async = async (event, context) => {
  if (event.do === 'context') {
    const { getRemainingTimeInMillis, done, fail, succeed, ...plain } = context;
    const { _X_AMZN_TRACE_ID: trace } = { ...process.env };
    const kept = process.report.getReport().environmentVariables._X_AMZN_TRACE_ID;
    return { ...plain, remaining: getRemainingTimeInMillis() > 1000000, trace, processKeepsTrace: kept !== '' };
  }
  if (event.do === 'raise') throw new TypeError('wrong\nin two lines');
  if (event.do === 'string') throw 'only text';
  if (event.do === 'circular') {
    const loop = {};
    loop.loop = loop;
    return loop;
  }
  if (event.do === 'log') {
    console.log('two\nlines %d', 5);
    console.error(new Error('shown').message);
    return undefined;
  }
  if (event.do === 'large') return 'x'.repeat(7000000);
  if (event.do === 'later') {
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  if (event.do === 'reject') {
    Promise.reject(new Error('nobody cares'));
    await new Promise((resolve) => setTimeout(resolve, 1000000));
  }
  if (event.do === 'uncaught') {
    setTimeout(() => {
      throw new RangeError('from nowhere');
    }, 1);
    await new Promise((resolve) => setTimeout(resolve, 1000000));
  }
  if (event.do === 'exit') process.exit(7);
  return event;
};

exports.stream = awslambda.streamifyResponse(async (event, stream, context) => {
  if (event.do === 'http') {
    const http = awslambda.HttpResponseStream.from(stream, { statusCode: 201 });
    http.write('a');
    http.end(context.awsRequestId.slice(0, 1));
    return;
  }
  stream.setContentType('text/plain');
  stream.write('part ');
  if (event.do === 'fail') throw new Error('broke off');
  if (event.do === 'open') return;
  stream.end('rest');
});

let timer = 0;
exports.callback = (event, context, callback) => {
  if (event.do === 'succeed') return context.succeed('s');
  if (event.do === 'fail') return context.fail(new Error('f'));
  if (event.do === 'done') return context.done(null, 'd');
  if (event.do === 'throw') throw new Error('t');
  if (event.do === 'both') {
    callback(null, 'first');
    throw new Error('second');
  }
  if (event.do === 'error') return callback(new Error('e'));
  if (event.do === 'nothing') return 'ignored';
  if (event.do === 'at-once') {
    context.callbackWaitsForEmptyEventLoop = false;
    setTimeout(() => {}, 1000000).unref();
    timer = setInterval(() => {}, 1000000);
    return callback(null, 'at once');
  }
  if (event.do === 'waits') {
    clearInterval(timer);
    const seen = { after: false };
    seen.toJSON = () => seen.after;
    setTimeout(() => {
      seen.after = true;
    }, 5);
    return callback(null, seen);
  }
  fs.stat('.', () => callback(null, event));
};
