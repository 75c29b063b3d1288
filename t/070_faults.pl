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
use OutboxTest::Guard qw(spawn_guarded reap process_state);
use OutboxTest::Kafka;
use OutboxTest::Orders;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $full = $ENV{STRESS};
my $wanted = $ENV{FAULT_ORDERS} // ($full ? 100_000 : 10_000);
my $faults = $ENV{FAULT_COUNT} // ($full ? 60 : 10);
my $rate = $full ? 1000 : 600;
my $seed = $ENV{FAULT_SEED} // int(rand(2**31));
my $patience = $full ? 600 : 240;    # seconds, for a slow machine

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
my @pgbench = order_load($node, \%scripts, '-c', 4, '-j', 2, '-R', $rate, '-T', 3600);
my @service = order_service($kafka);

my %running;    # name => pid
my %restarts = (pgbench => -1, service => -1);

sub keep_running
{
	my ($name, @command) = @_;
	my $pid = $running{$name};

	if (defined $pid)
	{
		my $state = process_state($pid);

		return if defined $state && $state ne 'Z';
		reap($pid, 0);
	}
	$running{$name} = spawn_guarded({}, @command);
	$restarts{$name}++;
	return;
}

# What the application does all the time.  Clients end when the server does; a
# transaction they had prepared then is finished by somebody else.
my $placing = 1;
my $finish_at = 0;

sub tend
{
	keep_running('service', @service);
	keep_running('pgbench', @pgbench) if $placing;
	finish_prepared() if time() > $finish_at;
	return;
}

sub finish_prepared
{
	foreach my $gid (split /\n/,
		query("SELECT gid FROM pg_prepared_xacts WHERE prepared < now() - interval '2 s'"))
	{
		query((rand() < 0.5 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$gid'");
	}
	$finish_at = time() + 1;
	return;
}

# Poll as wait_until() does, with the application running.
sub wait_busily
{
	my ($what, $code, $timeout) = @_;

	return wait_until(
		$what,
		sub {
			tend();
			return $code->();
		},
		$timeout // $patience);
}

# '' if the server is down.  Then psql may end before it was told what to ask,
# for which IPC::Run dies.
sub query
{
	my ($sql) = @_;
	my ($status, $out) = eval { $node->psql('postgres', $sql) };

	return defined $status && $status == 0 ? $out : '';
}

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

my $broker_starts_at = 0;    # 0: it runs

sub backend_pid
{
	my ($condition) = @_;
	my $pid;

	wait_busily("a process with $condition",
		sub { $pid = query("SELECT min(pid) FROM pg_stat_activity WHERE $condition"); })
	  or return;
	return $pid;
}

sub kill9
{
	my ($pid) = @_;

	kill('KILL', $pid) if defined $pid;
	return;
}

sub kill_bridges
{
	my ($choice) = @_;
	my @pids;

	wait_busily('a bridge', sub { @pids = bridge_pids($node); }) or return;
	@pids = ($pids[ rand @pids ]) if $choice eq 'one';
	kill('KILL', @pids);
	return;
}

sub end_broker
{
	my ($how) = @_;

	start_broker() if $broker_starts_at != 0;
	$kafka->wait_ready;
	$how eq 'kill9' ? $kafka->kill9 : $kafka->stop;
	$broker_starts_at = time() + rand(4);
	return;
}

sub start_broker
{
	$kafka->start(wait => 0);
	$broker_starts_at = 0;
	return;
}

my %fault = (
	publisher => sub { kill9(backend_pid("backend_type LIKE 'outbox publisher%'")) },
	consumer => sub { kill9(backend_pid("backend_type LIKE 'outbox consumer%'")) },
	backend => sub { kill9(backend_pid("application_name = 'pgbench'")) },
	server => sub { kill9_server($node); start_again($node) },
	bridge => sub { kill_bridges('one') },
	bridges => sub { kill_bridges('all') },
	broker_kill9 => sub { end_broker('kill9') },
	broker_stop => sub { end_broker('stop') });

# Each at least once, the bridges more often: they cost least.
my @each = (keys %fault, qw(bridge bridges));
my @plan;
push @plan, shuffle(sort @each) while @plan < $faults;
splice(@plan, $faults);

my $placed = 0;

foreach my $i (0 .. $#plan)
{
	my $goal = $wanted * ($i + 1) / (@plan + 1);

	wait_busily(
		"$goal orders",
		sub {
			start_broker() if $broker_starts_at != 0 && time() > $broker_starts_at;
			$placed = query('SELECT count(*) FROM orders') || 0;
			return $placed >= $goal;
		}) or last;
	sleep(rand(0.05));    # anywhere in what goes on
	note(sprintf('%.1f s: %s, with %d orders', time() - $^T, $plan[$i], $placed));
	$fault{ $plan[$i] }->();
}
start_broker() if $broker_starts_at != 0;
wait_busily("$wanted orders",
	sub { (query('SELECT count(*) FROM orders') || 0) >= $wanted });

# ---------- the end of it ----------

$placing = 0;
reap(delete $running{pgbench}, 'TERM');
$kafka->wait_ready;
wait_busily('no client',
	sub { query("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") eq '0' });
wait_busily('no prepared transaction',
	sub { query('SELECT count(*) FROM pg_prepared_xacts') eq '0' });

my $done = wait_busily('all messages are CONFIRMED',
	sub {
		query("SELECT count(*) FROM outbox.message WHERE status <> 'CONFIRMED'") eq '0';
	});
dump_state($node, 'postgres') unless $done;
ok($done, 'all messages end CONFIRMED');
note(sprintf('%.1f s: done', time() - $^T));

my $counts = check_orders($node, $kafka);

cmp_ok($counts->{orders}, '>=', $wanted, 'enough orders were placed');
cmp_ok($node->safe_psql('postgres', 'SELECT last_value FROM rollbacks'),
	'>', $wanted / 50, 'and many were rolled back');
cmp_ok($restarts{pgbench}, '>', 0, 'clients noticed crashes')
  if grep { /^(publisher|consumer|backend|server)$/ } @plan;
diag(sprintf(
		'%d orders, %d records: %d duplicates, of them at least %d by recovery, at most %d by crashes',
		@$counts{qw(orders records copies recovered)},
		$counts->{copies} - $counts->{recovered}));

reap(delete $running{service}, 'TERM');
$node->stop('fast');
done_testing();
