# Every record of a subscription is handled once and in the order of its
# partition, whatever is done to the subscription and whoever handles it.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Guard qw(process_state);
use OutboxTest::Kafka;
use OutboxTest::Subscriptions;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap,
	extension => ['postgres'], init => { allows_streaming => 1 });
my $test = subscriptions_of($node, $kafka);

subtest 'replaced, ended, begun again' => sub {
	my $topic = new_topic();
	my $id = '0195c0de-0000-7000-8000-000000000001';

	$kafka->produce($topic, { value => 'known', headers => [ [ 'id', $id ] ] }, { value => 'nameless' });
	subscribe($topic);
	taken($topic, 'known nameless', 'subscribed');
	query("SELECT outbox.subscribe('$topic', 'app.other(outbox.record)', start => 'earliest')");
	produce($topic, 0, 'more');
	taken($topic, 'known nameless more', 'replaced: it goes on where it was');
	is(query("SELECT handler FROM app.taken WHERE payload = 'more'"), 'other', 'with the new handler');

	query("SELECT outbox.unsubscribe('$topic')");
	is(position($topic), '', 'ended: the position is forgotten');
	produce($topic, 0, 'between');
	subscribe($topic);
	taken($topic, 'known nameless more nameless more between', 'begun again: from its start');
	is(query("SELECT records_repeated FROM outbox.subscription WHERE topic = '$topic'"), 1,
		'but the inbox knows what it knows');
	query("SELECT outbox.unsubscribe('$topic');
		SELECT outbox.subscribe('$topic', 'app.take(outbox.record)', start => 'latest')");
	wait_for_position($topic, 4);
	produce($topic, 0, 'last');
	taken($topic, 'known nameless more nameless more between last', 'in one go');
};

subtest 'skip' => sub {
	my $topic = new_topic(2);
	my @ids = map { "0195c0de-0000-7000-8000-00000000010$_" } 0 .. 3;
	my @values = ('a', 'b', 'wait', 'c');

	$kafka->produce($topic, map { { partition => 0, value => $values[$_], headers => [ [ 'id', $ids[$_] ] ] } } 0 .. 3);
	subscribe($topic, 'earliest', ', max_attempts => 100');
	subscription_is($topic, 'retrying', 'partition 0, offset 2, attempt [2-9]\d*: not yet',
		'a failure that may pass is retried');
	produce($topic, 1, 'd');
	taken($topic, 'a b d', 'the other partition goes on');
	query("SELECT outbox.skip('$topic', 0, 2)");
	taken($topic, 'a b c d', 'skipped while it is retried');
	subscription_is($topic, 'running', '', 'it is over');

	query("SELECT outbox.skip('$topic', 0, -1)");
	subscription_is($topic, 'retrying', 'partition 0, offset 2, ', 'skipped back');
	query("SELECT outbox.skip('$topic', 0, 2)");
	wait_for_position($topic, 4);
	$test->wait_for("SELECT records_repeated FROM outbox.subscription WHERE topic = '$topic'", 3);
	taken($topic, 'a b c d', 'the inbox knows what was handled');
	foreach my $bad ("'$topic', 7, 1", "'none', 0, 1", "'$topic', 0, -2", "'$topic', NULL, 1")
	{
		isnt($node->psql('postgres', "SELECT outbox.skip($bad)"), 0, "skip($bad) fails");
	}
};

subtest 'restarts' => sub {
	my $topic = new_topic(3);
	my $n = 0;

	subscribe($topic);
	foreach my $death ('fast', 'immediate', 'kill', 'immediate', 'kill')
	{
		my $seen = query("SELECT count(*) FROM app.taken WHERE topic = '$topic'");

		$kafka->produce($topic, map { { partition => $_ % 3, value => $n++ } } 1 .. 300);
		$test->wait_for("SELECT count(*) > $seen FROM app.taken WHERE topic = '$topic'", 't');
		if ($death eq 'kill')
		{
			my $pid = query(q(SELECT pid FROM outbox.worker WHERE kind = 'consumer'));
			kill('KILL', $pid);
			$test->wait_for(
				"SELECT count(*) FROM outbox.worker WHERE kind = 'consumer' AND pid <> $pid", 1);
		}
		else { $node->restart($death) }
	}
	each_once($topic, $n, 'each is handled once');
};

subtest 'other numbers of consumers' => sub {
	my $topic = new_topic(6);
	my $n = 0;
	my $load = sub {
		$kafka->produce($topic, map { { partition => $_ % 6, value => $n++ } } 1 .. 300);
	};

	subscribe($topic);
	foreach my $consumers (3, 1, 2)
	{
		$load->();
		set_conf($node, 'outbox.consumers' => $consumers);
		$load->();
	}
	each_once($topic, $n, 'each record is handled once, in the order of its partition');
	set_conf($node, 'outbox.consumers' => 1);
};

subtest 'a copy' => sub {
	my ($topic, $results) = ($test->new_topics());
	my $subscribed = new_topic();
	my $dump = "$PostgreSQL::Test::Utils::tmp_check/copy.dump";
	my $id = '0195c0de-0000-7000-8000-000000000201';

	query('CREATE FUNCTION app.refuse(message outbox.message) RETURNS void LANGUAGE plpgsql AS'
		  . q( $$ BEGIN IF to_regclass('app.repaired') IS NULL THEN RAISE 'refused'; END IF; END $$));
	query("SELECT outbox.set_topic('$topic', '$results', handler_attempts => 1,"
		  . " on_failed => 'app.refuse(outbox.message)')");
	my ($message) = $test->messages($topic, 1);
	$kafka->produce($results, { key => $message, value => 'FAILED' });
	$kafka->produce($subscribed, { value => 'known', headers => [ [ 'id', $id ] ] },
		{ value => 'refuse', headers => [ [ 'kafka_correlationId', 'abc' ], [ 'h', 'v' ] ] });
	subscribe($subscribed);
	wait_for_position($subscribed, 2);
	$test->counts_are($results, { applied => 1 }, 'a call is owed');
	$test->wait_for('SELECT count(*) FROM outbox.handler_call WHERE due_at IS NULL', 1);

	$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
	query('CREATE DATABASE copy');
	$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr('copy'), $dump ], 'pg_restore');
	foreach my $table (qw(subscription_config dead_record_data handler_call inbox consumer_offset topic_config))
	{
		my $rows = "SELECT t FROM outbox.$table AS t ORDER BY t::text";

		is($node->safe_psql('copy', $rows), query($rows), "$table is as it was");
	}

	wait_for_value($node, 'copy',
		q(SELECT count(*) FROM outbox.worker WHERE state LIKE 'parked: %'), '2') and pass('it is parked');
	my $pid = $node->safe_psql('copy', q(SELECT pid FROM outbox.worker WHERE kind = 'consumer'));
	my $busy = grep { sleep(0.01); process_state($pid) ne 'S' } 1 .. 20;
	cmp_ok($busy, '<', 10, 'and sleeps');
	produce($subscribed, 0, 'more', 'refuse again');
	wait_for_position($subscribed, 4);
	is($node->safe_psql('copy', "SELECT next_offset FROM outbox.consumer_offset WHERE topic = '$subscribed'"),
		2, 'it reads nothing');

	$node->safe_psql('copy', 'CREATE TABLE app.repaired (); SELECT outbox.adopt();');
	wait_for_value($node, 'copy', "SELECT count(*), count(DISTINCT number) FROM outbox.dead_record", '2|2')
	  and pass('adopted: it goes on where it was');
	$node->safe_psql('copy', "SELECT outbox.replay('$topic'), outbox.replay('$subscribed')");
	wait_for_value($node, 'copy',
		"SELECT status FROM outbox.message WHERE id = '$message'", 'FAILED') and pass('what was owed is paid');
	wait_for_value($node, 'copy', 'SELECT min(attempts) FROM outbox.dead_record', '2')
	  and pass('and dead records are tried again');
	$node->safe_psql('copy', "SELECT outbox.skip('$subscribed', 0, -1)");
	wait_for_value($node, 'copy',
		"SELECT records_repeated FROM outbox.subscription WHERE topic = '$subscribed'", '1')
	  and pass('its inbox knows what was handled');
	query('DROP DATABASE copy');
};

subtest 'a standby' => sub {
	my $topic = new_topic(2);

	subscribe($topic);
	$kafka->produce($topic, map { { partition => $_ % 2, value => $_ } } 1 .. 100);
	each_once($topic, 100, 'read');
	$node->backup('backup');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'backup', has_streaming => 1);
	configure_outbox_node($standby, bootstrap => $kafka->bootstrap);
	$standby->start;

	$kafka->produce($topic, map { { partition => $_ % 2, value => $_ } } 1 .. 500);
	$test->wait_for("SELECT count(*) > 100 FROM app.taken WHERE topic = '$topic'", 't');
	$node->stop('immediate');
	$standby->promote;
	subscriptions_of($standby, $kafka);
	each_once($topic, 600, 'promoted: it goes on from the positions it has');
	$standby->stop;
};

$kafka->stop;
done_testing();
