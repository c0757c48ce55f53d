// Requests to the gateway's JSON routes.

const TIMEOUT_MS = 10_000;

/** The gateway refused a request. `message` has cause and remedy; `status` is 401 if the token is missing or unknown. */
export class Refused extends Error {
  constructor(status, problem) {
    const { title = `status ${status}`, detail = '', remedy } = problem;
    super([detail || title, remedy].filter(Boolean).join('; '));
    this.status = status;
  }
}

/** The gateway did not answer. */
export class NoAnswer extends Error {}

/**
 * Send a request to the gateway that served this page.
 *
 * @param {string} method GET, PUT, POST or DELETE
 * @param {string} path without a leading slash; ids are escaped by `segment`
 * @param {{body?: object, token?: string, timeout?: number}} options timeout in ms
 * @returns {Promise<any>} the JSON of the response
 * @throws {Refused|NoAnswer}
 */
export async function call(method, path, { body, token, timeout = TIMEOUT_MS } = {}) {
  // A browser does not send such a header field, and its error would look like a gateway that does not answer.
  if (token && /[^ -~]/.test(token)) throw new Refused(401, { detail: 'the token is unknown' });
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
      signal: AbortSignal.timeout(timeout),
    });
    answer = await response.json();
  } catch (error) {
    throw new NoAnswer('the gateway does not answer', { cause: error });
  }
  if (!response.ok) throw new Refused(response.status, answer);
  return answer;
}

/** Return `id` as one segment of a path. */
export function segment(id) {
  if (id === '.' || id === '..') throw new Refused(0, { detail: 'a browser cannot request this id', remedy: 'use the command line' });
  return encodeURIComponent(id);
}

/** Return the query `?a=b` with the parameters that are not empty. */
export function query(parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value);
  return given.length ? `?${new URLSearchParams(given)}` : '';
}
