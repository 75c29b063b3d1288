#!/usr/bin/env bash
#
# Installs what building, the demo, the tests or the bench need on Debian 12 or 13.
#
#	install.sh [demo|test|bench]
#
# Does nothing, and asks no server, when everything is there.  An existing
# PostgreSQL cluster is left alone, and none is created.
set -euo pipefail

set_name=${1:-test}

# Each need is "test command|package"; the version of the server's headers has
# to be the version of the server, which is Debian's default one unless
# PG_CONFIG names another.
installed()
{
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

pg_major()
{
	local pg_config=${PG_CONFIG:-pg_config}
	local major=

	# PostgreSQL's own pg_config needs the headers' package; without it the
	# newest server that is installed counts, then Debian's default.
	if command -v "$pg_config" >/dev/null 2>&1; then
		major=$("$pg_config" --version 2>/dev/null | sed -n 's/^PostgreSQL \([0-9]*\).*/\1/p')
	fi
	if [ -z "$major" ]; then
		major=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 'postgresql-[0-9]*' 2>/dev/null |
			sed -n 's/^installed postgresql-\([0-9]*\)$/\1/p' | sort -n | tail -1)
	fi
	if [ -z "$major" ]; then
		major=$(apt-cache depends postgresql 2>/dev/null |
			sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p' | head -1)
	fi
	echo "$major"
}

missing=()
need()
{
	local package

	for package; do
		installed "$package" || missing+=("$package")
	done
}

list_missing()
{
	local major

	missing=()
	need gcc make libc6-dev pkg-config librdkafka-dev
	major=$(pg_major)
	if [ -n "$major" ]; then
		need "postgresql-$major" "postgresql-server-dev-$major"
	else
		need postgresql postgresql-server-dev-all
	fi
	case $set_name in
		demo)
			[ "${KAFKA:-mock}" = mock ] || need default-jre-headless maven
			;;
		test)
			need libipc-run-perl valgrind kcat default-jdk-headless maven
			;;
		bench)
			need default-jre-headless maven python3-venv
			[ -z "$major" ] || need "postgresql-$major-pgq3"
			;;
		*)
			echo "usage: $0 [demo|test|bench]" >&2
			exit 2
			;;
	esac

	# Any Java that runs will do in place of Debian's default one, and the
	# pkg-config of Debian 12 and later is a transitional package.
	local kept=() package
	for package in "${missing[@]}"; do
		case $package in
			default-jre-headless) java -version >/dev/null 2>&1 && continue ;;
			default-jdk-headless) javac -version >/dev/null 2>&1 && continue ;;
			pkg-config) command -v pkg-config >/dev/null && continue ;;
			maven) command -v mvn >/dev/null && continue ;;
		esac
		kept+=("$package")
	done
	missing=("${kept[@]}")
}

if ! command -v dpkg-query >/dev/null; then
	echo "install.sh: not a Debian; see README.md for what is needed" >&2
	exit 0
fi

list_missing
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "install.sh: some packages are missing; as root, run" >&2
	echo "    apt-get install --no-install-recommends ${missing[*]}" >&2
	exit 1
fi

export DEBIAN_FRONTEND=noninteractive

log=$(mktemp)
policy=
no_cluster=
cleanup()
{
	rm -f "$log" ${policy:+"$policy"} ${no_cluster:+"$no_cluster"}
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP

quietly()
{
	if ! "$@" >"$log" 2>&1; then
		cat "$log" >&2
		echo "install.sh: failed: $*" >&2
		exit 1
	fi
}

echo "installing: apt-get update"
quietly apt-get -q update

# Only now does apt know which version of PostgreSQL is Debian's default.
list_missing

# The server's package makes a cluster and starts it, unless told otherwise
# before it is unpacked.
conf=/etc/postgresql-common/createcluster.d/outbox-no-main-cluster.conf
if [ ! -e "$conf" ]; then
	mkdir -p "${conf%/*}"
	no_cluster=$conf
	echo "create_main_cluster = false" >"$conf"
fi

# Nothing that is installed here is to be started as a service.
if [ ! -e /usr/sbin/policy-rc.d ]; then
	policy=/usr/sbin/policy-rc.d
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

echo "installing: ${missing[*]}"
quietly apt-get -q -y install --no-install-recommends "${missing[@]}"
