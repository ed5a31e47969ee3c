// The only place that knows addresses of the server.
async function call(path, options = {}) {
  let answer;
  try { answer = await fetch(path, options); } catch { throw new Error("the server cannot be reached / 无法连接服务器"); }
  const body = (answer.headers.get("content-type") ?? "").includes("json") ? await answer.json() : null;
  if (!answer.ok) {
    const why = body?.message ?? body?.error?.message ?? body?.error ?? body?.detail;
    throw new Error(typeof why === "string" ? why : `${answer.status} ${answer.statusText}`);
  }
  return body;
}
const json = (method, body) => ({ method, headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
const at = (id) => encodeURIComponent(id);

export const submit = (request) =>
  call("/api/jobs", { ...json("POST", request), headers: { "content-type": "application/json", "idempotency-key": crypto.randomUUID() } });
export const jobs = async () => { const found = await call("/api/jobs?limit=40"); return Array.isArray(found) ? found : found.jobs; };
export const cancel = (id) => call(`/api/jobs/${at(id)}/cancel`, json("POST", {}));
export const move = (id, before) => call(`/api/jobs/${at(id)}/move`, json("POST", { before }));
export const preview = (id, step) => `/api/jobs/${at(id)}/preview?step=${step}`;
export const eventsOf = (id) => new EventSource(`/api/jobs/${at(id)}/events`);
export const file = (id) => `/api/pictures/${at(id)}/file`;
export const thumbnail = (id) => `/api/pictures/${at(id)}/thumbnail`;
export const picture = (id) => call(`/api/pictures/${at(id)}`);
export const pictures = (query) => call(`/api/pictures?${new URLSearchParams(query)}`);
export const favourite = (id, favourite) => call(`/api/pictures/${at(id)}/favourite`, json("POST", { favourite }));
export const remove = (id) => call(`/api/pictures/${at(id)}`, { method: "DELETE", headers: { "content-type": "application/json" } });
export const form = () => call("/api/studio/form");
export const models = () => call("/api/studio/models");
export const settingsOf = (blob) => call("/api/studio/settings", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: blob });
export const vote = (body) => call("/api/studio/votes", json("POST", body));
export const scores = () => call("/api/studio/scores");

/** A file of a request: its name and content. */
export async function fileRef(blob, name) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return { name, data: btoa(text) };
}
export const fetchBlob = async (id) => (await fetch(file(id))).blob();
