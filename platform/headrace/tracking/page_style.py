"""The style sheet of a run's page: light and dark, in colours that colour-blind people can tell apart.

The colours are those of Okabe and Ito, somewhat darker on white and lighter on black. No fact is in a colour alone:
curves are named at their ends, outcomes have lanes, tiles have a word.
"""

NUM_EXPERT_COLOURS = 6
"""Classes e0, e1, ...; a further expert takes the first one again."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #5a6472; --grid: #e3e6ea;
  --good: #00735a; --bad: #b8400a; --live: #0067a5; --frozen: #6b7280; --oracle: #1b1f24;
  --e0: #d55e00; --e1: #009e73; --e2: #b65f93; --e3: #c98700; --e4: #3fa2d9; --e5: #8a7d00; --uniform: #a9b0ba; }
@media (prefers-color-scheme: dark) { :root { --page: #101317; --card: #181c22; --ink: #e8eaed; --soft: #9aa4b2;
  --grid: #2c323a; --good: #3fcfa6; --bad: #ff8a4c; --live: #58a6ff; --frozen: #98a2b0; --oracle: #e8eaed;
  --e0: #ff8a3d; --e1: #2fc79a; --e2: #e39bc6; --e3: #f2b632; --e4: #8fd3ff; --e5: #d9cc3c; --uniform: #6d7683; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.45 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 2px; }
p { margin: 2px 0 10px; color: var(--soft); font-size: 14px; }
section { background: var(--card); border: 1px solid var(--grid); border-radius: 10px; padding: 18px 20px;
  margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px; margin-top: 18px; }
.tile { background: var(--card); border: 1px solid var(--grid); border-left: 5px solid var(--grid); border-radius: 10px;
  padding: 10px 14px 12px; }
.tile b { display: block; font-size: 27px; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.25; }
.tile span { font-size: 13.5px; color: var(--soft); }
.tile.good { border-left-color: var(--good); } .tile.good b { color: var(--good); }
.tile.bad { border-left-color: var(--bad); } .tile.bad b { color: var(--bad); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 4px 0 8px; padding: 0; list-style: none;
  font-size: 14px; overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 6px;
  background: currentColor; vertical-align: -1px; }
.chart { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 700px; height: auto; font: 13px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg text.lane { fill: var(--ink); }
.grid { stroke: var(--grid); }
.line { fill: none; stroke: currentColor; stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round; }
.line.live { stroke-width: 3; } .line.frozen { stroke-dasharray: 7 5; } .line.oracle { stroke-dasharray: 2 5; }
.line.dot { fill: currentColor; stroke: none; }
.band { fill: currentColor; fill-opacity: .13; } .layer { fill: currentColor; fill-opacity: .85; }
.layer { stroke: var(--card); stroke-width: .3; }
.leader { fill: none; stroke: currentColor; stroke-width: 1; }
.hover { fill: transparent; } .hover:hover { fill: var(--soft); fill-opacity: .18; }
.live { color: var(--live); } .frozen { color: var(--frozen); } .oracle { color: var(--oracle); }
.e0 { color: var(--e0); } .e1 { color: var(--e1); } .e2 { color: var(--e2); } .e3 { color: var(--e3); }
.e4 { color: var(--e4); } .e5 { color: var(--e5); } .uniform { color: var(--uniform); }
.heat { fill: var(--live); } .heat:hover { stroke: var(--ink); }
.tick.publish { fill: var(--live); } .tick.hold { fill: var(--e3); } .tick.reject { fill: var(--bad); }
.tick.rolled-back { fill: var(--e2); } .tick:hover { fill: var(--ink); }
table { margin-top: 10px; border-collapse: collapse; font-size: 15px; }
td, th { text-align: left; padding: 4px 26px 4px 0; border-bottom: 1px solid var(--grid); font-weight: 400;
  overflow-wrap: break-word; }
thead th { color: var(--soft); font-size: 13.5px; }
.num { text-align: right; font-variant-numeric: tabular-nums; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 14px; margin-top: 12px; }
.sample { border: 1px solid var(--grid); border-radius: 8px; padding: 10px 16px 12px; font-size: 14.5px; }
.sample ul { margin: 0 0 8px; padding: 0 0 8px; list-style: none; color: var(--soft);
  border-bottom: 1px solid var(--grid); }
.sample ol { margin: 0; padding-left: 1.4em; } .sample ol li { position: relative; padding-right: 60px; }
.sample ol b { position: absolute; right: 0; top: 0; font-weight: 400; color: var(--soft); }
.good-word { color: var(--good); } .bad-word { color: var(--bad); }
"""
