# outbox.pause and outbox.resume: the messages of one topic wait, in order, and
# those of others don't.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic($_, 1) foreach ('held', 'free');
my $node = new_outbox_node('main', bootstrap => $mock->bootstrap, extension => ['postgres']);

sub send_messages
{
	my ($topic, $from, $to) = @_;

	$node->safe_psql('postgres',
		"SELECT outbox.send('$topic', n::text, 'key') FROM generate_series($from, $to) AS n");
	return;
}

sub backlog_is
{
	my ($topic, $n) = @_;

	return wait_for_value($node, 'postgres',
		"SELECT coalesce(max(messages), 0) FROM outbox.backlog() WHERE topic = '$topic'", $n);
}

sub values_of
{
	my ($topic) = @_;

	return join(' ', map { $_->{value} } $mock->consume($topic));
}

send_messages('held', 1, 3);
backlog_is('held', '0');
$node->safe_psql('postgres', "SELECT outbox.pause('held')");
$node->safe_psql('postgres', "SELECT outbox.pause('held')");

# the mark is there when the publisher has heard of it
wait_for_value($node, 'postgres', "SELECT reason FROM outbox.held WHERE topic = 'held'", 'paused');
send_messages('held', 4, 500);
send_messages('free', 1, 5);
backlog_is('free', '0');
backlog_is('held', '497');
is($node->safe_psql('postgres', "SELECT state, hint FROM outbox.topic WHERE topic = 'held'"),
	"paused|SELECT outbox.resume('held')", 'it is to be seen, with what ends it');

$node->restart;
send_messages('held', 501, 502);
send_messages('free', 6, 6);
backlog_is('free', '0');
backlog_is('held', '499');

$node->safe_psql('postgres', "SELECT outbox.resume('held')");
backlog_is('held', '0');
is(values_of('held'), join(' ', 1 .. 502), 'they go on where they were, in order');
wait_for_value($node, 'postgres', "SELECT state FROM outbox.topic WHERE topic = 'held'", 'ready');

my ($status, $out, $err) = $node->psql('postgres', "SELECT outbox.resume('held')");
like($err, qr/topic "held" is not paused/, 'resuming what is not paused is an error');

subtest 'resumed while the server is down' => sub {
	$node->safe_psql('postgres', "SELECT outbox.pause('held')");
	wait_for_value($node, 'postgres', "SELECT reason FROM outbox.held WHERE topic = 'held'", 'paused');
	send_messages('held', 503, 504);
	set_conf($node, 'outbox.enabled' => 'off');
	wait_for_value($node, 'postgres',
		q{SELECT state FROM outbox.worker WHERE kind = 'publisher'}, qr/resting/);
	$node->safe_psql('postgres', "SELECT outbox.resume('held')");
	$node->restart;
	set_conf($node, 'outbox.enabled' => 'on');
	backlog_is('held', '0');
	is(values_of('held'), join(' ', 1 .. 504), 'nothing is forgotten');
};

$node->stop;
$mock->stop;
done_testing();
