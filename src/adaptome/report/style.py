"""The style sheet of reports: light and dark, phone to desktop, screen and print."""

# Series colours keep a contrast of 3 : 1 against the page in both settings; text keeps 4.5 : 1.
STYLE = """
:root{
  color-scheme:light dark;
  --page:#fbfbf9;--card:#fff;--ink:#1d2330;--soft:#5b6474;--line:#dfe2e8;--track:#eceef2;--good:#0b6e4f;
  --right:37 99 176;--wrong:201 92 16;--strong:#fff;
  --c0:#2563b0;--c1:#c4570c;--c2:#0f7b5f;--c3:#8b46b3;--c4:#b4305f;--c5:#6b6410;
}
@media (prefers-color-scheme:dark){:root{
  --page:#14171d;--card:#1b1f27;--ink:#e8eaef;--soft:#a3abba;--line:#323844;--track:#282d37;--good:#5fd3a8;
  --right:88 152 232;--wrong:240 140 62;--strong:#0d1117;
  --c0:#6aa9f4;--c1:#f29a55;--c2:#4fc79f;--c3:#c78fe8;--c4:#f285ab;--c5:#cfc45c;
}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0 auto;max-width:68rem;overflow-wrap:break-word;padding:2rem clamp(1rem,4vw,2.5rem) 4rem;background:var(--page);color:var(--ink);
  font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:clamp(1.6rem,5vw,2.3rem);line-height:1.15;margin:0 0 .5rem;letter-spacing:-.015em;text-wrap:balance}
h2{font-size:1.25rem;line-height:1.25;margin:0 0 .6rem}
p{margin:.4rem 0 1rem;max-width:46rem}
.lead{font-size:1.1rem;color:var(--soft)}
nav ol{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;margin:0;padding:.5rem 0 0}
nav li{min-width:0;overflow-wrap:anywhere}
a{color:var(--c0);text-underline-offset:.2em}
:focus-visible{outline:2px solid var(--c0);outline-offset:2px}
section{border-top:1px solid var(--line);margin-top:2rem;padding-top:1.6rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:1rem 0 1.25rem}
.facts div{min-width:0;overflow-wrap:anywhere;background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem;
  display:flex;flex-direction:column-reverse;justify-content:flex-end}
.facts dt{color:var(--soft);font-size:.85rem}
.facts dd{margin:0;font-size:1.5rem;font-weight:650;line-height:1.25;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;margin:0 0 1.5rem;background:var(--card);border:1px solid var(--line);border-radius:.6rem}
table{border-collapse:collapse;width:100%;font-size:.93rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);font-size:.88rem;padding:.7rem .9rem .3rem}
th,td{padding:.45rem .9rem;text-align:left;vertical-align:top;border-top:1px solid var(--line)}
thead tr:first-child>*{border-top:0}
thead th{color:var(--soft);font-weight:600;font-size:.85rem;vertical-align:bottom}
tbody th{font-weight:600;min-width:6rem;overflow-wrap:anywhere}
.number{text-align:right}
.number,.short{white-space:nowrap}
.long{min-width:17rem}
td strong{color:var(--good)}
.settings th{font-weight:500;white-space:nowrap}
.settings td{overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,23rem),1fr));gap:1rem;margin:0 0 1.5rem}
figure{margin:0;min-width:0;background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.9rem}
figcaption{font-weight:600;font-size:.95rem;margin-bottom:.5rem}
figure>svg{display:block;width:100%;height:auto}
svg text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}
svg text.value{fill:var(--ink);font-weight:600;font-size:13px}
svg text.name{fill:var(--ink);font-size:13px}
.grid,.axis{stroke:var(--line);stroke-width:1;fill:none}
.axis{stroke:var(--soft)}
.track{fill:var(--track)}
.whisker{stroke:var(--ink);stroke-width:1.5;fill:none}
.line{fill:none;stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}
.line{stroke:var(--c)}.bar,.dot{fill:var(--c)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:.5rem 0 0;padding:0;font-size:.88rem}
.legend li{display:flex;align-items:center;gap:.45rem;min-width:0;overflow-wrap:anywhere}
.legend svg{width:1.9rem;height:.65rem;flex:none}
.confusion{font-size:.82rem;width:auto;min-width:100%}
.confusion td,.confusion th{padding:.3rem .25rem;text-align:center;vertical-align:middle;min-width:2rem}
.confusion thead th[scope=col]{vertical-align:bottom;font-weight:500}
.confusion thead th[scope=col] span{writing-mode:vertical-rl;transform:rotate(180deg);white-space:nowrap}
.confusion tbody th{text-align:right;font-weight:500;padding-left:.7rem;padding-right:.5rem;white-space:nowrap;
  position:sticky;left:0;background:var(--card)}
.confusion thead tr:last-child th:first-child{text-align:right;padding-right:.5rem}
.confusion .right{background:rgb(var(--right)/var(--share))}
.confusion .wrong{background:rgb(var(--wrong)/var(--share))}
.confusion .strong{color:var(--strong);font-weight:600}
.confusion .recall{color:var(--soft);padding-right:.7rem}
.examples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,23rem),1fr));gap:1rem;margin:0 0 1.5rem}
.example{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.9rem;min-width:0;overflow-wrap:anywhere}
.example h3{font-size:.95rem;margin:0 0 .5rem;display:flex;gap:.6rem;align-items:baseline}
.example dl{margin:.5rem 0 0;font-size:.93rem}
.example dl div{display:flex;gap:.6rem}
.example dt{color:var(--soft);min-width:3.6rem}
.example dd{margin:0;min-width:0;white-space:pre-wrap}
.given{white-space:pre-wrap;margin:.2rem 0 .6rem;font-size:.93rem}
.verdict{font-size:.82rem;font-weight:600}
.verdict.right{color:var(--good)}.verdict.wrong{color:var(--c1)}
mark{color:inherit;background:color-mix(in srgb,var(--c) 18%,transparent);border-bottom:2px solid var(--c);
  border-radius:.2rem;padding:.05rem .2rem}
mark b{color:var(--c);font-size:.72em;font-weight:650}
.pictures{display:flex;flex-wrap:wrap;gap:.6rem}
.picture{border:0;padding:0;background:none}
.picture img{display:block;max-width:100%;height:auto;border-radius:.35rem}
.picture img.tiny{image-rendering:pixelated}
.picture figcaption{font-weight:400;font-size:.82rem;color:var(--soft);margin:.2rem 0 0}
.ranked{list-style:none;margin:.6rem 0 0;padding:0;font-size:.88rem}
.ranked li{display:grid;grid-template-columns:1fr auto;gap:.1rem .6rem;padding:.15rem 0}
.ranked b{font-weight:600;font-variant-numeric:tabular-nums}
.ranked small{color:var(--soft)}
.ranked i{grid-column:1/-1;height:4px;border-radius:2px;
  background:linear-gradient(to right,var(--c0) calc(100%*var(--part)),var(--track) 0)}
details{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.6rem .9rem;margin:0 0 1.5rem}
summary{cursor:pointer;font-weight:600;font-size:.95rem}
pre{overflow-x:auto;font-size:.85rem;line-height:1.45;margin:.6rem 0 0}
ul.notes{margin:.4rem 0 1.2rem;padding-left:1.2rem;max-width:46rem}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.scroll{position:relative}
@media (max-width:40rem){body{padding-top:1.25rem}th,td{padding:.4rem .6rem}
  svg text,svg text.name,svg text.value{font-size:15px}}
@media print{body{max-width:none;padding:0}section,figure,.scroll{break-inside:avoid}.scroll{overflow:visible}}
"""
