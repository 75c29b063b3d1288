# Positions of subscriptions: where they begin, what moves them, and that every
# record is handled once and in order, whatever happens to the topic or to us.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Guard qw(process_state);
use OutboxTest::Kafka;
use OutboxTest::Results;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $kafka = OutboxTest::Kafka->new(
	authorizer => 1,
	config => {
		'log.retention.check.interval.ms' => 200,
		'log.initial.task.delay.ms' => 200,
		'log.segment.delete.delay.ms' => 0,
		'log.cleaner.enable' => 'true',
		'log.cleaner.dedupe.buffer.size' => 4_000_000,
		'log.cleaner.backoff.ms' => 100
	});
$kafka->start;
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap,
	extension => ['postgres'], init => { allows_streaming => 1 });
my $test = OutboxTest::Results->new($node, $kafka);

sub query
{
	my ($sql) = @_;
	return $test->query($sql);
}

# The handler writes down each call, with no constraint that would hide a second
# one.  The partition's own counter says in which order.
query(<<'EOS');
CREATE SCHEMA app;
CREATE TABLE app.taken (topic text, partition int, "offset" bigint, payload text,
	n bigint, handler text);
CREATE TABLE app.counter (topic text, partition int, n bigint, PRIMARY KEY (topic, partition));
CREATE FUNCTION app.note(record outbox.record, handler text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	place bigint;
BEGIN
	INSERT INTO app.counter AS c VALUES (record.topic, record.partition, 1)
		ON CONFLICT ON CONSTRAINT counter_pkey DO UPDATE SET n = c.n + 1 RETURNING c.n INTO place;
	INSERT INTO app.taken VALUES (record.topic, record.partition, record."offset",
		record.payload, place, handler);
	IF record.payload LIKE 'wait%' THEN
		RAISE serialization_failure USING MESSAGE = 'not yet';
	ELSIF record.payload LIKE 'refuse%' THEN
		RAISE EXCEPTION 'refused';
	END IF;
END
$$;
CREATE FUNCTION app.take(record outbox.record) RETURNS void LANGUAGE sql
	BEGIN ATOMIC SELECT app.note(record, 'take'); END;
CREATE FUNCTION app.other(record outbox.record) RETURNS void LANGUAGE sql
	BEGIN ATOMIC SELECT app.note(record, 'other'); END;
EOS

sub new_topic
{
	my ($partitions) = @_;
	my $topic = $test->new_name('topic');

	$kafka->create_topic($topic, $partitions // 1);
	return $topic;
}

sub subscribe
{
	my ($topic, $start, $more) = @_;

	$start //= 'earliest';
	query("SELECT outbox.subscribe('$topic', 'app.take(outbox.record)', start => '$start'"
		  . ($more // '') . ')');
	return;
}

sub unsubscribe
{
	my ($topic) = @_;

	query("SELECT outbox.unsubscribe('$topic')");
	return;
}

# Records of a partition with these values, in one batch
sub produce
{
	my ($topic, $partition, @values) = @_;

	$kafka->produce($topic, map { { partition => $partition, value => $_ } } @values);
	return;
}

# Wait until these values, by partition and in the order they were handled in,
# are all there are.
sub taken
{
	my ($topic, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$test->wait_for(
		"SELECT string_agg(payload, ' ' ORDER BY partition, n) FROM app.taken WHERE topic = '$topic'",
		$expected) and pass($name);
	return;
}

# Every record of the topic was handled once, and in the order of its partition.
sub each_once
{
	my ($topic, $n, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$test->wait_for(
		"SELECT count(DISTINCT (partition, \"offset\")) FROM app.taken WHERE topic = '$topic'", $n);
	is( query(<<"EOS"), "$n|0", $name);
SELECT count(*), count(*) FILTER (WHERE "offset" <= before)
FROM (SELECT *, lag("offset") OVER (PARTITION BY partition ORDER BY n) AS before
	  FROM app.taken WHERE topic = '$topic') AS t
EOS
	return;
}

sub position
{
	my ($topic, $partition) = @_;
	return query('SELECT next_offset FROM outbox.consumer_offset'
		  . " WHERE topic = '$topic' AND kind = 's' AND partition = " . ($partition // 0));
}

sub wait_for_position
{
	my ($topic, $offset) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$test->wait_for('SELECT next_offset FROM outbox.consumer_offset'
		  . " WHERE topic = '$topic' AND kind = 's' AND partition = 0", $offset);
	return;
}

# Wait until the subscription says that
sub subscription_is
{
	my ($topic, $state, $reason, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$test->wait_for("SELECT state, reason FROM outbox.subscription WHERE topic = '$topic'",
		qr/^\Q$state\E\|$reason/) and pass($name);
	return;
}

# What the log's hint says to do about the topic
sub hint
{
	my ($topic) = @_;
	my @hints = slurp_file($node->logfile) =~ /HINT:  To go on behind an offset: (SELECT outbox.skip\('$topic', .*\))\./g;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	isnt(scalar(@hints), 0, 'the log has a hint');
	return $hints[-1];
}

sub make_anew
{
	my ($topic) = @_;

	$kafka->delete_topic($topic);
	wait_until("$topic is gone", sub { !$kafka->topics->{$topic} });
	$kafka->create_topic($topic, 1);
	return;
}

sub set_consumers
{
	my ($n) = @_;

	set_conf($node, 'outbox.consumers' => $n);
	return;
}

subtest 'start' => sub {
	my %topic = map { $_ => new_topic() } qw(earliest latest time before after);

	produce($topic{$_}, 0, 1, 2) foreach (sort keys %topic);
	produce($topic{time}, 0, 3, 4);
	my @records = $kafka->consume($topic{time});
	cmp_ok($records[1]{timestamp}, '<', $records[2]{timestamp}, 'the records have their times');
	my $time = query("SELECT to_timestamp($records[2]{timestamp} / 1000.0)");

	subscribe($topic{$_}, $_) foreach ('earliest', 'latest');
	subscribe($topic{time}, $time);
	subscribe($topic{before}, '2001-02-03 04:05:06+00');
	subscribe($topic{after}, 'tomorrow');
	wait_for_position($topic{$_}, 2) foreach ('latest', 'after');
	produce($topic{$_}, 0, 5) foreach (sort keys %topic);
	taken($topic{earliest}, '1 2 5', 'earliest');
	taken($topic{latest}, '5', 'latest');
	taken($topic{time}, '3 4 5', 'a time');
	taken($topic{before}, '1 2 5', 'a time before all');
	taken($topic{after}, '5', 'a time after all');

	# it is a number, and of the partitions there are
	$node->stop;
	produce($topic{$_}, 0, 6) foreach ('latest', 'after');
	foreach my $start ('latest', 'after')
	{
		$kafka->add_partitions($topic{$start}, 2);
		produce($topic{$start}, 1, 7);
	}
	$node->start;
	taken($topic{$_}, '5 6 7', "$_: what came while it was down, and new partitions from their start")
	  foreach ('latest', 'after');
};

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

	unsubscribe($topic);
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

subtest 'made anew' => sub {
	my %topic = map { $_ => new_topic() } qw(fewer more stopped);
	my %values = (fewer => [ 1 .. 2 ], more => [ 1 .. 9 ], stopped => [ 1 .. 9 ]);

	produce($topic{$_}, 0, qw(a b c d)) foreach (sort keys %topic);
	subscribe($topic{$_}) foreach (sort keys %topic);
	taken($topic{$_}, 'a b c d', "$_: the old one is read") foreach (sort keys %topic);
	foreach my $case ('fewer', 'more')
	{
		make_anew($topic{$case});
		produce($topic{$case}, 0, @{ $values{$case} });
	}
	subscription_is($topic{$_}, 'paused', 'partition 0: position \d+ is lost: ', "$_: it is paused")
	  foreach ('fewer', 'more');
	$node->stop;
	make_anew($topic{stopped});
	produce($topic{stopped}, 0, @{ $values{stopped} });
	$node->start;
	subscription_is($topic{stopped}, 'paused', 'partition 0: position 4 is lost: ',
		'stopped: it is paused');

	foreach my $case (sort keys %topic)
	{
		my $hint = hint($topic{$case});

		query('TRUNCATE app.taken');
		like($hint, qr/, 0, -1\)$/, 'it names the log\'s start');
		query($hint);
		taken($topic{$case}, join(' ', @{ $values{$case} }), "$case: it goes on from there");
		subscription_is($topic{$case}, 'running', '', 'and is paused no more');
	}
	is(query("SELECT positions_lost FROM outbox.subscription WHERE topic = '$topic{stopped}'"), 1,
		'what happened stays visible');
};

subtest 'what retention removes' => sub {
	my ($lost, $read) = (new_topic(), new_topic());

	produce($_, 0, 1, 2) foreach ($lost, $read);
	subscribe($_) foreach ($lost, $read);
	taken($_, '1 2', 'read') foreach ($lost, $read);
	$node->stop;
	produce($lost, 0, 3, 4);
	foreach my $topic ($lost, $read)
	{
		$kafka->alter_config($topic, 'retention.ms' => 1, 'segment.ms' => 1);
		wait_until('the records are removed',
			sub { my ($low, $high) = $kafka->watermarks($topic); $low == $high });
		$kafka->alter_config($topic, 'retention.ms' => 604_800_000);
	}
	produce($_, 0, 5) foreach ($lost, $read);
	$node->start;
	taken($read, '1 2 5', 'it matters not that what was read is gone');
	subscription_is($lost, 'paused', 'partition 0: position 2 is lost: The log begins above it',
		'it does when it was not');
	is(query('TRUNCATE app.taken'), '', 'it has read nothing since');
	my $hint = hint($lost);
	like($hint, qr/, 0, 3\)$/, 'it names what is missing');
	query($hint);
	taken($lost, '5', 'it goes on behind that');
};

subtest 'what compaction removes' => sub {
	my $topic = $test->new_name('topic');
	my $keyed = sub {
		$kafka->produce($topic, map { { key => $_->[0], value => $_->[1] } } @_);
	};

	$kafka->create_topic($topic, 1, 'cleanup.policy' => 'compact', 'segment.ms' => 100,
		'min.cleanable.dirty.ratio' => '0.01', 'max.compaction.lag.ms' => 100);
	$keyed->([ k => 1 ]);
	subscribe($topic);
	taken($topic, '1', 'read');
	is(query("SELECT anchor_offset, anchor_timestamp > 0 FROM outbox.consumer_offset WHERE topic = '$topic'"),
		'0|t', 'the log is known by that record');
	$node->stop;
	$keyed->([ k => 2 ]);
	wait_until('the record is gone', sub {
		$keyed->([ other => 3 ]);
		return ($kafka->consume($topic))[0]{offset} > 0;
	});
	$node->start;
	$test->wait_for("SELECT count(*) FROM app.taken WHERE topic = '$topic' AND payload = '2'", 1);
	subscription_is($topic, 'running', '', 'it goes on');
	is(query("SELECT positions_lost FROM outbox.subscription WHERE topic = '$topic'"), 0, 'nothing is lost');
};

subtest 'a record that can not be read' => sub {
	my $topic = new_topic(2);
	my $file = "$kafka->{dir}/data/$topic-0/00000000000000000000.log";

	produce($topic, 0, $_) foreach ('a', 'spoil me', 'c');
	produce($topic, 1, 'd');
	my $place = index(slurp_file($file), 'spoil me');
	open(my $handle, '+<:raw', $file) or die "$file: $!";
	seek($handle, $place, 0);
	print $handle 'S';
	close($handle) or die "$file: $!";

	subscribe($topic);
	subscription_is($topic, 'paused', q(partition 0: the record at offset 1 can't be read: ),
		'it pauses its partition');
	taken($topic, 'a d', 'what is before it is handled, and other partitions');
	produce($topic, 1, 'e');
	taken($topic, 'a d e', 'which go on');
	is( query("SELECT partitions, partitions_paused FROM outbox.subscription WHERE topic = '$topic'"),
		'2|1', 'one of two is paused');
	$node->restart;
	produce($topic, 1, 'f');
	taken($topic, 'a d e f', 'after a restart, too');
	my $hint = hint($topic);
	like($hint, qr/, 0, 1\)$/, 'the hint names it');
	query($hint);
	taken($topic, 'a c d e f', 'outbox.skip gets past it');
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

subtest 'missing, and denied' => sub {
	my $missing = $test->new_name('topic');
	my $denied = new_topic();

	subscribe($missing);
	$test->wait_for_state(qr/^topic "$missing" is missing/);
	$kafka->create_topic($missing, 1);
	produce($missing, 0, 1);
	taken($missing, '1', 'it is read once it is there');

	$kafka->acl_add('User:ANONYMOUS', 'deny', 'read', 'topic', $denied);
	produce($denied, 0, 1);
	subscribe($denied);
	$test->wait_for_state(qr/^topic "$denied" is denied/);
	like(slurp_file($node->logfile), qr/LOG:  subscribed topic "$denied" is denied: .*\n.*HINT:.*--topic $denied/,
		'the log says what to allow');
	$kafka->acl_remove('User:ANONYMOUS', 'deny', 'read', 'topic', $denied);
	taken($denied, '1', 'it is read once it is allowed');
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
		set_consumers($consumers);
		$load->();
	}
	each_once($topic, $n, 'each record is handled once, in the order of its partition');
	set_consumers(1);
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
	$test->wait_for('SELECT count(*) FROM outbox.handler_call', 1);

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
	$test = OutboxTest::Results->new($standby, $kafka);
	each_once($topic, 600, 'promoted: it goes on from the positions it has');
	$standby->stop;
};

$kafka->stop;
done_testing();
