# Retention over a long time, and while it changes: the size of the log, a year
# without housekeeping, other settings.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Clock;
use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic('orders', 1);
my $node = new_outbox_node(
	'main',
	bootstrap => $mock->bootstrap,
	conf => "outbox.retention = '1h'\nautovacuum_naptime = '1s'",
	start => 0);
start_with_clock($node);
$node->safe_psql('postgres', 'CREATE EXTENSION outbox');

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

sub wait_sql
{
	my ($sql, $expected, $name) = @_;
	return wait_for_value($node, 'postgres', $sql, $expected) && defined $name && pass($name);
}

sub send_some
{
	my ($n) = @_;
	return sql("SELECT count(outbox.send('orders', repeat('x', 200), 'key ' || n % 50))"
		  . " FROM generate_series(1, $n) AS n");
}

sub all_sent
{
	return wait_sql("SELECT count(*) FROM outbox.message WHERE status = 'NEW'", '0');
}

sub later
{
	my ($seconds) = @_;
	push_clock($node, $seconds);
	sql('SELECT outbox.config_changed()');
	return;
}

# What is older than that, a segment's time and a quarter aside
sub gone
{
	my ($interval, $name) = @_;
	return wait_sql("SELECT count(*) FROM outbox.log
		WHERE id < outbox.message_id_at(clock_timestamp() - interval '$interval' * 1.1)",
		'0', $name);
}

sub segments
{
	return sql('SELECT count(DISTINCT segment) FROM outbox.log');
}

subtest 'a day at an hour of retention' => sub {
	my $each = 1000;

	send_some($each);
	all_sent();
	my $size = sql('SELECT log_size FROM outbox.stat');
	my $empty = sql("SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits
		WHERE inhparent = 'outbox.log'::regclass
			AND inhrelid NOT IN (SELECT tableoid FROM outbox.log)") / 16;
	my $most = 0;
	foreach my $half_hour (1 .. 48)
	{
		later(30 * 60);
		send_some($each);
		all_sent();
		gone('1 hour');
		my $now = sql('SELECT log_size FROM outbox.stat');
		$most = $now if $now > $most;
	}
	my $in_use = sql('SELECT count(*) FROM outbox.log') / $each;
	cmp_ok($in_use, '<=', 4, 'messages of an hour are there');
	cmp_ok($in_use, '>=', 2, 'all of them');
	my $needed = 17 * $empty + 4 * ($size - 16 * $empty);
	cmp_ok($most, '<=', 1.2 * $needed, "the log took no more than they need ($most, $needed)");
	is(sql('SELECT count(*) FROM outbox.log_kept'), '0', 'nothing had to be moved');
	cmp_ok(sql("SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class AS c
			WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'r'
				AND NOT c.relispartition"),
		'<', 2_000_000, 'and the other tables are small');
};

subtest 'a year without housekeeping' => sub {
	set_conf($node, 'outbox.retention' => '7d', 'outbox.enabled' => 'off');
	wait_sql("SELECT state LIKE 'resting%' FROM outbox.worker WHERE kind = 'publisher'", 't');
	foreach my $month (1 .. 24)
	{
		push_clock($node, 15 * 86400);
		send_some(100);
	}
	pass('INSERTs work all the same');
	is(segments(), '16', 'all segments are in use');
	restart_with_clock($node);
	send_some(100);
	set_conf($node, 'outbox.enabled' => 'on');
	all_sent();
	wait_sql('SELECT count(*) FROM outbox.log WHERE segment >= 0
		AND segment <> (SELECT current_segment FROM outbox.stat)', '0', 'then they are emptied');
	is(sql('SELECT count(*) FROM outbox.log'), '2500', 'and what was sent just now stays');
	later(8 * 86400);
	send_some(1);
	wait_sql('SELECT count(*) FROM outbox.log', '1', 'for as long as the rest');
};

subtest 'retention gets shorter and longer' => sub {
	later(8 * 86400);
	gone('7 days');
	set_conf($node, 'outbox.retention' => '1h');
	later(60);
	send_some(10);
	all_sent();
	later(20 * 60);
	send_some(10);
	all_sent();
	is(sql('SELECT count(*) FROM outbox.log'), '20', 'nothing is an hour old');
	set_conf($node, 'outbox.retention' => '14min');
	wait_sql('SELECT count(*) FROM outbox.log', '10', 'shorter: the old ones go at once');

	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	send_some(10);
	all_sent();
	later(16 * 60);
	wait_sql('SELECT retention_waits_for FROM outbox.stat', qr/a snapshot of process/);
	set_conf($node, 'outbox.retention' => '1h');
	wait_sql('SELECT retention_waits_for IS NULL FROM outbox.stat', 't');
	$session->query_safe('COMMIT');
	$session->quit;
	later(20 * 60);
	send_some(1);
	all_sent();
	is(sql('SELECT count(*) FROM outbox.log'), '21', 'longer: what was about to go stays');
	later(70 * 60);
	send_some(1);
	wait_sql('SELECT count(*) FROM outbox.log', '1', 'until its time comes');
};

done_testing();
$node->stop;
$mock->stop;
