#!/bin/sh
#
# Runs the bridge alone against a script of frames, and prints TAP.
#
#	run.sh [asan | valgrind] [group of tests ...]
#
# asan (the default): program and script are built with the address and the
# undefined behaviour sanitizer.  valgrind: the program runs under it.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
how=asan
case ${1:-} in
	asan | valgrind)
		how=$1
		shift
		;;
esac
build=$top/test/build/bridge-$how
mkdir -p "$build"

CC=${CC:-cc}
# Warnings about librdkafka's header are for others to heed
flags="-std=gnu11 -g -Wall -Wextra -Werror -Wno-unused-parameter -DOUTBOX_BUILD=\"test\" $(pkg-config --cflags rdkafka | sed 's/-I/-isystem /g')"
libs="$(pkg-config --libs rdkafka) -lpthread"
if [ "$how" = asan ]; then
	flags="$flags -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
else
	flags="$flags -O1"
fi

# shellcheck disable=SC2086
$CC $flags -o "$build/outbox_bridge" "$top"/src/bridge/*.c $libs
# shellcheck disable=SC2086
$CC $flags -I"$top/src/bridge" -o "$build/script" "$here"/*.c "$top/src/bridge/frame.c" "$top/src/bridge/version.c" $libs

# The script knows these statuses for faults; 0 and 1 are the bridge's own
export ASAN_OPTIONS=exitcode=99:detect_leaks=0
export UBSAN_OPTIONS=exitcode=99:print_stacktrace=1
BRIDGE_COMMAND=$build/outbox_bridge
if [ "$how" = valgrind ]; then
	# Without freeres: it waits for locks of threads that are no more
	rm -f "$build"/valgrind.*
	BRIDGE_COMMAND="valgrind -q --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite --run-libc-freeres=no --suppressions=$here/librdkafka.supp --log-file=$build/valgrind.%p $BRIDGE_COMMAND"
	BRIDGE_SLOW=${BRIDGE_SLOW:-5}
	export BRIDGE_SLOW
fi
export BRIDGE_COMMAND

status=0
"$build/script" "$@" || status=$?
if [ "$how" = valgrind ]; then
	find "$build" -name 'valgrind.*' -size +0 -exec sed 's/^/# /' {} +
fi
exit $status
