"""The frame of report.html: one self-contained page, light or dark as the reader's screen is."""

from collections.abc import Sequence
from html import escape

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#22262b;--soft:#616a75;--line:#e4e1da;
--accent:#0f766e;--good:#0f766e;--bad:#b4423a;--c1:#8a95a3;--c2:#b3bbc5;--c3:#d3d8de;--wash:#0f766e14}
@media (prefers-color-scheme:dark){:root{--paper:#15181b;--card:#1d2125;--ink:#e8e6e1;--soft:#9aa3ad;
--line:#2e343a;--accent:#4fb8aa;--good:#4fb8aa;--bad:#e2857c;--c1:#7b8794;--c2:#59636e;--c3:#414a53;
--wash:#4fb8aa1f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:66rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .3rem;letter-spacing:-.01em}
h2{font-size:1.2rem;margin:3rem 0 .3rem}
p{margin:.3rem 0 1rem;max-width:46rem}
.soft,small,footer{color:var(--soft)}
.num,td{font-variant-numeric:tabular-nums}
.hero{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:1.5rem;margin:1.5rem 0;
display:grid;grid-template-columns:auto 1fr;gap:.5rem 2.5rem;align-items:center}
.big{font-size:3.4rem;line-height:1;font-weight:650;color:var(--accent);letter-spacing:-.03em;
white-space:nowrap}
.big small{font-size:1rem;font-weight:400;letter-spacing:0}
.facts{grid-column:1/-1;display:flex;flex-wrap:wrap;gap:.4rem 2.5rem;border-top:1px solid var(--line);
padding-top:1rem;margin-top:.5rem}
.facts div{display:flex;flex-direction:column}.facts b{font-size:1.15rem}.facts span{color:var(--soft);
font-size:.85rem}
.interval{position:relative;height:3.4rem;min-width:12rem}
.interval::before{content:"";position:absolute;left:0;right:0;top:1rem;border-top:2px solid var(--line)}
.interval u{position:absolute;left:50%;top:.45rem;height:1.2rem;border-left:2px solid var(--soft)}
.interval i{position:absolute;top:.78rem;height:.5rem;border-radius:.25rem;background:var(--accent);
opacity:.45}
.interval b{position:absolute;top:.55rem;width:.95rem;height:.95rem;margin-left:-.48rem;border-radius:50%;
background:var(--accent)}
.interval span{position:absolute;bottom:0;color:var(--soft);font-size:.8rem}
.interval .middle{left:50%;transform:translateX(-50%)}.interval .end{right:0}
.chart{display:grid;gap:.7rem;margin:1rem 0}
.row{display:grid;grid-template-columns:8.5rem 1fr 4rem 13rem;gap:.75rem;align-items:center}
.row b{font-weight:550;overflow-wrap:anywhere}.row .num{text-align:right}
.bars{position:relative;display:grid;gap:2px;
background:linear-gradient(90deg,var(--line) 1px,transparent 1px) 0 0/25% 100%;
border-right:1px solid var(--line);padding:2px 0}
.bars i{display:block;height:4px;width:var(--v);min-width:1px;background:var(--c2);
border-radius:0 3px 3px 0}
.bars .s0{height:11px;background:var(--accent)}.bars .s1{background:var(--c1)}
.bars .s3{background:var(--c3)}
.bars u{position:absolute;left:var(--v);top:-3px;bottom:-3px;border-left:2px dotted var(--ink);opacity:.55}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1.3rem;color:var(--soft);font-size:.85rem}
.key i{display:inline-block;width:1.1em;height:.55em;border-radius:2px;margin-right:.45em;
background:var(--c2)}
.key .s0{background:var(--accent)}.key .s1{background:var(--c1)}.key .s3{background:var(--c3)}
.key u{display:inline-block;height:1em;border-left:2px dotted var(--ink);margin-right:.45em;
vertical-align:-.15em}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:.4rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}thead th{color:var(--soft);font-weight:500}
tr.first td{font-weight:600}
.examples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(27rem,100%),1fr));gap:1rem;
margin-top:1rem}
.example{background:var(--card);border:1px solid var(--line);border-radius:12px;overflow:hidden}
.example img{display:block;width:100%;height:8.5rem;image-rendering:auto}
.example .text{padding:.8rem 1rem 1rem}.example h3{font-size:1rem;margin:.1rem 0 .5rem;line-height:1.35}
.example audio{width:100%;height:2.2rem;margin:.3rem 0 .6rem}
.tag{font-size:.75rem;color:var(--soft);letter-spacing:.03em}
.events{position:relative;background:var(--wash);font-size:.72rem;line-height:1.4em}
.events span{position:absolute;white-space:nowrap;padding:0 .3em;border-left:2px solid var(--accent);
background:var(--wash);color:var(--ink)}.events .end{direction:rtl}
dl{display:grid;grid-template-columns:auto 1fr auto;gap:.15rem .8rem;margin:0;font-size:.92rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}dd.ok{color:var(--good)}dd.no{color:var(--bad)}
footer{margin-top:3.5rem;border-top:1px solid var(--line);padding-top:1rem;font-size:.85rem}
footer dl{grid-template-columns:auto 1fr}
@media (max-width:44rem){.hero{grid-template-columns:1fr}.row{grid-template-columns:1fr auto}
.row .bars{grid-column:1/-1;order:3}.row small{grid-column:1/-1;order:4}}
@media print{.example,.hero{break-inside:avoid}audio{display:none}}
"""


def page(title: str, sections: Sequence[str]) -> str:
    """A whole HTML document; the sections are HTML already."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def section(heading: str, lead: str, body: str) -> str:
    """A headed part of the page; heading and lead are plain text."""
    return f"<section><h2>{escape(heading)}</h2><p class='soft'>{escape(lead)}</p>{body}</section>\n"


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], first_bold: bool = False) -> str:
    """A table of plain texts that scrolls by itself on narrow screens."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        f"<tr{' class=first' if first_bold and number == 0 else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def key(series: Sequence[str], mark: str | None = None) -> str:
    """What the bars of a chart stand for."""
    entries = "".join(f'<span><i class="s{i}"></i>{escape(name)}</span>' for i, name in enumerate(series))
    return f'<div class="key">{entries}{f"<span><u></u>{escape(mark)}</span>" if mark else ""}</div>'
