# Topics that can't be published to for a while: their messages wait, those of
# others don't.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $kafka = OutboxTest::Kafka->new(authorizer => 1);
$kafka->start;
my $node = new_outbox_node(
	'main',
	bootstrap => $kafka->bootstrap,
	extension => ['postgres']);

sub send_one
{
	my ($topic, $value) = @_;
	return $node->safe_psql('postgres',
		"SELECT outbox.send('$topic', '$value'::text, 'k')");
}

sub wait_for_sent
{
	my ($topic, $n) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'SENT'",
		$n);
}

sub wait_for_state
{
	my ($topic, $state) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT state FROM outbox.topic WHERE topic = '$topic'", $state);
}

sub topic_is
{
	my ($topic, $columns, $expected, $name) = @_;
	my $got = $node->safe_psql('postgres',
		"SELECT $columns FROM outbox.topic WHERE topic = '$topic'");

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ref $expected ? like($got, $expected, $name) : is($got, $expected, $name);
}

# Messages for another topic go out, and its state is as ever
sub check_others
{
	my ($name) = @_;
	my $id = send_one('there', $name);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_value($node, 'postgres',
		"SELECT status FROM outbox.message WHERE id = '$id'", 'SENT');
	# what the brokers told of it comes a moment later
	ok( wait_for_value($node, 'postgres',
			q(SELECT state, backlog FROM outbox.topic WHERE topic = 'there'), 'ready|0'),
		$name);
	return;
}

sub values_of
{
	my ($topic) = @_;
	return map { $_->{value} } $kafka->consume($topic);
}

# What became of a request of outbox.create_topic
sub request
{
	my ($arguments) = @_;
	my $request = $node->safe_psql('postgres', "SELECT outbox.create_topic($arguments)");

	wait_for_value($node, 'postgres',
		"SELECT finished_at IS NOT NULL FROM outbox.topic_request WHERE request = $request", 't');
	return $node->safe_psql('postgres',
		"SELECT error FROM outbox.topic_request WHERE request = $request");
}

$kafka->create_topic('there', 1);
check_others('before anything is wrong');

subtest 'what the brokers tell' => sub {
	$kafka->create_topic('shown', 3, 'min.insync.replicas' => 1);
	send_one('shown', 'x');
	wait_for_value($node, 'postgres',
		q(SELECT partitions, leaderless, replication_factor, min_insync_replicas
		  FROM outbox.topic WHERE topic = 'shown'), '3|0|1|1');
	topic_is('shown', 'state, backlog, hint, error, checked_at < clock_timestamp()',
		'ready|0|||t', 'and the rest');
	topic_is('shown', 'warning',
		qr/^replication factor 1, min\.insync\.replicas 1: below 3 and 2/,
		'a warning, since one broker can lose it');
};

subtest 'a missing topic, made by outbox.create_topic' => sub {
	send_one('missing', $_) foreach (1 .. 3);
	wait_for_state('missing', 'missing');
	topic_is('missing', 'backlog, oldest_new_age > interval \'0\', tries > 0, held_since < clock_timestamp()',
		'3|t|t|t', 'its messages wait');
	topic_is('missing', 'error', qr/UNKNOWN_TOPIC_OR_PART/, 'it says why');
	topic_is('missing', 'hint',
		q(create it: SELECT outbox.create_topic('missing', partitions => 6, replication_factor => 3)),
		'and what to do');
	check_others('others go on');
	is( $node->safe_psql('postgres', 'SELECT topic, partition FROM outbox.held'),
		'missing|-1', 'it is one mark');
	is($node->safe_psql('postgres', 'SELECT backlog FROM outbox.stat'),
		3, 'outbox.stat counts its messages');
	is( $node->safe_psql('postgres',
			q(SELECT count(*) FROM outbox.message WHERE topic = 'missing' AND (status <> 'NEW' OR attempts > 0))),
		0, 'no attempt is counted');

	send_one('missing', 4);
	is(request(q('missing', 2, 1, '{"max.message.bytes": 3000, "retention.ms": "86400000"}')),
		'', 'it is created');
	wait_for_sent('missing', 4);
	is_deeply([ values_of('missing') ], [ 1 .. 4 ], 'its messages go out, in order');
	is(scalar(@{ $kafka->topics->{missing} }), 2, 'with the partitions asked for');
	wait_for_state('missing', 'ready');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.held'),
		0, 'the mark is gone');

	# that the settings have arrived, too
	my $id = $node->safe_psql('postgres', q(SELECT outbox.send('missing', repeat('x', 5000), 'k')));
	wait_for_value($node, 'postgres',
		"SELECT status FROM outbox.message WHERE id = '$id'", 'DEAD');

	# back-off: not as often as it could
	like(slurp_file($node->logfile), qr/topic "missing" is held: UNKNOWN_TOPIC_OR_PART/,
		'the log says that it was held');
	like(slurp_file($node->logfile), qr/topic "missing" goes on/, 'and that it went on');
};

subtest 'requests that fail' => sub {
	like(request(q('there', 1, 1)), qr/^TOPIC_ALREADY_EXISTS: /, 'there already');
	like(request(q('three', 1, 3)), qr/^INVALID_REPLICATION_FACTOR: /, 'too few brokers');
	like(request(q('config', 1, 1, '{"no.such.setting": 1}')), qr/^INVALID_CONFIG: /,
		'an unknown setting');
	my @rule = ('User:ANONYMOUS', 'deny', 'create', 'cluster', 'kafka-cluster');
	$kafka->acl_add('User:ANONYMOUS', 'deny', 'create', 'topic', 'forbidden');
	$kafka->acl_add(@rule);
	like(request(q('forbidden', 1, 1)), qr/^(TOPIC|CLUSTER)_AUTHORIZATION_FAILED: /, 'not allowed');
	$kafka->acl_remove(@rule);
	is(request(q('defaults')), '', 'one with the defaults of the broker');
	like(slurp_file($node->logfile), qr/topic "three" could not be created: INVALID_REPLICATION_FACTOR/,
		'the log says so');
	is_deeply(
		[ grep { /^(three|config|forbidden|defaults)$/ } sort keys %{ $kafka->topics } ],
		['defaults'], 'and they are not there');

	my ($status, $out, $err) = $node->psql('postgres', q(SELECT outbox.create_topic('no/topic')));
	like($err, qr/invalid topic name/, 'an impossible name is refused at once');
	check_others('others go on');
};

subtest 'a request, when a bridge dies before it can say that it is done' => sub {
	my $worker = q(FROM outbox.worker WHERE kind = 'publisher');
	my $bridge = $node->safe_psql('postgres', "SELECT bridge_pid $worker");

	# A stopped one is given the request, and the message that comes with it is
	# what the publisher waits for then.
	kill('STOP', $bridge);
	my $request = $node->safe_psql('postgres', q(
		SELECT outbox.create_topic('halfway', 3, 1)
		FROM outbox.send('there', 'with a request'::text, 'k')));
	wait_for_value($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity
		WHERE backend_type LIKE 'outbox publisher%' AND query = 'publishing'), 1);
	$kafka->create_topic('halfway', 3);
	kill('KILL', $bridge);
	wait_for_value($node, 'postgres',
		"SELECT finished_at IS NOT NULL FROM outbox.topic_request WHERE request = $request", 't');
	is( $node->safe_psql('postgres',
			"SELECT error FROM outbox.topic_request WHERE request = $request"),
		'', 'it is done, though the next one finds the topic there already');
	isnt($node->safe_psql('postgres', "SELECT bridge_pid $worker"), $bridge, 'which it was');
	like(request(q('halfway', 3, 1)), qr/^TOPIC_ALREADY_EXISTS: /, 'a further request is told');
};

subtest 'a missing topic, made by somebody else' => sub {
	send_one('outside', $_) foreach (1 .. 3);
	wait_for_state('outside', 'missing');
	$kafka->create_topic('outside', 1);
	wait_for_sent('outside', 3);
	is_deeply([ values_of('outside') ], [ 1 .. 3 ], 'goes on by itself');
	wait_for_state('outside', 'ready');
};

subtest 'a denied topic' => sub {
	my @anonymous = ('User:ANONYMOUS', 'allow');

	# Rules for anybody deny everybody else.
	foreach my $topic (qw(hidden readonly))
	{
		$kafka->create_topic($topic, 1);
		$kafka->acl_add('User:other', 'allow', 'write', 'topic', $topic);
	}
	$kafka->acl_add(@anonymous, 'describe', 'topic', 'readonly');
	foreach my $topic (qw(hidden readonly))
	{
		send_one($topic, $_) foreach (1 .. 3);
		wait_for_state($topic, 'denied');
		topic_is($topic, 'error', qr/TOPIC_AUTHORIZATION_FAILED/, "$topic: it says why");
		topic_is($topic, 'hint', qr/kafka-acls --add .*--operation Write .*--topic $topic$/,
			"$topic: and what to do");
		topic_is($topic, 'backlog', 3, "$topic: its messages wait");
	}
	check_others('others go on');

	foreach my $topic (qw(hidden readonly))
	{
		$kafka->acl_add(@anonymous, 'write', 'topic', $topic);
		send_one($topic, 4);
		wait_for_sent($topic, 4);
		is_deeply([ values_of($topic) ], [ 1 .. 4 ], "$topic: allowed, it goes on");
		wait_for_state($topic, 'ready');
	}

	# taken away from a topic in use
	$kafka->acl_remove(@anonymous, 'write', 'topic', 'readonly');
	my $denied = wait_until('writes are denied again', sub {
		send_one('readonly', 'more');
		return $node->safe_psql('postgres',
			q(SELECT state FROM outbox.topic WHERE topic = 'readonly')) eq 'denied';
	});
	check_others('others go on');
	$kafka->acl_add(@anonymous, 'write', 'topic', 'readonly');
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM outbox.message WHERE topic = 'readonly' AND status <> 'SENT'), 0);
	is( scalar(values_of('readonly')),
		$node->safe_psql('postgres', q(SELECT count(*) FROM outbox.message WHERE topic = 'readonly')),
		'all are there once');
};

subtest 'order of a topic that goes on' => sub {
	$node->safe_psql('postgres', q(
		CREATE TABLE counter (key text PRIMARY KEY, n int NOT NULL);
		INSERT INTO counter SELECT 'key' || i, 0 FROM generate_series(1, 20) AS i;
		INSERT INTO counter SELECT 'late' || i, 0 FROM generate_series(1, 3) AS i;
		CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM outbox.send('busy', format('%s %s', NEW.key, NEW.n), NEW.key);
			RETURN NULL;
		END
		$$;
		CREATE TRIGGER count_up AFTER UPDATE ON counter
			FOR EACH ROW EXECUTE FUNCTION count_up();
	));

	# Three transactions that began before the topic was held and end while it
	# is, while it catches up, and after that; and more between them.
	my @late = map { $node->background_psql('postgres') } 1 .. 3;
	$_->set_query_timer_restart foreach (@late);
	my $up = sub {
		my ($i) = @_;
		$late[ $i - 1 ]->query_safe("UPDATE counter SET n = n + 1 WHERE key = 'late$i'");
	};
	foreach my $i (1 .. 3)
	{
		$late[ $i - 1 ]->query_safe('BEGIN');
		$up->($i);
	}
	my $many = q(
		DO $$
		BEGIN
			FOR i IN 1 .. 400 LOOP
				UPDATE counter SET n = n + 1 WHERE key LIKE 'key%';
			END LOOP;
		END
		$$);
	$node->safe_psql('postgres', $many);
	wait_for_state('busy', 'missing');
	$up->($_) foreach (1 .. 3);
	$late[0]->query_safe('COMMIT');
	$node->safe_psql('postgres', $many);
	$up->($_) foreach (2 .. 3);
	topic_is('busy', 'backlog', 16_002, 'it has a backlog of many batches');

	$node->safe_psql('postgres', q(SELECT outbox.create_topic('busy', 4, 1)));
	wait_until('it catches up', sub {
		return $node->safe_psql('postgres',
			q(SELECT count(*) FROM outbox.message WHERE topic = 'busy' AND status = 'SENT')) > 0;
	});
	$node->pgbench(
		'--no-vacuum --client=4 --transactions=50',
		0,
		[qr{actually processed: 200/200}],
		[qr{^$}],
		'messages captured meanwhile',
		{
			'011_order' => q(
				\set key random(1, 20)
				UPDATE counter SET n = n + 1 WHERE key = 'key' || :key;
			)
		});
	$late[1]->query_safe('COMMIT');
	wait_for_state('busy', 'ready');
	$up->(3);
	$late[2]->query_safe('COMMIT');
	$_->quit foreach (@late);

	my $total = $node->safe_psql('postgres', 'SELECT sum(n) FROM counter');
	wait_for_sent('busy', $total);
	my (%last, @wrong);
	my $records = 0;
	foreach my $line (split /\n/, $kafka->ktool('consume', 'busy'))
	{
		my ($key, $n) = $line =~ /"value": "(\S+) (\d+)"/ or die "unexpected record: $line";

		$records++;
		push @wrong, "$key: $n after " . ($last{$key} // 0) if $n != ($last{$key} // 0) + 1;
		$last{$key} = $n;
	}
	splice(@wrong, 20) if @wrong > 20;
	is_deeply(\@wrong, [], 'each key is in order, with no gap');
	is($records, $total, 'none is missing, and none there twice');
	is("@last{qw(late1 late2 late3)}", '2 3 4', 'late ones are among them');
};

subtest 'a restart while a topic is held' => sub {
	my @ids = map { send_one('kept', $_) } 1 .. 3;

	wait_for_state('kept', 'missing');
	my $since = $node->safe_psql('postgres', q(SELECT since FROM outbox.held WHERE topic = 'kept'));
	# so that nothing but the mark leads to its messages
	check_others('others go on');
	wait_for_value($node, 'postgres',
		"SELECT bool_and(cursor > '$ids[2]') FROM outbox.lane", 't');
	$node->stop('immediate');
	start_again($node);
	topic_is('kept', 'state, backlog', 'missing|3', 'the mark is still there');
	check_others('others go on after it');
	$node->restart;
	is( $node->safe_psql('postgres', q(SELECT since FROM outbox.held WHERE topic = 'kept')),
		$since, 'it is the same');
	$kafka->create_topic('kept', 1);
	wait_for_sent('kept', 3);
	is_deeply([ values_of('kept') ], [ 1 .. 3 ], 'its messages go out');
	wait_for_state('kept', 'ready');
};

# How long it takes until so many messages, one after the other, are SENT
sub time_for
{
	my ($n) = @_;
	my $start = time();

	foreach my $i (1 .. $n)
	{
		my $id = send_one('there', $i);

		wait_for_value($node, 'postgres',
			"SELECT status FROM outbox.message WHERE id = '$id'", 'SENT');
	}
	return time() - $start;
}

subtest 'a large backlog of some topics does not slow another' => sub {
	my $n = 40_000;
	my @big = qw(big1 big2);

	# Two of them, of more bytes than one batch takes of each: together they
	# could fill every batch.
	time_for(5);
	my $idle = time_for(20);
	foreach my $topic (@big)
	{
		$node->safe_psql('postgres',
			"SELECT count(outbox.send('$topic', repeat('x', 2500), i::text)) FROM generate_series(1, $n / 2) AS i");
		wait_for_state($topic, 'missing');
	}
	my $held = time_for(20);
	note("20 messages took $idle s, and $held s beside the backlog");
	cmp_ok($held, '<', 5 * $idle + 5, 'while they are held');
	topic_is('big1', 'backlog', $n / 2, 'one is held still');

	# While they catch up, messages of another topic pass.
	$kafka->create_topic($_, 1) foreach (@big);
	wait_until('they catch up', sub {
		send_one('there', 'meanwhile');
		return $node->safe_psql('postgres',
			q(SELECT count(*) FROM outbox.message WHERE topic LIKE 'big_' AND status = 'NEW')) == 0;
	});
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM outbox.message WHERE topic = 'there' AND status <> 'SENT'), 0);
	my ($passed, $longest, $took) = split /\|/, $node->safe_psql('postgres', q(
		WITH big AS (SELECT min(updated_at) AS first, max(updated_at) AS last
			FROM outbox.message WHERE topic LIKE 'big_')
		SELECT count(*) FILTER (WHERE m.updated_at < big.last),
			max(m.updated_at - m.created_at), max(big.last - big.first)
		FROM big, outbox.message AS m
		WHERE m.topic = 'there' AND m.created_at > big.first));
	note("they took $took; the longest wait of the $passed others was $longest");
	cmp_ok($passed, '>', 0, 'while they catch up');
};

is( $node->safe_psql('postgres',
		q(SELECT restarts, bridge_restarts FROM outbox.worker WHERE kind = 'publisher')),
	'0|0', 'neither publisher nor bridge had to be started again');

$node->stop;
done_testing();
