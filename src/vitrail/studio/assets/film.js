// A film of pictures: played, paused, and moved through with a slider.
import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";

export const frame = (picture, title) => {
  const times = Math.max(1, Math.floor(512 / Math.max(picture.width, picture.height)));
  return h(
    "div",
    { class: "frame" },
    h("img", {
      class: "result",
      src: api.file(picture.id),
      alt: title,
      width: picture.width * times,
      height: picture.height * times,
    }),
  );
};

/** Frames that play, pause, and are moved through with a slider. */
export function filmOf(frames, fps) {
  let at = 0,
    timer = null;
  const box = frame(frames[0], t("walk")),
    image = box.firstChild;
  const loaded = frames.map((picture) => Object.assign(new Image(), { src: api.file(picture.id) }));
  const range = h("input", {
    type: "range",
    min: 0,
    max: frames.length - 1,
    value: 0,
    "aria-label": t("place"),
    oninput: () => {
      pause();
      go(Number(range.value));
    },
  });
  const out = h("output", {}, `1 / ${frames.length}`);
  const go = (to) => {
    at = to;
    image.src = loaded[at].src;
    range.value = at;
    out.textContent = `${at + 1} / ${frames.length}`;
  };
  const button = h(
    "button",
    { type: "button", "aria-label": t("play"), onclick: () => (timer ? pause() : play()) },
    icon("play"),
  );
  const pause = () => {
    clearInterval(timer);
    timer = null;
    fill(button, icon("play"));
    button.setAttribute("aria-label", t("play"));
  };
  const play = () => {
    timer = setInterval(() => go((at + 1) % frames.length), 1000 / fps);
    fill(button, icon("pause"));
    button.setAttribute("aria-label", t("pause"));
  };
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
  return {
    element: h("div", { class: "film" }, box, h("div", { class: "controls" }, button, range, out)),
    stop: pause,
  };
}
