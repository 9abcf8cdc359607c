"""Holds the HTML frame, the style and the script of the report page."""

PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">
<title>{title}</title><style>{style}</style>
<main>{body}</main>
<script>{script}</script></html>
"""

STYLE = """
:root{--ink:#1d2126;--soft:#5f6872;--paper:#fff;--line:#dde1e6;--tint:#f4f6f8;--accent:#2463b8;
--bad:#c2334d;--good:#1f7a4d;--l0:#2463b8;--l1:#c46a1b;--l2:#1f7a4d;--l3:#8b44a8;color-scheme:light}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa4af;--paper:#15181c;--line:#30363d;
--tint:#1e2329;--accent:#6ba4f0;--bad:#e2637a;--good:#4cb27f;--l0:#6ba4f0;--l1:#e29a55;--l2:#4cb27f;
--l3:#bb83d6;color-scheme:dark}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 20px 80px}
h1{font-size:1.6rem;margin:.2em 0 .8em}h2{font-size:1.15rem;margin:2.2em 0 .6em}
.tiles{display:flex;flex-wrap:wrap;gap:12px;margin-bottom:16px}
.tile{background:var(--tint);border-radius:8px;padding:12px 18px;min-width:130px}
.tile b{display:block;font-size:1.5rem}.tile span{color:var(--soft)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:4px 12px 4px 0;text-align:left;font-weight:normal}
.facts th{color:var(--soft)}
.sortable{width:100%}
.sortable th{border-bottom:1px solid var(--line);cursor:pointer;color:var(--soft)}
.sortable td{border-bottom:1px solid var(--line)}
th[aria-sort=ascending]::after{content:" \\2191"}th[aria-sort=descending]::after{content:" \\2193"}
.bar{position:relative;min-width:170px}
.bar i{position:absolute;left:70px;top:9px;height:10px;width:calc((100% - 82px)*var(--v));
background:var(--accent);border-radius:2px}
.swatch{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;
border:1px solid var(--line);vertical-align:-1px}
.wide{overflow-x:auto}
.confusion td,.confusion th{padding:3px 5px;font-size:.8rem;text-align:center}
.confusion th[scope]{text-align:right;color:var(--soft);white-space:nowrap}
.confusion td{min-width:26px;border:1px solid var(--line)}
.confusion .right{background:color-mix(in srgb,var(--good) calc(var(--s)*70%),transparent)}
.confusion .wrong{background:color-mix(in srgb,var(--bad) calc(var(--s)*100%),transparent)}
.turned{height:96px;vertical-align:bottom}
.turned span{writing-mode:vertical-rl;transform:rotate(180deg);color:var(--soft);white-space:nowrap}
.images{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:0 24px}
figure{margin:0 0 28px}figcaption{margin-bottom:6px}
.stack{position:relative;background:var(--tint);border-radius:6px;overflow:hidden}
.stack img{position:absolute;inset:0;width:100%;height:100%;image-rendering:auto}
.layer{opacity:0}
figure[data-show=truth] .truth,figure[data-show=prediction] .prediction{opacity:var(--o,.6)}
figure[data-show=errors] .errors{opacity:1}
.controls{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin:8px 0}
button{font:inherit;color:inherit;background:var(--tint);border:1px solid var(--line);
border-radius:6px;padding:3px 12px;cursor:pointer}
button[aria-pressed=true]{background:var(--accent);border-color:var(--accent);color:var(--paper)}
.legend{color:var(--soft);font-size:.85rem}.legend span{margin-right:10px;white-space:nowrap}
.chart{max-width:640px}.chart svg{width:100%;height:auto}
.chart text{fill:var(--soft);font-size:11px}.chart .grid{stroke:var(--line)}
.line polyline{fill:none;stroke-width:2}
.l0{--c:var(--l0)}.l1{--c:var(--l1)}.l2{--c:var(--l2)}.l3{--c:var(--l3)}
.line polyline{stroke:var(--c)}.line circle{fill:var(--c);opacity:0}
.line circle:hover,.line circle:only-of-type{opacity:1}
.key{color:var(--c);margin-left:10px;font-size:.85rem}
pre{background:var(--tint);padding:12px;border-radius:6px;overflow-x:auto;font-size:.8rem}
"""

SCRIPT = """
for (const figure of document.querySelectorAll('figure[data-show]')) {
  figure.addEventListener('click', event => {
    const layer = event.target.dataset.layer;
    if (!layer) return;
    figure.dataset.show = layer;
    for (const button of figure.querySelectorAll('button'))
      button.setAttribute('aria-pressed', button.dataset.layer === layer);
  });
  figure.querySelector('input').addEventListener('input', event =>
    figure.style.setProperty('--o', event.target.value / 100));
}
for (const table of document.querySelectorAll('table.sortable')) {
  const sort = th => {
    const column = th.cellIndex, body = table.tBodies[0];
    const down = th.getAttribute('aria-sort') !== 'descending';
    for (const other of table.tHead.rows[0].cells) other.setAttribute('aria-sort', 'none');
    th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const value = row => {
      const cell = row.cells[column];
      return 'v' in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
    };
    const order = (a, b) => {
      const x = value(a), y = value(b);
      return typeof x === 'number' ? x - y : x.localeCompare(y);
    };
    [...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)).forEach(r => body.append(r));
  };
  for (const th of table.tHead.rows[0].cells) {
    th.addEventListener('click', () => sort(th));
    th.addEventListener('keydown', event => { if (event.key === 'Enter') sort(th); });
  }
}
"""
