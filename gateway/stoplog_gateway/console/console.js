// Asks the gateway once a second while the page is seen, and shows what it says.

import { call, Refused, Silent } from './api.js';
import * as rejected from './rejected.js';
import * as status from './status.js';
import * as traffic from './traffic.js';

const EVERY_MS = 1_000;
const PATIENCE_MS = 3_000;

let timer;

async function round() {
  const began = performance.now();
  try {
    // One after the other, over one connection: of several processes on the port one answers all three, for all.
    status.took(await ask('v1/status'));
    traffic.took(await ask('v1/traffic'));
    await rejected.round(ask);
  } catch (error) {
    if (!(error instanceof Silent || error instanceof Refused)) throw error;
    status.silent();
  } finally {
    schedule(EVERY_MS - (performance.now() - began));
  }
}

const ask = (path, token) => call('GET', path, { token, patience: PATIENCE_MS });

function schedule(ms) {
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(round, Math.max(0, ms));
}

document.addEventListener('visibilitychange', () => schedule(0));
schedule(0);
