# Of a topic only a partition can't be written: its messages wait, and those of
# the others don't, whatever happens meanwhile.  Bridges, workers and the server
# end, the publishers change in number, the topic is paused, gets more partitions,
# or is deleted and made anew.

use strict;
use warnings;

use OutboxTest::Broker qw(partition_of);
use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $keys = 400;
my @topics = qw(half more paused anew);

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $second = $kafka->another_broker(2);
$second->start;
$kafka->create_topic_on($_, [ 1, 2, 1 ]) foreach (@topics);
$kafka->create_topic_on('many', [ (1, 2) x 10 ]);
my $node = new_outbox_node(
	'main',
	bootstrap => $kafka->bootstrap,
	conf => 'outbox.publishers = 4',
	extension => ['postgres']);

my %rounds = map { $_ => 0 } @topics, 'many';

# One message for each key, so that each publisher has some for each partition
sub send_round
{
	foreach my $topic (@_)
	{
		$rounds{$topic}++;
		$node->safe_psql('postgres',
			"SELECT outbox.send('$topic', '$rounds{$topic}'::text, n::text)"
			  . " FROM generate_series(1, $keys) AS n");
	}
	return;
}

# How many keys go to partition 1, of those that the code says
sub in_partition_1
{
	my ($partitions, $which) = @_;

	return scalar(grep { partition_of($_, $partitions) == 1 && (!$which || $which->($_)) } 1 .. $keys);
}

my $of_three = in_partition_1(3);

sub backlog_is
{
	my ($topic, $n, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT coalesce(max(messages), 0) FROM outbox.backlog() WHERE topic = '$topic'", $n)
	  && ok(1, $name);
}

# Which marks the publishers have of it, and how many of them
sub marks_are
{
	my ($topic, $marks) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		'SELECT partition, partitions, count(*), min(publishers), max(publishers)'
		  . " FROM outbox.held WHERE topic = '$topic' GROUP BY 1, 2", $marks);
}

# Each key's messages became SENT in their order: more can't be told where its
# partition changed.
sub sent_in_order
{
	my ($topic, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(
		$node->safe_psql('postgres',
			'SELECT count(*), count(*) FILTER (WHERE updated_at < before) FROM ('
			  . 'SELECT updated_at, lag(updated_at) OVER (PARTITION BY key ORDER BY id) AS before'
			  . " FROM outbox.message WHERE topic = '$topic' AND status = 'SENT') AS m"),
		$keys * $rounds{$topic} . '|0', $name);
}

# All rounds of all keys are in the topic, in order, and once each
sub in_topic
{
	my ($topic, $name) = @_;
	my %of;

	push @{ $of{ $_->{key} } }, $_->{value} foreach $kafka->consume($topic);
	my @wrong = grep { "@{ $of{$_} // [] }" ne join(' ', 1 .. $rounds{$topic}) } 1 .. $keys;
	splice(@wrong, 10) if @wrong > 10;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is_deeply([ map { "$_: @{ $of{$_} // [] }" } @wrong ], [], $name);
}

# Has the publishers try what they hold now, not in half a minute
sub try_now
{
	$node->safe_psql('postgres', 'SELECT outbox.config_changed()');
	return;
}

sub publishers_are
{
	my ($n) = @_;

	set_conf($node, 'outbox.publishers' => $n);
	return wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM outbox.worker WHERE kind = 'publisher' AND pid IS NOT NULL), $n);
}

send_round(@topics, 'many');
backlog_is($_, 0, "$_: all partitions work") foreach (@topics, 'many');
$second->stop;
wait_until('a partition of each has no leader',
	sub { my $topics = $kafka->topics; !grep { "@{ $topics->{$_} }" ne '1 -1 1' } @topics });
send_round(@topics);
foreach my $topic (@topics)
{
	backlog_is($topic, $of_three, "$topic: the messages of one partition wait");
	marks_are($topic, '1|3|4|4|4');
}
is( $node->safe_psql('postgres',
		q(SELECT state, held_partitions, error ~ '^LEADER_NOT_AVAILABLE: ', hint ~ 'the others go on', held_since < now()
		  FROM outbox.topic WHERE topic = 'half')),
	'failing|{1}|t|t|t', 'outbox.topic shows which');
like(slurp_file($node->logfile), qr/partition 1 of topic "half" is held: LEADER_NOT_AVAILABLE/,
	'and so does the log');

# ---------- many of them ----------

send_round('many') foreach (1 .. 3);
my $many = 3 * grep { partition_of($_, 20) % 2 == 1 } 1 .. $keys;
backlog_is('many', $many, 'ten partitions of twenty are held');
is( $node->safe_psql('postgres', q(SELECT held_partitions FROM outbox.topic WHERE topic = 'many')),
	'{1,3,5,7,9,11,13,15,17,19}', 'says outbox.topic');

# ---------- restarts ----------

my $since = $node->safe_psql('postgres', q(SELECT min(since) FROM outbox.held WHERE topic = 'half'));
my $next = 2;

# What was held is held, what wasn't goes out; and nothing but the marks leads to
# the former.
sub goes_on_so
{
	my ($name) = @_;

	send_round('half');
	backlog_is('half', $of_three * $next++, "$name: the partition is held still");
	wait_for_value($node, 'postgres',
		q(SELECT bool_and(l.cursor > h.cursor) FROM outbox.lane AS l, outbox.held AS h
		  WHERE h.topic = 'half' AND l.lane < 16), 't');
	return;
}

kill('KILL', bridge_pids($node));
goes_on_so('new bridges');
$node->safe_psql('postgres',
	q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'outbox publisher%'));
goes_on_so('new publishers');
$node->restart;
goes_on_so('a restart');
kill9_server($node);
start_again($node);
goes_on_so('a crash');
is($node->safe_psql('postgres', q(SELECT min(since) FROM outbox.held WHERE topic = 'half')),
	$since, 'since the same time');

# ---------- another number of publishers ----------

# One of them, that with the first message that waits, holds all of the topic
# while the others hold the partition: none of the new ones may go by the latter
# alone.
set_conf($node, 'outbox.enabled' => 'off');
wait_for_value($node, 'postgres',
	q(SELECT bool_and(state LIKE 'resting%') FROM outbox.worker WHERE kind = 'publisher'), 't');
$node->safe_psql('postgres', q(UPDATE outbox.held SET partition = -1, partitions = -1
	WHERE (topic, publisher) = (SELECT topic, publisher FROM outbox.held
		WHERE topic = 'half' ORDER BY cursor LIMIT 1)));
set_conf($node, 'outbox.publishers' => 2, 'outbox.enabled' => 'on');
marks_are('half', '1|3|2|2|2');
goes_on_so('marks of two kinds');

foreach my $n (3, 1, 4)
{
	publishers_are($n);
	marks_are('half', "1|3|$n|$n|$n");
	goes_on_so("$n publishers");
}

# ---------- paused and resumed meanwhile ----------

$node->safe_psql('postgres', q(SELECT outbox.pause('paused')));
marks_are('paused', '-1|-1|4|4|4');
send_round('paused');
backlog_is('paused', $of_three + $keys, 'paused: all of it waits');
$node->safe_psql('postgres', q(SELECT outbox.resume('paused')));
backlog_is('paused', 2 * $of_three, 'resumed: but for the partition it goes on');
marks_are('paused', '1|3|4|4|4');

# ---------- more partitions ----------

$kafka->add_partitions('more', 7);
try_now();
marks_are('more', '1|7|4|4|4');
my $old = in_partition_1(7, sub { partition_of($_[0], 3) == 1 });
backlog_is('more', $old, 'more partitions: what leads elsewhere now has gone there');
send_round('more');
backlog_is('more', $old + in_partition_1(7), 'and what leads to the held one waits');
like(slurp_file($node->logfile), qr/topic "more" is held: it has 7 partitions instead of 3/,
	'the log tells of the change');

# ---------- deleted, and made anew ----------

$kafka->delete_topic('anew');
try_now();
wait_for_value($node, 'postgres',
	q(SELECT DISTINCT state, held_partitions FROM outbox.topic WHERE topic = 'anew'), 'missing|');
marks_are('anew', '-1|-1|4|4|4');
send_round('anew');
backlog_is('anew', $of_three + $keys, 'deleted: all of it waits');
$kafka->create_topic_on('anew', [ 1, 1 ]);
try_now();
backlog_is('anew', 0, 'made anew: and goes on');
sent_in_order('anew', 'in order');

# ---------- the end ----------

$second->start;
wait_until('all have leaders',
	sub { my $topics = $kafka->topics; !grep { $_ < 0 } map { @$_ } @$topics{ @topics, 'many' } });
try_now();
backlog_is($_, 0, "$_ goes on") foreach (@topics, 'many');
in_topic($_, "$_ is in order, each message once") foreach (qw(half paused many));
sent_in_order('more', 'more was published in order');
wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.held', 0)
  and pass('nothing is held');
is($node->safe_psql('postgres', q(SELECT DISTINCT state, held_partitions FROM outbox.topic)),
	'ready|', 'says outbox.topic, too');
like(slurp_file($node->logfile), qr/partition 1 of topic "half" goes on/, 'and the log');

$node->stop;
$second->stop;
$kafka->stop;
done_testing();
