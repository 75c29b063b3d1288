# Capture across ends of sessions, restarts, crashes and promotion: ids never
# fall behind those that are in the log, and no announcement outlives its
# transaction.

use strict;
use warnings;

use IPC::Run ();
use OutboxTest::Cluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_outbox_node(
	'main',
	init => { allows_streaming => 1 },
	# so that the segment isn't changed within these days
	conf => "outbox.retention = '365d'",
	extension => ['postgres']);

sub announced
{
	my ($server) = @_;

	return $server->safe_psql('postgres',
		'SELECT oldest_transaction_pid FROM outbox.counters()');
}

# A session that has sent a message and stays in its transaction
sub open_transaction
{
	my ($server, $key) = @_;
	my $session = IPC::Run::start(
		[
			'psql', '-XqAt', '-d', $server->connstr('postgres'),
			'-c', 'BEGIN',
			'-c', "SELECT outbox.send('open', ''::text, '$key')",
			'-c', 'SELECT pg_sleep(600)'
		],
		'>', '/dev/null', '2>', '/dev/null');

	wait_until('the transaction is announced', sub { announced($server) ne '' });
	return $session;
}

# Puts a row into the log as if the clock had been ahead by some days then
sub message_from_the_future
{
	my ($days, $segment) = @_;

	return "INSERT INTO outbox.log (id, updated_at, attempts, segment, lane, status, topic)
		VALUES (outbox.message_id_at(now() + interval '$days days'), now(), 0, $segment, 0, 'S', 'future');";
}

# The time of a new message, in whole days from now, and its segment
sub new_message
{
	my ($server) = @_;

	return $server->safe_psql('postgres', q(
		CREATE TEMP TABLE sent AS SELECT outbox.send('new', ''::text) AS id;
		SELECT round(extract(epoch FROM outbox.message_time(id) - now()) / 86400),
			(SELECT segment FROM outbox.log AS l WHERE l.id = sent.id) FROM sent));
}

is(new_message($node), '0|0', 'an empty log begins in segment 0, now');

subtest 'a session ends in the middle of its transaction' => sub {
	my $session = open_transaction($node, 'terminated');
	my $pid = announced($node);

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	$session->finish;
	wait_for_value($node, 'postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", '0');
	is(announced($node), '', 'its announcement is gone');

	$session = open_transaction($node, 'cancelled');
	$pid = announced($node);
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	$session->finish;
	wait_for_value($node, 'postgres',
		'SELECT count(*) FROM outbox.counters() WHERE oldest_transaction_pid IS NOT NULL', '0');
	is($node->safe_psql('postgres', q(SELECT count(*) FROM outbox.log WHERE topic = 'open')),
		'0', 'nothing of them is in the log');
};

subtest 'a restart' => sub {
	$node->safe_psql('postgres', message_from_the_future(2, 3));
	# a UUID that carries no time doesn't count
	$node->safe_psql('postgres', q(
		INSERT INTO outbox.log (id, updated_at, attempts, segment, lane, status, topic)
		VALUES ('ffffffff-ffff-4fff-bfff-ffffffffffff', now(), 0, 3, 0, 'S', 'future')));
	is(new_message($node), '0|0', 'what others put into the log is not noticed');
	$node->restart;
	is(new_message($node), '2|3', 'ids go on after the largest, in its segment');
};

subtest 'a prepared transaction' => sub {
	$node->safe_psql('postgres', 'BEGIN;' . message_from_the_future(4, 5) . q(
		SELECT outbox.send('prepared', ''::text); PREPARE TRANSACTION 'p'));
	$node->restart;
	is(announced($node), '', 'nothing is announced after the restart');
	is(new_message($node), '4|5', 'its ids count, though it is in doubt');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.prepared'), '0',
		'its range is not known yet');
	$node->safe_psql('postgres', q(COMMIT PREPARED 'p'));
	is($node->safe_psql('postgres', q(
		SELECT count(*) FROM outbox.prepared AS p, outbox.log AS l
		WHERE l.topic = 'prepared' AND l.id BETWEEN p.first_id AND p.last_id)),
		'1', 'its range is known as soon as it has committed');
};

subtest 'messages that were moved out of the ring' => sub {
	$node->safe_psql('postgres', message_from_the_future(6, -1));
	$node->restart;
	is(new_message($node), '6|5', 'their ids count, but no segment is theirs');
};

subtest 'a crash' => sub {
	my $session = open_transaction($node, 'crash');

	$node->safe_psql('postgres', message_from_the_future(8, 6));
	$node->stop('immediate');
	$session->finish;
	$node->start;
	is(announced($node), '', 'nothing is announced after the crash');
	is(new_message($node), '8|6', 'ids go on');
};

subtest 'a promotion' => sub {
	$node->backup('backup');
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	$standby->init_from_backup($node, 'backup', has_streaming => 1);
	$standby->start;
	my ($status, $out, $err) = $standby->psql('postgres', q(SELECT outbox.send('standby', ''::text)));
	like($err, qr/cannot execute outbox\.send\(\) (in a read-only transaction|during recovery)/,
		'nothing can be sent on a standby');
	($status, $out, $err) = $standby->psql('postgres',
		q(SELECT outbox.wait_for((SELECT max(id::text)::uuid FROM outbox.log), '10 minutes')));
	like($err, qr/cannot execute outbox\.wait_for\(\) during recovery/, 'nor waited for');

	$node->safe_psql('postgres', message_from_the_future(10, 7));
	is(new_message($node), '8|6', 'a message before the promotion');
	$node->wait_for_catchup($standby);
	$node->stop;
	$standby->promote;
	is(new_message($standby), '10|7', 'ids go on');
	$standby->stop;
};

done_testing();
