#!/usr/bin/env bash
#
# Shows outbox at work, from nothing: installs what is missing, builds, makes a
# PostgreSQL of its own in a temporary folder, starts a broker, and runs the
# example of examples/order_inventory: a shop and a warehouse, two databases
# that speak with each other through Kafka alone.  Fails if their books don't
# agree at the end.
#
#	make demo				with librdkafka's mock broker: no Java, starts at once
#	KAFKA=real make demo	with Apache Kafka
#	KEEP=1 make demo		and leaves all of it running, to go on by hand
set -euo pipefail
cd "$(dirname "$0")/.."

kafka=${KAFKA:-mock}
keep=${KEEP:-0}
example=examples/order_inventory
orders=100						# of each of the two timed series
rush=300						# at once, without a broker

# What the books begin with
accounts="('Ada', 1000), ('Ben', 9000), ('Cleo', 2000)"
stock="(1, 250), (2, 5), (3, 200)"

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
				for database in shop warehouse; do
					sql $database -x -c 'SELECT * FROM outbox.worker' \
						-c 'SELECT * FROM outbox.topic' \
						-c 'SELECT * FROM outbox.subscription' >&2 || true
				done
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

# sql DATABASE PSQL-ARGUMENT...
sql()
{
	local database=$1
	shift

	as_user "$bindir/psql" -X -q -v ON_ERROR_STOP=1 -h "$work/socket" -d "$database" "$@"
}

value()
{
	sql "$1" -At -c "$2"
}

# Run a statement that has nothing to show but itself.
show()
{
	printf '%s\n' "$2" | sed 's/^/    /'
	sql "$1" -c "$2" >/dev/null
}

# excerpt FILE PATTERN...: what begins with a line like the pattern, up to the
# next empty one
excerpt()
{
	local file=$1 pattern text
	shift

	for pattern; do
		text=$(sed -n "/^$pattern/,/^\$/p" "$file")
		[ -n "$text" ] || die "there is no \"$pattern\" in $file"
		printf '\n%s\n' "$text" | expand -t 4 | sed 's/^\(.\)/    \1/'
	done
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
as_user "$bindir/createdb" -h "$work/socket" shop
as_user "$bindir/createdb" -h "$work/socket" warehouse
echo "databases: shop and warehouse, PostgreSQL $(value shop 'SHOW server_version')"

# ---------- the shop ----------

say "The shop ($example/shop.sql): each new order becomes a message,
and the answer confirms the order or cancels it."
sql shop -f - <"$example/shop.sql" >/dev/null
excerpt "$example/shop.sql" 'CREATE FUNCTION cancel_order' 'SELECT outbox.attach'
sql shop -c "INSERT INTO shop.account VALUES $accounts"

# to measure with: rows that nobody updates have their order's commit time
sql shop -c 'CREATE TABLE burst (series text, order_id bigint)'

table="SELECT o.order_id, o.customer, o.product_id AS product, o.quantity, o.status,
    coalesce(o.reason, '') AS reason, m.status AS message
FROM shop.orders AS o JOIN outbox.message AS m
    ON (m.payload::jsonb ->> 'orderId')::bigint = o.order_id
WHERE o.order_id <= 4 ORDER BY o.order_id"

all_sent()
{
	[ "$(value shop "SELECT count(*) FROM outbox.message WHERE status = 'NEW'")" = 0 ]
}

# Print the counts whenever they change.
last=
all_decided()
{
	local now

	now=$(value shop "SELECT coalesce(string_agg(n || ' ' || status, ', ' ORDER BY status), 'none')
FROM (SELECT status, count(*) AS n FROM shop.orders GROUP BY status) s")
	[ "$now" = "$last" ] || echo "    $(date +%H:%M:%S) $now"
	last=$now
	case $now in
		*PLACED*) return 1 ;;
	esac
}

# One order a transaction, one after the other, as an application would.
place_orders()
{
	local i

	for ((i = 0; i < orders; i++)); do
		echo "INSERT INTO burst SELECT '$1', shop.place_order('Ada', 1, 1, 2);"
		echo "SELECT pg_sleep(0.01) \\g /dev/null"
	done | sql shop
}

# From the order's commit to the commit that changed its message's status.
latency()
{
	value shop "SELECT format('p50 %s ms, p99 %s ms',
		round(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms)::numeric, 1),
		round(percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)::numeric, 1))
FROM (SELECT 1000 * extract(epoch FROM pg_xact_commit_timestamp(l.xmin) -
		pg_xact_commit_timestamp(b.xmin)) AS ms
	FROM burst b JOIN (SELECT xmin, convert_from(payload, 'UTF8')::jsonb AS j FROM outbox.log) l
		ON (l.j ->> 'orderId')::bigint = b.order_id
	WHERE b.series = '$1') s"
}

say 'Three orders, and one that is rolled back. There is no warehouse yet.'
show shop "SELECT shop.place_order('Ada', 1, 2, 20);"
show shop "SELECT shop.place_order('Ben', 2, 500, 5000);"
show shop "BEGIN; SELECT shop.place_order('Ben', 1, 1, 10); ROLLBACK;"
show shop "SELECT shop.place_order('Cleo', 2, 1, 10);"
wait_until 30 'the messages to be sent' all_sent
sql shop -c "$table"
echo "(The number 3 went with the rollback; 'message' is the status in outbox.message.)"
echo
echo "$orders more orders, one by one."

place_orders 'before'
wait_until 30 'the messages to be sent' all_sent
to_sent=$(latency 'before')

# ---------- the warehouse ----------

say "The warehouse ($example/warehouse.sql) reserves what it has.
An exception refuses an order, and undoes what was done for it."
excerpt "$example/warehouse.sql" 'CREATE FUNCTION reserve' 'SELECT outbox.subscribe'
echo

# in one transaction, so that the shelves are full when the first order comes
{
	cat "$example/warehouse.sql"
	echo "INSERT INTO warehouse.stock VALUES $stock;"
} | sql warehouse -1 -f - >/dev/null
wait_until 60 'the warehouse to decide' all_decided
sql shop -c "$table"

echo "$orders more orders, one by one."
place_orders 'after'
wait_until 30 'the warehouse to decide' all_decided
to_confirmed=$(latency 'after')

say "Latency, $orders orders one by one, from commit to commit:"
echo "    acknowledged by the broker (SENT):                      $to_sent"
echo "    reserved, answered and confirmed (CONFIRMED):           $to_confirmed"
echo "    broker: $broker"

# ---------- no broker ----------

unreachable()
{
	[ "$(value shop 'SELECT brokers_reachable FROM outbox.stat')" = f ]
}

if [ "$kafka" = mock ]; then
	say "The broker goes away, and $rush orders of product 3 come all the same: more than
there is of it (200 pieces)."
	echo down >"$work/broker"
	wait_until 30 'the outage to be noticed' unreachable
else
	say "$rush orders of product 3 at once."
fi
show shop "SELECT shop.place_order('Cleo', 3, 1 + n % 3, 1) FROM generate_series(1, $rush) AS n;"
if [ "$kafka" = mock ]; then
	sql shop -x -c 'SELECT backlog, brokers_reachable, brokers_reason FROM outbox.stat'
	echo 'The broker is back.'
	echo up >"$work/broker"
fi
wait_until 60 'the warehouse to decide' all_decided

# ---------- the books ----------

# check WHAT QUERY-OF-THE-FINDINGS: good if there are none
broken=0
check()
{
	local findings

	findings=$(value "$1" "$3")
	if [ -z "$findings" ]; then
		echo "    ok      $2"
	else
		echo "    BROKEN  $2:"
		printf '%s\n' "$findings" | sed 's/^/            /'
		broken=1
	fi
}

say 'The books of both, compared:'
confirmed=$(value shop "SELECT coalesce(json_object_agg(product_id, quantity), '{}')
FROM (SELECT product_id, sum(quantity) AS quantity FROM shop.orders
	WHERE status = 'CONFIRMED' GROUP BY product_id) s")
books="(SELECT s.product_id AS product, b.quantity AS before, s.quantity AS now,
		b.quantity - s.quantity AS taken,
		coalesce('$confirmed'::json ->> s.product_id::text, '0')::int AS confirmed
	FROM warehouse.stock AS s JOIN (VALUES $stock) AS b(product_id, quantity)
		USING (product_id)) AS books"
credit="(SELECT a.customer, b.credit AS before, a.credit AS now,
		coalesce((SELECT sum(o.price) FROM shop.orders AS o
			WHERE o.customer = a.customer AND o.status = 'CONFIRMED'), 0) AS paid
	FROM shop.account AS a JOIN (VALUES $accounts) AS b(customer, credit)
		USING (customer)) AS books"
sql warehouse -c "SELECT product, before AS \"stock before\", now AS \"stock now\", taken,
	confirmed AS \"CONFIRMED in the shop\" FROM $books ORDER BY product"
check shop 'every order is decided' \
	"SELECT format('order %s is %s', order_id, status) FROM shop.orders WHERE status = 'PLACED'"
check warehouse 'the stock taken is the quantity of the CONFIRMED orders' \
	"SELECT format('product %s: %s taken, %s confirmed', product, taken, confirmed)
	FROM $books WHERE taken <> confirmed"
check warehouse 'no stock is below zero' \
	"SELECT format('product %s: %s', product_id, quantity) FROM warehouse.stock WHERE quantity < 0"
check shop 'the credit taken is the price of the CONFIRMED orders' \
	"SELECT format('%s: had %s, paid %s, has %s', customer, before, paid, now)
	FROM $credit WHERE before - paid <> now"
check shop "each order's message says the same" \
	"SELECT format('order %s is %s, its message %s', o.order_id, o.status, m.status)
	FROM shop.orders AS o LEFT JOIN outbox.message AS m
		ON (m.payload::jsonb ->> 'orderId')::bigint = o.order_id
	WHERE (o.status, m.status::text) NOT IN (('CONFIRMED', 'CONFIRMED'), ('CANCELLED', 'FAILED'))
		OR m.status IS NULL"

# ---------- going on by hand ----------

if [ "$keep" = 1 ]; then
	trap - EXIT
	say 'All of it keeps running:'
	cat <<-HINT
		    $bindir/psql -h $work/socket -U $user shop
		        SELECT shop.place_order('Cleo', 2, 1, 10) AS order_id;
		        TABLE shop.orders ORDER BY order_id DESC LIMIT 5;
		        SELECT * FROM outbox.stat;
		    $bindir/psql -h $work/socket -U $user warehouse
		        TABLE warehouse.stock;
		        SELECT * FROM outbox.subscription;
		    tail -f $work/server.log
	HINT
	if [ "$kafka" = mock ]; then
		echo "    echo down > $work/broker    (the broker goes away; 'up' brings it back)"
		echo "The mock broker makes a topic when it is first used; it doesn't answer outbox.create_topic."
	fi
	say 'To end it:'
	stop="$bindir/pg_ctl -D $work/data -m fast stop"
	[ "$(id -u)" -ne 0 ] || stop="runuser -u $user -- $stop"
	echo "    $stop; kill ${children[*]}; rm -rf $work"
else
	say 'Done; all of it is stopped and removed now. KEEP=1 make demo leaves it running.'
fi
echo "How it works: $example/README.md, doc/subscriptions.md"
[ "$broken" = 0 ] || die 'the books do not agree'
