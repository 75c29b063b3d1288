#!/usr/bin/env bash
#
# Fetches what the bench compares outbox with, once, into the cache that
# test/fetch-kafka.sh uses, and prints the folder: Debezium with Kafka Connect
# from Maven Central (debezium/), and a Python with clients of PostgreSQL and
# Kafka from PyPI (python/).
#
# Debezium is left out, with a message, where it can't be had; its cases are
# then reported as not measured.
set -euo pipefail
cd "$(dirname "$0")"

debezium_version=${DEBEZIUM_VERSION:-3.7.0.Final}
connect_version=${CONNECT_VERSION:-4.3.1}
python_packages=("psycopg[binary]==3.3.*" 'confluent-kafka==2.*')

cache=$(dirname "$(dirname "$(../test/fetch-kafka.sh)")")
umask 022
exec 9>"$cache/.lock.bench"
flock 9

scratch=
cleanup()
{
	[ -z "$scratch" ] || rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP

# ---------- Python ----------

# The system's own, since another user has to be able to run it.
fetch_python()
{
	local dir=$cache/bench-python-$(echo "${python_packages[*]}" | cksum | cut -d' ' -f1)

	if [ ! -e "$dir/complete" ]; then
		echo "fetching Python's clients of PostgreSQL and Kafka" >&2
		rm -rf "$dir"
		/usr/bin/python3 -m venv "$dir" >&2
		"$dir/bin/pip" -q install --only-binary :all: "${python_packages[@]}" >&2
		chmod -R a+rX "$dir"
		touch "$dir/complete"
	fi
	echo "python $dir/bin/python3"
}

# ---------- Debezium ----------

# Debezium's pom names a second repository, which isn't needed.
write_maven_files()
{
	cat >"$scratch/settings.xml" <<-XML
		<settings>
		  <mirrors>
		    <mirror>
		      <id>none</id>
		      <mirrorOf>*,!central</mirrorOf>
		      <url>http://0.0.0.0/</url>
		      <blocked>true</blocked>
		    </mirror>
		  </mirrors>
		</settings>
	XML
	cat >"$scratch/pom.xml" <<-POM
		<project xmlns="http://maven.apache.org/POM/4.0.0">
		  <modelVersion>4.0.0</modelVersion>
		  <groupId>outbox</groupId>
		  <artifactId>debezium</artifactId>
		  <version>1</version>
		  <packaging>pom</packaging>
		  <dependencies>
		    <dependency>
		      <groupId>io.debezium</groupId>
		      <artifactId>debezium-connector-postgres</artifactId>
		      <version>$debezium_version</version>
		    </dependency>
		    <dependency>
		      <groupId>org.apache.kafka</groupId>
		      <artifactId>connect-runtime</artifactId>
		      <version>$connect_version</version>
		    </dependency>
		  </dependencies>
		</project>
	POM
}

fetch_debezium()
{
	local dir=$cache/debezium-$debezium_version-$connect_version

	if [ ! -d "$dir/lib" ]; then
		echo "fetching Debezium $debezium_version" >&2
		scratch=$(mktemp -d "$cache/fetch.XXXXXX")
		write_maven_files
		rm -rf "$dir.part"
		mkdir -p "$dir.part"
		if ! (cd "$scratch" && mvn -q -B -Dstyle.color=never -s settings.xml \
			org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
			-DoutputDirectory="$dir.part/lib" -DincludeScope=runtime) >"$scratch/log" 2>&1; then
			grep ERROR "$scratch/log" | head -5 >&2
			echo "Debezium could not be fetched" >&2
			rm -rf "$dir.part"
			return
		fi
		chmod -R a+rX "$dir.part"
		mv "$dir.part" "$dir"
	fi
	echo "debezium $dir/lib"
}

echo "kafka $cache/$(basename "$(dirname "$(../test/fetch-kafka.sh)")")/lib"
fetch_python
fetch_debezium
