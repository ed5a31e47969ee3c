// Edit: one picture, six things to do with it, a brush where one is needed, and before against after.
import * as api from "./api.js";
import { paintable } from "./brush.js";
import { brushTools } from "./brush_tools.js";
import { comparison } from "./compare.js";
import { chips, labelled, select } from "./controls.js";
import { fill, h, kept, toast, tried } from "./dom.js";
import { edges, MODES, percent, requestOf } from "./edit_modes.js";
import { missing } from "./fetching.js";
import { pickFromGallery } from "./gallery.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { submit, titleOf } from "./jobs.js";
import { actions, image } from "./picture.js";
import { modelList } from "./shelf.js";
import { stage } from "./stage.js";

const UNTOUCHED = {
  prompt: "",
  model: null,
  n: 1,
  strength: 0.6,
  amount: 0.3,
  scale: 4,
  expand: { left: 32, right: 32, top: 0, bottom: 0 },
};
/**
 * What lies on the table, kept while the page is open: another view or the other language takes away neither words
 * nor strokes. A reload leaves the words, and the picture if it is one of the gallery (`id`).
 */
let table = null;
const laid = () => ({ mode: "redraw", form: structuredClone(UNTOUCHED), ...kept.get("table", sessionStorage) });

export function editView(main, id, asked) {
  table ??= laid();
  const { form } = table;
  if (id) table.mode = MODES[asked] ? asked : "redraw";
  let { mode, blob = null, paint = null } = table,
    gone = false,
    models = [],
    sending = false,
    notice = null, // of the model that is missing, kept while the panel is drawn again
    made = null;
  const panel = h("form", {
    class: "pane form",
    onsubmit: (event) => {
      event.preventDefault();
      start();
    },
  });
  const tabs = h("div", { class: "row", role: "tablist" });
  const place = h("div", { class: "result-of" });
  const shown = stage({
    title: t("choose"),
    hint: t("dropHere"),
    remember: "edited",
    done: (job) => {
      made = job;
      showMade();
    },
    back: () =>
      paint &&
      h(
        "button",
        {
          type: "button",
          onclick: () => {
            shown.release();
            show("input");
          },
        },
        icon("undo"),
        t("backToPicture"),
      ),
  });
  const store = () => kept.set("table", { mode, form, id: table.id }, sessionStorage);

  /** Lay a picture on the table; `from`: its id where it is one of the gallery. */
  const lay = async (found, from) => {
    const next = await paintable(found);
    paint?.stop();
    [blob, paint] = [found, next];
    Object.assign(table, { blob, paint, id: from });
    store();
    if (!gone) paint.listen(tools.update);
  };
  const begin = () => {
    made = null;
    shown.release();
    draw();
    show("input");
    scrollTo(0, 0); // on a phone the picture lies there, and the button that took it may not
  };
  const take = (found, from = null) =>
    tried(async () => {
      await lay(found, from);
      begin();
    });
  const takeOf = (picture) => tried(async () => take(await api.fetchBlob(picture), picture));
  const pick = () => pickFromGallery((picture) => takeOf(picture.id));
  const file = h("input", {
    type: "file",
    id: "file",
    class: "unseen",
    accept: "image/png,image/jpeg,image/webp",
    onchange: () => file.files[0] && take(file.files[0]),
  });

  const showMade = () => {
    const reshaped = Object.values(made.request?.expand ?? {}).some(Boolean);
    show(reshaped || made.pictures.length > 1 || !blob ? "result" : "both");
  };
  const show = (what) => {
    const result = made?.pictures[0];
    fill(
      tabs,
      result
        ? ["input", "result", "both"].map((one) =>
            h(
              "button",
              {
                type: "button",
                role: "tab",
                "aria-selected": String(one === what),
                "aria-pressed": String(one === what),
                onclick: () => show(one),
              },
              t({ input: "showInput", result: "showResult", both: "showBoth" }[one]),
            ),
          )
        : null,
    );
    const before = () =>
      comparison(
        { src: URL.createObjectURL(blob), label: t("before") },
        { src: api.file(result.id), label: t("after") },
        { cut: MODES[mode].brush ? paint.middle() : 0.5 }, // what was painted over is seen on both sides
      );
    if (what === "input" || !result) fill(place, paint ? paint.element : null);
    else if (what === "both" && blob) fill(place, before());
    else
      fill(
        place,
        made.pictures.map((picture) =>
          image({ ...picture, prompt: titleOf(made) }, { most: made.pictures.length > 1 ? 256 : 512 }),
        ),
      );
    if (result && what !== "input") {
      place.append(
        h(
          "div",
          { class: "row" },
          h(
            "button",
            { type: "button", onclick: () => takeOf(result.id) },
            icon("input"),
            t("goOnWith"),
          ),
        ),
        actions({ ...result, kind: made.kind }, { input: false }),
      );
    }
    fill(shown.element, h("div", { class: "result-of" }, tabs, place));
  };

  const tools = brushTools(() => paint);
  let go = null;
  /** What the button says: a large picture takes a while to be sent. */
  const tell = (words) => {
    go.lastChild.textContent = t(words);
    go.setAttribute("aria-busy", String(words !== "run"));
  };
  const start = () =>
    tried(async () => {
      store();
      if (!blob) return toast(t("needPicture"), { bad: true });
      const { brush: brushed } = MODES[mode],
        painted = brushed && paint.painted();
      if (brushed && mode !== "redraw" && !painted) return toast(t("paintFirst"), { bad: true });
      if (mode === "outpaint" && !Object.values(form.expand).some(Boolean))
        return toast(t("extendFirst"), { bad: true });
      if (sending) return undefined; // a second press while a large picture is on its way
      sending = true;
      tell("sendingPicture");
      try {
        const picture = await api.fileRef(blob, blob.name ?? "picture.png");
        const mask = painted ? await api.fileRef(await paint.mask(), "mask.png") : null;
        made = null;
        shown.follow(await submit(requestOf(mode, form, picture, mask)));
      } finally {
        sending = false;
        tell("run");
      }
      return undefined;
    });

  const draw = () => {
    const { brush: brushed, words, count, needs, models: fits } = MODES[mode];
    const usable = models.filter(fits);
    form.model =
      (
        usable.find((one) => one.name === form.model) ??
        usable.find((one) => one.name === (needs ?? "default")) ??
        usable[0]
      )?.name ?? null;
    const lacking = models.length && needs && !usable.length && models.find((one) => one.name === needs && !one.here);
    if (notice?.name !== lacking?.name) {
      notice?.stop();
      notice = lacking ? { name: lacking.name, ...missing(lacking, look) } : null;
    }
    paint?.set({ on: Boolean(brushed) });
    go = h("button", { class: "main", id: "go", disabled: Boolean(lacking) }, icon(MODES[mode].icon), h("span"));
    tell(sending ? "sendingPicture" : "run");
    fill(
      panel,
      h(
        "div",
        { class: "scroll" },
        h(
          "div",
          { class: "row" },
          file,
          h("label", { for: "file", class: "button" }, icon("folder"), blob ? t("chooseOther") : t("choose")),
          h("button", { type: "button", onclick: pick }, icon("gallery"), t("fromGallery")),
        ),
        h(
          "div",
          { class: "modes", role: "radiogroup", "aria-label": t("what") },
          Object.entries(MODES).map(([name, { icon: drawing }]) =>
            h(
              "label",
              {},
              h("input", {
                type: "radio",
                name: "mode",
                value: name,
                checked: name === mode,
                onchange: () => {
                  table.mode = mode = name;
                  store();
                  draw();
                },
              }),
              h("span", {}, icon(drawing), t(name)),
            ),
          ),
        ),
        h("p", { class: "note" }, t(`${mode}Hint`)),
        notice?.element,
        words
          ? labelled(
              t("prompt"),
              h("textarea", {
                id: "prompt",
                rows: 2,
                value: form.prompt,
                placeholder: t("promptPlaceholder"),
                oninput: (event) => {
                  form.prompt = event.target.value;
                  store();
                },
                onkeydown: (event) => {
                  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
                    event.preventDefault();
                    panel.requestSubmit();
                  }
                },
              }),
            )
          : null,
        mode === "redraw" ? percent(t("strength"), form, "strength") : null,
        mode === "variations" ? percent(t("amount"), form, "amount") : null,
        mode === "enlarge"
          ? chips(
              t("scale"),
              [
                [2, "2×"],
                [4, "4×"],
              ],
              form.scale,
              (value) => {
                form.scale = value;
              },
            )
          : null,
        mode === "outpaint" ? edges(form) : null,
        brushed ? tools.element : null,
        count
          ? chips(
              t("count"),
              [1, 2, 4].map((n) => [n, String(n)]),
              form.n,
              (n) => {
                form.n = n;
              },
            )
          : null,
        usable.length > 1
          ? labelled(
              t("model"),
              select(
                usable.map((one) => [one.name, one.name]),
                form.model,
                (name) => {
                  form.model = name;
                },
              ),
            )
          : null,
      ),
      h(
        "div",
        { class: "foot" },
        go,
      ),
    );
    tools.update();
  };

  const look = () =>
    tried(async () => {
      models = await modelList();
      draw();
    });

  const dropped = (event) => {
    event.preventDefault();
    take(event.detail);
  };
  main.addEventListener("picture-dropped", dropped);
  fill(main, h("div", { class: "panes work" }, panel, shown.element));
  paint?.listen(tools.update);
  draw();
  look();
  // The address says what to begin with; once that lies there, it has begun.
  const begun = () => gone || history.replaceState(null, "", "#edit");
  if (id && !(paint && table.id === id)) takeOf(id).then(begun);
  else if (id) {
    begin();
    begun();
  } else if (paint && !shown.follows()) show("input");
  else if (!paint && table.id)
    tried(async () => {
      const from = table.id;
      table.id = null; // said once, if it is gone
      await lay(await api.fetchBlob(from), from);
      draw();
      if (made) showMade();
      else if (!shown.follows()) show("input");
    });
  return () => {
    gone = true;
    store();
    notice?.stop();
    paint?.stop();
    shown.stop();
  };
}
