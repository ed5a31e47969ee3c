// The window that gives vitrail its name: drawn where nothing is shown yet, its panes lit as far as the work is.
import { h, svg } from "./dom.js";
import { titleOf } from "./jobs.js";

const RINGS = [
  { from: 0, to: 15, parts: 1, turn: 0 },
  { from: 15, to: 42, parts: 6, turn: 0.5 },
  { from: 42, to: 72, parts: 12, turn: 0 },
  { from: 72, to: 96, parts: 12, turn: 0.5 },
];
const COLOURS = ["ruby", "cobalt", "amber", "cobalt", "emerald", "violet"];

const point = (radius, angle) => `${(radius * Math.sin(angle)).toFixed(2)} ${(-radius * Math.cos(angle)).toFixed(2)}`;

function sector({ from, to, parts, turn }, i) {
  if (parts === 1) return `M${-to} 0a${to} ${to} 0 1 0 ${2 * to} 0a${to} ${to} 0 1 0 ${-2 * to} 0z`;
  const a = (2 * Math.PI * (i + turn)) / parts,
    b = (2 * Math.PI * (i + turn + 1)) / parts;
  return `M${point(from, a)}L${point(to, a)}A${to} ${to} 0 0 1 ${point(to, b)}L${point(from, b)}A${from} ${from} 0 0 0 ${point(from, a)}z`;
}

/** A rose window; `lit` is called with the share of the work that is done, 0 to 1. */
export function rose({ share = 1 } = {}) {
  const panes = RINGS.flatMap((ring, depth) =>
    Array.from({ length: ring.parts }, (_, i) =>
      svg("path", { d: sector(ring, i), class: `pane-of ${COLOURS[(i + 2 * depth) % COLOURS.length]}` }),
    ),
  );
  const element = svg("svg", { class: "rose", viewBox: "-100 -100 200 200", "aria-hidden": "true" }, panes);
  const lit = (done) => panes.forEach((pane, i) => pane.classList.toggle("lit", i < done * panes.length));
  lit(share);
  return { element, lit };
}

/** How far a job is, as a bar in lead; without a number of steps it only says that it works. */
export function progress(job) {
  const known = job.steps > 0;
  const bar = h("progress", { "aria-label": titleOf(job), ...(known && { max: job.steps, value: job.step }) });
  if (known) bar.setAttribute("value", job.step);
  return bar;
}
