// An evaluation on its way: how far it is and what it has to say, until its report is there.
import { fill, h, tried } from "./dom.js";
import { progress } from "./glass.js";
import { span, t } from "./i18n.js";
import { icon } from "./icons.js";
import { cancel, ended, jobs, stuck, waitingFor } from "./jobs.js";
import { logBox } from "./log.js";

/** The panel of one job; `update(event)` brings it to what the queue knows now. */
export function evaluationOnItsWay(id) {
  const head = h("div", { class: "stack" }),
    state = h("p", { "aria-live": "polite" }),
    log = logBox();
  let shape = null,
    bar = null;
  const drawHead = (job) => {
    bar = job.state === "running" ? progress(job) : null;
    fill(
      head,
      h("h2", {}, job.request?.name ?? job.title),
      state,
      bar,
      job.error ? h("p", { class: "bad" }, job.error.message) : null,
      stuck(job) ? h("p", { class: "note" }, t("noWorker")) : null,
      ended(job)
        ? null
        : h(
            "div",
            { class: "row" },
            h(
              "button",
              { type: "button", class: "cancel", onclick: () => tried(() => cancel(id)) },
              icon("close"),
              t("cancel"),
            ),
          ),
    );
  };
  return {
    element: h("div", { class: "stack" }, head, log.element),
    update(event = null) {
      const job = jobs.get(id);
      if (!job) return;
      const now = JSON.stringify([job.state, job.error, job.steps > 0, stuck(job)]);
      if (now !== shape) {
        shape = now;
        drawHead(job);
      }
      if (bar && job.steps) {
        bar.max = job.steps;
        bar.value = job.step;
      }
      state.textContent = [
        job.state === "queued" ? waitingFor(job.position) : t(job.state === "running" ? "measuring" : job.state),
        !ended(job) && job.eta != null && t("left", { time: span(job.eta) }),
      ]
        .filter(Boolean)
        .join(" · ");
      if (event?.message) log.add(event.message);
    },
  };
}
