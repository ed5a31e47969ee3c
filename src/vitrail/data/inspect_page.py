"""The page of an inspection: one template with its style sheet, no script; ``$name`` fields are filled in."""

from __future__ import annotations

from string import Template

__all__ = ["PAGE"]

PAGE = Template("""\
<!doctype html>
<html lang="$language">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
  style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>$folder · vitrail</title>
<style>
:root { --paper: #f7f6f3; --card: #ffffff; --ink: #26241f; --faint: #6f695f; --line: #e4e0d8; --main: #3457b2;
  --warn: #b8452c; --note: #96690f; --good: #2e7d4f; --warn-bg: #fdf1ed; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #141517; --card: #1e1f22; --ink: #e9e6df; --faint: #a19b90; --line: #34353a;
  --main: #8fb0ff;
    --warn: #f08a6c; --note: #e2b65b; --good: #6fcf97; --warn-bg: #2b211f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei",
  "Noto Sans CJK SC",
  "WenQuanYi Micro Hei", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
header p, .hint { color: var(--faint); margin: 4px 0 0; font-size: 14px; }
h1 { font-size: 30px; line-height: 1.25; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 0; }
.eyebrow { color: var(--main); font-size: 14px; font-weight: 600; margin: 0 0 4px; }
input[name=language] { position: absolute; opacity: 0; pointer-events: none; }
.language { float: right; font-size: 14px; display: flex; border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden;
  background: var(--card); }
.language label { padding: 4px 12px; cursor: pointer; color: var(--faint); }
#en:checked ~ main label[for=en], #zh:checked ~ main label[for=zh] { background: var(--main);
  color: var(--paper); }
#en:focus-visible ~ main .language, #zh:focus-visible ~ main .language { outline: 2px solid var(--main);
  outline-offset: 2px; }
#en:checked ~ main [lang=zh], #zh:checked ~ main [lang=en] { display: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 28px 0 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px;
  font-size: 13.5px;
  color: var(--faint); line-height: 1.35; }
.tile b { display: block; font-size: 26px; line-height: 1.25; color: var(--ink); font-weight: 650;
  white-space: nowrap;
  font-variant-numeric: tabular-nums; letter-spacing: -.02em; }
.tile.long b { font-size: 20px; line-height: 1.6; }
.tile.warn b { color: var(--warn); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 22px 22px; margin-top: 12px; }
.advice { list-style: none; margin: 12px 0 0; padding: 0; }
.advice li { padding: 9px 0 9px 24px; position: relative; border-top: 1px solid var(--line); }
.advice li:first-child { border-top: 0; }
.advice li::before { content: ""; position: absolute; left: 3px; top: 17px; width: 9px; height: 9px;
  border-radius: 50%;
  background: var(--note); }
.advice li.warn::before { background: var(--warn); border-radius: 2px; }
.advice li.good::before { background: var(--good); }
.plot { width: 100%; height: auto; display: block; margin-top: 14px; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(122px, 1fr)); gap: 16px 12px;
  margin-top: 16px; }
figure { margin: 0; min-width: 0; }
.mount { aspect-ratio: 1; background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  display: grid;
  place-items: center; padding: 6px; }
.mount img { max-width: 100%; max-height: 100%; min-width: 0; min-height: 0; object-fit: contain;
  border-radius: 3px; }
figcaption { font-size: 12.5px; line-height: 1.35; margin-top: 6px; display: -webkit-box;
  -webkit-line-clamp: 3;
  -webkit-box-orient: vertical; overflow: hidden; }
figcaption i { color: var(--faint); }
.group + .group { border-top: 1px solid var(--line); margin-top: 16px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px;
  margin-top: 14px; }
.pair { display: grid; grid-template-columns: 84px 1fr; gap: 12px; align-items: center; }
.pair ul { margin: 0; padding: 0; list-style: none; font-size: 13px; line-height: 1.5; min-width: 0; }
.pair figcaption { display: none; }
.wide { overflow-x: auto; margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 7px 14px 7px 0; border-top: 1px solid var(--line); }
thead th { border-top: 0; }
th { color: var(--faint); font-weight: 500; white-space: nowrap; }
td.name { min-width: 160px; max-width: 360px; font-family: ui-monospace, "SF Mono", Menlo, Consolas,
  monospace; font-size: 13px; }
td:nth-child(2) { white-space: nowrap; }
.facts td:nth-child(2) { white-space: normal; }
.facts th { width: 1%; padding-right: 24px; }
footer { color: var(--faint); font-size: 13px; margin-top: 18px; }
@media (max-width: 560px) { main { padding: 24px 14px 40px; } h1 { font-size: 24px;
  } section { padding: 16px; }
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
<h1>$folder</h1>
<p>$path</p>
</header>
<div class="tiles">$tiles</div>
<section><h2>$advice_title</h2><ul class="advice">$advice</ul></section>
$sections
<footer>vitrail data inspect · $took</footer>
</main>
</body>
</html>
""")
