# A batch's records share a subtransaction for as long as none of them fails.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Subscriptions;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant RECORDS => 300;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my $test = subscriptions_of($node, $kafka);

# How many transactions and subtransactions wrote down the topic's records.
sub writers
{
	my ($topic) = @_;
	return query("SELECT count(DISTINCT xmin::text) FROM app.taken WHERE topic = '$topic'");
}

sub count_is
{
	my ($topic, $expected, $name) = @_;

	$test->wait_for("SELECT count(*) FROM app.taken WHERE topic = '$topic'", $expected) and pass($name);
	is(query("SELECT count(DISTINCT \"offset\") FROM app.taken WHERE topic = '$topic'"),
		$expected, 'each of them once');
	is(query("SELECT count(*) FROM (SELECT \"offset\" - lag(\"offset\") OVER (ORDER BY n) AS step
			FROM app.taken WHERE topic = '$topic') AS s WHERE step < 1"), 0, 'in order');
	return;
}

# A batch waits in Kafka until the subscription is there.
subtest 'none fails' => sub {
	my $topic = new_topic();

	produce($topic, 0, map { "v$_" } 1 .. RECORDS);
	subscribe($topic);
	count_is($topic, RECORDS, 'all are handled');
	cmp_ok(writers($topic), '<', RECORDS / 4, 'many of them in one subtransaction');
};

# What the others did before and after it stays, the failed one's doesn't, and
# the next ones are isolated from each other.
subtest 'one fails for good' => sub {
	my $topic = new_topic();
	my @values = map { "v$_" } 1 .. RECORDS;

	$values[RECORDS / 2] = 'refuse';
	produce($topic, 0, @values);
	subscribe($topic);
	count_is($topic, RECORDS - 1, 'all the others are handled');
	is(query("SELECT records_dead FROM outbox.subscription WHERE topic = '$topic'"), 1,
		'the one is dead');
	is(query("SELECT records_handled FROM outbox.subscription WHERE topic = '$topic'"),
		RECORDS - 1, 'and counted once, as they are');

	my $before = writers($topic);
	produce($topic, 0, map { "w$_" } 1 .. RECORDS);
	count_is($topic, 2 * RECORDS - 1, 'as are those that follow');
	cmp_ok(writers($topic) - $before, '<', RECORDS, 'which go together again in the end');
};

# A copy in the same batch as its original is answered, not handled.
subtest 'copies' => sub {
	my $topic = new_topic();
	my $id = '0195c0de-0000-7000-8000-000000000042';

	$kafka->produce($topic, map { { value => $_, headers => [ [ 'id', $id ] ] } } qw(one two three));
	$kafka->produce($topic, { value => 'four' });
	subscribe($topic);
	taken($topic, 'one four', 'the first of them counts');
	is(query("SELECT records_repeated FROM outbox.subscription WHERE topic = '$topic'"), 2,
		'the others are copies');
};

done_testing();
