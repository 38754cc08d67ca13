#!/usr/bin/env python3
"""A fake `opencode`, for what the real one cannot be made to do, and for measuring a loop.

It speaks the part of the HTTP interface of `opencode serve` 1.18.33, or of 2.1.2, that a loop
needs, with the same bodies and the same order of events, and answers in less than a
millisecond. In place of a model it has one setting, so every fault can be had on demand. Put it
on PATH under the name `opencode`, or name it with `ocloop --opencode`.

    fake_opencode.py serve --hostname=127.0.0.1 --port=4096
    fake_opencode.py attach http://127.0.0.1:4096 --session ses_1               (1.x)
    fake_opencode.py . --server http://127.0.0.1:4096 --session ses_1           (2.x)
    fake_opencode.py --version

The setting is the environment variable FAKE_OPENCODE, a JSON object. All its keys may be left
out:

    generation    1 or 2; 1. The password of 2.x is OPENCODE_PASSWORD, else
                  OPENCODE_SERVER_PASSWORD, else a random one that is printed
    version       what it says it is; "1.18.33" or "2.1.2"
    old           a version too old for some routes: "1.0.0" has no prompt_async; "2.0.2" has no
                  /api/info but /api/health, takes `reply` for `decision`, lists
                  /api/form/request
    not_opencode  true: another web server, every route answers 200 and a page of HTML
    answers       list: what the agent does, one entry for each new prompt, the last one
                  repeated; ["work"]
    again         what it does when it is to go on after a prompt that it did not answer, with
                  the same ids (1.x, or 2.x before delivery) or with a new id in the session
                  (2.x): "work"; "same" repeats the fault
    delay         seconds of work in each answer; 0
    retries       retries, 0.2 s each, before the errors 429 and 5xx; 0
    price         false: models without a price, and nothing costs anything
    store         path: sessions and messages are kept here (JSON lines) and read by the next
                  process
    log           path: JSON lines, see below
    start         "exit" (one line on stderr, exit status 3), "silent" (never says that it
                  listens, nor does it), "slow:SECONDS"; else a usual start
    starts        list: `start` for each process in turn, the last one repeated; counted in a
                  file, see `counter`
    counter       path of that file; the log's or the store's name with ".starts" appended
    booting       2.x: seconds of 503 service_starting on every route
    catalogue     2.x: seconds from their first request during which the lists of models and
                  agents are empty; then model.updated and agent.updated
    lag           2.x: seconds that a session stays active after the event of its end; 0
    port          listen on this port instead of the one that was asked for; 0 is any free one
    routes        1.x, "five": only POST /session, prompt_async and abort, GET /event and
                  /config; else 404
    status_route  1.x, false: there is no /session/status
    config_error  1.x, true: every route of the directory answers 400 ConfigJsonError
    reply_fails   status: every reply to what is asked is answered with it, and does nothing
    question_fails  status: the list of questions (GET /question, GET /api/form) is answered
                  with it
    heartbeat     seconds between heartbeats (1.x: events, 2.x: comments); 10 or 15
    per_chunk     events in one HTTP chunk of a flood; 1, as on the real server's socket
    memory        MiB to take with the first prompt; a list gives each process its own, counted
                  as `starts` are
    stubborn      true: SIGTERM, SIGINT and SIGHUP are ignored
    model         the configured model, "fake/model"
    models        the models that exist; [model]
    agents        the agents that exist; ["build", "plan", "general", "explore"]

The plan is the file that the prompt names: an absolute path that ends in .md and exists. The
answers, which mean the same on both generations unless it is said:

    work          mark the first pending task done; when none is left after that, append the
                  completion tag
    mark          mark the first pending task done, and nothing else
    block         turn the first pending task into a blocked one
    finish        append the tag, whatever is pending
    nothing       answer without touching the plan
    delete        delete the plan
    uncheck       uncheck the first task that is done; check the first one when none is
    retext        append " (attempt N failed)" to the first pending task
    stash:SECONDS the plan is away for that time, then it is back, and work
    cost:USD      work, and that is what it cost
    sleep:SECONDS work after that time
    error:CODE    the provider's error with this status; error:CODE:MESSAGE sets its message.
                  1.x: APIError. 2.x: provider.auth (401, 403), quota (402), no-route (404),
                  rate-limit (429), internal (5xx), else invalid-request
    auth          the login is missing: ProviderAuthError; provider.auth without a status
    retry:SECONDS a retry, due after that time, then work
    retry-park    the same with a day to wait
    unknown       answers without a finish reason. 1.x: about 20 a second, until it is aborted.
                  2.x: the cut stream goes on in a new message, three times, then
                  provider.invalid-output
    overflow      the context is too long, a compaction, then work. 1.x: an error while running,
                  the answer under a new parent
    hang          busy for ever, nothing comes
    silent        the prompt is taken, never busy, never answered. 2.x: it stays in the inbox
    noidle        work, but the event of its end is lost
    falsebusy     work, but it stays busy for the status route (1.x) or active (2.x), and there
                  is no event of its end; falsebusy:idle sends the event
    drop          close the event streams in mid-answer, finish the answer at once
    die           half an answer and half an event, then exit status 1 with a line on stderr
    freeze        busy, then no answer on any route ever, no event, no heartbeat; connections
                  are still accepted
    grow:MIB      take so much memory more, then work
    swell:MIB     take so much more each second, until it is aborted
    loop-tool     the same tool call again and again, until it is aborted
    ask           asks for a permission; a bare `reject` ends the turn, anything else goes on
                  with work
    ask-child     the same from a subagent's session; then the parent works
    ask-forever   asks again after every refusal with a message, until it is aborted
    question      asks a question (2.x: a form, unless the session denies the action
                  `question`); an answer, or a refusal with a message (2.x), goes on with work,
                  a bare one ends the turn
    typed         before the answer, a person types a message of their own, which is answered
                  and goes idle. 2.x, typed:steer: it comes in the middle of the answer
    garbage       invalid JSON and UTF-8, unknown types, comments, other sessions' events, then
                  work
    flood:N       N text deltas as fast as they are read, then work
    bigline:BYTES one tool call with that much output, then work
    spawn         a `sleep 1000` with a session of its own, as tools have, then work; spawn:hang
                  never ends
    again-answers 1.x: the prompt is answered again and again while the status stays busy
    wake          2.x: half a second after the end it becomes active again by itself, once, for
                  a second
    nothing-ran   2.x: delivered, succeeded, and no answer

An interrupt of 2.x answers first, and the work ends 0.3 s later. SIGTERM ends the tools of 2.x,
and not those of 1.x. What 2.x refuses, as the real one does: POST without application/json
(415), POST on a route that does not exist (405), a prompt id that does not begin with msg_
(400), the same id with another text (409), a form that is settled (409), cursor and order
together (400).

The log has {"time", "method", "path", "body"} for each request when it arrives, and {"time",
"event", ...}; time is time.time(). Requests in words that fit both generations:

    session       session, title, directory
    prompt        session, id, text, model ("provider/model", "" when none was chosen), agent
    reply         kind ("permission", "question"), id, decision ("once", "always", "reject",
                  "answer", "dismiss"), message, answers, code (200: it was taken; else 404 or
                  `reply_fails`)
    abort         session
    dispose       1.x

and what the fake does itself: exec (pid, memory), listening (port), busy and idle (session),
flood (events), flooded, spawned (pid), frozen, died.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # also with python -I

from fake_server import EDITS, Json, Server, basic

KEYS = re.findall(r"^    ([a-z_]+) ", (__doc__ or "").partition("The plan is")[0], re.MULTILINE)


def nth_start(behaviour: Json) -> int:
    """How many processes with this counter were started before; the file's size is the count."""
    if not any(isinstance(behaviour.get(key), list) for key in ("starts", "memory")):
        return 0
    path = behaviour.get("counter") or (behaviour.get("log") or behaviour.get("store") or "")
    if not path:
        raise SystemExit(
            "fake opencode: a list of starts needs one of the keys counter, log, store"
        )
    path = behaviour.get("counter") or path + ".starts"
    with open(path, "ab") as file:
        file.write(b".")
        file.flush()
        return file.tell() - 1


def nth(value: Any, place: int) -> Any:
    """The entry of a list for this process, the last one repeated; what is no list is for all."""
    return value[min(place, len(value) - 1)] if isinstance(value, list) else value


def make_server(behaviour: Json) -> Server:
    """The server of the generation that is wanted; only its module is loaded."""
    kind: type[Server]
    if behaviour.get("generation", 1) == 2:
        from fake_opencode2 import Server2 as kind  # noqa: PLC0415
    else:
        from fake_opencode1 import Server1 as kind  # noqa: PLC0415
    check(behaviour, kind)
    return kind(behaviour)


def check(behaviour: Json, kind: type[Server]) -> None:
    """A misspelt key or answer would make a test pass that tests nothing."""
    wrong = sorted(set(behaviour) - set(KEYS))
    for answer in [*behaviour.get("answers", []), behaviour.get("again", "work")]:
        name = answer.partition(":")[0]
        method = "answer_" + name.replace("-", "_")
        if name not in [*EDITS, "silent", "same"] and not hasattr(kind.turn, method):
            wrong.append(answer)
    if wrong:
        raise SystemExit(f"fake opencode: unknown in FAKE_OPENCODE: {', '.join(wrong)}")


def listen(hostname: str, ports: tuple[int, ...]) -> socket.socket:
    """Take the first port that is free; a taken port ends the process as the real one's does."""
    for number in ports:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((hostname, number))
            listener.listen(128)
            return listener
        except OSError:
            listener.close()
    sys.stderr.write("Error: Unexpected error\n\nServeError\n")
    raise SystemExit(1)


def end(server: Server) -> None:
    """What SIGTERM does to 2.x: its tools end with it."""
    server.kill_tools()
    os._exit(0)


def set_signals(server: Server, behaviour: Json) -> None:
    """Who is ended by what."""
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    if behaviour.get("stubborn"):
        for name in names:
            signal.signal(name, signal.SIG_IGN)
    elif behaviour.get("generation") == 2:
        for name in names:
            signal.signal(name, lambda number, stack: end(server))
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def set_password(server: Server, generation: int) -> str:
    """Take the password from the environment; returns what is to be said of it."""
    password = os.environ.get("OPENCODE_SERVER_PASSWORD") or ""
    if generation == 1:
        user = os.environ.get("OPENCODE_SERVER_USERNAME") or "opencode"
        if password:
            server.authorization = basic(user, password)
            return ""
        return "Warning: OPENCODE_SERVER_PASSWORD is not set; server is unsecured.\n"
    password = os.environ.get("OPENCODE_PASSWORD") or password
    own = password or os.urandom(16).hex()
    server.authorization = basic("opencode", own)
    return "" if password else f"server password {own}\n"


def leave_library() -> None:
    """Unpack a library, as a program of Bun's does at each start, and leave it behind."""
    folder = os.environ.get("BUN_TMPDIR") or os.environ.get("TMPDIR")
    if folder and os.path.isdir(folder):
        name = f".{os.urandom(8).hex()}-00000000.so"
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"\x7fELF")


def serve(hostname: str, port: int | None) -> None:
    """`opencode serve`."""
    began = time.time() - time.process_time()
    behaviour = json.loads(os.environ.get("FAKE_OPENCODE") or "{}")
    generation = int(behaviour.get("generation", 1))
    place = nth_start(behaviour)
    start = nth(behaviour.get("starts") or behaviour.get("start"), place) or ""
    leave_library()
    taken = bytearray(b"x") * (int(nth(behaviour.get("memory"), place) or 0) << 20)
    server = make_server(behaviour)
    set_signals(server, behaviour)
    server.note("exec", time=began, pid=os.getpid(), memory=len(taken) >> 20)
    if start == "exit":
        sys.stderr.write("fake opencode: it cannot start, as ordered\n")
        raise SystemExit(3)
    if start == "silent":
        while True:
            time.sleep(3600)
    if start.startswith("slow:"):
        time.sleep(float(start[5:]))
    words = set_password(server, generation)
    ports: tuple[int, ...] = (port,) if port else (4096, 0)
    if generation == 2 and port is not None:
        ports = (port,)
    if "port" in behaviour:
        ports = (int(behaviour["port"]),)
    listener = listen(hostname, ports)
    number = listener.getsockname()[1]
    server.note("listening", port=number)
    line = f"server listening on http://{hostname}:{number}\n"
    text = f"{words}opencode {line}" if generation == 1 else line + words
    sys.stdout.write(text)
    sys.stdout.flush()
    server.serve(listener)


def attach(arguments: list[str], variables: tuple[str, ...]) -> None:
    """The interface on a session: say what was given, wait for a line or the end of the input."""
    password = "yes" if any(os.environ.get(name) for name in variables) else "no"
    print(f"attach {' '.join(arguments)}\npassword: {password}", flush=True)
    sys.stdin.readline()


def main() -> None:
    """The command line, as far as a loop uses it."""
    behaviour = json.loads(os.environ.get("FAKE_OPENCODE") or "{}")
    generation = behaviour.get("generation", 1)
    command, *arguments = sys.argv[1:] or [""]
    given = [argument for argument in arguments if argument.startswith("--")]
    options = dict(argument[2:].partition("=")[::2] for argument in given)
    for place, argument in enumerate(arguments[:-1]):
        if argument in ("--hostname", "--port"):
            options[argument[2:]] = arguments[place + 1]
    if command == "serve":
        port = options.get("port")
        serve(options.get("hostname") or "127.0.0.1", int(port) if port else None)
    elif command == "attach" and generation == 1:
        attach(arguments, ("OPENCODE_SERVER_PASSWORD",))
    elif generation == 2 and "--server" in sys.argv:
        attach(sys.argv[1:], ("OPENCODE_PASSWORD", "OPENCODE_SERVER_PASSWORD"))
    elif command in ("--version", "-v"):
        version = behaviour.get("version") or behaviour.get("old")
        print(version or "1.18.33" if generation == 1 else f"opencode v{version or '2.1.2'}")
    else:
        raise SystemExit("usage: opencode serve|attach|--version")


if __name__ == "__main__":
    main()
