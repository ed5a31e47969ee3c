// One training: how far it is, its curves and samples, stop, go on, draw with it.
import * as api from "./api.js";
import { charts } from "./curves.js";
import { fill, h, toast, tried } from "./dom.js";
import { span, t, when } from "./i18n.js";
import { icon } from "./icons.js";
import { cancel, ended, jobs, onJob, submit } from "./jobs.js";
import { forgetModels } from "./shelf.js";

const AGAIN_MS = 4000;

/** A run by its id, or by its name while its folder is still to come (`run:NAME`). */
export function showRun(body, asked, drawList) {
  let gone = false,
    timer,
    drawn = null,
    place = null,
    name = asked.startsWith("run:") ? asked.slice(4) : null,
    id = name ? null : asked;
  const head = h("div", { class: "stack" }),
    curves = h("div", { class: "curves" }),
    grids = h("div", { class: "stack" }),
    log = h("div", { class: "log", role: "log", hidden: true });
  const recipe = h("details", {}, h("summary", {}, t("recipe")));
  fill(body, head, curves, grids, log, recipe);
  const names = { loss: t("loss"), images_per_second: t("speed"), learning_rate: t("learningRate") };
  const latestJob = () =>
    [...jobs.values()]
      .filter((job) => job.kind === "train" && job.request?.run === name)
      .sort((a, b) => b.created.localeCompare(a.created))[0];

  const draw = async () => {
    if (jobs.has(asked)) name = jobs.get(asked).request.run; // the queue names a job
    id = jobs.has(asked) || !id ? (await drawList()).find((one) => one.name === name)?.id : id;
    const run = id ? await api.run(id) : null;
    name = run?.name ?? name;
    const job = latestJob(),
      going = job && !ended(job);
    const stop = going
      ? h(
          "button",
          { type: "button", class: "cancel", onclick: () => tried(() => cancel(job.id)) },
          icon("pause"),
          t("stopRun"),
        )
      : null;
    if (!run)
      return fill(
        head,
        h("h2", {}, name ?? t("train")),
        h(
          "p",
          { class: job?.error ? "bad" : "" },
          job?.error?.message ?? t(job?.state === "running" ? "preparing" : (job?.state ?? "queued")),
        ),
        going ? h("progress", { "aria-label": name }) : null,
        stop,
      );
    fill(
      head,
      h(
        "div",
        { class: "row" },
        h("h2", {}, run.name),
        h(
          "span",
          { class: run.state === "finished" ? "badge here" : "badge" },
          t(`run_${going ? "running" : run.state}`),
        ),
      ),
      h(
        "p",
        { class: "note" },
        [run.kind.replaceAll("_", " "), run.source, when(run.changed * 1000)].filter(Boolean).join(" · "),
      ),
      h("progress", { max: 1, value: run.share, "aria-label": run.name }),
      h(
        "p",
        {},
        [
          t("seen", { n: run.images.toLocaleString() }),
          run.until && t("ofAll", { n: run.until.toLocaleString() }),
          run.seconds && span(run.seconds),
          going && job.eta != null && t("left", { time: span(job.eta) }),
        ]
          .filter(Boolean)
          .join(" · "),
      ),
      job?.error ? h("p", { class: "bad" }, job.error.message) : null,
      h(
        "div",
        { class: "row" },
        stop,
        run.state === "stopped" && !going
          ? h(
              "button",
              {
                type: "button",
                onclick: () =>
                  tried(async () => {
                    await submit({ kind: "train", run: run.name, recipe: run.recipe });
                    toast(t("started"));
                    await draw();
                  }),
              },
              icon("play"),
              t("resumeRun"),
            )
          : null,
        run.model
          ? h(
              "button",
              {
                type: "button",
                class: "main",
                onclick: () =>
                  tried(async () => {
                    const kept = await api.keepModel(run.id);
                    forgetModels();
                    location.hash = `create/${encodeURIComponent(kept.name)}`;
                  }),
              },
              icon("create"),
              t("tryModel"),
            )
          : null,
      ),
    );
    const key = JSON.stringify([run.images, run.samples.length]);
    if (key !== drawn) {
      drawn = key;
      charts(curves, run.figures, names);
      samples(run);
      fill(recipe, h("summary", {}, t("recipe")), h("pre", {}, run.recipe));
    }
    return undefined;
  };
  const samples = (run) => {
    if (!run.samples.length) return fill(grids);
    const last = run.samples.length - 1;
    if (place == null || place.end) place = { at: last, end: true };
    const image = h("img", { class: "sheet", alt: t("samples") }),
      out = h("output");
    const show = (at) => {
      image.src = api.runSample(run.id, run.samples[at]);
      out.textContent = t("seen", { n: Number(/\d+/.exec(run.samples[at])?.[0] ?? 0).toLocaleString() });
    };
    const range = h("input", {
      type: "range",
      min: 0,
      max: last,
      value: place.at,
      "aria-label": t("samples"),
      oninput: () => {
        place = { at: Number(range.value), end: Number(range.value) === last };
        show(place.at);
      },
    });
    show(Math.min(place.at, last));
    return fill(grids, h("div", { class: "label-row" }, h("h3", {}, t("samples")), out), last ? range : null, image);
  };
  const loop = async () => {
    if (gone) return;
    await tried(draw);
    timer = setTimeout(loop, AGAIN_MS);
  };
  loop();
  const stop = onJob((job, event) => {
    if (job.kind !== "train" || job.request?.run !== name) return;
    if (event?.message) {
      log.hidden = false;
      log.append(`${event.message}\n`);
      log.scrollTop = log.scrollHeight;
    }
    if (ended(job)) {
      forgetModels();
      tried(draw);
    }
  });
  return () => {
    gone = true;
    clearTimeout(timer);
    stop();
  };
}
