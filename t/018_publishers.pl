# Several publishers: the order by key, read from Apache Kafka, while publishers,
# bridges and the broker end in every way, topics are paused, and the number of
# publishers changes.
#
# Many customers place orders, whose messages go to three topics of one, four and
# seven partitions, in transactions short and long, with savepoints, prepared, and
# rolled back.  A customer's orders are counted under a lock, so that order n had
# committed before n + 1 was captured: the first copies of each customer's orders
# must be in the topic in that order, none missing, and none that was rolled back.
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
my $wanted = $ENV{FAULT_ORDERS} // ($full ? 200_000 : 20_000);
my $faults = $ENV{FAULT_COUNT} // ($full ? 60 : 14);
my $rate = $full ? 700 : 600;    # transactions a second
my $seed = $ENV{FAULT_SEED} // int(rand(2**31));
my $publishers = 4;
my $ack_timeout = 3;             # seconds
my %partitions = ('orders-1' => 1, 'orders-4' => 4, 'orders-7' => 7);

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, $partitions{$_}) foreach (sort keys %partitions);
my $node = new_outbox_node(
	'main',
	bootstrap => $kafka->bootstrap,
	conf => "outbox.publishers = $publishers\noutbox.ack_timeout = '${ack_timeout}s'\n"
	  . "checkpoint_timeout = '30s'\nwal_writer_delay = '10s'",
	extension => ['postgres']);

diag("FAULT_SEED=$seed, $wanted orders, $faults faults");
srand($seed);

# Of some customers the next order waits for the last one's end all the time.
create_orders($node, customers => 1000, skew => 20, topics => [ sort keys %partitions ]);

# One of the topics publishes one message of a key at a time.
$node->safe_psql('postgres', "SELECT outbox.set_topic('orders-7', hold_key_when_dead => true)");

my %scripts = (
	plain => [ 300, 'SELECT place(:c);' ],
	async => [ 200, 'BEGIN; SET LOCAL synchronous_commit = off; SELECT place(:c); COMMIT;' ],
	four => [ 100, 'FOUR' ],
	same => [ 60, 'SELECT place(:c) FROM generate_series(1, 5);' ],
	savepoint => [ 100, 'BEGIN; SELECT place(:c); SAVEPOINT s; SELECT place_doomed(:c);'
		  . ' ROLLBACK TO s; SELECT place(:c); COMMIT;' ],
	caught => [ 100, 'DO $$ BEGIN PERFORM place_doomed(:c); PERFORM 1 / (:c - :c);'
		  . ' EXCEPTION WHEN division_by_zero THEN PERFORM place(:c); END $$;' ],
	rolled_back => [ 50, 'BEGIN; SELECT place(:c); SELECT place_doomed(:c); ROLLBACK;' ],
	slow => [ 40, "BEGIN; FOUR\n\\sleep 50 ms\nSELECT place(:c); COMMIT;" ],
	long => [ 2, "BEGIN; FOUR_OF_ALL\n\\sleep 2 s\nSELECT place(:any); COMMIT;" ],
	prepared => [ 80, "BEGIN; FOUR SELECT place(:c); PREPARE TRANSACTION 'x:gid';\n"
		  . "\\sleep 5 ms\nCOMMIT PREPARED 'x:gid';" ],
	prepared_long => [ 2, "BEGIN; FOUR_OF_ALL PREPARE TRANSACTION 'x:gid';\n"
		  . "\\sleep 1 s\nCOMMIT PREPARED 'x:gid';" ]);

# upwards, so that no two wait for each other
foreach my $script (values %scripts)
{
	my $four = 'SELECT place(n) FROM generate_series(:c, least(:c + 3, 1000)) AS n;';

	$script->[1] =~ s/FOUR_OF_ALL/$four =~ s{:c}{:any}gr/e;
	$script->[1] =~ s/FOUR/$four/;
}

my $run = OutboxTest::Faults->new($node, $kafka, patience => $full ? 600 : 240);

$run->keep(pgbench => order_load($node, \%scripts, '-c', 12, '-j', 2, '-R', $rate, '-T', 3600));

# ---------- the faults ----------

# pids of those that work
sub publishers
{
	return split /\n/,
	  $run->query("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'outbox publisher%'");
}

my @numbers = (1, 4, 3, 2, 4);

# No sooner than the last change is done; that this one gets done is for the next
# one to see.
sub change_publishers
{
	$run->wait_busily("$publishers publishers", sub { publishers() == $publishers; });
	$publishers = shift @numbers;
	push @numbers, $publishers;
	$run->wait_busily('the setting is changed',
		sub {
			$run->query("ALTER SYSTEM SET outbox.publishers = $publishers");
			$run->query('SELECT pg_reload_conf()');
			return $run->query('SHOW outbox.publishers') eq $publishers;
		});
	return;
}

sub terminate_publishers
{
	my ($choice) = @_;
	my @pids;

	$run->wait_busily('a publisher', sub { @pids = publishers(); }) or return;
	@pids = ($pids[ rand @pids ]) if $choice eq 'one';
	kill('TERM', @pids);
	return;
}

# A topic is held, and catches up while the others go on.
sub pause_topic
{
	my $topic = (sort keys %partitions)[ rand keys %partitions ];
	my $until = (orders() || 0) + $wanted / 50;

	$run->wait_busily("$topic is paused",
		sub { $run->query("SELECT outbox.pause('$topic')"); is_paused($topic) eq 't'; });
	$run->wait_busily('more orders', sub { (orders() || 0) >= $until; });
	$run->wait_busily("$topic is resumed",
		sub { $run->query("SELECT outbox.resume('$topic')"); is_paused($topic) eq 'f'; });
	return;
}

# For longer than a batch waits: what was sent is given up, and its topics held.
sub hang_broker
{
	my $until = time() + $ack_timeout + 2;

	$run->need_broker;
	$kafka->pause;
	$run->wait_busily('some seconds', sub { time() > $until });
	$kafka->resume;
	return;
}

sub is_paused
{
	my ($topic) = @_;
	return $run->query("SELECT count(*) > 0 FROM outbox.paused WHERE topic = '$topic'");
}

sub orders
{
	return $run->query('SELECT count(*) FROM orders');
}

my %fault = (
	$run->faults,
	broker_hangs => \&hang_broker,
	pause => \&pause_topic,
	terminate => sub { terminate_publishers('one') },
	terminate_all => sub { terminate_publishers('all') },
	change => \&change_publishers);

delete $fault{consumer};    # there is none

# Each at least once, a change more often.
my @each = (sort keys %fault, qw(change change));
my @plan;
push @plan, shuffle(@each) while @plan < $faults;
splice(@plan, $faults);
$run->go(\@plan, \%fault, $wanted, \&orders);

# ---------- the end of it ----------

$run->end_clients;
my $begun = time();
my $done = $run->wait_busily('all messages are SENT',
	sub {
		$run->query("SELECT count(*) FROM outbox.message WHERE status <> 'SENT'") eq '0';
	});
dump_state($node, 'postgres') unless $done;
ok($done, 'all messages end SENT');
note(sprintf('%.1f s after the last order', time() - $begun));
$run->wait_busily("$publishers publishers", sub { publishers() == $publishers; });
is(scalar(publishers()), $publishers, 'there are as many publishers as the setting says');

my $counts = check_orders($node, $kafka);

cmp_ok($counts->{orders}, '>=', $wanted, 'enough orders were placed');
cmp_ok($node->safe_psql('postgres', 'SELECT last_value FROM rollbacks'),
	'>', $wanted / 50, 'and many were rolled back');
diag(sprintf('%d orders, %d records: %d duplicates; %.0f s',
		@$counts{qw(orders records copies)}, time() - $^T));

$node->stop('fast');
$kafka->stop;
done_testing();
