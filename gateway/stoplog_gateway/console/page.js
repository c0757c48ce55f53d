// The document, by its ids; whatever is shown is text, never markup.

/** The element of that id. */
export const at = (id) => document.getElementById(id);

/** Show `text` in the element of that id; touched only if it differs, so that nothing is read out again. */
export function show(id, text) {
  const element = at(id);
  if (element.textContent !== text) element.textContent = text;
}

/** An element with `children`, texts or elements; `attributes` as in HTML. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** An id that anybody may have chosen: as text, its direction kept to itself, with escapes for what cannot be seen. */
export const name = (id) => make('bdi', { class: 'id' }, id.replace(/[\p{C}\p{Z}]/gu, (sign) => (sign === ' ' ? sign : escaped(sign))));

/** As the command line writes it: \x1b, \u202e, \U000e0001. */
function escaped(sign) {
  const code = sign.codePointAt(0);
  const [mark, digits] = code < 0x100 ? ['x', 2] : code < 0x10000 ? ['u', 4] : ['U', 8];
  return `\\${mark}${code.toString(16).padStart(digits, '0')}`;
}

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const small = new Intl.NumberFormat('en', { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** 12,345. */
export const count = (number) => whole.format(number);

/** A rate: 0, 0.3, 7.5, 1,234. */
export const rate = (number) => (number === 0 || number >= 100 ? whole : small).format(number);

/** Milliseconds, to three places: 0.71 ms, 12 ms, 1.5 s. */
export function latency(ms) {
  if (ms >= 1_000) return `${small.format(ms / 1_000)} s`;
  return `${ms < 10 ? ms.toFixed(2) : whole.format(ms)} ms`;
}

/** How long, to the two largest units: 43 s, 5 min 3 s, 2 h 5 min, 3 d 4 h. */
export function duration(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1_000));
  const parts = [
    [Math.floor(seconds / 86_400), 'd'],
    [Math.floor(seconds / 3_600) % 24, 'h'],
    [Math.floor(seconds / 60) % 60, 'min'],
    [seconds % 60, 's'],
  ];
  const first = parts.findIndex(([number]) => number > 0);
  if (first < 0) return '0 s';
  const shown = parts.slice(first, first + 2).filter(([number]) => number > 0);
  return shown.map(([number, unit]) => `${number} ${unit}`).join(' ');
}

/** A moment: the time, and the date if it is not today's. */
export function moment(ms) {
  const date = new Date(ms);
  const time = date.toLocaleTimeString('en-GB');
  return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString('en-CA')} ${time}`;
}
