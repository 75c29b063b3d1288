#!/usr/bin/env bash
#
# Runs all tests, from nothing: installs what is missing, builds with warnings
# as errors, installs the extension, and runs the regression tests (sql/), the
# isolation tests (specs/) and the TAP tests (t/) in servers of their own.
#
#	TESTS="t/003_x.pl sql/attach specs/lanes" test/run-tests.sh
#
# runs only these.  KEEP=1 leaves the working folder.  JOBS=N runs N of the TAP
# tests at a time, 2 if not said: they wait more than they compute.  The last
# line is the sum; the status is 0 if all is well.
#
# As root, the tests run as an unprivileged user (postgres, or $TEST_USER) in a
# copy of the tree, since the server refuses to run as root.
set -euo pipefail
cd "$(dirname "$0")/.."

passed=0
failed=0
skipped=0
work=

say()
{
	echo "== $*"
}

summary()
{
	local line="$passed passed, $failed failed"

	[ "$skipped" -eq 0 ] || line="$line, $skipped skipped"
	echo "$line"
}

# What cannot even start counts as one failed test.
give_up()
{
	echo "run-tests.sh: $*" >&2
	failed=$((failed + 1))
	summary
	exit 1
}

# ---------- processes ----------

# Field N (from 3, the state) of a process's stat line.
stat_field()
{
	local line

	line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	line=${line##*) }
	# shellcheck disable=SC2086
	set -- "$2" $line
	shift $(($1 - 2))
	echo "$1"
}

# The processes of this run: what works in its folder, runs from it, or names
# it, and every bridge whose worker is gone.  A zombie is nobody's.
our_processes()
{
	local dir pid cwd exe state

	for dir in /proc/[0-9]*; do
		pid=${dir#/proc/}
		if [ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ]; then
			continue
		fi
		cwd=$(readlink "$dir/cwd" 2>/dev/null) || cwd=
		exe=$(readlink "$dir/exe" 2>/dev/null) || exe=
		case "$cwd:$exe" in
			"$work"* | *":$work"*) ;;
			*)
				if [ "$(cat "$dir/comm" 2>/dev/null)" = outbox_bridge ]; then
					[ "$(stat_field "$pid" 4)" = 1 ] || continue
				elif ! tr '\0' ' ' 2>/dev/null <"$dir/cmdline" | grep -qF "$work"; then
					continue
				fi
				;;
		esac
		state=$(stat_field "$pid" 3) || continue
		[ "$state" = Z ] || echo "$pid"
	done 2>/dev/null
}

cleanup()
{
	local pids

	trap - EXIT
	[ -n "$work" ] || return 0
	pids=$(our_processes)
	# shellcheck disable=SC2086
	[ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
	if [ "${KEEP:-0}" = 1 ]; then
		echo "kept: $work"
	else
		rm -rf "$work"
	fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---------- what the tests need ----------

test/install.sh test || give_up "packages are missing"

mkdir -p test/build
exec 8>test/build/.lock
if ! flock -n 8; then
	say "another run uses this tree; waiting"
	flock 8
fi

kafka_lib=$(test/fetch-kafka.sh) || give_up "Apache Kafka could not be fetched"

pg_config=${PG_CONFIG:-pg_config}
bindir=$("$pg_config" --bindir)
pkglibdir=$("$pg_config" --pkglibdir)
extdir=$("$pg_config" --sharedir)/extension
pgxs_test=$(cd "$(dirname "$("$pg_config" --pgxs)")/../test" && pwd)

say "building for $("$pg_config" --version)"
make -s COPT=-Werror PG_CONFIG="$pg_config" || give_up "the build failed"
make -s test-tools || give_up "the build of the test tools failed"

same_as_installed()
{
	local file

	cmp -s outbox.so "$pkglibdir/outbox.so" || return 1
	cmp -s outbox_bridge "$pkglibdir/outbox_bridge" || return 1
	for file in outbox.control outbox--*.sql; do
		cmp -s "$file" "$extdir/$file" || return 1
	done
}

if ! same_as_installed; then
	if [ ! -w "$pkglibdir" ] || [ ! -w "$extdir" ]; then
		give_up "no right to install into $pkglibdir; as root, run: make install"
	fi
	say "installing the extension"
	make -s install PG_CONFIG="$pg_config" >/dev/null || give_up "make install failed"
fi

# ---------- where they run ----------

work=$(mktemp -d "${TMPDIR:-/tmp}/outbox-test.XXXXXX")
work=$(cd "$work" && pwd -P)
mkdir "$work/tmp" "$work/counts"
tar -c --exclude=./.git --exclude='*.o' --exclude=./test/build/.lock . | tar -x -C "$work"

environment=(
	"PATH=$bindir:$PATH"
	"TMPDIR=$work/tmp"
	"TESTDIR=$work"
	"TESTDATADIR=$work/tmp_check"
	"TESTLOGDIR=$work/tmp_check/log"
	"PG_REGRESS=$pgxs_test/regress/pg_regress"
	"PERL5LIB=$pgxs_test/perl:$work/t/lib${PERL5LIB:+:$PERL5LIB}"
	"OUTBOX_KAFKA_LIB=$kafka_lib"
)

if [ "$(id -u)" -eq 0 ]; then
	tester=${TEST_USER:-postgres}
	id "$tester" >/dev/null 2>&1 || give_up "there is no user $tester"
	chown -R "$tester" "$work"
	as_tester=(runuser -u "$tester" -- env -C "$work" "HOME=$work" "${environment[@]}")
else
	as_tester=(env -C "$work" "${environment[@]}")
fi

# ---------- what is to run ----------

regress=()
isolation=()
tap=()
choose()
{
	local name

	for name; do
		case $name in
			*.pl) tap+=("$name") ;;
			sql/*)
				name=${name#sql/}
				regress+=("${name%.sql}")
				;;
			specs/*)
				name=${name#specs/}
				isolation+=("${name%.spec}")
				;;
			*) give_up "neither t/*.pl nor sql/* nor specs/*: $name" ;;
		esac
	done
}

shopt -s nullglob
if [ -n "${TESTS:-}" ]; then
	# shellcheck disable=SC2086
	choose $TESTS
else
	choose sql/*.sql specs/*.spec t/*.pl
fi
shopt -u nullglob

# ---------- pg_regress and isolation ----------

# Count the lines of pg_regress: its own form up to PostgreSQL 15, TAP later.
count_regress()
{
	local output=$1 status=$2 expected=$3
	local ok bad

	ok=$(grep -cE '^(ok [0-9]+ |(test|     [^ ]*|    ) .* \.\.\. ok )' "$output" || true)
	bad=$(grep -cE '^(not ok [0-9]+ |(test|     [^ ]*|    ) .* \.\.\. FAILED)' "$output" || true)
	passed=$((passed + ok))
	failed=$((failed + bad))

	# It may end before it has run them all.
	if [ $((ok + bad)) -lt "$expected" ]; then
		failed=$((failed + expected - ok - bad))
	elif [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then
		failed=$((failed + 1))
	fi
}

run_regress()
{
	local kind=$1 program=$2
	local out=$work/out_$kind status=0
	shift 2

	say "$kind"
	"${as_tester[@]}" mkdir -p "$out"
	"${as_tester[@]}" test/build/guard "$program" \
		--inputdir="$work" --outputdir="$out" --bindir="$bindir" \
		--temp-instance="$out/instance" --temp-config="$work/test/regress.conf" \
		--no-locale --encoding=UTF8 --dbname="$kind" "$@" >"$out.log" 2>&1 8>&- || status=$?
	grep -E '\.\.\. |^(not )?ok ' "$out.log" || true
	if [ "$status" -ne 0 ]; then
		grep -vE '\.\.\. |^(not )?ok |^ALTER DATABASE' "$out.log" || true
		[ ! -s "$out/regression.diffs" ] || head -400 "$out/regression.diffs"
		[ ! -s "$out/log/initdb.log" ] || tail -5 "$out/log/initdb.log"
		[ ! -s "$out/log/postmaster.log" ] || grep -E 'FATAL|PANIC|terminated' "$out/log/postmaster.log" | tail -20 || true
	fi
	count_regress "$out.log" "$status" $#
}

[ ${#regress[@]} -eq 0 ] ||
	run_regress regression "$pgxs_test/regress/pg_regress" "${regress[@]}"
[ ${#isolation[@]} -eq 0 ] ||
	run_regress isolation "$pgxs_test/isolation/pg_isolation_regress" "${isolation[@]}"

# ---------- TAP ----------

if [ ${#tap[@]} -gt 0 ]; then
	say "TAP"
	chmod 777 "$work/counts"
	"${as_tester[@]}" test/build/guard perl test/tap.pl \
		--counts "$work/counts/tap" --jobs "${JOBS:-2}" "${tap[@]}" 8>&- || true
	if [ -s "$work/counts/tap" ]; then
		read -r ok bad skip <"$work/counts/tap"
		passed=$((passed + ok))
		failed=$((failed + bad))
		skipped=$((skipped + skip))
	else
		failed=$((failed + 1))
		echo "the TAP tests ended early" >&2
	fi
fi

# ---------- the end ----------

if [ $((passed + failed)) -eq 0 ]; then
	give_up "no test has run"
fi

# All that was started has to be gone by itself; a moment is allowed for what
# has just been told to end.
deadline=$((SECONDS + 10))
left=$(our_processes)
while [ -n "$left" ] && [ $SECONDS -lt $deadline ]; do
	sleep 0.2
	left=$(our_processes)
done
if [ -n "$left" ]; then
	echo "left running:"
	for pid in $left; do
		echo "    $pid $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | cut -c1-200 || true)"
	done
	failed=$((failed + 1))
else
	passed=$((passed + 1))
fi

cleanup
summary
[ "$failed" -eq 0 ]
