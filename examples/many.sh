#!/bin/sh
# Many plans at once: for each plan a worktree, a branch and an ocloop of its own.
#
#     examples/many.sh [-j N] PLANS [options of `ocloop.py run` …]
#
# PLANS is a folder with committed plans (*.md) of a git repository. For plans/login.md there will be a
# branch ocloop/login and a worktree beside the repository, REPOSITORY.many/login. At most N loops
# (2) run at a time; xargs sees to that. A line says when each begins and ends, what it printed is in
# REPOSITORY.many/login.log, and at the end stands a table. What is complete is committed on its
# branch and its worktree removed: `git merge ocloop/login` brings it home. What is not is kept for a
# look (`ocloop.py status` there says what to do), and going on is running this again. OCLOOP names the
# program when it is not ../ocloop.py beside this file.
set -eu

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit 0
fi

here=$(cd "$(dirname "$0")" && pwd)
OCLOOP=${OCLOOP:-$here/../ocloop.py}
export OCLOOP

name_of() {     # PLAN: sets name
    name=${1##*/}
    name=${name%.md}
}

shown() {       # TEXT: as much of it as no terminal obeys
    printf '%s' "$1" | LC_ALL=C tr -c '[:print:]' '?'
}

make_tree() {   # PLAN: its worktree and branch, where they are not there; git makes one at a time
    name_of "$1"
    rm -f "$MANY/$name.status"
    [ ! -d "$MANY/$name" ] || return 0
    if git rev-parse -q --verify "refs/heads/ocloop/$name" >/dev/null; then
        git worktree add -q "$MANY/$name" "ocloop/$name"
    else
        git worktree add -q -b "ocloop/$name" "$MANY/$name"
    fi
}

run_one() {     # PLAN [options …]: work one plan in its worktree, and keep its exit status
    plan=$1
    shift
    name_of "$plan"
    tree=$MANY/$name
    [ -e "$tree/$plan" ] || { mkdir -p "$tree/$(dirname "$plan")" && cp "$plan" "$tree/$plan"; }
    if [ ! -e "$tree/.loop-prompt.md" ]; then
        if [ -e .loop-prompt.md ]; then
            cp .loop-prompt.md "$tree/.loop-prompt.md"
        else
            empty=$(mktemp -d)
            python3 "$OCLOOP" bootstrap "$empty" >/dev/null
            cp "$empty/.loop-prompt.md" "$tree/.loop-prompt.md"
            rm -r "$empty"
        fi
    fi
    echo "$(shown "$name"): begins, on branch ocloop/$(shown "$name") in $(shown "$tree")"
    status=0
    (cd "$tree" && exec python3 "$OCLOOP" run --plain --plan "$plan" "$@") \
        >>"$MANY/$name.log" 2>&1 || status=$?
    echo "$status" >"$MANY/$name.status"
    echo "$(shown "$name"): ended with exit status $status, see $(shown "$MANY/$name.log")"
}

row() {         # PLAN: its line of the table, from `status --json` and the exit status
    name_of "$1"
    status=$(cat "$MANY/$name.status" 2>/dev/null || echo "?")
    (cd "$MANY/$name" && python3 "$OCLOOP" status --json --plan "$1") 2>/dev/null | python3 -I -c '
import json, sys
name, status = sys.argv[1:]
name = "".join(sign if sign.isprintable() else "?" for sign in name)
said = json.load(sys.stdin)
run = said["run"] or {}
print("%-20s %6s %5d/%-5d %7d  $%.4f  %s" % (
    name, status, said["done"], said["total"], said["blocked"], run.get("cost", 0.0),
    " ".join(str(run.get("reason", "")).split())[:60]))
' "$name" "$status" || true
}

keep() {        # PLAN: commit what is complete and remove its worktree
    name_of "$1"
    [ "$(cat "$MANY/$name.status" 2>/dev/null)" = 0 ] || return 0
    git -C "$MANY/$name" add -A
    git -C "$MANY/$name" diff --cached --quiet || git -C "$MANY/$name" commit -qm "ocloop: $name"
    git worktree remove --force "$MANY/$name"
}

if [ "${1:-}" = --one ]; then
    shift
    left=$#     # the plan is the last word, after the options: it is to be the first
    while [ "$left" -gt 1 ]; do
        set -- "$@" "$1"
        shift
        left=$((left - 1))
    done
    run_one "$@"
    exit 0
fi

jobs=2
if [ "${1:-}" = -j ]; then
    jobs=${2:-}
    shift
    [ $# = 0 ] || shift
fi
case $jobs in
    '' | 0 | *[!0-9]*) set -- ;;
esac
if [ $# = 0 ]; then
    echo "usage: many.sh [-j N] PLANS [options of ocloop.py run …]" >&2
    exit 2
fi
plans=$1
shift

# A wrong option is told before anything is made: / is no plan, so that nothing is begun.
status=0
said=$(python3 "$OCLOOP" run "$@" --plan / 2>&1) || status=$?
if [ $status = 2 ]; then
    echo "$said" >&2
    exit 2
fi

plans=$(cd "$plans" && pwd)
top=$(git -C "$plans" rev-parse --show-toplevel)
MANY=$top.many
export MANY
mkdir -p "$MANY"
# Somebody else may have made it, with worktrees that are theirs.
if [ -z "$(find "$MANY" -prune -type d -user "$(id -u)" ! -perm -002)" ]; then
    echo "many.sh: $(shown "$MANY") is not yours alone: look at it, and move it away" >&2
    exit 1
fi
cd "$top"
folder=${plans#"$top"}
folder=${folder#/}

if ! git rev-parse -q --verify HEAD >/dev/null; then
    echo "many.sh: $top has no commit yet, and a worktree begins with one: commit first" >&2
    exit 1
fi

if ! git var GIT_COMMITTER_IDENT >/dev/null 2>&1; then
    echo "many.sh: git does not know who you are, and what is complete is committed:" \
        "git config user.name … and user.email …" >&2
    exit 1
fi

fits() {        # PLAN: whether it is there, and git takes its name for a branch
    name_of "$1"
    [ -e "$1" ] && git check-ref-format "refs/heads/ocloop/$name"
}

list() {        # the plans that have a worktree, relative to the repository, each ended by a NUL
    for plan in "./${folder:+$folder/}"*.md; do
        ! fits "$plan" || [ ! -d "$MANY/$name" ] || printf '%s\0' "$plan"
    done
}

failed=0
if [ -n "$(git status --porcelain -- "./${folder:+$folder/}"*.md)" ]; then
    echo "many.sh: a plan in $(shown "$plans") is not committed, and a worktree begins with what is:" \
        "commit the plans first" >&2
    exit 1
fi
for plan in "./${folder:+$folder/}"*.md; do
    if [ -e "$plan" ] && ! fits "$plan"; then
        echo "many.sh: git takes no branch ocloop/$(shown "$name"): rename that plan" >&2
        failed=1
    elif [ -e "$plan" ]; then
        make_tree "$plan" || failed=1
    fi
done
if [ $failed = 0 ] && [ -z "$(list | tr -d '\0')" ]; then
    echo "many.sh: there is no plan (*.md) in $plans" >&2
    exit 1
fi
list | xargs -0 -n 1 -P "$jobs" sh "$here/many.sh" --one "$@" || failed=1
printf '\n%-20s %6s %11s %7s  %s\n' plan status tasks blocked "cost     reason"
for plan in "./${folder:+$folder/}"*.md; do
    fits "$plan" || continue
    row "$plan"
    [ "$(cat "$MANY/$name.status" 2>/dev/null)" = 0 ] || failed=1
    keep "$plan"
done
echo "the work is on the branches ocloop/*, the logs are in $(shown "$MANY")"
[ $failed = 0 ] || echo "what is not complete is kept in $(shown "$MANY"): \`ocloop.py status\` in its" \
    "worktree says what to do, then run this again"
exit $failed
