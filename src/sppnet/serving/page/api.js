// Requests to the server: the token, what to do while its queue is full, and its errors.

const ATTEMPTS = 5;
let token = "";

/** An answer that is no success; `code` is the server's, or "unreachable". */
export class ApiError extends Error {
  constructor(code, message, wait) {
    super(message);
    this.code = code;
    this.wait = wait;
  }
}

export function setToken(text) {
  token = text;
}

/** What the server holds. While it is getting ready this waits, and tells `waiting` so. */
export async function getModel(waiting) {
  for (;;) {
    try {
      return await (await send("v1/model", {})).json();
    } catch (error) {
      if (error.code !== "not_ready") throw error;
      waiting(error.message);
      await pause(error.wait);
    }
  }
}

/** Post a form; fields that are undefined are left out. A full queue is asked again a few times, until `signal` aborts. */
export async function post(path, fields, signal) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value !== undefined) body.append(name, value);
  for (let attempt = 1; ; attempt++) {
    try {
      return await send(path, { method: "POST", body, signal });
    } catch (error) {
      if (error.code !== "queue_full" || attempt === ATTEMPTS) throw error;
      await pause(error.wait);
    }
  }
}

export const postJson = async (...asked) => (await post(...asked)).json();

async function send(path, options) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new ApiError("unreachable", "No answer: the server cannot be reached, or the file cannot be read.");
  }
  if (response.ok) return response;
  const wait = Number(response.headers.get("Retry-After")) || 1;
  const { code, message } = await response.json().catch(() => ({}));
  throw new ApiError(code ?? "unknown", message ?? `The server answered with status ${response.status}.`, wait);
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
