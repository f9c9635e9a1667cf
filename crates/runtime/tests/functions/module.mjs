export const handler = async (event) => ({ esm: event, url: import.meta.url.endsWith('module.mjs') });
