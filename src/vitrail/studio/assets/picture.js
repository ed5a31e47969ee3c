// What can be done with a picture, wherever it is shown, and the page of one picture.
import * as api from "./api.js";
import { fillFrom } from "./create.js";
import { dialog, fill, h, toast, tried, withinSight } from "./dom.js";
import { fieldName, kindName, t, when } from "./i18n.js";
import { icon } from "./icons.js";
import { singleKeys } from "./keys.js";
import { fillWalk } from "./walk.js";

/** A picture at a whole number of times its size, so that small ones stay crisp. */
export function image(picture, { most = 512 } = {}) {
  const longest = Math.max(picture.width || 128, picture.height || 128);
  // Four times a small picture shows its softness more than itself.
  const times = Math.max(1, Math.min(3, Math.floor(most / longest)));
  const width = (picture.width || 128) * times,
    height = (picture.height || 128) * times;
  const element = h("img", {
    class: "result",
    src: api.file(picture.id),
    alt: picture.prompt || t("notNamed"),
    width,
    height,
    style: withinSight(width, height),
  });
  return h("div", { class: "frame" }, element);
}

const leave = (hash) => {
  document.querySelector("dialog[open]")?.close();
  if (location.hash === `#${hash}`) dispatchEvent(new HashChangeEvent("hashchange"));
  else location.hash = hash;
};

/** Delete with a way back: the picture goes once the line at the foot is gone. */
export function removeSoon(id, { hide, back }) {
  hide();
  const end = setTimeout(
    () =>
      tried(async () => {
        removals.delete(id);
        await api.remove(id);
      }),
    6500,
  );
  removals.set(id, () => {
    clearTimeout(end);
    api.remove(id);
  });
  toast(t("deleted"), {
    seconds: 6,
    action: {
      label: t("undo"),
      run: () => {
        clearTimeout(end);
        removals.delete(id);
        back();
      },
    },
  });
}
const removals = new Map();
/** Whether a picture is about to be deleted. */
export const isGoing = (id) => removals.has(id);
addEventListener("pagehide", () => {
  for (const now of removals.values()) now();
});

/** Work whose settings are those of Walk: several words instead of one prompt. */
const WALKED = new Set(["walk", "animation"]);
/** The words of a picture, all of them where it lies on the way between several. */
const wordsOf = ({ prompt, record }) =>
  prompt || record?.request?.stops?.map((stop) => stop.prompt).filter(Boolean).join(" → ") || t("notNamed");

/** Work that takes a picture alone: there are no words and no chance in it to draw with again. */
const WORDLESS = new Set(["upscale", "repair", "reconstruct", "decode"]);

export function actions(picture, { how = true, input = true, changed = () => {} } = {}) {
  const button = (name, label, work) =>
    h("button", { type: "button", onclick: () => tried(work) }, icon(name), h("span", {}, label));
  const star = h(
    "button",
    {
      type: "button",
      class: "star",
      "aria-pressed": String(Boolean(picture.favourite)),
      "aria-label": t("star"),
      title: t("star"),
      onclick: () =>
        tried(async () => {
          const next = star.getAttribute("aria-pressed") !== "true";
          await api.favourite(picture.id, next);
          star.setAttribute("aria-pressed", String(next));
          changed();
        }),
    },
    icon("star"),
  );
  return h(
    "div",
    { class: "actions" },
    button("vary", t("vary"), () => leave(`edit/${picture.id}/variations`)),
    input ? button("input", t("useInput"), () => leave(`edit/${picture.id}`)) : null,
    button("enlarge", t("enlarge"), () => leave(`edit/${picture.id}/enlarge`)),
    WORDLESS.has(picture.kind)
      ? null
      : button("reuse", t("reuse"), async () => {
          if (WALKED.has(picture.kind)) {
            const { record } = picture.record ? picture : await api.picture(picture.id);
            fillWalk(record.request);
            leave("walk");
            return toast(t("filledOwn"));
          }
          const notes = await fillFrom(await api.settingsOf(await api.fetchBlob(picture.id)));
          leave("create");
          return toast([t("filledOwn"), ...notes].join(" "), { seconds: 5 + 2 * notes.length });
        }),
    how ? button("info", t("how"), () => detail(picture.id)) : null,
    h(
      "a",
      { class: "button", href: api.file(picture.id), download: true },
      icon("download"),
      h("span", {}, t("download")),
    ),
    star,
  );
}

// Rows of "how it was made", in this order; what else the record holds is in the record itself.
const SHOWN = [
  "style",
  "steps",
  "cfg_scale",
  "sampler",
  "schedule",
  "shift",
  "strength",
  "amount",
  "negative_prompt",
  "temperature",
];

function facts(picture) {
  const { record } = picture,
    request = record?.request ?? {};
  const rows = [
    [t("model"), picture.model],
    [t("seed"), WORDLESS.has(picture.kind) ? null : picture.seed],
    [fieldName("size"), picture.width ? `${picture.width} × ${picture.height}` : null],
    ...SHOWN.map((name) => [fieldName(name), request[name]]),
    [t("understood"), record?.understood_as],
    [
      t("madeWith"),
      Object.entries(record?.versions ?? {})
        .map((pair) => pair.join(" "))
        .join(", "),
    ],
  ].filter(([, value]) => value != null && value !== "");
  return h(
    "dl",
    { class: "facts" },
    rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]),
  );
}

/**
 * The page of one picture; with `siblings` (ids) the arrow keys go through them. `closed` is told which one was shown
 * last.
 */
export const detail = (id, { siblings = [id], changed = () => {}, closed = () => {} } = {}) =>
  tried(async () => {
    let here = siblings.indexOf(id);
    const body = h("div", { class: "detail" });
    const draw = async () => {
      const picture = await api.picture(siblings[here]);
      const go = (by) =>
        h(
          "button",
          {
            type: "button",
            class: `quiet turn ${by < 0 ? "back" : "on"}`,
            "aria-label": t(by < 0 ? "previous" : "next"),
            disabled: !siblings[here + by],
            onclick: () => turn(by),
          },
          by < 0 ? "‹" : "›",
        );
      fill(
        body,
        h(
          "div",
          { class: "detail-picture" },
          siblings.length > 1 ? go(-1) : null,
          image(picture, { most: 512 }),
          siblings.length > 1 ? go(1) : null,
        ),
        h(
          "div",
          { class: "detail-text" },
          h("p", { class: "words" }, wordsOf(picture)),
          h(
            "small",
            {},
            [picture.kind && kindName(picture.kind), picture.record?.created && when(picture.record.created)]
              .filter(Boolean)
              .join(" · "),
          ),
          facts(picture),
          h(
            "details",
            {},
            h("summary", {}, t("rawRecord")),
            h("pre", {}, JSON.stringify(picture.record ?? picture, null, 1)),
          ),
        ),
        h(
          "div",
          { class: "detail-do" },
          actions(picture, { how: false, changed }),
          h(
            "button",
            {
              type: "button",
              class: "danger",
              onclick: () => {
                open.close();
                removeSoon(picture.id, { hide: changed, back: changed });
              },
            },
            icon("trash"),
            h("span", {}, t("delete")),
          ),
        ),
      );
    };
    const turn = (by) => {
      if (siblings[here + by]) {
        here += by;
        tried(draw);
      }
    };
    const keys = (event) => {
      if (event.key === "ArrowLeft") turn(-1);
      else if (event.key === "ArrowRight") turn(1);
      else if (event.key === "f" && singleKeys()) body.querySelector(".star")?.click();
    };
    await draw();
    const open = dialog(
      t("how"),
      {
        close: t("close"),
        wide: true,
        onclose: () => {
          removeEventListener("keydown", keys);
          closed(siblings[here]);
        },
      },
      body,
    );
    addEventListener("keydown", keys);
  });
