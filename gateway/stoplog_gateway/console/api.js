// The gateway's JSON routes.

const PATIENCE_MS = 10_000;

/** The gateway refused: `message` says why and what would do; `status` is 401 where a token is missing or wrong. */
export class Refused extends Error {
  constructor(status, problem) {
    const { title = `status ${status}`, detail = '', remedy } = problem;
    super([detail || title, remedy].filter(Boolean).join('; '));
    this.status = status;
  }
}

/** The gateway did not answer at all. */
export class Silent extends Error {}

/**
 * Ask the gateway that this page came from.
 *
 * @param {string} method GET, PUT, POST or DELETE
 * @param {string} path without a leading slash, ids escaped by `segment`
 * @param {{body?: object, token?: string, patience?: number}} options
 * @returns {Promise<any>} the answer's JSON
 * @throws {Refused|Silent}
 */
export async function call(method, path, { body, token, patience = PATIENCE_MS } = {}) {
  // A browser would not send it, and that would look as if the gateway were silent.
  if (token && /[^ -~]/.test(token)) throw new Refused(401, { detail: 'the admin token is wrong' });
  const headers = {};
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  if (token) headers.Authorization = `Bearer ${token}`;
  let response, answer;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: 'no-store',
      signal: AbortSignal.timeout(patience),
    });
    answer = await response.json();
  } catch (error) {
    throw new Silent('the gateway does not answer', { cause: error });
  }
  if (!response.ok) throw new Refused(response.status, answer);
  return answer;
}

/** `id` as one segment of a path. */
export function segment(id) {
  if (id === '.' || id === '..') throw new Refused(0, { detail: 'a browser cannot ask for this id', remedy: 'use the command line' });
  return encodeURIComponent(id);
}

/** `?a=b` of those that are not empty. */
export function query(parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value);
  return given.length ? `?${new URLSearchParams(given)}` : '';
}
