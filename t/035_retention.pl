# Retention of the log: segments are filled in turn, emptied when they are old,
# and what must be kept outlives them.

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
$mock->create_topic($_, 1) foreach ('orders', 'paused', 'asked', 'results');
my $node = new_outbox_node(
	'main',
	bootstrap => $mock->bootstrap,
	conf => "outbox.retention = '14min'",
	start => 0);
start_with_clock($node);
$node->safe_psql('postgres', 'CREATE EXTENSION outbox');

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

sub send_some
{
	my ($topic, $n) = @_;
	return sql("SELECT count(outbox.send('$topic', '$topic ' || n, 'key ' || n % 7))"
		  . " FROM generate_series(1, $n) AS n");
}

# In which segments the messages are, and how many
my $segments = q(SELECT string_agg(segment || ':' || n, ' ' ORDER BY segment)
	FROM (SELECT segment, count(*) AS n FROM outbox.log GROUP BY segment) AS s);

sub segments
{
	return sql($segments);
}

sub wait_segments
{
	my ($expected, $name) = @_;
	return wait_for_value($node, 'postgres', $segments, $expected) && pass($name);
}

sub all_sent
{
	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE status = 'NEW' AND topic <> 'paused'", '0');
}

# a segment is filled for a minute
sub minutes
{
	my ($n) = @_;
	push_clock($node, 60 * $n);
	sql('SELECT outbox.config_changed()');
	return;
}

subtest 'segments take turns' => sub {
	send_some('orders', 10);
	all_sent();
	is(segments(), '0:10', 'the first one');
	minutes(1);
	send_some('orders', 10);
	is(segments(), '0:10 1:10', 'then the next');
	minutes(13);
	send_some('orders', 1);
	all_sent();
	is(segments(), '0:10 1:10 2:1', 'nothing is old yet');
	minutes(1);
	wait_segments('1:10 2:1', 'the oldest goes');
	minutes(2);
	wait_segments('2:1', 'then the next');
};

sub id_of
{
	my ($topic) = @_;
	return sql("SELECT id FROM outbox.message WHERE topic = '$topic' ORDER BY id DESC LIMIT 1");
}

# Sends something else, and waits until only segment -1 has anything old
sub until_emptied
{
	my ($kept) = @_;

	minutes(16);
	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.log
		 WHERE segment >= 0 AND id < outbox.message_id_at(clock_timestamp() - interval '1 min')", '0')
	  && is(sql('SELECT count(*) FROM outbox.log_kept'), $kept, 'what must be kept was moved');
}

subtest 'what must be kept' => sub {
	until_emptied(0);
	sql("SELECT outbox.set_topic('asked', result_topic => 'results', result_timeout => '1 day')");
	sql("SELECT outbox.pause('paused')");
	send_some('orders', 10);
	send_some('paused', 3000);
	sql("SELECT outbox.send('asked', 'result pending'::text, 'k')");
	sql("SELECT outbox.send('orders', 'dead'::text, 'k')");
	all_sent();
	my $dead = id_of('orders');
	sql("SELECT outbox.change_status('$dead', 'SENT', 'DEAD', 'a test')");
	sql("SELECT outbox.send('orders', 'later'::text, deliver_at => clock_timestamp() + interval '1 day')");
	my $later = id_of('orders');
	until_emptied(3003);
	my $asked = id_of('asked');
	minutes(24 * 60);
	wait_for_value($node, 'postgres', "SELECT attempts FROM outbox.message WHERE id = '$asked'", '2');
	pass('recovery of what was moved');
	wait_for_value($node, 'postgres', "SELECT status FROM outbox.message WHERE id = '$later'", 'SENT');
	pass('a delayed message that was moved');
	$mock->produce('results', { key => $asked, value => 'SUCCESS' });
	wait_for_value($node, 'postgres', "SELECT status FROM outbox.message WHERE id = '$asked'",
		'CONFIRMED');
	pass('a result for what was moved');
	sql("SELECT outbox.resend('$dead')");
	wait_for_value($node, 'postgres',
		"SELECT status, attempts FROM outbox.message WHERE id = '$dead'", 'SENT|2');
	pass('resend of what was moved');
	send_some('paused', 100);
	sql("SELECT outbox.resume('paused')");
	wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = 'paused' AND status = 'SENT'", '3100');
	my @values = map { $_->{value} } $mock->consume('paused');
	is_deeply(\@values, [ map { "paused $_" } 1 .. 3000, 1 .. 100 ], 'a held topic goes on in order');
};

subtest 'without Kafka' => sub {
	send_some('orders', 10);
	all_sent();
	$mock->down;
	wait_for_value($node, 'postgres', 'SELECT brokers_reachable FROM outbox.stat', 'f');
	send_some('orders', 10);
	minutes(36);
	wait_for_value($node, 'postgres', 'SELECT status, count(*) FROM outbox.message GROUP BY status',
		'NEW|10');
	pass('what was sent goes, what wasn\'t stays');
	$mock->up;
	all_sent();
};

subtest 'purge' => sub {
	minutes(20);
	wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.log', '0');
	pass('what was kept goes when it has been final for as long');
	send_some('orders', 30);
	sql("SELECT outbox.pause('paused')");
	send_some('paused', 5);
	sql("SELECT outbox.send('asked', 'result pending'::text)");
	all_sent();
	my @dead = split /\n/, sql("WITH three AS (SELECT id FROM outbox.message
			WHERE topic = 'orders' ORDER BY id LIMIT 3)
		SELECT id FROM three WHERE outbox.change_status(id, 'SENT', 'DEAD')");
	sql("INSERT INTO outbox.handler_call (message_id, topic, outcome, attempts, since)
		VALUES ('$dead[0]', 'orders', 'D', 1, now())");

	is(sql('SELECT outbox.purge()'), '0', 'nothing is a day old');
	is(sql("SELECT outbox.purge(older_than => '1 minute')"), '0', 'or a minute');
	is(sql("SELECT outbox.purge('asked', older_than => '0')"), '0', 'a result is waited for');
	is(sql("SELECT outbox.purge(older_than => '0', at_most => 20)"), '20', 'some of what is final');
	is(sql("SELECT outbox.purge(older_than => '0')"), '7', 'the rest of it');
	is(sql("SELECT outbox.purge(status => 'DEAD', older_than => '0')"), '2',
		'the dead, but not while a handler is owed');
	is(state_of($node, "SELECT outbox.purge(status => 'NEW')"), '22023', 'others need a topic');
	is(sql("SELECT outbox.purge('paused', 'NEW', '0')"), '5', 'which may never go out');
	is(sql("SELECT outbox.purge('asked', 'SENT', '0')"), '1', 'nor get a result');
	is(state_of($node, "SELECT outbox.purge($_)"), '22023', "purge($_) is refused")
	  foreach ("older_than => '-1 s'", 'older_than => NULL', 'at_most => 0');
	is(sql('SELECT id FROM outbox.message'), $dead[0], 'one is left');
};

done_testing();
$node->stop;
$mock->stop;
