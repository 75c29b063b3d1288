# Positions of subscriptions: where they begin, and what becomes of them when the
# topic isn't what it was.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Subscriptions;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

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
my $node =
  new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my $test = subscriptions_of($node, $kafka);

sub make_anew
{
	my ($topic) = @_;

	$kafka->delete_topic($topic);
	wait_until("$topic is gone", sub { !$kafka->topics->{$topic} });
	$kafka->create_topic($topic, 1);
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

	# also if the worker died before it could write the number down
	my $topic = new_topic();
	produce($topic, 0, 1, 2);
	produce($topic, 0, 3);
	@records = $kafka->consume($topic);
	set_conf($node, 'outbox.enabled' => 'off');
	wait_for_value($node, 'postgres',
		q{SELECT count(*) FROM outbox.worker WHERE state = 'resting: outbox.enabled is off'}, '2');
	subscribe($topic, 'latest');
	query("UPDATE outbox.subscription_config SET assigned = 1,
		assigned_at = to_timestamp($records[2]{timestamp} / 1000.0) WHERE topic = '$topic'");
	set_conf($node, 'outbox.enabled' => 'on');
	taken($topic, '3', 'latest is the time of the assignment');
};

# The marks of transactions have offsets, and nobody is shown them: a position
# before them would be lost when retention comes by.
subtest 'transactions' => sub {
	my $topic = new_topic();

	$kafka->produce_in_transaction($topic, 'commit', 1, 2, 3);
	subscribe($topic);
	taken($topic, '1 2 3', 'what was committed is read');
	$kafka->produce_in_transaction($topic, 'abort', 4, 5);
	$kafka->produce_in_transaction($topic, 'commit', 6);
	taken($topic, '1 2 3 6', 'and nothing else');
	wait_for_value($node, 'postgres',
		"SELECT next_offset, end_offset FROM outbox.consumer_offset WHERE topic = '$topic'",
		'9|9', 20)
	  and pass('the position is behind the last mark');
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

$node->stop;
$kafka->stop;
done_testing();
