// What runs. The list of the server is asked now and then, and streams tell the running jobs' progress: a few at
// most, because a browser opens only six connections to a server and a page of sixty jobs would use them all.
// Nothing is remembered here that a reload could lose.
import * as api from "./api.js";
import { kindName, lang, t } from "./i18n.js";

const POLL_SECONDS = { busy: 1.5, idle: 6, lost: 2 };
const RETRY_MS = [200, 400, 800, 1500];
const MOST_STREAMS = 3;

export const jobs = new Map();
const bus = new EventTarget();
const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const inChinese = new Map();
const streams = new Map(); // job's id -> what ends its stream
let timer = null;
/** Whether jobs wait and no worker is there, nor kept by the server, that would take them. */
export let unattended = false;

export const ended = (job) => ENDED.has(job.state);
export const waiting = () =>
  [...jobs.values()].filter((job) => job.state === "queued").sort((a, b) => (a.position ?? 0) - (b.position ?? 0));
export const running = () => [...jobs.values()].filter((job) => job.state === "running");

/** How a job waits, in words; `before`: how many are to be done first. */
export const waitingFor = (before) => (before ? t("queuedAt", { n: before }) : t("queued"));
/** Whether a job waits for a worker that nobody started. */
export const stuck = (job) => unattended && job.state === "queued";

/** What is done to a picture, by the name of its button. */
const EDITS = { edit: "redraw", vary: "variations", upscale: "enlarge", repair: "repair" };
function deed({ kind, request }) {
  if (kind === "inpaint") return t(Object.values(request.expand ?? {}).some(Boolean) ? "outpaint" : "inpaint");
  return EDITS[kind] ? t(EDITS[kind]) : kindName(kind);
}

/** What a job is called in the reader's language: its words, else what it does, and to which picture. */
export function titleOf(job) {
  const { prompt, picture, stops } = job.request ?? {};
  const words = stops?.map((stop) => stop.prompt).filter(Boolean);
  if (prompt) return job.title || prompt;
  if (words?.length) return `${kindName(job.kind)} · ${words.join(" → ")}`;
  if (!picture && !stops) return job.title || kindName(job.kind);
  // The page names a picture of the gallery so; it says nothing.
  return [deed(job), picture?.name !== "picture.png" && picture?.name].filter(Boolean).join(" · ");
}

/** Call `listener(job, event)` at every change; `event` is null where the list alone told it. */
export function onJob(listener) {
  const relay = ({ detail }) => listener(detail.job, detail.event);
  bus.addEventListener("job", relay);
  return () => bus.removeEventListener("job", relay);
}
/** Call `listener()` soon after jobs have more pictures. */
export function onPictures(listener) {
  // Counted, because a job that ends at once is told by the list alone, without an event for each picture.
  const counts = new Map([...jobs.values()].map((job) => [job.id, job.pictures.length]));
  let soon = null;
  const stop = onJob(({ id, pictures }) => {
    if ((counts.get(id) ?? 0) >= pictures.length) return;
    counts.set(id, pictures.length);
    soon ??= setTimeout(() => {
      soon = null;
      listener();
    }, 60);
  });
  return () => {
    stop();
    clearTimeout(soon);
  };
}
/** Call `listener()` when `unattended` has changed. */
export function onAttended(listener) {
  bus.addEventListener("attended", listener);
  return () => bus.removeEventListener("attended", listener);
}
/** Call `listener(true or false)` when the server is reached again or no longer. */
export function onConnection(listener) {
  bus.addEventListener("connection", ({ detail }) => listener(detail));
}

const told = (job, event = null) => bus.dispatchEvent(new CustomEvent("job", { detail: { job, event } }));

/** Why a job failed is kept in English; here it comes into the reader's language, once it is known in it. */
function translated(job) {
  const line = job.error?.message;
  if (!line || lang !== "zh") return job;
  if (!inChinese.has(line)) {
    inChinese.set(line, line);
    api.inChinese(line).then(
      ({ text }) => inChinese.set(line, text) && take(job),
      () => inChinese.delete(line),
    );
  }
  return { ...job, error: { ...job.error, message: inChinese.get(line) } };
}

function take(asTold, event = null) {
  const job = translated(asTold);
  const before = jobs.get(job.id);
  jobs.set(job.id, job);
  if (event || JSON.stringify(before) !== JSON.stringify(job)) told(job, event);
}

/** Ask for the list; streams and the next question follow from it. */
export async function refresh() {
  clearTimeout(timer);
  let lost = false;
  try {
    const found = await api.jobs();
    bus.dispatchEvent(new CustomEvent("connection", { detail: true }));
    const listed = new Set(found.map((job) => job.id));
    for (const job of found.toReversed()) take(job);
    // One that waited or ran and is no longer among the newest has ended meanwhile.
    for (const job of [...jobs.values()].filter((one) => !ended(one) && !listed.has(one.id)))
      take(await api.job(job.id));
    listen();
    await attend();
  } catch (error) {
    lost = error.offline;
    if (lost) bus.dispatchEvent(new CustomEvent("connection", { detail: false }));
  }
  const busy = [...jobs.values()].some((job) => !ended(job));
  if (!document.hidden) timer = setTimeout(refresh, 1000 * POLL_SECONDS[busy ? "busy" : lost ? "lost" : "idle"]);
}

async function attend() {
  const before = unattended;
  const { living, kept } = waiting().length && !running().length ? await api.workers() : {};
  unattended = living === 0 && kept === 0;
  if (before === unattended) return;
  bus.dispatchEvent(new Event("attended"));
  for (const job of waiting()) told(job);
}

function listen() {
  const wanted = new Set(
    [...running().toReversed(), ...waiting().slice(0, 1)].slice(0, MOST_STREAMS).map((job) => job.id),
  );
  for (const [id, stop] of streams)
    if (!wanted.has(id)) {
      stop.abort();
      streams.delete(id);
    }
  for (const id of wanted) {
    if (streams.has(id)) continue;
    const stop = new AbortController();
    streams.set(id, stop);
    follow(id, stop.signal);
  }
}

/** Read one job's events until it ends; a stream that breaks is taken up again where it was. */
async function follow(id, signal) {
  let last = "0",
    over = false;
  for (let failures = 0; !over && !signal.aborted; failures += 1) {
    try {
      const answer = await fetch(api.eventsOf(id), {
        signal,
        headers: { accept: "text/event-stream", "last-event-id": last },
      });
      if (answer.status === 404) break;
      if (!answer.ok) throw new Error(answer.statusText);
      for await (const event of readEvents(answer.body)) {
        failures = 0;
        last = event.id ?? last;
        if (!event.data) continue;
        const told = JSON.parse(event.data);
        take(told.job, told);
        over = ended(told.job);
        if (over) break;
      }
    } catch (error) {
      if (error.name === "AbortError") break;
    }
    if (!over && !signal.aborted)
      await new Promise((done) => setTimeout(done, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]));
  }
  if (streams.get(id)?.signal === signal) {
    streams.delete(id);
    refresh();
  }
}

/** The blocks of a text/event-stream as { id, data }. */
async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) yield eventOf(block);
    }
  } finally {
    reader.cancel().catch(() => {}); // it is closed already where the server ended it
  }
}

function eventOf(block) {
  const event = {};
  for (const line of block.split("\n")) {
    const [, name, text] = /^(\w+): ?(.*)$/.exec(line) ?? [];
    if (name === "data") event.data = event.data == null ? text : `${event.data}\n${text}`;
    else if (name) event[name] = text;
  }
  return event;
}

export async function submit(request) {
  const job = await api.submit(request);
  take(job);
  refresh();
  return job;
}
export async function cancel(id) {
  take(await api.cancel(id));
  refresh();
}
export async function move(id, before) {
  await api.move(id, before);
  await refresh();
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
  else {
    clearTimeout(timer);
    for (const stop of streams.values()) stop.abort();
    streams.clear();
  }
});
