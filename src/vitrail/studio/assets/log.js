// What a long work says on its way, line by line, in the reader's language where there is a translation.
import * as api from "./api.js";
import { h } from "./dom.js";
import { lang } from "./i18n.js";

export function logBox() {
  const element = h("div", { class: "log", role: "log", hidden: true });
  const add = (message) => {
    const line = document.createTextNode(`${message}\n`);
    element.hidden = false;
    element.append(line);
    element.scrollTop = element.scrollHeight;
    if (lang !== "zh") return;
    api.inChinese(message).then(
      ({ text }) => line.replaceWith(document.createTextNode(`${text}\n`)),
      () => {}, // the line stays as it was told
    );
  };
  return { element, add };
}
