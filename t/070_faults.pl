# The fault run: orders are placed while everything that can die is killed.
#
# Four clients place orders, and roll some back, while the publisher, the
# consumer, a backend, the bridges and the whole server are killed with -9, and
# the broker is killed or stopped and started again.  The table of orders is the
# truth: each committed order is in Kafka at least once and ends CONFIRMED, and
# no other ever was there.  Some clients commit asynchronously, and lose what
# they committed when the server crashes: that must not be in Kafka either.
#
# STRESS=1 is the full size.  FAULT_SEED repeats a choice of faults,
# FAULT_ORDERS and FAULT_COUNT set the size.

use strict;
use warnings;

use List::Util qw(shuffle);
use OutboxTest::Cluster;
use OutboxTest::Faults;
use OutboxTest::Kafka;
use OutboxTest::Orders;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $full = $ENV{STRESS};
my $wanted = $ENV{FAULT_ORDERS} // ($full ? 100_000 : 10_000);
my $faults = $ENV{FAULT_COUNT} // ($full ? 60 : 10);
my $rate = $full ? 1000 : 600;
my $seed = $ENV{FAULT_SEED} // int(rand(2**31));

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('orders', 3);
$kafka->create_topic('results', 2);
my $node = new_outbox_node(
	'main',
	bootstrap => $kafka->bootstrap,
	conf => "checkpoint_timeout = '30s'\nwal_writer_delay = '10s'",
	extension => ['postgres']);

diag("FAULT_SEED=$seed, $wanted orders, $faults faults");
srand($seed);

# ---------- the application ----------

create_orders($node, result_timeout => '5 s');

my %scripts = (
	plain => [ 30, 'SELECT place(:c);' ],
	rolled_back => [ 8, 'BEGIN; SELECT place(:c); SELECT place_doomed(:c); ROLLBACK;' ],
	savepoint => [ 10, 'BEGIN; SELECT place(:c); SAVEPOINT s; SELECT place_doomed(:c);'
		  . ' ROLLBACK TO s; SELECT place(:c); COMMIT;' ],
	failed => [ 5, 'DO $$ BEGIN PERFORM place_doomed(:c); PERFORM 1 / (:c - :c);'
		  . ' EXCEPTION WHEN division_by_zero THEN PERFORM place(:c); END $$;' ],
	async => [ 40, 'BEGIN; SET LOCAL synchronous_commit = off; SELECT place(:c); COMMIT;' ],
	slow => [ 3, "BEGIN; SELECT place(:c);\n\\sleep 50 ms\nCOMMIT;" ],
	prepared => [ 4, "BEGIN; SELECT place(:c); PREPARE TRANSACTION 'x:gid'; COMMIT PREPARED 'x:gid';" ]);
my $run = OutboxTest::Faults->new($node, $kafka, patience => $full ? 600 : 240);

$run->keep(pgbench => order_load($node, \%scripts, '-c', 4, '-j', 2, '-R', $rate, '-T', 3600));
$run->keep(service => order_service($kafka));

# ---------- durable first ----------

# What was committed asynchronously may be lost in a crash, but not once it is in
# Kafka.  The SENT mark would flush it as well, so it is kept from committing.
subtest 'published after it is durable' => sub {
	$node->safe_psql('postgres', <<'EOS');
CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
DO $$ BEGIN
	FOR segment IN 0 .. 15 LOOP
		EXECUTE format('CREATE TRIGGER wait_here BEFORE UPDATE ON outbox.%I
			FOR EACH ROW EXECUTE FUNCTION wait_here()', 'log_' || segment);
	END LOOP;
END $$;
EOS
	$node->safe_psql('postgres',
		"BEGIN; SELECT pg_advisory_xact_lock(1); PREPARE TRANSACTION 'holder'");
	$node->safe_psql('postgres', 'SET synchronous_commit = off; SELECT place(1)');
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM pg_stat_activity
		  WHERE backend_type LIKE 'outbox publisher%' AND wait_event_type = 'Lock'), 1);
	is(scalar($kafka->consume('orders')), 1, 'an order is in Kafka');
	kill9_server($node);
	start_again($node);
	is($node->safe_psql('postgres', 'SELECT count(*) FROM orders'), 1, 'and survives a crash');
	$node->safe_psql('postgres', "COMMIT PREPARED 'holder'");
	$node->safe_psql('postgres',
		'SET client_min_messages = warning; DROP FUNCTION wait_here CASCADE');
};

# ---------- the faults ----------

my %fault = $run->faults;

# Each at least once, the bridges more often: they cost least.
my @each = (keys %fault, qw(bridge bridges));
my @plan;
push @plan, shuffle(sort @each) while @plan < $faults;
splice(@plan, $faults);
$run->go(\@plan, \%fault, $wanted, sub { $run->query('SELECT count(*) FROM orders') });

# ---------- the end of it ----------

$run->end_clients;
my $done = $run->wait_busily('all messages are CONFIRMED',
	sub {
		$run->query("SELECT count(*) FROM outbox.message WHERE status <> 'CONFIRMED'") eq '0';
	});
dump_state($node, 'postgres') unless $done;
ok($done, 'all messages end CONFIRMED');
note(sprintf('%.1f s: done', time() - $^T));

my $counts = check_orders($node, $kafka);

cmp_ok($counts->{orders}, '>=', $wanted, 'enough orders were placed');
cmp_ok($node->safe_psql('postgres', 'SELECT last_value FROM rollbacks'),
	'>', $wanted / 50, 'and many were rolled back');
cmp_ok($run->restarts('pgbench'), '>', 0, 'clients noticed crashes')
  if grep { /^(publisher|consumer|backend|server)$/ } @plan;
diag(sprintf(
		'%d orders, %d records: %d duplicates, of them at least %d by recovery, at most %d by crashes',
		@$counts{qw(orders records copies recovered)},
		$counts->{copies} - $counts->{recovered}));

$run->end_program('service');
$node->stop('fast');
done_testing();
