// Turn the counts of each second into rates, latencies and the chart.

import { byId, formatCount, formatLatency, formatRate, setText } from './page.js';

const MINUTE_MS = 60_000;
const SHOWN_MS = 5 * MINUTE_MS;
const AVERAGE_MS = 10_000;
const GAP_MS = 3_500; // the chart has a gap here: the page was hidden, or the gateway did not answer
const KINDS = ['allowed', 'rejected', 'degraded'];
const WIDTH = 300;
const HEIGHT = 100;

/** Responses, oldest first; cleared when the gateway restarts. */
let samples = [];

/** Show a response of /v1/traffic. */
export function show(sample) {
  const last = samples.at(-1);
  if (last && (sample.received < last.received || sample.at_ms < last.at_ms)) samples = [];
  if (last && sample.at_ms === last.at_ms) return;
  samples.push(sample);
  while (samples[0].at_ms < sample.at_ms - SHOWN_MS - AVERAGE_MS) samples.shift();
  showFigures(sample);
  showChart(sample.at_ms);
}

function showFigures(now) {
  const before = samples.find((sample) => sample.at_ms >= now.at_ms - AVERAGE_MS - 500);
  const seconds = (now.at_ms - before.at_ms) / 1_000;
  for (const kind of KINDS) {
    setText(`${kind}-rate`, seconds > 0 ? formatRate((now[kind] - before[kind]) / seconds) : '–');
    setText(kind, formatCount(now[kind]));
  }
  setText('median', quantile(0.5, before.latency, now.latency));
  setText('p99', quantile(0.99, before.latency, now.latency));
  setText('in-flight', formatCount(now.in_flight));
}

/** Return the quantile `q` of the latencies between two samples, interpolated within its bucket. */
function quantile(q, before, now) {
  const checks = now.map((bucket, i) => bucket.checks - (before[i]?.checks ?? 0));
  const wanted = q * checks.at(-1);
  if (!wanted) return '–';
  const i = checks.findIndex((number) => number >= wanted);
  const [below, from] = i > 0 ? [checks[i - 1], now[i - 1].le_ms] : [0, 0];
  const to = now[i].le_ms;
  if (to === null) return `over ${formatLatency(from)}`;
  return formatLatency(from + ((to - from) * (wanted - below)) / (checks[i] - below));
}

function showChart(nowMs) {
  // Start with one minute, so that the chart is not mostly empty at first.
  const minutes = Math.min(SHOWN_MS / MINUTE_MS, Math.ceil((nowMs - samples[0].at_ms + 1) / MINUTE_MS));
  const points = [];
  for (let i = 1; i < samples.length; i++) {
    const [before, after] = [samples[i - 1], samples[i]];
    const ms = after.at_ms - before.at_ms;
    const point = { x: WIDTH * (1 - (nowMs - after.at_ms) / (minutes * MINUTE_MS)), gap: ms > GAP_MS };
    for (const kind of KINDS) point[kind] = ((after[kind] - before[kind]) * 1_000) / ms;
    if (point.x >= 0) points.push(point);
  }
  byId('chart-empty').hidden = points.length > 1;
  const top = ceiling(Math.max(...points.flatMap((point) => KINDS.map((kind) => point[kind])), 0));
  setText('x-first', `${minutes} min ago`);
  setText('y-top', formatRate(top));
  setText('y-half', formatRate(top / 2));
  for (const kind of KINDS) byId(`line-${kind}`).setAttribute('d', line(points, kind, top));
  byId('area').setAttribute('d', area(points, top));
  const peaks = KINDS.map((kind) => formatRate(Math.max(...points.map((point) => point[kind]), 0)));
  const label = `Checks per second, last ${minutes} min: at most ${peaks[0]} allowed, ${peaks[1]} rejected, ${peaks[2]} failed open`;
  if (byId('chart').getAttribute('aria-label') !== label) byId('chart').setAttribute('aria-label', label);
}

/** Return the smallest of 2, 3, 4, 6, 8, 10, 20, 30 … that is at least `most`. */
function ceiling(most) {
  const unit = 10 ** Math.max(0, Math.floor(Math.log10(Math.max(most, 1))));
  return Math.max(2, [1, 2, 3, 4, 6, 8, 10].map((step) => step * unit).find((step) => step >= most));
}

const y = (value, top) => (HEIGHT - 0.5 - (value / top) * (HEIGHT - 1)).toFixed(2);

function line(points, kind, top) {
  return points.map((point, i) => `${i && !point.gap ? 'L' : 'M'}${point.x.toFixed(2)} ${y(point[kind], top)}`).join('');
}

function area(points, top) {
  const runs = [];
  for (const point of points) point.gap || !runs.length ? runs.push([point]) : runs.at(-1).push(point);
  return runs
    .map((run) => `M${run[0].x.toFixed(2)} ${HEIGHT}L${line(run, 'allowed', top).slice(1)}L${run.at(-1).x.toFixed(2)} ${HEIGHT}Z`)
    .join('');
}
