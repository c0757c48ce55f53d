// The gateway's mode, and the nodes of the cluster.

import { byId, create, formatCount, formatDuration, formatTime, idElement, setText } from './page.js';

const MODE_NAMES = { normal: 'Normal', degraded: 'Degraded', silent: 'This gateway does not answer', locked: 'This page needs a token' };

const LATE_MS = 5_000; // two heartbeats are missing

let mode = 'waiting';
let answeredMs = 0;

/** Show a response of /v1/status. */
export function show(status) {
  answeredMs = Date.now();
  setMode(status.mode);
  const degraded = status.mode === 'degraded';
  const since = `since ${formatTime(status.since_ms)} (${formatDuration(Date.now() - status.since_ms)})`;
  setText('mode-since', degraded ? since : `${since}: the store answers checks`);
  setText('processes', status.processes > 1 ? `one of ${status.processes} processes` : '');
  setOptionalText('mode-through', degraded ? degradedText(status) : '');
  setOptionalText('mode-why', degraded ? `Cause: ${status.why}.` : '');
  setOptionalText('store', status.store === 'ok' ? '' : `Store ${status.store.replaceAll('_', ' ')}: ${status.store_why}`);
  showNodes(status.nodes);
}

/** Describe the effects of degraded mode so far. */
function degradedText({ degraded_partitions: partitions, partitions: total, let_through: checks, uncounted, failed_closed: closed, processes, degraded_processes: affected }) {
  const where = processes > 1 ? `${affected} of ${processes} processes of this gateway ${affected > 1 ? 'are' : 'is'} degraded. ` : '';
  const open = partitions.length
    ? `Partitions that fail open: ${ranges(partitions)} of ${total}. `
    : 'Every partition answers again. The mode becomes normal after a short wait. ';
  const lost = uncounted ? `${formatCount(uncounted)} of them could not be published and are not counted` : 'all of them were published and will be counted';
  const denied = closed ? `, ${formatCount(closed)} failed closed` : '';
  return `${where}${open}${formatCount(checks)} checks failed open${denied}; ${lost}.`;
}

/** Show that the gateway does not answer. */
export function showNoAnswer() {
  setMode('silent');
  const age = answeredMs ? `The values below are as of ${formatTime(answeredMs)}.` : 'There are no values yet.';
  setText('mode-since', `${age} Is the process running? This page retries every second.`);
  for (const id of ['mode-through', 'mode-why', 'store']) setOptionalText(id, '');
}

/** Show that the gateway refuses the token, or the lack of one. */
export function showLocked(why) {
  setMode('locked');
  setText('mode-since', `${why}.`);
  for (const id of ['mode-through', 'mode-why', 'store']) setOptionalText(id, '');
}

function setMode(next) {
  if (next === mode) return;
  const first = mode === 'waiting';
  mode = next;
  byId('mode').dataset.mode = next;
  document.body.classList.toggle('stale', next === 'silent');
  setText('mode-name', MODE_NAMES[next]);
  const title = { normal: '', degraded: 'DEGRADED · ', silent: 'No answer · ', locked: '' }[next];
  document.title = `${title}Stoplog`;
  if (!first || next !== 'normal') setText('announcement', `Mode: ${MODE_NAMES[next]}`);
}

function setOptionalText(id, text) {
  byId(id).hidden = !text;
  setText(id, text);
}

function showNodes(nodes) {
  const workers = nodes.filter((node) => node.role === 'worker').length;
  const gateways = nodes.length - workers;
  setText('nodes-count', nodes.length ? `${workers} worker${workers === 1 ? '' : 's'}, ${gateways} gateway${gateways === 1 ? '' : 's'}` : '');
  byId('nodes-empty').hidden = nodes.length > 0;
  byId('nodes').hidden = !nodes.length;
  byId('node-rows').replaceChildren(...nodes.map(row));
}

function row(node) {
  const partitions = Object.entries(node.partitions);
  const lag = partitions.reduce((sum, [, partition]) => sum + partition.lag, 0);
  const byState = Map.groupBy(partitions, ([, partition]) => partition.state);
  const states = [...byState].map(([state, group]) => `${state} ${ranges(group.map(([number]) => Number(number)))}`).join('; ');
  return create(
    'tr', {},
    create('th', { scope: 'row' }, idElement(node.id)),
    cell('Role', node.role === 'worker' ? `worker, lane ${node.lane || 'a'}` : node.role),
    cell('Version', node.version),
    cell('Partitions', states || '–'),
    cell('Lag', partitions.length ? formatCount(lag) : '–', 'number'),
    node.age_ms < LATE_MS
      ? cell('Heartbeat', `${formatDuration(node.age_ms)} ago`, 'number')
      : cell('Heartbeat', `silent ${formatDuration(node.age_ms)}`, 'number late'),
  );
}

/** Format numbers as ranges: 0–3, 7, 9–11. */
function ranges(numbers) {
  const runs = [];
  for (const number of numbers.sort((a, b) => a - b)) {
    if (runs.length && runs.at(-1).at(-1) === number - 1) runs.at(-1).push(number);
    else runs.push([number]);
  }
  return runs.map((run) => (run.length > 1 ? `${run[0]}–${run.at(-1)}` : `${run[0]}`)).join(', ');
}

const cell = (label, text, kind = '') => create('td', { 'data-label': label, class: kind }, text);
