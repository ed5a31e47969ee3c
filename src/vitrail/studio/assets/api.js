// The only place that knows addresses of the server.
import { lang, t } from "./i18n.js";

/** Of the page that is being opened: `now` while it asks for what it shows first, `failed` if it could not be asked. */
export const opening = { now: false, failed: false };

async function call(path, options = {}) {
  const first = opening.now;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { "accept-language": lang, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    opening.failed ||= first;
    throw Object.assign(new Error(t("unreachable")), { offline: true });
  }
  const isJson = (answer.headers.get("content-type") ?? "").includes("json");
  const body = isJson ? await answer.json() : null;
  if (!answer.ok) {
    const why = body?.error?.message ?? body?.message ?? body?.error ?? body?.detail;
    throw Object.assign(new Error(typeof why === "string" ? why : `${answer.status} ${answer.statusText}`), {
      status: answer.status,
    });
  }
  return body;
}

const JSON_TYPE = { "content-type": "application/json" };
const post = (path, body = {}, headers = {}) =>
  call(path, { method: "POST", headers: { ...JSON_TYPE, ...headers }, body: JSON.stringify(body) });
const at = encodeURIComponent;

// Jobs
export const submit = (request) => post("/api/jobs", request, { "idempotency-key": crypto.randomUUID() });
export async function jobs(limit = 60) {
  const found = await call(`/api/jobs?limit=${limit}`);
  return Array.isArray(found) ? found : found.jobs;
}
export const job = (id) => call(`/api/jobs/${at(id)}`);
export const cancel = (id) => post(`/api/jobs/${at(id)}/cancel`);
export const move = (id, before) => post(`/api/jobs/${at(id)}/move`, { before });
export const preview = (id, number) => `/api/jobs/${at(id)}/preview?step=${number}`;
export const workers = () => call(studio("workers"));
export const eventsOf = (id) => `/api/jobs/${at(id)}/events`;

// Pictures
export const file = (id) => `/api/pictures/${at(id)}/file`;
export const thumbnail = (id) => `/api/pictures/${at(id)}/thumbnail`;
export const picture = (id) => call(`/api/pictures/${at(id)}`);
export const pictures = (query) => call(`/api/pictures?${new URLSearchParams(query)}`);
export const favourite = (id, value) => post(`/api/pictures/${at(id)}/favourite`, { favourite: value });
export const remove = (id) =>
  call(`/api/pictures/${at(id)}`, { method: "DELETE", headers: JSON_TYPE, keepalive: true });
export async function fetchBlob(id) {
  const answer = await fetch(file(id));
  if (!answer.ok) throw new Error(t("fileGone"));
  return answer.blob();
}

// What only this page asks for
const studio = (path) => `/api/studio/${path}`;
export const form = () => call(studio("form"));
export const models = () => call(studio("models"));
export const pullModel = (name) => post(studio("models/pull"), { name });
export const removeModel = (name) => post(studio("models/remove"), { name });
export const inChinese = (text) => post(studio("chinese"), { text });
export const settingsOf = (blob) =>
  call(studio("settings"), { method: "POST", headers: { "content-type": "application/octet-stream" }, body: blob });
export const vote = (body) => post(studio("votes"), body);
export const scores = (by) => call(studio(`scores?by=${at(by)}`));
export const scoresCsv = (by) => studio(`scores.csv?by=${at(by)}`);
export const folders = () => call(studio("folders"));
export const newFolder = (name) => post(studio("folders"), { name });
export const addToFolder = (id, name, blob) =>
  call(studio(`folders/${at(id)}/files?name=${at(name)}`), {
    method: "POST",
    headers: { "content-type": "application/octet-stream" },
    body: blob,
  });
export const folderPath = async (folder) => (await post(studio("folders/path"), { folder })).path;
export const inspect = (folder) => post(studio("inspections"), { folder });
export const inspection = (id) => call(studio(`inspections/${at(id)}`));
export const inspectionSheet = (id) => studio(`inspections/${at(id)}/sheet`);
export const recipes = () => call(studio("recipes"));
export const runs = () => call(studio("runs"));
export const run = (id) => call(studio(`runs/${at(id)}`));
export const keepModel = (id) => post(studio(`runs/${at(id)}/keep`));
export const runSample = (id, name) => studio(`runs/${at(id)}/samples/${at(name)}`);
export const reports = () => call(studio("reports"));
export const report = (id) => studio(`reports/${at(id)}/page?language=${lang}`);
export const codebook = (model) => call(studio(`codebook?model=${at(model)}`));
export const codebookSheet = (model, digest) => studio(`codebook/sheet?model=${at(model)}&v=${at(digest)}`);

/** A file of a request: its name and content. */
export async function fileRef(blob, name) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return { name, data: btoa(text) };
}
