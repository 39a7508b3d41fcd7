"""How a report looks: its style sheet. Must not know: what it shows."""

STYLE = """
:root{color-scheme:light}
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;padding:24px;max-width:1400px;color:#1d2430;background:#fff}
h1{font-size:24px;margin:0 0 12px}h2{font-size:18px;margin:32px 0 8px}
.verdict{display:inline-block;font-weight:700;padding:4px 14px;border-radius:4px;margin:0 0 12px;color:#fff}
.passed{background:#2a7d4f}.failed{background:#b3261e}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin-bottom:12px}
.card{border:1px solid #d5dae1;border-radius:6px;padding:8px 16px;min-width:84px}
.card b{display:block;font-size:22px;font-variant-numeric:tabular-nums}.card span{color:#5a6472;font-size:13px}
.card.bad{border-color:#b3261e}.bad{color:#b3261e}
.wide{overflow-x:auto}.wide img{width:100%;min-width:900px;display:block}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th{text-align:left;vertical-align:bottom;
 font-weight:600;color:#3b4552;border-bottom:2px solid #c3cad4;padding:4px 8px}
td{border-bottom:1px solid #e6e9ee;padding:3px 8px;vertical-align:top}
.numbers tbody tr:hover{background:#f3f6fa}
.facts td:first-child{color:#5a6472;white-space:nowrap}
.long td{font-size:12px}.long td:first-child{white-space:nowrap}
code,pre{font:12.5px/1.4 ui-monospace,monospace;
 background:#f3f5f8;padding:1px 4px;border-radius:3px;overflow-wrap:anywhere}
pre{padding:10px;overflow-x:auto}
.note{color:#5a6472;font-size:13px;margin:4px 0 8px}
.problems{color:#b3261e}
.dot{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:6px}
"""
