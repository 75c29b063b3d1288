#!/usr/bin/env bash
#
# Runs the bench from nothing: installs what is missing, builds without
# assertions, installs the extension, and measures in a server and a broker of
# its own; see README.md.
#
#	make bench CASES="capture drain" QUICK=1 RUNS=3
#
# As root, everything runs as an unprivileged user (postgres, or $TEST_USER) in
# a folder that goes at the end; KEEP=1 keeps it.
set -euo pipefail
cd "$(dirname "$0")/.."

work=
driver=
cleanup()
{
	trap - EXIT
	# All that it started ends with it: see test/guard.c.
	if [ -n "$driver" ]; then
		kill "$driver" 2>/dev/null || true
		wait "$driver" 2>/dev/null || true
	fi
	[ -n "$work" ] || return 0
	if [ "${KEEP:-0}" = 1 ]; then
		echo "kept: $work"
	else
		rm -rf "$work"
	fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

test/install.sh bench
fetched=$(bench/fetch.sh)

pg_config=${PG_CONFIG:-pg_config}
pkglibdir=$("$pg_config" --pkglibdir)

echo "building for $("$pg_config" --version)"
make -s PG_CONFIG="$pg_config"
make -s bench-tools
if [ -w "$pkglibdir" ]; then
	make -s install PG_CONFIG="$pg_config" >/dev/null
elif ! cmp -s outbox.so "$pkglibdir/outbox.so" || ! cmp -s outbox_bridge "$pkglibdir/outbox_bridge"; then
	echo "run.sh: no right to install into $pkglibdir; as root, run: make install" >&2
	exit 1
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/outbox-bench.XXXXXX")
mkdir "$work/bench" "$work/tools" "$work/results"
cp -r bench/*.py bench/lib bench/cases bench/against "$work/bench"
cp test/build/guard test/build/ktool bench/build/kbench "$work/tools"
chmod 755 "$work"

environment=(
	"BENCH_WORK=$work"
	"BENCH_BINDIR=$("$pg_config" --bindir)"
	"BENCH_RDKAFKA=$(pkg-config --modversion rdkafka)"
	"BENCH_COMMIT=$(git describe --always --dirty 2>/dev/null || true)"
	"BENCH_FETCHED=$fetched"
	"PYTHONDONTWRITEBYTECODE=1"
	"CASES=${CASES:-}" "QUICK=${QUICK:-0}" "RUNS=${RUNS:-}"
)
run_as=(env -C "$work")
if [ "$(id -u)" -eq 0 ]; then
	user=${TEST_USER:-postgres}
	id "$user" >/dev/null 2>&1 || { echo "run.sh: there is no user $user" >&2; exit 1; }
	chown -R "$user" "$work"
	run_as=(setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups env -C "$work")
fi

# Figures of a full run are kept case by case; those of a quick one prove
# nothing and go where they aren't committed.
target=bench
[ "${QUICK:-0}" = 0 ] || target=bench/build/quick
mkdir -p "$target/results"
cp "$target"/results/*.json "$work/results" 2>/dev/null || true
[ "$(id -u)" -ne 0 ] || chown -R "$user" "$work/results"

python=$(sed -n 's/^python //p' <<<"$fetched")
status=0
"${run_as[@]}" HOME="$work" "${environment[@]}" \
	"$work/tools/guard" "$python" "$work/bench/bench.py" &
driver=$!
wait "$driver" || status=$?
driver=

if [ -s "$work/RESULTS.md" ]; then
	cp "$work"/results/*.json "$target/results"
	find "$work" -maxdepth 1 \( -name "*.svg" -o -name RESULTS.md \) -exec cp {} "$target" ";"
	echo "written: $target/RESULTS.md"
fi
exit "$status"
