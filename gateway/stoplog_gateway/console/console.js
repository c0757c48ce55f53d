// Request the gateway's state once a second while the page is visible, and show it.

import { call, NoAnswer, Refused } from './api.js';
import * as rejected from './rejected.js';
import * as status from './status.js';
import * as traffic from './traffic.js';

const INTERVAL_MS = 1_000;
const TIMEOUT_MS = 3_000;

let timer;

async function update() {
  const started = performance.now();
  try {
    // One after the other over one connection: if several processes share the port, the same one answers all three.
    status.show(await get('v1/status'));
    traffic.show(await get('v1/traffic'));
    await rejected.update(get);
  } catch (error) {
    if (!(error instanceof NoAnswer || error instanceof Refused)) throw error;
    status.showNoAnswer();
  } finally {
    schedule(INTERVAL_MS - (performance.now() - started));
  }
}

const get = (path, token) => call('GET', path, { token, timeout: TIMEOUT_MS });

function schedule(ms) {
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(update, Math.max(0, ms));
}

document.addEventListener('visibilitychange', () => schedule(0));
schedule(0);
