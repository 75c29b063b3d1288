# The fault run of the whole transaction: shop and warehouse, each in a server of
# its own, while everything that can die is killed.
#
# Clients place orders, and roll some back, while workers, bridges, backends and
# whole servers of both sides are killed with -9, and the broker is killed or
# stopped and started again.  At the end each order is decided, as the warehouse
# did, and each handler's effects are there once: the handlers count their calls
# in tables that would take a second one.  Deliveries come to the warehouse from
# somebody whose records have no id, so that only their positions tell them apart.
#
# STRESS=1 is the full size.  FAULT_SEED repeats a choice of faults,
# FAULT_ORDERS and FAULT_COUNT set the size.

use strict;
use warnings;

use List::Util qw(shuffle sum0);
use OutboxTest::Cluster;
use OutboxTest::Guard qw(spawn_guarded reap process_state);
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $full = $ENV{STRESS};
my $wanted = $ENV{FAULT_ORDERS} // ($full ? 50_000 : 1_500);
my $faults = $ENV{FAULT_COUNT} // ($full ? 60 : 13);
my $rate = $full ? 500 : 100;        # transactions a second
my $seed = $ENV{FAULT_SEED} // int(rand(2**31));
my $patience = $full ? 600 : 240;    # seconds, for a slow machine
my $result_timeout = $full ? '5 s' : '3 s';

my ($customers, $products) = (40, 20);
my $credit = 100_000_000;

# What is freed isn't what it was any more.
$ENV{MALLOC_PERTURB_} = 90;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 4) foreach (qw(orders order-results deliveries));

my %node;
foreach my $side (qw(shop warehouse))
{
	$node{$side} = new_outbox_node($side, bootstrap => $kafka->bootstrap,
		conf => "checkpoint_timeout = '30s'\nwal_writer_delay = '10s'\n"
		  . ($side eq 'warehouse' ? 'outbox.consumers = 2' : ''));
	$node{$side}->safe_psql('postgres', "CREATE DATABASE $side");
	$node{$side}->safe_psql($side, slurp_file("examples/order_inventory/$side.sql"));
}

# ---------- the handlers count ----------

# The example's handlers, but that nothing keeps them from being called twice.  An
# order whose answer is late is sent again soon.
$node{shop}->safe_psql('shop', <<"EOS");
INSERT INTO shop.account SELECT n, $credit FROM generate_series(1, $customers) AS n;
SET ROLE shop;
CREATE TABLE shop.call (handler text, order_id bigint);
CREATE FUNCTION shop.count_call(handler text, message outbox.message) RETURNS boolean
LANGUAGE sql AS \$\$
	INSERT INTO shop.call SELECT handler, (message.payload::jsonb ->> 'orderId')::bigint;
	SELECT status = 'PLACED' FROM shop.orders
		WHERE order_id = (message.payload::jsonb ->> 'orderId')::bigint;
\$\$;
CREATE FUNCTION shop.confirm_counted(message outbox.message) RETURNS void
LANGUAGE plpgsql AS \$\$
BEGIN
	IF shop.count_call('confirm', message) THEN
		PERFORM shop.confirm_order(message);
	END IF;
END \$\$;
CREATE FUNCTION shop.cancel_counted(message outbox.message) RETURNS void
LANGUAGE plpgsql AS \$\$
BEGIN
	IF shop.count_call('cancel', message) THEN
		PERFORM shop.cancel_order(message);
	END IF;
END \$\$;
SELECT outbox.set_topic('orders', result_topic => 'order-results', result_timeout => '$result_timeout',
	on_confirmed => 'shop.confirm_counted(outbox.message)',
	on_failed => 'shop.cancel_counted(outbox.message)');
EOS

# Half of the products run out, one after the other.
$node{warehouse}->safe_psql('warehouse', <<"EOS");
SET ROLE warehouse;
ALTER TABLE warehouse.reservation DROP CONSTRAINT reservation_pkey;
CREATE TABLE warehouse.delivery (number int, product_id int, quantity int);
CREATE TABLE warehouse.call (order_id bigint, topic text);
CREATE FUNCTION warehouse.reserve_counted(record outbox.record) RETURNS void
LANGUAGE plpgsql AS \$\$
BEGIN
	INSERT INTO warehouse.call
		VALUES ((record.payload::jsonb ->> 'orderId')::bigint, record.topic);
	PERFORM warehouse.reserve(record);
END \$\$;
CREATE FUNCTION warehouse.deliver(record outbox.record) RETURNS void LANGUAGE sql AS \$\$
	INSERT INTO warehouse.delivery VALUES (record.payload::int, 1, 1);
	UPDATE warehouse.stock SET quantity = quantity + 1 WHERE product_id = 1;
\$\$;
INSERT INTO warehouse.stock SELECT p, $wanted * p / 120 FROM generate_series(1, $products) AS p;
SELECT outbox.subscribe('orders', 'warehouse.reserve_counted(outbox.record)',
	reply_topic => 'order-results');
RESET ROLE;
SELECT outbox.grant_topic('deliveries', 'warehouse', 'subscribe');
SET ROLE warehouse;
SELECT outbox.subscribe('deliveries', 'warehouse.deliver(outbox.record)');
EOS
my $stock = $node{warehouse}->safe_psql('warehouse', 'SELECT sum(quantity) FROM warehouse.stock');

# ---------- the clients ----------

# A pgbench of weighted scripts.  PLACE places some order.
sub load
{
	my ($side, $scripts, @options) = @_;
	my @files;

	foreach my $name (sort keys %$scripts)
	{
		my ($weight, $sql) = @{ $scripts->{$name} };
		my $file = PostgreSQL::Test::Utils::tempdir() . "/$side-$name.sql";
		my $variables = sprintf("\\set c random(1, %d)\n\\set p random(1, %d)\n\\set q random(1, 3)\n",
			$customers, $products + 1);

		$sql =~ s/PLACE/SELECT shop.place_order(:c::text, :p, :q, 10 * :q);/g;
		$sql =~ s/; /;\n/g;
		append_to_file($file, "$variables$sql\n");
		push @files, '-f', "$file\@$weight";
	}
	return (
		$node{$side}->installed_command('pgbench'),
		'-n', '-h', $node{$side}->host, '-p', $node{$side}->port, '-T', 3600, @options, @files,
		"dbname=$side application_name=pgbench");
}

my %client = (
	shop => [
		load('shop', {
			plain => [ 50, 'PLACE' ],
			rolled_back => [ 10, 'BEGIN; PLACE PLACE ROLLBACK;' ],
			savepoint => [ 10, 'BEGIN; PLACE SAVEPOINT s; PLACE ROLLBACK TO s; PLACE COMMIT;' ],
			async => [ 30, 'BEGIN; SET LOCAL synchronous_commit = off; PLACE COMMIT;' ]
		}, '-c', 4, '-j', 2, '-R', $rate, '-L', 1000)
	],
	warehouse => [
		load('warehouse', {
			delivery => [ 1, 'BEGIN; INSERT INTO warehouse.delivery VALUES (NULL, least(:p, 20), :q);'
				  . ' UPDATE warehouse.stock SET quantity = quantity + :q WHERE product_id = least(:p, 20);'
				  . ' COMMIT;' ]
		}, '-c', 1, '-R', $rate / 20, '-L', 1000)
	]);
my %running;     # side => pid of its client
my %restarts = (shop => -1, warehouse => -1);
my $placing = 1;
my $broker_starts_at = 0;    # 0: it runs

# What goes on all the time: clients end when their server does.
sub tend
{
	foreach my $side ($placing ? keys %client : ())
	{
		my $state = defined $running{$side} ? process_state($running{$side}) : undef;

		next if defined $state && $state ne 'Z';
		reap($running{$side}, 0) if defined $running{$side};
		$running{$side} = spawn_guarded({}, @{ $client{$side} });
		$restarts{$side}++;
	}
	start_broker() if $broker_starts_at != 0 && time() > $broker_starts_at;
	return;
}

sub start_broker
{
	$kafka->start(wait => 0);
	$broker_starts_at = 0;
	return;
}

# Poll as wait_until() does, with the clients running.
sub wait_busily
{
	my ($what, $code) = @_;

	return wait_until(
		$what,
		sub {
			tend();
			return $code->();
		},
		$patience);
}

# '' if the server is down.  Then psql may end before it was told what to ask,
# for which IPC::Run dies.
sub query
{
	my ($side, $sql) = @_;
	my ($status, $out) = eval { $node{$side}->psql($side, $sql) };

	return defined $status && $status == 0 ? $out : '';
}

sub orders
{
	return query('shop', 'SELECT count(*) FROM shop.orders') || 0;
}

# ---------- the faults ----------

sub kill9_backend
{
	my ($side, $condition) = @_;
	my $pid;

	wait_busily("a process of the $side with $condition",
		sub { $pid = query($side, "SELECT pid FROM pg_stat_activity WHERE $condition ORDER BY random() LIMIT 1"); })
	  or return;
	kill('KILL', $pid);
	return;
}

sub kill9_bridge
{
	my ($side) = @_;
	my @pids;

	wait_busily("a bridge of the $side", sub { @pids = bridge_pids($node{$side}); }) or return;
	kill('KILL', $pids[ rand @pids ]);
	return;
}

# Until orders are sent a second time, which the warehouse then reads twice.  Its
# bridges die meanwhile, having said a lot that it hasn't listened to.
sub hang_warehouse
{
	my $before = query('shop', 'SELECT republished FROM outbox.stat') || 0;
	my @pids;

	wait_busily('both consumers',
		sub {
			@pids = split /\n/, query('warehouse',
				"SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'outbox consumer%'");
			return @pids == 2;
		}) or return;
	kill('STOP', @pids);
	wait_busily('orders are sent again',
		sub { (query('shop', 'SELECT republished FROM outbox.stat') || 0) > $before });
	kill('KILL', bridge_pids($node{warehouse}));
	kill('CONT', @pids);
	return;
}

sub end_broker
{
	my ($how) = @_;

	start_broker() if $broker_starts_at != 0;
	$kafka->wait_ready;
	$kafka->$how;
	$broker_starts_at = time() + rand(4);
	return;
}

my %fault = (
	'warehouse hangs' => \&hang_warehouse,
	'broker killed' => sub { end_broker('kill9') },
	'broker stopped' => sub { end_broker('stop') });
foreach my $side (keys %node)
{
	$fault{"$side publisher"} = sub { kill9_backend($side, "backend_type LIKE 'outbox publisher%'") };
	$fault{"$side consumer"} = sub { kill9_backend($side, "backend_type LIKE 'outbox consumer%'") };
	$fault{"$side backend"} = sub { kill9_backend($side, "application_name = 'pgbench'") };
	$fault{"$side server"} = sub { kill9_server($node{$side}); start_again($node{$side}) };
	$fault{"$side bridge"} = sub { kill9_bridge($side) };
}

diag("FAULT_SEED=$seed, $wanted orders, $faults faults");
srand($seed);

my @plan;
push @plan, shuffle(sort keys %fault) while @plan < $faults;
splice(@plan, $faults);

my $start = time();
my $delivered = 0;

sub deliver
{
	my $n = 400;            # some batches
	my ($not_ready) = $broker_starts_at != 0 || $kafka->try_ktool('', 'wait-ready', 1);

	return if $not_ready;
	$kafka->produce('deliveries', map { { partition => $_ % 4, value => $delivered + $_ } } 1 .. $n);
	$delivered += $n;
	return;
}

foreach my $i (0 .. $#plan)
{
	my $goal = $wanted * ($i + 1) / (@plan + 1);
	my $placed = 0;

	wait_busily("$goal orders", sub { ($placed = orders()) >= $goal }) or last;
	deliver();
	sleep(rand(0.05));    # anywhere in what goes on
	note(sprintf('%.1f s: %s, with %d orders', time() - $start, $plan[$i], $placed));
	$fault{ $plan[$i] }->();
}
start_broker() if $broker_starts_at != 0;
wait_busily("$wanted orders", sub { orders() >= $wanted });

# ---------- the end of it ----------

$placing = 0;
reap(delete $running{$_}, 'TERM') foreach (keys %client);
$kafka->wait_ready;
foreach my $side (keys %client)
{
	wait_busily('no client',
		sub { query($side, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") eq '0' });
}
my $orders = orders();
my $placed_after = time() - $start;

my $done = wait_busily('all is decided',
	sub {
		query('shop', "SELECT count(*) FROM shop.orders WHERE status = 'PLACED'") eq '0'
		  && query('shop', "SELECT count(*) FROM outbox.message WHERE status NOT IN ('CONFIRMED', 'FAILED')") eq '0'
		  && query('warehouse', "SELECT count(*) FROM outbox.message WHERE status <> 'SENT'") eq '0';
	});
my $decided_after = time() - $start;

# A record that is repeated still may be on its way.
sub read_all
{
	my ($side, $topic) = @_;
	my $end = sum0(map { ($kafka->watermarks($topic, $_))[1] } 0 .. 3);

	return wait_until("the $side has read all of $topic",
		sub {
			query($side, "SELECT sum(next_offset) >= $end FROM outbox.consumer_offset WHERE topic = '$topic'") eq 't';
		},
		$patience);
}
$done &&= read_all('warehouse', 'orders')
  && wait_until('the answers are out',
	sub { query('warehouse', "SELECT count(*) FROM outbox.message WHERE status <> 'SENT'") eq '0' }, $patience)
  && read_all('shop', 'order-results')
  && read_all('warehouse', 'deliveries');

if (!$done)
{
	dump_state($node{$_}, $_) foreach (keys %node);
}
ok($done, 'each order is decided, and each message final');

sub is_query
{
	my ($side, $sql, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($node{$side}->safe_psql($side, $sql), $expected, $name);
}

# One side's lines that the other lacks, or has in another number.
sub same_lines
{
	my ($name, $shop, $warehouse) = @_;
	my %count;

	$count{$_}++ foreach (split /\n/, $node{shop}->safe_psql('shop', $shop));
	$count{$_}-- foreach (split /\n/, $node{warehouse}->safe_psql('warehouse', $warehouse));
	my @differing = grep { $count{$_} != 0 } sort keys %count;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(@differing == 0, $name)
	  || diag(@differing . ' differ: ' . join(', ', @differing > 5 ? @differing[ 0 .. 4 ] : @differing));
}

my $taken = $node{shop}->safe_psql('shop',
	"SELECT coalesce(sum(quantity), 0) FROM shop.orders WHERE status = 'CONFIRMED'");

is_query('warehouse',
	"SELECT $stock + coalesce((SELECT sum(quantity) FROM warehouse.delivery), 0) - sum(quantity)"
	  . ' FROM warehouse.stock',
	$taken, 'the stock taken is the quantity of the CONFIRMED orders');
is_query('warehouse', 'SELECT min(quantity) >= 0 FROM warehouse.stock', 't', 'no stock is below zero');
same_lines('what is reserved is what is CONFIRMED',
	"SELECT order_id, product_id, quantity FROM shop.orders WHERE status = 'CONFIRMED'",
	'SELECT order_id, product_id, quantity FROM warehouse.reservation');
same_lines('by one call of the handler for each',
	"SELECT order_id FROM shop.orders WHERE status = 'CONFIRMED'",
	'SELECT order_id FROM warehouse.call');
is_query('warehouse', 'SELECT DISTINCT topic FROM warehouse.call', 'orders', 'which gets what it needs');
is_query('warehouse', 'SELECT count(number), count(DISTINCT number) FROM warehouse.delivery',
	"$delivered|$delivered", 'each delivery without an id came once');
is_query('shop', <<"EOS", '0', 'the credit is right');
SELECT count(*) FROM shop.account AS a
WHERE a.credit <> $credit - coalesce((SELECT sum(o.price) FROM shop.orders AS o
	WHERE o.customer = a.customer AND o.status = 'CONFIRMED'), 0)
EOS
is_query('shop', <<'EOS', '0', 'one handler was called for each order, once, and the right one');
SELECT count(*) FROM (SELECT order_id, array_agg(handler) AS handlers FROM shop.call GROUP BY 1) AS c
	FULL JOIN shop.orders AS o USING (order_id)
WHERE handlers IS DISTINCT FROM CASE o.status WHEN 'CONFIRMED' THEN '{confirm}'::text[]
	WHEN 'CANCELLED' THEN '{cancel}' END
EOS
is_query('shop', <<'EOS', '0', 'each order has one message, which ends as it does');
SELECT count(*) FROM shop.orders AS o
	FULL JOIN outbox.message AS m ON o.order_id = (m.payload::jsonb ->> 'orderId')::bigint
WHERE m.status IS DISTINCT FROM CASE o.status WHEN 'CONFIRMED' THEN 'CONFIRMED'::outbox.message_status
	WHEN 'CANCELLED' THEN 'FAILED' END
EOS

my %decided = map { split /\|/ } split /\n/,
  $node{shop}->safe_psql('shop', 'SELECT status, count(*) FROM shop.orders GROUP BY 1');

is_query('shop',
	'SELECT results_applied, results_contrary, results_unknown, results_bad, positions_lost,'
	  . ' handler_calls_owed FROM outbox.stat',
	"$orders|0|0|0|0|0", 'each result took effect once, none was contrary, no call is owed');
is_query('warehouse',
	'SELECT records_handled, records_failed, records_dead, dead_records, positions_lost FROM outbox.stat',
	$decided{CONFIRMED} + $delivered . "|$decided{CANCELLED}|0|0|0", 'each record was handled once, and none is dead');
unlike(slurp_file($node{$_}->logfile), qr/was terminated by signal (?!9:)/,
	"no process of the $_ crashed by itself")
  foreach (keys %node);
cmp_ok($decided{CONFIRMED} * $decided{CANCELLED}, '>', 0, 'some were granted, some refused');
cmp_ok($restarts{$_}, '>', 0, "clients of the $_ noticed crashes")
  foreach (grep { my $side = $_; grep { /^$side (publisher|consumer|backend|server)$/ } @plan } keys %node);

my ($repeated, $answered) = map { query(@$_) } (
	[ 'warehouse', 'SELECT records_repeated FROM outbox.stat' ],
	[ 'shop', 'SELECT results_repeated FROM outbox.stat' ]);

cmp_ok($repeated, '>', 0, 'orders came more than once') if grep { /hangs/ } @plan;

diag(sprintf(
		'%d orders (%d CONFIRMED, %d CANCELLED) and %d faults in %.0f s, decided %.1f s later: %.0f orders/s;'
		  . ' %d orders and %d results came repeatedly',
		$orders, @decided{qw(CONFIRMED CANCELLED)}, scalar(@plan), $placed_after,
		$decided_after - $placed_after, $orders / $decided_after, $repeated, $answered));

$_->stop('fast') foreach (values %node);
$kafka->stop;
done_testing();
