// The list of the most rejected clients.

import { byId, create, formatCount, idElement, setText } from './page.js';
import { lookUp } from './lookup.js';

const SHORT_LIST = 8;

let showAll = false;
let shown = '';

/** Show that the gateway needs a token. */
export function showLocked() {
  for (const part of ['empty', 'table', 'more']) byId(`rejected-${part}`).hidden = true;
  byId('rejected-locked').hidden = false;
}

/** Show a response of /v1/clients/rejected. */
export function show({ gateway, items }) {
  setText('gateway', gateway);
  byId('rejected-locked').hidden = true;
  byId('rejected-empty').hidden = items.length > 0;
  byId('rejected-table').hidden = !items.length;
  byId('rejected-more').hidden = items.length <= SHORT_LIST;
  const visible = showAll ? items : items.slice(0, SHORT_LIST);
  const content = JSON.stringify(visible);
  if (content === shown) return;
  shown = content;
  const focused = document.activeElement?.dataset?.client;
  byId('rejected-rows').replaceChildren(...visible.map((item) => row(item, items[0].checks)));
  // The rows are new elements: return the focus to the same client.
  if (focused !== undefined) buttons().find((button) => button.dataset.client === focused)?.focus();
}

const buttons = () => [...byId('rejected-rows').querySelectorAll('button')];

function row({ client_id: client, checks, surplus }, most) {
  const button = create('button', { type: 'button', class: 'link', title: 'Look up this client' }, idElement(client));
  button.dataset.client = client;
  button.addEventListener('click', () => lookUp(client));
  const bar = create('span', { class: 'bar', 'aria-hidden': 'true' });
  bar.style.setProperty('--share', checks / most);
  const number = surplus ? `${formatCount(checks - surplus)} to ${formatCount(checks)}` : formatCount(checks);
  return create('tr', {}, create('td', {}, button, bar), create('td', { class: 'number' }, number));
}

byId('rejected-more').addEventListener('click', () => {
  showAll = !showAll;
  byId('rejected-more').setAttribute('aria-expanded', showAll);
  setText('rejected-more', showAll ? 'Show fewer' : 'Show all');
});
