# Several consumers a database: how they divide the partitions, and what a change
# of their number does, also when a consumer or the launcher ends in between.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Results;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $partitions = 6;
my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node =
  new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my $test = OutboxTest::Results->new($node, $kafka);
my ($topic, $results) = $test->new_topics(partitions => $partitions);

# Far below the 5 seconds after which a command gives up waiting for workers.
my $soon = 3;

# Answers for these messages, one after the other to all partitions in turn.
sub answer
{
	my ($result_topic, @ids) = @_;
	my $n = 0;

	$kafka->produce($result_topic,
		map { { partition => $n++ % $partitions, key => $_, value => 'SUCCESS' } } @ids);
	return;
}

# Number and pid of the consumers that run in a database
sub consumers
{
	my ($db) = @_;

	return map { [ split /\|/ ] } split /\n/, $node->safe_psql($db // 'postgres', q(
		SELECT number, pid FROM outbox.worker
		WHERE kind = 'consumer' AND pid IS NOT NULL ORDER BY number));
}

# All consumers of a database run, and there is no row of another.
sub wait_for_consumers
{
	my ($n, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, $db // 'postgres',
		q(SELECT string_agg(number || coalesce(nullif(pid IS NOT NULL, true)::text, ''), ' ' ORDER BY number)
		  FROM outbox.worker WHERE kind = 'consumer'),
		join(' ', 0 .. $n - 1));
}

# And they read all partitions, each as many.
sub shared_by
{
	my ($n, $name) = @_;
	my $each = $partitions / $n;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_consumers($n);
	wait_for_value($node, 'postgres',
		q(SELECT string_agg(DISTINCT state, '; ') FROM outbox.worker WHERE kind = 'consumer'),
		"reading $each partition" . ($each == 1 ? q() : "s") . " of 1 topic")
	  and pass($name);
	return;
}

sub all_confirmed
{
	my ($name, @ids) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $test->all_confirmed($name, @ids);
}

is($node->safe_psql('postgres', 'SHOW outbox.consumers'), '1', 'one consumer by default');
foreach my $number (0, 17)
{
	isnt($node->psql('postgres', "ALTER SYSTEM SET outbox.consumers = $number"),
		0, "$number are refused");
}
shared_by(1, 'it reads all partitions');

subtest 'another number, results flowing' => sub {
	foreach my $n (3, 2, 6, 1, 3)
	{
		my @ids = $test->messages($topic, 4 * $partitions);
		my @rest = splice(@ids, 2 * $partitions);

		answer($results, @ids);
		set_conf($node, 'outbox.consumers' => $n);
		answer($results, @rest);
		all_confirmed("$n: all are confirmed", @ids, @rest);
		shared_by($n, "$n: each has its partitions");
	}
	is_deeply($test->counts($results),
		{ applied => 20 * $partitions, repeated => 0, contrary => 0, unknown => 0, bad => 0 },
		'each was applied once');
};

# What one of them has nobody else reads.
subtest 'one of them hangs' => sub {
	my @before = consumers();
	my @ids = $test->messages($topic, $partitions);
	my $behind = 'SELECT count(*), count(DISTINCT partition % 3) FROM outbox.consumer_offset'
	  . " WHERE topic = '$results' AND next_offset = (SELECT min(next_offset)"
	  . "  FROM outbox.consumer_offset WHERE topic = '$results')";

	kill('STOP', $before[1][1]);
	answer($results, @ids);
	$test->wait_for(
		"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'SENT'", '2');
	is($test->query($behind), '2|1', 'its partitions wait, one in three');
	kill('CONT', $before[1][1]);
	all_confirmed('until it goes on', @ids);
	is_deeply([ consumers() ], \@before, 'nobody has ended');
};

subtest 'one of them ends' => sub {
	my @before = consumers();
	my @ids = $test->messages($topic, $partitions);

	$test->query("SELECT pg_terminate_backend($before[1][1])");
	answer($results, @ids);
	all_confirmed('all are confirmed', @ids);
	shared_by(3, 'it is back');
	my @after = consumers();
	isnt($after[1][1], $before[1][1], 'as another process');
	is_deeply([ @after[ 0, 2 ] ], [ @before[ 0, 2 ] ], 'the others have gone on');
};

# With a change of the result topic they all have to do.
subtest 'the result topic is changed' => sub {
	my @earlier = $test->messages($topic, $partitions);
	my $new = $test->new_name('results');
	my $counts = $test->counts($results);

	$kafka->create_topic($new, $partitions);
	$test->set_topic($topic, $new);
	my @later = $test->messages($topic, $partitions);
	answer($results, @later, @earlier);
	all_confirmed('the former one counts for earlier messages', @earlier);
	$counts->{applied} += $partitions;
	$counts->{unknown} += $partitions;
	$test->counts_are($results, $counts, 'and not for later ones');
	is( $test->query('SELECT count(*), count(until) FROM outbox.former_result_topic'),
		'1|1', 'it has its bound');
	answer($new, @later);
	all_confirmed('the new one does', @later);

	$test->set_topic($topic, $results);
	$test->query('DELETE FROM outbox.former_result_topic; SELECT outbox.config_changed()');
	shared_by(3, 'back to the one');
};

# The launcher sees every database in turn: when it has dealt with a new one, it
# has dealt with this one since.
my $databases = 0;

sub launcher_has_looked
{
	my ($n) = @_;
	my $db = 'other' . $databases++;

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql($db, 'CREATE EXTENSION outbox');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_consumers($n, $db);
	return;
}

# Not before: DROP DATABASE waits for every process of the server.
sub goes_on
{
	my ($pid) = @_;

	kill('CONT', $pid);
	$node->safe_psql('postgres', 'DROP DATABASE other' . --$databases) while ($databases > 0);
	return;
}

subtest 'no two numbers at a time' => sub {
	my @old = consumers();
	my @ids = $test->messages($topic, $partitions);

	kill('STOP', $old[1][1]);
	set_conf($node, 'outbox.consumers' => 2);
	$test->wait_for(
		q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'outbox consumer'), '1');
	launcher_has_looked(2);
	is_deeply([ consumers() ], [ $old[1] ], 'none starts while one is left');

	# the new one doesn't even know it
	my ($launcher) = outbox_pids($node, 'launcher');
	$test->query("SELECT pg_terminate_backend($launcher)");
	$test->wait_for(
		"SELECT count(*) FROM outbox.worker WHERE kind = 'launcher' AND pid <> $launcher", '1');
	launcher_has_looked(2);
	is_deeply([ consumers() ], [ $old[1] ], 'nor by another launcher');

	answer($results, @ids);
	goes_on($old[1][1]);
	shared_by(2, 'when it has ended they start');
	all_confirmed('and all goes on', @ids);
};

subtest 'another launcher' => sub {
	my @old = consumers();
	my ($launcher) = outbox_pids($node, 'launcher');
	my @ids = $test->messages($topic, $partitions);

	kill('STOP', $old[0][1]);
	$test->query("SELECT pg_terminate_backend($launcher)");
	$test->wait_for(
		"SELECT count(*) FROM outbox.worker WHERE kind = 'consumer' AND pid <> $old[1][1] AND number = 1", '1');
	is((consumers())[0][1], $old[0][1], 'takes over where the old consumer has ended');
	launcher_has_looked(2);
	is((consumers())[0][1], $old[0][1], 'and waits where it has not');
	goes_on($old[0][1]);
	answer($results, @ids);
	all_confirmed('all goes on', @ids);
	shared_by(2, 'with as many');
};

subtest 'too few worker processes' => sub {
	# two of them are for launchers, PostgreSQL's and ours, and one for the publisher
	set_conf($node, 'outbox.consumers' => 3, 'max_worker_processes' => 5);
	$node->restart;
	$test->wait_for(
		q(SELECT count(*), count(pid), count(*) FILTER (WHERE pid IS NULL
			AND state = 'not running: no free background worker slot'
			AND last_error LIKE '%max_worker_processes%')
		  FROM outbox.worker WHERE kind = 'consumer'), '3|2|1');
	is( $test->query(q(SELECT pid IS NOT NULL FROM outbox.worker WHERE kind = 'publisher')),
		't', 'outbox.worker shows the one that does not run');
	like(slurp_file($node->logfile),
		qr/WARNING: .*no free background worker slot\n.*HINT: .*"max_worker_processes"/,
		'the log has the hint');

	my @ids = $test->messages($topic, $partitions);
	answer($results, @ids);
	$test->wait_for(
		"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'SENT'", '2')
	  and pass('its partitions wait');
	set_conf($node, 'outbox.consumers' => 2);
	all_confirmed('until there are as many as can run', @ids);
	shared_by(2, 'and the third is forgotten');

	set_conf($node, 'outbox.consumers' => 1);
	shared_by(1, 'back to one');
};

subtest 'ends' => sub {
	set_conf($node, 'outbox.consumers' => 3, 'max_worker_processes' => 16);
	$node->restart;
	shared_by(3, 'three of them');

	my $start = time();
	$test->query('DROP EXTENSION outbox CASCADE');
	$test->wait_for(
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'outbox (publisher|consumer)'", '0');
	cmp_ok(time() - $start, '<', $soon, 'DROP EXTENSION: soon');

	$test->query('CREATE EXTENSION outbox');
	$test->set_topic($topic, $results);
	shared_by(3, 'a new extension has as many');
	unlike(slurp_file($node->logfile), qr/changed by somebody else/,
		'no two have ever read the same');
	my @bridges = bridge_pids($node);
	is(scalar(@bridges), 4, 'each has a bridge');
	$start = time();
	$node->stop('fast');
	cmp_ok(time() - $start, '<', $soon, 'fast shutdown: soon');
	is(scalar(grep { kill(0, $_) } @bridges), 0, 'no bridge is left');
};

$kafka->stop;
done_testing();
