// The mode, and the nodes.

import { at, count, duration, make, moment, name, show } from './page.js';

const NAMES = { normal: 'Normal', degraded: 'Degraded', silent: 'This gateway does not answer' };

const LATE_MS = 5_000; // two beats are missing

let mode = 'waiting';
let heardMs = 0;

/** Show what /v1/status said. */
export function took(status) {
  heardMs = Date.now();
  const lasting = duration(Date.now() - status.since_ms);
  turn(status.mode);
  show('mode-since', `since ${moment(status.since_ms)} (${lasting})${status.mode === 'normal' ? ': checks are answered from the store' : ''}`);
  const degraded = status.mode === 'degraded';
  show('processes', status.processes > 1 ? `one of ${status.processes} processes` : '');
  optional('mode-through', degraded ? through(status) : '');
  optional('mode-why', degraded ? `Because ${status.why}.` : '');
  optional('store', status.store === 'ok' ? '' : `Store ${status.store.replaceAll('_', ' ')}: ${status.store_why}`);
  nodes(status.nodes);
}

/** What degraded mode has cost so far. */
function through({ degraded_partitions: partitions, partitions: all, let_through: checks, uncounted, processes, degraded_processes: these }) {
  const who = processes > 1 ? `${these} of ${processes} processes of this gateway ${these > 1 ? 'are' : 'is'} degraded. ` : '';
  const where = partitions.length ? `Partitions let through: ${ranges(partitions)} of ${all}. ` : 'Every partition answers again: normal once that has lasted. ';
  const lost = uncounted ? `${count(uncounted)} of them could not be published and are in no count` : 'all of them were published and will be counted';
  return `${who}${where}${count(checks)} checks were let through; ${lost}.`;
}

/** Nobody answered. */
export function silent() {
  turn('silent');
  const known = heardMs ? `What is below is as of ${moment(heardMs)}.` : 'Nothing is known yet.';
  show('mode-since', `${known} Is the process running? It is asked again every second.`);
  for (const id of ['mode-through', 'mode-why', 'store']) optional(id, '');
}

function turn(to) {
  if (to === mode) return;
  const first = mode === 'waiting';
  mode = to;
  at('mode').dataset.mode = to;
  document.body.classList.toggle('stale', to === 'silent');
  show('mode-name', NAMES[to]);
  document.title = to === 'normal' ? 'Stoplog' : `${to === 'silent' ? 'No answer' : 'DEGRADED'} · Stoplog`;
  if (!first || to !== 'normal') show('announcement', `Mode: ${NAMES[to]}`);
}

function optional(id, text) {
  at(id).hidden = !text;
  show(id, text);
}

function nodes(all) {
  const workers = all.filter((node) => node.role === 'worker').length;
  show('nodes-count', all.length ? `${workers} worker${workers === 1 ? '' : 's'}, ${all.length - workers} gateway${all.length - workers === 1 ? '' : 's'}` : '');
  at('nodes-empty').hidden = all.length > 0;
  at('nodes').hidden = !all.length;
  at('node-rows').replaceChildren(...all.map(row));
}

function row(node) {
  const held = Object.entries(node.partitions);
  const lag = held.reduce((sum, [, partition]) => sum + partition.lag, 0);
  const states = Map.groupBy(held, ([, partition]) => partition.state);
  const told = [...states].map(([state, those]) => `${state} ${ranges(those.map(([number]) => Number(number)))}`).join('; ');
  return make(
    'tr', {},
    make('th', { scope: 'row' }, name(node.id)),
    cell('Role', node.role === 'worker' ? `worker, lane ${node.lane || 'a'}` : node.role),
    cell('Version', node.version),
    cell('Partitions', told || '–'),
    cell('Lag', held.length ? count(lag) : '–', 'number'),
    node.age_ms < LATE_MS ? cell('Heard', `${duration(node.age_ms)} ago`, 'number') : cell('Heard', `silent ${duration(node.age_ms)}`, 'number late'),
  );
}

/** 0–3, 7, 9–11. */
function ranges(numbers) {
  const runs = [];
  for (const number of numbers.sort((a, b) => a - b)) {
    if (runs.length && runs.at(-1).at(-1) === number - 1) runs.at(-1).push(number);
    else runs.push([number]);
  }
  return runs.map((run) => (run.length > 1 ? `${run[0]}–${run.at(-1)}` : `${run[0]}`)).join(', ');
}

const cell = (label, text, kind = '') => make('td', { 'data-label': label, class: kind }, text);
