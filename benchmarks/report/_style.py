"""The page's style sheet and its one script."""

STYLE = """
:root {
  color-scheme: light dark;
  --back: light-dark(#fbfbfa, #15181c); --card: light-dark(#ffffff, #1d2126);
  --ink: light-dark(#1c1f23, #e6e8ea); --soft: light-dark(#5c636b, #a3abb3);
  --line: light-dark(#dfe2e5, #363c43); --link: light-dark(#1f5a94, #86b8ea);
  --learned: light-dark(#1f5a94, #5b9bd8); --alive: light-dark(#f2bf4a, #c9962a);
  --died: light-dark(#ffffff, #1d2126); --hatch: light-dark(#9aa0a6, #6d757d);
  --c0: light-dark(#1f5a94, #6fb1f0); --c1: light-dark(#8a8f94, #8e979f);
  --c2: light-dark(#c2571a, #f08f4e); --c3: light-dark(#2e7d4f, #5cc48a);
  --c4: light-dark(#8e44ad, #c58be0); --c5: light-dark(#b8860b, #e0b84a);
  --c6: light-dark(#b03a5b, #ee7d9c); --c7: light-dark(#0e8a8a, #4fcfcf);
  --c8: light-dark(#6b4f3a, #c3a288);
}
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0.5rem 0; } h2 { font-size: 1.3rem; margin: 3rem 0 0.5rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.4rem; }
p { max-width: 48rem; margin: 0.6rem 0; } .soft, caption, figcaption { color: var(--soft); }
a { color: var(--link); } nav a { margin-right: 1rem; white-space: nowrap; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: 0.8rem;
  margin: 1.2rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 0.8rem 1rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.2; }
.tile span { color: var(--soft); font-size: 0.88rem; line-height: 1.35; display: block; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; margin: 0.8rem 0;
  background: var(--card); max-height: 80vh; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.86rem; width: 100%; }
caption { text-align: left; padding: 0.5rem 0.7rem; font-size: 0.86rem; }
th, td { padding: 0.28rem 0.7rem; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
td.n { font-variant-numeric: tabular-nums; text-align: right; }
td.lost { color: var(--c6); font-weight: 600; }
thead th { position: sticky; top: 0; background: var(--card); z-index: 2; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); z-index: 1; }
thead th:first-child { z-index: 3; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--link); }
th button::after { content: " \\2195"; color: var(--hatch); }
th[aria-sort=ascending] button::after { content: " \\2191"; color: inherit; }
th[aria-sort=descending] button::after { content: " \\2193"; color: inherit; }
td.b { min-width: 7.5rem; }
.bar { display: inline-block; float: left; height: 0.72em; margin-top: 0.42em; border-radius: 2px;
  width: calc(var(--w) * 0.62); background: var(--c1); min-width: 1px; }
.bar.ours { background: var(--c0); } .bar.peer { background: var(--c2); }
.levels { display: flex; gap: 1px; min-width: 7.5rem; height: 1.25rem; }
.levels i, .key i { flex: 1; display: flex; border: 1px solid var(--hatch); overflow: hidden; }
.levels i.gap { flex: 0 0 4px; border: 0; }
.levels s, .key s { flex: var(--f, 1); }
.learned { background: var(--learned); } .alive { background: var(--alive); }
.died { background: repeating-linear-gradient(45deg, var(--died) 0 3px, var(--hatch) 3px 4px); }
.key { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; font-size: 0.88rem; margin: 0.6rem 0; }
.key span { display: inline-flex; align-items: center; gap: 0.4rem; }
.key i { flex: none; width: 1.6rem; height: 1rem; }
.unfair { opacity: 0.45; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 0.6rem; } figcaption { font-size: 0.88rem; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 10px system-ui, sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .line { fill: none; stroke-width: 1.6; }
details { margin: 0.4rem 0; } summary { cursor: pointer; padding: 0.2rem 0; }
details p { font-size: 0.94rem; }
@media (max-width: 40rem) {
  body { padding: 1rem 0.7rem 3rem; font-size: 15px; } th, td { padding: 0.28rem 0.45rem; }
  .tile b { font-size: 1.4rem; } td:first-child, th:first-child { min-width: 8rem;
  max-width: 9.5rem; white-space: normal; overflow-wrap: anywhere; } .levels { min-width: 5rem; }
}
"""

SCRIPT = """
const unfold = () => {
  const named = document.getElementById(location.hash.slice(1));
  if (named && named.tagName === "DETAILS") named.open = true;
};
addEventListener("hashchange", unfold);
unfold();
document.querySelectorAll("table.sort th button").forEach((button) => {
  button.addEventListener("click", () => {
    const th = button.parentElement, table = th.closest("table"), body = table.tBodies[0];
    const column = [...th.parentElement.children].indexOf(th);
    const down = th.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[column].dataset.key;
    const order = (a, b) => {
      const x = Number(key(a)), y = Number(key(b));
      const by = isNaN(x) || isNaN(y) ? key(a).localeCompare(key(b)) : x < y ? -1 : x > y ? 1 : 0;
      return down ? -by : by;
    };
    [...body.rows].sort(order).forEach((row) => body.append(row));
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
  });
});
"""
