// Access to the document, and formats. All data is shown as text, never as markup.

/** Return the element with `id`. */
export const byId = (id) => document.getElementById(id);

/** Set the text of the element with `id`. Equal text is left alone, so that screen readers do not repeat it. */
export function setText(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

/** Create an element with `attributes` as in HTML; `children` are texts or elements. */
export function create(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Show an id that an API caller chose: isolate its writing direction, and escape invisible characters. */
export const idElement = (id) =>
  create('bdi', { class: 'id' }, id.replace(/[\p{C}\p{Z}]/gu, (character) => (character === ' ' ? character : escaped(character))));

/** Escape as the command line does: \x1b, \u202e, \U000e0001. */
function escaped(character) {
  const code = character.codePointAt(0);
  const [mark, digits] = code < 0x100 ? ['x', 2] : code < 0x10000 ? ['u', 4] : ['U', 8];
  return `\\${mark}${code.toString(16).padStart(digits, '0')}`;
}

const noDecimals = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const oneDecimal = new Intl.NumberFormat('en', { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** Format a count: 12,345. */
export const formatCount = (number) => noDecimals.format(number);

/** Format a rate: 0, 0.3, 7.5, 1,234. */
export const formatRate = (number) => (number === 0 || number >= 100 ? noDecimals : oneDecimal).format(number);

/** Format a latency with up to three digits: 0.71 ms, 12 ms, 1.5 s. */
export function formatLatency(ms) {
  if (ms >= 1_000) return `${oneDecimal.format(ms / 1_000)} s`;
  return `${ms < 10 ? ms.toFixed(2) : noDecimals.format(ms)} ms`;
}

/** Format a duration with its two largest units: 43 s, 5 min 3 s, 2 h 5 min, 3 d 4 h. */
export function formatDuration(ms) {
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

/** Format a point in time: the time of day, preceded by the date unless it is today. */
export function formatTime(ms) {
  const date = new Date(ms);
  const time = date.toLocaleTimeString('en-GB');
  return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString('en-CA')} ${time}`;
}
