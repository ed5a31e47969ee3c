// Evaluation: start one, read the reports, put their figures side by side.
import * as api from "./api.js";
import { chips, labelled, remembered, select } from "./controls.js";
import { short } from "./curves.js";
import { fill, h, toast, tried } from "./dom.js";
import { evaluationOnItsWay } from "./evaluate_run.js";
import { folderPicker, plainName } from "./folder.js";
import { rose } from "./glass.js";
import { EXAMPLES, lang, t, when } from "./i18n.js";
import { icon } from "./icons.js";
import { ended, jobs, onJob, submit } from "./jobs.js";
import { modelList } from "./shelf.js";

const SETS = new Set(["emoji", "fashion-mnist"]); // built sets go by their names

/** `chosen`: a report by its id, an evaluation by its job's id, "compare", or nothing for a new one. */
export function evaluateView(main, chosen) {
  const list = h("ul", { class: "runs" }),
    body = h("section", { class: "pane stack" });
  let shown = null,
    panel = null;
  const bodyFor = (found, reports, metrics) => {
    const now = found ? found.id : chosen === "compare" ? `compare ${reports.length}` : jobs.has(chosen) ? "job" : "";
    if (now === shown) return; // a form that is being filled in stays as it is
    shown = now;
    panel = null;
    if (found) showReport(body, found);
    else if (chosen === "compare") compareReports(body, reports, metrics);
    else if (now === "job") {
      panel = evaluationOnItsWay(chosen);
      fill(body, panel.element);
      panel.update();
    } else newEvaluation(body, reports);
  };
  const draw = () =>
    tried(async () => {
      const { reports, metrics } = await api.reports();
      const found = reports.find((one) => one.id === chosen) ?? byName(reports, await nameOf(chosen));
      fill(
        list,
        reports.map((one) =>
          h(
            "li",
            {},
            h(
              "a",
              { href: `#evaluate/${one.id}`, "aria-current": one === found ? "page" : null },
              h("b", {}, one.name),
              h(
                "small",
                {},
                [t("onPictures", { n: one.n }), one.created && when(one.created)].filter(Boolean).join(" · "),
              ),
            ),
          ),
        ),
        reports.length ? null : h("li", { class: "note" }, t("noReports")),
      );
      bodyFor(found, reports, metrics);
    });
  fill(
    main,
    h(
      "div",
      { class: "panes list" },
      h(
        "section",
        { class: "pane stack" },
        h("div", { class: "page-head" }, h("h2", {}, t("evaluate")), h("p", {}, t("evaluateHint"))),
        h(
          "div",
          { class: "row" },
          h("a", { class: "button main", href: "#evaluate" }, icon("plus"), t("newEvaluation")),
          h("a", { class: "button", href: "#evaluate/compare" }, icon("compare"), t("compareReports")),
        ),
        h("h3", {}, t("reports")),
        list,
      ),
      body,
    ),
  );
  draw();
  return onJob((job, event) => {
    if (job.kind !== "evaluate") return;
    if (job.id === chosen) {
      panel?.update(event);
      if (!shown) draw(); // after a reload the queue knows it later than the page
    }
    if (ended(job)) draw();
  });
}

/** The report of an evaluation that was asked for here: it was given a name that no other one has. */
const byName = (reports, name) => reports.find((one) => one.name === name);

/** What an evaluation calls its report; of one that the queue no longer lists, the server is asked. */
async function nameOf(id) {
  if (!id || id === "compare") return null;
  const job = jobs.get(id) ?? (await api.job(id).catch(() => null));
  return (job?.kind === "evaluate" && job.request?.name) || null;
}

function showReport(body, one) {
  const src = api.report(one.id);
  fill(
    body,
    h(
      "div",
      { class: "row" },
      h("h2", {}, one.name),
      h("a", { class: "button", href: src, target: "_blank", rel: "noopener" }, icon("enlarge"), t("ownTab")),
    ),
    h("iframe", { class: "report", src, title: one.name, sandbox: "allow-scripts" }),
  );
}

/** Every figure of every report; the best of a row is marked where "best" has a meaning. */
function compareReports(body, reports, metrics) {
  if (reports.length < 2)
    return fill(body, h("div", { class: "empty" }, rose({ share: 0.4 }).element, h("p", {}, t("needTwoReports"))));
  const chosen = new Set(reports.slice(0, 5).map((one) => one.id)),
    table = h("div", { class: "wide-table" });
  const draw = () => {
    const columns = reports.filter((one) => chosen.has(one.id));
    const names = Object.keys(metrics).filter((name) => columns.some((one) => one.metrics[name]));
    fill(
      table,
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", {}, t("metric")),
            columns.map((one) => h("th", { class: "n" }, h("a", { href: `#evaluate/${one.id}` }, one.name))),
          ),
        ),
        h(
          "tbody",
          {},
          names.map((name) => {
            const values = columns.map((one) => one.metrics[name]?.value ?? null),
              known = values.filter((value) => value != null);
            const best =
              known.length < 2 || metrics[name].better === "real"
                ? null
                : Math[metrics[name].better === "higher" ? "max" : "min"](...known);
            return h(
              "tr",
              {},
              h(
                "th",
                { scope: "row" },
                metrics[name][lang],
                " ",
                h("small", {}, { higher: "↑", lower: "↓", real: "≈" }[metrics[name].better]),
              ),
              columns.map((one, i) =>
                h(
                  "td",
                  { class: "n" },
                  values[i] == null ? "–" : h(values[i] === best ? "b" : "span", {}, short(values[i])),
                  one.metrics[name]?.ci95
                    ? h(
                        "small",
                        {},
                        ` ${one.metrics[name].ci95.map((end) => (end == null ? "?" : short(end))).join(" – ")}`,
                      )
                    : null,
                ),
              ),
            );
          }),
        ),
      ),
    );
  };
  fill(
    body,
    h("h2", {}, t("compareReports")),
    h("p", { class: "note" }, t("compareHint")),
    h(
      "div",
      { class: "row" },
      reports.map((one) =>
        h(
          "label",
          { class: "check" },
          h("input", {
            type: "checkbox",
            checked: chosen.has(one.id),
            onchange: (event) => {
              chosen[event.target.checked ? "add" : "delete"](one.id);
              draw();
            },
          }),
          one.name,
        ),
      ),
    ),
    table,
  );
  draw();
  return undefined;
}

/** A name for a report that none has yet, nor any evaluation that is still to come. */
function freeName(text, reports) {
  const plain = plainName(text);
  const taken = new Set([...reports.map((one) => one.name), ...[...jobs.values()].map((job) => job.request?.name)]);
  let name = plain;
  for (let number = 2; taken.has(name); number += 1) name = `${plain}-${number}`;
  return name;
}

/** The new evaluation as far as it is filled in, kept while the page is open; `prompts` null: the page's examples. */
const form = { what: "model", model: "default", seeds: 2, prompts: null, folder: "", against: "", limit: 500 };

function newEvaluation(body, reports) {
  const fields = h("div", { class: "stack" });
  const prompts = remembered("textarea", form, "prompts", {
    id: "prompts",
    rows: 6,
    value: form.prompts ?? EXAMPLES[lang].join("\n"),
  });
  const folder = folderPicker(
      t("folderToJudge"),
      () => {
        form.folder = folder.value();
      },
      form.folder,
    ),
    against = remembered("input", form, "against", { id: "against", placeholder: "emoji" });
  const limit = remembered("input", form, "limit", { id: "limit", type: "number", min: 2, max: 100000 });
  let models = [];
  const start = () =>
    tried(async () => {
      const request = { kind: "evaluate", language: lang, ...(limit.value && { limit: Number(limit.value) }) };
      const reference = against.value.trim();
      if (reference) request.against = SETS.has(reference) ? reference : await api.folderPath(reference);
      if (form.what === "model") {
        const lines = prompts.value
          .split("\n")
          .map((line) => line.trim())
          .filter(Boolean);
        if (!lines.length) return toast(t("needPrompts"), { bad: true });
        Object.assign(request, { model: form.model, prompts: lines, seeds: form.seeds });
      } else {
        if (!folder.value()) return toast(t("needFolder"), { bad: true });
        request.pictures = await api.folderPath(folder.value());
      }
      request.name = freeName(form.what === "model" ? form.model : folder.name(), reports);
      const job = await submit(request);
      toast(t("evaluationStarted"));
      location.hash = `evaluate/${job.id}`;
      return undefined;
    });
  const draw = () =>
    fill(
      fields,
      form.what === "model"
        ? [
            labelled(
              t("model"),
              select(
                models.map((one) => [one.name, one.name]),
                form.model,
                (name) => {
                  form.model = name;
                },
              ),
            ),
            labelled(t("prompts"), prompts),
            chips(
              t("perPrompt"),
              [1, 2, 4].map((n) => [n, String(n)]),
              form.seeds,
              (n) => {
                form.seeds = n;
              },
            ),
          ]
        : folder.element,
      labelled(t("against"), against, t("againstHint")),
      labelled(t("limit"), limit),
    );
  fill(
    body,
    h("h2", {}, t("newEvaluation")),
    chips(
      t("what"),
      [
        ["model", t("judgeModel")],
        ["folder", t("judgeFolder")],
      ],
      form.what,
      (what) => {
        form.what = what;
        draw();
      },
      { named: false },
    ),
    fields,
    h(
      "div",
      { class: "row" },
      h("button", { type: "button", class: "main", id: "go", onclick: start }, icon("evaluate"), t("run")),
    ),
  );
  tried(async () => {
    models = (await modelList()).filter((one) => one.here && !one.problem && one.draws);
    draw();
  });
  draw();
}
