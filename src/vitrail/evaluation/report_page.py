"""The page of an evaluation: one template with its style sheet and one small script; ``$name`` is filled in.

The script moves the edge of the before-and-after pictures. Its hash stands in the page's own security policy,
which allows nothing else: no other script, no address outside the file.
"""

from __future__ import annotations

import base64
import hashlib
import re
from string import Template
from typing import Literal

__all__ = ["PAGE", "POLICY", "SCRIPT", "opened_in"]

SCRIPT = (
    'for (const slider of document.querySelectorAll(".compare input")) '
    'slider.addEventListener("input", () => '
    'slider.parentElement.style.setProperty("--cut", slider.value + "%"));'
)

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    + "'; base-uri 'none'; form-action 'none'"
)

_CHOICE = re.compile(rb'(<input type="radio" name="language" id="(en|zh)") ?(?:checked)?>')


def opened_in(page: bytes, language: Literal["en", "zh"]) -> bytes:
    """Return a report's ``page``, which holds both languages, so that it opens in ``language``."""

    def choose(found: re.Match[bytes]) -> bytes:
        return found[1] + (b" checked>" if found[2] == language.encode() else b" >")

    page = re.sub(rb'^(<!doctype html>\s*<html lang=")(?:en|zh)"', rb'\g<1>%b"' % language.encode(), page)
    return _CHOICE.sub(choose, page, count=2)


PAGE = Template("""\
<!doctype html>
<html lang="$language">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="color-scheme" content="light dark">
<title>$heading · vitrail</title>
<style>
:root { --paper: #f7f6f3; --card: #ffffff; --ink: #26241f; --faint: #6f695f; --line: #e4e0d8; --main: #3457b2;
  --warn: #b8452c; --note: #96690f; --good: #2e7d4f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #141517; --card: #1e1f22; --ink: #e9e6df; --faint: #a19b90; --line: #34353a;
  --main: #8fb0ff; --warn: #f08a6c; --note: #e2b65b; --good: #6fcf97; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei",
  "Noto Sans CJK SC", "WenQuanYi Micro Hei", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
header p, .hint { color: var(--faint); margin: 4px 0 0; font-size: 14px; }
h1 { font-size: 30px; line-height: 1.25; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 0; }
h3 { font-size: 15px; margin: 22px 0 0; font-weight: 600; }
.eyebrow { color: var(--main); font-size: 14px; font-weight: 600; margin: 0 0 4px; }
input[name=language] { position: absolute; opacity: 0; pointer-events: none; }
.language { float: right; font-size: 14px; display: flex; border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; background: var(--card); }
.language label { padding: 4px 12px; cursor: pointer; color: var(--faint); }
#en:checked ~ main label[for=en], #zh:checked ~ main label[for=zh] { background: var(--main);
  color: var(--paper); }
#en:focus-visible ~ main .language, #zh:focus-visible ~ main .language { outline: 2px solid var(--main);
  outline-offset: 2px; }
#en:checked ~ main [lang=zh], #zh:checked ~ main [lang=en] { display: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px;
  margin: 28px 0 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px;
  font-size: 13.5px; color: var(--faint); line-height: 1.4; }
.tile b { display: block; font-size: 26px; line-height: 1.25; color: var(--ink); font-weight: 650;
  white-space: nowrap; font-variant-numeric: tabular-nums; letter-spacing: -.02em; }
.tile b small { font-size: 15px; font-weight: 500; color: var(--faint); letter-spacing: 0; }
.tile em { font-style: normal; display: block; font-size: 12.5px; font-variant-numeric: tabular-nums; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 22px 22px; margin-top: 12px; }
.advice { list-style: none; margin: 12px 0 0; padding: 0; }
.advice li { padding: 9px 0 9px 24px; position: relative; border-top: 1px solid var(--line); }
.advice li:first-child { border-top: 0; }
.advice li::before { content: ""; position: absolute; left: 3px; top: 17px; width: 9px; height: 9px;
  border-radius: 50%; background: var(--note); }
.advice li.warn::before { background: var(--warn); border-radius: 2px; }
.advice li.good::before { background: var(--good); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
  gap: 12px 28px; align-items: start; }
.plots figcaption { font-size: 14px; font-weight: 600; margin-top: 16px; }
.plot { width: 100%; height: auto; display: block; margin-top: 8px; font-size: 14px; fill: var(--ink); }
.plot .tick, .plot .axis { fill: var(--faint); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 10px;
  margin-top: 14px; }
.two .pictures { grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 0 32px; }
.sliders { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 16px;
  margin-top: 14px; }
.couples { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 16px;
  margin-top: 14px; }
figure { margin: 0; min-width: 0; }
img { image-rendering: pixelated; display: block; }
.pictures img, .couple img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--paper);
  border: 1px solid var(--line); border-radius: 8px; }
.couple { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.compare { --cut: 50%; position: relative; border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; background: var(--paper); }
.compare img { width: 100%; height: auto; }
.compare img + img { position: absolute; inset: 0; height: 100%;
  clip-path: inset(0 calc(100% - var(--cut)) 0 0); }
.compare::after { content: ""; position: absolute; top: 0; bottom: 0; left: calc(var(--cut) - 1px);
  width: 2px; background: #fff; box-shadow: 0 0 0 1px rgba(0, 0, 0, .45); pointer-events: none; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; }
.compare:focus-within { outline: 2px solid var(--main); outline-offset: 2px; }
.compare > span { position: absolute; bottom: 6px; padding: 1px 7px; border-radius: 6px; font-size: 11.5px;
  background: rgba(0, 0, 0, .62); color: #fff; pointer-events: none; }
.compare > .left { left: 6px; } .compare > .right { right: 6px; }
figcaption { font-size: 12.5px; line-height: 1.4; margin-top: 6px; color: var(--ink); }
figcaption i { color: var(--faint); font-style: normal; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 9px 16px 9px 0; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--faint); white-space: nowrap; font-weight: 500; font-size: 13px; }
tbody th { font-weight: 600; white-space: nowrap; }
tbody th small { display: block; font-weight: 400; color: var(--faint); font-size: 12px; }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
td.number b { font-size: 15px; }
td.number small { display: block; color: var(--faint); font-size: 12.5px; }
td.meaning { min-width: 300px; color: var(--ink); }
@media (max-width: 920px) { /* what a figure means stands below it, so that nothing is cut off */
  .numbers, .numbers thead, .numbers tbody { display: block; }
  .numbers tr { display: grid; padding: 9px 0;
    grid-template-columns: minmax(0, 6fr) minmax(0, 5fr) minmax(0, 3fr) minmax(0, 3fr);
    border-top: 1px solid var(--line); }
  .numbers thead tr { border-top: 0; padding-top: 0; } .numbers thead th:last-child { display: none; }
  .numbers th, .numbers td { border-top: 0; padding: 0 8px 0 0; }
  .numbers th, .numbers small { white-space: normal; }
  .numbers .meaning { grid-column: 1 / -1; min-width: 0; padding-top: 6px; } }
.facts th { width: 1%; padding-right: 24px; color: var(--faint); font-weight: 500; vertical-align: top; }
.facts td { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 12.5px; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--main); font-size: 14px; }
footer { color: var(--faint); font-size: 13px; margin-top: 18px; }
@media (max-width: 560px) { main { padding: 24px 14px 40px; } h1 { font-size: 24px; }
  section { padding: 16px; }
  .tiles { grid-template-columns: 1fr 1fr; } .tile b { font-size: 22px; } }
@media print { body { background: #fff; } .language { display: none; } section { break-inside: avoid; } }
</style>
</head>
<body>
<input type="radio" name="language" id="en" $english><input type="radio" name="language" id="zh" $chinese>
<main>
<header>
<div class="language"><label for="en">English</label><label for="zh">中文</label></div>
<p class="eyebrow">$title</p>
<h1>$heading</h1>
<p>$subtitle</p>
</header>
<div class="tiles">$tiles</div>
<section><h2>$short_title</h2><ul class="advice">$short</ul></section>
$sections
<footer>vitrail evaluate · $made</footer>
</main>
<script>$script</script>
</body>
</html>
""")
