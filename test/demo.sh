#!/usr/bin/env bash
#
# Shows outbox at work, from nothing: installs what is missing, builds, makes a
# PostgreSQL of its own in a temporary folder, starts a broker and an inventory
# service, and places orders.
#
#	make demo				with librdkafka's mock broker: no Java, starts at once
#	KAFKA=real make demo	with Apache Kafka
#	KEEP=1 make demo		and leaves all of it running, to go on by hand
set -euo pipefail
cd "$(dirname "$0")/.."

kafka=${KAFKA:-mock}
keep=${KEEP:-0}
orders=100						# of each of the two timed series
work=
children=()

if [ -t 1 ]; then
	bold=$(printf '\033[1m')
	plain=$(printf '\033[0m')
else
	bold='' plain=''
fi

say()
{
	printf '\n%s%s%s\n' "$bold" "$*" "$plain"
}

die()
{
	echo "demo: $*" >&2
	exit 1
}

# ---------- the end ----------

stop_all()
{
	local pid

	trap - EXIT
	[ -n "$work" ] || return 0
	if [ -f "$work/data/postmaster.pid" ]; then
		as_user "$bindir/pg_ctl" -s -D "$work/data" -m fast stop >/dev/null 2>&1 ||
			as_user "$bindir/pg_ctl" -s -D "$work/data" -m immediate stop >/dev/null 2>&1 || true
	fi
	for pid in "${children[@]}"; do
		kill "$pid" 2>/dev/null || true
	done
	for pid in "${children[@]}"; do
		wait "$pid" 2>/dev/null || true
	done
	rm -rf "$work"
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---------- build and install ----------

KAFKA=$kafka test/install.sh demo
kafka_lib=
[ "$kafka" = mock ] || kafka_lib=$(test/fetch-kafka.sh)

pg_config=${PG_CONFIG:-pg_config}
bindir=$("$pg_config" --bindir)
pkglibdir=$("$pg_config" --pkglibdir)

echo "building"
make -s PG_CONFIG="$pg_config"
make -s test-tools
if [ -w "$pkglibdir" ]; then
	make -s install PG_CONFIG="$pg_config" >/dev/null
elif ! cmp -s outbox.so "$pkglibdir/outbox.so" || ! cmp -s outbox_bridge "$pkglibdir/outbox_bridge"; then
	die "no right to install into $pkglibdir; as root, run: make install"
fi

# ---------- a place of its own, and a user that isn't root ----------

work=$(mktemp -d "${TMPDIR:-/tmp}/outbox-demo.XXXXXX")
mkdir "$work/socket" "$work/bin"
cp test/build/guard test/build/mock_broker test/build/ktool "$work/bin"

if [ "$(id -u)" -eq 0 ]; then
	user=${TEST_USER:-postgres}
	id "$user" >/dev/null 2>&1 || die "there is no user $user"
	chown -R "$user" "$work"
	chmod 755 "$work"
	run_as=(runuser -u "$user" -- env -C "$work" "HOME=$work")
else
	user=$(id -un)
	run_as=(env -C "$work")
fi

as_user()
{
	"${run_as[@]}" "$@"
}

# In the background: ends with this script, unless all is to be kept.
background()
{
	local log=$1 input=$2
	local guard=("$work/bin/guard")
	shift 2

	[ "$keep" != 1 ] || guard=(setsid)
	# Opened for both, the pipe has no end of file.
	"${run_as[@]}" "${guard[@]}" "$@" <>"$input" >"$log" 2>&1 &
	children+=($!)
}

# wait_until SECONDS WHAT COMMAND...
wait_until()
{
	local deadline=$((SECONDS + $1)) what=$2
	shift 2

	until "$@"; do
		if [ $SECONDS -ge "$deadline" ]; then
			echo "demo: waited in vain for $what" >&2
			if [ -f "$work/data/postmaster.pid" ]; then
				sql -x -c 'SELECT * FROM outbox.worker' -c 'SELECT * FROM outbox.topic' >&2 || true
			fi
			for log in "$work"/*.log; do
				echo "---- $(basename "$log")" >&2
				tail -30 "$log" >&2
			done
			exit 1
		fi
		sleep 0.1
	done
}

sql()
{
	as_user "$bindir/psql" -X -q -v ON_ERROR_STOP=1 -h "$work/socket" -d demo "$@"
}

value()
{
	sql -At -c "$1"
}

# Run a statement that has nothing to show but itself.
show()
{
	printf '%s\n' "$1" | sed 's/^/    /'
	sql -c "$1" >/dev/null
}

# ---------- the broker ----------

mkfifo "$work/broker" "$work/nothing"
[ "$(id -u)" -ne 0 ] || chown "$user" "$work/broker" "$work/nothing"

has_bootstrap()
{
	grep -q '^bootstrap ' "$work/broker.log"
}

start_mock()
{
	background "$work/broker.log" "$work/broker" "$work/bin/mock_broker"
	wait_until 10 'the mock broker' has_bootstrap
	bootstrap=$(sed -n 's/^bootstrap //p' "$work/broker.log")

	local topic
	for topic in orders order-results; do
		echo "topic $topic 4" >"$work/broker"
	done
	broker="librdkafka's mock broker (KAFKA=real make demo takes Apache Kafka)"

	# it answers a fetch at its end, not when a record arrives
	fetch_wait=10
}

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

kafka_answers()
{
	[ "$(as_user "$work/bin/ktool" -b "$bootstrap" wait-ready 1 2>/dev/null)" = AAAAAAAAAAAAAAAAAAAAAQ ]
}

start_kafka()
{
	local port controller topic java
	local conf=$work/server.properties archive=$kafka_lib/../kafka.jsa

	port=$(free_port)
	controller=$(free_port)
	bootstrap=127.0.0.1:$port
	cat >"$conf" <<-CONF
		process.roles=broker,controller
		node.id=1
		controller.quorum.voters=1@127.0.0.1:$controller
		listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
		controller.listener.names=CONTROLLER
		log.dirs=$work/kafka
		auto.create.topics.enable=false
		offsets.topic.replication.factor=1
		offsets.topic.num.partitions=4
	CONF
	java=(java -Xmx1g -XX:-UsePerfData -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$kafka_lib/*")
	[ ! -r "$archive" ] || java+=("-XX:SharedArchiveFile=$archive" -Xshare:auto -Xlog:disable)

	as_user "${java[@]}" kafka.tools.StorageTool format \
		-t AAAAAAAAAAAAAAAAAAAAAQ -c "$conf" >"$work/format.log" 2>&1
	background "$work/broker.log" "$work/nothing" "${java[@]}" kafka.Kafka "$conf"
	wait_until 60 'Apache Kafka' kafka_answers
	for topic in orders order-results; do
		as_user "$work/bin/ktool" -b "$bootstrap" create-topic "$topic" 4
	done
	broker="Apache $(basename "$(dirname "$kafka_lib")")"
}

fetch_wait=500
case $kafka in
	mock) start_mock ;;
	real) start_kafka ;;
	*) die "KAFKA is mock or real, not $kafka" ;;
esac
echo "broker: $broker, at $bootstrap"

# ---------- the database ----------

as_user "$bindir/initdb" -D "$work/data" -A trust -E UTF8 --no-locale >"$work/initdb.log" 2>&1 ||
	{ cat "$work/initdb.log" >&2; die "initdb failed"; }
cat >>"$work/data/postgresql.conf" <<EOC
listen_addresses = ''
unix_socket_directories = '$work/socket'
shared_preload_libraries = 'outbox'
outbox.bootstrap_servers = '$bootstrap'
outbox.kafka_config = 'fetch.wait.max.ms=$fetch_wait'
# only to measure with
track_commit_timestamp = on
EOC
as_user "$bindir/pg_ctl" -s -w -D "$work/data" -l "$work/server.log" start >/dev/null ||
	{ cat "$work/server.log" >&2; die "the server does not start"; }
as_user "$bindir/createdb" -h "$work/socket" demo
echo "database: PostgreSQL $(value 'SHOW server_version')"

say 'A table of orders. Each new one becomes a message on the topic "orders", and an answer is expected.'
show "CREATE EXTENSION outbox;"
show "CREATE TABLE orders (
    order_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    product_id int NOT NULL, quantity int NOT NULL,
    customer text, status text NOT NULL DEFAULT 'PLACED');"
show "SELECT outbox.set_topic('orders', result_topic => 'order-results');"
show "SELECT outbox.attach('orders', 'orders',
    columns => '{order_id as orderId, product_id as productId, quantity}');"

# ---------- orders ----------

messages="SELECT payload AS message, status, attempts, coalesce(error, '') AS error,
    to_char(created_at, 'HH24:MI:SS.MS') AS created
FROM outbox.message ORDER BY id"

# Counts of the statuses, in one line.
statuses()
{
	value "SELECT coalesce(string_agg(n || ' ' || status, ', ' ORDER BY status), 'no messages')
FROM (SELECT status, count(*) AS n FROM outbox.message GROUP BY status) s"
}

all_sent()
{
	[ "$(value "SELECT count(*) FROM outbox.message WHERE status = 'NEW'")" = 0 ]
}

# Print the counts whenever they change.
last=
all_final()
{
	local now

	now=$(statuses)
	[ "$now" = "$last" ] || echo "    $(date +%H:%M:%S) $now"
	last=$now
	case $now in
		*NEW* | *SENT*) return 1 ;;
	esac
}

say 'Three orders, and one that is rolled back. The inventory service is not running.'
show "INSERT INTO orders (product_id, quantity, customer)
    VALUES (1, 2, 'Ada'), (2, 500, 'Ben'), (3, 1, 'Cleo');"
show "BEGIN; INSERT INTO orders (product_id, quantity, customer) VALUES (4, 1, 'Dan'); ROLLBACK;"
wait_until 30 'the messages to be sent' all_sent
sql -c "$messages"

# One order a transaction, one after the other, as an application would.
place_orders()
{
	local i

	for ((i = 0; i < orders; i++)); do
		echo "INSERT INTO orders (product_id, quantity, customer) VALUES ($((100 + i)), 1, '$1');"
		echo "SELECT pg_sleep(0.01) \\g /dev/null"
	done | as_user "$bindir/psql" -X -q -v ON_ERROR_STOP=1 -h "$work/socket" -d demo
}

# From the order's commit to the commit that changed its message's status.
latency()
{
	value "SELECT format('p50 %s ms, p99 %s ms',
		round(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms)::numeric, 1),
		round(percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)::numeric, 1))
FROM (SELECT 1000 * extract(epoch FROM pg_xact_commit_timestamp(l.xmin) -
		pg_xact_commit_timestamp(o.xmin)) AS ms
	FROM orders o JOIN (SELECT xmin, convert_from(payload, 'UTF8')::jsonb AS j FROM outbox.log) l
		ON (l.j ->> 'orderId')::bigint = o.order_id
	WHERE o.customer = '$1') s"
}

place_orders 'before'
wait_until 30 'the messages to be sent' all_sent
to_sent=$(latency 'before')

say 'The inventory service starts; it refuses what is more than it has.'
background "$work/service.log" "$work/nothing" \
	"$work/bin/ktool" -b "$bootstrap" -X "fetch.wait.max.ms=$fetch_wait" \
	service orders order-results --json
wait_until 30 'the answers' all_final
sql -c "$messages LIMIT 3"

place_orders 'after'
wait_until 30 'the answers' all_final
to_confirmed=$(latency 'after')

say "Latency, $orders orders one by one, from commit to commit:"
echo "    acknowledged by the broker (SENT):       $to_sent"
echo "    answered by the service (CONFIRMED):     $to_confirmed"
echo "    broker: $broker"

# ---------- going on by hand ----------

if [ "$keep" = 1 ]; then
	trap - EXIT
	say 'All of it keeps running:'
	cat <<-HINT
		    $bindir/psql -h $work/socket -U $user demo
		        INSERT INTO orders (product_id, quantity) VALUES (7, 3);
		        SELECT id, status, payload FROM outbox.message ORDER BY id DESC LIMIT 5;
		        SELECT * FROM outbox.stat;
		    tail -f $work/service.log
	HINT
	if [ "$kafka" = mock ]; then
		echo "    echo down > $work/broker    (the broker goes away; 'up' brings it back)"
	fi
	say 'To end it:'
	stop="$bindir/pg_ctl -D $work/data -m fast stop"
	[ "$(id -u)" -ne 0 ] || stop="runuser -u $user -- $stop"
	echo "    $stop; kill ${children[*]}; rm -rf $work"
else
	say 'Done; all of it is stopped and removed now. KEEP=1 make demo leaves it running.'
fi
