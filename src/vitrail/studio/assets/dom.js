// Elements are made here and nowhere else. Text only ever becomes a text node or an attribute that runs nothing,
// so script in a prompt, a file's name or an error stays text.

const AS_PROPERTY = new Set(["value", "checked", "disabled", "selected", "open", "indeterminate", "src"]);
const SVG = "http://www.w3.org/2000/svg";

function assign(element, props) {
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    // As an attribute a style would need 'unsafe-inline' in the security policy.
    else if (key === "style") element.style.cssText = value;
    else if (AS_PROPERTY.has(key) && key in element) element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  return element;
}

const flat = (children) => children.flat(Infinity).filter((child) => child != null && child !== false);

/** An HTML element with its properties, listeners (`onclick`) and children. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  element.append(...flat(children)); // before the properties: a select takes its value from its options
  return assign(element, props);
}

/** The same for SVG. */
export function svg(tag, props, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(props ?? {})) if (value != null) element.setAttribute(key, value);
  element.append(...flat(children));
  return element;
}

/** The style of a picture that is shown in its shape and no higher than a share (%) of the window. */
export const withinSight = (width, height, share = 66) =>
  `width:min(${width}px, ${((share * width) / height).toFixed(2)}vh)`;

export function fill(element, ...children) {
  element.replaceChildren(...flat(children));
  return element;
}

let toasts = null;

/** A line at the foot of the page; with `action` ({ label, run }) it waits longer and can be answered. */
export function toast(text, { bad = false, action = null, seconds = action ? 8 : 5 } = {}) {
  if (!toasts?.isConnected) {
    toasts = h("div", { class: "toasts", role: "status", "aria-live": "polite" });
  }
  // Inside an open dialog, or it would lie under the dialog's backdrop.
  (document.querySelector("dialog[open]") ?? document.body).append(toasts);
  const note = h("div", { class: bad ? "toast bad" : "toast" }, h("span", {}, text));
  const gone = setTimeout(() => note.remove(), seconds * 1000);
  if (action) {
    note.append(
      h(
        "button",
        {
          type: "button",
          onclick: () => {
            clearTimeout(gone);
            note.remove();
            action.run();
          },
        },
        action.label,
      ),
    );
  }
  toasts.append(note);
  return () => {
    clearTimeout(gone);
    note.remove();
  };
}

/** Run `work`; where it fails, show its one line. */
export async function tried(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message, { bad: true });
    return undefined;
  }
}

/** Open a dialog with a title and a way to close it; it leaves the page when it closes. */
export function dialog(title, { close, wide = false, onclose = () => {} }, ...children) {
  const element = h(
    "dialog",
    { "aria-label": title, class: wide ? "wide" : "" },
    h(
      "div",
      { class: "dialog-head" },
      h("h2", {}, title),
      h(
        "button",
        { type: "button", class: "quiet", "aria-label": close, title: close, onclick: () => element.close() },
        "✕",
      ),
    ),
    ...children,
  );
  element.addEventListener("close", () => {
    onclose();
    element.remove();
  });
  element.addEventListener("click", (event) => {
    if (event.target === element) element.close();
  });
  document.body.append(element);
  element.showModal();
  return element;
}

export const kept = {
  /** A small value that survives a reload; null where the browser keeps nothing (a private window). */
  get(key, place = localStorage) {
    try {
      return JSON.parse(place.getItem(`vitrail.${key}`));
    } catch {
      return null;
    }
  },
  set(key, value, place = localStorage) {
    try {
      place.setItem(`vitrail.${key}`, JSON.stringify(value));
    } catch {
      /* private window: nothing is kept */
    }
  },
};
