// Requests to the server, with token, error codes, and retries while the server starts or its queue is full.

const MAX_ATTEMPTS = 5;
let token = "";

/** An unsuccessful request; `code` is the server's error code, or "unreachable". */
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

/** Get the model description. While the server starts, pass its message to `onWaiting` and retry. */
export async function getModel(onWaiting) {
  for (;;) {
    try {
      return await (await send("v1/model", {})).json();
    } catch (error) {
      if (error.code !== "not_ready") throw error;
      onWaiting(error.message);
      await sleep(error.wait);
    }
  }
}

/** Post a form without its undefined fields. Retry a few times if the queue is full; `signal` aborts the request. */
export async function post(path, fields, signal) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value !== undefined) body.append(name, value);
  for (let attempt = 1; ; attempt++) {
    try {
      return await send(path, { method: "POST", body, signal });
    } catch (error) {
      if (error.code !== "queue_full" || attempt === MAX_ATTEMPTS) throw error;
      await sleep(error.wait);
    }
  }
}

export const postJson = async (...request) => (await post(...request)).json();

async function send(path, options) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new ApiError("unreachable", "The server cannot be reached, or the file cannot be read.");
  }
  if (response.ok) return response;
  const wait = Number(response.headers.get("Retry-After")) || 1;
  const { code, message } = await response.json().catch(() => ({}));
  throw new ApiError(code ?? "unknown", message ?? `The server responded with status ${response.status}.`, wait);
}

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
