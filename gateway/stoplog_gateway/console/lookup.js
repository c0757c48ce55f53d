// One client: looked up, its limits changed, its counters emptied.

import { call, query, Refused, segment, Silent } from './api.js';
import { at, count, duration, make, moment, name, show } from './page.js';

/** Who is shown: client, plan, resource. */
let shown = null;

/** Who was asked for last: an answer on another, which came late, is not shown. */
let latest = null;

/** Fill in the form and send it. */
export function lookUp(client) {
  at('client-id').value = client;
  at('plan').value = at('resource').value = '';
  at('lookup').requestSubmit();
}

at('lookup').addEventListener('submit', (event) => {
  event.preventDefault();
  const asked = { client: at('client-id').value, plan: at('plan').value, resource: at('resource').value };
  attempt(event.submitter, 'outcome', async () => {
    at('found').hidden = true;
    await look(asked);
    at('limits').value = '';
    at('found-title').focus();
    return '';
  });
});

at('refresh').addEventListener('click', (event) =>
  attempt(event.target, 'done', async () => {
    await look(shown);
    return 'Refreshed.';
  }));

at('change').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = at('limits').value.trim();
  const limits = text === 'unlimited' ? text : text.split(',').map((limit) => limit.trim());
  const who = shown;
  attempt(event.submitter, 'done', () => change(who, 'PUT', limitsOf(who), 'Limits saved', { limits }));
});

at('remove').addEventListener('click', (event) =>
  confirmed(
    'Remove its own limits?',
    'Its plan’s limits hold again, or the default ones. What it has spent stays counted.',
    'Remove limits',
    (who) => attempt(event.target, 'done', () => change(who, 'DELETE', limitsOf(who), 'Limits removed')),
  ));

at('reset').addEventListener('click', (event) =>
  confirmed(
    'Reset its counters?',
    'What it has spent is forgotten: it may spend its whole limit again at once.',
    'Reset counters',
    (who) => attempt(event.target, 'done', () => change(who, 'POST', countersOf(who), 'Counters reset')),
  ));

const limitsOf = ({ client, resource }) => `v1/limits/${segment(client)}${query({ resource })}`;
const countersOf = ({ client, resource }) => `v1/clients/${segment(client)}/reset${query({ resource })}`;

/** Change something of `who`; another one may have been looked up meanwhile. */
async function change(who, method, path, done, body) {
  const { applied } = await call(method, path, { body, token: at('token').value });
  const told = who === latest ? done : `${done} for ${who.client}`;
  if (!applied) return `${told}, but no worker has confirmed it yet.`;
  if (who === latest) await look(who);
  return `${told}.`;
}

async function look(asked) {
  latest = asked;
  const { client, plan, resource } = asked;
  const usage = await call('GET', `v1/clients/${segment(client)}/usage${query({ plan, resource })}`);
  if (asked !== latest) return;
  shown = asked;
  at('found-title').replaceChildren(name(client));
  at('found-policy').replaceChildren('Held to ', ...source(usage), `, as of ${moment(Date.now())}`);
  at('found-unlimited').hidden = usage.windows.length > 0;
  at('windows').hidden = !usage.windows.length;
  at('window-rows').replaceChildren(...usage.windows.map(row));
  // Nothing else is removed by this page than what is shown.
  at('remove').hidden = usage.held_to?.kind !== 'client' || (usage.held_to.resource ?? '') !== resource;
  at('found').hidden = false;
}

/** Whose limits these are, in words. */
function source({ held_to: held }) {
  if (held === null) return ['the built-in default'];
  const whose = { client: ['its own limits'], plan: ['those of plan ', name(held.id ?? '')], default: ['the default'] }[held.kind];
  return held.resource === null ? whose : [...whose, ' for resource ', name(held.resource)];
}

function row({ limit, used, reset_after_ms: resetMs }) {
  const [max, window] = limit.split('/');
  const most = Number(max);
  const bar = make('span', { class: 'bar', 'aria-hidden': 'true' });
  bar.style.setProperty('--share', most ? Math.min(1, used / most) : 1);
  bar.classList.toggle('full', used >= most);
  return make(
    'tr', {},
    make('th', { scope: 'row' }, most ? `${count(most)} per ${window}` : `blocked (${limit})`, bar),
    make('td', { class: 'number' }, count(used)),
    make('td', { class: 'number' }, count(Math.max(0, most - used))),
    make('td', { class: 'number' }, resetMs ? duration(resetMs) : '–'),
  );
}

/** Do what `button` asks for, once at a time, and tell in the element `where` how it went. */
async function attempt(button, where, work) {
  if (button?.getAttribute('aria-disabled') === 'true') return;
  button?.setAttribute('aria-disabled', 'true');
  for (const id of ['outcome', 'done']) tell(id, '', false);
  try {
    tell(where, await work(), false);
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Silent)) throw error;
    tell(where, `Not done: ${error.message}.`, true);
    if (error.status === 401) at('token').focus();
  } finally {
    button?.removeAttribute('aria-disabled');
  }
}

function tell(id, text, failed) {
  at(id).classList.toggle('failed', failed);
  show(id, text);
}

/** Ask first, and do it to who was shown then; Escape says no, and focus goes back to where it was. */
function confirmed(title, text, yes, work) {
  const who = shown;
  show('confirm-title', title);
  at('confirm-text').replaceChildren(name(shown.client), ...(shown.resource ? [', resource ', name(shown.resource)] : []), `: ${text}`);
  show('confirm-yes', yes);
  at('confirm-yes').onclick = () => {
    at('confirm').close();
    work(who);
  };
  at('confirm').showModal();
}

at('confirm-no').addEventListener('click', () => at('confirm').close());
