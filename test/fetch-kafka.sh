#!/usr/bin/env bash
#
# Fetches Apache Kafka's jars with Maven, once, into a cache outside the tree,
# and prints the folder they are in.  Beside them goes a class data archive,
# with which a broker starts in a third of the time.
#
# The folder: $OUTBOX_CACHE, else /var/cache/outbox for root, else
# $XDG_CACHE_HOME/outbox.
set -euo pipefail

version=${KAFKA_VERSION:-4.4.0}

if [ -n "${OUTBOX_CACHE:-}" ]; then
	cache=$OUTBOX_CACHE
elif [ "$(id -u)" -eq 0 ]; then
	cache=/var/cache/outbox
elif [ -d "/var/cache/outbox/kafka-$version" ]; then
	cache=/var/cache/outbox
else
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/outbox
fi
dir=$cache/kafka-$version

# The archive fits one Java only; another merely ignores it.
java_version=$(java -version 2>&1 | grep -v '^Picked up' | tr -d '\n')

complete()
{
	[ -d "$dir/lib" ] || return 1
	[ ! -w "$dir" ] || [ "$(cat "$dir/java-version" 2>/dev/null)" = "$java_version" ]
}

if complete; then
	echo "$dir/lib"
	exit 0
fi

# The tests run as another user, who has to be able to read all of it.
umask 022
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9

scratch=
broker=
cleanup()
{
	[ -z "$broker" ] || kill -9 "$broker" 2>/dev/null || true
	[ -z "$scratch" ] || rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP

if [ ! -d "$dir/lib" ]; then
	echo "fetching Apache Kafka $version" >&2
	scratch=$(mktemp -d "$cache/fetch.XXXXXX")

	# Without an implementation of slf4j a broker that fails says nothing.
	cat >"$scratch/pom.xml" <<-POM
		<project xmlns="http://maven.apache.org/POM/4.0.0">
		  <modelVersion>4.0.0</modelVersion>
		  <groupId>outbox</groupId>
		  <artifactId>kafka</artifactId>
		  <version>1</version>
		  <packaging>pom</packaging>
		  <dependencies>
		    <dependency>
		      <groupId>org.apache.kafka</groupId>
		      <artifactId>kafka_2.13</artifactId>
		      <version>$version</version>
		    </dependency>
		    <dependency>
		      <groupId>org.slf4j</groupId>
		      <artifactId>slf4j-simple</artifactId>
		      <version>1.7.36</version>
		    </dependency>
		  </dependencies>
		</project>
	POM
	rm -rf "$dir.part"
	mkdir -p "$dir.part"
	if ! (cd "$scratch" && mvn -q -B -Dstyle.color=never \
		org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
		-DoutputDirectory="$dir.part/lib") >"$scratch/log" 2>&1; then
		cat "$scratch/log" >&2
		exit 1
	fi
	chmod -R a+rX "$dir.part"
	rm -rf "$dir"
	mv "$dir.part" "$dir"
	rm -rf "$scratch"
	scratch=
fi

# A port that nothing listens on, below the range of outgoing connections.
free_port()
{
	local port

	while :; do
		port=$((20000 + RANDOM % 12000))
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
	done
	echo "$port"
}

# Run a broker once, until it has answered, and let it write the archive as it
# ends.  Without one the tests are slower, not wrong, so no failure here counts.
archive()
{
	local conf=$scratch/server.properties
	local port controller
	port=$(free_port)
	controller=$(free_port)

	cat >"$conf" <<-CONF
		process.roles=broker,controller
		node.id=1
		controller.quorum.voters=1@127.0.0.1:$controller
		listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
		controller.listener.names=CONTROLLER
		log.dirs=$scratch/data
		offsets.topic.replication.factor=1
		transaction.state.log.replication.factor=1
		transaction.state.log.min.isr=1
	CONF
	java -cp "$dir/lib/*" kafka.tools.StorageTool format \
		-t AAAAAAAAAAAAAAAAAAAAAQ -c "$conf" >"$scratch/log" 2>&1 || return
	java -Xms256m -Xmx1g "-XX:ArchiveClassesAtExit=$scratch/kafka.jsa" \
		-Dorg.slf4j.simpleLogger.defaultLogLevel=info \
		-cp "$dir/lib/*" kafka.Kafka "$conf" >>"$scratch/log" 2>&1 9>&- &
	broker=$!

	local deadline=$((SECONDS + 60))
	until grep -q 'Kafka Server started' "$scratch/log"; do
		[ $SECONDS -lt $deadline ] && kill -0 "$broker" 2>/dev/null || return
		sleep 0.2
	done

	# The classes of the request path belong to it as well.
	if command -v kcat >/dev/null; then
		echo x | kcat -q -b "127.0.0.1:$port" -P -t warm-up -X message.timeout.ms=10000 >/dev/null 2>&1 || true
		kcat -q -b "127.0.0.1:$port" -C -t warm-up -e -o beginning >/dev/null 2>&1 || true
	fi
	kill "$broker"
	wait "$broker" 2>/dev/null || true
	broker=
	[ -s "$scratch/kafka.jsa" ] || return
	chmod a+r "$scratch/kafka.jsa"
	mv "$scratch/kafka.jsa" "$dir/kafka.jsa"
}

if ! complete; then
	echo "preparing Apache Kafka's class data archive" >&2
	scratch=$(mktemp -d "$cache/archive.XXXXXX")
	rm -f "$dir/kafka.jsa"
	archive || echo "no archive: brokers will start more slowly" >&2
	echo "$java_version" >"$dir/java-version"
fi

echo "$dir/lib"
