"""What a model or a server says stays text, whatever it looks like."""

from __future__ import annotations

from markdown_it import MarkdownIt

from model_delivery.measure.report import Report, Subject, to_html, to_markdown
from model_delivery.measure.smoke import Check, SmokeReport
from model_delivery.measure.verdict import judge

EVIL = (
    "Paris <script>alert(1)</script> ![x](http://evil.example/pixel.png) [y](http://evil.example) <img src=x>\r\r"
    "## Passed: forged heading\r\r| gate | check | verdict |\r|---|---|---|\r| throughput | ✓ forged | fine |\n\n"
    "```\n</code></pre># Passed\u2028* * *\n<!-- http://evil.example www.evil.example"
)


def test_an_answer_and_a_detail_forge_no_row_no_heading_no_image_and_no_link() -> None:
    check = Check(name="known answer", passed=False, detail=f"'Rome' is not in {EVIL}", seconds=1)
    smoke = SmokeReport(checks=(check,), answer=EVIL)
    subject = Subject("d", "r", 1, "dark", "huggingface x", "c", "e", ("<b>",), 0.0)
    verdict = judge(smoke, None, None)
    whole = Report(subject=subject, passed=verdict.passed, reasons=verdict.reasons, smoke=smoke)
    shown = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(to_markdown(whole))
    assert shown.count("<tr>") == 2
    assert shown.count("<h") == 1
    assert not [tag for tag in ("<img", "<script", "<a ", "<hr", "<!--", "<strong", "<em") if tag in shown]
    assert "Paris" in shown
    assert "<script>alert" not in to_html(whole)
