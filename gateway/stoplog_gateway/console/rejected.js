// Who is rejected most.

import { Refused } from './api.js';
import { at, count, make, name, show } from './page.js';
import { lookUp } from './lookup.js';

const FEW = 8;

let all = false;
let shown = '';
let refused;

/**
 * Ask who is rejected most, and show it, or why not: all else on the page stays as it is.
 *
 * A token that was refused, or that there is none, is not said twice.
 */
export async function round(ask) {
  const token = at('token').value;
  if (token === refused) return;
  try {
    took(await ask('v1/clients/rejected', token));
    refused = undefined;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    const locked = error.status === 401;
    if (locked || error.status === 403) refused = token;
    for (const part of ['empty', 'table', 'more']) at(`rejected-${part}`).hidden = true;
    at('rejected-locked').hidden = !locked;
    at('rejected-refused').hidden = locked;
    show('rejected-refused', error.message);
  }
}

function took({ gateway, items }) {
  show('gateway', gateway);
  at('rejected-locked').hidden = at('rejected-refused').hidden = true;
  at('rejected-empty').hidden = items.length > 0;
  at('rejected-table').hidden = !items.length;
  at('rejected-more').hidden = items.length <= FEW;
  const some = all ? items : items.slice(0, FEW);
  const now = JSON.stringify(some);
  if (now === shown) return;
  shown = now;
  const focused = document.activeElement?.dataset?.client;
  at('rejected-rows').replaceChildren(...some.map((item) => row(item, items[0].checks)));
  // The rows are new ones: whoever was on one of them stays on that client.
  if (focused !== undefined) buttons().find((button) => button.dataset.client === focused)?.focus();
}

const buttons = () => [...at('rejected-rows').querySelectorAll('button')];

function row({ client_id: client, checks, surplus }, most) {
  const button = make('button', { type: 'button', class: 'link', title: 'Look this client up' }, name(client));
  button.dataset.client = client;
  button.addEventListener('click', () => lookUp(client));
  const bar = make('span', { class: 'bar', 'aria-hidden': 'true' });
  bar.style.setProperty('--share', checks / most);
  const exact = surplus ? `${count(checks - surplus)} to ${count(checks)}` : count(checks);
  return make('tr', {}, make('td', {}, button, bar), make('td', { class: 'number' }, exact));
}

at('rejected-more').addEventListener('click', () => {
  all = !all;
  at('rejected-more').setAttribute('aria-expanded', all);
  show('rejected-more', all ? 'Show fewer' : 'Show all');
});
