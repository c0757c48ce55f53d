// Request the gateway's state once a second while the page is visible, and show it.

import { call, NoAnswer, Refused } from './api.js';
import { byId } from './page.js';
import * as rejected from './rejected.js';
import * as status from './status.js';
import * as traffic from './traffic.js';

const INTERVAL_MS = 1_000;
const TIMEOUT_MS = 3_000;

let timer;

/** The token that was refused last. It is not sent again, because the gateway delays refusals. */
let refusedToken;

async function update() {
  const started = performance.now();
  const token = byId('token').value;
  if (token === refusedToken) return schedule(INTERVAL_MS);
  const get = (path) => call('GET', path, { token, timeout: TIMEOUT_MS });
  try {
    // One after the other over one connection: if several processes share the port, the same one answers all three.
    status.show(await get('v1/status'));
    traffic.show(await get('v1/traffic'));
    rejected.show(await get('v1/clients/rejected'));
    refusedToken = undefined;
  } catch (error) {
    if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
      refusedToken = token;
      status.showLocked(error.message);
      rejected.showLocked();
    } else if (error instanceof NoAnswer || error instanceof Refused) {
      status.showNoAnswer();
    } else {
      throw error;
    }
  } finally {
    schedule(INTERVAL_MS - (performance.now() - started));
  }
}

function schedule(ms) {
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(update, Math.max(0, ms));
}

document.addEventListener('visibilitychange', () => schedule(0));
schedule(0);
