// Look up one client, change its limits, and reset its counters.

import { call, NoAnswer, query, Refused, segment } from './api.js';
import { byId, create, formatCount, formatDuration, formatTime, idElement, setText } from './page.js';

/** The client, plan and resource on display. */
let shown = null;

/** The latest lookup. A late answer to an earlier one is not shown. */
let latest = null;

/** Fill in the form and submit it. */
export function lookUp(client) {
  byId('client-id').value = client;
  byId('plan').value = byId('resource').value = '';
  byId('lookup').requestSubmit();
}

byId('lookup').addEventListener('submit', (event) => {
  event.preventDefault();
  const target = { client: byId('client-id').value, plan: byId('plan').value, resource: byId('resource').value };
  attempt(event.submitter, 'outcome', async () => {
    byId('found').hidden = true;
    await look(target);
    byId('limits').value = '';
    byId('found-title').focus();
    return '';
  });
});

byId('refresh').addEventListener('click', (event) =>
  attempt(event.target, 'done', async () => {
    await look(shown);
    return 'Refreshed.';
  }));

byId('change').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = byId('limits').value.trim();
  const limits = text === 'unlimited' ? text : text.split(',').map((limit) => limit.trim());
  const target = shown;
  attempt(event.submitter, 'done', () => change(target, 'PUT', limitsPath(target), 'Limits saved', { limits }));
});

byId('remove').addEventListener('click', (event) =>
  confirmed(
    'Delete the client’s own limits?',
    'The limits of its plan or the default limits will apply. Its usage stays counted.',
    'Delete limits',
    (target) => attempt(event.target, 'done', () => change(target, 'DELETE', limitsPath(target), 'Limits deleted')),
  ));

byId('reset').addEventListener('click', (event) =>
  confirmed(
    'Reset the client’s counters?',
    'Its usage is deleted, so it can use its whole limit again at once.',
    'Reset counters',
    (target) => attempt(event.target, 'done', () => change(target, 'POST', countersPath(target), 'Counters reset')),
  ));

const limitsPath = ({ client, resource }) => `v1/limits/${segment(client)}${query({ resource })}`;
const countersPath = ({ client, resource }) => `v1/clients/${segment(client)}/reset${query({ resource })}`;

/** Change limits or counters of `target`. The user can look up another client in the meantime. */
async function change(target, method, path, done, body) {
  const { applied } = await call(method, path, { body, token: byId('token').value });
  const message = target === latest ? done : `${done} for ${target.client}`;
  if (!applied) return `${message}, but no worker has confirmed it yet.`;
  if (target === latest) await look(target);
  return `${message}.`;
}

async function look(target) {
  latest = target;
  const { client, plan, resource } = target;
  const usage = await call('GET', `v1/clients/${segment(client)}/usage${query({ plan, resource })}`, { token: byId('token').value });
  if (target !== latest) return;
  shown = target;
  byId('found-title').replaceChildren(idElement(client));
  byId('found-policy').replaceChildren('Limits in effect: ', ...source(usage), `, as of ${formatTime(Date.now())}`);
  byId('found-unlimited').hidden = usage.windows.length > 0;
  byId('windows').hidden = !usage.windows.length;
  byId('window-rows').replaceChildren(...usage.windows.map(row));
  setText('holds', held(usage.holds));
  // Only the limits on display can be deleted.
  byId('remove').hidden = usage.held_to?.kind !== 'client' || (usage.held_to.resource ?? '') !== resource;
  byId('found').hidden = false;
}

/** Describe where the limits are stored. */
function source({ held_to: origin }) {
  if (origin === null) return ['the built-in default'];
  const text = { client: ['its own limits'], plan: ['the limits of plan ', idElement(origin.id ?? '')], default: ['the default limits'] }[origin.kind];
  return origin.resource === null ? text : [...text, ' for resource ', idElement(origin.resource)];
}

/** Show one limit: "100/minute", or "10 in flight". */
function row({ limit, used, held, reset_after_ms: resetMs }) {
  const [max, window] = limit.split('/');
  const most = parseInt(max, 10);
  const bar = create('span', { class: 'bar', 'aria-hidden': 'true' });
  bar.style.setProperty('--share', most ? Math.min(1, used / most) : 1);
  bar.classList.toggle('full', used >= most);
  const name = window === undefined ? `${formatCount(most)} in flight` : `${formatCount(most)} per ${window}`;
  const split = held && window !== undefined ? [create('span', { class: 'split' }, ` ${formatCount(held)} held`)] : [];
  return create(
    'tr', {},
    create('th', { scope: 'row' }, most ? name : `blocked (${limit})`, bar),
    create('td', { class: 'number' }, formatCount(used), ...split),
    create('td', { class: 'number' }, formatCount(Math.max(0, most - used))),
    create('td', { class: 'number' }, resetMs ? formatDuration(resetMs) : '–'),
  );
}

/** Describe what is held, as `stoplog usage` does. */
function held({ reservations, leases }) {
  const parts = [[reservations, 'reservation'], [leases, 'lease']].filter(([{ open }]) => open).map(([{ open, units, next_end_ms: endMs }, kind]) => {
    const [kinds, ends] = open === 1 ? [kind, 'it ends'] : [`${kind}s`, 'the next one ends'];
    return `${formatCount(open)} open ${kinds} with ${formatCount(units)} ${units === 1 ? 'unit' : 'units'}, ${ends} in ${formatDuration(endMs)}`;
  });
  return `Held: ${parts.join('; ') || 'nothing'}.`;
}

/** Run `work` for `button`, one at a time, and show the outcome in the element with the id `where`. */
async function attempt(button, where, work) {
  if (button?.getAttribute('aria-disabled') === 'true') return;
  button?.setAttribute('aria-disabled', 'true');
  for (const id of ['outcome', 'done']) showOutcome(id, '', false);
  try {
    showOutcome(where, await work(), false);
  } catch (error) {
    if (!(error instanceof Refused || error instanceof NoAnswer)) throw error;
    showOutcome(where, `Failed: ${error.message}.`, true);
    if (error.status === 401) byId('token').focus();
  } finally {
    button?.removeAttribute('aria-disabled');
  }
}

function showOutcome(id, text, failed) {
  byId(id).classList.toggle('failed', failed);
  setText(id, text);
}

/** Ask for confirmation, then run `work` for the client on display. Escape cancels, and the focus returns. */
function confirmed(title, text, yes, work) {
  const target = shown;
  setText('confirm-title', title);
  byId('confirm-text').replaceChildren(idElement(shown.client), ...(shown.resource ? [', resource ', idElement(shown.resource)] : []), `: ${text}`);
  setText('confirm-yes', yes);
  byId('confirm-yes').onclick = () => {
    byId('confirm').close();
    work(target);
  };
  byId('confirm').showModal();
}

byId('confirm-no').addEventListener('click', () => byId('confirm').close());
