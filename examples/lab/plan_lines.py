"""Plans, prompts, their lines, and values of options: how they are read."""

from __future__ import annotations

from typing import Any

# fmt: off
# A line, the text of its task and the reason, by the state that it has.
BOXES: dict[str, list[tuple[str, ...]]] = {
    "pending": [
        ("- [ ] Build it", "Build it"), ("- [] Build it", "Build it"),
        ("- [ ] [1] first", "[1] first"), ("- [ ] see [docs](u)", "see [docs](u)"),
        ("- [ ] [docs](u) to read", "[docs](u) to read"),
        ("- [ ] **bold** words", "**bold** words"), ("- [ ]\ttab", "tab"),
        ("-  [ ]   wide   ", "wide"), ("  - [ ] sub", "sub"), ("        - [ ] deep", "deep"),
        ("* [ ] star", "star"), ("+ [ ] plus", "plus"), ("1. [ ] one", "one"), ("- [  ] T", "T"),
        ("- [ ]\xa0T", "T"), ("-\u3000[ ]\u3000T", "T"),
        ("- **[ ] Export:** as CSV", "**Export:** as CSV"),
        ("- **[ ]** Export **all**", "Export **all**"), ("- **[ ]:** T", "T"), ("- `[ ]` x", "x"),
        ("- *[ ]* x", "x"), ("- [ ]* 1.3 T", "1.3 T"), ("- [ ]: T", "T"), ("- [todo] T", "T"),
        ("- [TO-DO] T", "T"), ("- [Pending] T", "T"), ("- [open: since May] T", "T"),
        ("- [ ] BLOCKED: x, T is text", "BLOCKED: x, T is text"),
        ("- [ ] Retry the jobs marked [failed]", "Retry the jobs marked [failed]"),
        ("- [ ] Remove the human[manual]", "Remove the human[manual]"),
        ("- [ ] Read [manual](u)", "Read [manual](u)"),
        ("- [ ] Read what is marked `[BLOCKED]`", "Read what is marked `[BLOCKED]`"),
        ("- [ ] `[MANUAL]` is read wrongly", "`[MANUAL]` is read wrongly"),
        ("- [ ] [DONE] is a label, too", "[DONE] is a label, too"),
    ],
    "done": [
        ("- [x] Done", "Done"), ("- [X] Done", "Done"), ("- [x] [MANUAL] Call Bob", "Call Bob"),
        ("- [x] [BLOCKED: no key] Deploy", "Deploy"), ("\t- [x] sub", "sub"), ("2) [x] two", "two"),
        ("- [ X ] T", "T"), ("- **[x] Export as CSV", "Export as CSV"), ("- __[x]__ x", "x"),
        ("- [x]: T", "T"), ("- [done] T", "T"), ("- [Complete] T", "T"),
        ("- [COMPLETED - agent 1] T", "T"), ("- [finished by agent 1] T", "T"),
        ("- [DONE 2026-01-29] T", "T"), ("- [\u2705 DONE] T", "T"),
        ("- [x] Deploy [BLOCKED: no key]", "Deploy"), ("- [\u2713] T", "T"), ("- [\u2714] T", "T"),
        ("- [\u2705] T", "T"), ("- [\u2611] T", "T"), ("- [\U0001f5f8] T", "T"),
        ("- [ \u2705] T", "T"), ("- [\u2714\ufe0f] T", "T"),
    ],
    "manual": [
        ("- [MANUAL] Call Bob", "Call Bob"), ("- [manual] Call Bob", "Call Bob"),
        ("- [ ] [MANUAL] Call Bob", "Call Bob"), ("- [] [MANUAL] Call Bob", "Call Bob"),
        ("- [ ] [MANUAL: needs a phone] Call Bob", "Call Bob", "needs a phone"),
        ("- [MANUAL: needs a phone] Call Bob", "Call Bob", "needs a phone"),
        ("- [ ] **[MANUAL]** Call Bob", "Call Bob"), ("- [ ] [MANUAL] [BLOCKED: x] Task", "Task"),
        ("- [MANUAL TEST] Call", "Call", "TEST"), ("- [MANUAL - by Bob] Call", "Call", "by Bob"),
        ("- [human] Call", "Call"), ("- [human: by phone] Call", "Call", "by phone"),
        ("- [MANUAL\uff1a\u7535\u8bdd] \u8054\u7cfb", "\u8054\u7cfb", "\u7535\u8bdd"),
        ("- [MANUAL\uff08a\uff09] T", "T", "\uff08a\uff09"),
        ("- [ ] **[MANUAL]: T**", "**T**"), ("- [ ] **[MANUAL]:** T", "T"),
        ("- [ ] **Deploy [Manual]**", "**Deploy**"),
        ("- [ ] [MANUAL] Deploy [BLOCKED: x]", "Deploy"),
    ],
    "blocked": [
        ("- [ ] **[BLOCKED: no key]** Deploy", "Deploy", "no key"),
        ("- [BLOCKED] Deploy", "Deploy"), ("- [ ] [BLOCKED] Deploy", "Deploy"),
        ("- [BLOCKED:] Deploy", "Deploy"), ("- [BLOCKED: no key] Deploy", "Deploy", "no key"),
        ("- [ ] [blocked: no key] Deploy", "Deploy", "no key"),
        ("- [BLOCKED: see [1]] Deploy", "Deploy", "see [1]"),
        ("- [BLOCKED: a: b] Deploy", "Deploy", "a: b"),
        ("12. [BLOCKED: later] twelve", "twelve", "later"),
        ("- [~] [BLOCKED: later] T", "T", "later"),
        ("- [BLOCKED - no key] Deploy", "Deploy", "no key"),
        ("- [BLOCKED \u2014 no key] Deploy", "Deploy", "no key"),
        ("- [BLOCKED\uff1ano key] Deploy", "Deploy", "no key"),
        ("- [\U0001f6ab BLOCKED: no key] Deploy", "Deploy", "no key"),
        ("- [BLOCKED (no key)] Deploy", "Deploy", "(no key)"),
        ("- [BLOCKED (a) and (b)] Deploy", "Deploy", "(a) and (b)"),
        ("- [BLOCKED no key] Deploy", "Deploy", "no key"),
        ("- [ ] [blocked, no key] Deploy", "Deploy", "no key"),
        ("- [BLOCKED: -1 is returned] Deploy", "Deploy", "-1 is returned"),
        ("- [BLOCKED by 1.2] Deploy", "Deploy", "by 1.2"), ("- [BLOCKED]: Deploy", "Deploy"),
        ("- [FAILED - tests do not pass] Export", "Export", "tests do not pass"),
        ("- [SKIPPED] Export", "Export", "skipped"), ("- [skip] Export", "Export", "skip"),
        ("- [deferred: later] Export", "Export", "later"),
        ("- [Postponed] Export", "Export", "postponed"),
        ("- [cancelled] Export", "Export", "cancelled"),
        ("- [Canceled] Export", "Export", "canceled"), ("- [WONTFIX] Export", "Export", "wontfix"),
        ("- [ON-HOLD] Export", "Export", "on hold"),
        ("- [on_hold: Bob is away] Export", "Export", "Bob is away"),
        ("- [obsolete] Export", "Export", "obsolete"), ("- [ ] [BLOCKED - x] T", "T", "x"),
        ("- [won\u2019t  fix] T", "T", "won\u2019t fix"), ("- [\u274c FAILED] T", "T", "failed"),
        ("- [N/A: no such host] T", "T", "no such host"),
        ("- [ ] [FAILED: x] T", "T", "x"), ("- [ ] [BLOCKED: x]: T", "T", "x"),
        ("- [ ] **[BLOCKED: no key] wait", "wait", "no key"),
        ("- [ ] Deploy [BLOCKED: no key]", "Deploy", "no key"),
        ("- [ ] Deploy **[BLOCKED: see [1]]**", "Deploy", "see [1]"),
    ],
}
# What makes a task begun, which is open, too.
BEGUN = (
    *"~-/>!?.*+=_\u2026\u23f3\u23f8\u26a0\u274c\U0001f3d7", "~~", "...", " ~ ", "->",
    "\u26a0\ufe0f", "50%", "12.5 %", "1/3", "wip", "WIP", "in progress", "In-Progress",
    "IN_PROGRESS", "in progress - agent 1", "IN PROGRESS by agent 1", "doing", "started", "Ongoing",
    "active: b", "partial", "review", "in review", "\U0001f6a7 WIP", "in  progress", "~50%",
    "INCOMPLETE: no key", "not done", "waiting: key", "done?", "done, but tests fail",
    "completed 50%",
)
# Neither a task nor nearly one.
NO_TASKS = [
    "- [x](https://e.org)", "- [](u)", "- [ ](u)", "- [x][ref]", "- [x]:word", "- [a][b]",
    "- [note]: text", "- [blocked-list](u)", "- [BLOCKEDABC] T", "- [a] T", "- [1] T", "- [\xe9] T",
    "- [2026-01-29] T", "- [P1] T", "- [Feature] T", "- [Done deal] T", "- [skipping] T",
    "- [wipe] T", "- Item", "Not a task", "- [x", "- [[[[", "- [[ ] a", "a - [ ] b",
    "```\n- [ ]T\n```", "<!-- \n- [ ]T\n-->", "see [ ] there", "see [x] in the docs",
    "Legend: [ ] is open, [x] is done", "use `[ ]` for what is open",
    "- use `[ ]` for what is open", "- in a table: ``| [ ] |`` and `- [ ]T`", "`[ ]` means open",
    "| `[ ]` | open |", "a[ ]", "- int a[ ] = {}", "- the list a[]", "- returns [] when empty",
    "- Call main ()",
    "tags = []", "main() { }", "- and so on [...]", "- (x) T", "- [0] T", "- [xylophone",
    "- [[x]] T", "if [[ -f x ]]; then", "[x](u)", "![x](u)", "[x][ref]",
    "[x]: https://e.org", "[done]: ./done.md", "[^1]: a note", "> [!NOTE]",
    "- \u2705 works at night", "- \U0001f6a7 no box", "* Phase one [1/3]",
    "\u3010\u91cd\u8981\u3011", "- [docs](u) and more", "## Phase 1 [DONE]", "- see the [manual]",
    "# a", "---", "* * *", "| --- | --- |", "<details>", "- a [b] c", "- I [think](so) too", "- [ ",
    "- [",
]
# What is nearly a task, with an open box but for those that say x, by what it lacks.
NEAR_MISSES = {
    "a list sign": [
        "[ ] T", "  [x] T", "[~] T", "[wip] T", "**[ ] T**", "[TODO]: write it", "T | [ ] | a",
        "T [ ]", "**T** [x]",
    ],
    "a space behind the box": [
        "- [ ]T", "- [x]T", "- []T", "1. [X]T", "- [ ]:T", "- [ ][MANUAL] T", "- **[ ]**T",
        "- [ ]\u4efb\u52a1",
    ],
    "a space before the box": ["-[ ] T", "*[x] T", "1.[ ] T"],
    "a space on both sides": ["-[ ]T"],
    "a list sign in place of a heading": ["### [ ] T", "## Phase 1 [ ]", "## Phase 1: [x]"],
    "a list sign in place of a quotation": ["> [ ] T", "> - [ ] T", ">> * [x] T"],
    "a line outside of a table": ["| T | [ ] |", "| [x] T | a |", "|1|[ ]|T|"],
    "a list sign in place of the number": [
        "1.1 [ ] T", "1.1. [x] T", "a) [ ] T", "(1) [ ] T", "iv. [ ] T", "#7 [ ] T", "\u2460 [ ] T",
        "\u4e00\u3001[ ] T", "1\uff0e[ ] T",
    ],
    "the box right behind the list sign": [
        "- Task 1: [ ] T", "- \u4efb\u52a1\uff1a[ ] \u5b57", "- Task 1: [x] T", "- T [ ]", "- T []",
        "- T [x]", "- T [TODO]", "- see [x] there", "- 1.1 [ ] T", "- - [ ] T", "- ~~[ ] T~~",
        "1. **T**: [ ] a", "- T \u2610", "- [ ] [MANUAL]",
    ],
    "a box of square brackets": [
        "- ( ) T", "- () T", "- \\[ \\] T", "- \\[x\\] T", "- \uff3b \uff3d T", "- [ T",
        "- [x T", "- \u2b1c T", "- \u2b1c\ufe0f T", "- \u2611 x", "- \u2610(optional) T",
        "- \u2610\uff08\u53ef\u9009\uff09\u5199", "- \uff3b \uff3d(optional) T", "- [ **Build** it",
        "- [ (optional) Build", "- [ \u2192 B",
    ],
    "a list sign and square brackets": ["\uff3b \uff3d T", "\u2610 T"],
    "square brackets and a space": ["1) \u25a1T"],
    "a list sign that is one": ["\u2022 [ ] T", "\u2013 [x] T", "\u2023[ ] T", "\U0001f4cc [ ] T"],
    "a text": ["- [ ]", "- [ ]   ", "- [x]"],
}
# What any plan may be made of.
PIECES = (
    "- [ ] ", "- [x] ", "* [X] ", "1. [ ] ", "- []", "- [MANUAL] ", "- [BLOCKED: ", "[MANUAL: x] ",
    "] ", "[", "]", "**", "- [~] ", "- [wip] ", "- [ ]x", "( ) ", "-", "```", "~~~~", "`", "<!--",
    "-->", "<plan-complete>", "</plan-complete>", "# ", "## b #", "\n", "\n", "\n", "\r\n", "\r",
    "\u2028", "\x85", "\f", "\ufeff", "\t", "    ", "word", "(u)", "\x00", "\ud800", "<", ":",
    "blocked", "[ ] ", "[DONE]", "\\[ \\] ", "\uff3b ", "\uff3d", "\u2610 ", "| ", "> ", "1.1 ",
    "(1) ", "\u2022 ", "_", "~~", "by", "\ufe0f", "\u2713", "\u3000",
)
# Plans, and the texts of their tasks.
PLANS: list[tuple[str, str]] = [
    ("- [ ] a\n- [ ] b\n", "a b"), ("- [ ] a\r\n- [ ] b\r\n", "a b"), ("- [ ] a\r- [ ] b", "a b"),
    ("- [ ] a\n\r\n- [ ] b", "a b"), ("\ufeff- [ ] a", "a"), ("", ""), ("\n\n", ""),
    ("- [ ] a\u2028- [ ] b", "a\u2028- [ ] b"), ("- [ ] a\u0085- [ ] b", "a\u0085- [ ] b"),
    ("- [ ] a\f- [ ] b", "a\f- [ ] b"), ("- [ ] a\v- [ ] b", "a\v- [ ] b"),
    ("- [ ] a\x1c- [ ] b", "a\x1c- [ ] b"),
    # Code and comments hold no tasks; what is never closed hides none.
    ("```\n- [ ] no\n```\n- [ ] yes", "yes"), ("~~~\n- [ ] no\n~~~\n- [ ] yes", "yes"),
    ("```python\n- [ ] no\n```\n- [ ] yes", "yes"),
    ("```\n- [ ] no\n~~~\n- [ ] no\n```\n- [ ] yes", "yes"),
    ("````\n```\n- [ ] no\n```\n````\n- [ ] yes", "yes"),
    ("```\n- [ ] no\n`````\n- [ ] yes", "yes"),
    ("```\n- [ ] no\n``` not the end\n- [ ] no\n```", ""),
    ("````\n- [ ] yes\n```\n- [ ] too", "yes too"),
    ("```\n- [ ] no\n```\n~~~\n- [ ] yes, for it is never closed", "yes, for it is never closed"),
    ("````\n- [ ] yes\n```\n- [ ] no\n```", "yes"),
    ("<!--\n- [ ] no\n--> <!--\n- [ ] no\n-->\n- [ ] yes", "yes"),
    ("a `` b <!-- ` c\n- [ ] no\n-->", ""),
    ("- [ ] yes\n  ```\n  - [ ] no\n  ```\n- [ ] too", "yes too"),
    ("- ```\n  - [ ] no\n  ```\n- [ ] yes", "yes"), ("``\n- [ ] yes\n``", "yes"),
    ("```a`b\n- [ ] yes, for an info string has no tick", "yes, for an info string has no tick"),
    ("use ``` like this\n- [ ] yes", "yes"), ("```\n<!--\n```\n- [ ] yes\n-->", "yes"),
    ("<!-- - [ ] no -->\n- [ ] yes", "yes"), ("<!--\n- [ ] no\n-->\n- [ ] yes", "yes"),
    ("<!--\n```\n-->\n- [ ] yes", "yes"),
    ("- [ ] a <!-- aside --> b\n- [ ] c", "a                b c"),
    ("<!-- a --> <!-- b -->\n- [ ] yes", "yes"),
    ("text <!-- begins\n- [ ] no\nends -->\n- [ ] yes", "yes"),
    ("- [ ] the sign `<!--` in code\n- [ ] yes", "the sign `<!--` in code yes"),
    ("the sign `<!--`, then <!-- one\n- [ ] no\n-->\n- [ ] yes", "yes"),
    ("<!-- that nothing closes\n- [ ] yes", "yes"),
    ("--> <!-- that nothing closes\n- [ ] yes", "yes"),
    ("text <!-- that nothing closes\n- [ ] yes", "yes"),
]
# Plans, and the summary that completes them.
TAGS: list[tuple[str, str | None]] = [
    ("<plan-complete>all done</plan-complete>", "all done"),
    ("<plan-complete>\n  all\n  done\n</plan-complete>\n", "all\n  done"),
    ("<plan-complete></plan-complete>", ""), ("   <plan-complete>a</plan-complete>", "a"),
    ("    <plan-complete>a</plan-complete>", None), ("\t<plan-complete>a</plan-complete>", None),
    ("text <plan-complete>a</plan-complete>", None), ("- <plan-complete>a</plan-complete>", None),
    ("<plan-complete>a", None), ("a</plan-complete>", None),
    ("</plan-complete><plan-complete>", None), ("<plan-complete date='x'>a</plan-complete>", None),
    ("<plan-complete/>", None), ("<PLAN-COMPLETE>a</PLAN-COMPLETE>", None),
    ("<plan-complete>a</plan-complete>\n<plan-complete>b</plan-complete>", "b"),
    ("<plan-complete>a</plan-complete>\n<plan-complete>b", "a"),
    ("<plan-complete>one\nends here</plan-complete> and text", "one\nends here"),
    ("```\n<plan-complete>a</plan-complete>\n```", None),
    ("```\n<plan-complete>a</plan-complete>", "a"),
    ("<!--\n<plan-complete>a</plan-complete>\n-->", None),
    ("<!-- <plan-complete>a</plan-complete> -->", None),
    ("`<plan-complete>a</plan-complete>`", None),
    ("<plan-complete>a\n```\ncode\n```\nb</plan-complete>", "a\n```\ncode\n```\nb"),
    ("- [ ] a\r\n<plan-complete>x\r\ny</plan-complete>\r\n", "x\ny"),
    ("\ufeff<plan-complete>a</plan-complete>", "a"),
    ("a\u2028<plan-complete>b</plan-complete>", None),
    ("- [ ] still pending\n<plan-complete>early</plan-complete>", "early"),
]
# Plans that are large, and how many tasks they have.
LARGE_PLANS: list[tuple[str, int]] = [
    (("- [ ] a task of a very long plan" + " and more" * 8 + "\n") * 100_000, 100_000),
    ("## A heading\n\ntext and more text [link](u) `code`\n- [x] done\n" * 60_000, 60_000),
    ("- [ ]a near miss\n" * 100_000, 0), ("<!-- a comment\n" * 100_000, 0),
    ("text <!-- that nothing closes\n" * 100_000, 0), ("<plan-complete>\n" * 100_000, 0),
    ("- " + "[" * 1_000_000, 0), ("- [" + " " * 1_000_000, 0), ("x" * 10_000_000, 0),
    ("# a" + " " * 3_000 + "b\n- [ ] after a wide heading", 1), ("[" * 2_000_000, 0),
    ("# a" + " #" * 3_000 + "b\n- [ ] after a strange heading", 1),
    ("<!---->" * 8_000 + "\n- [ ] after many comments", 1),
    ("`" * 2_000_000, 0), ("<!--" * 500_000, 0), ("- [ ] [" * 300_000, 1),
    ("- [ ] " + "[" * 2_000_000, 1), ("- [ ] " + "[MANUAL] " * 100_000 + "x", 1),
    ("- [ ] T " + "]" * 5_000_000, 1), ("`a" * 300_000 + "[ ]", 0), ("<!--\n" * 100_000, 0),
    ("a --> b <!-- c\n" * 300_000, 0),
    ("```a\n" * 200_000, 0), ("[ ] [" * 500_000, 0),
    ("[x]: a" * 500_000, 0), ("| [" * 500_000, 0), ("[ " + " " * 1_000_000 + "[ ", 0),
    ("x [ " + "a" * 500_000 + "[", 0), ("x [x]:" + " " * 500_000 + "a b", 0),
    ("1." * 120_000 + "[x", 0), ("1" + "." * 240_000 + "[x", 0),
]
# Prompts, the fields of their front matter, and what is sent.
PROMPTS: list[tuple[str, dict[str, str], str]] = [
    ("Just do it", {}, "Just do it"),
    ("---\nmodel: a/b\nagent: build\n---\nDo it\n", {"model": "a/b", "agent": "build"}, "Do it"),
    ("---\r\nmodel: a/b\r\n---\r\nDo\r\nit", {"model": "a/b"}, "Do\nit"),
    ("\ufeff---\nmodel: a/b\n---\nDo it", {"model": "a/b"}, "Do it"),
    ("---\nmodel: 'a/b'\nagent: \"x\"\n---\nDo it", {"model": "a/b", "agent": "x"}, "Do it"),
    ("---\n# model: a/b\n\nagent:build\n---\nDo it", {"agent": "build"}, "Do it"),
    ("---\n---\nDo it", {}, "Do it"),
    ("---   \nmodel: a/b:free\n---  \nDo it", {"model": "a/b:free"}, "Do it"),
    ("---\nmodel: a/b\n---", {"model": "a/b"}, ""), ("---\nno end of it", {}, "---\nno end of it"),
    ("---\nRead {{PLAN_FILE}}.\n---\nEnd.", {}, "---\nRead {{PLAN_FILE}}.\n---\nEnd."),
    ("---\nmodel: a/b\nDo it: now\n---\nEnd.", {}, "---\nmodel: a/b\nDo it: now\n---\nEnd."),
    ("---\ntools:\n  bash: false\n- x\nagent: y\n---\nDo it",
     {"tools": "", "bash": "false", "agent": "y"}, "Do it"),
    ("Text\n---\nmodel: a/b\n---\n", {}, "Text\n---\nmodel: a/b\n---"),
    ("---\nmodel: a/b\n---\nOne\n---\nTwo", {"model": "a/b"}, "One\n---\nTwo"),
    ("---\nmodel: a/b\n----\nagent: x\n---\nDo it", {"model": "a/b", "agent": "x"}, "Do it"),
    ("", {}, ""),
]
# A plan, the same after each iteration, and what the iterations are called.
PROGRESS: list[tuple[str, list[str], str]] = [
    ("[ ] a\n", ["[x] a, by way of b\n"], "done"),
    ("[ ] a\n", ["[x] a\n", "[ ] b\n", "[x] c\n"], "done, nothing settled, nothing settled"),
    ("[ ] a\n[ ] b\n", ["[x] a\n[ ] b\n", "[ ] a\n[ ] b\n[ ] c\n", "[x] a\n[ ] b\n[ ] c\n"],
     "done, nothing settled, nothing settled"),
    ("[x] old\n" * 20 + "[ ] older\n",
     ["[x] old\n" * 21, "[ ] new\n[ ] newer\n" * 2, "[x] new\n[ ] newer\n" * 2],
     "done, nothing settled, done"),
    ("[ ] a\n" * 2, ["[MANUAL] a\n[ ] a\n"], "manual"),
    ("[BLOCKED: x] a\n[ ] a\n", ["[BLOCKED: x] a\n[x] a\n"], "done"),
    ("[ ] a\n[ ] b\n", ["[x] a, by way of c\n[BLOCKED: x] b\n"], "done"),
    # One that was marked as blocked is not done.
    ("[ ] a\n[ ] b\n[ ] c\n", ["[BLOCKED: x] a\n[ ] b\n[ ] c\n"], "blocked"),
    ("[ ] a\n[ ] b\n[ ] c\n", ["[x] a\n[BLOCKED: x] b\n[ ] c\n"], "done"),
    ("[ ] a\n[ ] b\n[ ] c\n", ["[BLOCKED: x] a\n[x] b\n[ ] c\n"], "blocked"),
    ("[ ] a\n[ ] b\n[ ] c\n", ["[ ] a\n[BLOCKED: x] b\n[ ] c\n"], "blocked"),
    ("[ ] a\n[ ] b\n", ["[BLOCKED: x] a, reworded\n[ ] b\n"], "blocked"),
    # The task that it began with is not done where another one is.
    ("[ ] a\n[ ] b\n[ ] c\n", ["[ ] a\n[x] b\n[ ] c\n", "[x] a\n[x] b\n[ ] c\n"], "progress, done"),
    ("[ ] a\n" * 2, ["[x] a\n[ ] a\n"], "done"),
    ("[ ] a\n" * 2, ["[x] a\n[ ] more\n[ ] a\n"], "done"),
]
# What is written behind an option, and what becomes of it; None: it is refused.
OPTION_VALUES: dict[str, dict[str, Any]] = {
    "DURATION": {
        "90": 90.0, "90s": 90.0, "15m": 900.0, "2h": 7200.0, "1.5h": 5400.0, "1h30m": 5400.0,
        "0": 0.0, "1d": 86400.0, "9999999999d": 1e9,
        **dict.fromkeys(("-1", "2x", "", "inf", "1h30"))},
    "N": {"0": 0, "27": 27, **dict.fromkeys(("-1", "1.5", "", "many", "\u00b2", "9" * 400))},
    "USD": {"20": 20.0, "0.50": 0.5, ".5": 0.5, "5.": 5.0,
            **dict.fromkeys(("-1", "20 USD", "nan", "", "9" * 400))},
    "PROVIDER/MODEL": {
        "a/b": ["a/b"], "a/b,c/d/e": ["a/b", "c/d/e"],
        "openrouter/x/y:free": ["openrouter/x/y:free"], "a/b#high,c/d": ["a/b#high", "c/d"],
        **dict.fromkeys(("sonnet", "/b", "a/", "a b/c", "a/b,", "", "a/b#", "a/b#c#d"))},
    "PORT": {"4096": 4096, "65535": 65535, **dict.fromkeys(("65536", "655360", "x"))},
    "PATH": {"a b": "a b", " ": None}, "CMD": {"a; b\nc": "a; b\nc", "": None}, "AGENT": {"": None},
    "MIB": {"\u00b2": None},
    "URL": {
        **{url: url for url in (
            "http://127.0.0.1:4096", "https://example.org/base/", "http://[::1]:4096")},
        **dict.fromkeys((
            "127.0.0.1:4096", "ftp://x", "http://", "http://me:secret@x", "http://x:port",
            "http://x:65536"))},
}
# fmt: on

LONG_PLAN = "".join(
    f"\n## Phase {phase}\n\n"
    + "".join(f"- [x] task {phase}{number} <{phase}{number}>\n" for number in range(10))
    for phase in range(1, 7)
).replace("- [x] task 3", "- [ ] task 3", 5)  # the first one is <30>
