"use strict";

// A function: takes an event, returns what JSON can say.
exports.handler = async (event, context) => ({
  message: `Hello, ${event?.name ?? "world"}!`,
  requestId: context.awsRequestId,
  remainingMs: context.getRemainingTimeInMillis(),
});
