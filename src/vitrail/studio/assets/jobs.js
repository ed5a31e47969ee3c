// What runs: the list of jobs, and a stream for each that has not ended. After a reload it begins with the list
// of the server, so nothing is remembered here that could be lost.
import * as api from "./api.js";

export const jobs = new Map();
const streams = new Map();
const bus = new EventTarget();
const ENDED = new Set(["succeeded", "failed", "cancelled"]);
export const ended = (job) => ENDED.has(job.state);
export const onJob = (listener) => { bus.addEventListener("job", listener); return () => bus.removeEventListener("job", listener); };
const tell = (job, event) => bus.dispatchEvent(Object.assign(new Event("job"), { job, event }));

export function attach(job) {
  jobs.set(job.id, job);
  tell(job);
  if (ended(job) || streams.has(job.id)) return;
  const stream = api.eventsOf(job.id); // EventSource re-attaches by itself, with Last-Event-ID
  streams.set(job.id, stream);
  const take = (message) => {
    const event = JSON.parse(message.data);
    jobs.set(job.id, event.job);
    if (ended(event.job)) { stream.close(); streams.delete(job.id); }
    tell(event.job, event);
  };
  for (const type of ["message", "state", "progress", "preview", "picture", "log"]) stream.addEventListener(type, take);
}
export async function refresh() { for (const job of (await api.jobs()).reverse()) attach(job); }
export async function submit(request) { const job = await api.submit(request); attach(job); return job; }
addEventListener("pagehide", () => streams.forEach((stream) => stream.close()));
